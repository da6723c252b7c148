"""A block that reaches on into the next one where its last words would be guesses."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError
from manta.masked.decode import Canvas, leftmost
from manta.masked.policies import DeferredConfig


@dataclass(frozen=True, kw_only=True)
class ExtensionConfig:
    """How far a block may reach, and when."""

    most: int = 0
    """e_max: most places beyond the block; 0: none."""
    step: int = 4
    """e_step: places by which it grows at a time."""
    below: float = 0.3
    """τ_low: it grows where the least confidence of a call's words is below."""

    def __post_init__(self) -> None:
        if self.most < 0 or self.step < 1:
            raise ConfigError(f"most should be at least 0 and step at least 1, received {self.most}, {self.step}")


class Extension:
    """Deferred commitment across the ends of blocks: a `Reshaper` of the block that is written, one after the other.

        where the least C of a call's commits < τ_low, and nothing but the block's end keeps the window from growing:
            take these commits back, and let the block reach e_step places further, e_max at most

    The places beyond are the beginning of the next block. They are seen by this one, and see it, while it is written; a
    row is done as soon as the words of the block itself stand, and what stands beyond is given when the next block is
    written. Each row reaches as far as it needs by itself; the canvas is as wide as the furthest.

    Args:
        config: how far, and when.
        window: the window that is to grow.
        rows: texts.
        length: places of a block.
        mask_id: the mask token.
        end_id: the token that ends a text; it fills a row up beyond what it reaches.
        given: what stands of the texts before they are written, the mask token elsewhere, and everywhere behind it;
            None: nothing does.
        device: of the canvas.

    Source: Dynamic Block Extension, "Deferred Commitment Decoding for Diffusion Language Models", arXiv 2601.02076.
        That only the block itself has to be written is ours.
    """

    def __init__(
        self,
        config: ExtensionConfig,
        window: DeferredConfig,
        rows: int,
        length: int,
        *,
        mask_id: int,
        end_id: int,
        given: Int64[Tensor, "b n"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.window, self.length = config, window, length
        self.mask_id, self.end_id = mask_id, end_id
        shape = (rows, length + config.most)
        self.given = torch.full((rows, 0), mask_id, device=device) if given is None else given
        self.start = 0
        """First place of the present block."""
        self.tokens = self._given(0, shape[1])
        """What stands of the present block, and of all that it may reach, before it is written."""
        self.sure = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        """Confidence in these words."""
        self.most = length
        """Places of the longest canvas."""
        self.extra = torch.zeros(rows, dtype=torch.long, device=device)
        """Places of each row beyond the block."""
        self.computed = torch.zeros_like(self.extra)
        """Places of each row computed in the calls of the block that it took part in."""
        self._before: Canvas | None = None

    @property
    def reaches(self) -> bool:
        """Whether the block of any row reaches beyond itself."""
        return bool(self.extra.any())

    @property
    def calls(self) -> int:
        """Calls after which the block is written without a budget, those that are taken back among them."""
        return self.most + -(-(self.most - self.length) // self.config.step)

    def begin(self, live: Bool[Tensor, "b"], room: int) -> Canvas:
        """The canvas of the next block.

        Args:
            live: rows that are written; the others hold ends.
            room: places to the end of the longest text, those of the block included.
        """
        self.most = min(self.length + self.config.most, room)
        self.extra, self.computed = torch.zeros_like(self.extra), torch.zeros_like(self.computed)
        tokens = torch.where(live[:, None], self.tokens[:, : self.length], self.end_id)
        masked, sure = tokens == self.mask_id, torch.full_like(self.sure[:, : self.length], torch.inf)
        return Canvas(tokens, masked, masked, sure, calls_of=torch.zeros_like(self.extra))

    def bound(self, logits: Float[Tensor, "b n v"], canvas: Canvas) -> None:
        """See `Reshaper`: nothing is forbidden, and what may be taken back is remembered."""
        canvas.needed = self.length
        self._before = Canvas(canvas.tokens, canvas.writable, canvas.masked, canvas.confidence)
        self.computed = self.computed + (self.length + self.extra) * canvas.masked.any(1)

    def decided(
        self, canvas: Canvas, logits: Float[Tensor, "b n v"], word: Int64[Tensor, "b n"], commit: Bool[Tensor, "b n"]
    ) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """See `Reshaper`: as it was decided; in the last call of a budget, what has to be written, and nothing else."""
        if canvas.calls_left != 1:
            return word, commit
        return word, canvas.masked & (torch.arange(word.shape[1], device=word.device) < self.length)

    def mark(self, canvas: Canvas) -> None:
        """See `Reshaper`; nothing here is taken for a word."""

    def lay_out(self, canvas: Canvas) -> None:
        """Take back what was guessed at a block's end and let the block reach further; end rows whose block stands.

        Args:
            canvas: with what was committed; it is changed in place.
        """
        before, reached = self._before, self.length + self.extra
        assert before is not None, "a call comes first"
        least = canvas.confidence.masked_fill(~before.masked | canvas.masked, torch.inf).amin(1)
        count, sight = before.masked.sum(1), leftmost(before.masked) + self.window.window_width
        held = (count < self.window.window_masked) & (reached < sight) & (reached < self.most)
        grows = (least < self.config.below) & held & (canvas.calls_left != 1)
        for name in ("tokens", "masked", "confidence"):
            setattr(canvas, name, torch.where(grows[:, None], getattr(before, name), getattr(canvas, name)))
        self.extra = torch.where(grows, (self.extra + self.config.step).clamp_max(self.most - self.length), self.extra)
        if bool(grows.any()):
            self._widen(canvas, reached)
        canvas.masked = canvas.masked & canvas.masked[:, : self.length].any(1, keepdim=True)

    def settle(self, canvas: Canvas) -> None:
        """Go on to the next block.

        Args:
            canvas: the present one, all written; it receives the confidence in words that stood before.
        """
        width, length = canvas.tokens.shape[1], self.length
        if self.config.most == 0:  # nothing was watched
            self.computed = length * canvas.calls_of
        place = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        stood = self.tokens[:, :length] != self.mask_id
        canvas.confidence[:, :length] = torch.where(stood, self.sure[:, :length], canvas.confidence[:, :length])
        reached = (place < (length + self.extra)[:, None])[:, :width]
        tokens, sure = self.tokens.clone(), self.sure.clone()
        tokens[:, :width] = torch.where(reached, canvas.tokens, tokens[:, :width])
        sure[:, :width] = torch.where(reached, canvas.confidence, sure[:, :width])
        beyond = self.start + tokens.shape[1]
        tokens = torch.cat([tokens[:, length:], self._given(beyond, beyond + length)], 1)
        self.start += length
        ended = (tokens == self.end_id).cummax(1).values
        self.tokens = tokens.masked_fill(ended, self.end_id)
        self.sure = F.pad(sure[:, length:], (0, length), value=torch.inf)

    def _given(self, start: int, stop: int) -> Int64[Tensor, "b k"]:
        """What is given of the places [start, stop)."""
        given = self.given[:, start:stop]
        return F.pad(given, (0, stop - start - given.shape[1]), value=self.mask_id)

    def _widen(self, canvas: Canvas, before: Int64[Tensor, "b"]) -> None:
        """Lay the canvas out for what every row reaches by now."""
        width, reached = self.length + int(self.extra.max()), self.length + self.extra
        place, missing = torch.arange(width, device=self.extra.device), width - canvas.tokens.shape[1]
        new = (place >= before[:, None]) & (place < reached[:, None])
        masked = self.tokens[:, :width] == self.mask_id

        def widened(values: Tensor, fill: int | float, fresh: Tensor) -> Tensor:
            return torch.where(new, fresh, F.pad(values, (0, missing), value=fill))

        canvas.tokens = widened(canvas.tokens, self.end_id, self.tokens[:, :width])
        canvas.writable = widened(canvas.writable, False, masked)
        canvas.masked = widened(canvas.masked, False, masked)
        canvas.confidence = widened(canvas.confidence, torch.inf, self.sure[:, :width])
