"""The net of masked-diffusion models, and how a canvas is computed with it call by call."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.families.prompted import Memory, TaskedConfig, resolved
from manta.families.scales import ClassedModel, check_classes
from manta.families.thinking import Thinking, ThinkingConfig, Thought, Told
from manta.masked.elastic import OFF
from manta.nets.trunk import Trunk
from manta.operators import OperatorContext, line
from manta.operators.cross_attention import ProjectedMemory
from manta.text import NULL


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(TaskedConfig):
    """Shape of a masked-diffusion model."""

    family: Literal["masked"] = "masked"
    """Which family this is."""
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    """What is carried from call to call, and whether words are doubted."""
    elastic: bool = False
    """Masked places may stand for several words, or none: a canvas grows and shrinks while it is written."""

    classes: int = 0
    """Coarse classes of words, learnt from the training texts: a place's class is settled before its word. 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes, self.vocab_size)
        if self.classes and (self.elastic or self.thinking.carries or self.thinking.doubts):
            raise ConfigError("classes are for masked models that neither think nor doubt nor grow their canvas")
        if self.elastic and (self.thinking.carries or self.thinking.doubts):
            raise ConfigError("the places of an elastic canvas move; thinking and doubting need them to stay")


class MaskedModel(ClassedModel):
    """Logits of every position of a text, given its prompt and the words that are not masked.

    Args:
        config: shape.
    """

    def __init__(self, config: MaskedConfig) -> None:
        shape = resolved(config)
        self.max_cells = shape.max_text + 1
        """Most words of a canvas: the longest text and a closing null."""
        super().__init__(
            shape,
            num_lengths=self.max_cells,
            num_places=max(shape.max_prompt, self.max_cells) if shape.absolute_places else 0,
        )
        self.trunk = Trunk(shape.dim, shape.depth, shape.mix, heads=shape.heads, cross=True, hidden=shape.hidden)
        self.thinking = Thinking(shape.thinking, self.embedding)
        self.grow = nn.Linear(shape.dim, 1) if shape.elastic else None
        self.add_classes(shape)
        self.modulate(self.trunk)

    def forward(
        self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], memory: tuple[ProjectedMemory, ...]
    ) -> Float[Tensor, "b n v"]:
        """Logits of every position.

        Args:
            tokens: the mask token where a word is hidden, V + c where its class c is known.
            mask: True on each row's canvas.
            memory: the prompt, from `trunk.project`.
        """
        return self.think(tokens, mask, memory).logits

    def think(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: tuple[ProjectedMemory, ...],
        thought: Thought | None = None,
    ) -> Told:
        """All that a call tells, given what the call before has handed on; arguments as in `forward`."""
        words, within = self.parted(tokens)
        x = self.thinking.enter(self.embed(words), words, thought)
        if within is not None:
            x = x + self.class_vectors(within)
        context = OperatorContext(line(x.shape[1], tokens.device), self.thinking.real(mask))
        slots, hidden = self.thinking.leave(self.trunk(x, context, memory=memory), tokens.shape[1])
        grow = None if self.grow is None else self.grow(hidden)[..., 0]
        logits = self.head(hidden)
        if within is not None:
            logits = logits.masked_fill(within.others(), -torch.inf)
        return Told(logits, slots, self.thinking.right(hidden), grow)

    def told(self, shown: Int64[Tensor, "b n"], memory: tuple[ProjectedMemory, ...]) -> Told:
        """What a call tells of an elastic canvas, `OFF` where a row has none."""
        return self.think(shown.masked_fill(shown == OFF, NULL), shown != OFF, memory)


class CachedDenoiser:
    """A masked model on one batch of canvases that computes a span and keeps what its operators need of the rest.

    Args:
        model: with an operator that can.
        mask: True on each row's canvas.
        memory: encoded prompts.
    """

    def __init__(self, model: MaskedModel, mask: Bool[Tensor, "b n"], memory: Memory) -> None:
        self.model = model
        self.memory = model.trunk.project(memory.states, memory.mask)
        self.context = OperatorContext(line(mask.shape[1], mask.device), mask)
        self.cache = model.trunk.new_cache()

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """See `SpanDenoiser`."""
        model, span = self.model, self.context.span(start, stop)
        hidden = model.trunk(model.embed(tokens[:, start:stop], start), span, memory=self.memory, cache=self.cache)
        return model.head(hidden)


class FullDenoiser:
    """A masked model whose calls compute everything, open to gradients; one that thinks goes on from call to call.

    Args:
        model: with any operator.
        mask: True on each row's canvas.
        memory: encoded prompts.
    """

    def __init__(self, model: MaskedModel, mask: Bool[Tensor, "b n"], memory: Memory) -> None:
        self.model, self.mask = model, mask
        self.memory = model.trunk.project(memory.states, memory.mask)
        self.thought: Thought | None = None
        self.told: Told | None = None

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """See `SpanDenoiser`."""
        self.told = self.model.think(tokens, self.mask, self.memory, self.thought)
        self.thought = self.told.thought() if self.model.thinking.config.carries else None
        return self.told.logits[:, start:stop]

    def right(self) -> Float[Tensor, "b n"]:
        """See `manta.masked.decode.Judge`."""
        assert self.told is not None and self.told.right is not None, "a call has been made by a model that doubts"
        return self.told.right.sigmoid()


class ElasticDenoiser:
    """A masked model on canvases whose places move; every call computes everything.

    Args:
        model: with an elastic canvas.
        memory: encoded prompts.
    """

    def __init__(self, model: MaskedModel, memory: Memory) -> None:
        self.model = model
        self.memory = model.trunk.project(memory.states, memory.mask)

    def __call__(self, tokens: Int64[Tensor, "b n"], start: int, stop: int) -> Float[Tensor, "b k v"]:
        """See `SpanDenoiser`; the last class is growing."""
        return self.model.told(tokens, self.memory).classes()[:, start:stop]
