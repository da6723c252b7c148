"""Autoregressive models: the same prompt memory and blocks as Manta-LM's policy, causal.

Its parts carry the names of Manta-LM's (`embedding`, `memory_encoder`, a trunk that reads the memory), so that a
trained one can serve as a teacher and as the policy's first weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from manta.autoregressive import (
    Chooser,
    ChooserOfEach,
    Drafter,
    NgramDrafter,
    Round,
    checked_ngrams,
    count_ngrams,
    decode,
    write_on,
)
from manta.errors import ConfigError, RequestError, UsageError
from manta.families.asked import check_options
from manta.families.batching import ROWS, padded_prompts
from manta.families.cached import CachedReader, multiple_of
from manta.families.canvas import Prompts, Template, prompt_tokens
from manta.families.drafters import DraftLoss, RecurrentDrafter
from manta.families.events import Event, GenerateOptions, Request
from manta.families.filling import Filler, pieces_to_fill
from manta.families.next_words import Line, Progress, watched_by
from manta.families.observer import Beginning, Observer
from manta.families.options import spelled
from manta.families.prompted import Memory, PromptedConfig, PromptedModel, TaskedConfig, resolved
from manta.families.structured import NextHeld, automaton_for, check_room
from manta.families.trained import LogLikelihood, Taught, Teaching, TrainedWriter
from manta.fluency import Edges
from manta.nets.trunk import Trunk
from manta.operators import OperatorContext, line
from manta.runtime import check_likelihood
from manta.text import BOS, CONSENSUS, EOS, HUMAN, MASK, Batch, Corpus, Tokenizer
from manta.types import Loss

NUM_DRAFTS = 7
"""Most words drafted a call where nothing else is asked for: with the last word eight places, a multiple of `ROWS`."""
PLACES = 32
"""Places of a call, of all rows together, up to which drafting saves time on CPU: few cost hardly more than one."""
DRAFTER_SHARE = 0.25
"""Time of the drafter's stage, beside 1 of the model's."""
SHOWN = 8
"""Most texts written at once whose drafts are told: to decode those of many would slow their writing down."""


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(TaskedConfig):
    """Shape of an autoregressive model."""

    family: Literal["ar"] = "ar"
    """Which family this is."""
    draft_horizon: int = 0
    """Words ahead that a drafter of its own is taught, in a last stage, so that several are written a call; 0: no such
    stage, and words are drafted from a table of the training texts."""
    styles: bool = False
    """Tell texts of people from a teacher's answers, in training and in writing: what is drawn is written as people
    write, the greedy text as the answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_horizon < 0:
            raise ConfigError(f"draft_horizon should be 0 or more, received {self.draft_horizon}")
        if self.draft_horizon and self.modulation is not None:
            raise ConfigError(
                "a drafter is of one task; leave draft_horizon out, and make one of a task's own model (manta export "
                "MODEL --task TASK, then manta train --drafter)"
            )


class AutoregressiveModel(PromptedModel):
    """Next-token model of a text given a prompt.

    Args:
        config: shape.
    """

    begin, end = BOS, EOS

    def __init__(self, config: AutoregressiveConfig) -> None:
        shape = resolved(config)
        super().__init__(
            shape,
            num_lengths=None,
            num_places=max(shape.max_prompt, shape.max_text) + 1 if shape.absolute_places else 0,
        )
        self.trunk = Trunk(
            shape.dim, shape.depth, shape.mix, heads=shape.heads, cross=True, causal=True, hidden=shape.hidden
        )
        self.drafter = RecurrentDrafter(self, shape.draft_horizon) if shape.draft_horizon else None
        self.styles = shape.styles
        self.modulate(self.trunk)

    @classmethod
    def reading(cls, net: PromptedModel, trunk: Trunk, drafter: "RecurrentDrafter | None") -> "AutoregressiveModel":
        """The left-to-right reading of a net of another family: its modules are the net's own, not copies.

        Args:
            net: has embedding, prompt's encoder and places.
            trunk: its blocks, which read a memory and are not modulated.
            drafter: of its words, if it has one.
        """
        found = cls.__new__(cls)
        nn.Module.__init__(found)
        own = {"family": "ar", "absolute_places": net.places is not None}
        shared = {field.name: getattr(net.config, field.name) for field in fields(PromptedConfig)}
        own |= {"draft_horizon": 0 if drafter is None else drafter.horizon, "styles": bool(net.config.styles)}
        found.config = AutoregressiveConfig(**{**shared, **own})
        found.embedding, found.head, found.memory_encoder = net.embedding, net.head, net.memory_encoder
        found.places, found.length, found.trunk, found.drafter = net.places, None, trunk, drafter
        found.tasks, found.styles = None, bool(net.config.styles)
        return found.train(net.training)

    def kinds(self, tags: Int64[Tensor, "b"]) -> Int64[Tensor, "b"]:
        """What the prompt's encoder is told of texts by their tags: that all are people's, unless styles are known."""
        return tags if self.styles else torch.full_like(tags, HUMAN)

    def forward(self, tokens: Int64[Tensor, "b n"], memory: Memory) -> Float[Tensor, "b n v"]:
        """Logits of the token after each of `tokens`, the first of which is `begin`."""
        return self.head(self.hidden(tokens, memory))

    def hidden(self, tokens: Int64[Tensor, "b n"], memory: Memory) -> Float[Tensor, "b n d"]:
        """What the logits are read from, of the same arguments."""
        context = OperatorContext(line(tokens.shape[1], tokens.device), causal=True)
        return self.trunk(self.embed(tokens), context, memory=self.projected(self.trunk, memory))

    def shifted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What is given, what is to be told, and where: "b n+1" each, the closing token included."""
        b, n = batch.text.shape
        place = torch.arange(n + 1, device=batch.text.device)[None]
        lengths = batch.text_lengths[:, None]
        closing = batch.text.new_full((b, 1), self.end)
        target = torch.where(place < lengths, torch.cat([batch.text, closing], 1), self.end)
        given = torch.cat([batch.text.new_full((b, 1), self.begin), target[:, :-1]], 1)
        return given, target, place <= lengths


class NextToken:
    """Exact negative log-likelihood in nats a token, the closing token included."""

    def __call__(self, model: AutoregressiveModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with part nats (a token)."""
        memory = model.memory(batch.prompt, batch.prompt_lengths, model.kinds(batch.tag), task=batch.task)
        nats, count = self.nats(model, batch, memory)
        return Loss(nats, {"nats": nats.detach()}, count)

    @staticmethod
    def nats(model: AutoregressiveModel, batch: Batch, memory: Memory) -> tuple[Float[Tensor, ""], int]:
        """Mean nats a token behind encoded prompts, and how many tokens are told."""
        given, target, asked = model.shifted(batch)
        logits = model(given, memory)
        return F.cross_entropy(logits[asked].float(), target[asked]), int(asked.sum())


@torch.no_grad()
def log_likelihood(
    model: AutoregressiveModel, batch: Batch, known: Int64[Tensor, "b"] | None = None
) -> Float[Tensor, "b"]:
    """Exact log-likelihood of each text given its prompt, in nats, the closing token included.

    Args:
        model: the net.
        batch: the texts.
        known: tokens of each text that are given, from its first on; None: none are.
    """
    given, target, asked = model.shifted(batch)
    if known is not None:  # the first that is asked is as far behind the others as a text's first token
        asked = asked & (asked.cumsum(1) > known.to(asked.device)[:, None])
    memory = model.memory(batch.prompt, batch.prompt_lengths, model.kinds(batch.tag), task=batch.task)
    nats = F.cross_entropy(model(given, memory).float().transpose(1, 2), target, reduction="none")
    # A running sum is the same however far the batch is padded.
    total = (nats * asked).double().cumsum(1)[:, -1].float()
    check_likelihood(total)
    return -total


class AutoregressiveLM(TrainedWriter[AutoregressiveModel]):
    """An autoregressive model with its tokenizer, ready to write.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
        table: drafts words for the verified decoder, where the net has no drafter of its own.
    """

    family = "ar"
    observed = True
    likelihood = "exact"
    estimator = "chain rule"
    writes_on: ClassVar[bool] = True
    """Whether a text may be longer than what is read at once, where more tokens are asked for."""
    config_class, net_class = AutoregressiveConfig, AutoregressiveModel

    def __init__(self, model: AutoregressiveModel, tokenizer: Tokenizer, table: NgramDrafter | None = None) -> None:
        super().__init__(model, tokenizer)
        self.table = table
        self.fills = model.trunk.answers_alone

    @property
    def left_to_right(self) -> "AutoregressiveLM":
        """Itself."""
        return self

    @property
    def drafter(self) -> Drafter | None:
        """Who guesses words ahead."""
        return self.table if self.model.drafter is None else self.model.drafter

    @classmethod
    def stages(cls, net: AutoregressiveModel, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """One stage, of a model that may teach others, and its drafter's if it has one."""
        taught = [Taught("teacher", 1.0, NextToken())]
        if net.drafter is not None:
            taught.append(Taught("drafter", DRAFTER_SHARE, DraftLoss(), part="drafter", answers=True))
        return taught

    def learn_from(self, corpus: Corpus, teacher: TrainedWriter[Any] | None = None) -> None:
        """Keep a table of the training texts, to draft from."""
        if self.model.drafter is None:
            rows = range(len(corpus))
            self._count((corpus.text(row).tolist() for row in rows), map(corpus.edges, rows))

    def _count(self, texts: Iterable[Sequence[int]], edges: Edges | None = None) -> None:
        """Make the table of some texts."""
        size = self.model.config.vocab_size
        self.table = NgramDrafter(count_ngrams(texts, vocab_size=size, begin=BOS, end=EOS, edges=edges), size, BOS)

    def with_vocabulary(
        self, tokenizer: Tokenizer, smaller: Callable[[Any], Any], rows: Iterable[Sequence[int]]
    ) -> "AutoregressiveLM":
        """With a table counted anew."""
        found = cast(AutoregressiveLM, super().with_vocabulary(tokenizer, smaller, rows))
        if self.table is not None:
            found._count(rows)
        return found

    @classmethod
    def stored(
        cls, net: AutoregressiveModel, codec: Tokenizer, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "AutoregressiveLM":
        """With the table that its folder holds, if it holds one."""
        size = net.config.vocab_size
        return cls(net, codec, NgramDrafter(checked_ngrams(parts, size), size, BOS) if parts else None)

    def parts(self) -> dict[str, Tensor]:
        """The table."""
        return {} if self.table is None else dict(self.table.table)

    def log_likelihood(
        self,
        batch: Batch,
        generators: Sequence[torch.Generator] = (),
        num_samples: int = 128,
        known: Int64[Tensor, "b"] | None = None,
    ) -> LogLikelihood:
        """Exact: nothing is drawn."""
        return LogLikelihood(kind="exact", value=log_likelihood(self.model, batch, known))

    @contextmanager
    def endless(self) -> "Iterator[AutoregressiveLM]":
        """The model with no token that ends a text, so that every text has its full length."""
        end, self.model.end = self.model.end, -1
        try:
            yield self
        finally:
            self.model.end = end

    def check(self, options: GenerateOptions) -> None:
        """Refuse options that such a model does not follow, or that do not fit each other; see `RequestWriter`."""
        check_options(options, self.family)
        if options.choose > 1 and options.temperature == 0:
            raise UsageError(
                f"at temperature 0 there is one text to choose from; set {spelled('temperature')}, or leave "
                f"{spelled('choose')} out"
            )
        if options.choose > 1 and options.choose_by == "likelihood" and (options.max_tokens or 0) > self.capacity:
            raise UsageError(
                f"texts are as likely as they are read, {self.capacity} tokens at once; lower {spelled('max_tokens')}, "
                f"or leave {spelled('choose_by')} out"
            )
        if options.decoder == "verified" and self.drafter is None:
            raise UsageError(
                "the verified decoder needs a drafter, and this model has none; make one with manta train --drafter "
                "(of an aligned model: train it with aligned.draft_horizon=8), or choose the sequential one: the text "
                "is the same"
            )
        if options.decoder == "verified" and not self.model.trunk.answers_alone:
            raise UsageError(
                f"the verified decoder needs attention, and this model's operator is {self.model.config.kinds};"
                " leave `decoder` out"
            )
        if (automaton := automaton_for(options, self.tokenizer)) is not None:
            check_room(automaton, min(self.capacity, options.max_tokens or self.capacity))
        if options.num_drafts is not None and not self._drafts(options):
            raise UsageError(f"{spelled('num_drafts')} is for the verified decoder; leave it out")

    def _drafts(self, options: GenerateOptions) -> bool:
        """Whether words may be drafted, which on CPU never changes a text."""
        return self.drafter is not None and self.model.trunk.answers_alone and options.decoder != "sequential"

    def _num_drafts(self, options: GenerateOptions, rows: int) -> int:
        """Most words drafted a call: as asked, else as many as save time."""
        if not self._drafts(options):
            return 0
        if options.num_drafts is not None:
            return options.num_drafts
        if options.decoder == "verified":
            return NUM_DRAFTS
        # On a GPU products depend on their shape, so a text could differ by rounding; nobody gets that unasked.
        return min(NUM_DRAFTS, max(0, PLACES // rows - 1)) if self.device.type == "cpu" else 0

    def together(self, options: GenerateOptions) -> GenerateOptions:
        """All but how a word is chosen from what the model tells, which `read` keeps for each; see `Writer`."""
        return options if options.choose > 1 else replace(options, temperature=0.0, top_k=None, top_p=1.0)

    def read(self, request: Request, options: GenerateOptions) -> Line:
        """A request in tokens, with the pieces of a text to fill; see `RequestWriter`."""
        prompt = prompt_tokens(request, self.tokenizer, self.model.config.max_prompt)
        line = Line(prompt, request.seed, options.temperature, options.top_k, options.top_p)
        if request.infill is None:
            return line
        if not self.fills:
            raise RequestError(
                f"blanks are filled left to right by attention, and this model's operator is {self.model.config.kinds}"
            )
        pieces = pieces_to_fill(request.infill, self.tokenizer, self._room([prompt]), options)
        return line._replace(pieces=pieces)

    def write_rows(
        self, rows: Sequence[Line], options: GenerateOptions, batch_size: int, observer: Observer
    ) -> Iterator[Event]:
        """Left to right, prompts of like lengths side by side; see `RequestWriter`.

        A network call tells one word, or those of a draft that it bears out. Who watches is told word by word.
        """
        blanks = [index for index, row in enumerate(rows) if row.pieces]
        if blanks and type(observer) is not Observer:
            raise UsageError("nobody can watch blanks being filled left to right; leave the observer out")
        for index in blanks:
            yield from self._filler(options).fill(index, rows[index])
        free = [index for index, row in enumerate(rows) if not row.pieces]
        for group in self._groups([rows[index].prompt for index in free], batch_size):
            chosen = [free[place] for place in group]
            texts = [Progress(exactly=options.pattern is not None or options.schema is not None) for _ in chosen]
            every = -(-len(chosen) // SHOWN)
            for call, step in enumerate(self._steps([rows[i] for i in chosen], options, observer)):
                for row, text in enumerate(texts):
                    text.add(step, row)
                    if step.words[row] and call % every == 0 and text.words[-1] != self.model.end:
                        yield text.event("draft", chosen[row], self.model.end, self.tokenizer)
            for index, text in zip(chosen, texts, strict=True):
                yield text.event("done", index, self.model.end, self.tokenizer)

    def _filler(self, options: GenerateOptions) -> Filler:
        """What fills the blanks of a text, which drafts as one text alone does."""
        num_drafts = self._num_drafts(options, 1)
        model = self.model
        ends = (model.begin, model.end)
        return Filler(self.tokenizer, *ends, self._reader, self.drafter, num_drafts, model.config.vocab_size)

    def _groups(self, prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
        """Which are written side by side."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        yield from (order[begin : begin + batch_size] for begin in range(0, len(order), batch_size))

    def _room(self, prompts: Sequence[Sequence[int]]) -> int:
        """Most tokens of a text behind one of these prompts."""
        return self.capacity

    def _reader(self, rows: Sequence[Line], room: int, drafting: bool) -> CachedReader:
        """The model behind its cache, with the prompts read.

        A text to fill is read as one of people's, of whom its given words may be.

        Args:
            rows: that are written.
            room: places that are read at most.
            drafting: the drafter reads the prompts, too.
        """
        prompt, lengths = padded_prompts([row.prompt for row in rows], self.device)
        tags = [CONSENSUS if row.temperature == 0 and not row.pieces else HUMAN for row in rows]
        kinds = self.model.kinds(torch.tensor(tags, device=self.device))
        memory = self.model.memory(prompt, lengths, kinds)
        if drafting and self.drafter is not None:
            self.drafter.begin(memory)
        return CachedReader(self.model, memory, room)

    def _steps(self, rows: Sequence[Line], options: GenerateOptions, observer: Observer) -> Iterator[Round]:
        """What each call commits of texts written side by side."""
        prompts, watch = [row.prompt for row in rows], watched_by(observer)
        num_drafts = 0 if watch is not None else self._num_drafts(options, len(rows))
        room, wanted = self._room(prompts), options.max_tokens or 0
        automaton = automaton_for(options, self.tokenizer)
        ways: dict[str, Any] = {"begin": self.model.begin, "end": self.model.end, "num_drafts": num_drafts}
        ways["drafter"] = self.drafter if num_drafts else None
        longer = self.writes_on and wanted > room > 1
        if longer and watch is not None:
            raise UsageError(
                f"nobody can watch a text longer than {room} tokens; lower {spelled('max_tokens')}, or leave the "
                "observer out"
            )
        if longer and automaton is None:
            return write_on(
                lambda some: self._reader([rows[row] for row in some], room + num_drafts + ROWS, num_drafts > 0),
                [row.chooser([row.seed]) for row in rows],
                prompts,
                window=room,
                max_tokens=wanted,
                multiple=multiple_of(self.model),
                at_once=self.model.trunk.answers_alone,
                **ways,
            )
        if len({row.drawn for row in rows}) == 1:
            choose = rows[0].chooser([row.seed for row in rows])
        else:
            choose = ChooserOfEach([row.chooser([row.seed]) for row in rows])
        max_tokens = min(room, wanted or room)
        reader = self._reader(rows, max_tokens + num_drafts + ROWS, num_drafts > 0)
        hold = None if automaton is None else NextHeld(automaton, self.model.end, max_tokens, len(rows))
        ways |= {"max_tokens": max_tokens, "multiple": reader.multiple, "watch": watch, "hold": hold}
        return decode(reader, choose, prompts, **ways)

    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        """Every text has the room of the longest."""
        kinds = self.model.kinds(torch.full_like(batch.lengths, CONSENSUS))
        memory = self.model.memory(batch.tokens, batch.lengths, kinds, encode=encode)
        tokens = torch.full((len(templates), self.capacity), MASK, device=self.device)
        return Beginning(memory, tokens, torch.ones_like(tokens, dtype=torch.bool), batch.generators)

    @torch.no_grad()
    def follow(self, beginning: Beginning, observer: Observer) -> Int64[Tensor, "b n"]:
        """Write on from a beginning, the likeliest word everywhere, until every text has ended.

        The observer sees the logits of the next word behind zeros at the words before it, and those words with the mask
        token behind them.

        Args:
            beginning: from `begin`, or with a prefix given.
            observer: who watches.

        Returns:
            The texts, `end` behind each, as wide as the longest.
        """
        given = [[None if token == MASK else token for token in row] for row in beginning.tokens.tolist()]
        reader = CachedReader(self.model, beginning.memory, len(given[0]) + ROWS)
        rows: list[list[int]] = [[] for _ in given]
        for step in decode(
            reader,
            Chooser(),
            [()] * len(given),
            begin=self.model.begin,
            end=self.model.end,
            max_tokens=len(given[0]),
            multiple=reader.multiple,
            given=given,
            watch=watched_by(observer),
        ):
            for row, words in zip(rows, step.words, strict=True):
                row += words
        longest = max(map(len, rows))
        return torch.tensor([row + [self.model.end] * (longest - len(row)) for row in rows], device=self.device)
