"""Block-causal masked models: left to right from block to block, masked diffusion within each.

A block is written as a masked model writes a text, behind a cache of the blocks before it, which never changes. Blocks
of one word are an autoregressive model, and one block for the whole text is a masked one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError, RequestError, UsageError
from manta.families.asked import check_options
from manta.families.batching import WIDTH, padded_prompts, padded_width, repeated_rows
from manta.families.canvas import Prompts, Template, prompt_tokens
from manta.families.decoding import DRAWN, chosen_decoder, write_canvas
from manta.families.events import UNFINISHED, Event, GenerateOptions, Request
from manta.families.observer import Beginning, Observer
from manta.families.options import given, spelled
from manta.families.prompted import Memory, PromptedConfig, PromptedModel, resolved
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
from manta.nets.layout import columnwise
from manta.nets.trunk import Trunk
from manta.operators import OperatorContext, line
from manta.operators.cross_attention import ProjectedMemory
from manta.runtime import check_likelihood, make_generator
from manta.text import BOS, EOS, HUMAN, MASK, Batch
from manta.types import Loss

ALWAYS = 1 - 1e-9
"""Least share of hidden words in a block of one: it is hidden."""
OWN = ThresholdConfig()
"""How a block is written unless the options say otherwise."""


@dataclass(frozen=True, kw_only=True)
class BlockCausalConfig(PromptedConfig):
    """Shape of a block-causal masked model."""

    family: Literal["block"] = "block"
    """Which family this is."""
    block_length: int = 8
    """b, words of a block; 1 is left to right."""
    shifted: bool = True
    """Each place reads the word before it as an autoregressive model does, and its own through a linear map that starts
    at zero: weights of such a model then mean the same here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_length < 1:
            raise ConfigError(f"block_length should be at least 1, received {self.block_length}")


class BlockCausalModel(PromptedModel):
    """Logits of every place of a block, given the prompt, the blocks before and the words that are not masked.

    Args:
        config: shape.

    Raises:
        ConfigError: an operator cannot keep elements to the blocks before.

    Source: Arriola et al., "Block Diffusion", arXiv 2503.09573; reading the word before: Gong et al., arXiv 2410.17891.
    """

    begin, end = BOS, EOS

    def __init__(self, config: BlockCausalConfig) -> None:
        shape = resolved(config)
        num_places = max(shape.max_prompt, shape.max_text + shape.block_length) if shape.absolute_places else 0
        super().__init__(shape, num_lengths=None, num_places=num_places)
        self.trunk = Trunk(shape.dim, shape.depth, shape.mix, heads=shape.heads, cross=True, hidden=shape.hidden)
        if not self.trunk.follows_blocks:
            raise ConfigError(f"{shape.kinds} sees whole rows or what lies before alone; blocks need attention")
        self.own = nn.Linear(shape.dim, shape.dim, bias=False) if shape.shifted else None
        if self.own is not None:
            nn.init.zeros_(self.own.weight)
        self.inside = nn.Embedding(shape.block_length, shape.dim) if shape.block_length > 1 else None
        """Place in the block: without it the places of an unwritten one are alike."""
        if self.inside is not None:
            nn.init.normal_(self.inside.weight, std=0.1)

    def read(
        self, tokens: Int64[Tensor, "b n"], before: Int64[Tensor, "b n"], start: int = 0
    ) -> Float[Tensor, "b n d"]:
        """States at the bottom of the stack.

        Args:
            tokens: the word of each place, or the mask token.
            before: the same of the place before each; looked at if the model is shifted.
            start: number of the first place.
        """
        x = self.embed(tokens, start) if self.own is None else self.embed(before, start)
        if self.own is not None:
            x = x + self.own(self.embedding(tokens))
        if self.inside is None:
            return x
        place = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return x + self.inside(place % self.config.block_length)

    def forward(
        self,
        clean: Int64[Tensor, "b n"],
        shown: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: tuple[ProjectedMemory, ...],
    ) -> Float[Tensor, "b n v"]:
        """Logits of every place of all blocks at once, each behind the clean blocks before it.

        One row holds both copies of a text; a place of the copy that is shown receives from its block there, and from
        the earlier blocks of the clean one.

        Args:
            clean: the texts; n is a multiple of the block's length.
            shown: the same, the mask token where a word is hidden.
            mask: True where a row has blocks.
            memory: the prompt, from `trunk.project`.
        """
        n, length = clean.shape[1], self.config.block_length
        place = torch.arange(n, device=clean.device)
        first = torch.full_like(clean[:, :1], self.begin)
        before = torch.cat([first, clean[:, :-1]], 1)
        before_shown = torch.where(place % length == 0, before, torch.cat([first, shown[:, :-1]], 1))
        x, blocks, where = self.read(shown, before_shown), place // length, line(n, clean.device)
        if n == length:  # there is nothing before the only block
            return self.head(self.trunk(x, OperatorContext(where, mask, blocks=blocks), memory=memory))
        context = OperatorContext(
            where.repeat(2, 1),
            mask.repeat(1, 2),
            blocks=blocks.repeat(2),
            lasting=torch.arange(2 * n, device=clean.device) < n,
        )
        hidden = self.trunk(torch.cat([self.read(clean, before), x], 1), context, memory=memory)
        return self.head(hidden[:, n:])

    def in_blocks(self, batch: Batch) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Texts as rows of whole blocks, closed and filled up by ends; and where each row has blocks.

        n is a multiple of `WIDTH`, too, so that a likelihood does not depend on the batch.
        """
        length = self.config.block_length
        blocks = batch.text_lengths // length + 1  # room for one end at least
        multiple = math.lcm(length, WIDTH)
        place = torch.arange(-(-int(blocks.max()) * length // multiple) * multiple, device=batch.text.device)[None]
        text = F.pad(batch.text, (0, max(0, place.shape[1] - batch.text.shape[1])))[:, : place.shape[1]]
        tokens = torch.where(place < batch.text_lengths[:, None], text, self.end)
        return tokens, place < (blocks * length)[:, None]


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


class BlockReader:
    """A model on one batch of texts, block after block, behind a cache of the blocks before.

    The clean states of a block are computed within the first call of the next, so that they cost no call of their own.
    On CPU what a block is told is, bit for bit, the same beside any other rows, and with nothing kept.

    Args:
        model: the model.
        memory: encoded prompts.
        room: places that are written at most.
    """

    def __init__(self, model: BlockCausalModel, memory: Memory, room: int) -> None:
        self.model, self.rows = model, len(memory.states)
        device, length = memory.states.device, model.config.block_length
        on_cpu = device.type == "cpu"
        self.trunk = columnwise(model.trunk) if on_cpu and memory.states.dtype is torch.float32 else model.trunk
        self._room = -(-room // length) * length
        place = torch.arange(padded_width(self._room), device=device)
        self.context = OperatorContext(
            line(len(place), device), blocks=place // length, alone=on_cpu and model.trunk.answers_alone
        )
        self.memory = self.trunk.project(repeated_rows(memory.states), repeated_rows(memory.mask))
        self.cache = self.trunk.new_cache()
        self.settled = torch.full((self.rows, 1), model.begin, device=device)
        """Words of the blocks that are written, behind the beginning."""
        self._kept = 0

    @property
    def room(self) -> int:
        """Places that are left to write, those of the present block included."""
        return self._room - (self.settled.shape[1] - 1)

    def __call__(
        self, tokens: Int64[Tensor, "b l"], start: int, stop: int, ahead: Extension | None = None
    ) -> Float[Tensor, "b k v"]:
        """Logits of places of the present block, and of those beyond that it reaches; see `SpanDenoiser`.

        Args:
            tokens: of these places.
            start, stop: which of them are asked for.
            ahead: knows how far the block of each row reaches; None: as far as itself.
        """
        row = repeated_rows(torch.cat([self.settled, tokens], 1))
        begin, end = self._kept, row.shape[1] - 1
        x = self.model.read(row[:, begin + 1 :], row[:, begin:-1], begin)
        context = self.context if ahead is None or not ahead.reaches else self._extended(repeated_rows(ahead.extra))
        hidden = self.trunk(x, context.span(begin, end), memory=self.memory, cache=self.cache)
        self._kept = end - tokens.shape[1]
        return self.model.head(hidden[:, -tokens.shape[1] :])[: self.rows, start:stop]

    def _extended(self, extra: Int64[Tensor, "k"]) -> OperatorContext:
        """The present block and the places beyond that it reaches as one; no row sees what another one reaches."""
        assert self.context.blocks is not None, "made with blocks"
        place, length = torch.arange(self.context.length, device=extra.device), self.model.config.block_length
        end = self.settled.shape[1] - 1 + length + extra[:, None]
        own = (self.settled.shape[1] - 1) // length
        blocks = torch.where(place < end.max(), self.context.blocks.clamp_max(own), self.context.blocks)
        return replace(self.context, blocks=blocks, mask=place < end)

    def settle(self, tokens: Int64[Tensor, "b l"]) -> None:
        """Go on to the next block.

        Args:
            tokens: the present one, all written.
        """
        self.settled = torch.cat([self.settled, tokens], 1)


class BlockCausalLM(TrainedWriter[BlockCausalModel]):
    """A block-causal masked model with its tokenizer, ready to write texts of any length.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
    """

    family = "block"
    observed = False
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
        self._check_extension(options, self._decoder(options))
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

    def _decoder(self, options: GenerateOptions) -> DecoderConfig:
        return chosen_decoder(options, OWN)

    def read(self, request: Request, options: GenerateOptions) -> tuple[list[int], int]:
        """Tokens of the prompt, and the seed; a text to fill cannot be served. See `RequestWriter`."""
        if request.infill is not None:
            raise RequestError("a block-causal model writes on from block to block and cannot fill blanks")
        return prompt_tokens(request, self.tokenizer, self.model.config.max_prompt), request.seed

    def write_rows(
        self, rows: Sequence[tuple[list[int], int]], options: GenerateOptions, batch_size: int, observer: Observer
    ) -> Iterator[Event]:
        """Block after block, prompts of like lengths side by side; see `RequestWriter`."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            for event in self._write([rows[i] for i in chosen], options):
                yield replace(event, index=chosen[event.index])

    @torch.no_grad()
    def _write(self, rows: Sequence[tuple[list[int], int]], options: GenerateOptions) -> Iterator[Event]:
        model, length = self.model, self.model.config.block_length
        seeds = [make_generator(seed) for _, seed in rows]
        prompt, lengths = padded_prompts([prompt for prompt, _ in rows], self.device)
        memory = model.memory(prompt, lengths, torch.zeros_like(lengths))
        room = options.max_tokens or self.capacity
        reader = BlockReader(model, memory, room)
        texts, decoder = [_Text(self, room) for _ in rows], self._decoder(options)
        ahead = self._extension(options, decoder, len(rows))
        while any(not text.ended for text in texts):
            live = torch.tensor([not text.ended for text in texts], device=self.device)
            # Noise of its own for each block: what a row draws does not depend on the calls of the rows beside it.
            own = [make_generator(int(torch.randint(2**62, (), generator=g))) for g in seeds]
            canvas = begun = ahead.begin(live, reader.room)
            for canvas in write_canvas(
                partial(reader, ahead=ahead),
                begun.tokens,
                decoder,
                options,
                mask_id=MASK,
                generators=own,
                width=length + ahead.config.most,
                end_id=model.end,
                ends_last=False,
                max_calls=options.block_steps or ahead.calls,
                elastic=ahead if ahead.config.most else None,
            ):
                for index, text in enumerate(texts):
                    if not text.ended:
                        yield text.draft(index, canvas)
            ahead.settle(canvas)
            reader.settle(canvas.tokens[:, :length])
            for index, text in enumerate(texts):
                if not text.ended and text.settle(canvas, index, int(ahead.computed[index])):
                    yield text.event("done", index, text.words)

    def _extension(self, options: GenerateOptions, decoder: DecoderConfig, rows: int) -> Extension:
        """What lets the blocks of a batch grow, as far as the options say."""
        length = self.model.config.block_length
        beyond = -(-(options.max_tokens or self.capacity) // length) * length - length
        config = ExtensionConfig(
            most=min(options.block_extension, beyond), step=options.extension_step, below=options.extension_below
        )
        window = decoder if isinstance(decoder, DeferredConfig) else DeferredConfig()
        return Extension(config, window, rows, length, mask_id=MASK, end_id=self.model.end, device=self.device)

    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        raise UsageError("nobody can watch a block-causal model write yet; choose another model")


class _Text:
    """What is told of one text while it is written."""

    def __init__(self, lm: BlockCausalLM, room: int) -> None:
        self.lm, self.room = lm, room
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
        text = self.lm.tokenizer.decode([word for word in words if word != MASK]).strip()
        sure = sum(self._sure) / len(self._sure) if self._sure else 0.0
        chances = (*self._sure, *[0.0] * (len(words) - len(self._sure)))
        standing = len(self.lm.tokenizer.decode(self.words).strip().rstrip(UNFINISHED))
        end = float(kind == "done")
        return Event(
            kind, index, text, tuple(words), end, sure, self.nfe, self.processed, chances=chances, standing=standing
        )

    def _before_end(self, words: list[int]) -> list[int]:
        end = self.lm.model.end
        return words[: words.index(end)] if end in words else words
