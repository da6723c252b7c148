"""Aligned models: words read through monotone alignments, a whole text in one network call or a few.

A call is a pass over the canvas; the prompt is read within the first one, so a text of one call has passed through the
prompt's encoder and the trunk. (The other families count the prompt's encoder as a call of its own.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count, groupby
from typing import Any, Literal, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from manta.aligned import Slots, agreed, collapse, settle
from manta.autoregressive import Drafter
from manta.config import from_dict, to_dict
from manta.errors import ConfigError, RequestError, UsageError
from manta.families.aligned_model import AlignedConfig, AlignedModel
from manta.families.aligned_objective import AlignmentMatching, answered, spread
from manta.families.asked import check_options
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.batching import drawn_words, padded_prompts, padded_width
from manta.families.canvas import Prompts, Template, changes, filled, narrowed, prompt_tokens, template_of
from manta.families.decoding import batches
from manta.families.drafters import DraftLoss
from manta.families.events import Event, EventKind, GenerateOptions, Request
from manta.families.fluent import NGRAMS, FluentWriter, counted
from manta.families.observer import Beginning, Observer
from manta.families.options import given, spelled
from manta.families.stored import built
from manta.families.trained import LogLikelihood, Taught, Teaching, TrainedWriter
from manta.fluency import NgramModel
from manta.runtime import check_logits, make_generator
from manta.text import MASK, NULL, Batch, Corpus, Tokenizer
from manta.types import Loss

LENGTH_QUANTILE = 0.8
"""Length that a canvas is made for, as a quantile of the length's distribution."""
PLAIN_SHARE = 0.25
"""Share of the time before any label of an alignment is given."""
ROOMS = (0.7, 1.1)
"""Smallest and largest canvas of texts to choose from, beside that of a single text."""
DRAFTER_SHARE = 0.2
"""Share of the time for a drafter, beside all of it for the rest."""
CAUSAL = "causal."
"""Before the names of the teacher's weights among the parts of a folder."""


def drafting(model: AlignedModel, batch: Batch, generator: torch.Generator) -> Loss:
    """What the drafter of the left-to-right reading is taught, see `DraftLoss`: answers, where there are some; all
    texts, each told its kind, where that reading tells kinds apart and so draws as people write."""
    rows, share = answered(batch)
    answers_alone = share > 0 and not model.config.styles
    return DraftLoss()(model.reading(), batch.rows(rows) if answers_alone else batch, generator)


class AlignedLM(FluentWriter[AlignedModel]):
    """An aligned model with its tokenizer, ready to write.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
        causal: what reads and writes left to right: the teacher; of a model that does so itself, its own reading, which
            None stands for.
        ngrams: of the training texts; says which words go together where a call tells them all at once.
    """

    family = "aligned"
    observed = fills = True
    config_class, net_class = AlignedConfig, AlignedModel

    def __init__(
        self,
        model: AlignedModel,
        tokenizer: Tokenizer,
        causal: AutoregressiveLM | None = None,
        ngrams: NgramModel | None = None,
    ) -> None:
        super().__init__(model, tokenizer)
        if causal is None and model.config.causal:
            causal = AutoregressiveLM(model.reading(), tokenizer)
        self.causal, self.ngrams = causal, ngrams

    @property
    def drafter(self) -> Drafter | None:
        """Who guesses words ahead left to right."""
        return None if self.causal is None else self.causal.drafter

    @property
    def likelihood(self) -> Literal["exact", "none"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Exact, by its left-to-right reading."""
        return "none" if self.causal is None else "exact"

    @property
    def estimator(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How it is got."""
        return "" if self.causal is None else "chain rule, by the left-to-right reading"

    @classmethod
    def stages(cls, net: AlignedModel, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """Texts through all their alignments; then some labels are given, for calls after the first; then its drafter,
        if it has one."""
        matching = partial(AlignmentMatching, teaching.objective, teaching.alignment)
        time = teaching.shares.model
        taught = [
            Taught("aligned", PLAIN_SHARE * time, matching(reveal=False)),
            Taught("revealed", (1 - PLAIN_SHARE) * time, matching(reveal=True), comparable=False),
        ]
        if net.drafter is not None:
            taught.append(Taught("drafter", DRAFTER_SHARE * time, drafting, part="drafter", comparable=False))
        return taught

    @contextmanager
    def endless(self) -> "Iterator[AlignedLM]":
        """Its left-to-right reading has no end of a text, so that every text has its full length."""
        if self.causal is None:
            yield self
            return
        with self.causal.endless():
            yield self

    @property
    def left_to_right(self) -> AutoregressiveLM | None:
        """Its own reading, or the teacher that it has kept."""
        return self.causal

    def learn_from(self, corpus: Corpus, teacher: TrainedWriter[Any] | None = None) -> None:
        """Count the texts; keep the teacher, where one is needed, with what drafts its words."""
        super().learn_from(corpus, teacher)
        if not self.model.config.causal and teacher is not None and teacher.left_to_right is not None:
            self.causal = teacher.left_to_right
        if self.causal is not None:
            self.causal.learn_from(corpus)

    def with_net(self, net: Any) -> "AlignedLM":
        """Read left to right by the other net, too, where it reads both ways."""
        found = super().with_net(net)
        if self.causal is not None and net.config.causal:
            found.causal = AutoregressiveLM(net.reading(), self.tokenizer, self.causal.table)
        return found

    def with_vocabulary(
        self, tokenizer: Tokenizer, smaller: Callable[[Any], Any], rows: Iterable[Sequence[int]]
    ) -> "AlignedLM":
        """With its teacher, which has it too."""
        found = cast(AlignedLM, super().with_vocabulary(tokenizer, smaller, rows))
        if self.model.config.causal and self.causal is not None:
            found.causal = self.causal.with_vocabulary(tokenizer, lambda _: found.model.reading(), rows)
        elif self.causal is not None:
            found.causal = self.causal.with_vocabulary(tokenizer, smaller, rows)
        return found

    @classmethod
    def stored(
        cls, net: AlignedModel, codec: Tokenizer, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "AlignedLM":
        """With the teacher and the counts that its folder holds, if it holds any."""
        size = net.config.vocab_size
        ngrams = counted(parts, size)
        if net.config.causal:
            rest = {name: value for name, value in parts.items() if not name.startswith(NGRAMS)}
            return cls(net, codec, AutoregressiveLM.stored(net.reading(), codec, extras, rest), ngrams)
        if "causal" not in extras:
            return cls(net, codec, None, ngrams)
        weights = {name.removeprefix(CAUSAL): value for name, value in parts.items() if name.startswith(CAUSAL)}
        shape = from_dict(AutoregressiveConfig, extras["causal"], "causal")
        if shape.vocab_size != size:
            raise ConfigError(f"causal.vocab_size is {shape.vocab_size}, and the model has {size}")
        if odd := [name for name, value in weights.items() if not value.is_floating_point()]:
            raise ConfigError(f"parts.safetensors holds {CAUSAL}{odd[0]} as {weights[odd[0]].dtype}")
        try:
            causal = built(AutoregressiveModel, shape, {name: value.shape for name, value in weights.items()})
        except ConfigError as error:
            raise ConfigError(f"parts.safetensors and `causal` do not fit each other: {error}") from error
        causal.load_state_dict(weights)
        rest = {name: value for name, value in parts.items() if not name.startswith((CAUSAL, NGRAMS))}
        device = net.embedding.weight.device
        return cls(net, codec, AutoregressiveLM.stored(causal.to(device), codec, extras, rest), ngrams)

    def extras(self) -> dict[str, Any]:
        """The teacher's shape."""
        return {} if self.causal is None or self.model.config.causal else {"causal": to_dict(self.causal.model.config)}

    def parts(self) -> dict[str, Tensor]:
        """The counts, the teacher's weights where it has one, and what drafts words left to right."""
        if self.causal is None:
            return super().parts()
        if self.model.config.causal:
            return {**super().parts(), **self.causal.parts()}
        weights = {CAUSAL + name: value for name, value in self.causal.model.state_dict().items()}
        return {**super().parts(), **weights, **self.causal.parts()}

    def log_likelihood(
        self,
        batch: Batch,
        generators: Sequence[torch.Generator] = (),
        num_samples: int = 128,
        known: Int64[Tensor, "b"] | None = None,
    ) -> LogLikelihood:
        """Exact, by the left-to-right reading."""
        if self.causal is None:
            return super().log_likelihood(batch, generators, num_samples, known)
        return self.causal.log_likelihood(batch, known=known)

    def check(self, options: GenerateOptions) -> None:
        """Refuse options that such a model does not follow, or that do not fit each other; see `RequestWriter`."""
        if self._left_to_right(options):
            if self.causal is None:
                raise UsageError(
                    f"the {options.decoder} decoder writes left to right, and this model has kept no teacher; leave "
                    "`decoder` out"
                )
            if options.fluency is not None:
                raise UsageError(
                    f"{spelled('fluency')} is for texts read from slots, and the {options.decoder} decoder writes left "
                    "to right; leave it out"
                )
            self.causal.check(options)
            return
        check_options(options, self.family)
        self.check_fluency(options)
        for name in ("top_k", "top_p", "max_tokens", "num_drafts", "pattern", "schema"):
            if name in given(options):
                raise UsageError(
                    f"{spelled(name)} means nothing to aligned models but to their decoders sequential and verified; "
                    "choose one of them, or leave it out"
                )

    def together(self, options: GenerateOptions) -> GenerateOptions:
        """Left to right as its reading has it; see `Writer`."""
        if self.causal is None or not self._left_to_right(options):
            return options
        return self.causal.together(options)

    @staticmethod
    def _left_to_right(options: GenerateOptions) -> bool:
        return options.decoder in ("sequential", "verified")

    def read(self, request: Request, options: GenerateOptions) -> Any:
        """Tokens of the prompt, the text to fill if there is one, and the seed; see `RequestWriter`."""
        if self.causal is not None and self._left_to_right(options):
            return self.causal.read(request, options)
        prompt = prompt_tokens(request, self.tokenizer, self.model.config.max_prompt)
        template = template_of(request, self.tokenizer, rate=1, max_cells=self.model.max_words)
        if changes(template):
            raise RequestError(
                "an aligned model fills blanks ___; words [[…]] to change are for a Manta-LM and masked models"
            )
        return prompt, template, request.seed, 1.0

    def samples(self, request: Request, options: GenerateOptions) -> list[Any]:
        """On canvases of different sizes, or with blanks of such; see `RequestWriter`."""
        rows = super().samples(request, options)
        if self._left_to_right(options):
            return rows
        if request.infill is not None:  # the widest first, as without a choice
            texts = [narrowed(request.infill, 1 - k / len(rows)) for k in range(len(rows))]
            return [
                self.read(replace(request, infill=text, seed=row[2]), options)
                for text, row in zip(texts, rows, strict=True)
            ]
        rooms = torch.linspace(*ROOMS, len(rows)).tolist()
        return [(*row[:3], room) for row, room in zip(rows, rooms, strict=True)]

    def write_rows(
        self,
        rows: Sequence[Any],
        options: GenerateOptions,
        batch_size: int,
        observer: Observer,
    ) -> Iterator[Event]:
        """Texts to fill apart from free ones; left to right, where a decoder asks for it. See `RequestWriter`."""
        if self.causal is not None and self._left_to_right(options):
            yield from self.causal.write_rows(rows, options, batch_size, observer)
            return
        for chosen in batches([template is not None for _, template, _, _ in rows], batch_size):
            prompts, templates, seeds, rooms = zip(*(rows[i] for i in chosen), strict=True)
            generators = tuple(make_generator(seed) for seed in seeds)
            batch = Prompts(*padded_prompts(prompts, self.device), generators)
            beginning = self._beginning(batch, templates, options, encode=True, rooms=rooms)
            # Blanks are filled in one call: with more of them they came out worse.
            calls = options.num_steps if templates[0] is None else 1
            for slots in self._settled(beginning, replace(options, num_steps=calls), observer):
                kind = "draft" if bool(slots.open.any()) else "done"
                for row, template in enumerate(templates):
                    yield self._event(kind, chosen[row], slots, beginning, row, template)

    @torch.no_grad()
    def follow(self, beginning: Beginning, num_steps: int, observer: Observer) -> None:
        """Write from a beginning, the likeliest label in every slot by the network alone; the observer sees it.

        Args:
            beginning: from `begin`, or a canvas partly given.
            num_steps: calls.
            observer: who watches.
        """
        for _ in self._settled(beginning, GenerateOptions(num_steps=num_steps, fluency=0.0), observer):
            pass

    def _settled(self, beginning: Beginning, options: GenerateOptions, observer: Observer) -> Iterator[Slots]:
        """The slots after each call."""
        memory = self.model.trunk.project(beginning.memory.states, beginning.memory.mask)

        calls, counts = count(1), beginning.mask.sum(1)

        def denoiser(labels: Tensor) -> Tensor:
            logits = self.model(labels, beginning.mask, memory).float()
            check_logits(logits.masked_fill(~beginning.mask[..., None], 0.0), next(calls))
            return observer.logits(logits, labels)

        def reader(logits: Tensor, labels: Tensor, open_: Tensor) -> Tensor:
            if (fluency := self.fluency(options)) is None:
                return drawn_words(logits, options.temperature, beginning.generators, self.model.max_slots)
            return agreed(logits, labels, open_, counts, blank=NULL, fluency=fluency)

        for slots in settle(
            denoiser,
            beginning.tokens.masked_fill(beginning.tokens == MASK, NULL),
            beginning.tokens == MASK,
            options.num_steps,
            open_id=MASK,
            reader=reader,
        ):
            observer.settled(slots)
            yield slots

    def _unasked(self, options: GenerateOptions) -> bool:
        """Its texts always are the most agreed-on ones."""
        return options.temperature == 0

    def check_fluency(self, options: GenerateOptions) -> None:
        """Refuse a weight that nothing would come of; see `FluentWriter`."""
        super().check_fluency(options)
        if options.fluency and options.temperature > 0:
            raise UsageError(
                f"{spelled('fluency')} is for the likeliest words, and at temperature {options.temperature:g} they are "
                "drawn; leave one of the two out"
            )

    def _event(
        self, kind: EventKind, index: int, slots: Slots, beginning: Beginning, row: int, template: Template | None
    ) -> Event:
        """What is told of a row: drafts and texts say all slots, settled or not."""
        own = beginning.mask[row]
        labels = slots.labels[row][own].tolist()
        words = collapse(labels, NULL)[: self.capacity]
        if template is None:
            text = self.tokenizer.decode(words).strip()
        else:
            text = self._filled(labels, template)
        sure = slots.confidence[row][own].mean().item()
        settled = 1 - (slots.open[row].sum() / own.sum()).item()
        return Event(kind, index, text, tuple(words), settled, sure, int(slots.calls_of[row]))

    def _filled(self, labels: Sequence[int], template: Template) -> str:
        """A text with its blanks filled: what is given stands in it as it was given.

        A run of one label belongs to the place that it begins in; one that reaches the slot of a given word is that
        word.
        """
        given = (template.tokens != MASK).tolist()
        blanks = [k for k, piece in enumerate(template.pieces) for _ in range(piece.blank)]
        blank_of = dict(zip((p for p, known in enumerate(given) if not known), blanks, strict=True))
        fills: list[list[int]] = [[] for _ in template.pieces]
        slots, start = self.model.config.slots_per_word, 0
        for label, run in groupby(labels):
            stop = start + len(list(run))
            told = any(given[slot // slots] and slot % slots == 0 for slot in range(start, stop))
            if label != NULL and not told:
                fills[blank_of[start // slots]].append(label)
            start = stop
        within = [fill[: piece.blank] for fill, piece in zip(fills, template.pieces, strict=True)]
        return filled(template.pieces, within, lambda fill, start: self.tokenizer.decode(fill, start=start))

    def _beginning(
        self,
        batch: Prompts,
        templates: Sequence[Template | None],
        options: GenerateOptions,
        *,
        encode: bool,
        rooms: Sequence[float] = (),
    ) -> Beginning:
        """The mask token in the open slots of each row's canvas, given words where a template has them.

        `rooms` are sizes of the rows' canvases, beside what they would have; without them all are 1.
        """
        shape = self.model.config
        memory = self.model.prompt_memory(batch.tokens, batch.lengths)
        chance = self.model.length_logits(memory)
        check_logits(chance, 1)
        length = (chance.softmax(-1).cumsum(-1) < LENGTH_QUANTILE).sum(-1).clamp(1, chance.shape[1] - 1)
        counts = length * shape.slots_per_word
        if rooms:
            counts = (counts * torch.tensor(rooms, device=counts.device)).round().long().clamp(1, self.model.max_slots)
        for row, template in enumerate(templates):
            if template is not None:
                counts[row] = len(template.tokens) * shape.slots_per_word
        mask = torch.arange(padded_width(int(counts.max())), device=self.device) < counts[:, None]
        tokens = torch.full(mask.shape, MASK, device=self.device).masked_fill(~mask, NULL)
        for row, template in enumerate(templates):
            if template is not None:
                given = template.tokens[None].to(self.device)
                labels, open_ = spread(given, given == MASK, shape.slots_per_word)
                tokens[row, : labels.shape[1]] = labels[0].masked_fill(open_[0], MASK)
        return Beginning(memory, tokens, mask, batch.generators)
