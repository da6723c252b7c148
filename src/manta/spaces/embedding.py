"""Normalised token embeddings learned with the policy: the second kind of space, for comparison.

One state per token; the field estimates token logits and its clean state is the expected embedding. The space has no
encoder of its own: the policy's cross-entropy teaches all of it, since matching a moving target would
collapse it (RePlaid, LangFlow: arXiv 2605.18530, 2604.11748).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.spaces.space import Space, Within, Words
from manta.types import Estimate


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpaceConfig:
    """Shape of the embedding space."""

    kind: Literal["embedding"] = "embedding"
    """Which space this is."""
    rate: ClassVar[int] = 1
    """Every token has a state of its own."""
    channels: int = 32
    """Width of a state."""
    skip_cap: float = 30.0
    """Cap of the factor t/(1−t)² of the analytic part of the logits."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.skip_cap < 0:
            raise ConfigError("space.channels should be at least 1 and space.skip_cap at least 0")

    def build(self, vocab_size: int, dim: int, heads: int) -> "EmbeddingSpace":
        """A freshly initialised space for a vocabulary; it needs no net beside the policy's."""
        return EmbeddingSpace(self, vocab_size)


class EmbeddingSpace(Space):
    """Unit-variance embeddings of tokens.

    Args:
        config: shape.
        vocab_size: number of tokens.
    """

    encoder_calls = 0
    estimates = False

    def __init__(self, config: EmbeddingSpaceConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.rate, self.channels = config.rate, config.channels
        self.vectors = nn.Parameter(torch.randn(vocab_size, config.channels))
        self.skip = nn.Parameter(torch.ones(1))

    @property
    def embedding(self) -> Float[Tensor, "v c"]:
        """Rows of norm √c, so that a channel has unit variance: with equal norms the analytic logits are exact."""
        return F.normalize(self.vectors, dim=-1) * self.channels**0.5

    def clean(self, tokens: Int64[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
        """The clean state of a text."""
        return self.embedding[tokens]

    def encode(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: Float[Tensor, "b m d"],
        memory_mask: Bool[Tensor, "b m"],
        table: Float[Tensor, "v d"],
    ) -> Float[Tensor, "b n c"]:
        """The embeddings of the tokens, whatever the prompt; see `Space`."""
        return self.clean(tokens)

    def known(
        self,
        state: Float[Tensor, "b n c"],
        t: Float[Tensor, "*time"],
        words: Int64[Tensor, "b n"],
        where: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n"]]:
        """A settled word is a known state; see `Space`."""
        times = (t if t.ndim == 2 else t[:, None]).expand(where.shape).masked_fill(where, 1.0)
        return torch.where(where[..., None], self.clean(words), state), times

    def readout(
        self,
        state: Float[Tensor, "b n c"],
        t: Float[Tensor, "*time"],
        hidden: Float[Tensor, "b n d"],
        *,
        clean: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        within: Within | None = None,
    ) -> Estimate:
        """The expected embedding under the words' probabilities, `softmax(logits) E`; see `Space`."""
        times = t if t.ndim == 2 else t[:, None].expand(state.shape[:2])
        words = Words(hidden, self.log_likelihood(state, times), within)
        return Estimate(F.softmax(words.logits(head), -1) @ self.embedding, words)

    def log_likelihood(self, state: Float[Tensor, "b n c"], t: Float[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
        """Log-likelihood of the state under each token, up to a constant: the part of the logits known in closed form.

        `log p(state | token) = t/(1−t)² · ⟨state, embedding⟩ + const` on the linear path, capped near t = 1 and scaled
        by a learned factor.

        Args:
            state: the present state.
            t: its times.
        """
        factor = (t / (1 - t).square().clamp_min(1e-6)).clamp_max(self.config.skip_cap)
        return self.skip * F.linear(factor[..., None] * state.float(), self.embedding)
