"""One evaluator for models of images: how near they are to held-out ones, to their class, and to those learned from."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from manta.errors import DataError, UsageError
from manta.evaluation.image_features import Features, LabelledImages, Told, silent, trained_features
from manta.families.image_flow import DrawOptions, DrawRequest, ImageFlow
from manta.families.image_objective import ImageMatching, ImageObjectiveConfig
from manta.flow import TimeDensityConfig
from manta.image import ImageBatch, read_images, resized, shapes
from manta.image.corpus import NO_CLASS
from manta.image.files import Fit
from manta.image.sources import BUILTIN, fingerprint
from manta.metrics.bootstrap import wilson
from manta.metrics.features import LEAST, frechet_distance, nearest, precision_recall
from manta.runtime import make_generator

MOST_TRAIN = 20_000
"""Images of the training split that are looked at, for the classifier and for nearest neighbours."""
SAME = 2 / 255
"""Distance, root mean square of values in [0, 1], up to which two images are the same."""
NEAR = 0.01
"""Share of held-out images that lie nearer to a training image than what is called a copy."""


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation:
    """What was measured of a model of images."""

    figures: dict[str, float]
    """By name, of the model."""
    intervals: dict[str, tuple[float, float]]
    """Limits at 95% of figures that are shares of the images."""
    corpus: dict[str, float]
    """The same of held-out images, where they have it."""
    images: UInt8[np.ndarray, "n h w c"] = field(repr=False)
    """What was drawn."""
    notes: list[str]
    """What has to be known to read the figures."""


class ImageEvaluator:
    """Measures models of the same images by the same classifier.

    Args:
        data: the images, as they were named in training.
        flow: a model, whose size and classes the images take.
        num: images drawn, and held-out ones compared with, at most.
        split: that they are compared with.
        num_train: training images that the model has learned from, at most; None: all.
        fit: how images of another size are fitted, as in training.
        classifier: file in which the classifier is kept.
        tell: takes what is done, and how far it has come.

    Raises:
        DataError: there are too few images.
        UsageError: the classifier in the file is of other images.
    """

    def __init__(
        self,
        data: str,
        flow: ImageFlow,
        *,
        num: int = 1000,
        split: str = "test",
        num_train: int | None = None,
        fit: Fit = "crop",
        classifier: Path | None = None,
        tell: Told = silent,
    ) -> None:
        self.data, self.split, self.tell = data, split, tell
        self.fit: Fit = fit
        self.codec = flow.images
        self.held_out = self._read(split, num)
        if len(self.held_out.pixels) < LEAST:
            raise DataError(f"{data} has {len(self.held_out.pixels)} images in {split}, and {LEAST} are the least")
        self.train = self._read("train", min(MOST_TRAIN, num_train or MOST_TRAIN))
        self.features: Features | None = None
        if len(self.codec.classes) > 1:
            key = fingerprint(data, "train", num_train) + self.codec.fingerprint() + fit
            self.features = trained_features(
                self.train, self.held_out, len(self.codec.classes), flow.device, file=classifier, key=key, tell=tell
            )
        self._theirs = None if self.features is None else self.features.of(self.held_out.pixels)[0]
        self._far = self._distances(self.held_out.pixels)

    def measure(self, flow: ImageFlow, options: DrawOptions, *, seed: int = 0, batch_size: int = 64) -> ImageEvaluation:
        """Draw as many images as are held out, of their classes, and measure them.

        Args:
            flow: a model of these images.
            options: how to draw.
            seed: of the first image.
            batch_size: images drawn at once.
        """
        if flow.images != self.codec:
            raise UsageError("models of images of other sizes or classes cannot be compared with each other")
        asked = [None if label == NO_CLASS else int(label) for label in self.held_out.labels]
        requests = [DrawRequest(label=label, seed=seed + i) for i, label in enumerate(asked)]
        start = time.perf_counter()
        drawn = []
        for each in flow.generate(requests, options, batch_size=batch_size):
            drawn.append(each)
            self.tell(f"images of {options.num_steps} calls", len(drawn), len(requests))
        seconds = time.perf_counter() - start
        images = np.stack([each.pixels for each in drawn])
        figures: dict[str, float] = {"flow_error": flow_error(flow, self.held_out)}
        corpus: dict[str, float] = {}
        shares: dict[str, float] = {}
        notes = [f"{len(images)} images of the classes of {len(images)} held-out ones ({self.split})"]
        if self.features is not None and self._theirs is not None:
            ours, seen = self.features.of(images)
            figures["frechet"] = frechet_distance(ours, self._theirs)
            figures["precision"], figures["recall"] = precision_recall(ours, self._theirs)
            shares["class_accuracy"] = float((seen.numpy() == self.held_out.labels).mean())
            corpus["class_accuracy"] = self.features.accuracy
            others = self.features.of(self.train.pixels[: len(images)])[0]
            corpus["frechet"] = frechet_distance(others, self._theirs)
            corpus["precision"], corpus["recall"] = precision_recall(others, self._theirs)
            notes.append(
                "frechet, precision and recall are on features of the classifier; of the corpus: training "
                "images against held-out ones"
            )
        else:
            notes.append("without classes there is no classifier, and so no frechet, precision and recall")
        if self.data == BUILTIN:
            names = [None if label is None else self.codec.classes[label] for label in asked]
            told = shapes.judge(images, names)
            figures["distinct"] = told.pop("distinct")
            shares |= told
        others = self._far[self._far > SAME]
        near = max(SAME, np.quantile(others, NEAR) if len(others) else SAME)
        shares["copies"] = float((self._distances(images) <= near).mean())
        corpus["copies"] = float((self._far <= near).mean())
        notes.append(
            f"copies: as near to a training image as the nearest {NEAR:.0%} of the held-out ones that are none"
        )
        figures |= {"nfe": float(max(each.nfe for each in drawn)), "seconds_an_image": seconds / len(images)}
        ends = {name: wilson(round(value * len(images)), len(images)) for name, value in shares.items()}
        intervals = {name: (found.low, found.high) for name, found in ends.items()}
        return ImageEvaluation(
            figures={**shares, **figures}, intervals=intervals, corpus=corpus, images=images, notes=notes
        )

    def _distances(self, images: UInt8[np.ndarray, "n h w c"]) -> np.ndarray:
        """Of each image to the training image nearest to it, in values from 0 to 1."""
        flat = [torch.from_numpy(each.reshape(len(each), -1)).float() / 255 for each in (images, self.train.pixels)]
        return nearest(*flat).numpy()

    def _read(self, split: str, num: int) -> LabelledImages:
        height, width, channels = self.codec.shape
        numbers = {name: number for number, name in enumerate(self.codec.classes)}
        pixels, labels = [], []
        for example in read_images(self.data, split, num, channels=channels, skipped=lambda line: None):
            if self.codec.classes and example.label not in numbers:
                raise DataError(f"{self.data} has images of {example.label!r}, a class that the model does not know")
            pixels.append(resized(example.pixels, (height, width), self.fit))
            labels.append(numbers.get(example.label or "", NO_CLASS))
        if not pixels:
            raise DataError(f"{self.data} has no images in {split}")
        return LabelledImages(np.stack(pixels), np.array(labels, np.int64))


@torch.no_grad()
def flow_error(flow: ImageFlow, held_out: LabelledImages, *, num: int = 512, seed: int = 0) -> float:
    """Mean squared error of the velocity on held-out images, times uniform, the same draws for every model.

    Args:
        flow: the model.
        held_out: images.
        num: how many at most.
        seed: of times and noise.
    """
    config = ImageObjectiveConfig(class_dropout=0.0, weight_cap=1e4)
    objective = ImageMatching(config, TimeDensityConfig(kind="uniform").build())
    generator, total, count = make_generator(seed), 0.0, 0
    for begin in range(0, min(num, len(held_out.pixels)), 64):
        rows = np.arange(begin, min(begin + 64, num, len(held_out.pixels)))
        batch = ImageBatch(
            pixels=torch.from_numpy(held_out.pixels[rows]),
            label=torch.from_numpy(held_out.labels[rows]),
            index=torch.from_numpy(rows),
        ).to(flow.device)
        total += len(rows) * float(objective(flow.model, batch, generator).total)
        count += len(rows)
    return total / count


def as_told(evaluation: ImageEvaluation) -> dict[str, Any]:
    """Figures, limits and notes as plain values."""
    return {
        "figures": evaluation.figures,
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "corpus": evaluation.corpus,
        "notes": evaluation.notes,
    }
