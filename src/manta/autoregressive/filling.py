"""Blanks filled left to right: words are told by what stands before them, and weighed by what stands behind them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.autoregressive.chooser import truncate
from manta.autoregressive.decode import Reader, Told
from manta.runtime import check_logits

SPANS = 16
"""Spans tried side by side; a multiple of what calls are padded to, so that none is computed for nothing."""


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
    """Log-probability of what the blanks hold and of what is given behind them, in nats."""

    def grown(self, span: Sequence[int], chances: Sequence[float], gap: Gap, score: float) -> "Filling":
        """With the next blank filled."""
        return Filling(
            (*self.words, *span, *gap.behind),
            (*self.fills, tuple(span)),
            (*self.chances, *chances, *[1.0] * len(gap.behind)),
            score,
        )


@dataclass(frozen=True)
class Vocabulary:
    """What of the words may stand where."""

    begin: int
    """Before the first word of a text."""
    barred: Bool[Tensor, "v"]
    """True for words that no blank may hold, such as the one that ends a text."""
    spaced: Bool[Tensor, "v"]
    """True for words that begin with a space."""

    def out(self, gap: Gap, place: int) -> Bool[Tensor, "v"]:
        """Words that the place-th word of a blank, counted from 0, may not be."""
        return self.barred | ~self.spaced if gap.spaced and place == 0 else self.barred


class Counted:
    """A reader that counts what it is asked.

    Args:
        reader: any.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader, self.calls, self.places = reader, 0, 0

    def __call__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Told:
        """See `Reader`."""
        self.calls, self.places = self.calls + 1, self.places + len(tokens) * len(tokens[0])
        return self.reader(tokens, starts)


@torch.inference_mode()
def likeliest(
    reader: Reader, given: Sequence[int], gaps: Sequence[Gap], vocabulary: Vocabulary, num: int = SPANS
) -> Iterator[list[Filling]]:
    """Fill blanks so that the whole text is as likely as a beam finds it; yields what it goes on with after each blank.

        spans ← the `num` likeliest of n words behind what stands before          n = 1, 2, …, most
        score(span) = log p(span | before) + log p(behind | before, span)
        go on with the `num` spans of the highest scores, of any length

    The best comes first. One call tells what is given behind a span and which words go on with it, so a blank takes
    `most` + 1 calls.

    Args:
        reader: the model before anything is read, `num` rows wide.
        given: words before the first blank.
        gaps: the blanks.
        vocabulary: which words may stand where.
        num: spans tried side by side.

    Raises:
        ModelError: logits that no word can be chosen from.
    """
    found = [Filling(tuple(given), chances=(1.0,) * len(given))]
    for gap in gaps:
        rows = found + found[-1:] * (num - len(found))
        scores = torch.tensor([row.score for row in found] + [-torch.inf] * (num - len(found)), dtype=torch.float64)
        kept = len(found) == 1
        """All rows begin alike, so that a span may go on in any of them behind what was read before."""
        told = _read(reader, rows, [[]] * num, (), vocabulary, 0)[0]
        spans: list[list[int]] = [[] for _ in rows]
        chances: list[list[float]] = [[] for _ in rows]
        ended: list[Filling] = []
        for place in range(gap.most):
            chance = told.log_softmax(-1)
            total = scores[:, None] + chance.masked_fill(vocabulary.out(gap, place), -torch.inf)
            scores, at = total.flatten().topk(num)
            parents, words = (at // total.shape[1]).tolist(), (at % total.shape[1]).tolist()
            sure = chance[parents, words].exp().tolist()
            rows = [rows[parent] for parent in parents]
            spans = [[*spans[parent], word] for parent, word in zip(parents, words, strict=True)]
            chances = [[*chances[parent], one] for parent, one in zip(parents, sure, strict=True)]
            told, behind = _read(reader, rows, spans, gap.behind, vocabulary, place + 1 if kept else 0)
            for k, score in enumerate((scores + behind).tolist()):
                if score > -torch.inf:
                    ended.append(rows[k].grown(spans[k], chances[k], gap, score))
        found = sorted(ended, key=lambda text: text.score, reverse=True)[:num]
        yield found


@torch.inference_mode()
def drawn(
    reader: Reader,
    given: Sequence[int],
    gaps: Sequence[Gap],
    vocabulary: Vocabulary,
    generators: Sequence[torch.Generator],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Iterator[list[Filling]]:
    """Fill blanks by draws of the model's own texts with these words given; yields them after each blank.

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

    Raises:
        ModelError: logits that no word can be chosen from.

    Source: sequential Monte Carlo whose twist is the likelihood of what is given: Lew et al., "Sequential Monte Carlo
        steering of large language models", arXiv 2306.03081; the spans of all lengths in one sweep are ours.
    """
    *of_rows, of_choice = generators
    rows = [Filling(tuple(given), chances=(1.0,) * len(given))] * len(of_rows)
    for gap in gaps:
        told = _read(reader, rows, [[]] * len(rows), (), vocabulary, 0)[0]
        spans: list[list[int]] = [[] for _ in rows]
        chances: list[list[float]] = [[] for _ in rows]
        inside = torch.zeros(len(rows), dtype=torch.float64)
        """Log-probability that a row's words are such as may stand in a blank, of which the weight is."""
        ended: list[Filling] = []
        for place in range(gap.most):
            out = vocabulary.out(gap, place)
            below = truncate((told - told.amax(-1, keepdim=True)) / temperature, top_k=top_k, top_p=top_p)
            cut = below.masked_fill(out, -torch.inf)
            none = ~cut.isfinite().any(-1, keepdim=True)  # what is left may hold no word that may stand here
            below = torch.where(none, told / temperature, below)
            cut = torch.where(none, below.masked_fill(out, -torch.inf), cut)
            inside += cut.logsumexp(-1) - below.logsumexp(-1)
            uniform = torch.stack([torch.rand(cut.shape[1], generator=g, dtype=torch.float64) for g in of_rows])
            words = (cut - torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))).argmax(-1).tolist()
            sure = told.log_softmax(-1)[range(len(rows)), words].exp().tolist()
            for k, word in enumerate(words):
                spans[k], chances[k] = [*spans[k], word], [*chances[k], sure[k]]
            told, behind = _read(reader, rows, spans, gap.behind, vocabulary, 1)
            weights = (inside + behind).tolist()
            ended += [rows[k].grown(spans[k], chances[k], gap, weights[k]) for k in range(len(rows))]
        weights = torch.tensor([text.score for text in ended], dtype=torch.float64)
        chosen = torch.multinomial(weights.softmax(0), len(rows), replacement=True, generator=of_choice)
        rows = [ended[k] for k in chosen.tolist()]
        yield rows


def _read(
    reader: Reader,
    rows: Sequence[Filling],
    spans: Sequence[Sequence[int]],
    behind: Sequence[int],
    vocabulary: Vocabulary,
    fresh: int,
) -> tuple[Float[Tensor, "b v"], Float[Tensor, "b"]]:
    """Read what stands and is given of each row.

    Args:
        reader: of as many rows.
        rows: what stands before the spans.
        spans: words behind it, as many in every row.
        behind: words behind them.
        vocabulary: has the word before the first.
        fresh: how many of a span's last words were not read yet, all that stands before them having been; 0: read all.

    Returns:
        The logits of the word behind each span, and the log-probability of what is given behind it, float64.
    """
    lines, starts, last = [], [], []
    for row, span in zip(rows, spans, strict=True):
        whole = [vocabulary.begin, *row.words, *span]
        start = len(whole) - fresh if fresh else 0
        last.append(len(whole) - 1 - start)
        lines.append([*whole[start:], *behind])
        starts.append(start)
    width = max(map(len, lines))
    told = reader([line + line[-1:] * (width - len(line)) for line in lines], starts)
    at = torch.tensor(last)[:, None] + torch.arange(len(behind) + 1)
    logits = told.logits[torch.arange(len(lines))[:, None], at.to(told.logits.device)].double().cpu()
    check_logits(logits, 1)
    words = torch.tensor(behind, dtype=torch.long).expand(len(lines), -1)
    return logits[:, 0], logits[:, :-1].log_softmax(-1).gather(-1, words[..., None]).sum((1, 2))
