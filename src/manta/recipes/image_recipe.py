"""The whole description of a run that trains a model of images."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from manta.config import filled
from manta.errors import ConfigError
from manta.families.image_model import ImageConfig
from manta.families.image_objective import ImageObjectiveConfig
from manta.image.files import Fit
from manta.image.sources import BUILTIN, IMAGES
from manta.nets.grid import DicConfig, DitConfig, GridNetChoice, UditConfig
from manta.operators import PyramidConfig
from manta.recipes.recipe import LEARNING_RATE, ConversionConfig, Size, check_length, size_of
from manta.training import TrainConfig

MAX_SIDE = 512
"""Pixels of a side that are trained on."""
DEFAULT_SIDE = 64
"""Pixels to which larger images are made smaller, unless a size is asked for."""


@dataclass(frozen=True)
class ImageSize:
    """A setting of the size dial."""

    dic: tuple[int, tuple[int, ...]]
    """Width and depths of the hourglass."""
    udit: tuple[int, tuple[int, ...], int]
    """Width, depths and heads of the U."""
    dit: tuple[int, int, int]
    """Width, blocks and heads."""
    batch_size: int
    """Images of a batch."""


IMAGE_SIZES = {
    "nano": ImageSize((16, (1, 2, 3, 2, 1)), (16, (1, 1, 2, 1, 1), 2), (96, 5, 4), 32),
    "tiny": ImageSize((32, (2, 2, 3, 2, 2)), (32, (1, 2, 2, 2, 1), 2), (128, 6, 4), 64),
    "small": ImageSize((48, (3, 3, 3, 3, 3)), (48, (2, 3, 4, 3, 2), 3), (256, 8, 4), 128),
    "base": ImageSize((96, (6, 6, 5, 6, 6)), (96, (2, 5, 8, 5, 2), 4), (384, 12, 6), 256),
    "large": ImageSize((192, (6, 6, 5, 6, 6)), (192, (2, 5, 8, 5, 2), 8), (768, 12, 12), 256),
}
"""The size dial of images."""
AUTO_SIZE: tuple[tuple[float, Size], ...] = (
    (10.0, "nano"),
    (45.0, "tiny"),
    (math.inf, "small"),
)
"""Minutes of the budget up to which a size is trained well on two CPU cores."""


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """A training run of a model of images."""

    state: Literal["image"] = "image"
    """What the model makes."""
    data: str = "builtin:shapes"
    """Where the images come from: `images:FOLDER`, with folders that name classes or a table `captions.csv`; an archive
    of arrays `FILE.npz`; or `builtin:shapes`."""
    num_examples: int | None = None
    """Images to read; None reads all."""
    split: Literal["train"] = "train"
    """What to learn from."""
    family: Literal["image"] = "image"
    """Which family to train."""
    size: Literal["auto", "nano", "tiny", "small", "base", "large"] = "auto"
    """The size dial; sets width, depths and heads of the net. `auto` follows the time budget."""
    height: int | None = None
    """Pixels of an image; None: those of the first image, of a large one 64."""
    width: int | None = None
    """Pixels of an image; None: as `height`."""
    channels: Literal[1, 3] | None = None
    """3 for colours, 1 for grey; None: of an archive as it is, of a folder colours."""
    fit: Fit = "crop"
    """How images of another size are fitted: `crop` keeps proportions, `stretch` keeps all of the image."""
    mirror: bool = False
    """Learn every image turned left to right, too."""
    batch_size: int | None = None
    """Images of a batch; None takes what fits the size."""
    time_budget: str | None = None
    """Time for the whole run, such as `3m`, `90m` or `2h`; turned into steps once, at the start."""
    num_steps: int | None = None
    """Steps, instead of a time budget."""
    seed: int = 0
    """All randomness of the run."""
    converted_from: str | None = None
    """A model folder of an image flow whose attention becomes another operator; see `manta convert`."""
    conversion: ConversionConfig = field(default_factory=lambda: ConversionConfig(operator=PyramidConfig(kernel=7)))
    """What changes in the model of `converted_from`, and how it is taught."""
    checkpoint_minutes: float = 2.0
    """Time between checkpoints."""
    space_share: float = 0.25
    """Share of the time in which a space of latents is trained, before the flow, above 0 and below 1."""
    model: ImageConfig = field(default_factory=ImageConfig)
    """Shape of the model."""
    objective: ImageObjectiveConfig = field(default_factory=ImageObjectiveConfig)
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
        if not 0 < self.space_share < 1:
            raise ConfigError(f"space_share should lie above 0 and below 1, received {self.space_share}")
        if self.train.rounds > 1:
            raise ConfigError("rounds are for models of texts; set train.rounds=1")


def resolve_images(recipe: ImageRecipe) -> ImageRecipe:
    """Derive what follows from the dials: the net's shape, batches and learning rate. What was set by hand stays."""
    if recipe.time_budget is None and recipe.num_steps is None:
        recipe = replace(recipe, time_budget="30m")
    if recipe.size == "auto":
        recipe = replace(recipe, size=size_of(recipe.time_budget, AUTO_SIZE))
    size = IMAGE_SIZES[recipe.size]
    net = shaped_net(recipe.model.net, size, patch=1 if recipe.model.space.kind == "latent" else 2)
    widest = net.width * (4 if isinstance(net, DicConfig | UditConfig) else 1)
    train = filled(recipe.train, {"learning_rate": LEARNING_RATE / widest})
    recipe = filled(recipe, {"batch_size": size.batch_size})
    return replace(recipe, train=train, model=replace(recipe.model, net=net))


def shaped_net(net: GridNetChoice, size: ImageSize, patch: int) -> Any:
    """A net's configuration in which everything is set."""
    if isinstance(net, DicConfig):
        width, depths = size.dic
        return filled(net, {"width": width, "depths": depths})
    if isinstance(net, UditConfig):
        width, depths, heads = size.udit
        return filled(net, {"width": width, "depths": depths, "heads": heads})
    assert isinstance(net, DitConfig)
    width, depth, heads = size.dit
    return filled(net, {"width": width, "depth": depth, "heads": heads, "patch": patch})


def portable_images(recipe: ImageRecipe) -> ImageRecipe:
    """The recipe as a model carries it away: of a path only the last part, which tells no folder's name."""
    source = recipe.converted_from and Path(recipe.converted_from).name
    return replace(recipe, data=portable_data(recipe.data), converted_from=source)


def portable_data(data: str) -> str:
    """A name of images without the folders that lead to them."""
    scheme = f"{IMAGES}:" if data.startswith(f"{IMAGES}:") else ""
    place = data.removeprefix(scheme)
    return data if place == BUILTIN else scheme + Path(place).name
