"""The net of an aligned model: logits of every slot of a canvas, given its prompt and the labels that stand.

Its parts carry the names of the other families' (`embedding`, `memory_encoder`, a trunk that reads the memory), so that
an autoregressive teacher's weights can serve as its first ones, and so that it can be read left to right as such a
model is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.families.autoregressive import AutoregressiveModel
from manta.families.drafters import RecurrentDrafter
from manta.families.prompted import Memory, PromptedConfig, PromptedModel, resolved, rows_of
from manta.nets.trunk import Trunk
from manta.operators import OperatorContext, line
from manta.operators.cross_attention import ProjectedMemory
from manta.text import BOS, CONSENSUS, EOS, HUMAN, MASK

SILENT = -1e4
"""Logit of what cannot be said; finite, as a gradient passes by it."""
MOST_SLOTS = 16
"""Most slots for a word."""


@dataclass(frozen=True, kw_only=True)
class AlignedConfig(PromptedConfig):
    """Shape of an aligned model."""

    family: Literal["aligned"] = "aligned"
    """Which family this is."""
    slots_per_word: int = 2
    """Slots of a canvas for each word of the length that is expected, 2 to 16."""
    causal: bool = False
    """The same weights also read left to right: likelihoods are exact, and the decoders `sequential` and `verified`
    write, without a teacher beside the model. Of absolute places only slots are told theirs then: a reading from left
    to right that was told them lost four points of BLEU on texts longer than those it had learned from."""
    styles: bool | None = None
    """The left-to-right reading tells texts of people from a teacher's answers, in training and in writing: what is
    drawn is written as people write, the greedy text and slots as the answers. None: where it learns both."""
    draft_horizon: int = 0
    """Words ahead that a drafter of the left-to-right reading is taught, in a last stage; 0: no such stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_horizon < 0:
            raise ConfigError(f"draft_horizon should be 0 or more, received {self.draft_horizon}")
        if self.styles and not self.causal:
            raise ConfigError("styles are for a model that reads left to right, too; set causal=true")
        if self.draft_horizon and not self.causal:
            raise ConfigError("draft_horizon is for a model that reads left to right, too; set causal=true")
        if not 2 <= self.slots_per_word <= MOST_SLOTS:
            raise ConfigError(f"slots_per_word should lie between 2 and {MOST_SLOTS}, received {self.slots_per_word}")


class AlignedModel(PromptedModel):
    """Logits of every slot of a canvas, given its prompt and the labels that stand.

    A label is a word, or the null token as the blank.

    Args:
        config: shape.
    """

    def __init__(self, config: AlignedConfig) -> None:
        shape = resolved(config)
        self.max_words = shape.max_text + 1
        """Most places of a text laid out with a blank to fill, a closing null among them."""
        self.max_slots = shape.slots_per_word * self.max_words
        """Slots of the largest canvas."""
        super().__init__(
            shape,
            num_lengths=shape.max_text + 1,
            num_places=max(shape.max_prompt, self.max_slots) if shape.absolute_places and not shape.causal else 0,
        )
        self.slots = nn.Embedding(self.max_slots, shape.dim) if shape.absolute_places and shape.causal else None
        """Places of slots alone."""
        self.rest = nn.Embedding(self.max_slots, shape.dim) if shape.absolute_places else None
        """Tells how many slots of its row are left after each: without it a text is cut off where they end."""
        for table in (self.slots, self.rest):
            if table is not None:
                nn.init.normal_(table.weight, std=0.1)
        self.trunk = Trunk(shape.dim, shape.depth, shape.mix, heads=shape.heads, cross=True, hidden=shape.hidden)
        if shape.causal and not self.trunk.follows_blocks:
            raise ConfigError(
                f"a model that reads left to right as well (aligned.causal) needs an operator that compares pairs, "
                f"such as attention, and not {shape.kinds}; choose such a one"
            )
        self.drafter = RecurrentDrafter(self, shape.draft_horizon) if shape.draft_horizon else None

    def reading(self) -> AutoregressiveModel:
        """What it is when it reads left to right: the same modules behind another mask."""
        return AutoregressiveModel.reading(self, self.trunk, self.drafter)

    def forward(
        self, labels: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], memory: tuple[ProjectedMemory, ...]
    ) -> Float[Tensor, "b n v"]:
        """Logits of every slot; those of the tokens that no slot can say are `SILENT`.

        Args:
            labels: the mask token where a slot is open.
            mask: True on each row's canvas.
            memory: the prompt, from `trunk.project`.
        """
        return self.told(self.embed(labels), mask, memory)

    def told(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], memory: tuple[ProjectedMemory, ...]
    ) -> Float[Tensor, "b n v"]:
        """The same of labels that are embedded already, by `embed` or, as weights of all labels, by `embed_weights`."""
        context = OperatorContext(line(x.shape[1], x.device), mask)
        if self.slots is not None:
            x = x + rows_of(self.slots, 0, x.shape[1])
        if self.rest is not None:
            x = x + self.rest((mask.flip(1).cumsum(1).flip(1) - 1).clamp(0, self.max_slots - 1))
        logits = self.head(self.trunk(x, context, memory=memory))
        silent = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        silent[[MASK, BOS, EOS]] = True
        return logits.masked_fill(silent, SILENT)

    def prompt_memory(
        self, prompt: Int64[Tensor, "b p"], lengths: Int64[Tensor, "b"], tags: Int64[Tensor, "b"] | None = None
    ) -> Memory:
        """The encoded prompts, told the tags of texts where the model knows styles; None: slots are to answer."""
        if tags is None:
            tags = torch.full_like(lengths, CONSENSUS)
        return self.memory(prompt, lengths, tags if self.config.styles else torch.full_like(lengths, HUMAN))
