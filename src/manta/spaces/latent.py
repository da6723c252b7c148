"""The rectified latent control space: a regularised text encoder in which r tokens share one latent.

The encoder gives a Gaussian per latent with a noise floor, so that the distribution the flow must learn has no
singular points; a controller holds the rate, the nats a text carries in its latents beyond its prompt, at a set value;
each channel is standardised. What reads the latents is the policy itself, at every noise level: the latents carry what
helps it most to write the text (what the prompt leaves open: order, phrasing, length), in a form that it can read
through noise. The abstract of Manta-LM (arXiv 2605.14531) names such a space; this construction is a reconstruction.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.nets.trunk import Trunk
from manta.operators.attention import AttentionConfig
from manta.operators.context import OperatorContext, line
from manta.operators.cross_attention import ProjectedMemory
from manta.spaces.rate import Standardised
from manta.spaces.space import Space, Within, Words
from manta.types import Estimate


@dataclass(frozen=True, kw_only=True)
class LatentSpaceConfig:
    """Shape and training of the latent space."""

    kind: Literal["latent"] = "latent"
    """Which space this is."""
    rate: int = 4
    """r: tokens that share one latent, 1, 2, 4 or 8."""
    channels: int = 8
    """Width of a latent."""
    information: float = 25.0
    """Nats a text that its latents carry, held by the controller; the mean over the training texts."""
    noise_floor: float = 0.2
    """Least standard deviation of the encoder's Gaussian, before standardising. 0 removes the floor."""
    encoder_depth: int = 1
    """Blocks of the encoder."""
    operator: AttentionConfig = field(default_factory=AttentionConfig)
    """Operator of the encoder."""
    token_drop: float = 0.1
    """Share of the encoder's input tokens masked in half of the rows; the encoder must encode a partial text too."""

    def __post_init__(self) -> None:
        if self.rate not in (1, 2, 4, 8):
            raise ConfigError(f"space.rate should be 1, 2, 4 or 8, received {self.rate}")
        if self.channels < 1 or self.encoder_depth < 1:
            raise ConfigError("space.channels and space.encoder_depth should be at least 1")
        if self.information <= 0 or self.noise_floor < 0:
            raise ConfigError("space.information should be above 0, space.noise_floor at least 0")
        if not 0 <= self.token_drop < 1:
            raise ConfigError("space.token_drop should lie in [0, 1)")

    def build(self, vocab_size: int, dim: int, heads: int) -> "LatentSpace":
        """A freshly initialised space beside nets of width `dim`; it has no table of tokens of its own."""
        return LatentSpace(self, dim, heads)


class LatentSpace(Space, Standardised):
    """Encoder and standardisation.

    Token tables are the caller's (`table`), so that prompt, encoder, policy and output share one.

    Args:
        config: shape.
        dim: width of the encoder.
        heads: heads of the encoder.
    """

    encoder_calls = 1
    estimates = True

    def __init__(self, config: LatentSpaceConfig, dim: int, heads: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.rate, self.channels = config.rate, config.channels
        self.encoder = Trunk(dim, config.encoder_depth, (config.operator,), heads=heads, cross=True)
        self.merge = nn.Linear(config.rate * dim, 2 * config.channels)
        self.hold_statistics(config.channels)

    def posterior(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: tuple[ProjectedMemory, ...],
        table: Float[Tensor, "v d"],
    ) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b m c"]]:
        """Mean and standard deviation of the latents of a text, before standardising; n = m·r.

        Args:
            tokens: the text; the mask token where it is unknown.
            mask: True on the canvas of each row, a multiple of r positions.
            memory: the prompt projected by `encoder.project`.
            table: token embeddings.
        """
        b, n = tokens.shape
        context = OperatorContext(line(n, tokens.device), mask)
        hidden = self.encoder(F.embedding(tokens, table), context, memory=memory)
        mean, log_std = self.merge(hidden.reshape(b, n // self.rate, self.rate * self.dim)).float().chunk(2, -1)
        std = (log_std.clamp(-6, 1).exp().square() + self.config.noise_floor**2).sqrt()
        return mean, std

    def encode(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: Float[Tensor, "b m d"],
        memory_mask: Bool[Tensor, "b m"],
        table: Float[Tensor, "v d"],
    ) -> Float[Tensor, "b k c"]:
        """The mean of the encoder's Gaussian, standardised; see `Space`."""
        mean, _ = self.posterior(tokens, mask, self.encoder.project(memory, memory_mask), table)
        return self.standardise(mean)

    def known(self, state: Tensor, t: Tensor, words: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """A settled word leaves its latent open: r tokens share it; see `Space`."""
        return state, t

    def readout(
        self,
        state: Tensor,
        t: Tensor,
        hidden: Float[Tensor, "b n d"],
        *,
        clean: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        within: Within | None = None,
    ) -> Estimate:
        """The policy's own estimate, and its words beside it; see `Space`."""
        return Estimate(clean(hidden), Words(hidden, within=within))
