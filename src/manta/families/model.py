"""Manta-LM's parts in one module: token table, prompt memory, space, policy, length."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.config import Unset
from manta.errors import ConfigError
from manta.families.prompted import Memory, PromptedModel, check_shape
from manta.flow.time_density import TimeDensityConfig
from manta.nets.vector_field import Condition, VectorField
from manta.operators import AttentionConfig, AttentionFourierConfig, FourierConfig, WindowedConfig
from manta.spaces import EmbeddingSpaceConfig, LatentSpaceConfig, Space, Words
from manta.text import BOS, MASK
from manta.types import Estimate

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


class MantaModel(PromptedModel):
    """The nets of a Manta-LM; a length is a number of latents.

    Args:
        config: shape.
    """

    def __init__(self, config: MantaConfig) -> None:
        check_shape(config.dim, config.heads, config.depth, built=True)
        rate = config.space.rate
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
        self.space: Space = config.space.build(config.vocab_size, config.dim, config.heads)
        self.field = VectorField(
            channels=self.space.channels,
            dim=config.dim,
            depth=config.depth,
            operator=config.operator,
            heads=config.heads,
            rate=self.space.rate,
            estimates=self.space.estimates,
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

    def act(self, state: Tensor, t: Tensor, *, cond: Condition, self_cond: Tensor | None = None) -> Estimate:
        """The policy, a vector field: one network call; `aux` is the `Words` it told. Arguments as in `VectorField`."""
        before = None
        if self.config.shifted:
            first = torch.full_like(cond.settled[:, :1], BOS)
            before = self.embed(torch.cat([first, cond.settled[:, :-1]], 1))
        hidden = self.field(state, t, self.embed(cond.settled), before, cond=cond, self_cond=self_cond)
        return self.space.readout(state, t, hidden, clean=self.field.estimate, head=self.head)

    def act_beside(
        self,
        state: Float[Tensor, "b m c"],
        t: Float[Tensor, "*time"],
        *,
        cond: Condition,
        self_cond: Tensor | None = None,
    ) -> Estimate:
        """One action beside settled words, whose states may be known by that.

        Args:
            state: the present state.
            t: its time, "b", "b m", or "1" for all rows.
            cond: prompt, canvas and the words settled.
            self_cond: the policy's last estimate.
        """
        state, t = self.space.known(state, t, cond.settled, cond.mask & (cond.settled != MASK))
        return self.act(state, t, cond=cond, self_cond=self_cond)

    def logits(self, words: Words, where: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "*shape v"]:
        """Token logits of an action, see `Words.logits`.

        Args:
            words: `aux` of what `act` answered.
            where: positions wanted, which gives "k v"; None gives all, "b n v".
        """
        return words.logits(self.head, where)

    def encode(self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], memory: Memory) -> Float[Tensor, "b m c"]:
        """The standardised clean state of a text: `space.encoder_calls` network calls."""
        return self.space.encode(tokens, mask, memory.states, memory.mask, self.embedding.weight)
