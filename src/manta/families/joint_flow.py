"""Models of captions and images, ready to draw and to describe."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from manta.errors import ConfigError, UsageError
from manta.families.joint_model import Joint, JointConfig, JointMatching, JointModel, JointObjectiveConfig
from manta.families.kept import KeptModel
from manta.families.options import MOST
from manta.image import from_pixels, to_pixels
from manta.image.captioned import NOTHING, UNKNOWN, CaptionedCodec
from manta.runtime import check_seed, make_generator

BATCH = 64
"""Rows at once, unless it is said otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class JointRequest:
    """One row: what is given of a caption and of an image; the rest is made."""

    caption: str | None = None
    """In words, `___` for each word that is to be found; None: the caption is made."""
    image: UInt8[np.ndarray, "h w c"] | None = None
    """Of the model's size; None: the image is made."""
    hidden: Bool[np.ndarray, "h w"] | None = None
    """True where an image that is given is to be made anew; whole patches are."""
    seed: int = 0
    """All randomness of this row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """What has become of one request."""

    index: int
    """Which request, counted from 0."""
    caption: str
    """The caption, as given or made."""
    pixels: UInt8[np.ndarray, "h w c"]
    """The image, as given or made."""
    nfe: int
    """Sequential network calls that it took."""


class JointFlow(KeptModel):
    """A model of captions and images, ready to work.

    Args:
        model: the net.
        codec: sizes and words.
    """

    family = "joint"
    config_class, net_class, codec_class = JointConfig, JointModel, CaptionedCodec

    def __init__(self, model: JointModel, codec: CaptionedCodec) -> None:
        self.model, self._codec = model.eval(), codec

    @property
    def codec(self) -> CaptionedCodec:
        """Sizes and words."""
        return self._codec

    @staticmethod
    def check_codec(shape: JointConfig, codec: CaptionedCodec) -> None:
        """See that the net is made for such captions and images."""
        if (shape.vocab_size, shape.places) != (codec.vocab_size, codec.places):
            raise ConfigError(
                f"{shape.vocab_size} words and captions of {shape.places}, and its captions have {codec.vocab_size} "
                f"and {codec.places}"
            )
        if (shape.height, shape.width, shape.channels) != codec.shape:
            raise ConfigError(
                f"images of {shape.height} × {shape.width} × {shape.channels}, and they have {codec.shape}"
            )

    @classmethod
    def stored(
        cls, net: JointModel, codec: CaptionedCodec, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "JointFlow":
        """Nothing is stored beside its weights."""
        return cls(net, codec)

    def draw(
        self, caption: str | None = None, *, num_samples: int = 1, seed: int = 0, num_steps: int = 16
    ) -> UInt8[np.ndarray, "b h w c"]:
        """Images of a caption, or any.

        Args:
            caption: in words that the model knows.
            num_samples: how many; sample j has the seed `seed + j`.
            seed: of the first.
            num_steps: sequential network calls.

        Raises:
            UsageError: an unknown word, or values out of range.
        """
        if num_samples < 1:
            raise UsageError(f"`num_samples` should be at least 1, received {num_samples}")
        requests = [JointRequest(caption=caption, seed=seed + j) for j in range(num_samples)]
        return np.stack([made.pixels for made in self.generate(requests, num_steps=num_steps)])

    def describe(self, images: UInt8[np.ndarray, "b h w c"], *, seed: int = 0, num_steps: int = 4) -> list[str]:
        """A caption of each image.

        Args:
            images: of the model's size.
            seed: of the first.
            num_steps: sequential network calls.
        """
        requests = [JointRequest(image=image, seed=seed + j) for j, image in enumerate(images)]
        return [made.caption for made in self.generate(requests, num_steps=num_steps)]

    @torch.no_grad()
    def generate(
        self, requests: Sequence[JointRequest], *, num_steps: int = 16, batch_size: int = BATCH
    ) -> Iterator[Made]:
        """Make what is not given; yields rows in order as they are done.

        Args:
            requests: what is given.
            num_steps: sequential network calls of each, at least 1.
            batch_size: rows at once.

        Raises:
            UsageError: an unknown word, an image of another size, or values out of range.
        """
        if not 1 <= num_steps <= MOST or batch_size < 1:
            raise UsageError(f"`num_steps` should lie between 1 and {MOST:,}, and `batch_size` be at least 1")
        rows = [self._read(request) for request in requests]
        for begin in range(0, len(rows), batch_size):
            part = rows[begin : begin + batch_size]
            seeds = [request.seed for request in requests[begin : begin + batch_size]]
            words, image = self._made([row for row, _ in part], [given for _, given in part], seeds, num_steps)
            pixels = to_pixels(self.model.image_of(image), self.codec.shape)
            for place, (numbers, each) in enumerate(zip(words.tolist(), pixels, strict=True)):
                request = requests[begin + place]
                if request.image is not None and request.hidden is None:
                    each = request.image
                yield Made(index=begin + place, caption=self.codec.caption(numbers), pixels=each, nfe=num_steps)

    def _read(self, request: JointRequest) -> tuple[Joint, Joint]:
        """Words' numbers and patches of a request, and which of them are given."""
        check_seed(request.seed)
        codec, model = self.codec, self.model
        if request.caption is not None and not isinstance(request.caption, str):
            raise UsageError(f"a caption is a string, received {request.caption!r}")
        for array, kind, name in ((request.image, np.uint8, "an image"), (request.hidden, np.bool_, "what is hidden")):
            if array is not None and (not isinstance(array, np.ndarray) or array.dtype != kind):
                raise UsageError(f"{name} is an array of {np.dtype(kind)}")
        numbers = [-1] * codec.places
        if request.caption is not None:
            numbers = codec.numbers(request.caption, blanks=True)
        words = torch.tensor(numbers)
        patches = torch.zeros(model.rows * model.columns, model.values)
        known = torch.zeros(len(patches), dtype=torch.bool)
        if request.image is not None:
            if request.image.shape != codec.shape:
                raise UsageError(f"an image has {codec.shape}, received {request.image.shape}")
            patches = model.patches_of(from_pixels(torch.from_numpy(request.image))[None])[0]
            known = ~known
            if request.hidden is not None:
                if request.hidden.shape != codec.shape[:2]:
                    raise UsageError(f"what is hidden has {codec.shape[:2]}, received {request.hidden.shape}")
                hidden = torch.from_numpy(request.hidden).float().flatten()[None, :, None]
                hidden = hidden.expand(-1, -1, codec.channels)
                known = ~(model.patches_of(hidden)[0] > 0).any(-1)
        elif request.hidden is not None:
            raise UsageError("what is hidden is a part of an image, and none is given")
        return Joint(words, patches), Joint(words >= 0, known)

    def _made(self, rows: list[Joint], given: list[Joint], seeds: list[int], num_steps: int) -> tuple[Tensor, Tensor]:
        """Words' numbers and patches once the flow has ended: each step one call, words as their expected states."""
        model, device = self.model, self.device
        numbers, image = (torch.stack(part).to(device) for part in zip(*rows, strict=True))
        told = Joint(*(torch.stack(part).to(device) for part in zip(*given, strict=True)))
        generators = [make_generator(seed) for seed in seeds]
        shape = (numbers.shape[1], model.config.word_channels)
        noise = [
            torch.stack([torch.randn(size, generator=g) for g in generators]).to(device)
            for size in (shape, tuple(image.shape[1:]))
        ]
        clean = model.words.clean(numbers.clamp_min(0))
        words = torch.where(told.words[..., None], clean, noise[0])
        patches = torch.where(told.patches[..., None], image, noise[1])
        grid = torch.linspace(0, 1, num_steps + 1).tolist()
        choice, barred = numbers, _barred(told.words, model.config.vocab_size)
        for now, after in pairwise(grid):
            times = Joint(*(torch.where(each, 1.0, now) for each in told))
            logits, velocity = model(Joint(words, patches), times)
            logits = logits.masked_fill(barred, -torch.inf)
            choice = torch.where(told.words, numbers, logits.argmax(-1))
            expected: Float[Tensor, "b n c"] = logits.softmax(-1) @ model.words.embedding
            share = (after - now) / (1 - now)
            words = torch.where(told.words[..., None], clean, torch.lerp(words, expected, share))
            moved = patches + (after - now) * velocity
            patches = torch.where(told.patches[..., None], image, moved)
        return choice, patches


def _barred(given: Bool[Tensor, "b n"], vocab_size: int) -> Bool[Tensor, "b n v"]:
    """Words that a place cannot get: the unknown one, and nothing before a word that is given."""
    after = given.flip(1).cumsum(1).flip(1) > 0
    barred = torch.zeros(*given.shape, vocab_size, dtype=torch.bool, device=given.device)
    barred[..., UNKNOWN] = True
    barred[..., NOTHING] = after
    return barred


def joint_matching(config: JointConfig, objective: JointObjectiveConfig, measured: dict[str, Any]) -> JointMatching:
    """What a run teaches; its density of times is put among what is measured."""
    measured["density"] = density = config.time.build()
    return JointMatching(objective, density)


def joint_shaped(config: JointConfig, codec: CaptionedCodec) -> JointConfig:
    """A shape with the sizes of the data."""
    height, width, channels = codec.shape
    sizes = {"height": height, "width": width, "channels": channels, "places": codec.places}
    return replace(config, vocab_size=codec.vocab_size, **sizes)
