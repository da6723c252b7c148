"""Captions and images in one state: the net, and what it is taught.

The state of a row is a vector for each word of the caption and one for each patch of the image. Every element has a
time of its own, and one that is given is at its end, t = 1: so one net draws an image of a caption, describes an image,
makes both, and completes what is given of either.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.flow.time_density import TimeDensity, TimeDensityConfig
from manta.image import from_pixels
from manta.image.captioned import CaptionedBatch
from manta.nets.conditioning import SharedModulation, TimeEmbedding
from manta.nets.grid.told import as_elements, as_grid
from manta.nets.head import Head
from manta.nets.trunk import Trunk
from manta.operators import AttentionConfig, OperatorChoice, OperatorContext
from manta.operators.positions import PositionsConfig, Row, places_of_blocks
from manta.spaces import EmbeddingSpace, EmbeddingSpaceConfig
from manta.types import Loss

LATEST = 0.999
"""Time up to which a state is noised; beyond it the factor of the words' likelihood is capped anyway."""


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Shape of a model of captions and images."""

    family: Literal["joint"] = "joint"
    """Which family this is."""
    vocab_size: int = 0
    """Words; 0: the data's."""
    places: int = 0
    """Words of a caption; 0: the data's."""
    height: int = 0
    """Pixels; 0: the data's."""
    width: int = 0
    """Pixels; 0: the data's."""
    channels: int = 0
    """3 for colours, 1 for grey; 0: the data's."""
    patch: int = 4
    """Pixels of a patch's side."""
    word_channels: int = 16
    """Width of a word's state."""
    dim: int | None = None
    """Width; None: the size dial's."""
    depth: int | None = None
    """Blocks; None: the size dial's."""
    heads: int | None = None
    """Heads; None: the size dial's."""
    operator: OperatorChoice = field(default_factory=AttentionConfig)
    """How words and patches act on each other."""
    positions: PositionsConfig = field(default_factory=PositionsConfig)
    """Where words and patches are for attention."""
    absolute_places: bool = True
    """Tell each word and patch its absolute place too; attention alone tells differences of places."""
    time: TimeDensityConfig = field(default_factory=lambda: TimeDensityConfig(kind="logit_normal", logit_mean=-0.5))
    """Density of training times of patches; those of words are uniform."""

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.places, self.height, self.width, self.channels) < 0:
            raise ConfigError("vocab_size, places, height, width and channels should be 0 or more")
        if self.patch < 1 or self.word_channels < 1:
            raise ConfigError("patch and word_channels should be at least 1")


class Joint(NamedTuple):
    """Something of every word and every patch of some rows: states, or times, or what is given."""

    words: Tensor
    """ "b n …"."""
    patches: Tensor
    """ "b m …"."""


class JointModel(nn.Module):
    """Words and patches through one trunk: `net(state, times) → logits of the words, velocity of the patches`.

    Args:
        config: shape, with the data's sizes and all dials set.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        assert config.dim is not None and config.depth is not None and config.heads is not None, "not resolved"
        self.config = config
        self.rows, self.columns = -(-config.height // config.patch), -(-config.width // config.patch)
        self.values = config.channels * config.patch**2
        self.words = EmbeddingSpace(EmbeddingSpaceConfig(channels=config.word_channels), max(1, config.vocab_size))
        self.table = nn.Embedding(max(1, config.vocab_size), config.dim)
        nn.init.normal_(self.table.weight, std=0.1)
        self.head = Head(self.table)
        self.enter_words = nn.Linear(config.word_channels, config.dim)
        self.enter_patches = nn.Linear(self.values, config.dim)
        self.kinds = nn.Parameter(0.1 * torch.randn(2, config.dim))
        elements = config.places + self.rows * self.columns
        self.places = nn.Parameter(0.1 * torch.randn(elements, config.dim)) if config.absolute_places else None
        self.time = TimeEmbedding(config.dim)
        self.modulation = SharedModulation(config.dim)
        self.trunk = Trunk(config.dim, config.depth, (config.operator,), heads=config.heads, modulation=True)
        self.leave = nn.Linear(config.dim, self.values)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        row = Row(config.places, self.rows, self.columns)
        with torch.device("cpu"):  # a net that is built to be filled has no numbers, and these are no weights
            self._places = [place.float() for place in places_of_blocks(config.positions, row, config.depth)]

    def forward(self, state: Joint, times: Joint) -> tuple[Float[Tensor, "b n v"], Float[Tensor, "b m p"]]:
        """Logits of the words, and the velocity of the patches, in float32.

        Args:
            state: "b n c" and "b m p".
            times: of each word and each patch, 1 where it is given.
        """
        words = self.enter_words(state.words) + self.kinds[0]
        patches = self.enter_patches(state.patches) + self.kinds[1]
        x, t = torch.cat([words, patches], 1), torch.cat(list(times), 1)
        x = x if self.places is None else x + self.places
        unique = {id(place): OperatorContext(place.to(x.device), None, t) for place in self._places}
        contexts = [unique[id(place)] for place in self._places]
        hidden = self.trunk(x, contexts, modulation=self.modulation(self.time(t)))
        count = state.words.shape[1]
        logits = self.head(hidden[:, :count]).float() + self.words.log_likelihood(state.words, times.words)
        return logits, self.leave(hidden[:, count:]).float()

    def patches_of(self, image: Float[Tensor, "b n c"]) -> Float[Tensor, "b m p"]:
        """An image, row by row with values in [−1, 1], as patches."""
        grid = as_grid(image, self.config.height, self.config.width, self.config.patch)
        return F.pixel_unshuffle(grid, self.config.patch).flatten(2).transpose(1, 2)

    def image_of(self, patches: Float[Tensor, "b m p"]) -> Float[Tensor, "b n c"]:
        """The inverse of `patches_of`."""
        grid = patches.transpose(1, 2).unflatten(2, (self.rows, self.columns))
        return as_elements(F.pixel_shuffle(grid, self.config.patch), self.config.height, self.config.width)


@dataclass(frozen=True, kw_only=True)
class JointObjectiveConfig:
    """How a model of captions and images is taught."""

    drawing: float = 0.4
    """Share of rows whose caption is given."""
    describing: float = 0.2
    """Share of rows whose image is given."""
    completing: float = 0.15
    """Share of rows of which any part is given; of the others nothing is."""
    words: float = 0.3
    """Weight of the words' cross-entropy beside the squared error of the patches' velocity."""

    def __post_init__(self) -> None:
        shares = (self.drawing, self.describing, self.completing)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError("drawing, describing and completing should be 0 or more, and 1 together at most")
        if self.words <= 0:
            raise ConfigError(f"words should be above 0, received {self.words}")


class JointMatching:
    """Words by cross-entropy, patches by velocity matching, each from its own time.

        nats a word + |velocity_hat − velocity|² a value,  of what is not given

    Args:
        config: shares and weights.
        density: of the patches' times.
    """

    def __init__(self, config: JointObjectiveConfig, density: TimeDensity) -> None:
        self.config, self.density = config, density

    def __call__(self, model: JointModel, batch: CaptionedBatch, generator: torch.Generator) -> Loss:
        """Loss with the parts nats (a word that is not given) and velocity."""
        patches = model.patches_of(from_pixels(batch.pixels))
        words = model.words.clean(batch.words)
        given = self._given(batch.words, patches, generator)
        b, device = len(batch), patches.device
        times = Joint(
            torch.rand(b, generator=generator)[:, None].to(device) * LATEST,
            self.density.sample(b, generator)[:, None].to(device),
        )
        noise = Joint(*(torch.randn(each.shape, generator=generator).to(device) for each in (words, patches)))
        t = Joint(*(torch.where(g, 1.0, s.to(torch.float32)) for g, s in zip(given, times, strict=True)))
        state = Joint(*(_on_path(n, c, s) for n, c, s in zip(noise, (words, patches), t, strict=True)))
        logits, velocity = model(state, t)
        nats = F.cross_entropy(logits.flatten(0, 1), batch.words.flatten(), reduction="none").view(batch.words.shape)
        error = (velocity - (patches - noise.patches)).square().mean(-1)
        told = _mean_where(nats, ~given.words), _mean_where(error, ~given.patches)
        total = self.config.words * told[0] + told[1]
        return Loss(total, {"nats": told[0].detach(), "velocity": told[1].detach()}, b)

    def _given(self, words: Int64[Tensor, "b n"], patches: Tensor, generator: torch.Generator) -> Joint:
        """Which words and patches each row is given; never all."""
        config, b = self.config, len(words)
        draws = torch.rand(3, b, 1, generator=generator)
        draw, describe = draws[0] < config.drawing, (draws[0] >= config.drawing)
        describe = describe & (draws[0] < config.drawing + config.describing)
        some = (draws[0] >= config.drawing + config.describing) & (
            draws[0] < config.drawing + config.describing + config.completing
        )
        part = [
            torch.rand(each.shape[:2], generator=generator) < share
            for each, share in ((words, draws[1]), (patches, draws[2]))
        ]
        found = Joint(draw | (some & part[0]), describe | (some & part[1]))
        shapes = (words.shape, patches.shape[:2])
        return Joint(*(each.expand(shape).to(words.device) for each, shape in zip(found, shapes, strict=True)))


def _on_path(noise: Tensor, clean: Tensor, t: Float[Tensor, "b n"]) -> Tensor:
    return (1 - t[..., None]) * noise + t[..., None] * clean


def _mean_where(values: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Mean over some elements; 0 where there are none."""
    return (values * where).sum() / where.sum().clamp_min(1)
