"""Where the elements of a text and an image in one row are for rotary attention: a table of kinds, and what tells good
ones from bad.

A row is a text, an image row by row, and a text again; either text may be empty. Rotary attention depends on the
difference of two places, so the distances between a word and the patches of an image decide which patches it favours
whatever they show. `distance_spread` says how uneven they are.

Source: Wang et al., "Circle-RoPE: Cone-like Decoupled Rotary Positional Embedding for Large Vision-Language Models",
    arXiv 2505.16416.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manta.errors import ConfigError

Kind = Literal["line", "axial", "mrope", "circle", "unordered"]
Order = Literal["always", "alternating", "first_half", "second_half"]


class Row(NamedTuple):
    """What stands in a row."""

    before: int
    """Words before the image."""
    rows: int
    """Patches from top to bottom; 0 with `columns` of 0: there is no image."""
    columns: int
    """Patches from left to right."""
    after: int = 0
    """Words behind the image."""

    @property
    def patches(self) -> int:
        """Of the image."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """Words and patches."""
        return self.before + self.patches + self.after

    @property
    def of_image(self) -> Bool[Tensor, "n"]:
        """True for patches."""
        place = torch.arange(self.length)
        return (place >= self.before) & (place < self.before + self.patches)


@dataclass(frozen=True, kw_only=True)
class PositionsConfig:
    """Where words and patches are.

    | kind | a word | a patch in row y and column x |
    |---|---|---|
    | `line` | its number | its number, as if it were a word |
    | `axial` | (p, p) | (s + y, s + x) |
    | `mrope` | (p, p, p) | (s, s + y, s + x) |
    | `circle` | (p, p, p) | on a circle around the line of the words |
    | `unordered` | (p, p, p) | (s, s, s): all in one place |

    p counts words and s is p where the image begins; words behind it go on from one more than its largest coordinate.
    """

    kind: Kind = "axial"
    """Which."""
    alpha: float = 0.5
    """Of a circle: share of a patch's angle that is its direction from the image's middle, [0, 1]; the rest is even
    steps in the order of the patches."""
    radius: float = 10.0
    """Of a circle; 0: its `scale` times the largest coordinate of the image."""
    scale: float = 1.0
    """Of a circle whose radius is 0."""
    layers: Order = "always"
    """In which blocks the patches are on a circle; in the others they are as of `mrope`. `alternating` begins with the
    circle."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha should lie in [0, 1], received {self.alpha}")
        if self.radius < 0 or self.scale <= 0:
            raise ConfigError("radius should be at least 0, and scale above it")
        if self.layers != "always" and self.kind != "circle":
            raise ConfigError(f"layers={self.layers} is for circles; leave it out, or choose kind=circle")


def places(config: PositionsConfig, row: Row) -> Float[Tensor, "n a"]:
    """Where the elements of a row are, float64, along one to three axes (time, rows, columns).

    Args:
        config: which kind.
        row: what stands in it.
    """
    number = torch.arange(row.length, dtype=torch.float64)
    if config.kind == "line":
        return number[:, None]
    y, x = _lattice(row)
    match config.kind:
        case "axial":
            image = torch.stack([y, x], 1)
        case "mrope":
            image = torch.stack([torch.zeros_like(y), y, x], 1)
        case "circle":
            image = circle(row.rows, row.columns, config)
        case "unordered":
            image = torch.zeros(row.patches, 3, dtype=torch.float64)
    axes = image.shape[1]
    image = image + row.before
    end = row.before if not row.patches else float(image.max()) + 1
    before = number[: row.before, None].expand(-1, axes)
    after = (number[: row.after] + end)[:, None].expand(-1, axes)
    return torch.cat([before, image, after])


def places_of_blocks(config: PositionsConfig, row: Row, depth: int) -> list[Float[Tensor, "n a"]]:
    """The same for each block of a net.

    Args:
        config: which kind, and in which blocks.
        row: what stands in it.
        depth: blocks.
    """
    own = places(config, row)
    if config.layers == "always":
        return [own] * depth
    other = places(PositionsConfig(kind="mrope"), row)
    on_circle = {
        "alternating": lambda index: index % 2 == 0,
        "first_half": lambda index: index < depth / 2,
        "second_half": lambda index: index >= depth / 2,
    }[config.layers]
    return [own if on_circle(index) else other for index in range(depth)]


def circle(rows: int, columns: int, config: PositionsConfig) -> Float[Tensor, "n 3"]:
    """Patches on a circle in the plane at right angles to the line (p, p, p), around its zero.

        angle = α · direction + (1 − α) · 2π k/n,   place = R (cos(angle) u + sin(angle) v)

    The direction is that of a patch from the middle of the image, spread over the whole turn; k is its number. Every
    word is then as far from one patch as from any other: sqrt(3 p² + R²). Two patches may come to lie in one place:
    of all grids of up to 16 × 16, by the usual α, those of 7 × 3.

    Args:
        rows: of patches.
        columns: of patches.
        config: α and radius.
    """
    y, x = _lattice(Row(0, rows, columns))
    y, x = y - (rows - 1) / 2, x - (columns - 1) / 2
    direction = torch.atan2(y, x)
    if direction.numel() and (span := float(direction.max() - direction.min())) > 0:
        direction = (direction - direction.min()) / span * 2 * math.pi
    else:
        direction = torch.zeros_like(direction)
    even = 2 * math.pi * torch.arange(rows * columns, dtype=torch.float64) / max(1, rows * columns)
    angle = config.alpha * direction + (1 - config.alpha) * even
    radius = config.radius or config.scale * max(1.0, rows - 1, columns - 1)
    u = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64) / math.sqrt(2)  # axes: time, rows, columns
    v = torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64) / math.sqrt(6)
    return radius * (angle.cos()[:, None] * u + angle.sin()[:, None] * v)


def _lattice(row: Row) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Row and column of each patch."""
    number = torch.arange(row.patches, dtype=torch.float64)
    columns = max(1, row.columns)
    return (number / columns).floor(), number % columns


def distance_spread(places: Float[Tensor, "n a"], of_image: Bool[Tensor, "n"]) -> float:
    """How unevenly far patches are from a word: ``mean over words and patches of |d(t, i) − mean_i d(t, i)|``.

    Args:
        places: of all elements.
        of_image: True for patches.

    Source: the per-token distance (PTD) of Circle-RoPE, by the indices along all axes and Euclidean distances. 0 does
        not make rotary scores equal, see `score_spread`.
    """
    far = torch.cdist(places[~of_image], places[of_image], compute_mode="donot_use_mm_for_euclid_dist")
    return float((far - far.mean(1, keepdim=True)).abs().mean())


def closest(places: Float[Tensor, "n a"]) -> float:
    """The least distance between two elements; 0 where attention cannot tell two of them apart."""
    if len(places) < 2:
        return math.inf
    far = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    return float(far.fill_diagonal_(math.inf).min())


def scores_of_places(
    anchor: Float[Tensor, "a"], patches: Float[Tensor, "n a"], sections: tuple[int, ...], base: float
) -> Float[Tensor, "n"]:
    """Rotary scores of a word for patches of equal content, all channels one: ``mean_k cos(Δ_axis(k) base^(−k/K))``.

    Args:
        anchor: place of the word.
        patches: their places.
        sections: channel pairs that turn along each axis, one axis after the other; K together.
        base: of the turn.
    """
    axis = torch.cat([torch.full((pairs,), index) for index, pairs in enumerate(sections)])
    speed = base ** -(torch.arange(len(axis), dtype=torch.float64) / len(axis))
    return ((anchor - patches)[:, axis] * speed).cos().mean(1)


def score_spread(
    anchor: Float[Tensor, "a"], patches: Float[Tensor, "n a"], sections: tuple[int, ...], base: float
) -> float:
    """Standard deviation over the patches of `scores_of_places`: what places alone make attention favour."""
    return float(scores_of_places(anchor, patches, sections, base).std())
