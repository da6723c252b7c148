"""Manta-LM's parts in one module: token table, prompt memory, space, policy, length."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.families.batching import rowwise
from manta.families.prompted import Memory, PromptedConfig, pooled, resolved
from manta.families.scales import ClassedModel, check_classes
from manta.flow.adaptive import sign_code
from manta.flow.time_density import TimeDensityConfig
from manta.nets.vector_field import Condition, VectorField
from manta.spaces import EmbeddingSpaceConfig, LatentSpaceConfig, Space, Within, Words
from manta.text import BOS, MASK
from manta.types import Estimate

SpaceChoice = LatentSpaceConfig | EmbeddingSpaceConfig
MAX_BITS = 8


@dataclass(frozen=True, kw_only=True)
class MantaConfig(PromptedConfig):
    """Shape of a Manta-LM."""

    family: Literal["manta"] = "manta"
    """Which family this is."""
    shifted: bool = True
    """Each place reads the word before it too, which lets a teacher's weights mean the same in the policy."""
    space: SpaceChoice = field(default_factory=LatentSpaceConfig)
    """Where the state lives."""
    time: TimeDensityConfig = field(default_factory=TimeDensityConfig)
    """Density of training times; its quantiles are the sampling grid."""
    bits: int = 0
    """Bits of an adaptive condition, 0 to 8: a code of the text's latents that the policy is told in training; a text
    that is written gets one as the prompt lets expect; 0: none."""
    flow_calls: int = 0
    """Most actions that carry the plan, of a model that was distilled for so many; calls beyond them read the finished
    plan. 0: all that a budget has."""
    spans: bool = False
    """The policy is told how far in time a step goes, as `manta distill --method flow_map` teaches it."""
    classes: int = 0
    """Coarse classes of words, learnt from the training texts: a place's class is settled before its word. 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.bits <= MAX_BITS:
            raise ConfigError(f"bits should lie between 0 and {MAX_BITS}, received {self.bits}")
        if self.flow_calls < 0:
            raise ConfigError(f"flow_calls should be 0 or more, received {self.flow_calls}")
        check_classes(self.classes, self.vocab_size)


class CodeReader(nn.Module):
    """A few bits of a text's clean latents: `sign(tanh E(clean))`, with the gradient of the tanh.

    A convolution over neighbouring latents, the mean over the text, and a linear map; its cost is 1% of the policy's
    parameters at most, but for the narrowest.

    Args:
        channels: of a latent.
        bits: how many.
        most: parameters at most.

    Source: Liu et al., "Learning Quantized Adaptive Conditions for Diffusion Models", arXiv 2409.17487, of which the
        abstract could be had: layers and quantiser are our reconstruction.
    """

    def __init__(self, channels: int, bits: int, most: int) -> None:
        super().__init__()
        width = max(w for w in range(4, 129) if w == 4 or (3 * channels + 1) * w + (w + 1) * bits <= most)
        self.near = nn.Conv1d(channels, width, 3, padding=1)
        self.out = nn.Linear(width, bits)

    def forward(self, clean: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b k"]:
        """The code of each text, ±1."""
        real = mask[..., None].to(clean.dtype)
        near = F.silu(self.near((clean * real).transpose(1, 2))).transpose(1, 2)
        return sign_code(self.out((near * real).sum(1) / real.sum(1)))


class MantaModel(ClassedModel):
    """The nets of a Manta-LM; a length is a number of latents.

    Args:
        config: shape.
    """

    def __init__(self, config: MantaConfig) -> None:
        shape = resolved(config)
        rate = shape.space.rate
        self.max_cells = shape.max_text // rate + 1
        """Most latents of a text: room for the longest text and one closing null token."""
        super().__init__(
            shape,
            num_lengths=self.max_cells,
            num_places=max(shape.max_prompt, self.max_cells * rate) if shape.absolute_places else 0,
        )
        self.space: Space = shape.space.build(shape.vocab_size, shape.dim, shape.heads)
        self.field = VectorField(
            channels=self.space.channels,
            dim=shape.dim,
            depth=shape.depth,
            operators=shape.mix,
            heads=shape.heads,
            rate=self.space.rate,
            estimates=self.space.estimates,
            shifted=shape.shifted,
            hidden=shape.hidden,
            bits=shape.bits,
            spans=shape.spans,
        )
        size = sum(p.numel() for p in self.field.parameters())
        self.code_reader = CodeReader(self.space.channels, shape.bits, size // 100) if shape.bits else None
        self.code_prior = nn.Linear(shape.dim, 1 << shape.bits) if shape.bits else None
        self.add_classes(shape)

    def code(self, clean: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b k"] | None:
        """The adaptive condition of clean latents, to which no gradient goes; None of a model without one."""
        return None if self.code_reader is None else self.code_reader(clean.detach(), mask)

    def code_logits(self, memory: Memory) -> Float[Tensor, "b m"]:
        """Logits of the number of a text's code, as its prompt lets expect."""
        assert self.code_prior is not None, "built without an adaptive condition"
        return rowwise(self.code_prior, pooled(memory)).float()

    def condition(
        self,
        memory: Memory,
        mask: Bool[Tensor, "sb n"],
        settled: Int64[Tensor, "sb n"] | None = None,
        code: Float[Tensor, "sb k"] | None = None,
    ) -> Condition:
        """What the policy is told of a prompt and a canvas, once for all its calls.

        Args:
            memory: the prompt; a row may serve several consecutive rows of the canvas.
            mask: True on the canvas.
            settled: tokens already settled, elsewhere the mask token, or V + c where a class c is; None: none is.
            code: adaptive condition; None: none is told.
        """
        tokens = torch.full(mask.shape, MASK, device=mask.device) if settled is None else settled
        return Condition(self.field.trunk.project(memory.states, memory.mask), mask, tokens, code)

    def act(self, state: Tensor, t: Tensor, *, cond: Condition, self_cond: Tensor | None = None) -> Estimate:
        """The policy, a vector field: one network call; `aux` is the `Words` it told. Arguments as in `VectorField`."""
        before = None
        if self.config.shifted:
            first = torch.full_like(cond.settled[:, :1], BOS)
            before, _ = self._embedded(torch.cat([first, cond.settled[:, :-1]], 1))
        given, within = self._embedded(cond.settled)
        hidden = self.field(state, t, given, before, cond=cond, self_cond=self_cond)
        return self.space.readout(state, t, hidden, clean=self.field.estimate, head=self.head, within=within)

    def _embedded(self, settled: Int64[Tensor, "b n"]) -> tuple[Float[Tensor, "b n d"], Within | None]:
        """What is settled, words and classes, as the policy reads it; and the classes."""
        words, within = self.parted(settled)
        given = self.embed(words)
        return given if within is None else given + self.class_vectors(within), within

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
        words, _ = self.parted(cond.settled)
        state, t = self.space.known(state, t, words, cond.mask & (words != MASK))
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
