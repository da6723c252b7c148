"""Blanks filled left to right: words are told by what stands before them, and weighed by what stands behind them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.autoregressive.chooser import truncate
from manta.autoregressive.decode import Reader, Told
from manta.runtime import check_logits

SPANS = 16
"""Spans tried side by side; a multiple of what calls are padded to, so that none is computed for nothing."""
AT_ONCE = 64
"""Most places of a row in a call, so that the logits of a long text are not held all at once."""


class Selecting(Reader, Protocol):
    """A reader whose rows can take the place of others."""

    def select(self, rows: Sequence[int]) -> None:
        """Row k goes on with what was read of row `rows[k]`."""
        ...


@dataclass(frozen=True)
class Gap:
    """A blank, and what is given behind it."""

    most: int
    """Words that it takes at most; it takes one at least."""
    spaced: bool
    """Its first word begins with a space, as the one before the blank belongs to it."""
    behind: Sequence[int]
    """Words up to the next blank, or to the end of the text and with the word that ends it; there may be none."""


@dataclass(frozen=True)
class Filling:
    """A text, filled up to some blank and what is given behind it."""

    words: tuple[int, ...]
    """Of the text, given ones among them."""
    fills: tuple[tuple[int, ...], ...] = ()
    """Words of each blank."""
    chances: tuple[float, ...] = ()
    """Probability of each word of a blank, at temperature 1; 1 of a given word."""
    score: float = 0.0
    """Of a beam the log-probability of what the blanks hold and of what is given behind them, of a draw the log-weight
    of its last blank, in nats."""

    def grown(self, span: Sequence[int], chances: Sequence[float], behind: Sequence[int], score: float) -> "Filling":
        """With the next blank filled."""
        return Filling(
            (*self.words, *span, *behind),
            (*self.fills, tuple(span)),
            (*self.chances, *chances, *[1.0] * len(behind)),
            score,
        )


class Stage(NamedTuple):
    """How far a text has come."""

    texts: list[Filling]
    """What is gone on with; of a beam, the best first."""
    settled: bool
    """The last blank of these is filled, and what is given behind it stands there; else it is being filled, and of the
    texts there is the first alone."""


@dataclass(frozen=True)
class Vocabulary:
    """What of the words may stand where."""

    begin: int
    """Before the first word of a text."""
    barred: Bool[Tensor, "v"]
    """True for words that no blank may hold, such as the one that ends a text."""
    spaced: Bool[Tensor, "v"]
    """True for words that begin with a space."""
    spelled: Sequence[bytes] = ()
    """What each word stands for; without it, any words are a text."""

    def out(self, gap: Gap, place: int) -> Bool[Tensor, "v"]:
        """Words that the place-th word of a blank, counted from 0, may not be."""
        return self.barred | ~self.spaced if gap.spaced and place == 0 else self.barred

    def whole(self, span: Sequence[int]) -> bool:
        """Whether a blank may hold these words: they begin and end with whole characters."""
        if not self.spelled:
            return True
        try:
            b"".join(self.spelled[word] for word in span).decode()
        except UnicodeDecodeError:
            return False
        return True


class Counted:
    """A reader that counts what it is asked.

    Args:
        reader: any.
    """

    def __init__(self, reader: Selecting) -> None:
        self.reader, self.calls, self.places = reader, 0, 0

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Told:
        """See `Reader`."""
        self.calls, self.places = self.calls + 1, self.places + len(tokens) * len(tokens[0])
        return self.reader(tokens, starts)

    def select(self, rows: Sequence[int]) -> None:
        """See `Selecting`."""
        self.reader.select(rows)


@torch.inference_mode()
def likeliest(
    reader: Selecting, given: Sequence[int], gaps: Sequence[Gap], vocabulary: Vocabulary, num: int = SPANS
) -> Iterator[Stage]:
    """Fill blanks so that the whole text is as likely as a beam finds it.

        spans ← the `num` likeliest of n words behind what stands before          n = 1, 2, …, most
        score(span) = log p(span | before) + log p(behind | before, span)
        go on with the `num` spans of the highest scores, of any length

    One call tells what is given behind a span and which words go on with it, so a blank takes `most` + 1 calls, and
    more where what is given is longer than `AT_ONCE`.

    Args:
        reader: the model before anything is read, `num` rows wide.
        given: words before the first blank.
        gaps: the blanks.
        vocabulary: which words may stand where.
        num: spans tried side by side.

    Yields:
        A stage for every further word of a blank, and one when it is filled.

    Raises:
        ModelError: logits that no word can be chosen from.
    """
    found = [Filling(tuple(given), chances=(1.0,) * len(given))]
    for gap in gaps:
        rows = found + found[-1:] * (num - len(found))
        scores = torch.tensor([row.score for row in found] + [-torch.inf] * (num - len(found)), dtype=torch.float64)
        told = _read_texts(reader, rows, vocabulary)
        spans: list[list[int]] = [[] for _ in rows]
        chances: list[list[float]] = [[] for _ in rows]
        ended: list[Filling] = []
        for place in range(gap.most):
            chance = told.log_softmax(-1)
            total = scores[:, None] + chance.masked_fill(vocabulary.out(gap, place), -torch.inf)
            scores, at = total.flatten().topk(num)
            parents, words = (at // total.shape[1]).tolist(), (at % total.shape[1]).tolist()
            sure = chance[parents, words].exp().tolist()
            reader.select(parents)
            rows = [rows[parent] for parent in parents]
            spans = [[*spans[parent], word] for parent, word in zip(parents, words, strict=True)]
            chances = [[*chances[parent], one] for parent, one in zip(parents, sure, strict=True)]
            yield Stage([rows[0].grown(spans[0], chances[0], (), scores.tolist()[0])], False)
            told, behind = _read_spans(reader, rows, spans, gap.behind)
            for k, score in enumerate((scores + behind).tolist()):
                if score > -torch.inf:
                    ended.append(rows[k].grown(spans[k], chances[k], gap.behind, score))
        whole = [text for text in ended if vocabulary.whole(text.fills[-1])]
        found = sorted(whole or ended, key=lambda text: text.score, reverse=True)[:num]
        yield Stage(found, True)


@torch.inference_mode()
def drawn(
    reader: Selecting,
    given: Sequence[int],
    gaps: Sequence[Gap],
    vocabulary: Vocabulary,
    generators: Sequence[torch.Generator],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Iterator[Stage]:
    """Fill blanks by draws of the model's own texts with these words given.

        span_k ~ p(· | before)                                       k = 1, …, rows, `most` words long
        weight of its first n words = p(behind | before, span_k[:n])   n = 1, …, most
        go on with spans drawn by their weights

    This is importance resampling, one step for each blank: with more and more rows, the texts are drawn from
    p(text | what is given), any number of words of a blank being as probable beforehand as another.

    Args:
        reader: the model before anything is read, as many rows wide as there are generators but one.
        given: words before the first blank.
        gaps: the blanks.
        vocabulary: which words may stand where.
        generators: one for the spans of each row, and the last for the choice among them.
        temperature, top_k, top_p: of the words of a span, see `Chooser`; what is given is weighed at temperature 1.

    Yields:
        A stage for every further word of a blank, and one when it is filled.

    Raises:
        ModelError: logits that no word can be chosen from.

    Source: sequential Monte Carlo whose twist is the likelihood of what is given: Lew et al., "Sequential Monte Carlo
        steering of large language models", arXiv 2306.03081; the spans of all lengths in one sweep are ours.
    """
    *of_rows, of_choice = generators
    rows = [Filling(tuple(given), chances=(1.0,) * len(given))] * len(of_rows)
    for gap in gaps:
        told = _read_texts(reader, rows, vocabulary)
        spans: list[list[int]] = [[] for _ in rows]
        chances: list[list[float]] = [[] for _ in rows]
        inside = torch.zeros(len(rows), dtype=torch.float64)
        """Log-probability that a row's words are such as may stand in a blank, of which the weight is."""
        strayed = torch.zeros(len(rows), dtype=torch.bool)
        """True where top_k and top_p have left no word that may stand in the blank, so that another was taken."""
        ended: list[Filling] = []
        astray: list[bool] = []
        for place in range(gap.most):
            out = vocabulary.out(gap, place)
            below = truncate((told - told.amax(-1, keepdim=True)) / temperature, top_k=top_k, top_p=top_p)
            cut = below.masked_fill(out, -torch.inf)
            none = ~cut.isfinite().any(-1)
            below = torch.where(none[:, None], told / temperature, below)
            cut = torch.where(none[:, None], below.masked_fill(out, -torch.inf), cut)
            strayed |= none
            inside += cut.logsumexp(-1) - below.logsumexp(-1)
            uniform = torch.stack([torch.rand(cut.shape[1], generator=g, dtype=torch.float64) for g in of_rows])
            words = (cut - torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))).argmax(-1).tolist()
            sure = told.log_softmax(-1)[range(len(rows)), words].exp().tolist()
            for k, word in enumerate(words):
                spans[k], chances[k] = [*spans[k], word], [*chances[k], sure[k]]
            yield Stage([rows[0].grown(spans[0], chances[0], (), 0.0)], False)
            told, behind = _read_spans(reader, rows, spans, gap.behind)
            weights = (inside + behind).tolist()
            ended += [rows[k].grown(spans[k], chances[k], gap.behind, weights[k]) for k in range(len(rows))]
            astray += strayed.tolist()
        whole = [vocabulary.whole(text.fills[-1]) for text in ended]
        legal = [text for text, fits, off in zip(ended, whole, astray, strict=True) if fits and not off]
        legal = legal or [text for text, fits in zip(ended, whole, strict=True) if fits] or ended
        chance = torch.tensor([text.score for text in legal], dtype=torch.float64).softmax(0)
        chosen = torch.multinomial(chance, len(rows), replacement=True, generator=of_choice)
        rows = [legal[k] for k in chosen.tolist()]
        yield Stage(rows, True)


def _read_texts(reader: Reader, rows: Sequence[Filling], vocabulary: Vocabulary) -> Float[Tensor, "b v"]:
    """Read what stands of each row, from its beginning; the logits of the word behind it, float64."""
    lines = [[vocabulary.begin, *row.words] for row in rows]
    width = max(map(len, lines))
    lines = [line + line[-1:] * (width - len(line)) for line in lines]
    found: list[Tensor | None] = [None] * len(rows)
    for begin in range(0, width, AT_ONCE):
        told = reader([line[begin : begin + AT_ONCE] for line in lines], [begin] * len(lines)).logits
        for k, row in enumerate(rows):
            if begin <= len(row.words) < begin + AT_ONCE:
                found[k] = told[k, len(row.words) - begin].double().cpu()
    logits = torch.stack([row for row in found if row is not None])
    check_logits(logits, 1)
    return logits


def _read_spans(
    reader: Reader, rows: Sequence[Filling], spans: Sequence[Sequence[int]], behind: Sequence[int]
) -> tuple[Float[Tensor, "b v"], Float[Tensor, "b"]]:
    """Read the last word of each span, all before it having been read, and what is given behind it.

    Returns:
        The logits of the word behind each span, and the log-probability of what is given there, float64.
    """
    starts = [len(row.words) + len(span) for row, span in zip(rows, spans, strict=True)]
    likely = torch.zeros(len(rows), dtype=torch.float64)
    told = None
    for begin in range(0, max(1, len(behind)), AT_ONCE):
        given = behind[begin : begin + AT_ONCE]
        lines = [[behind[begin - 1] if begin else span[-1], *given[:-1]] for span in spans]
        logits = reader(lines, [start + begin for start in starts]).logits
        check_logits(logits.float(), 1)
        told = logits[:, 0].double().cpu() if told is None else told
        for j, word in enumerate(given):
            likely += (logits[:, j, word].double() - logits[:, j].double().logsumexp(-1)).cpu()
    assert told is not None, "a span has a last word"
    return told, likely
