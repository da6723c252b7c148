"""How likely a continuation is after a context, and a whole text, for any family, in batches.

What a context is depends on what a model was trained on. A model that learned texts which answer prompts takes it as
its prompt, and the continuation as the whole text; one that learned texts alone, and every published one, takes it as
the beginning of the text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.errors import RequestError, UsageError
from manta.evaluation.likelihood import ROWS
from manta.evaluation.writing import Contestant, Progress, silent, trained_with_prompts
from manta.families.autoregressive import AutoregressiveLM, AutoregressiveModel
from manta.families.batching import padded_prompts, padded_width, to_batch
from manta.families.events import Writer
from manta.families.trained import TrainedWriter
from manta.hub import ForeignModel
from manta.masked import likelihood_bound
from manta.runtime import MAX_SEED, check_likelihood, make_generator

Reading = Literal["prompt", "beginning"]
READINGS = get_args(Reading)
CHUNK = 2048
"""Questions whose prompts are encoded together, each prompt once."""
LOGITS = 1 << 26
"""Most logits that are computed at once."""


@dataclass(frozen=True)
class Question:
    """How likely a continuation is after a context."""

    context: str
    """What stands before it; empty for nothing."""
    continuation: str
    """What is asked for, with the white space before it."""
    seed: int = 0
    """Of the draws of a bound: one for all continuations of a context, so that they compare."""


@dataclass(frozen=True)
class Answer:
    """How likely a continuation was."""

    value: float
    """log p, in nats; of a bound from below."""
    greedy: bool
    """Every token of it was the likeliest where it stands; False where that cannot be known, as of a bound."""


@dataclass(frozen=True)
class _Row:
    """A question in tokens."""

    prompt: tuple[int, ...]
    """What the text answers to; none for nothing."""
    text: tuple[int, ...]
    """The text, context included where it is the text's beginning."""
    known: int
    """Tokens of the text that are given."""
    closed: bool
    """Whether the text ends there is asked, too."""
    seed: int

    @property
    def read(self) -> tuple[int, ...]:
        """What a causal model reads to answer it: all but the last token that is asked."""
        return self.text if self.closed else self.text[:-1]


class Questioned:
    """A model that is asked how likely texts are.

    Args:
        model: of any family.
        reading: how it takes a context; None: as what it was trained on tells, see this file's head.
        samples: draws a question, where only a bound can be had; at least 2.
        cut: leave out the beginning of a context that the model has no room for; without it such a question is an
            error, since its answer would be another question's.
        progress: told what is done.

    Raises:
        UsageError: a reading that the model does not have.
    """

    def __init__(
        self,
        model: Contestant,
        *,
        reading: Reading | None = None,
        samples: int = 8,
        cut: bool = False,
        progress: Progress = silent,
    ) -> None:
        lm = model.lm
        self.model, self.lm, self.samples, self.cut, self.progress = model, lm, samples, cut, progress
        self.published = lm.begins_rows
        if reading is not None and reading not in READINGS:
            raise UsageError(f"a context is read as {' or '.join(READINGS)}, received {reading!r}")
        if self.published and reading == "prompt":
            raise UsageError("a published model reads a context as the beginning of its row; leave the reading out")
        untaught = trained_with_prompts(model) is False
        self.reading: Reading = reading or ("beginning" if self.published or untaught else "prompt")
        self.framed = False
        """Contexts hold a chat's frame, whose marks are read as marks."""

    @property
    def kind(self) -> Literal["exact", "bound", "none"]:
        """Of the answers."""
        return "bound" if self._hides else self.lm.likelihood

    @property
    def _hides(self) -> bool:
        """A published masked model, whose bound is made here."""
        return self.published and self.lm.left_to_right is None

    @property
    def estimator(self) -> str:
        """How they are got."""
        if self._hides:
            return "hidden words of the continuation behind the context, their number uniform and stratified"
        if self.kind == "bound" and self.reading == "beginning":
            return f"{self.lm.estimator}; of a continuation, given how long the text is"
        return self.lm.estimator

    def check(self) -> None:
        """Refuse to be asked where nothing is known.

        Raises:
            UsageError: the family has no likelihood; what it can be asked is named.
        """
        if self.kind == "none":
            raise UsageError(
                f"no sound bound is known for the family {self.lm.family}, so it answers no task that needs a "
                "likelihood (loglikelihood, loglikelihood_rolling, multiple_choice); give it tasks of the kind "
                "generate_until"
            )

    def continuations(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Answers as they are found, each with the number of its question.

        Raises:
            UsageError: see `check`.
            RequestError: a context or a continuation that the model has no room for.
        """
        self.check()
        yield from self._answers([self._row(question) for question in questions])

    def texts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """The same of whole texts, which stand in `continuation`, given nothing.

        The closing token counts, as everywhere in manta; not of published models, which others measure without it. An
        exact likelihood reads a text that is longer than the model's window in windows that overlap by half.

        Raises:
            UsageError: see `check`.
            RequestError: a text that is longer than the window of a model with a bound.
        """
        self.check()
        rows: list[_Row] = []
        of: list[int] = []
        for number, question in enumerate(questions):
            tokens = self._encode(question.continuation)
            pieces = self._windows(tokens, question.seed) if tokens else []
            rows += pieces
            of += [number] * len(pieces)
        left = [0] * len(questions)
        for number in of:
            left[number] += 1
        found = [Answer(0.0, True)] * len(questions)
        yield from ((number, answer) for number, answer in enumerate(found) if not left[number])
        for at, answer in self._answers(rows):
            number = of[at]
            found[number] = Answer(found[number].value + answer.value, found[number].greedy and answer.greedy)
            left[number] -= 1
            if not left[number]:
                yield number, found[number]

    def _encode(self, text: str) -> list[int]:
        tokenizer: Any = self.tokenizer
        return tokenizer.encode(text, special_names=True) if self.framed else tokenizer.encode(text)

    @property
    def tokenizer(self) -> Any:
        """The model's.

        Raises:
            UsageError: a published folder has none.
        """
        tokenizer = getattr(self.lm, "tokenizer", None)
        if tokenizer is None:
            raise UsageError("the model's folder has no tokenizer, so it cannot be asked in words; put its own there")
        return tokenizer

    @property
    def room(self) -> tuple[int, int]:
        """Most tokens of a prompt, and of a text."""
        if self._hides:
            return 0, cast(ForeignModel, self.lm).max_length
        shape = cast(TrainedWriter[Any], self.lm).model.config
        return (0 if self.published else shape.max_prompt), shape.max_text

    def _row(self, question: Question) -> _Row:
        """A question in tokens.

        White space at the end of a context goes to the continuation, with which most tokens carry it.
        """
        most_prompt, most_text = self.room
        if self.reading == "prompt":
            context, continuation = question.context, question.continuation.lstrip()
            text = self._encode(continuation)
            prompt = self._fitting(context, most_prompt) if context.strip() else []
            self._check_room(text, most_text, question.continuation)
            return _Row(tuple(prompt), tuple(text), 0, True, question.seed)
        context = question.context.rstrip()
        given = self._encode(context) if context else []
        text = self._encode(question.context + question.continuation)[len(given) :]
        self._check_room(text, most_text, question.continuation)
        given = self._fitting(context, most_text - len(text)) if context else []
        return _Row((), (*given, *text), len(given), False, question.seed)

    def _fitting(self, context: str, most: int) -> list[int]:
        """The tokens of a context, the end of them where it is to be cut; a chat's frame stays whole around it."""
        tokens = self._encode(context)
        if len(tokens) <= most:
            return tokens
        if not self.cut:
            raise RequestError(
                f"a context takes {len(tokens)} tokens, the model has room for {most}; ask with fewer examples before "
                f"it, or cut contexts at their beginning (cut=true, --lm-eval-cut): {context[:60]!r}"
            )
        if not self.framed:
            return tokens[len(tokens) - most :]
        frame: Any = getattr(self.lm, "frame", None)
        end = frame.after.rstrip()  # the white space behind it is the continuation's, see `_row`
        said, end, begun = context.removeprefix(frame.before).rpartition(end)
        before, after = self._encode(frame.before), self._encode(end + begun)
        if (left := most - len(before) - len(after)) < 1:
            raise RequestError(
                f"a chat's frame takes {len(before) + len(after)} tokens, the model has room for {most}, which leaves "
                "none for what is said in it; ask for less behind it"
            )
        return [*before, *self._encode(self.end_of(said, left)), *after]

    def end_of(self, text: str, most: int) -> str:
        """As much of the end of a text as takes at most so many tokens; it begins with a whole character, and with no
        white space where a chat's frame leaves that out."""
        tokenizer, frame = self.tokenizer, getattr(self.lm, "frame", None)
        names = {"special_names": True} if self.framed else {}
        tokens, end = self._encode(text), text
        while len(self._encode(end)) > most or (end is not text and end.startswith("\ufffd")):
            tokens = tokens[max(1, len(tokens) - most) :]
            end = tokenizer.decode(tokens, **names)
            end = end.lstrip() if frame is not None and frame.trimmed else end
        return end

    def _check_room(self, tokens: Sequence[int], most: int, text: str) -> None:
        if not 0 < len(tokens) <= most:
            raise RequestError(f"a text takes {len(tokens)} tokens, the model reads from 1 to {most}: {text[:60]!r}")

    def _windows(self, tokens: list[int], seed: int) -> list[_Row]:
        """A text, or its windows where it is longer than the model's."""
        most, closed = self.room[1], not self.published
        if len(tokens) > most and self.kind == "bound":
            raise RequestError(
                f"a text takes {len(tokens)} tokens, the model reads {most}, and bounds of its windows are no bound of "
                "the text; give shorter texts"
            )
        found, begin, known = [], 0, 0
        while begin + most < len(tokens):
            found.append(_Row((), tuple(tokens[begin : begin + most]), known, False, seed))
            known = most - (most + 1) // 2
            begin += most - known
        return [*found, _Row((), tuple(tokens[begin:]), known, closed, seed)]

    def _answers(self, rows: Sequence[_Row]) -> Iterator[tuple[int, Answer]]:
        done = 0
        exact = self.lm.left_to_right
        lm: Any = self.lm if exact is None else exact
        find = self._bounds if exact is None else self._exact
        for begin in range(0, len(rows), CHUNK):
            for at, answer in find(lm, rows[begin : begin + CHUNK]):
                done += 1
                yield begin + at, answer
                if done % ROWS == 0 or done == len(rows):
                    self.progress("likelihoods", done, len(rows))

    def _exact(self, lm: AutoregressiveLM, rows: Sequence[_Row]) -> Iterator[tuple[int, Answer]]:
        """By the chain rule; prompts that several rows have are encoded once, and what they read alike is read once."""
        net, memories = lm.model, _Memories(lm.model, [row.prompt for row in rows])
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].read), rows[i].prompt, rows[i].read))
        for begin in range(0, len(order), ROWS):
            some = order[begin : begin + ROWS]
            values, greedy = chain_rule(net, [rows[i] for i in some], memories.of)
            yield from zip(some, map(Answer, values.tolist(), greedy.tolist()), strict=True)

    @torch.no_grad()
    def _bounds(self, lm: Writer, rows: Sequence[_Row]) -> Iterator[tuple[int, Answer]]:
        """By hiding words; whether a word would be the likeliest is not known, since each is told beside any others."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
        for begin in range(0, len(order), ROWS):
            chosen = order[begin : begin + ROWS]
            some = [rows[i] for i in chosen]
            generators = [make_generator(row.seed % (MAX_SEED + 1)) for row in some]
            if self._hides:
                values = self._of_published(cast(ForeignModel, lm), some, generators)
            else:
                writer = cast(TrainedWriter[Any], lm)
                batch = to_batch([row.prompt for row in some], [row.text for row in some], writer.device)
                known = None
                if any(not row.closed for row in some):
                    known = torch.tensor([row.known for row in some])
                values = writer.log_likelihood(batch, generators, self.samples, known).value
            check_likelihood(-values)
            yield from zip(chosen, (Answer(value, False) for value in values.double().tolist()), strict=True)

    def _of_published(
        self, lm: ForeignModel, rows: Sequence[_Row], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "b"]:
        """A bound of the words behind the given ones, none of which is ever hidden."""
        width = max(len(row.text) for row in rows)
        tokens = torch.tensor([[*row.text, *[0] * (width - len(row.text))] for row in rows], device=lm.device)
        place = torch.arange(width, device=lm.device)[None]
        real = place < torch.tensor([len(row.text) for row in rows], device=lm.device)[:, None]
        asked = real & (place >= torch.tensor([row.known for row in rows], device=lm.device)[:, None])
        found = likelihood_bound(
            lambda shown: lm.logits(shown, real),
            tokens,
            asked,
            mask_id=lm.mask_id,
            generators=generators,
            width=lm.max_length,
            num_samples=self.samples,
        )
        return -found.nats


class _Memories:
    """Prompts, each encoded once."""

    @torch.no_grad()
    def __init__(self, net: AutoregressiveModel, prompts: Sequence[tuple[int, ...]]) -> None:
        different = sorted(set(prompts), key=len)
        self.net, self.place = net, {prompt: place for place, prompt in enumerate(different)}
        device, self.parts = net.embedding.weight.device, []
        for begin in range(0, len(different), ROWS):
            tokens, lengths = padded_prompts(different[begin : begin + ROWS], device)
            self.parts.append(net.memory(tokens, lengths, torch.zeros_like(lengths)))

    def of(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        """The memory of some, a row each."""
        places = [divmod(self.place[prompt], ROWS) for prompt in prompts]
        width = max(self.parts[part].mask.shape[1] for part, _ in places)
        first = self.parts[places[0][0]]
        states = first.states.new_zeros(len(prompts), width, first.states.shape[2])
        mask = first.mask.new_zeros(len(prompts), width)
        for part in {part for part, _ in places}:
            rows = torch.tensor([row for row, (other, _) in enumerate(places) if other == part], device=states.device)
            memory = self.parts[part].rows(torch.tensor([at for other, at in places if other == part]).to(rows))
            states[rows, : memory.states.shape[1]] = memory.states
            mask[rows, : memory.mask.shape[1]] = memory.mask
        return type(first)(states, mask)


@torch.no_grad()
def chain_rule(
    net: AutoregressiveModel, rows: Sequence[_Row], memory: Callable[[Sequence[tuple[int, ...]]], Any]
) -> tuple[Float[Tensor, "b"], Bool[Tensor, "b"]]:
    """Exact log-likelihood of the asked tokens of each row, in nats, and whether each of them is the likeliest.

        log p = Σ_asked log p(token | tokens before it)

    Args:
        net: reads left to right.
        rows: what is asked. Those that read the same, as choices of a token each do, are one row of the net.
        memory: of prompts, a row each.
    """
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    body_of = [places.setdefault((row.prompt, row.read), len(places)) for row in rows]
    device = net.embedding.weight.device
    lengths = torch.tensor([len(row.text) for row in rows], device=device)[:, None]
    width = padded_width(int(lengths.max()) + 1)
    target = torch.tensor([[*row.text, *[net.end] * (width - len(row.text))] for row in rows], device=device)
    read = [[net.begin, *text, *[net.end] * (width - 1 - len(text))] for _, text in places]
    hidden = net.hidden(torch.tensor(read, device=device), memory([prompt for prompt, _ in places]))
    place = torch.arange(width, device=device)[None]
    closed = torch.tensor([row.closed for row in rows], device=device)[:, None]
    known = torch.tensor([row.known for row in rows], device=device)[:, None]
    asked = (place >= known) & ((place < lengths) | ((place == lengths) & closed))
    row_of, place_of = asked.nonzero().unbind(1)
    hidden = hidden[torch.tensor(body_of, device=device)[row_of], place_of]
    wanted = target[asked]
    values = torch.zeros(len(rows), dtype=torch.float64, device=device)
    wrong = torch.zeros(len(rows), dtype=torch.long, device=device)
    some = max(1, LOGITS // net.config.vocab_size)
    for begin in range(0, len(wanted), some):
        part = slice(begin, begin + some)
        logits = net.head(hidden[part][None])[0].float()
        told = logits.gather(1, wanted[part, None])[:, 0] - logits.logsumexp(1)
        values.index_add_(0, row_of[part], told.double())
        wrong.index_add_(0, row_of[part], (logits.argmax(1) != wanted[part]).long())
    check_likelihood(-values.float())
    return values.cpu(), (wrong == 0).cpu()
