"""A run of a restorer of photographs: its data, its one stage, its samples and its card."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from manta.errors import ConfigError, ModelError
from manta.families.restorer import Restoration, Restorer, RestorerModel
from manta.hub import load
from manta.hub.digest import digest_of
from manta.image.degradations import spoiled
from manta.image.grid import grid_of, save_png
from manta.image.photos import PHOTO_FILES, PhotoCorpus, PhotoLoader, build_photos, photos_of
from manta.nets.modulated import task_maps
from manta.recipes.budget import Watch
from manta.recipes.card import written_card
from manta.recipes.origins import placed, refuse_quantised
from manta.recipes.parts import Parts, StageSpec
from manta.recipes.reading import Reading
from manta.recipes.restore_recipe import RestoreRecipe, portable_restore, resolve_restore

CHANGES = ("up", "down", "change", "scale", "shift")
"""Names of what a map has of each fault."""


class RestoreParts(Parts):
    """Everything a run of a restorer trains, and its data.

    Args:
        recipe: as resolved.
        corpus: the photographs as packed.
        device: where the net goes.
        source: what the data are, by content.
    """

    unit = "tiles"
    files = tuple(f"photos/{file}" for file in PHOTO_FILES)

    def __init__(self, recipe: RestoreRecipe, corpus: PhotoCorpus, device: torch.device, source: str) -> None:
        self.recipe, self.corpus, self.device = recipe, corpus, device
        self.report, self.modules, self.measured = corpus.report, nn.ModuleDict(), {}
        self.data = {"source": source, "corpus": corpus.digest}
        if recipe.begin_from is not None:
            self.data["begun from"] = digest_of(self.source)

    @classmethod
    def resolved(cls, recipe: RestoreRecipe, tell: Callable[[str], None]) -> RestoreRecipe:
        """See `recipes.restore_recipe`."""
        if recipe.begin_from is not None:
            recipe = replace(recipe, begin_from=placed(recipe.begin_from))
            begun_restorer(recipe)
        recipe = resolve_restore(recipe)
        with torch.device("meta"):  # what does not fit is said before anything is read
            RestorerModel(recipe.model)
        return recipe

    @classmethod
    def prepared(cls, recipe: RestoreRecipe, folder: Path, device: torch.device, watch: Watch) -> "RestoreParts":
        """Pack the photographs into the folder, or take those that it has."""
        reading = Reading(recipe, photos_of(recipe.data), folder, watch)
        build_photos(
            watch.over(reading.examples(3), "the photographs"),
            folder / "photos",
            side=recipe.model.tile,
            source=reading.source,
            skipped=reading.skipped,
        )
        return cls(recipe, PhotoCorpus(folder / "photos"), device, reading.source)

    def specs(self) -> list[StageSpec]:
        """One stage: all faults together."""
        torch.manual_seed(self.recipe.seed)  # initial weights only: all other randomness has generators of its own
        model = RestorerModel(self.recipe.model).to(self.device)
        self.modules["model"] = model
        if self.recipe.begin_from is not None:
            begin_with_shared(self.source.model, model)
        frozen = self.recipe.model.modulation.frozen
        own = nn.ParameterList(each for _, part in task_maps(model) for each in part.own)
        return [StageSpec("restore", 1.0, model, (own if frozen else model,), Restoration(), lambda: self.corpus)]

    @cached_property
    def source(self) -> Restorer:
        """The model whose shared weights this one begins with."""
        return begun_restorer(self.recipe)

    def batches(self, spec: StageSpec, seed: int, rows: Any = None) -> PhotoLoader:
        """Endless batches of spoiled tiles."""
        assert rows is None and self.recipe.batch_size is not None, "photographs have no rounds"
        side, only = self.recipe.model.tile, self.recipe.fault
        return PhotoLoader(spec.corpus(), side=side, batch_size=self.recipe.batch_size, seed=seed, only=only)

    def trained_model(self, stage: str) -> Restorer:
        """The restorer as it is by now."""
        return Restorer(self.modules["model"])  # pyright: ignore[reportArgumentType]

    @property
    def size(self) -> str:
        """Parameters, those of the faults among them."""
        model = self.modules["model"]
        whole = sum(p.numel() for p in model.parameters())
        own = sum(p.numel() for _, part in task_maps(model) for p in part.own)
        return f"{whole / 1e6:.2f}M parameters, {own / whole:.0%} of single faults, net {self.recipe.model.net.kind}"

    def samples(self, model: Restorer, stage: str, file: Path) -> list[str]:
        """For each fault a tile spoiled, restored and as it was."""
        side, rows = min(2 * self.recipe.model.tile, *self.corpus.sizes[0]), []
        clean = self.corpus.crop(0, 0, 0, side, side)
        for number, name in enumerate(model.faults):
            bad = spoiled(clean, name, np.random.default_rng(number))
            rows += [bad, model.restore(bad, task=name), clean]
        file.parent.mkdir(exist_ok=True)
        target = file.with_suffix(".png")
        save_png(target, grid_of(np.stack(rows), 3), {})
        return [f"spoiled, restored, as it was ({', '.join(model.faults)}): {target}"]

    def portable(self) -> RestoreRecipe:
        """See `portable_restore`."""
        return portable_restore(self.recipe)

    def card(self, model: Restorer, plan: dict[str, int], minutes: dict[str, float]) -> str:
        """Data, recipe, steps and minutes. Scores are added by whoever measures them."""
        told = f"({self.report}). The licence of the data applies to the photographs it was made from.\n\n"
        use = (
            "Use it with `manta restore FOLDER photo.jpg --instruction 'take the rain away' --out clean.png`, or load "
            "it with `manta.load(FOLDER)`."
        )
        faults = f"Takes out: {', '.join(model.faults)}.\n\n"
        return written_card("A restorer of photographs", self.portable(), told + faults, plan, minutes, use)


def begun_restorer(recipe: RestoreRecipe) -> Restorer:
    """The restorer that a run begins with.

    Raises:
        ModelError: it is none, or one of integers.
    """
    found = load(recipe.begin_from, device="cpu")
    if not isinstance(found, Restorer):
        raise ModelError(f"{recipe.begin_from} is no restorer of photographs")
    refuse_quantised(found, recipe.begin_from)
    return found


def begin_with_shared(source: RestorerModel, net: RestorerModel) -> None:
    """Give a net the weights that all faults share of another.

    Raises:
        ConfigError: the two are of other shapes.
    """
    theirs = {name.replace(".base.", "."): value for name, value in source.state_dict().items()}
    own = net.state_dict()
    taken = {name: theirs[short] for name in own if (short := name.replace(".base.", ".")) in theirs}
    changes = {f"{name}.{each}" for name, _ in task_maps(net) for each in CHANGES}
    missing = set(own) - set(taken) - changes
    taken = {name: value for name, value in taken.items() if name not in changes}
    if missing or any(own[name].shape != value.shape for name, value in taken.items()):
        raise ConfigError("begin_from is a restorer of another shape; give the same model.net and model.tile")
    net.load_state_dict({**own, **taken})
