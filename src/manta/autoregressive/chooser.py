"""From logits to words, with randomness that belongs to a request and a place, so that a text is a map of its noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import UsageError


def truncate(
    logits: Float[Tensor, "*shape v"], *, top_k: int | None = None, top_p: float = 1.0
) -> Float[Tensor, "*shape v"]:
    """Set the logits of words that must not be sampled to −inf.

    Args:
        logits: after division by the temperature.
        top_k: keep the k likeliest words; None keeps all.
        top_p: keep the fewest likeliest words whose probabilities add up to at least this, in (0, 1]
            (nucleus sampling, Holtzman et al., arXiv 1904.09751).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[..., -1:], -torch.inf)
    if top_p < 1:
        ranked, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        dropped = ranked.cumsum(-1) - ranked >= top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


class Chooser:
    """The next word of logits: the likeliest, or a draw by noise that is fixed for each request and place.

    ``word(place) = argmax_v logits_v / temperature + G_v(place)``,  G standard Gumbel noise

    is a draw from softmax(logits/temperature) (Gumbel-max). The noise of a place does not depend on when, how often or
    beside what it is asked for: with it, a text is a function of the model, the prompt and the seed, which a plan that
    is made ahead can be checked against. A draft that is chosen with the same noise agrees with the word more often
    than an independent one.

    Args:
        temperature: 0 takes the likeliest word, and no noise.
        top_k, top_p: see `truncate`.
        generators: one a row, needed when drawing; each gives a place's noise after that of the place before it.

    Source: Gumbel-max coupling of draft and word: Daliri et al., "Coupling without communication and drafter-invariant
        speculative decoding", arXiv 2408.07978.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generators = generators
        self._noise: list[list[Tensor]] = [[] for _ in generators]
        self._first = [0] * len(generators)

    def check(self, rows: int) -> None:
        """Refuse to draw without noise for every row.

        Raises:
            UsageError: as said.
        """
        if self.temperature > 0 and len(self.generators) != rows:
            raise UsageError(f"sampling {rows} rows needs {rows} generators, received {len(self.generators)}")

    def words(self, logits: Float[Tensor, "b k v"], starts: Sequence[int]) -> Int64[Tensor, "b k"]:
        """The words of k places of each row, the first of which is its `start`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # Below the greatest logit, so that no temperature is too low for a number.
        below = (logits.double() - logits.amax(-1, keepdim=True)) / self.temperature
        kept = truncate(below.float(), top_k=self.top_k, top_p=self.top_p).isfinite()
        k, v = logits.shape[1:]
        noise = torch.stack(
            [torch.stack([self.noise(row, start + j, v) for j in range(k)]) for row, start in enumerate(starts)]
        )
        return (below.masked_fill(~kept, -torch.inf) + noise.to(logits.device)).argmax(-1)

    def among(self, row: int, place: int, words: Sequence[int], chances: Sequence[float], v: int) -> int:
        """The choice between a few words of known probability, with the noise of their place.

        Args:
            row, place: whose noise.
            words: any, the likeliest first.
            chances: of each, above 0; not truncated.
            v: size of the vocabulary.
        """
        if self.temperature == 0:
            return words[0]
        noise = self.noise(row, place, v)[list(words)]
        below = torch.tensor(chances, dtype=torch.float64).log() / self.temperature
        return words[int((below + noise).argmax())]

    def noise(self, row: int, place: int, v: int) -> Float[Tensor, " v"]:
        """Gumbel noise of a place of a row, float64; of places before the row's last `forget` there is none."""
        held, first = self._noise[row], self._first[row]
        while place - first >= len(held):
            uniform = torch.rand(v, generator=self.generators[row], dtype=torch.float64)
            held.append(-torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16))))
        return held[place - first]

    def forget(self, row: int, place: int) -> None:
        """Drop the noise of places before this one, which must have been asked for."""
        if self.temperature > 0:
            del self._noise[row][: place - self._first[row]]
            self._first[row] = place


class ChooserOfEach(Chooser):
    """Rows that are each chosen from in a way of their own: the words are, to the last bit, those of each row alone.

    Args:
        rows: of each row, one that chooses of a single row.
    """

    def __init__(self, rows: Sequence[Chooser]) -> None:
        super().__init__()
        self.rows = rows

    def check(self, rows: int) -> None:
        """See `Chooser`."""
        assert len(self.rows) == rows, "there is one a row"
        for one in self.rows:
            one.check(1)

    def words(self, logits: Float[Tensor, "b k v"], starts: Sequence[int]) -> Int64[Tensor, "b k"]:
        """See `Chooser`."""
        alone = zip(self.rows, logits.split(1), starts, strict=True)
        return torch.cat([one.words(row, [start]) for one, row, start in alone])

    def among(self, row: int, place: int, words: Sequence[int], chances: Sequence[float], v: int) -> int:
        """See `Chooser`."""
        return self.rows[row].among(0, place, words, chances, v)

    def noise(self, row: int, place: int, v: int) -> Float[Tensor, " v"]:
        """See `Chooser`."""
        return self.rows[row].noise(0, place, v)

    def forget(self, row: int, place: int) -> None:
        """See `Chooser`."""
        self.rows[row].forget(0, place)


class Later(Chooser):
    """What another chooses, its places counted from a later one on.

    Args:
        choose: of the same rows.
        first: its place that is 0 here.
    """

    def __init__(self, choose: Chooser, first: int) -> None:
        super().__init__()
        self.choose, self.first = choose, first

    def check(self, rows: int) -> None:
        """See `Chooser`."""
        self.choose.check(rows)

    def words(self, logits: Float[Tensor, "b k v"], starts: Sequence[int]) -> Int64[Tensor, "b k"]:
        """See `Chooser`."""
        return self.choose.words(logits, [start + self.first for start in starts])

    def among(self, row: int, place: int, words: Sequence[int], chances: Sequence[float], v: int) -> int:
        """See `Chooser`."""
        return self.choose.among(row, place + self.first, words, chances, v)

    def noise(self, row: int, place: int, v: int) -> Float[Tensor, " v"]:
        """See `Chooser`."""
        return self.choose.noise(row, place + self.first, v)

    def forget(self, row: int, place: int) -> None:
        """See `Chooser`."""
        self.choose.forget(row, place + self.first)
