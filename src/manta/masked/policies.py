"""Policies of masked decoding: what to commit in each call. Each reads like its paper; `decode` holds the loop."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError
from manta.masked.decode import Canvas, Ends, Policy, leftmost, within
from manta.masked.sampling import WordSampler


def top(values: Float[Tensor, "b n"], count: Int64[Tensor, "b"]) -> Bool[Tensor, "b n"]:
    """The `count` largest finite values of each row; the leftmost of equal ones."""
    rank = values.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < count[:, None]) & values.isfinite()


def everything(canvas: Canvas) -> Ends:
    """The whole canvas as a span."""
    zero = canvas.writable.new_zeros(len(canvas.tokens), dtype=torch.long)
    return zero, zero + canvas.tokens.shape[1]


def blocks_of(canvas: Canvas, block_length: int) -> Int64[Tensor, "b n"]:
    """Number of the block that each position lies in; blocks are counted from the first writable position."""
    place = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
    return (place - leftmost(canvas.writable)[:, None]).div(block_length, rounding_mode="floor")


def block_ends(canvas: Canvas, open_: Bool[Tensor, "b n"], block_length: int | None) -> Ends:
    """The block of the leftmost open position."""
    if block_length is None:
        return everything(canvas)
    n = canvas.tokens.shape[1]
    first = leftmost(canvas.writable).clamp_max(n - 1)
    begin = first + (leftmost(open_) - first).div(block_length, rounding_mode="floor") * block_length
    return begin, (begin + block_length).clamp_max(n)


class Windowed(Policy):
    """Policies that look at a window: they commit its words that are sure, and under a budget their share at least.

    What the share lacks is made up with the surest words of the window, then of the windows that follow it to the
    right, one after the other.
    """

    @abstractmethod
    def sure(
        self, canvas: Canvas, window: Bool[Tensor, "b n"], confidence: Float[Tensor, "b n"]
    ) -> Bool[Tensor, "b n"]:
        """Positions of the window to commit whatever the budget: at least one of every row that has any.

        Args:
            canvas: as it stands.
            window: open positions within the span.
            confidence: of the words proposed, −inf outside the window.
        """

    def choose(self, canvas, open_, confidence, sampler):
        window = within(open_, *self.span(canvas, open_))
        commit = window & self.sure(canvas, window, confidence.masked_fill(~window, -torch.inf))
        share = torch.minimum(self.share(canvas), open_.sum(1))
        for _ in range(open_.shape[1]):
            lacking = share - commit.sum(1)
            if not bool((lacking > 0).any()):
                break
            commit |= top(confidence.masked_fill(~window | commit, -torch.inf), lacking)
            window = within(open_ & ~commit, *self.span(canvas, open_ & ~commit))
        return commit


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig:
    """LLaDA's decoder: a fixed number of words a call, the surest first (low-confidence remasking) or at random."""

    kind: Literal["confidence"] = "confidence"
    """Which decoder this is."""
    order: str = "confidence"
    """`confidence`, or `random`."""
    num_steps: int = 16
    """Network calls over the whole canvas; shared evenly among the blocks, the remainder first."""
    block_length: int | None = None
    """Words of a block, written from left to right; None for a single block."""

    def __post_init__(self) -> None:
        if self.order not in ("confidence", "random"):
            raise ConfigError(f"order should be confidence or random, received {self.order!r}")
        _check(self.num_steps, "num_steps")
        if self.block_length is not None:
            _check(self.block_length, "block_length")

    def build(self) -> "Confidence":
        """A policy for one canvas."""
        return Confidence(self)


class Confidence(Windowed):
    """Commit an even share of the block in each call: with m masked words and s calls left for it, ⌈m/s⌉ of them.

    Where there are more blocks left than calls, an even share of all words, block after block. In random order with a
    call a word this is exact ancestral sampling, as each word is drawn given all before it. Source: Nie et al., LLaDA,
    arXiv 2502.09992.
    """

    refresh_on_move = True

    def __init__(self, config: ConfidenceConfig) -> None:
        self.config = config
        self.num_steps, self.exact = config.num_steps, config.order == "random"

    def span(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        return block_ends(canvas, open_, self.config.block_length)

    def share(self, canvas: Canvas) -> Int64[Tensor, "b"]:
        left = canvas.calls_left
        assert left is not None
        return torch.where(self._blocks(canvas, canvas.masked) > left, super().share(canvas), 0)

    def sure(self, canvas, window, confidence):
        left, budget = canvas.calls_left, canvas.budget
        assert left is not None
        assert budget is not None
        later = self._blocks(canvas, canvas.masked) - 1
        each = budget // self._blocks(canvas, canvas.writable).clamp_min(1)
        calls = (left - later * each).clamp_min(1)
        words = within(canvas.masked, *self.span(canvas, window)).sum(1)
        return top(confidence, (words + calls - 1) // calls)

    def choose(self, canvas, open_, confidence, sampler):
        if self.config.order == "random":
            draws = sampler.uniform((sampler.width,))[:, : open_.shape[1]].to(confidence)
            confidence = draws.masked_fill(~open_, -torch.inf)
        return super().choose(canvas, open_, confidence, sampler)

    def _blocks(self, canvas: Canvas, mask: Bool[Tensor, "b n"]) -> Int64[Tensor, "b"]:
        """Blocks that hold a position of the mask."""
        if self.config.block_length is None:
            return mask.any(1).long()
        block = blocks_of(canvas, self.config.block_length).masked_fill(~mask, -1)
        # The mask's blocks increase from left to right: a new one begins where the largest so far is exceeded.
        highest = torch.nn.functional.pad(block.cummax(1).values, (1, 0), value=-1)[:, :-1]
        return (block > highest).sum(1)


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig:
    """Fast-dLLM's decoder: every word surer than a threshold, and always the surest."""

    kind: Literal["threshold"] = "threshold"
    """Which decoder this is."""
    threshold: float = 0.9
    """Least confidence of a word that is committed beside the surest one."""
    factor: float | None = None
    """Instead of the threshold: the n surest words are committed while the n-th has at least 1 − factor/(n + 1)."""
    block_length: int | None = None
    """Words of a block, written from left to right; None for a single block."""

    def __post_init__(self) -> None:
        if self.factor is not None and self.factor <= 0:
            raise ConfigError(f"factor should be above 0, received {self.factor}")
        if self.block_length is not None:
            _check(self.block_length, "block_length")

    def build(self) -> "Threshold":
        """A policy for one canvas."""
        return Threshold(self)


class Threshold(Windowed):
    """Commit i if C_i ≥ min(τ, max C): parallel where the model is sure, word by word where it is not.

    Source: Wu et al., Fast-dLLM, arXiv 2505.22618.
    """

    refresh_on_move = True

    def __init__(self, config: ThresholdConfig) -> None:
        self.config = config

    def span(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        return block_ends(canvas, open_, self.config.block_length)

    def sure(self, canvas, window, confidence):
        if self.config.factor is None:
            return above(confidence, self.config.threshold)
        ranked, order = confidence.sort(dim=1, descending=True, stable=True)
        number = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
        fits = (ranked >= 1 - self.config.factor / (number + 1)).cumprod(1).bool()
        fits[:, 0] = True
        return torch.zeros_like(window).scatter(1, order, fits) & window


def above(confidence: Float[Tensor, "b n"], threshold: float) -> Bool[Tensor, "b n"]:
    """`C_i ≥ min(τ, max C)`; of several that tie below τ for the maximum, the leftmost."""
    return ((confidence >= threshold) & confidence.isfinite()) | top(
        confidence, torch.ones_like(confidence[:, 0]).long()
    )


@dataclass(frozen=True, kw_only=True)
class BlockConfig(ThresholdConfig):
    """Threshold decoding in blocks from left to right: the baseline that deferred commitment is measured against."""

    kind: Literal["block"] = "block"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which decoder this is."""
    block_length: int | None = 32
    """Words of a block."""


@dataclass(frozen=True, kw_only=True)
class DeferredConfig:
    """Deferred commitment decoding: a window that slides, and grows where words are put off."""

    kind: Literal["deferred"] = "deferred"
    """Which decoder this is."""
    threshold: float = 0.9
    """Least confidence of a word that is committed beside the surest one of the window."""
    window_masked: int = 16
    """s_init: most masked words in the window."""
    window_width: int = 128
    """s_max: most positions in the window."""
    rounds: int = 0
    """Times that the least certain words are taken back and written again, once all are written."""
    share: float = 0.25
    """Share of the words taken back in a round."""

    def __post_init__(self) -> None:
        _check(self.window_masked, "window_masked")
        _check(self.window_width, "window_width")
        if self.rounds < 0 or not 0 < self.share <= 1:
            raise ConfigError(f"rounds should be 0 or more and share in (0, 1], received {self.rounds}, {self.share}")

    def build(self) -> "Deferred":
        """A policy for one canvas."""
        return Deferred(self)


class Deferred(Windowed):
    """Put a word off until it is sure, and keep looking on to its right meanwhile.

        L ← leftmost open position (a masked one, see `decode`)
        R ← the largest i ≤ L + s_max with at most s_init open positions in [L, i)
        commit i in [L, R) if C_i ≥ min(τ, max C)

    Where a block decoder must commit unsure words at its block's end, without the context that follows, the window
    moves on past them. Source: "Deferred Commitment Decoding for Diffusion Language Models", arXiv 2601.02076; rounds
    of taking back are ours, after ReMDM (arXiv 2503.00307).
    """

    def __init__(self, config: DeferredConfig) -> None:
        self.config = config
        self.rounds_left: Tensor | None = None

    def span(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        left, n = leftmost(open_), open_.shape[1]
        # Open positions in [L, i], counted for every i: the window ends before the first that exceeds s_init.
        fits = open_.cumsum(1) <= self.config.window_masked
        right = fits.long().cumprod(1).sum(1)
        return left, torch.minimum(right, (left + self.config.window_width).clamp_max(n))

    def sure(self, canvas, window, confidence):
        return above(confidence, self.config.threshold)

    def share(self, canvas: Canvas) -> Int64[Tensor, "b"]:
        """An even share of the calls that the rounds to come leave: each round keeps calls by its words, one at least.

        Where the budget has fewer calls than rounds, the last rounds are left out.
        """
        words, left = canvas.owed, canvas.calls_left
        if left is None:
            return torch.zeros_like(words)
        back = self._taken_back(canvas)
        rounds = self._rounds_left(canvas).clamp_max(left - 1)
        each = (left * back // (words + rounds * back).clamp_min(1)).clamp_min(1)
        calls = (left - rounds * each).clamp_min(1)
        return (words + calls - 1) // calls

    def most_calls(self, canvas: Canvas) -> int:
        return super().most_calls(canvas) + self.config.rounds * int(self._taken_back(canvas).max())

    def remask(self, canvas: Canvas, sampler: WordSampler) -> Bool[Tensor, "b n"] | None:
        rounds = self._rounds_left(canvas)
        finished = ~canvas.masked.any(1) & (rounds > 0)
        if not bool(finished.any()):
            return None
        self.rounds_left = rounds - finished.long()
        return least(canvas, self._taken_back(canvas)) & finished[:, None]

    def _rounds_left(self, canvas: Canvas) -> Int64[Tensor, "b"]:
        if self.rounds_left is None:
            self.rounds_left = torch.full_like(canvas.total, self.config.rounds)
        return self.rounds_left

    def _taken_back(self, canvas: Canvas) -> Int64[Tensor, "b"]:
        """Words of a round."""
        return (canvas.total * self.config.share).ceil().long()


def least(canvas: Canvas, count: Int64[Tensor, "b"]) -> Bool[Tensor, "b n"]:
    """The `count` least certain committed words of each row."""
    written = canvas.writable & ~canvas.masked
    return top((-canvas.confidence).masked_fill(~written, -torch.inf), count)


@dataclass(frozen=True, kw_only=True)
class RemaskConfig:
    """ReMDM's sampler: words may be taken back, so that an early mistake is not final."""

    kind: Literal["remask"] = "remask"
    """Which decoder this is."""
    num_steps: int = 32
    """Network calls."""
    schedule: str = "cap"
    """`cap`: σ = min(η, σ_max) throughout; `loop`: words are taken back between t_on and t_off, at constant noise."""
    eta: float = 0.02
    """η: most probability that a word is taken back in a step."""
    t_on: float = 0.55
    """Time at which the loop begins, 1 = all masked."""
    t_off: float = 0.05
    """Time at which it ends."""
    alpha_on: float = 0.9
    """Share of words that stand during the loop."""

    def __post_init__(self) -> None:
        _check(self.num_steps, "num_steps")
        if self.schedule not in ("cap", "loop"):
            raise ConfigError(f"schedule should be cap or loop, received {self.schedule!r}")
        if not (0 <= self.eta <= 1 and 0 <= self.t_off < self.t_on <= 1 and 0 < self.alpha_on < 1):
            raise ConfigError("eta and alpha_on should lie in [0, 1], and 0 ≤ t_off < t_on ≤ 1")

    def build(self) -> "Remask":
        """A policy for one canvas."""
        return Remask(self)


class Remask(Policy):
    """Sample the reverse process with remasking, with α_t the share of words that stand at time t.

        σ_max = min(1, (1 − α_s)/α_t)
        a word is taken back with probability σ
        a masked position stays masked with probability (1 − α_s − σ α_t)/(1 − α_t)

    η = 0 is ancestral sampling of MDLM. Source: Wang et al., ReMDM, arXiv 2503.00307.
    """

    exact = True

    def __init__(self, config: RemaskConfig) -> None:
        self.config = config
        self.num_steps = config.num_steps
        self.back: Tensor | None = None

    def span(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        return everything(canvas)

    def alphas(self, canvas: Canvas) -> tuple[float, float, float]:
        """α_t, α_s and σ of the present call."""
        config, count = self.config, canvas.budget
        assert count is not None
        t, s = 1 - (canvas.calls - 1) / count, 1 - canvas.calls / count
        if config.schedule == "cap":
            before, after = 1 - t, 1 - s
            return before, after, min(config.eta, self._most(before, after))
        before, after = self._looped(t), self._looped(s)
        looping = config.t_off < t <= config.t_on
        return before, after, min(config.eta, self._most(before, after)) if looping else 0.0

    def _looped(self, t: float) -> float:
        """α rises to α_on until t_on, stands during the loop, and rises to 1 after t_off."""
        config = self.config
        if t > config.t_on:
            return config.alpha_on * (1 - t) / max(1e-9, 1 - config.t_on)
        if t > config.t_off:
            return config.alpha_on
        return 1 - (1 - config.alpha_on) * t / max(1e-9, config.t_off)

    @staticmethod
    def _most(before: float, after: float) -> float:
        return 1.0 if before == 0 else min(1.0, (1 - after) / before)

    def choose(self, canvas, open_, confidence, sampler):
        before, after, sigma = self.alphas(canvas)
        draws = sampler.uniform((2, sampler.width))[..., : open_.shape[1]].to(open_.device)
        self.back = (draws[:, 1] < sigma) & canvas.writable & ~canvas.masked
        if canvas.calls_left == 1:
            return open_
        stay = (1 - after - sigma * before) / max(1e-12, 1 - before)
        return open_ & (draws[:, 0] >= stay)

    def done(self, canvas: Canvas) -> Bool[Tensor, "b"]:
        """Rows without masked words, once none will be taken back."""
        over = self.config.eta == 0 or canvas.calls == canvas.budget
        return ~canvas.masked.any(1) & ((canvas.total == 0) | over)

    def remask(self, canvas: Canvas, sampler: WordSampler) -> Bool[Tensor, "b n"] | None:
        return self.back


@dataclass(frozen=True, kw_only=True)
class FirstHittingConfig:
    """The first-hitting sampler: exact ancestral sampling, one word a call, at a random place."""

    kind: Literal["first_hitting"] = "first_hitting"
    """Which decoder this is."""

    def build(self) -> "FirstHitting":
        """A policy for one canvas."""
        return FirstHitting()


class FirstHitting(Policy):
    """Commit one masked position, uniformly chosen: where the continuous-time reverse process first unmasks one.

    Under a budget, an even share of them: places as random as before and words still the model's own, but those of one
    call are drawn without a look at each other. A network that does not see the time needs none of the hitting times
    themselves. Source: Zheng et al., "Masked Diffusion Models are Secretly Time-Agnostic Masked Models", arXiv
    2409.02908.
    """

    exact = True

    def span(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        return everything(canvas)

    def choose(self, canvas, open_, confidence, sampler):
        draws = sampler.uniform((sampler.width,))[:, : open_.shape[1]].to(open_.device)
        return top(draws.masked_fill(~open_, -torch.inf), self.share(canvas).clamp_min(1))


def _check(value: int, name: str) -> None:
    if value < 1:
        raise ConfigError(f"{name} should be at least 1, received {value}")
