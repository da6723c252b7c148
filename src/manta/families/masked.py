"""Masked-diffusion models: the same prompt memory and blocks as Manta-LM's policy, without a state or a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.config import from_dict, to_dict
from manta.errors import RequestError, UsageError
from manta.families.asked import check_options
from manta.families.batching import padded_prompts, padded_width
from manta.families.canvas import Prompts, Template, changes, check_strength, partly_hidden, prompt_tokens, template_of
from manta.families.decoding import DRAWN, Decoding, batches, canvas_events, chosen_decoder, write_canvas
from manta.families.events import Event, GenerateOptions, Request
from manta.families.objectives import ObjectiveConfig, lay_out, length_cost, read_prompt
from manta.families.observer import Beginning, Observer
from manta.families.options import spelled
from manta.families.prompted import Memory, PromptedConfig, PromptedModel, resolved
from manta.families.structured import automaton_for, check_room
from manta.families.trained import LogLikelihood, Taught, Teaching, TrainedWriter
from manta.masked import (
    Canvas,
    DecoderConfig,
    Held,
    LikelihoodBound,
    MaskedObjectiveConfig,
    completes,
    likelihood_bound,
    masked_cross_entropy,
)
from manta.nets.trunk import Trunk
from manta.operators import OperatorContext, line
from manta.operators.cross_attention import ProjectedMemory
from manta.runtime import check_likelihood, check_logits, make_generator
from manta.text import MASK, NULL, Batch, Tokenizer
from manta.types import Loss

LENGTH_QUANTILE = 0.8
"""Canvas of a consensus text, as a quantile of the length's distribution, as for Manta-LM."""


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(PromptedConfig):
    """Shape of a masked-diffusion model."""

    family: Literal["masked"] = "masked"
    """Which family this is."""


class MaskedModel(PromptedModel):
    """Logits of every position of a text, given its prompt and the words that are not masked.

    Args:
        config: shape.
    """

    def __init__(self, config: MaskedConfig) -> None:
        shape = resolved(config)
        self.max_cells = shape.max_text + 1
        """Most words of a canvas: the longest text and a closing null."""
        super().__init__(
            shape,
            num_lengths=self.max_cells,
            num_places=max(shape.max_prompt, self.max_cells) if shape.absolute_places else 0,
        )
        self.trunk = Trunk(shape.dim, shape.depth, shape.mix, heads=shape.heads, cross=True, hidden=shape.hidden)

    def forward(
        self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], memory: tuple[ProjectedMemory, ...]
    ) -> Float[Tensor, "b n v"]:
        """Logits of every position.

        Args:
            tokens: the mask token where a word is hidden.
            mask: True on each row's canvas.
            memory: the prompt, from `trunk.project`.
        """
        context = OperatorContext(line(tokens.shape[1], tokens.device), mask)
        hidden = self.trunk(self.embed(tokens), context, memory=memory)
        return self.head(hidden)


class CachedDenoiser:
    """A masked model on one batch of canvases that computes a span and keeps what its operators need of the rest.

    Args:
        model: with an operator that can.
        mask: True on each row's canvas.
        memory: encoded prompts.
    """

    def __init__(self, model: MaskedModel, mask: Bool[Tensor, "b n"], memory: Memory) -> None:
        self.model = model
        self.memory = model.trunk.project(memory.states, memory.mask)
        self.context = OperatorContext(line(mask.shape[1], mask.device), mask)
        self.cache = model.trunk.new_cache()

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """See `SpanDenoiser`."""
        model, span = self.model, self.context.span(start, stop)
        hidden = model.trunk(model.embed(tokens[:, start:stop], start), span, memory=self.memory, cache=self.cache)
        return model.head(hidden)


class FullDenoiser:
    """A masked model with any operator and nothing kept: every call computes everything, open to gradients.

    Args:
        model: the model.
        mask: True on each row's canvas.
        memory: encoded prompts.
    """

    def __init__(self, model: MaskedModel, mask: Bool[Tensor, "b n"], memory: Memory) -> None:
        self.model, self.mask = model, mask
        self.memory = model.trunk.project(memory.states, memory.mask)

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """See `SpanDenoiser`."""
        return self.model(tokens, self.mask, self.memory)[:, start:stop]


class MaskedMatching:
    """What a masked model is taught: hidden words, and its texts' lengths.

    Args:
        layout: how texts are laid out and prompts dropped; what concerns a state is not used.
        config: how words are hidden and weighed.
    """

    def __init__(self, layout: ObjectiveConfig, config: MaskedObjectiveConfig) -> None:
        self.layout, self.config = layout, config

    def __call__(self, model: MaskedModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts nats (a hidden word), supervised (share of words) and length (nats)."""
        canvas = lay_out(batch, 1, self.layout, generator, max_cells=model.max_cells)
        memory = read_prompt(model, batch, self.layout, generator)
        blank = canvas.hole.any(1, keepdim=True)
        times = self.config.times
        mask = canvas.mask.repeat(times, 1)
        projected = model.trunk.project(memory.states.repeat(times, 1, 1), memory.mask.repeat(times, 1))
        loss = masked_cross_entropy(
            lambda tokens: model(tokens, mask, projected),
            canvas.tokens,
            canvas.mask,
            mask_id=MASK,
            generator=generator,
            config=self.config,
            keep=blank & ~canvas.hole,
        )
        length = length_cost(model, memory, canvas)
        return Loss(loss.total + 0.1 * length, {**loss.parts, "length": length.detach()}, loss.count)


def bound(
    model: MaskedModel, batch: Batch, generators: Sequence[torch.Generator], *, num_samples: int = 128
) -> LikelihoodBound:
    """Upper bound of −log p of each text given prompt and length, the closing null included.

    Args:
        model: the net.
        batch: the texts.
        generators: one a text.
        num_samples: masks a text.
    """
    place = torch.arange(padded_width(int(batch.text_lengths.max()) + 1), device=batch.text.device)
    lengths = batch.text_lengths[:, None]
    text = F.pad(batch.text, (0, max(0, len(place) - batch.text.shape[1])), value=NULL)[:, : len(place)]
    tokens, mask = text.masked_fill(place >= lengths, NULL), place <= lengths
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
    projected = model.trunk.project(memory.states, memory.mask)
    found = likelihood_bound(
        lambda hidden: model(hidden, mask, projected),
        tokens,
        mask,
        mask_id=MASK,
        generators=generators,
        width=model.max_cells,
        num_samples=num_samples,
    )
    check_likelihood(found.nats)
    return found


@torch.no_grad()
def length_nats(model: MaskedModel, batch: Batch) -> Float[Tensor, "b"]:
    """−log p(length | prompt) of each text, a part of the bound on the text, since a canvas has a length."""
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
    chance = model.length_logits(memory).log_softmax(-1)
    # A text of n tokens is laid out on n + 1 places, the last of which closes it.
    return -chance.gather(1, batch.text_lengths[:, None])[:, 0]


class MaskedLM(TrainedWriter[MaskedModel]):
    """A masked-diffusion model with its tokenizer, ready to write.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
        decoder: how it writes unless a request's options say otherwise.
    """

    family = "masked"
    observed = True
    likelihood = "bound"
    estimator = "hidden words, their number uniform and stratified; exact nats of the length"
    config_class, net_class = MaskedConfig, MaskedModel

    def __init__(self, model: MaskedModel, tokenizer: Tokenizer, decoder: DecoderConfig | None = None) -> None:
        super().__init__(model, tokenizer)
        self.decoder = decoder

    @classmethod
    def stages(cls, net: MaskedModel, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """One stage, which has the time of the policy's two."""
        objective = MaskedMatching(teaching.objective, teaching.masking)
        return [Taught("masked", teaching.policy + teaching.own, objective)]

    @classmethod
    def stored(
        cls, net: MaskedModel, tokenizer: Tokenizer, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "MaskedLM":
        """With its own decoder, if the folder tells one."""
        own = extras.get("decoder")
        return cls(net, tokenizer, from_dict(Decoding, {"decoder": own}).decoder if own else None)

    def extras(self) -> dict[str, Any]:
        """Its own decoder, if it has one."""
        return {} if self.decoder is None else {"decoder": to_dict(self.decoder)}

    def log_likelihood(
        self, batch: Batch, generators: Sequence[torch.Generator] = (), num_samples: int = 128
    ) -> LogLikelihood:
        """A bound from below, of the words and of their number."""
        found = bound(self.model, batch, generators, num_samples=num_samples)
        value = -(found.nats + length_nats(self.model, batch))
        return LogLikelihood(kind="bound", value=value, standard_error=found.standard_error)

    def check(self, options: GenerateOptions) -> None:
        """Refuse options that do not fit each other, the decoder or the operator; see `RequestWriter`."""
        check_options(options, self.family)
        drawn = options.temperature > 0 or options.style == "diverse" or options.decoder in DRAWN
        if options.choose > 1 and not drawn:
            raise UsageError(
                f"consensus texts at temperature 0 are all the same; set {spelled('temperature')}, or leave "
                f"{spelled('choose')} out"
            )
        self.decoder_for(options)
        if options.cache != "none":
            self.model.trunk.new_cache()
        if (automaton := automaton_for(options, self.tokenizer)) is not None:
            check_room(automaton, self.model.max_cells)
            if options.cache != "none":
                raise UsageError("a text that is held to a pattern is looked at as a whole; leave `cache` out")

    def read(self, request: Request, options: GenerateOptions) -> tuple[list[int], Template | None, int]:
        """Tokens of the prompt, the text to fill if there is one, and the seed; see `RequestWriter`.

        Raises:
            RequestError: also for words to keep that no text of the pattern has.
        """
        prompt = prompt_tokens(request, self.tokenizer, self.model.config.max_prompt)
        template = template_of(request, self.tokenizer, rate=1, max_cells=self.model.max_cells)
        check_strength(changes(template), options)
        automaton = automaton_for(options, self.tokenizer)
        if automaton is None or template is None:
            return prompt, template, request.seed
        if not completes(Held(automaton, NULL, gaps=True), template.tokens, MASK):
            raise RequestError("no text of the pattern, or schema, keeps the given words; change them or the blanks")
        return prompt, template, request.seed

    def write_rows(
        self,
        rows: Sequence[tuple[list[int], Template | None, int]],
        options: GenerateOptions,
        batch_size: int,
        observer: Observer,
    ) -> Iterator[Event]:
        """Texts to fill apart from free ones; behind a cache one by one, and an observer sees what a call computes."""
        size = batch_size if options.cache == "none" else 1
        for chosen in batches([template is not None for _, template, _ in rows], size):
            prompts, given, seeds = zip(*(rows[i] for i in chosen), strict=True)
            generators = tuple(make_generator(seed) for seed in seeds)
            batch = Prompts(*padded_prompts(prompts, self.device), generators)
            for events in self._write(batch, given, options, observer):
                yield from (replace(event, index=chosen[event.index]) for event in events)

    @torch.no_grad()
    def follow(self, beginning: Beginning, num_steps: int, options: GenerateOptions, observer: Observer) -> None:
        """Write from a beginning, all anew in every call and the likeliest word everywhere; the observer sees it.

        Args:
            beginning: from `begin`, or a text partly given.
            num_steps: most calls.
            options: choose the decoder and its settings.
            observer: who watches.
        """
        plain = replace(options, cache="none", temperature=0.0)
        for _ in self._canvases(beginning, plain, observer, ends_last=True, max_calls=num_steps):
            pass

    def decoder_for(self, options: GenerateOptions) -> DecoderConfig:
        """The decoder of a request, see `chosen_decoder`."""
        return chosen_decoder(options, self.decoder)

    def _write(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, observer: Observer
    ) -> Iterator[list[Event]]:
        encode = options.num_steps > 1
        beginning = self._beginning(batch, templates, options, encode=encode)
        automaton = automaton_for(options, self.tokenizer)
        free_text = self._text if automaton is None else self._exactly
        texts = [
            free_text
            if template is None or automaton is not None  # what is held is all that stands on the canvas
            else partial(template.text, tokenizer=self.tokenizer)
            for template in templates
        ]
        free, canvas = all(template is None for template in templates), None
        calls = max(1, options.num_steps - encode)
        for canvas in self._canvases(beginning, options, observer, ends_last=free, max_calls=calls):
            yield canvas_events(canvas, beginning.mask, texts, int(encode), "draft")
        assert canvas is not None, "a canvas has something to write"
        yield canvas_events(canvas, beginning.mask, texts, int(encode), "done")

    def _canvases(
        self, beginning: Beginning, options: GenerateOptions, observer: Observer, *, ends_last: bool, max_calls: int
    ) -> Iterator[Canvas]:
        """The canvas after each call."""
        cached = options.cache != "none" or self.model.trunk.cacheable
        net = (CachedDenoiser if cached else FullDenoiser)(self.model, beginning.mask, beginning.memory)

        def denoiser(tokens: Tensor, start: int, stop: int) -> Tensor:
            return observer.logits(net(tokens, start, stop).float(), tokens[:, start:stop])

        automaton = automaton_for(options, self.tokenizer)
        held = [] if automaton is None else [Held(automaton, NULL, gaps=not ends_last)] * len(beginning.tokens)
        for canvas in write_canvas(
            denoiser,
            beginning.tokens,
            self.decoder_for(options),
            options,
            mask_id=MASK,
            generators=beginning.generators,
            width=padded_width(self.model.max_cells),
            end_id=NULL,
            ends_last=ends_last,
            max_calls=max_calls,
            held=held,
            mask=beginning.mask,
        ):
            observer.settled(canvas)
            yield canvas

    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        """The mask token on each row's canvas, given words where a template has them."""
        tag = torch.full_like(batch.lengths, {"diverse": 0, "consensus": 1}[options.style])
        memory = self.model.memory(batch.tokens, batch.lengths, tag, encode=encode)
        lengths = self.model.length_logits(memory)
        check_logits(lengths, 1)
        chance = lengths.softmax(-1)
        if options.style == "consensus":
            length = (chance.cumsum(-1) < LENGTH_QUANTILE).sum(-1) + 1
        else:
            rows = zip(chance.cpu(), batch.generators, strict=True)
            drawn = [torch.multinomial(row, 1, generator=g) for row, g in rows]
            length = torch.cat(drawn).to(self.device) + 1
        automaton = automaton_for(options, self.tokenizer)
        if automaton is not None:  # a canvas has room for the shortest text that matches
            length = length.clamp_min(int(automaton.distance[automaton.start]))
        for row, template in enumerate(templates):
            if template is not None:
                length[row] = len(template.tokens)
        length = length.clamp_max(chance.shape[1])
        mask = torch.arange(padded_width(int(length.max())), device=self.device) < length[:, None]
        tokens = torch.full(mask.shape, MASK, device=self.device).masked_fill(~mask, NULL)
        for row, template in enumerate(templates):
            if template is not None:
                begun = template.tokens
                if template.old is not None:
                    how = (MASK, NULL, options.strength, batch.generators[row])
                    shown = torch.tensor(partly_hidden(begun.tolist(), template.old.tolist(), *how))
                    if automaton is None or completes(Held(automaton, NULL, gaps=True), shown, MASK):
                        begun = shown  # else what would be kept is part of no text that matches
                tokens[row, : len(begun)] = begun.to(self.device)
        return Beginning(memory, tokens, mask, batch.generators)

    def _exactly(self, words: list[int]) -> str:
        """With the white space that a pattern may ask for."""
        return self.tokenizer.decode([t for t in words if t not in (NULL, MASK)])

    def _text(self, words: list[int]) -> str:
        return self.tokenizer.decode([t for t in words if t not in (NULL, MASK)]).strip()
