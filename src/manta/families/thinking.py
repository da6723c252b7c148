"""Latent thinking: what a masked model carries from call to call, besides the words that stand."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.families.batching import ROWS, padded_width
from manta.text import MASK

MOST_SLOTS = 256
"""Most slots of thought."""


@dataclass(frozen=True, kw_only=True)
class ThinkingConfig:
    """How a masked model thinks. Our reading of "latent thinking" (arXiv 2601.14041, of which the headings could be
    had)."""

    carry: bool = False
    """Undecided words are carried to the next call as soft embeddings: the mean of all embeddings, weighed by what the
    call before has told. Without it each call sees an undecided word as the mask token alone."""
    slots: int = 0
    """Slots of thought: elements of the state beside the text that every call reads, writes anew and hands to the next;
    they are no words, and are dropped at the end."""
    doubts: bool = False
    """A head that tells how likely each written word is right, trained on the model's own words, for the decoder
    `doubt`."""

    def __post_init__(self) -> None:
        if not 0 <= self.slots <= MOST_SLOTS:
            raise ConfigError(f"thinking.slots should lie between 0 and {MOST_SLOTS}, received {self.slots}")

    @property
    def carries(self) -> bool:
        """Whether a call hands anything to the next."""
        return self.carry or self.slots > 0


@dataclass(frozen=True)
class Thought:
    """What a call hands to the next."""

    chances: Float[Tensor, "b n v"]
    """Probabilities of the words of every position; those of written ones are not read."""
    slots: Float[Tensor, "b k d"]
    """The slots of thought as the trunk has left them."""


@dataclass(frozen=True)
class Told:
    """What a call tells."""

    logits: Float[Tensor, "b n v"]
    """Of the words of every position."""
    slots: Float[Tensor, "b k d"]
    """Slots of thought after the call."""
    right: Float[Tensor, "b n"] | None
    """Logits of the probability that the word that stands is the right one; None without a head for it."""
    grow: Float[Tensor, "b n"] | None
    """Logits of masked places that stand for several words, beside those of the words; None without an elastic
    canvas."""

    def classes(self) -> Float[Tensor, "b n w"]:
        """Logits of the words and, as a last class where there is one, of growing."""
        return self.logits if self.grow is None else torch.cat([self.logits, self.grow[..., None]], -1)

    def thought(self) -> Thought:
        """What is handed to the next call. Gradients pass through the slots, which learn by them, and not the words."""
        logits = self.logits.detach().float().clone()
        logits[..., MASK] = -torch.inf
        return Thought(logits.softmax(-1), self.slots)


class Thinking(nn.Module):
    """The weights that thinking takes.

    Args:
        config: what is carried.
        table: embeddings of the words, which remain its owner's.
    """

    def __init__(self, config: ThinkingConfig, table: nn.Embedding) -> None:
        super().__init__()
        dim = table.embedding_dim
        self.config, self._shared = config, (table,)
        self.carried = nn.Linear(dim, dim, bias=False) if config.carry else None
        self.slots = nn.Parameter(0.1 * torch.randn(config.slots, dim)) if config.slots else None
        self.handed = nn.Linear(dim, dim, bias=False) if config.slots else None
        for zero in (self.carried, self.handed):
            if zero is not None:  # thinking begins as no thinking
                nn.init.zeros_(zero.weight)
        self.doubt = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1)) if config.doubts else None

    def enter(
        self, x: Float[Tensor, "b n d"], tokens: Int64[Tensor, "b n"], thought: Thought | None
    ) -> Float[Tensor, "b m d"]:
        """The trunk's state: the slots, then the text, whose undecided words lean to what the call before told, then
        what fills the width up, so that a text does not depend on its batch."""
        if self.carried is not None and thought is not None:
            (table,) = self._shared
            soft = self.carried(thought.chances.to(table.weight.dtype) @ table.weight)
            x = x + soft.masked_fill((tokens != MASK)[..., None], 0.0)
        if self.slots is None or self.handed is None:
            return x
        slots = self.slots.expand(len(x), -1, -1).to(x.dtype)
        if thought is not None:
            count = self.config.slots
            handed = self.handed(F.pad(thought.slots, (0, 0, 0, -count % ROWS)))
            slots = slots + handed[:, :count]
        return F.pad(torch.cat([slots, x], 1), (0, 0, 0, self._filling(x.shape[1])))

    def real(self, mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b m"]:
        """The mask of the trunk's state: all slots are real."""
        return F.pad(F.pad(mask, (self.config.slots, 0), value=True), (0, self._filling(mask.shape[1])), value=False)

    def leave(
        self, hidden: Float[Tensor, "b m d"], width: int
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b n d"]]:
        """The slots and the text, of `width` positions, of the trunk's state."""
        return hidden[:, : self.config.slots], hidden[:, self.config.slots :][:, :width]

    def _filling(self, width: int) -> int:
        """Positions that no one reads, behind a text of `width` positions and its slots."""
        return padded_width(self.config.slots + width) - self.config.slots - width if self.config.slots else 0

    def right(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"] | None:
        """Logits of `Told.right`."""
        return None if self.doubt is None else self.doubt(hidden)[..., 0].float()
