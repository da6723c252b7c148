"""What every space of a text's state has in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.types import Estimate


@dataclass(frozen=True)
class Within:
    """Classes that words are known to be of, where all others are ruled out."""

    classes: Int64[Tensor, "b n"]
    """Class of the word at each place; −1 where it is not known."""
    class_of: Int64[Tensor, "v"]
    """Class of every word."""

    def others(self, where: Bool[Tensor, "b n"] | None = None) -> Bool[Tensor, "*shape v"]:
        """True for the words of other classes than the known one.

        Args:
            where: positions wanted, which gives "k v"; None gives all, "b n v".
        """
        classes = (self.classes if where is None else self.classes[where])[..., None]
        return (classes >= 0) & (classes != self.class_of)


@dataclass(frozen=True)
class Words:
    """What the words of a state are read from: logits = head(hidden) + likelihood, −∞ outside of a known class."""

    hidden: Float[Tensor, "b n d"]
    """Hidden vectors of the policy, one a token."""
    likelihood: Float[Tensor, "b n v"] | None = None
    """Log-likelihood of the state under each token, where a space knows it in closed form."""
    within: Within | None = None
    """Classes that are known of the words; None: none is."""

    def logits(
        self, head: Callable[[Tensor], Tensor], where: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "*shape v"]:
        """Logits in float32.

        Args:
            head: hidden vectors to logits.
            where: positions wanted, which gives "k v"; None gives all, "b n v".
        """
        hidden = self.hidden if where is None else self.hidden[where]
        logits = head(hidden).float()
        if self.likelihood is not None:
            logits = logits + (self.likelihood if where is None else self.likelihood[where])
        return logits if self.within is None else logits.masked_fill(self.within.others(where), -torch.inf)


class Space(nn.Module, ABC):
    """Where the state of a text lives: from tokens to the clean state, and from a policy's answer to both."""

    rate: int
    """r: tokens that share one state."""
    channels: int
    """Width of a state."""
    encoder_calls: ClassVar[int]
    """Network calls that encoding a text costs."""
    estimates: ClassVar[bool]
    """Whether the policy's net has an output of its own for the clean state; otherwise the words determine it."""

    @abstractmethod
    def encode(
        self,
        tokens: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: Float[Tensor, "b m d"],
        memory_mask: Bool[Tensor, "b m"],
        table: Float[Tensor, "v d"],
    ) -> Float[Tensor, "b k c"]:
        """The standardised clean state of a text, n = k·r.

        Args:
            tokens: the text; the mask token where it is unknown.
            mask: True on the canvas of each row, a multiple of r positions.
            memory: the encoded prompt.
            memory_mask: True where it is real.
            table: token embeddings.
        """

    @abstractmethod
    def known(
        self,
        state: Float[Tensor, "b k c"],
        t: Float[Tensor, "*time"],
        words: Int64[Tensor, "b n"],
        where: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "*time"]]:
        """State and times once some words are settled, which may make their states known: clean, at t = 1.

        Args:
            state: the present state.
            t: its time, "b", "b k", or "1" for all rows.
            words: the words.
            where: True where one is settled.
        """

    @abstractmethod
    def readout(
        self,
        state: Float[Tensor, "b k c"],
        t: Float[Tensor, "*time"],
        hidden: Float[Tensor, "b n d"],
        *,
        clean: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        within: Within | None = None,
    ) -> Estimate:
        """What a policy's hidden vectors say of the clean state; `aux` is `Words`.

        Args:
            state, t: what the policy was asked.
            hidden: its answer.
            clean: its own output for the clean state, if the space `estimates`.
            head: hidden vectors to logits.
            within: classes that are known of the words.
        """
