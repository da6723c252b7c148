"""The whole description of a run that trains a model of captions and images."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from manta.config import filled
from manta.errors import ConfigError
from manta.families.joint_model import JointConfig, JointObjectiveConfig
from manta.image.files import Fit
from manta.recipes.image_recipe import IMAGE_SIZES, MAX_SIDE, portable_data
from manta.recipes.recipe import LEARNING_RATE, Size, check_length, size_of
from manta.training import TrainConfig

AUTO_SIZE: tuple[tuple[float, Size], ...] = ((10.0, "nano"), (45.0, "tiny"), (math.inf, "small"))
"""Minutes of the budget up to which a size is trained well on two CPU cores."""


@dataclass(frozen=True, kw_only=True)
class JointRecipe:
    """A training run of a model of captions and images."""

    state: Literal["joint"] = "joint"
    """What the model makes."""
    data: str = "builtin:shapes"
    """Where images and captions come from: `images:FOLDER` with a table `captions.csv`, or `builtin:shapes`."""
    num_examples: int | None = None
    """Images to read; None reads all."""
    split: Literal["train"] = "train"
    """What to learn from."""
    family: Literal["joint"] = "joint"
    """Which family to train."""
    size: Literal["auto", "nano", "tiny", "small", "base", "large"] = "auto"
    """The size dial; sets width, depth and heads of the net. `auto` follows the time budget."""
    height: int | None = None
    """Pixels of an image; None: those of the first image, of a large one 64."""
    width: int | None = None
    """Pixels of an image; None: as `height`."""
    channels: Literal[1, 3] = 3
    """3 for colours, 1 for grey."""
    fit: Fit = "crop"
    """How images of another size are fitted: `crop` keeps proportions, `stretch` keeps all of the image."""
    batch_size: int | None = None
    """Pairs of a batch; None takes what fits the size."""
    time_budget: str | None = None
    """Time for the whole run, such as `3m`, `90m` or `2h`; turned into steps once, at the start."""
    num_steps: int | None = None
    """Steps, instead of a time budget."""
    seed: int = 0
    """All randomness of the run."""
    checkpoint_minutes: float = 2.0
    """Time between checkpoints."""
    model: JointConfig = field(default_factory=JointConfig)
    """Shape of the model."""
    objective: JointObjectiveConfig = field(default_factory=JointObjectiveConfig)
    """What it is taught."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is optimised."""

    def __post_init__(self) -> None:
        check_length(self.time_budget, self.num_steps, self.seed)
        for name in ("height", "width"):
            if (side := getattr(self, name)) is not None and not 4 <= side <= MAX_SIDE:
                raise ConfigError(f"{name} should lie between 4 and {MAX_SIDE}, received {side}")
        if self.batch_size is not None and not 1 <= self.batch_size <= 65536:
            raise ConfigError(f"batch_size should lie between 1 and 65536, received {self.batch_size}")
        if self.num_examples is not None and self.num_examples < 1:
            raise ConfigError(f"num_examples should be at least 1, received {self.num_examples}")
        if self.train.rounds > 1:
            raise ConfigError("rounds are for models of texts; set train.rounds=1")


def resolve_joint(recipe: JointRecipe) -> JointRecipe:
    """Derive what follows from the dials: the net's shape, batches and learning rate. What was set by hand stays."""
    if recipe.time_budget is None and recipe.num_steps is None:
        recipe = replace(recipe, time_budget="30m")
    if recipe.size == "auto":
        recipe = replace(recipe, size=size_of(recipe.time_budget, AUTO_SIZE))
    size = IMAGE_SIZES[recipe.size]
    dim, depth, heads = size.dit
    model = filled(recipe.model, {"dim": dim, "depth": depth, "heads": heads})
    train = filled(recipe.train, {"learning_rate": LEARNING_RATE / (model.dim or dim)})
    return replace(filled(recipe, {"batch_size": size.batch_size}), train=train, model=model)


def portable_joint(recipe: JointRecipe) -> JointRecipe:
    """The recipe as a model carries it away."""
    return replace(recipe, data=portable_data(recipe.data))
