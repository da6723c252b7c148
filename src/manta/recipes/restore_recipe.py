"""The whole description of a run that trains a restorer of photographs."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from manta.config import filled
from manta.errors import ConfigError
from manta.families.instructions import TASKS
from manta.families.restorer import RestorerConfig
from manta.image.photos import RESTORE
from manta.nets.grid import DicConfig, UditConfig
from manta.recipes.image_recipe import IMAGE_SIZES, shaped_net
from manta.recipes.recipe import LEARNING_RATE, Size, check_length, size_of
from manta.training import TrainConfig

AUTO_SIZE: tuple[tuple[float, Size], ...] = ((20.0, "nano"), (90.0, "tiny"), (math.inf, "small"))
"""Minutes of the budget up to which a size is trained well on two CPU cores."""
BATCH_SIZES = {"nano": 10, "tiny": 20, "small": 40, "base": 60, "large": 60}
"""Tiles of a batch: as many of each fault."""


@dataclass(frozen=True, kw_only=True)
class RestoreRecipe:
    """A training run of a restorer."""

    state: Literal["photo"] = "photo"
    """What the model works on."""
    data: str = f"{RESTORE}:photos"
    """A folder of photographs, `restore:FOLDER`, read as `images:FOLDER` is; faults are put into them in training."""
    num_examples: int | None = None
    """Photographs to read; None reads all."""
    split: Literal["train"] = "train"
    """What to learn from."""
    family: Literal["restorer"] = "restorer"
    """Which family to train."""
    size: Literal["auto", "nano", "tiny", "small", "base", "large"] = "auto"
    """The size dial; sets width and depths of the net. `auto` follows the time budget."""
    only: Literal["noise", "blur", "rain", "haze", "snow"] | None = None
    """Learn to take out this fault alone; None: all."""
    begin_from: str | None = None
    """A restorer whose shared weights this one begins with."""
    batch_size: int | None = None
    """Tiles of a batch; None takes what fits the size."""
    time_budget: str | None = None
    """Time for the whole run, such as `3m`, `90m` or `2h`; turned into steps once, at the start."""
    num_steps: int | None = None
    """Steps, instead of a time budget."""
    seed: int = 0
    """All randomness of the run."""
    checkpoint_minutes: float = 2.0
    """Time between checkpoints."""
    model: RestorerConfig = field(default_factory=RestorerConfig)
    """Shape of the model."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is optimised."""

    def __post_init__(self) -> None:
        check_length(self.time_budget, self.num_steps, self.seed)
        if self.batch_size is not None and not 1 <= self.batch_size <= 65536:
            raise ConfigError(f"batch_size should lie between 1 and 65536, received {self.batch_size}")
        if self.num_examples is not None and self.num_examples < 1:
            raise ConfigError(f"num_examples should be at least 1, received {self.num_examples}")
        if self.model.only not in (None, self.only):
            raise ConfigError(f"model.only={self.model.only} follows from the recipe's own field; set only instead")
        if self.model.modulation.frozen and self.begin_from is None:
            raise ConfigError("frozen shared weights come from a model; name it with begin_from")
        if self.train.rounds > 1:
            raise ConfigError("rounds are for models of texts; set train.rounds=1")

    @property
    def fault(self) -> int | None:
        """Number of the one fault that is learned; None: all are."""
        return None if self.only is None else TASKS.index(self.only)


def resolve_restore(recipe: RestoreRecipe) -> RestoreRecipe:
    """Derive what follows from the dials: the net's shape, batches and learning rate. What was set by hand stays."""
    if recipe.time_budget is None and recipe.num_steps is None:
        recipe = replace(recipe, time_budget="30m")
    if recipe.size == "auto":
        recipe = replace(recipe, size=size_of(recipe.time_budget, AUTO_SIZE))
    net = shaped_net(recipe.model.net, IMAGE_SIZES[recipe.size], patch=2)
    widest = net.width * (4 if isinstance(net, DicConfig | UditConfig) else 1)
    train = filled(recipe.train, {"learning_rate": LEARNING_RATE / widest})
    recipe = filled(recipe, {"batch_size": BATCH_SIZES[recipe.size]})
    return replace(recipe, train=train, model=replace(recipe.model, net=net, only=recipe.only))


def portable_restore(recipe: RestoreRecipe) -> RestoreRecipe:
    """The recipe as a model carries it away: of a path only the last part, which tells no folder's name."""
    place = Path(recipe.data.removeprefix(f"{RESTORE}:")).name
    begun = recipe.begin_from and Path(recipe.begin_from).name
    return replace(recipe, data=f"{RESTORE}:{place}", begin_from=begun)
