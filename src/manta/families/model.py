"""Manta-LM's parts in one module: token table, prompt memory, space, policy, length."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.config import Unset
from manta.data import BOS, MASK
from manta.errors import ConfigError
from manta.families.prompted import Memory, PromptedModel, check_shape
from manta.flow.time_density import TimeDensityConfig
from manta.nets.vector_field import Condition, VectorField
from manta.operators import AttentionConfig, AttentionFourierConfig, FourierConfig, WindowedConfig
from manta.spaces import EmbeddingSpace, EmbeddingSpaceConfig, LatentSpace, LatentSpaceConfig

OperatorChoice = AttentionConfig | FourierConfig | AttentionFourierConfig | WindowedConfig
SpaceChoice = LatentSpaceConfig | EmbeddingSpaceConfig


@dataclass(frozen=True, kw_only=True)
class MantaConfig:
    """Shape of a Manta-LM."""

    family: Literal["manta"] = "manta"
    """Which family this is."""
    vocab_size: int = Unset(1024)
    """Tokens of the tokenizer."""
    dim: int = 0
    """Width of every net; 0: a recipe's size says it."""
    heads: int = 0
    """Attention heads; 0: a recipe's size says it."""
    prompt_depth: int = Unset(2)
    """Blocks of the prompt's encoder."""
    depth: int = 0
    """Blocks of the policy; 0: a recipe's size says it."""
    max_prompt: int = Unset(128)
    """Most tokens of a prompt."""
    max_text: int = Unset(128)
    """Most tokens of a text."""
    absolute_places: bool | None = None
    """Tell prompt and text the absolute place of each token: for texts that answer their prompt place by place; None:
    as a recipe says, and without one no."""
    shifted: bool = True
    """Each place reads the word before it too, which lets a teacher's weights mean the same in the policy."""
    operator: OperatorChoice = field(default_factory=AttentionConfig)
    """The policy's integral operator."""
    space: SpaceChoice = field(default_factory=LatentSpaceConfig)
    """Where the state lives."""
    time: TimeDensityConfig = field(default_factory=TimeDensityConfig)
    """Density of training times; its quantiles are the sampling grid."""

    def __post_init__(self) -> None:
        check_shape(self.dim, self.heads, self.depth)
        if min(self.prompt_depth, self.max_text) < 1 or min(self.depth, self.max_prompt) < 0:
            raise ConfigError("prompt_depth and max_text should be at least 1, depth and max_prompt at least 0")


@dataclass(frozen=True)
class Action:
    """What the policy answers in a state."""

    estimate: Float[Tensor, "b m c"]
    """The clean state."""
    hidden: Float[Tensor, "b n d"]
    """What the words are read from, see `MantaModel.logits`."""
    likelihood: Float[Tensor, "b n v"] | None = None
    """Embedding space: log-likelihood of the state under each token, a part of the logits."""


class MantaModel(PromptedModel):
    """The nets of a Manta-LM; a length is a number of latents.

    Args:
        config: shape.
    """

    def __init__(self, config: MantaConfig) -> None:
        check_shape(config.dim, config.heads, config.depth, built=True)
        rate = config.space.rate if isinstance(config.space, LatentSpaceConfig) else 1
        self.max_cells = config.max_text // rate + 1
        """Most latents of a text: room for the longest text and one closing null token."""
        super().__init__(
            vocab_size=config.vocab_size,
            dim=config.dim,
            heads=config.heads,
            prompt_depth=config.prompt_depth,
            num_lengths=self.max_cells,
            num_places=max(config.max_prompt, self.max_cells * rate) if config.absolute_places else 0,
        )
        self.config = config
        self.space: LatentSpace | EmbeddingSpace
        if isinstance(config.space, EmbeddingSpaceConfig):
            self.space = config.space.build(config.vocab_size)
        else:
            self.space = config.space.build(config.dim, config.heads)
        self.field = VectorField(
            channels=self.space.channels,
            dim=config.dim,
            depth=config.depth,
            operator=config.operator,
            heads=config.heads,
            rate=self.space.rate,
            estimates=isinstance(self.space, LatentSpace),
            shifted=config.shifted,
        )

    def condition(
        self, memory: Memory, mask: Bool[Tensor, "sb n"], settled: Int64[Tensor, "sb n"] | None = None
    ) -> Condition:
        """What the policy is told of a prompt and a canvas, once for all its calls.

        Args:
            memory: the prompt; a row may serve several consecutive rows of the canvas.
            mask: True on the canvas.
            settled: tokens already settled, the mask token elsewhere; None: none is.
        """
        tokens = torch.full(mask.shape, MASK, device=mask.device) if settled is None else settled
        return Condition(self.field.trunk.project(memory.states, memory.mask), mask, tokens)

    def act(self, state: Tensor, t: Tensor, *, cond: Condition, self_cond: Tensor | None = None) -> Action:
        """The policy: one network call. Arguments as in `VectorField`."""
        before = None
        if self.config.shifted:
            first = torch.full_like(cond.settled[:, :1], BOS)
            before = self.embed(torch.cat([first, cond.settled[:, :-1]], 1))
        hidden = self.field(state, t, self.embed(cond.settled), before, cond=cond, self_cond=self_cond)
        if isinstance(self.space, LatentSpace):
            return Action(self.field.estimate(hidden), hidden)
        times = t if t.ndim == 2 else t[:, None].expand(state.shape[:2])
        likelihood = self.space.log_likelihood(state, times)
        logits = F.linear(hidden, self.embedding.weight.to(hidden.dtype)).float() + likelihood
        return Action(F.softmax(logits, -1) @ self.space.embedding, hidden, likelihood)

    def logits(self, action: Action, where: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "*shape v"]:
        """Token logits of an action.

        Args:
            action: from `act`.
            where: positions wanted, which gives "k v"; None gives all, "b n v".
        """
        hidden = action.hidden if where is None else action.hidden[where]
        logits = F.linear(hidden, self.embedding.weight.to(hidden.dtype)).float()
        if action.likelihood is None:
            return logits
        return logits + (action.likelihood if where is None else action.likelihood[where])

    def estimate(self, state: Tensor, t: Tensor, *, cond: Condition, self_cond: Tensor | None = None) -> Tensor:
        """The clean state's estimate alone: the policy as a field for solvers and diagnostics."""
        return self.act(state, t, cond=cond, self_cond=self_cond).estimate

    def encode(self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], memory: Memory) -> Float[Tensor, "b m c"]:
        """The standardised clean state of a text: `space.encoder_calls` network calls."""
        if isinstance(self.space, EmbeddingSpace):
            return self.space.clean(tokens)
        projected = self.space.encoder.project(memory.states, memory.mask)
        mean, _ = self.space.posterior(tokens, mask, projected, self.embedding.weight)
        return self.space.standardise(mean)
