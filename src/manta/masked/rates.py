"""Which shares of hidden words a masked model trains on: those at which its loss varies least, found on the way."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import CheckpointError
from manta.step import observe

BINS: Final = 20
"""Equal intervals of (0, 1] in which the loss is measured; bounds lie between them."""
LEAST_WIDTH: Final = 0.5
"""Least width of an interval of shares, so that a model goes on seeing contexts of many sizes."""
EXPLORED: Final = 1 / 8
"""Share of the rows that are hidden at any share, which keeps every interval measured."""
HORIZON: Final = 20_000
"""Rows after which a measurement has faded to 1/e."""
WARMUP: Final = 2_000
"""Rows measured before any interval is preferred."""


class Rates:
    """The interval of shares from which a masked model's are drawn, chosen by the variance of its loss.

        x = Σ_hidden nats / (share · words)                       of a row, its share of hidden words given
        Var(low, high) = E x² − (E x)²,                           the share uniform between low and high
        low, high = argmin Var over intervals of a width of 1/2 at least

    Measured in the rows that are trained on, so that the search takes no call of its own. A share of the rows keeps to
    the whole of (0, 1]. Outside the interval the loss is weighed by that share alone: it is no bound any more, but the
    training signal of the clipped schedules. Likelihoods are measured at all shares alike, whatever it is.

    Source: clipped noise schedules: Arriola et al., "Block Diffusion", arXiv 2503.09573, who search anew at every
        validation; measuring the training rows themselves is ours.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)
        """Of weights, losses and squared losses, by the share."""
        self._rows = 0
        self.low, self.high = 0.0, 1.0

    def shares(self, strata: Float[Tensor, "b"], least: float) -> Float[Tensor, "b"]:
        """Shares of hidden words at the quantiles `strata` in [0, 1), least to 1.

        Args:
            strata: of the rows.
            least: the least share.
        """
        low = max(self.low, least)
        anywhere = least + (1 - least) * strata / EXPLORED
        within = low + (self.high - low) * (strata - EXPLORED) / (1 - EXPLORED)
        return torch.where(strata < EXPLORED, anywhere, within)

    @torch.no_grad()
    def observe(self, share: Float[Tensor, "b"], loss: Float[Tensor, "b"]) -> None:
        """Take in the losses of rows by the share of their words that was hidden, see `step.observe`."""
        share, loss = (values.detach().to("cpu", torch.float64) for values in (share, loss))
        observe(self, (share * BINS).long().clamp(0, BINS - 1), loss)

    def take(self, index: Int64[Tensor, "b"], loss: Float[Tensor, "b"]) -> None:
        """Take in losses by the intervals that they were measured in, and choose anew."""
        told = torch.stack([torch.ones_like(loss), loss, loss.square()])
        self._sums = ((1 - 1 / HORIZON) ** len(loss) * self._sums).index_add(1, index, told)
        self._rows += len(loss)
        if self._rows >= WARMUP:
            variances = self.variances()
            self.low, self.high = min(variances, key=lambda bounds: (variances[bounds], bounds))

    def variances(self) -> dict[tuple[float, float], float]:
        """The variance of a row's loss by the bounds of its share; infinite where nothing was measured yet."""
        weight, sums, squares = self._sums
        mean, square = sums / weight, squares / weight
        found, least = {}, round(LEAST_WIDTH * BINS)
        for low in range(BINS - least + 1):
            for high in range(low + least, BINS + 1):
                part = slice(low, high)
                value = float(square[part].mean() - mean[part].mean() ** 2)
                found[low / BINS, high / BINS] = torch.inf if value != value else value
        return found

    def state_dict(self) -> dict[str, Any]:
        """What is measured and chosen; loading it continues bit for bit."""
        return {"sums": self._sums.clone(), "rows": torch.tensor(self._rows)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict`.

        Raises:
            CheckpointError: it was measured in other intervals.
        """
        if "sums" not in state or state["sums"].shape != self._sums.shape or "rows" not in state:
            raise CheckpointError(f"rates are measured in {BINS} intervals of shares, the checkpoint holds others")
        self._sums, self._rows, self.low, self.high = state["sums"].clone(), int(state["rows"]), 0.0, 1.0
        if self._rows >= WARMUP:
            self.take(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64))
