"""One evaluator for models of captions and images: are captions drawn, and are images described?"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from manta.errors import DataError
from manta.families.joint_flow import JointFlow, JointRequest
from manta.image import read_images, resized, shapes
from manta.image.captioned import words_of
from manta.image.files import Fit
from manta.image.sources import BUILTIN
from manta.metrics.bootstrap import wilson

Told = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class JointEvaluation:
    """What was measured of a model of captions and images."""

    figures: dict[str, float]
    """By name."""
    intervals: dict[str, tuple[float, float]]
    """Limits at 95% of figures that are shares of the images."""
    notes: list[str]
    """What has to be known to read the figures."""


def measure_joint(
    flow: JointFlow,
    data: str,
    *,
    num: int = 200,
    split: str = "test",
    draw_steps: int = 16,
    describe_steps: int = 4,
    seed: int = 0,
    fit: Fit = "crop",
    tell: Told = lambda what, done, total: None,
) -> JointEvaluation:
    """Draw the captions of held-out images, and describe those images.

    | figure | what it is |
    |---|---|
    | `described` | share of images whose caption is told word for word |
    | `words_right` | share of the captions' words that are told in their places |
    | `valid`, `drawn` | of `builtin:shapes`, by the oracle: images that show a scene, and the caption's |

    Args:
        flow: the model.
        data: images with captions.
        num: how many at most.
        split: of the data.
        draw_steps: calls of an image.
        describe_steps: calls of a caption.
        seed: of the first.
        fit: how images of another size are fitted.
        tell: takes what is done.

    Raises:
        DataError: there are no images with captions that the model has words for.
    """
    images, captions = captioned_images(flow, data, num, split, fit)
    said = []
    requests = [JointRequest(image=image, seed=seed + i) for i, image in enumerate(images)]
    for made in flow.generate(requests, num_steps=describe_steps):
        said.append(made.caption)
        tell("images described", len(said), len(images))
    pairs = [(words_of(a), words_of(b)) for a, b in zip(said, captions, strict=True)]
    right = [a == b for a, b in pairs]
    hits = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    shares = {"described": sum(right) / len(right)}
    figures = {"words_right": hits / sum(len(b) for _, b in pairs)}
    notes = [f"{len(images)} held-out images ({split}); {describe_steps} calls a caption, {draw_steps} an image"]
    if data == BUILTIN:
        start, drawn = time.perf_counter(), []
        asked = [JointRequest(caption=caption, seed=seed + i) for i, caption in enumerate(captions)]
        for made in flow.generate(asked, num_steps=draw_steps):
            drawn.append(made.pixels)
            tell("captions drawn", len(drawn), len(captions))
        figures["seconds_an_image"] = (time.perf_counter() - start) / len(drawn)
        verdicts = shapes.read(np.stack(drawn))
        shares["valid"] = sum(verdict.valid for verdict in verdicts) / len(verdicts)
        pairs_drawn = zip(verdicts, captions, strict=True)
        found = [verdict.scene is not None and verdict.scene.caption == words for verdict, words in pairs_drawn]
        shares["drawn"] = sum(found) / len(found)
    else:
        notes.append("whether captions are drawn is told where there is an oracle: builtin:shapes")
    ends = {name: wilson(round(value * len(images)), len(images)) for name, value in shares.items()}
    intervals = {name: (found.low, found.high) for name, found in ends.items()}
    return JointEvaluation(figures={**shares, **figures}, intervals=intervals, notes=notes)


def captioned_images(
    flow: JointFlow, data: str, num: int, split: str, fit: Fit
) -> tuple[list[UInt8[np.ndarray, "h w c"]], list[str]]:
    """Images of a split whose captions the model has words for, and these captions.

    Args:
        flow: the model.
        data: images with captions.
        num: how many at most.
        split: of the data.
        fit: how images of another size are fitted.

    Raises:
        DataError: there are none.
    """
    height, width, channels = flow.codec.shape
    known = set(flow.codec.words)
    images, captions = [], []
    for example in read_images(data, split, None, channels=channels, skipped=lambda reason: None):
        words = words_of(example.caption or "")
        if words and set(words) <= known and len(words) < flow.codec.places:
            images.append(resized(example.pixels, (height, width), fit))
            captions.append(example.caption or "")
        if len(images) == num:
            break
    if not images:
        raise DataError(f"{data} has no images in {split} with captions of the model's words")
    return images, captions
