"""One loop that writes the words of a masked model; a policy says where it looks, what it commits and takes back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.masked.sampling import WordSampler

Ends = tuple[Int64[Tensor, "b"], Int64[Tensor, "b"]]
"""First position of each row's span, and the one after its last."""


@runtime_checkable
class SpanDenoiser(Protocol):
    """A masked model that can compute a span of positions, reading the others as it last computed them."""

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """Logits of the positions [start, stop); (0, n) computes all and refreshes what is kept."""
        ...


@runtime_checkable
class Reshaper(Protocol):
    """What lays a canvas out anew after each call, see `manta.masked.elastic`."""

    most: int
    """Places of the longest canvas."""

    def bound(self, logits: Float[Tensor, "b n v"], canvas: "Canvas") -> None:
        """Forbid what there is no room for."""
        ...

    def decided(
        self, canvas: "Canvas", logits: Float[Tensor, "b n v"], word: Int64[Tensor, "b n"], commit: Bool[Tensor, "b n"]
    ) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Words and what is committed of them, changes of the layout among them."""
        ...

    def mark(self, canvas: "Canvas") -> None:
        """Let nobody take what will change for words."""
        ...

    def lay_out(self, canvas: "Canvas") -> None:
        """Carry the changes out."""
        ...


@runtime_checkable
class Scales(Protocol):
    """What settles more than words, see `manta.masked.coarse`."""

    def settle(
        self, canvas: "Canvas", logits: Float[Tensor, "b n v"], commit: Bool[Tensor, "b n"]
    ) -> Bool[Tensor, "b n"]:
        """Which of the words that a policy would commit are written now; what else is settled is put on the canvas."""
        ...


Judge = Callable[[], Float[Tensor, "b n"]]
"""Of the denoiser's last call: the probability that each word on the canvas is right."""


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
    """Confidence of each word when it was committed; infinite where it was given, or filled up behind an end."""
    budget: int | None = None
    """Network calls in all; None for as many as the policy takes."""
    calls: int = 0
    """Network calls so far, the present one included."""
    processed: int = 0
    """Positions computed so far, over all calls and rows."""
    right: Float[Tensor, "b n"] | None = None
    """Probability that each word which stood before the present call is right, of a model that doubts."""
    needed: int | None = None
    """Places of a row that have to be written, its first ones; None: all."""
    calls_of: Int64[Tensor, "b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Network calls of each row until it was done, whatever the rows beside it took."""

    @property
    def total(self) -> Int64[Tensor, "b"]:
        """Words to be written in each row, those already written included."""
        return self.writable.sum(1)

    @property
    def owed(self) -> Int64[Tensor, "b"]:
        """Words of each row that have yet to be written."""
        return self.masked[:, : self.needed].sum(1)

    @property
    def calls_left(self) -> int | None:
        """Calls left, the present one included; None without a budget."""
        return None if self.budget is None else max(1, self.budget - self.calls + 1)


class Policy(ABC):
    """What a decoder does: small decisions, each for all rows at once and for each row alone.

    A policy ends every row. Without a budget it commits at least one word of every row that has any open ones in each
    call, unless it states its own number of calls. With a budget, its `choose` commits all open words in the last call.
    """

    refresh_on_move = False
    """Compute everything when the span begins elsewhere than in the last call (block decoders)."""
    num_steps: int | None = None
    """Calls of the policy's own schedule, a budget like any other; None for as many as it takes."""
    looks_back = False
    """Needs a model that doubts its words (`Canvas.right`)."""
    exact = False
    """Places are drawn without a look at the words proposed there, so that the words are drawn as the model says."""

    @abstractmethod
    def span(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        """First position that may be committed, and the one after the last; the first open one lies between.

        Args:
            canvas: as it stands.
            open_: positions that may be committed.
        """

    @abstractmethod
    def choose(
        self, canvas: Canvas, open_: Bool[Tensor, "b n"], confidence: Float[Tensor, "b n"], sampler: WordSampler
    ) -> Bool[Tensor, "b n"]:
        """Positions to commit, all of them open.

        Args:
            canvas: as it stands.
            open_: positions that may be committed in this call.
            confidence: of the words proposed, −inf where it is not open.
            sampler: source of randomness, if the policy draws.
        """

    def share(self, canvas: Canvas) -> Int64[Tensor, "b"]:
        """Words of each row that this call has to commit to keep to the budget: an even share, ⌈m/s⌉ of m words."""
        words, left = canvas.owed, canvas.calls_left
        return torch.zeros_like(words) if left is None else (words + left - 1) // left

    def reach(self, canvas: Canvas, open_: Bool[Tensor, "b n"]) -> Ends:
        """The span, and after it as many more as the share of this call needs: what a call has to compute."""
        left, right = self.span(canvas, open_)
        wanted = torch.minimum(self.share(canvas), open_.sum(1))
        while bool(((within(open_, left, right)).sum(1) < wanted).any()):
            beyond = open_ & ~within(open_, left, right)
            further = self.span(canvas, beyond)
            more = beyond.any(1)
            left = torch.where(more, torch.minimum(left, further[0]), left)
            right = torch.where(more, torch.maximum(right, further[1]), right)
        return left, right

    def most_calls(self, canvas: Canvas) -> int:
        """Calls after which every row is done, without a budget: a word a call."""
        return int(canvas.total.max()) if len(canvas.tokens) else 0

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
    judge: Judge | None = None,
    elastic: Reshaper | None = None,
    scales: Scales | None = None,
) -> Iterator[Canvas]:
    """Write every masked position; yields the canvas after each network call.

        until every row is done:
            word, confidence ← sampler(denoiser(tokens))        the mask token excluded
            open ← masked positions, those of ends only where no words are left (`ends_last`)
            commit policy.choose(open, confidence)             classes before words (`scales`)
            an end committed at e ends its stretch: all later positions up to a given word become the end
            take back policy.remask
            lay the canvas out anew (`elastic`)

    Every row ends. With a budget it does so within it, as policies commit at least their share of the words in each
    call and the rest in the last. Without one it takes at most `policy.most_calls`: a word a call, and a call for each
    word that is taken back; twice as many with a cache and `ends_last`, where a span can turn out to hold ends alone.

    Args:
        denoiser: logits of a span of positions.
        tokens: the canvas; `mask_id` where words are to be written, everything else is frozen.
        policy: what to commit; a fresh one for every canvas.
        mask_id: the mask token.
        sampler: words and confidences.
        cache: what to compute anew; only for a single row, as the span would depend on the batch.
        end_id: the token that ends a row; None where rows have no end of their own.
        ends_last: instead of ending a row where an end is committed, commit ends only when nothing else is left: an end
            is sure before the words are, and settled early it would shorten the text. To the policy, positions that
            propose an end are not there as long as others propose words; in the last call of a budget all are.
        max_calls: budget of network calls; the policy's own number of calls is one too.
        judge: of a model that doubts; without one, a policy that looks back is refused.
        elastic: lays the canvas out anew after each call; without it, the canvas keeps its places.
        scales: settles coarser things before words, for which places then hold tokens of their own while masked.

    Raises:
        UsageError: for a cache with several rows or an elastic canvas, a budget below 1, or a policy that does not come
            to an end, or that looks back at places which move.
    """
    cache = cache or CacheConfig()
    if cache.kind != "none" and len(tokens) > 1:
        raise UsageError(f"the {cache.kind} cache serves one row at a time, received {len(tokens)}")
    if max_calls is not None and max_calls < 1:
        raise UsageError(f"a budget of network calls should be at least 1, received {max_calls}")
    if elastic is not None and (cache.kind != "none" or policy.looks_back):
        raise UsageError("places of an elastic canvas move; go without a cache, and with a decoder that does not doubt")
    if policy.looks_back and judge is None:
        raise UsageError("this decoder takes back what the model doubts, and the model has no head that doubts")
    writable = tokens == mask_id
    confidence = torch.full(tokens.shape, torch.inf, dtype=torch.float64, device=tokens.device)
    budget = min((calls for calls in (max_calls, policy.num_steps) if calls is not None), default=None)
    canvas = Canvas(tokens.clone(), writable, writable.clone(), confidence, budget)
    span = _Span(cache, policy.refresh_on_move)
    most = budget or policy.most_calls(canvas) * (2 if ends_last and cache.kind != "none" else 1)
    if elastic is not None and budget is None:
        most += 2 * elastic.most
    if scales is not None and budget is None:
        most += tokens.shape[1]
    worded = torch.ones_like(writable)  # where the word last proposed is not an end
    canvas.calls_of = torch.zeros_like(canvas.total)
    while not bool((finished := policy.done(canvas)).all()):
        if canvas.calls == most:
            raise UsageError(f"the decoder left words unwritten after {most} network calls, the most it may take")
        canvas.calls += 1
        canvas.calls_of = canvas.calls_of + (~finished).long()
        last = canvas.calls_left == 1
        start, stop = 0, canvas.tokens.shape[1]
        if not last:  # what is left has to be committed in the last call, wherever it is
            start, stop = span.of(canvas, *policy.reach(canvas, _words_first(canvas.masked, worded)))
        logits = denoiser(canvas.tokens, start, stop).float()
        logits[..., mask_id] = -torch.inf
        canvas.right = None if judge is None else judge()
        canvas.processed += len(tokens) * (stop - start)
        if elastic is not None:
            elastic.bound(logits, canvas)
        word, sure = (_on_canvas(part, start, canvas.tokens) for part in sampler(logits, start, canvas.tokens))
        place = torch.arange(canvas.tokens.shape[1], device=tokens.device)
        computed = (place >= start) & (place < stop)
        if ends_last:
            worded = torch.where(computed, word != end_id, worded)
        open_ = canvas.masked if last else _words_first(canvas.masked, worded) & computed
        commit = open_ & policy.choose(canvas, open_, sure.masked_fill(~open_, -torch.inf), sampler)
        if scales is not None and not last:
            commit = scales.settle(canvas, logits, commit)
        if elastic is not None:
            word, commit = elastic.decided(canvas, logits, word, commit)
        canvas.tokens = torch.where(commit, word, canvas.tokens)
        canvas.confidence = torch.where(commit, sure, canvas.confidence)
        canvas.masked = canvas.masked & ~commit
        if elastic is not None:
            elastic.mark(canvas)
        if end_id is not None and not ends_last:
            _end(canvas, end_id)
        back = policy.remask(canvas, sampler)
        if back is not None and not last:
            back = back & canvas.writable
            canvas.tokens = canvas.tokens.masked_fill(back, mask_id)
            canvas.masked = canvas.masked | back
        if elastic is not None:
            elastic.lay_out(canvas)
            worded = torch.ones_like(canvas.masked)
        yield canvas


def within(mask: Bool[Tensor, "b n"], left: Int64[Tensor, "b"], right: Int64[Tensor, "b"]) -> Bool[Tensor, "b n"]:
    """The positions of a mask in each row's [left, right)."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return mask & (place >= left[:, None]) & (place < right[:, None])


def leftmost(mask: Bool[Tensor, "b n"]) -> Int64[Tensor, "b"]:
    """First position of each row's mask; n where there is none."""
    n = mask.shape[1]
    return torch.where(mask, torch.arange(n, device=mask.device), n).amin(1)


def _words_first(masked: Bool[Tensor, "b n"], worded: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """Masked positions that propose a word, in rows without any all of them."""
    words = masked & worded
    return torch.where(words.any(1, keepdim=True), words, masked)


def _on_canvas(part: Tensor, start: int, tokens: Tensor) -> Tensor:
    """Values of a span, laid on the whole canvas."""
    whole = part.new_zeros(tokens.shape)
    whole[:, start : start + part.shape[1]] = part
    return whole


def _end(canvas: Canvas, end_id: int) -> None:
    """End the stretches that hold an end: all later positions, up to the next given word, become the end."""
    ended = canvas.writable & (canvas.tokens == end_id)
    count = ended.cumsum(1)
    before = count.masked_fill(canvas.writable, 0).cummax(1).values  # ends of the stretches before
    after = canvas.writable & (count - ended.long() > before)
    canvas.tokens = canvas.tokens.masked_fill(after, end_id)
    canvas.confidence = canvas.confidence.masked_fill(after, torch.inf)
    canvas.masked = canvas.masked & ~after


class _Span:
    """Which positions a call computes.

    The span reaches from `delay` positions before the last call's left end (so that words committed then are computed
    with themselves in place) to the window's end (`dual`) or the canvas's (`prefix`). Everything is computed at the
    first call, when `refresh` words were written since it was last, at a new block, and after a call that committed
    nothing because its span held only ends.
    """

    def __init__(self, cache: CacheConfig, refresh_on_move: bool) -> None:
        self.cache, self.refresh_on_move = cache, refresh_on_move
        self.left: int | None = None
        self.masked_at_refresh = self.masked = 0

    def of(self, canvas: Canvas, left: Int64[Tensor, "b"], right: Int64[Tensor, "b"]) -> tuple[int, int]:
        n = canvas.tokens.shape[1]
        if self.cache.kind == "none":
            return 0, n
        masked, begin, end = int(canvas.masked.sum()), int(left.min()), int(right.max())
        moved = self.refresh_on_move and begin != self.left
        due = self.left is None or moved or masked > self.masked_at_refresh or masked == self.masked
        due = due or self.masked_at_refresh - masked >= self.cache.refresh
        before, self.left, self.masked = self.left, begin, masked
        if due or before is None:
            self.masked_at_refresh = masked
            return 0, n
        start = max(min(before, begin) - self.cache.delay, 0)
        return start, n if self.cache.kind == "prefix" else min(end + self.cache.delay, n)
