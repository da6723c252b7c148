"""Where in time to train and to step: a density fitted to the measured loss, and fixed ones to compare it with.

The loss is measured in bins of log noise `gamma = ln((1 - t) / t)` while training. Where it changes with gamma, the
state tells the network something that it did not know with a little more noise; there training and solver steps pay.
LangFlow (arXiv 2604.11748) fits a Gumbel curve to the same measurement; here the curve is only assumed to rise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from manta.errors import CheckpointError, ConfigError, TrainingError, UsageError
from manta.flow.path import log_noise_ratio, time_of_log_noise_ratio
from manta.step import observe


@dataclass(frozen=True, kw_only=True)
class TimeDensityConfig:
    """How training times and the sampling grid are chosen."""

    kind: Literal["calibrated", "uniform", "logit_normal"] = "calibrated"
    """`calibrated` is fitted to the measured loss; the others are fixed, for comparison."""
    uniform_share: float = 0.2
    """Share of the mass that is uniform in t, in (0, 1], so that every time is visited. `calibrated` only."""
    num_bins: int = 48
    """Bins of log noise in which the loss is measured."""
    gamma_limit: float = 6.0
    """Bins cover log noise in [-gamma_limit, gamma_limit], in nats; times beyond fall into the outermost bins."""
    horizon: int = 8192
    """Memory of the loss estimate, in observations (rows) over all bins."""
    warmup: int = 2048
    """Observations before the calibrated density is used; until then it is uniform in t."""
    logit_mean: float = 0.0
    """Mean of logit(t), below 0 towards noise. `logit_normal` only."""
    logit_std: float = 1.0
    """Standard deviation of logit(t). `logit_normal` only."""

    def __post_init__(self) -> None:
        if not 0 < self.uniform_share <= 1:
            raise ConfigError(f"uniform_share must be in (0, 1], got {self.uniform_share}")
        if self.num_bins < 4 or self.horizon < 1 or self.warmup < 1:
            raise ConfigError(
                "num_bins must be 4 or more, horizon and warmup 1 or more, "
                f"got {self.num_bins}, {self.horizon}, {self.warmup}"
            )
        if self.gamma_limit <= 0 or self.logit_std <= 0:
            raise ConfigError(f"gamma_limit and logit_std must be above 0, got {self.gamma_limit}, {self.logit_std}")

    def build(self) -> "TimeDensity":
        """Return the density of this kind, without observations."""
        return KINDS[self.kind](self)


def isotonic_regression(values: Float[Tensor, "n"], weights: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the non-decreasing sequence nearest to `values` in weighted squares, by pooling adjacent violators.

    SciPy and scikit-learn have it too, but training does without them.

    Args:
        values: measurements in order.
        weights: their weights, above 0.

    Returns:
        The fit, float64.

    Source: Ayer et al. 1955; Barlow et al. 1972.
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, length = pools.pop()
            total = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / total, total, length + pool[2])
        pools.append(pool)
    means = torch.tensor([pool[0] for pool in pools], dtype=torch.float64)
    return means.repeat_interleave(torch.tensor([pool[2] for pool in pools]))


def implied_likelihood(t: Float[Tensor, "n"], squared_error: Float[Tensor, "n"], snr_max: float | None = None) -> float:
    """Information in nats that the state gains about the clean latents between pure noise and `snr_max`.

        I(clean; state at snr_max) = 1/2 integral_0^snr_max E|clean - clean_hat|^2 d snr,    snr = (t / (1 - t))^2

    (I-MMSE: Guo, Shamai & Verdu 2005). It is exact for the exact posterior mean and an upper bound for a network's
    estimate. Its relation to the prior of d unit Gaussians, whose integrand is d / (1 + snr) and whose information is
    (d / 2) ln(1 + snr_max): the differential entropy of the latents is
    (d / 2) ln(2 pi e) - 1/2 integral_0^inf (d / (1 + snr) - E|clean - clean_hat|^2) d snr, so what this figure falls
    short of the Gaussian's is what the flow knows about the latents beyond their scale. Latents that spell a text
    with a noise floor s carry no more about it beyond snr_max = 1 / s^2.

    Args:
        t: times of the measurements in (0, 1), in any order, at least two.
        squared_error: E|clean - clean_hat|^2 at those times, summed over the dimensions counted.
        snr_max: end of the integral; the largest measured if left out.

    Returns:
        The integral by the trapezoid rule over snr, the first measurement being extended to snr = 0.

    Raises:
        UsageError: with fewer than two measurements, or if `snr_max` is not above 0.
    """
    if len(t) < 2 or (snr_max is not None and snr_max <= 0):
        raise UsageError(f"two measurements and snr_max above 0 are needed, got {len(t)} and {snr_max}")
    snr, order = torch.sort((t.double() / (1 - t.double())) ** 2)
    error = squared_error.double()[order]
    snr, error = torch.cat([snr.new_zeros(1), snr]), torch.cat([error[:1], error])
    if snr_max is not None and snr_max < float(snr[-1]):
        last = int(torch.searchsorted(snr, torch.tensor(snr_max, dtype=torch.float64)))
        share = (snr_max - snr[last - 1]) / (snr[last] - snr[last - 1])
        at_end = torch.lerp(error[last - 1], error[last], share)
        snr, error = torch.cat([snr[:last], snr.new_tensor([snr_max])]), torch.cat([error[:last], at_end[None]])
    return 0.5 * float(torch.trapezoid(error, snr))


class TimeDensity(ABC):
    """A density over t in [0, 1] given by its quantiles, and a running measurement of the loss against log noise.

    Every kind measures, so that the implied likelihood can be logged; only `CalibratedTime` learns from it.
    """

    def __init__(self, config: TimeDensityConfig) -> None:
        self.config = config
        edges = torch.linspace(-config.gamma_limit, config.gamma_limit, config.num_bins + 1, dtype=torch.float64)
        self.gammas = (edges[1:] + edges[:-1]) / 2
        self._inner_edges = edges[1:-1].contiguous()
        self._sums = torch.zeros(config.num_bins, dtype=torch.float64)
        self._weights = torch.zeros(config.num_bins, dtype=torch.float64)
        self._num_observed = 0

    @property
    def calibrated(self) -> bool:
        """Whether enough has been observed: `warmup` observations, in two bins or more."""
        return self._num_observed >= self.config.warmup and int((self._weights > 0).sum()) >= 2

    @abstractmethod
    def quantile(self, q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the times, float64, below which a share `q` in [0, 1] of the mass lies; 0 and 1 at the ends."""

    def sample(self, num: int, generator: torch.Generator) -> Float[Tensor, "num"]:
        """Draw training times, one from each of `num` strata of equal mass, in random order.

        Args:
            num: number of times, e.g. the rows of a batch.
            generator: source of randomness, on any device.

        Returns:
            Times in [0, 1), float32, on the CPU. Each is distributed by the density; together they cover it.
        """
        jitter = torch.rand(num, dtype=torch.float64, generator=generator, device=generator.device).cpu()
        strata = torch.randperm(num, generator=generator, device=generator.device).cpu()
        t = self.quantile((strata + jitter) / num).float()
        return t.clamp_max(1 - torch.finfo(torch.float32).eps)

    def grid(self, num_steps: int) -> Float[Tensor, "points"]:
        """Return the sampling grid `0 = t_0 < ... < t_N = 1`, float64: the quantiles of k / N.

        Raises:
            UsageError: if `num_steps` is below 1.
        """
        if num_steps < 1:
            raise UsageError(f"num_steps must be 1 or more, got {num_steps}")
        return self.quantile(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64))

    def observe(self, t: Float[Tensor, "*shape"], loss: Float[Tensor, "*shape"]) -> None:
        """Take in measured losses of the clean-state estimate, older ones fading with the configured horizon.

        All bins fade alike: a bin keeps its mean, and the weight of its recent visits.

        Args:
            t: times in [0, 1] at which the loss was measured; leave out known positions (t = 1).
            loss: one value per time, e.g. the squared error per dimension of a row.

        Raises:
            TrainingError: if a loss is not finite.
        """
        loss = loss.detach().flatten().to("cpu", torch.float64)
        if not bool(loss.isfinite().all()):
            raise TrainingError(f"the time density was given a loss that is not finite: {loss.tolist()}")
        gamma = log_noise_ratio(t.detach().flatten().to("cpu", torch.float64))
        observe(self, torch.bucketize(gamma, self._inner_edges), loss)

    def take(self, index: Int64[Tensor, "k"], loss: Float[Tensor, "k"]) -> None:
        """Take in losses by the bins that they were measured in."""
        fading = (1 - 1 / self.config.horizon) ** len(loss)
        self._sums = (fading * self._sums).index_add(0, index, loss)
        self._weights = (fading * self._weights).index_add(0, index, torch.ones_like(loss))
        self._num_observed += len(loss)

    def measured_loss(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Return (gamma, mean loss, weight) of the bins that were visited, gamma rising, float64."""
        seen = self._weights > 0
        return self.gammas[seen], self._sums[seen] / self._weights[seen], self._weights[seen]

    def implied_likelihood(self, num_dims: int, snr_max: float | None = None) -> float:
        """Return the information in nats that `implied_likelihood` finds in the measured losses.

        Args:
            num_dims: dimensions to count, if the observed loss is the squared error per dimension: the channels of
                a position for nats per position, 1 if the observed loss is the sum already.
            snr_max: end of the integral, 1 / noise floor squared; the last bin if left out.

        Raises:
            UsageError: if fewer than two bins have been observed.
        """
        gammas, losses, _ = self.measured_loss()
        return implied_likelihood(time_of_log_noise_ratio(gammas), num_dims * losses, snr_max)

    def state_dict(self) -> dict[str, Float[Tensor, "bins"] | Int64[Tensor, ""]]:
        """Return the measurement as tensors; loading it continues bit for bit."""
        return {
            "sums": self._sums.clone(),
            "weights": self._weights.clone(),
            "num_observed": torch.tensor(self._num_observed),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`.

        Raises:
            CheckpointError: if an entry is missing or was measured in another number of bins.
        """
        missing = {"sums", "weights", "num_observed"} - set(state)
        if missing or any(len(state[name]) != self.config.num_bins for name in ("sums", "weights")):
            found = {name: tuple(value.shape) for name, value in state.items()}
            raise CheckpointError(f"the time density has {self.config.num_bins} bins, the checkpoint holds {found}")
        self._sums, self._weights = state["sums"].clone(), state["weights"].clone()
        self._num_observed = int(state["num_observed"])


class CalibratedTime(TimeDensity):
    """Mass where the measured loss changes with log noise, over a uniform share.

    The loss against gamma is made to rise by isotonic regression; between neighbouring bins the mass is the rise,
    `|d loss / d gamma| d gamma`, normalised, and linear in t. To it the uniform share is added. Before `calibrated`,
    and while the measured loss does not rise at all, the density is uniform in t.
    """

    def quantile(self, q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        times, masses = self._distribution()
        q = q.double()
        right = torch.searchsorted(masses, q, right=True).clamp(1, len(masses) - 1)
        share = (q - masses[right - 1]) / (masses[right] - masses[right - 1])
        return torch.lerp(times[right - 1], times[right], share)

    def _distribution(self) -> tuple[Tensor, Tensor]:
        """Knots of the cumulative distribution: times from 0 to 1 and the mass below each."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        if not self.calibrated:
            return ends, ends
        gammas, losses, weights = self.measured_loss()
        rises = isotonic_regression(losses, weights).diff().flip(0)
        times = torch.cat([ends[:1], time_of_log_noise_ratio(gammas).flip(0), ends[1:]])
        if not float(rises.sum()) > 0:
            return ends, ends
        # No bin lies beyond the outermost ones, so the two end intervals hold uniform mass only.
        informed = torch.nn.functional.pad(rises / rises.sum(), (1, 1))
        share = self.config.uniform_share
        masses = torch.cumsum((1 - share) * informed + share * times.diff(), 0)
        return times, torch.cat([ends[:1], masses / masses[-1]])


class UniformTime(TimeDensity):
    """Times uniform in [0, 1]."""

    def quantile(self, q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return q.double()


class LogitNormalTime(TimeDensity):
    """logit(t) normal with a set mean and standard deviation (Esser et al. 2024, arXiv 2403.03206)."""

    def quantile(self, q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.special.ndtri(q.double()))


KINDS: dict[str, type[TimeDensity]] = {
    "calibrated": CalibratedTime,
    "uniform": UniformTime,
    "logit_normal": LogitNormalTime,
}
