"""One loop that writes the words of a masked model; a policy says where it looks, what it commits and takes back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.masked.sampling import WordSampler


@runtime_checkable
class SpanDenoiser(Protocol):
    """A masked model that can compute a span of positions, reading the others as it last computed them."""

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """Logits of the positions [start, stop); (0, n) computes all and refreshes what is kept."""
        ...


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What a decoder computes anew in each call. An approximation: words outside the span are read as they were.

    Source: Wu et al., Fast-dLLM, arXiv 2505.22618 (prefix, dual); Ma et al., dKV-Cache, arXiv 2505.15781 (delay).
    """

    kind: str = "none"
    """`none` computes everything; `prefix` the window and all after it; `dual` the window alone."""
    refresh: int = 32
    """Words written between full calls; 0 makes every call a full one. Block decoders also refresh at each block."""
    delay: int = 2
    """Positions before the window that are computed again: words just written get keys and values of their own."""

    def __post_init__(self) -> None:
        if self.kind not in ("none", "prefix", "dual"):
            raise ConfigError(f"cache kind should be none, prefix or dual, received {self.kind!r}")
        if self.refresh < 0 or self.delay < 0:
            raise ConfigError(f"cache refresh and delay should be 0 or more, received {self.refresh}, {self.delay}")


@dataclass
class Canvas:
    """Words of a batch while a decoder writes them."""

    tokens: Int64[Tensor, "b n"]
    """Words; the mask token where none is committed."""
    writable: Bool[Tensor, "b n"]
    """Where words may be written; all others are frozen."""
    masked: Bool[Tensor, "b n"]
    """Writable positions without a word."""
    confidence: Float[Tensor, "b n"]
    """Confidence of each word when it was committed; infinite where it was given."""
    calls: int = 0
    """Network calls so far."""
    processed: int = 0
    """Positions computed so far, over all calls and rows."""

    @property
    def total(self) -> Int64[Tensor, "b"]:
        """Words to be written in each row, those already written included."""
        return self.writable.sum(1)

    @property
    def leftmost(self) -> Int64[Tensor, "b"]:
        """First position without a word; n where there is none."""
        n = self.masked.shape[1]
        place = torch.arange(n, device=self.masked.device)
        return torch.where(self.masked, place, n).amin(1)


class Policy(ABC):
    """What a decoder does: three small decisions, each for all rows at once and for each row alone."""

    refresh_on_move = False
    """Compute everything when the span begins elsewhere than in the last call (block decoders)."""

    @abstractmethod
    def span(self, canvas: Canvas) -> tuple[Int64[Tensor, "b"], Int64[Tensor, "b"]]:
        """First position that may be committed in this call, and the one after the last."""

    @abstractmethod
    def choose(
        self, canvas: Canvas, window: Bool[Tensor, "b n"], confidence: Float[Tensor, "b n"], sampler: WordSampler
    ) -> Bool[Tensor, "b n"]:
        """Positions of the window to commit: at least one of every row that has any.

        Args:
            canvas: as it stands.
            window: masked positions within the span.
            confidence: of the words proposed, −inf outside the window.
            sampler: source of randomness, if the policy draws.
        """

    def done(self, canvas: Canvas) -> Bool[Tensor, "b"]:
        """Rows that are finished."""
        return ~canvas.masked.any(1)

    def remask(self, canvas: Canvas, sampler: WordSampler) -> Bool[Tensor, "b n"] | None:
        """Committed positions to take back before the next call; None for none."""
        return None


@torch.no_grad()
def decode(
    denoiser: SpanDenoiser,
    tokens: Int64[Tensor, "b n"],
    policy: Policy,
    *,
    mask_id: int,
    sampler: WordSampler,
    cache: CacheConfig | None = None,
    end_id: int | None = None,
    ends_last: bool = False,
    max_calls: int | None = None,
) -> Iterator[Canvas]:
    """Write every masked position; yields the canvas after each network call.

        until every row is done:
            window ← masked positions in policy.span
            word, confidence ← sampler(denoiser(tokens))        the mask token excluded
            commit policy.choose(window, confidence)
            an end committed at e ends the row: all later positions become the end
            take back policy.remask

    Args:
        denoiser: logits of a span of positions.
        tokens: the canvas; `mask_id` where words are to be written, everything else is frozen.
        policy: what to commit; a fresh one for every canvas.
        mask_id: the mask token.
        sampler: words and confidences.
        cache: what to compute anew; only for a single row, as the span would depend on the batch.
        end_id: the token that ends a row; None where rows have no end of their own.
        ends_last: instead of ending a row where an end is committed, commit ends only when nothing else is left: an end
            is sure before the words are, and settled early it would shorten the text.
        max_calls: budget of network calls: enough words are committed in each call to keep to it.

    Raises:
        UsageError: for a cache with several rows, or a budget below 1.
    """
    cache = cache or CacheConfig()
    if cache.kind != "none" and len(tokens) > 1:
        raise UsageError(f"the {cache.kind} cache serves one row at a time, received {len(tokens)}")
    if max_calls is not None and max_calls < 1:
        raise UsageError(f"a budget of network calls should be at least 1, received {max_calls}")
    writable = tokens == mask_id
    confidence = torch.full(tokens.shape, torch.inf, dtype=torch.float64, device=tokens.device)
    canvas = Canvas(tokens.clone(), writable, writable.clone(), confidence)
    span = _Span(cache, policy.refresh_on_move)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    while not bool(policy.done(canvas).all()):
        left, right = policy.span(canvas)
        start, stop = span.of(canvas, left, right)
        if max_calls is not None and canvas.calls + 1 >= max_calls:
            start, stop = 0, tokens.shape[1]  # what is left has to be committed now, wherever it is
        logits = denoiser(canvas.tokens, start, stop).float()
        logits[..., mask_id] = -torch.inf
        canvas.calls += 1
        canvas.processed += len(tokens) * (stop - start)
        word, sure = (_on_canvas(part, start, tokens) for part in sampler(logits, start))
        window = canvas.masked & (place >= left[:, None]) & (place < right[:, None])
        if ends_last:
            words = canvas.masked & (word != end_id)
            window &= (word != end_id) | ~words.any(1, keepdim=True)
        commit = window & policy.choose(canvas, window, sure.masked_fill(~window, -torch.inf), sampler)
        if max_calls is not None:
            commit |= _owed(canvas, commit, sure, start, stop, max_calls)
        canvas.tokens = torch.where(commit, word, canvas.tokens)
        canvas.confidence = torch.where(commit, sure, canvas.confidence)
        canvas.masked = canvas.masked & ~commit
        if end_id is not None and not ends_last:
            _end(canvas, commit, end_id)
        back = policy.remask(canvas, sampler)
        if back is not None and (max_calls is None or canvas.calls < max_calls):
            back = back & canvas.writable
            canvas.tokens = canvas.tokens.masked_fill(back, mask_id)
            canvas.masked = canvas.masked | back
        yield canvas


def _on_canvas(part: Tensor, start: int, tokens: Tensor) -> Tensor:
    """Values of a span, laid on the whole canvas."""
    whole = part.new_zeros(tokens.shape)
    whole[:, start : start + part.shape[1]] = part
    return whole


def _end(canvas: Canvas, commit: Bool[Tensor, "b n"], end_id: int) -> None:
    """End the rows that have just committed an end: every later writable position becomes the end."""
    ended = commit & (canvas.tokens == end_id)
    after = (ended.cumsum(1) > 0) & ~ended & canvas.writable
    canvas.tokens = canvas.tokens.masked_fill(after, end_id)
    canvas.masked = canvas.masked & ~after


def _owed(
    canvas: Canvas, commit: Bool[Tensor, "b n"], sure: Float[Tensor, "b n"], start: int, stop: int, max_calls: int
) -> Bool[Tensor, "b n"]:
    """Further positions that must be committed now to keep to the budget: the surest ones that were computed."""
    left = max(1, max_calls - canvas.calls + 1)
    owed = (canvas.masked.sum(1) + left - 1) // left - commit.sum(1)
    open_ = canvas.masked & ~commit
    open_[:, :start] = False
    open_[:, stop:] = False
    rank = sure.masked_fill(~open_, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    return open_ & (rank < owed[:, None])


class _Span:
    """Which positions a call computes.

    The span reaches from `delay` positions before the last call's left end (so that words committed then are computed
    with themselves in place) to the window's end (`dual`) or the canvas's (`prefix`). Everything is computed at the
    first call, when `refresh` words were written since it was last, and at a new block.
    """

    def __init__(self, cache: CacheConfig, refresh_on_move: bool) -> None:
        self.cache, self.refresh_on_move = cache, refresh_on_move
        self.left: int | None = None
        self.masked_at_refresh = 0

    def of(self, canvas: Canvas, left: Int64[Tensor, "b"], right: Int64[Tensor, "b"]) -> tuple[int, int]:
        n = canvas.tokens.shape[1]
        if self.cache.kind == "none":
            return 0, n
        masked, begin, end = int(canvas.masked.sum()), int(left.min()), int(right.max())
        moved = self.refresh_on_move and begin != self.left
        due = self.left is None or moved or masked > self.masked_at_refresh
        due = due or self.masked_at_refresh - masked >= self.cache.refresh
        before, self.left = self.left, begin
        if due or before is None:
            self.masked_at_refresh = masked
            return 0, n
        start = max(min(before, begin) - self.cache.delay, 0)
        return start, n if self.cache.kind == "prefix" else min(end + self.cache.delay, n)
