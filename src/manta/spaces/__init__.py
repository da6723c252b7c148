"""Where the state lives."""

from manta.spaces.embedding import EmbeddingSpace, EmbeddingSpaceConfig
from manta.spaces.grid import GridSpace, GridSpaceChoice, LatentGrid, LatentGridConfig, PixelSpace, PixelSpaceConfig
from manta.spaces.latent import LatentSpace, LatentSpaceConfig
from manta.spaces.rate import RateController, gaussian_rate
from manta.spaces.space import Space, Within, Words

KINDS = {"latent": LatentSpaceConfig, "embedding": EmbeddingSpaceConfig}

__all__ = [
    "KINDS",
    "EmbeddingSpace",
    "EmbeddingSpaceConfig",
    "GridSpace",
    "GridSpaceChoice",
    "LatentGrid",
    "LatentGridConfig",
    "LatentSpace",
    "LatentSpaceConfig",
    "PixelSpace",
    "PixelSpaceConfig",
    "RateController",
    "Space",
    "Within",
    "Words",
    "gaussian_rate",
]
