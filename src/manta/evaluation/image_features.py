"""Features by which images are compared: those of a classifier that is trained on the same data."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from manta.errors import DataError, UsageError
from manta.image import from_pixels
from manta.nets.grid.classifier import GridClassifier
from manta.runtime import atomic_write, autocast, faster_precision, make_generator

STEPS, BATCH, RATE = 800, 128, 2e-3
"""Steps, images of each and peak learning rate of a classifier's training."""
CHUNK = 256

Told = Callable[[str, int, int], None]
"""`tell(what, done, total)`."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory with their classes."""

    pixels: UInt8[np.ndarray, "n h w c"]
    """The images."""
    labels: Int64[np.ndarray, "n"]
    """Numbers of their classes; −1 for none."""


@dataclass
class Features:
    """A classifier and how good it is."""

    net: GridClassifier
    accuracy: float
    """Share of held-out images that it gives the right class."""
    device: torch.device

    @torch.no_grad()
    def of(self, pixels: UInt8[np.ndarray, "n h w c"]) -> tuple[Float[Tensor, "n d"], Int64[Tensor, "n"]]:
        """Features of images, and the class that each seems to be of."""
        found: list[Tensor] = []
        for begin in range(0, len(pixels), CHUNK):
            state = from_pixels(torch.from_numpy(pixels[begin : begin + CHUNK])).to(self.device)
            found.append(self.net.features(state))
        features = torch.cat(found)
        return features.cpu(), self.net.out(features).argmax(1).cpu()


def trained_features(
    train: LabelledImages,
    held_out: LabelledImages,
    classes: int,
    device: torch.device,
    *,
    file: Path | None = None,
    key: str = "",
    num_steps: int = STEPS,
    tell: Told = silent,
) -> Features:
    """Train a classifier, or read one that was kept.

    Args:
        train: what it learns from.
        held_out: what it is judged by.
        classes: how many there are.
        device: where it is trained.
        file: where it is kept; one that is there is read.
        key: what the data are; a classifier of other data is refused.
        num_steps: of the training.
        tell: takes what is done, and how far it has come.

    Raises:
        DataError: the file is damaged, or the data have fewer than two classes.
        UsageError: the file holds a classifier of other data.
    """
    if classes < 2:
        raise DataError("images are compared by features of a classifier, and these have no two classes")
    height, width, channels = train.pixels.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GridClassifier(channels, height, width, classes).to(device)
    if file is not None and file.exists():
        _read(net, file, key)
    else:
        _train(net, train, device, num_steps, tell)
        if file is not None:
            tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
            atomic_write(file, save(tensors, {"manta": json.dumps({"key": key})}))
    features = Features(net.eval(), 0.0, device)
    _, seen = features.of(held_out.pixels)
    features.accuracy = float((seen.numpy() == held_out.labels).mean())
    return features


def _train(net: GridClassifier, train: LabelledImages, device: torch.device, num_steps: int, tell: Any) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=num_steps)
    generator, precision = make_generator(0), faster_precision(device)
    for step in range(num_steps):
        rows = torch.randint(len(train.pixels), (BATCH,), generator=generator).numpy()
        state = from_pixels(torch.from_numpy(train.pixels[rows])).to(device)
        with autocast(device, precision):
            loss = F.cross_entropy(net(state).float(), torch.from_numpy(train.labels[rows]).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            tell("steps of the classifier that compares images", step, num_steps)


def _read(net: GridClassifier, file: Path, key: str) -> None:
    try:
        with safe_open(file, "pt") as stored:
            told = json.loads((stored.metadata() or {}).get("manta", "{}"))
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if not isinstance(told, dict) or told.get("key") != key:
            raise UsageError(f"{file} is no classifier of these images; give another --classifier, or a new name")
        net.load_state_dict(weights)
    except (OSError, SafetensorError, ValueError, RuntimeError, struct.error, KeyError) as error:
        raise DataError(f"{file} is no classifier of these images, or is damaged ({str(error)[:120]})") from error
