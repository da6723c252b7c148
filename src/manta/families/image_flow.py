"""Image flows ready to draw: from requests to images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from manta.config import annotations_of, convert
from manta.errors import ConfigError, ModelError, UsageError
from manta.families.image_model import ImageConfig, ImageModel, without_class
from manta.families.image_objective import ImageMatching, ImageObjectiveConfig, Reconstruction
from manta.families.kept import KeptModel
from manta.families.options import MOST
from manta.flow import SOLVERS, guided, solve, steps_within
from manta.flow.adaptive import code_numbers, drawn_codes
from manta.flow.solvers import per_request_noise
from manta.image import ImageCodec, ImageCorpus, from_pixels, to_pixels
from manta.image.corpus import NO_CLASS
from manta.nets.grid import Told
from manta.nets.grid.dit import DitNet
from manta.nets.trunk import Trunk
from manta.runtime import check_seed, make_generator
from manta.spaces import LatentGrid, RateController

BATCH = 64
"""Images drawn at once, unless it is said otherwise."""
CODES = "codes"
"""Name of the stored frequencies of codes."""
MAX_CODES = 1 << 22
"""Most numbers of a table of codes by class; above it the codes of all classes together are kept."""


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How to draw."""

    num_steps: int = 8
    """Budget of sequential network calls for an image, at least 1; never exceeded."""
    solver: Literal["euler", "heun", "renoise"] = "euler"
    """How the flow is followed: `heun` takes two calls a step, `renoise` draws noise on the way."""
    guidance_scale: float = 1.0
    """How far beyond the class's own estimate to go from the one without; 1 = off. It takes two calls an estimate."""
    strength: float = 0.6
    """Of a change of an image: how far back towards noise it is taken, above 0 and at most 1, where nothing is kept."""

    def __post_init__(self) -> None:
        annotations = annotations_of(type(self))
        for known in fields(self):
            object.__setattr__(
                self, known.name, convert(annotations[known.name], getattr(self, known.name), known.name)
            )
        if not 1 <= self.num_steps <= MOST:
            raise UsageError(f"`num_steps` should lie between 1 and {MOST:,}, received {self.num_steps}")
        if self.solver not in SOLVERS:
            raise UsageError(f"`solver` should be one of {', '.join(SOLVERS)}, received {self.solver!r}")
        if not 0 <= self.guidance_scale <= 100:
            raise UsageError(f"`guidance_scale` should lie in [0, 100], received {self.guidance_scale}")
        if self.guidance_scale != 1 and self.num_steps < 2:
            raise UsageError("guidance takes two calls an estimate; raise `num_steps`, or leave `guidance_scale` out")
        if not 0 < self.strength <= 1:
            raise UsageError(f"`strength` should lie above 0 and be at most 1, received {self.strength}")


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawRequest:
    """One image to be drawn."""

    label: int | None = None
    """Number of its class; None for any."""
    seed: int = 0
    """All randomness of this image, 0 … 2⁶³−1."""
    begin: UInt8[np.ndarray, "h w c"] | None = None
    """An image to change, of the model's size; None to draw freely."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """What has become of one request."""

    index: int
    """Which request, counted from 0."""
    pixels: UInt8[np.ndarray, "h w c"]
    """The image."""
    nfe: int
    """Sequential calls of the policy that it took; latents are read as an image by one pass of a small decoder more."""


class ImageFlow(KeptModel):
    """An image flow ready to draw.

    Args:
        model: the nets.
        codec: size, channels and names of the classes.
        codes: how often each code comes with each class, or with all ("k 2^bits", k = 1 or the classes); None where the
            model has no adaptive condition.
    """

    family = "image"
    config_class, net_class, codec_class = ImageConfig, ImageModel, ImageCodec

    def __init__(self, model: ImageModel, codec: ImageCodec, codes: Float[Tensor, "k m"] | None = None) -> None:
        self.model, self.images, self.codes = model.eval(), codec, codes

    @property
    def codec(self) -> ImageCodec:
        """Size, channels and classes."""
        return self.images

    @staticmethod
    def trunk_of(net: ImageModel) -> Trunk:
        """Blocks whose operators act between all patches.

        Raises:
            ModelError: the net has none such.
        """
        if not isinstance(net.net, DitNet):
            raise ModelError(
                f"a net of the kind {net.config.net.kind} has no blocks with attention between all patches; those of "
                "the kind dit have"
            )
        return net.net.trunk

    @staticmethod
    def check_codec(shape: ImageConfig, codec: ImageCodec) -> None:
        """See that the net is made for such images."""
        if (shape.height, shape.width, shape.channels, shape.classes) != (*codec.shape, len(codec.classes)):
            raise ConfigError(
                f"{shape.height} × {shape.width} × {shape.channels} and {shape.classes} classes, and its images have "
                f"{codec.height} × {codec.width} × {codec.channels} and {len(codec.classes)}"
            )

    @classmethod
    def stored(
        cls, net: ImageModel, codec: ImageCodec, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "ImageFlow":
        """With the frequencies of its codes."""
        if not net.config.bits:
            return cls(net, codec)
        codes, rows = parts.get(CODES), (1, len(codec.classes) or 1)
        fits = (
            codes is not None and codes.ndim == 2 and codes.shape[0] in rows and codes.shape[1] == 1 << net.config.bits
        )
        if codes is None or not fits or not bool((codes >= 0).all() and (codes.sum(1) > 0).all()):
            raise ConfigError("it has an adaptive condition, and the frequencies of its codes are missing or damaged")
        return cls(net, codec, codes.float())

    def parts(self) -> dict[str, Tensor]:
        """Frequencies of the codes; as vectors of their own they keep their precision."""
        return {} if self.codes is None else {CODES: self.codes.round().to(torch.int64)}

    @torch.no_grad()
    def learn_codes(self, corpus: ImageCorpus, most: int = 20_000) -> None:
        """Count the codes of training images, by class where the table is small enough.

        Args:
            corpus: the images.
            most: images that are looked at, evenly spaced.
        """
        bits, classes = self.model.config.bits, len(self.images.classes)
        if not bits:
            return
        by_class = classes > 0 and classes << bits <= MAX_CODES
        counts = torch.zeros(classes if by_class else 1, 1 << bits, dtype=torch.int64)
        rows = np.unique(np.linspace(0, len(corpus) - 1, min(most, len(corpus))).astype(np.int64))
        for begin in range(0, len(rows), 256):
            chosen = rows[begin : begin + 256]
            code = self.model.code(self._encoded(corpus.pixels(chosen)))
            assert code is not None
            numbers = code_numbers(code).cpu()
            kinds = torch.from_numpy(corpus.labels[chosen]) if by_class else torch.zeros_like(numbers)
            counts.index_put_((kinds, numbers), torch.ones_like(numbers), accumulate=True)
        counts[counts.sum(1) == 0] = 1
        self.codes = counts.float()

    def draw(
        self,
        label: str | int | None = None,
        *,
        num_samples: int = 1,
        seed: int = 0,
        edit: UInt8[np.ndarray, "h w c"] | None = None,
        batch_size: int = BATCH,
        **options: Any,
    ) -> UInt8[np.ndarray, "b h w c"]:
        """Draw images.

        Args:
            label: class of all of them, by name or number; None for any.
            num_samples: how many; sample j has the seed `seed + j`.
            seed: of the first.
            edit: an image to change, of the model's size: it is taken back to a state on the way (SDEdit) and drawn on.
            batch_size: most images drawn at once.
            options: fields of `DrawOptions`.

        Raises:
            UsageError: an unknown class or option, or values out of range.
        """
        try:
            how = DrawOptions(**options)
        except TypeError as error:
            raise UsageError(f"unknown option ({error}); see `DrawOptions`") from None
        except ConfigError as error:
            raise UsageError(str(error)) from None
        for name, value in {"num_samples": num_samples, "seed": seed, "batch_size": batch_size}.items():
            if type(value) is not int:
                raise UsageError(f"`{name}` should be an integer, received {value!r}")
        if batch_size < 1:
            raise UsageError(f"`batch_size` should be at least 1, received {batch_size}")
        if edit is not None and (not isinstance(edit, np.ndarray) or edit.dtype != np.uint8):
            raise UsageError("an image to change is an array of uint8, height × width × channels")
        if label is not None and not isinstance(label, str | int):
            raise UsageError(f"a class is a name or a number, received {label!r}")
        number = None if label is None else self.images.number(label)
        if num_samples < 1:
            raise UsageError(f"`num_samples` should be at least 1, received {num_samples}")
        requests = [DrawRequest(label=number, seed=seed + j, begin=edit) for j in range(num_samples)]
        found = sorted(self.generate(requests, how, batch_size=batch_size), key=lambda drawn: drawn.index)
        return np.stack([drawn.pixels for drawn in found])

    @torch.no_grad()
    def generate(
        self, requests: Sequence[DrawRequest], options: DrawOptions, *, batch_size: int = BATCH
    ) -> Iterator[Drawn]:
        """Draw images; yields them as they are done.

        An image depends on its class, its seed and the options, and, up to the rounding of products, not on the batch
        it rides in.

        Args:
            requests: classes and seeds.
            options: of all.
            batch_size: most images drawn at once.
        """
        self.check(requests, options)
        for begin in range(0, len(requests), batch_size):
            rows = requests[begin : begin + batch_size]
            state, nfe = self._drawn(rows, options)
            for index, pixels in enumerate(self.images_of(state)):
                yield Drawn(index=begin + index, pixels=pixels, nfe=nfe)

    def check(self, requests: Sequence[DrawRequest], options: DrawOptions) -> None:
        """Refuse what cannot be drawn, before anything is.

        Raises:
            UsageError: a seed out of range, an image to change of another size, or guidance without a class.
        """
        if options.guidance_scale != 1 and all(request.label is None for request in requests):
            raise UsageError("guidance goes beyond what a class asks for, and none does; name a class, or leave it out")
        for request in requests:
            check_seed(request.seed)
            if request.begin is not None and request.begin.shape != self.images.shape:
                raise UsageError(f"an image to change has {self.images.shape}, received {request.begin.shape}")

    def begin(self, rows: Sequence[DrawRequest]) -> tuple[Float[Tensor, "b n c"], Told, list[torch.Generator]]:
        """Noise and condition of some requests, and the generators of what is drawn later."""
        space = self.model.space
        generators = [make_generator(row.seed) for row in rows]
        noise = torch.stack([torch.randn(space.height * space.width, space.channels, generator=g) for g in generators])
        label = torch.tensor([NO_CLASS if row.label is None else row.label for row in rows])
        code = self._codes(label, generators)
        for row, request in enumerate(rows):
            if code is not None and request.begin is not None:  # an image that is there says its own code
                own = self.model.code(self._encoded(request.begin[None]))
                code[row] = code[row] if own is None else own[0].cpu()
        told = self.model.told(label.to(self.device), None if code is None else code.to(self.device))
        return noise.to(self.device), told, generators

    def images_of(self, state: Float[Tensor, "b n c"]) -> UInt8[np.ndarray, "b h w c2"]:
        """The images of some states."""
        return to_pixels(self.model.space.decode(state), self.images.shape)

    @torch.no_grad()
    def given_back(self, images: UInt8[np.ndarray, "b h w c"]) -> UInt8[np.ndarray, "b h w c"]:
        """What is left of images once they have been states."""
        parts = (images[begin : begin + BATCH] for begin in range(0, len(images), BATCH))
        return np.concatenate([self.images_of(self._encoded(part)) for part in parts])

    def _encoded(self, images: UInt8[np.ndarray, "b h w c"]) -> Float[Tensor, "b n c2"]:
        """Clean states of images."""
        return self.model.space.encode(from_pixels(torch.from_numpy(images)).to(self.device))

    def _drawn(self, rows: Sequence[DrawRequest], options: DrawOptions) -> tuple[Tensor, int]:
        noise, told, generators = self.begin(rows)
        field: Any = self.model.act
        guidance = options.guidance_scale if told.label is not None else 1.0
        if guidance != 1:
            field = guided(self.model.act, self._null_field(told), guidance)
        steps = steps_within(options.solver, options.num_steps, 1 if guidance == 1 else 2)
        start, state = 0.0, noise
        edited = [row.begin for row in rows]
        if any(image is not None for image in edited):
            assert all(image is not None for image in edited), "images to change are not mixed with others"
            start = 1 - options.strength
            clean = self._encoded(np.stack(edited))  # pyright: ignore[reportCallIssue, reportArgumentType]
            state = (1 - start) * noise + start * clean
        grid = torch.linspace(start, 1, steps + 1, dtype=torch.float64)
        noises = per_request_noise(generators) if options.solver == "renoise" else None
        *_, reached = solve(field, state, grid, step=SOLVERS[options.solver], noise=noises, cond=told)
        return reached.state, reached.nfe

    def _null_field(self, told: Told) -> Any:
        null = without_class(told, self.model.config.classes)

        def field(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Any = None) -> Any:
            return self.model.act(state, t, cond=null)

        return field

    def _codes(self, label: Tensor, generators: Sequence[torch.Generator]) -> Float[Tensor, "b k"] | None:
        """Codes drawn by their frequency with each class; where no class is asked for, with all."""
        if self.codes is None:
            return None
        whole = self.codes.sum(0)
        tables = [self.codes[kind] if kind >= 0 and len(self.codes) > 1 else whole for kind in label.tolist()]
        return drawn_codes(torch.stack(tables), list(generators), self.model.config.bits)


def matching(config: ImageConfig, objective: ImageObjectiveConfig, measured: dict[str, Any]) -> ImageMatching:
    """What a run teaches an image flow; its density of times is put among what is measured."""
    measured["density"] = density = config.time.build()
    return ImageMatching(objective, density)


def reconstruction(model: ImageModel, measured: dict[str, Any]) -> Reconstruction:
    """What a run teaches a space of latents; what holds its rate is put among what is measured."""
    space = model.space
    assert isinstance(space, LatentGrid), "a space that is trained"
    target = space.config.information * space.height * space.width * space.channels
    measured["controller"] = controller = RateController(target)
    return Reconstruction(controller)


def shaped(config: ImageConfig, codec: ImageCodec) -> ImageConfig:
    """A shape with the sizes of the data."""
    height, width, channels = codec.shape
    return replace(config, height=height, width=width, channels=channels, classes=len(codec.classes))
