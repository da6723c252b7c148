"""Where the state lives."""

from manta.spaces.embedding import EmbeddingSpace, EmbeddingSpaceConfig
from manta.spaces.latent import LatentSpace, LatentSpaceConfig, RateController, gaussian_rate
from manta.spaces.space import Space, Words

KINDS = {"latent": LatentSpaceConfig, "embedding": EmbeddingSpaceConfig}

__all__ = [
    "KINDS",
    "EmbeddingSpace",
    "EmbeddingSpaceConfig",
    "LatentSpace",
    "LatentSpaceConfig",
    "RateController",
    "Space",
    "Words",
    "gaussian_rate",
]
