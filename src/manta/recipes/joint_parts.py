"""A run of a model of captions and images: its data, its one stage, its samples and its card."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from manta.families.joint_flow import JointFlow, JointRequest, joint_matching, joint_shaped
from manta.families.joint_model import JointModel
from manta.image.captioned import CAPTIONED_FILES, CaptionedCorpus, CaptionedLoader, build_captioned
from manta.image.grid import grid_of, save_png
from manta.recipes.budget import Watch
from manta.recipes.card import written_card
from manta.recipes.image_parts import size_of_all
from manta.recipes.joint_recipe import JointRecipe, portable_joint, resolve_joint
from manta.recipes.parts import Parts, StageSpec
from manta.recipes.reading import Reading

SHOWN = 8
"""Images of a sample, each of a caption of the data."""


class JointParts(Parts):
    """Everything a run of a model of captions and images trains, and its data.

    Args:
        recipe: as resolved, and fitted to the data.
        corpus: the pairs as packed.
        device: where the net goes.
        source: what the data are, by content.
    """

    unit = "images"
    files = tuple(f"pairs/{file}" for file in CAPTIONED_FILES)

    def __init__(self, recipe: JointRecipe, corpus: CaptionedCorpus, device: torch.device, source: str) -> None:
        self.recipe, self.corpus, self.device = recipe, corpus, device
        self.report, self.modules, self.measured = corpus.report, nn.ModuleDict(), {}
        self.data = {"source": source, "captions": corpus.codec.fingerprint(), "corpus": corpus.digest}

    @classmethod
    def resolved(cls, recipe: JointRecipe, tell: Callable[[str], None]) -> JointRecipe:
        """See `recipes.joint_recipe`."""
        return resolve_joint(recipe)

    @classmethod
    def prepared(cls, recipe: JointRecipe, folder: Path, device: torch.device, watch: Watch) -> "JointParts":
        """Pack the pairs into the folder, all images of one size, or take those that it has."""
        reading = Reading(recipe, recipe.data, folder, watch)
        first = reading.first(recipe.channels)
        build_captioned(
            watch.over(reading.examples(recipe.channels), "the images"),
            folder / "pairs",
            size=size_of_all(recipe.height, recipe.width, first.pixels.shape),
            channels=recipe.channels,
            source=reading.source,
            fit=recipe.fit,
            skipped=reading.skipped,
        )
        corpus = CaptionedCorpus(folder / "pairs")
        recipe = replace(recipe, model=joint_shaped(recipe.model, corpus.codec))
        return cls(recipe, corpus, device, reading.source)

    def specs(self) -> list[StageSpec]:
        """One stage: both together."""
        torch.manual_seed(self.recipe.seed)  # initial weights only: all other randomness has generators of its own
        model = JointModel(self.recipe.model).to(self.device)
        self.modules["model"] = model
        objective = joint_matching(self.recipe.model, self.recipe.objective, self.measured)
        return [StageSpec("joint", 1.0, model, (model,), objective, lambda: self.corpus)]

    def batches(self, spec: StageSpec, seed: int, rows: Any = None) -> CaptionedLoader:
        """Endless batches of the pairs."""
        assert rows is None and self.recipe.batch_size is not None, "captions have no rounds"
        return CaptionedLoader(spec.corpus(), batch_size=self.recipe.batch_size, seed=seed)

    def trained_model(self, stage: str) -> JointFlow:
        """The model as it is by now."""
        return JointFlow(self.modules["model"], self.corpus.codec)  # pyright: ignore[reportArgumentType]

    @property
    def size(self) -> str:
        """Parameters, and where words and patches are."""
        count = sum(p.numel() for p in self.modules["model"].parameters())
        return f"{count / 1e6:.2f}M parameters, positions {self.recipe.model.positions.kind}"

    def samples(self, model: JointFlow, stage: str, file: Path) -> list[str]:
        """Images of captions of the data, and what the model says of images of the data."""
        rows = range(min(SHOWN, len(self.corpus)))
        captions = [self.corpus.codec.caption(self.corpus.words[row].tolist()) for row in rows]
        known = [(row, caption) for row, caption in enumerate(captions) if "<unk>" not in caption]
        made = list(model.generate([JointRequest(caption=caption, seed=row) for row, caption in known], num_steps=8))
        file.parent.mkdir(exist_ok=True)
        target = file.with_suffix(".png")
        if made:
            save_png(target, grid_of(np.stack([each.pixels for each in made])), {})
        said = model.describe(np.stack([self.corpus.pixels[row] for row in rows][:3]))
        told = [f"{captions[row]!r} is described as {words!r}" for row, words in enumerate(said)]
        return [f"images of captions: {target}", *told] if made else told

    def portable(self) -> JointRecipe:
        """See `portable_joint`."""
        return portable_joint(self.recipe)

    def card(self, model: JointFlow, plan: dict[str, int], minutes: dict[str, float]) -> str:
        """Data, recipe, steps and minutes. Scores are added by whoever measures them."""
        told = f"({self.report}). The licence of the data applies to the images and captions it was made from.\n\n"
        use = (
            "Draw with `manta generate FOLDER --caption … --out grid.png`, describe with `--describe photo.png`, or "
            "load it with `manta.load(FOLDER)`."
        )
        return written_card("A model of captions and images", self.portable(), told, plan, minutes, use)
