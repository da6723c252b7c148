"""Block-causal masked models: left to right from block to block, masked diffusion within each.

A block is written as a masked model writes a text, behind a cache of the blocks before it, which never changes. Blocks
of one word are an autoregressive model, and one block for the whole text is a masked one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import RequestError, UsageError
from manta.families.asked import check_options
from manta.families.batching import padded_prompts
from manta.families.block_model import BlockCausalConfig, BlockCausalModel, BlockReader
from manta.families.canvas import Prompts, Template, changes, prompt_tokens, template_of
from manta.families.decoding import DRAWN, batches, chosen_decoder, write_canvas
from manta.families.events import UNFINISHED, Event, GenerateOptions, Request
from manta.families.observer import Beginning, Observer
from manta.families.options import given, spelled
from manta.families.trained import LogLikelihood, Taught, Teaching, TrainedWriter
from manta.masked import (
    Canvas,
    DecoderConfig,
    DeferredConfig,
    Extension,
    ExtensionConfig,
    MaskedObjectiveConfig,
    Rates,
    ThresholdConfig,
    found_rates,
    likelihood_bound,
    masked_cross_entropy,
)
from manta.runtime import check_likelihood, make_generator
from manta.text import HUMAN, MASK, NULL, Batch
from manta.types import Loss

ALWAYS = 1 - 1e-9
"""Least share of hidden words in a block of one: it is hidden."""
OWN = ThresholdConfig()
"""How a block is written unless the options say otherwise."""


class BlockMatching:
    """What a block-causal model is taught: the hidden words of every block, behind the clean blocks before it.

    Each block has a share of hidden words of its own, stratified over the blocks of a batch. A block of one word is
    always hidden, so that the loss is the exact one of the next word.

    Args:
        config: how words are hidden and weighed, as for a masked model's whole text.
        rates: which shares of words are hidden, where that is found on the way.
    """

    def __init__(self, config: MaskedObjectiveConfig, rates: Rates | None = None) -> None:
        self.config, self.rates = config, rates

    def __call__(self, model: BlockCausalModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts nats (a hidden word) and supervised (share of words)."""
        config, length = self.config, model.config.block_length
        if length == 1:
            config = replace(config, least_share=ALWAYS, most_share=1.0, rates="fixed", complementary=False)
        clean, mask = model.in_blocks(batch)
        memory = model.memory(batch.prompt, batch.prompt_lengths, torch.full_like(batch.tag, HUMAN))
        times = config.times
        projected = model.trunk.project(memory.states.repeat(times, 1, 1), memory.mask.repeat(times, 1))

        def denoiser(tokens: Int64[Tensor, "k l"]) -> Float[Tensor, "k l v"]:
            shown = tokens.view(-1, clean.shape[1])
            logits = model(clean.repeat(times, 1), shown, mask.repeat(times, 1), projected)
            return logits.view(*tokens.shape, -1)

        blocks = (part.reshape(-1, length) for part in (clean, mask))
        rates = None if length == 1 else self.rates
        return masked_cross_entropy(denoiser, *blocks, mask_id=MASK, generator=generator, config=config, rates=rates)


class BlockCausalLM(TrainedWriter[BlockCausalModel]):
    """A block-causal masked model with its tokenizer, ready to write texts of any length.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
    """

    family = "block"
    observed = fills = True
    likelihood = "bound"
    estimator = "hidden words of each block behind the clean ones before it, their number uniform and stratified"
    config_class, net_class = BlockCausalConfig, BlockCausalModel

    @classmethod
    def stages(cls, net: BlockCausalModel, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """One stage, which has the time of the policy's two."""
        objective = BlockMatching(teaching.masking, found_rates(teaching.masking, measured))
        return [Taught("block", teaching.shares.model, objective)]

    def log_likelihood(
        self,
        batch: Batch,
        generators: Sequence[torch.Generator] = (),
        num_samples: int = 128,
        known: Int64[Tensor, "b"] | None = None,
    ) -> LogLikelihood:
        """A bound from below, exact for blocks of one word: the sum over blocks, each behind the clean ones before."""
        model, length = self.model, self.model.config.block_length
        clean, mask = model.in_blocks(batch)
        place = torch.arange(clean.shape[1], device=clean.device)
        asked = mask if known is None else mask & (place >= known.to(place.device)[:, None])
        memory = model.memory(batch.prompt, batch.prompt_lengths, torch.full_like(batch.tag, HUMAN))
        projected = model.trunk.project(memory.states, memory.mask)
        count = clean.shape[1] // length
        # A draw a block that does not depend on how many blocks the longest text of the batch has.
        own = [make_generator(int(torch.randint(2**62, (), generator=g)) + k) for g in generators for k in range(count)]
        found = likelihood_bound(
            lambda tokens: model(clean, tokens.view(clean.shape), mask, projected).view(*tokens.shape, -1),
            clean.reshape(-1, length),
            asked.reshape(-1, length),
            mask_id=MASK,
            generators=own,
            width=length,
            num_samples=2 if length == 1 else num_samples,
        )
        nats = found.nats.view(-1, count).double().cumsum(1)[:, -1].float()
        error = found.standard_error.view(-1, count).double().square().cumsum(1)[:, -1].sqrt().float()
        check_likelihood(nats)
        return LogLikelihood(kind="bound", value=-nats, standard_error=error)

    def check(self, options: GenerateOptions) -> None:
        """Refuse options that such a model does not follow, or that do not fit each other; see `RequestWriter`."""
        check_options(options, self.family)
        if options.choose > 1 and options.temperature == 0 and options.decoder not in DRAWN:
            raise UsageError(
                f"at temperature 0 there is one text to choose from; set {spelled('temperature')}, or leave "
                f"{spelled('choose')} out"
            )
        self._check_extension(options, self.decoder_for(options))
        room = options.max_tokens or 0
        if self.model.places is not None and room > self.capacity:
            raise UsageError(
                f"this model knows {self.capacity} absolute places and writes no more; lower {spelled('max_tokens')}"
            )

    @staticmethod
    def _check_extension(options: GenerateOptions, decoder: DecoderConfig) -> None:
        asked = [name for name in ("block_extension", "extension_step", "extension_below") if name in given(options)]
        if asked and decoder.kind != "deferred":
            raise UsageError(
                f"the {decoder.kind} decoder ends with its block, and {spelled(asked[0])} is for the deferred one; set "
                f"{spelled('decoder')} to deferred, or leave it out"
            )
        if asked and options.confidence == "entropy" and "extension_below" not in given(options):
            raise UsageError(
                "an entropy is below 0 as a confidence, so that every block would grow; set "
                f"{spelled('extension_below')}"
            )
        if asked and options.block_extension == 0:
            raise UsageError(f"{spelled(asked[0])} is for blocks that may grow; set {spelled('block_extension')}")

    def decoder_for(self, options: GenerateOptions) -> DecoderConfig:
        """The decoder of a request, see `chosen_decoder`."""
        return chosen_decoder(options, OWN)

    def read(self, request: Request, options: GenerateOptions) -> tuple[list[int], Template | None, int]:
        """Tokens of the prompt, the text to fill if there is one, and the seed; see `RequestWriter`."""
        prompt = prompt_tokens(request, self.tokenizer, self.model.config.max_prompt)
        template = template_of(request, self.tokenizer, rate=1, max_cells=self.capacity + 1)
        if changes(template):
            raise RequestError(
                "a block-causal model fills blanks ___; words [[…]] to change are for a Manta-LM and masked models"
            )
        return prompt, template, request.seed

    def write_rows(
        self,
        rows: Sequence[tuple[list[int], Template | None, int]],
        options: GenerateOptions,
        batch_size: int,
        observer: Observer,
    ) -> Iterator[Event]:
        """Block after block, prompts of like lengths side by side, and texts to fill apart; see `RequestWriter`."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        for alike in batches([rows[i][1] is not None for i in order], batch_size):
            chosen = [order[at] for at in alike]
            for event in self._write([rows[i] for i in chosen], options, observer):
                yield replace(event, index=chosen[event.index])

    @torch.no_grad()
    def _write(
        self, rows: Sequence[tuple[list[int], Template | None, int]], options: GenerateOptions, observer: Observer
    ) -> Iterator[Event]:
        prompts, templates, seeds = zip(*rows, strict=True)
        batch = Prompts(*padded_prompts(prompts, self.device), tuple(make_generator(seed) for seed in seeds))
        beginning = self._beginning(batch, templates, options, encode=True)
        room = (options.max_tokens if templates[0] is None else None) or self.capacity
        texts = [_Text(self, room, template) for template in templates]
        yield from self._blocks(beginning, texts, room, self._given(beginning), options, observer)

    @torch.no_grad()
    def follow(self, beginning: Beginning, options: GenerateOptions, observer: Observer) -> Int64[Tensor, "b n"]:
        """Write from a beginning, the likeliest word everywhere; the observer sees it.

        A text that is partly given does not end before the block of its last given word; within it, a word that stands
        behind an end is dropped, as in writing.

        Args:
            beginning: from `begin`, or a text partly given.
            options: choose the decoder, its settings and the calls of a block.
            observer: who watches.

        Returns:
            The texts, ends behind each.
        """
        n, length = beginning.tokens.shape[1], self.model.config.block_length
        texts = [_Text(self, n) for _ in beginning.tokens]
        least = self._given(beginning) // length * length
        for _ in self._blocks(beginning, texts, n, least, replace(options, temperature=0.0), observer):
            pass
        rows = [[*text.words, *[self.model.end] * (n - len(text.words))] for text in texts]
        return torch.tensor(rows, device=self.device)

    def _given(self, beginning: Beginning) -> Int64[Tensor, "b"]:
        """Places of each row up to its last given word."""
        known = (beginning.tokens != MASK) & (beginning.tokens != self.model.end)
        return (known * torch.arange(1, known.shape[1] + 1, device=known.device)).amax(1)

    def _blocks(
        self,
        beginning: Beginning,
        texts: "Sequence[_Text]",
        room: int,
        least: Int64[Tensor, "b"],
        options: GenerateOptions,
        observer: Observer,
    ) -> Iterator[Event]:
        """Block after block.

            for each block, behind the words of those before:
                write its open places, given words beside them seen; no end before the last given word
                take its words over: they never change again

        A block sees no given word of a later one, unless it reaches it (`Extension`).

        Args:
            beginning: given words, and the mask token where words go.
            texts: receive the words.
            room: places of the longest text.
            least: words of each row before it may end.
            options: how the places of a block are written.
            observer: who watches.
        """
        model, length, decoder = self.model, self.model.config.block_length, self.decoder_for(options)
        reader = BlockReader(model, beginning.memory, room)
        ahead, watch = self._extension(options, decoder, beginning.tokens), _Watch(observer, reader)

        def denoiser(tokens: Tensor, start: int, stop: int) -> Tensor:
            logits = reader(tokens, start, stop, ahead).float()
            place = torch.arange(start, stop, device=logits.device) + ahead.start
            logits[..., model.end].masked_fill_(place < least[:, None], -torch.inf)
            return watch.logits(logits, tokens)

        while any(not text.ended for text in texts):
            live = torch.tensor([not text.ended for text in texts], device=self.device)
            # Noise of its own for each block: what a row draws does not depend on the calls of the rows beside it.
            own = [make_generator(int(torch.randint(2**62, (), generator=g))) for g in beginning.generators]
            canvas = begun = ahead.begin(live, reader.room)
            for canvas in write_canvas(
                denoiser,
                begun.tokens,
                decoder,
                options,
                mask_id=MASK,
                generators=own,
                width=length + ahead.config.most,
                end_id=model.end,
                ends_last=options.ends_last,
                max_calls=options.block_steps or ahead.calls,
                elastic=ahead if ahead.config.most else None,
            ):
                watch.settled(canvas)
                for index, text in enumerate(texts):
                    if not text.ended:
                        yield text.draft(index, canvas)
            ahead.settle(canvas)
            reader.settle(canvas.tokens[:, :length])
            for index, text in enumerate(texts):
                if not text.ended and text.settle(canvas, index, int(ahead.computed[index])):
                    yield text.event("done", index, text.words)

    def _extension(self, options: GenerateOptions, decoder: DecoderConfig, given: Int64[Tensor, "b n"]) -> Extension:
        """What lets the blocks of a batch grow, as far as the options say, into what is given there."""
        length = self.model.config.block_length
        beyond = -(-(options.max_tokens or self.capacity) // length) * length - length
        config = ExtensionConfig(
            most=min(options.block_extension, beyond), step=options.extension_step, below=options.extension_below
        )
        window = decoder if isinstance(decoder, DeferredConfig) else DeferredConfig()
        return Extension(
            config,
            window,
            len(given),
            length,
            mask_id=MASK,
            end_id=self.model.end,
            given=given,
            device=self.device,
        )

    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        """The mask token in whole blocks, as many as the longest text has; given words where a template has them."""
        memory = self.model.memory(batch.tokens, batch.lengths, torch.zeros_like(batch.lengths), encode=encode)
        length = self.model.config.block_length
        tokens = torch.full((len(templates), -(-self.capacity // length) * length), MASK, device=self.device)
        for row, template in enumerate(templates):
            if template is not None:
                given = template.tokens.masked_fill(template.tokens == NULL, self.model.end)
                tokens[row] = self.model.end
                tokens[row, : len(given)] = given[: tokens.shape[1]].to(self.device)
        return Beginning(memory, tokens, torch.ones_like(tokens, dtype=torch.bool), batch.generators)


class _Watch:
    """Tells an observer of a block as of the text up to its end; what it says of the block goes on.

    Args:
        observer: who watches.
        reader: has the blocks before.
    """

    def __init__(self, observer: Observer, reader: BlockReader) -> None:
        self.observer = None if type(observer) is Observer else observer
        self.reader, self.calls = reader, 0
        self.calls_of = torch.zeros(reader.rows, dtype=torch.long, device=reader.settled.device)
        self._of_block = torch.zeros_like(self.calls_of)

    def logits(self, logits: Float[Tensor, "b l v"], tokens: Int64[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
        """The block's, behind zeros at the words before it."""
        if self.observer is None:
            return logits
        before = self.reader.settled[:, 1:]
        nothing = torch.zeros_like(logits[:, :1]).expand(-1, before.shape[1], -1)
        told = self.observer.logits(torch.cat([nothing, logits], 1), torch.cat([before, tokens], 1))
        return told[:, before.shape[1] :]

    def settled(self, canvas: Canvas) -> None:
        """The text with the block as it stands, whose words may be changed; its calls are those of the whole text."""
        if self.observer is None:
            return
        before = self.reader.settled[:, 1:]
        if canvas.calls == 1:
            self._of_block = torch.zeros_like(self.calls_of)
        self.calls_of = self.calls_of + canvas.calls_of - self._of_block
        self._of_block, self.calls = canvas.calls_of, self.calls + 1
        nothing, sure = torch.zeros_like(before, dtype=torch.bool), torch.full(before.shape, torch.inf)
        page = replace(
            canvas,
            tokens=torch.cat([before, canvas.tokens], 1),
            writable=torch.cat([nothing, canvas.writable], 1),
            masked=torch.cat([nothing, canvas.masked], 1),
            confidence=torch.cat([sure.to(canvas.confidence), canvas.confidence], 1),
            calls=self.calls,
            calls_of=self.calls_of,
        )
        self.observer.settled(page)
        canvas.tokens = page.tokens[:, before.shape[1] :]


class _Text:
    """What is told of one text while it is written.

    Args:
        lm: the model.
        room: most words of a free text.
        template: of a text to fill.
    """

    def __init__(self, lm: BlockCausalLM, room: int, template: Template | None = None) -> None:
        self.lm, self.template = lm, template
        self.room = room if template is None else len(template.tokens) - 1
        self.words: list[int] = []
        self.ended = False
        self.nfe, self.processed = 1, 0
        self._sure: list[float] = []
        self._unread = 0
        """Words of blocks that no call has read as they stand."""

    def draft(self, row: int, canvas: Canvas) -> Event:
        """With the words of a block that stand so far."""
        words = [*self.words, *self._before_end(canvas.tokens[row].tolist())]
        return replace(self.event("draft", row, words[: self.room]), nfe=self.nfe + int(canvas.calls_of[row]))

    def settle(self, canvas: Canvas, row: int, computed: int) -> bool:
        """Take over a block that is written; returns whether the text has ended.

        Args:
            canvas: with the block, and places beyond that it has reached.
            row: of the text.
            computed: places computed in its calls.
        """
        words, calls = canvas.tokens[row, : self.lm.model.config.block_length].tolist(), int(canvas.calls_of[row])
        self.nfe += calls
        self.processed += computed
        if calls:
            self.processed += self._unread  # the blocks before
            self._unread = 0
        self._unread += len(words)
        kept = self._before_end(words)
        self._sure += canvas.confidence[row, : len(kept)].clamp(max=1).tolist()
        self.words = [*self.words, *kept][: self.room]
        self._sure = self._sure[: self.room]
        self.ended = len(kept) < len(words) or len(self.words) >= self.room
        return self.ended

    def event(self, kind: Literal["draft", "done"], index: int, words: list[int]) -> Event:
        """The text with some words."""
        sure = sum(self._sure) / len(self._sure) if self._sure else 0.0
        chances = (*self._sure, *[0.0] * (len(words) - len(self._sure)))
        if self.template is None:
            text = self.lm.tokenizer.decode([word for word in words if word != MASK]).strip()
            standing = len(self.lm.tokenizer.decode(self.words).strip().rstrip(UNFINISHED))
        else:
            text, standing = self.template.text(words, self.lm.tokenizer), 0
        end = float(kind == "done")
        return Event(
            kind, index, text, tuple(words), end, sure, self.nfe, self.processed, chances=chances, standing=standing
        )

    def _before_end(self, words: list[int]) -> list[int]:
        end = self.lm.model.end
        return words[: words.index(end)] if end in words else words
