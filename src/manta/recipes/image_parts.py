"""A run of a model of images: its data, its one stage, its samples and its card."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from manta.errors import ConfigError
from manta.families.image_flow import DrawOptions, DrawRequest, ImageFlow, matching, reconstruction, shaped
from manta.families.image_model import ImageModel
from manta.hub.digest import digest_of
from manta.image import ImageCodec, ImageCorpus, ImageLoader, build_images, read_images
from manta.image.corpus import FILES
from manta.image.grid import grid_of, save_png
from manta.recipes.budget import Watch
from manta.recipes.card import written_card
from manta.recipes.conversion import MEASURED, Cost, begin_as, converted_blocks, converted_words, new_parts
from manta.recipes.image_conversion import for_converted_images, held_out_images, how_well_drawn, imitation, source_flow
from manta.recipes.image_recipe import DEFAULT_SIDE, ImageRecipe, portable_images, resolve_images
from manta.recipes.parts import Parts, StageSpec
from manta.recipes.reading import Reading
from manta.spaces import PixelSpace

SHOWN = 16
"""Images of a sample."""


class ImageParts(Parts):
    """Everything a run of a model of images trains, and its data.

    Args:
        recipe: as resolved, and fitted to the data.
        codec: size, channels and classes.
        corpus: the images as packed.
        device: where the nets go.
        source: what the data are, by content.
    """

    unit = "images"
    files = ("images.json", *(f"corpus/{file}" for file in FILES))

    def __init__(
        self, recipe: ImageRecipe, codec: ImageCodec, corpus: ImageCorpus, device: torch.device, source: str
    ) -> None:
        self.recipe, self.codec, self.corpus, self.device = recipe, codec, corpus, device
        self.report, self.modules, self.measured = corpus.report, nn.ModuleDict(), {}
        self.scores: list[Cost] = []  # of a conversion
        self.noise: float | None = None  # of images given back by their latents, dB
        self.data = {"source": source, "images": codec.fingerprint(), "corpus": corpus.digest}
        if recipe.converted_from is not None:
            self._check_classes()
            self.data["converted from"] = digest_of(self.source)

    @classmethod
    def resolved(cls, recipe: ImageRecipe, tell: Callable[[str], None]) -> ImageRecipe:
        """See `recipes.image_recipe` and `recipes.image_conversion`."""
        if recipe.converted_from is not None:
            recipe = for_converted_images(recipe, tell)
        return resolve_images(recipe)

    @classmethod
    def prepared(cls, recipe: ImageRecipe, folder: Path, device: torch.device, watch: Watch) -> "ImageParts":
        """Pack the images into the folder, all of one size, or take those that it has."""
        reading = Reading(recipe, recipe.data, folder, watch)
        first = reading.first(recipe.channels)
        channels = recipe.channels or first.pixels.shape[2]
        height, width = size_of_all(recipe.height, recipe.width, first.pixels.shape)
        build_images(
            watch.over(reading.examples(channels), "the images"),
            folder / "corpus",
            size=(height, width),
            channels=channels,
            source=reading.source,
            fit=recipe.fit,
            skipped=reading.skipped,
        )
        corpus = ImageCorpus(folder / "corpus")
        codec = ImageCodec(height=height, width=width, channels=channels, classes=corpus.classes)
        codec.save(folder / codec.file)
        return cls(replace(recipe, model=shaped(recipe.model, codec)), codec, corpus, device, reading.source)

    def specs(self) -> list[StageSpec]:
        """The flow, with its adaptive condition; before it a space of latents, or the new operators of a conversion."""
        torch.manual_seed(self.recipe.seed)  # initial weights only: all other randomness has generators of its own
        model = ImageModel(self.recipe.model).to(self.device)
        self.modules["model"] = model
        objective = matching(self.recipe.model, self.recipe.objective, self.measured)
        trained = tuple(part for part in (model.net, model.encoder) if part is not None)
        if self.recipe.converted_from is None:
            return [*self._of_space(model), StageSpec("flow", 1.0, model, trained, objective, lambda: self.corpus)]
        config, blocks = self.recipe.conversion, converted_blocks(self.recipe.conversion)
        begin_as(self.source, model, blocks)
        taught = imitation(self.recipe, self.source, outputs=config.outputs, states=config.states)
        new = new_parts(self.source, model, blocks)
        specs = [
            StageSpec("new", config.new_share, model, new, taught, lambda: self.corpus),
            StageSpec("flow", 1 - config.new_share, model, trained, taught, lambda: self.corpus),
        ]
        return [spec for spec in specs if spec.share > 0]

    def _of_space(self, model: ImageModel) -> list[StageSpec]:
        """The stage of a space that is trained."""
        if isinstance(model.space, PixelSpace):
            return []
        share = self.recipe.space_share
        objective = reconstruction(model, self.measured)
        ratio = share / (1 - share)
        return [StageSpec("space", ratio, model, (model.space,), objective, lambda: self.corpus)]

    @cached_property
    def source(self) -> ImageFlow:
        """The model that is converted."""
        flow = source_flow(self.recipe)
        flow.model.to(self.device)
        return flow

    def _check_classes(self) -> None:
        """See that the images are of the classes that the model knows.

        Raises:
            ConfigError: they are of others.
        """
        if self.codec.classes != self.source.codec.classes:
            raise ConfigError(
                f"{self.recipe.converted_from} knows {len(self.source.codec.classes)} classes, and {self.recipe.data} "
                f"has {len(self.codec.classes)}, or others; give the images it was trained on"
            )

    def batches(self, spec: StageSpec, seed: int, rows: Any = None) -> ImageLoader:
        """Endless batches of the images."""
        assert rows is None and self.recipe.batch_size is not None, "images have no rounds"
        return ImageLoader(spec.corpus(), batch_size=self.recipe.batch_size, seed=seed, mirror=self.recipe.mirror)

    def trained_model(self, stage: str) -> ImageFlow:
        """The flow as it is by now, with the codes of its images counted."""
        flow = ImageFlow(self.modules["model"], self.codec)  # pyright: ignore[reportArgumentType]
        flow.prompted = bool(self.codec.classes)
        flow.learn_codes(self.corpus)
        return flow

    @property
    def size(self) -> str:
        """Parameters and kind of the net."""
        count = sum(p.numel() for p in self.modules["model"].parameters())
        return f"{count / 1e6:.2f}M parameters, net {self.recipe.model.net.kind}"

    def finished(self, model: ImageFlow) -> list[str]:
        """What a space of latents loses, and what a conversion costs."""
        notes = []
        if not isinstance(model.model.space, PixelSpace):
            images = np.concatenate([batch.pixels.cpu() for batch in held_out_images(self.recipe, model, MEASURED)])
            error = float(np.square(images.astype(np.float64) - model.given_back(images)).mean())
            self.noise = 10 * math.log10(255**2 / max(error, 1e-9))
            notes.append(f"held-out images come back from their latents with {self.noise:.1f} dB (PSNR)")
        if self.recipe.converted_from is None:
            return notes
        self.scores = how_well_drawn(self.recipe, self.source, model.model)
        told = ", ".join(f"{score.name} {score.task:.4f}" for score in self.scores)
        return [
            *notes,
            f"error of the velocity, held out: {told}; apart from the source's: {self.scores[-1].apart:.4f}",
        ]

    def advice(self) -> tuple[str, ...]:
        """What is said of the images and not learned from."""
        if self.codec.classes or not self._captioned():
            return ()
        return (
            "advice: captions are not learned from; choose --family joint for it, or give the images a `label` to ask "
            "for them by class",
        )

    def _captioned(self) -> bool:
        first = next(read_images(self.recipe.data, self.recipe.split, 1), None)
        return first is not None and first.caption is not None

    def samples(self, model: ImageFlow, stage: str, file: Path) -> list[str]:
        """A grid of images, one of every class in turn; while a space is trained, images and what it gives back."""
        file.parent.mkdir(exist_ok=True)
        target = file.with_suffix(".png")
        if stage == "space":
            images = self.corpus.pixels(np.arange(min(SHOWN // 2, len(self.corpus))))
            save_png(target, grid_of(np.concatenate([images, model.given_back(images)]), len(images)), {})
            return [f"images and what their latents give back: {target}"]
        classes = len(self.codec.classes)
        requests = [DrawRequest(label=i % classes if classes else None, seed=i) for i in range(SHOWN)]
        drawn = np.stack([image.pixels for image in model.generate(requests, DrawOptions())])
        save_png(target, grid_of(drawn), {"steps": "8"})
        return [f"samples: {target}"]

    def portable(self) -> ImageRecipe:
        """See `portable_images`."""
        return portable_images(self.recipe)

    def card(self, model: ImageFlow, plan: dict[str, int], minutes: dict[str, float]) -> str:
        """Data, recipe, steps and minutes. Scores are added by whoever measures them."""
        heads = ("on held-out images", "error of the velocity", "squared distance to what the source says")
        recipe = self.portable()
        converted = converted_words(recipe.converted_from, recipe.conversion, self.scores, heads)
        latents = "" if self.noise is None else f"Held-out images come back from latents with {self.noise:.1f} dB.\n\n"
        classes = ", ".join(f"`{name}`" for name in self.codec.classes[:100]) or "none"
        told = f"({self.report}). The licence of the data applies to the images it was made from.\n\n"
        told += f"Classes: {classes}\n\n"
        use = "Load it with `manta.load(FOLDER)`; draw with `manta generate FOLDER --num-samples 16 --out grid.png`."
        return written_card("An image flow", recipe, f"{told}{converted}{latents}", plan, minutes, use)


def size_of_all(height: int | None, width: int | None, first: Sequence[int]) -> tuple[int, int]:
    """Height and width of all images: as asked, or as the first one's, smaller if that is large."""
    if height is not None or width is not None:
        return height or width or 0, width or height or 0
    if max(first[:2]) <= DEFAULT_SIDE:
        return first[0], first[1]
    side = min(DEFAULT_SIDE, *first[:2])
    return side, side
