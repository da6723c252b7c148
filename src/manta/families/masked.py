"""Masked-diffusion models: the same prompt memory and blocks as Manta-LM's policy, without a state or a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from manta.config import from_dict, to_dict
from manta.errors import RequestError, UsageError
from manta.families.asked import check_options
from manta.families.batching import padded_prompts, padded_width
from manta.families.canvas import Prompts, Template, changes, check_strength, partly_hidden, prompt_tokens, template_of
from manta.families.decoding import DRAWN, Decoding, batches, canvas_events, chosen_decoder, keeps_words, write_canvas
from manta.families.events import Event, EventKind, GenerateOptions, Request
from manta.families.fluent import FluentWriter, counted
from manta.families.masked_model import (
    CachedDenoiser,
    ElasticDenoiser,
    FullDenoiser,
    MaskedConfig,
    MaskedModel,
)
from manta.families.masked_objective import MaskedMatching, bound, length_nats
from manta.families.observer import Beginning, Observer
from manta.families.options import spelled
from manta.families.scales import check_stored, coarse_of, learn_classes
from manta.families.structured import automaton_for, check_room
from manta.families.trained import LogLikelihood, Taught, Teaching
from manta.masked import Canvas, DecoderConfig, Held, completes, found_rates
from manta.masked.elastic import OFF, Elastic
from manta.runtime import check_logits, make_generator
from manta.text import MASK, NULL, Batch, Corpus, Tokenizer

LENGTH_QUANTILE = 0.8
"""Canvas of a consensus text, as a quantile of the length's distribution, as for Manta-LM."""

ELASTIC_START = 1.0
"""Canvas that an elastic one begins with, as a share of what another would have; less computes fewer positions, and
writes shorter texts (docs/challenges.md)."""


class MaskedLM(FluentWriter[MaskedModel]):
    """A masked-diffusion model with its tokenizer, ready to write.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
        decoder: how it writes unless a request's options say otherwise.
    """

    family = "masked"
    observed = fills = changes = True
    likelihood = "bound"
    estimator = "hidden words, their number uniform and stratified; exact nats of the length"
    config_class, net_class = MaskedConfig, MaskedModel

    def __init__(self, model: MaskedModel, tokenizer: Tokenizer, decoder: DecoderConfig | None = None) -> None:
        super().__init__(model, tokenizer)
        self.decoder = decoder

    @classmethod
    def stages(cls, net: MaskedModel, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """One stage, which has the time of the policy's two."""
        objective = MaskedMatching(teaching.objective, teaching.masking, found_rates(teaching.masking, measured))
        return [Taught("masked", teaching.shares.model, objective)]

    @staticmethod
    def begin_with(net: MaskedModel, corpus: Corpus) -> None:
        """Learn the classes of the words."""
        learn_classes(net, corpus)

    @classmethod
    def stored(
        cls, net: MaskedModel, codec: Tokenizer, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "MaskedLM":
        """With its own decoder and the counts of its training texts, if the folder tells any.

        Raises:
            ModelError: a word is of a class that there is none of.
        """
        check_stored(net)
        own = extras.get("decoder")
        lm = cls(net, codec, from_dict(Decoding, {"decoder": own}).decoder if own else None)
        lm.ngrams = counted(parts, net.config.vocab_size)
        return lm

    def extras(self) -> dict[str, Any]:
        """Its own decoder, if it has one."""
        return {} if self.decoder is None else {"decoder": to_dict(self.decoder)}

    def log_likelihood(
        self,
        batch: Batch,
        generators: Sequence[torch.Generator] = (),
        num_samples: int = 128,
        known: Int64[Tensor, "b"] | None = None,
    ) -> LogLikelihood:
        """A bound from below, of the words and of their number; of words behind known ones given their number."""
        found = bound(self.model, batch, generators, num_samples=num_samples, known=known)
        value = -(found.nats + length_nats(self.model, batch)) if known is None else -found.nats
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
        self.check_fluency(options)
        thinking = self.model.config.thinking
        if options.cache != "none":
            if thinking.carries or thinking.doubts or self.model.config.classes:
                raise UsageError(
                    "a model that thinks, doubts or settles classes computes the whole text anew; leave `cache` out"
                )
            self.model.trunk.new_cache()
        if self.model.config.elastic and options.cache != "none":
            raise UsageError("the places of an elastic canvas move; leave `cache` out")
        if options.think and not thinking.carries:
            raise UsageError(
                f"{spelled('think')} is for models that carry thoughts from call to call; train a masked model with "
                "`masked.thinking.carry=true` or `masked.thinking.slots=8`, or leave it out"
            )
        if options.think and options.num_steps < 3 + options.think:
            raise UsageError(
                f"{options.think} calls of thinking leave too few of {options.num_steps} to read the prompt and write; "
                f"set {spelled('num_steps')} to {3 + options.think} or more"
            )
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
        if options.fluency and template is not None:
            raise RequestError(
                f"{spelled('fluency')} is for what a masked model writes freely; in a blank its words may end early; "
                "leave it out"
            )
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

        The canvas keeps its places, and no classes are settled: observers compare places and words.

        Args:
            beginning: from `begin`, or a text partly given.
            num_steps: most calls.
            options: choose the decoder and its settings.
            observer: who watches.
        """
        plain = replace(options, cache="none", temperature=0.0, fluency=0.0)
        for _ in self.canvases(beginning, plain, observer, ends_last=True, max_calls=num_steps):
            pass

    def _unasked(self, options: GenerateOptions) -> bool:
        """What it adds to masked models was not measured, so it is only weighed where somebody asks for it."""
        return False

    def without_fluency(self) -> str | None:
        """See `FluentWriter`."""
        return super().without_fluency() or self._moving()

    def check_fluency(self, options: GenerateOptions) -> None:
        """Refuse a weight that nothing would come of; see `FluentWriter`."""
        super().check_fluency(options)
        if options.fluency and (why := self._unsearched(options)) is not None:
            raise UsageError(f"{spelled('fluency')} looks at a canvas of words as a whole, and {why}; leave it out")

    def _unsearched(self, options: GenerateOptions) -> str | None:
        """Why a canvas is not searched for words that go together; None where it may be."""
        if options.cache != "none":
            return "a cache shows a part of it"
        if options.pattern is not None or options.schema is not None:
            return "a pattern chooses the words already"
        return self._moving()

    def _moving(self) -> str | None:
        """Why no canvas of this model is one of words that stay where they are."""
        if self.model.config.elastic:
            return "the places of this model move"
        return "this model settles classes before words" if self.model.config.classes else None

    def decoder_for(self, options: GenerateOptions) -> DecoderConfig:
        """The decoder of a request, see `chosen_decoder`."""
        return chosen_decoder(options, self.decoder, self.model.config.thinking.doubts)

    def _write(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, observer: Observer
    ) -> Iterator[list[Event]]:
        encode = options.num_steps > 1
        beginning = self._beginning(batch, templates, options, encode=encode)
        automaton = automaton_for(options, self.tokenizer)
        free_text = self.text_of if automaton is None else self._exactly
        texts = [
            free_text
            if template is None or automaton is not None  # what is held is all that stands on the canvas
            else partial(template.text, tokenizer=self.tokenizer)
            for template in templates
        ]
        free, canvas = all(template is None for template in templates), None
        elastic = self._elastic(beginning, templates) if self.model.config.elastic and automaton is None else None
        before = encode + options.think
        kept = free and elastic is None and keeps_words(self.decoder_for(options))
        whole = self.tokenizer.whole if kept else None
        calls = max(1, options.num_steps - before)

        def events(canvas: Canvas, kind: EventKind) -> list[Event]:
            if elastic is None:
                told = canvas_events(canvas, beginning.mask, texts, before, kind, whole=whole)
                thought = options.think * beginning.tokens.shape[1]
                return [replace(event, processed=event.processed + thought) for event in told]
            real = canvas.tokens != OFF
            said = [
                text if template is None else partial(text, origin=elastic.origin[row][real[row]].tolist())
                for row, (text, template) in enumerate(zip(texts, templates, strict=True))
            ]
            return canvas_events(canvas, real, said, before, kind)

        how = {"ends_last": free, "max_calls": calls, "elastic": elastic, "scaled": True}
        for canvas in self.canvases(beginning, options, observer, **how):
            yield events(canvas, "draft")
        assert canvas is not None, "a canvas has something to write"
        yield events(canvas, "done")

    def _elastic(self, beginning: Beginning, templates: Sequence[Template | None]) -> Elastic:
        """How the canvases of a batch grow: up to the model's longest, and blanks of a stated size not at all."""
        fixed = torch.zeros_like(beginning.mask)
        for row, template in enumerate(templates):
            if template is not None:
                fixed[row, : len(template.tokens)] = template.stated
        return Elastic(
            beginning.tokens.masked_fill(~beginning.mask, OFF),
            mask_id=MASK,
            grow_id=self.model.config.vocab_size,
            end_id=NULL,
            most=self.model.max_cells,
            padded=padded_width,
            fixed=fixed,
        )

    def canvases(
        self,
        beginning: Beginning,
        options: GenerateOptions,
        observer: Observer,
        *,
        ends_last: bool,
        max_calls: int,
        elastic: Elastic | None = None,
        scaled: bool = False,
    ) -> Iterator[Canvas]:
        """The canvas after each call.

        Args:
            beginning: what is given.
            options: of all rows.
            observer: who watches; with `scaled`, what it changes of a page's tokens is not kept.
            ends_last, max_calls, elastic: see `manta.masked.decode`.
            scaled: settle classes before words, in a model that has some.
        """
        thinking, judge = self.model.config.thinking, None
        tokens = beginning.tokens if elastic is None else beginning.tokens.masked_fill(~beginning.mask, OFF)
        if elastic is not None:
            net = ElasticDenoiser(self.model, beginning.memory)
        elif self.model.config.classes or thinking.carries or thinking.doubts or not self.model.trunk.cacheable:
            net = FullDenoiser(self.model, beginning.mask, beginning.memory)
            judge = net.right if thinking.doubts else None
            for _ in range(options.think):
                net(beginning.tokens, 0, beginning.tokens.shape[1])
        else:
            net = CachedDenoiser(self.model, beginning.mask, beginning.memory)

        def denoiser(tokens: Tensor, start: int, stop: int) -> Tensor:
            settled = tokens[:, start:stop].masked_fill(tokens[:, start:stop] >= self.model.config.vocab_size, MASK)
            return observer.logits(net(tokens, start, stop).float(), settled)

        automaton = automaton_for(options, self.tokenizer)
        scales = coarse_of(self.model) if scaled and automaton is None else None
        held = [] if automaton is None else [Held(automaton, NULL, gaps=not ends_last)] * len(beginning.tokens)
        for canvas in write_canvas(
            denoiser,
            tokens,
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
            judge=judge,
            elastic=elastic,
            scales=scales,
            fluency=self.fluency(options) if ends_last else None,
        ):
            if scales is not None:  # what is settled of a masked place is no word
                canvas = replace(canvas, tokens=canvas.tokens.masked_fill(canvas.masked, MASK))
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
        if self.model.config.elastic and automaton is None:
            length = (length * ELASTIC_START).ceil().long()
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

    def text_of(self, words: list[int]) -> str:
        """What the words of a canvas say."""
        return self.tokenizer.decode([t for t in words if t not in (NULL, MASK)]).strip()
