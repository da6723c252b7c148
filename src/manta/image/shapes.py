"""`builtin:shapes`: scenes of one to three coloured shapes on a grid, with a class, a caption, and an oracle that reads
an image back.

A scene is a grid of 3 × 3 cells of 8 × 8 pixels on a light ground. One to three cells hold a shape: a circle, a square
or a triangle, in red, green, blue or yellow, moved by up to a pixel. Its class says how many there are and of which
kind, whatever their colours and places: `one circle`, `three squares`, or `two mixed` where they are not all alike.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8

from manta.errors import UsageError
from manta.image.example import ImageExample

GRID, CELL = 3, 8
"""Cells of a side, and pixels of a cell's side."""
SIDE = GRID * CELL
KINDS = ("circle", "square", "triangle")
COLOURS = {"red": (214, 48, 49), "green": (39, 174, 96), "blue": (41, 98, 217), "yellow": (242, 196, 15)}
GROUND = (244, 244, 240)
MOST = 3
"""Shapes of a scene."""
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
MOVES = (-1, 0, 1)
"""Pixels by which a shape is moved from the middle of its cell, down and to the right."""
NUMBERS = ("one", "two", "three")
MIXED = "mixed"
CLASSES = (
    *(f"{word} {kind}{'s' if number else ''}" for kind in KINDS for number, word in enumerate(NUMBERS)),
    *(f"{word} {MIXED}" for word in NUMBERS[1:]),
)
"""Names of the classes."""
TOLERANCE = 0.004
"""Mean squared error, of values in [0, 1], up to which a cell shows what its nearest drawing shows."""
SPLIT_SEEDS = {"train": 0, "dev": 1, "test": 2}


@dataclass(frozen=True, order=True)
class Shape:
    """One shape of a scene."""

    row: int
    column: int
    kind: str
    colour: str

    def __str__(self) -> str:
        """In words."""
        return f"a {self.colour} {self.kind} at the {ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Scene:
    """What an image shows."""

    shapes: tuple[Shape, ...]
    """From the top left to the bottom right."""

    @property
    def label(self) -> str:
        """Its class."""
        number, kinds = len(self.shapes), {shape.kind for shape in self.shapes}
        return f"{NUMBERS[number - 1]} {MIXED if len(kinds) > 1 else kinds.pop() + 's' * (number > 1)}"

    @property
    def caption(self) -> str:
        """It in words."""
        words = [str(shape) for shape in self.shapes]
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@dataclass(frozen=True, kw_only=True)
class ShapesVerdict:
    """What the oracle says of an image."""

    scene: Scene | None
    """What it shows; None where it shows no scene."""
    error: float
    """Mean squared error of its worst cell, of values in [0, 1], to the nearest drawing."""

    @property
    def valid(self) -> bool:
        """Whether it shows a scene as they are drawn."""
        return self.scene is not None


def examples(split: str, num: int, seed: int = 0) -> Iterator[ImageExample]:
    """Draw scenes, classes alike often.

    Args:
        split: "train", "dev" or "test", which draw apart from each other; a scene may come in several of them.
        num: how many.
        seed: of the draws.
    """
    if split not in SPLIT_SEEDS:
        raise UsageError(f"unknown split {split!r}; choose one of {', '.join(SPLIT_SEEDS)}")
    generator = np.random.default_rng([seed, SPLIT_SEEDS[split]])
    for _ in range(num):
        scene = _drawn(generator)
        moves = generator.choice(MOVES, (len(scene.shapes), 2))
        yield ImageExample(pixels=draw(scene, moves), label=scene.label, caption=scene.caption)


def draw(scene: Scene, moves: np.ndarray | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The image of a scene.

    Args:
        scene: what to draw.
        moves: how far each shape is moved, down and to the right, in pixels from −1 to 1; None: not at all.
    """
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:] = GROUND
    for index, shape in enumerate(scene.shapes):
        down, right = (0, 0) if moves is None else moves[index]
        top, left = shape.row * CELL, shape.column * CELL
        image[top : top + CELL, left : left + CELL] = cell(shape.kind, shape.colour, int(down), int(right))
    return image


@cache
def cell(kind: str, colour: str, down: int = 0, right: int = 0) -> UInt8[np.ndarray, "8 8 3"]:
    """One cell with a shape."""
    share = _coverage(kind, down, right)[..., None]
    return np.rint(share * np.array(COLOURS[colour]) + (1 - share) * np.array(GROUND)).astype(np.uint8)


def read(images: UInt8[np.ndarray, "b h w 3"]) -> list[ShapesVerdict]:
    """What images show, by the drawing nearest to each of their cells.

    An image shows a scene if every cell is within `TOLERANCE` of a drawing of a cell, and one to three hold a shape.

    Raises:
        UsageError: images of another size.
    """
    if images.shape[1:] != (SIDE, SIDE, 3):
        raise UsageError(f"scenes have {SIDE} × {SIDE} pixels of 3 channels, received {images.shape[1:]}")
    names, drawings = _drawings()
    cells = images.reshape(len(images), GRID, CELL, GRID, CELL, 3).swapaxes(2, 3)
    flat = torch.from_numpy(cells.reshape(len(images), GRID * GRID, -1).astype(np.float32) / 255)
    errors = torch.cdist(flat, torch.from_numpy(drawings)).square() / drawings.shape[1]
    least, nearest = errors.min(-1)
    return [_verdict(*row) for row in zip(least.tolist(), nearest.tolist(), [names] * len(images), strict=True)]


def _verdict(errors: list[float], nearest: list[int], names: list[tuple[str, str] | None]) -> ShapesVerdict:
    worst = max(errors)
    found = [(place, names[index]) for place, index in enumerate(nearest)]
    shapes = tuple(Shape(place // GRID, place % GRID, *name) for place, name in found if name is not None)
    fits = worst <= TOLERANCE and 1 <= len(shapes) <= MOST
    return ShapesVerdict(scene=Scene(shapes) if fits else None, error=worst)


def judge(images: UInt8[np.ndarray, "b h w 3"], labels: list[str | None]) -> dict[str, float]:
    """Shares of images that are valid, and of those with a class that show what it says; how many scenes differ.

    Args:
        images: what was made.
        labels: the class asked for of each; None where none was.
    """
    verdicts = read(images)
    asked = [(verdict, label) for verdict, label in zip(verdicts, labels, strict=True) if label is not None]
    told = {"valid": sum(verdict.valid for verdict in verdicts) / len(verdicts)}
    if asked:
        told["faithful"] = sum(v.scene is not None and v.scene.label == label for v, label in asked) / len(asked)
    scenes = Counter(verdict.scene for verdict in verdicts if verdict.scene is not None)
    told["distinct"] = len(scenes) / max(1, sum(scenes.values()))
    return told


def _drawn(generator: np.random.Generator) -> Scene:
    number, kinds = _kinds(CLASSES[generator.integers(len(CLASSES))], generator)
    places = np.sort(generator.choice(GRID * GRID, number, replace=False))
    colours = generator.choice(list(COLOURS), number)
    found = zip(places, kinds, colours, strict=True)
    return Scene(tuple(Shape(int(place) // GRID, int(place) % GRID, str(k), str(c)) for place, k, c in found))


def _kinds(label: str, generator: np.random.Generator) -> tuple[int, list[str]]:
    """How many shapes a class has, and a draw of their kinds."""
    word, kind = label.split()
    number = 1 + NUMBERS.index(word)
    if kind != MIXED:
        return number, [kind.removesuffix("s") if number > 1 else kind] * number
    while len(set(kinds := generator.choice(KINDS, number).tolist())) == 1:
        pass
    return number, kinds


@cache
def _coverage(kind: str, down: int, right: int) -> Float[np.ndarray, "8 8"]:
    """Share of each pixel of a cell that a shape covers, by 8 × 8 points in each."""
    points = (np.arange(CELL * 8) + 0.5) / 8 - CELL / 2
    y, x = np.meshgrid(points - down, points - right, indexing="ij")
    if kind == "circle":
        inside = x**2 + y**2 <= 2.9**2
    elif kind == "square":
        inside = np.maximum(abs(x), abs(y)) <= 2.5
    else:
        inside = (y <= 2.5) & (y >= -2.7) & (abs(x) <= (y + 2.7) * 2.9 / 5.2)
    return inside.reshape(CELL, 8, CELL, 8).mean((1, 3))


@cache
def _drawings() -> tuple[list[tuple[str, str] | None], Float[np.ndarray, "k 192"]]:
    """All drawings of a cell with what they show, the empty one first."""
    empty = np.empty((CELL, CELL, 3), np.uint8)
    empty[:] = GROUND
    names: list[tuple[str, str] | None] = [None]
    drawings = [empty]
    for kind in KINDS:
        for colour in COLOURS:
            for down in MOVES:
                for right in MOVES:
                    names.append((kind, colour))
                    drawings.append(cell(kind, colour, down, right))
    return names, np.stack(drawings).reshape(len(drawings), -1).astype(np.float32) / 255
