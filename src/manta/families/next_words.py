"""What a left-to-right model reads of a request, with how each of its words is chosen."""

from collections.abc import Sequence
from typing import NamedTuple

from manta.autoregressive import Chooser
from manta.runtime import make_generator


class Line(NamedTuple):
    """A request in tokens, and how its words are chosen."""

    prompt: list[int]
    """Its tokens."""
    seed: int
    """Of what is drawn."""
    temperature: float = 0.0
    """See `Chooser`."""
    top_k: int | None = None
    """See `truncate`."""
    top_p: float = 1.0
    """See `truncate`."""

    @property
    def drawn(self) -> tuple[float, int | None, float]:
        """What lines have to share to be chosen from at once."""
        return self.temperature, self.top_k, self.top_p

    def chooser(self, seeds: Sequence[int]) -> Chooser:
        """Of rows that are chosen from as this one is."""
        generators = [make_generator(seed) for seed in seeds] if self.temperature > 0 else ()
        return Chooser(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, generators=generators)
