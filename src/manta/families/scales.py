"""Two scales of words: what the families have in common whose models settle classes of words before words."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError, ModelError, UsageError
from manta.families.prompted import PromptedModel
from manta.masked.coarse import Coarse
from manta.spaces import Within
from manta.text import MASK, NULL, Corpus
from manta.text.classes import word_classes

LEAST_CLASSES = 3
"""The end of a text, and two more."""
CLASSED = 100_000
"""Texts from which classes of words are learnt."""
COARSE_SHARE = 0.5
"""Share of the calls that settle classes, in a model that has some."""


def check_classes(classes: int, vocab_size: int | None) -> None:
    """See that so many classes can be learnt.

    Args:
        classes: of a model's shape; 0 for none.
        vocab_size: words of the vocabulary, where they are known.

    Raises:
        ConfigError: as said.
    """
    if classes and not LEAST_CLASSES <= classes <= (vocab_size or classes):
        raise ConfigError(
            f"classes should be 0, or from {LEAST_CLASSES} to the words of the vocabulary, received {classes}"
        )


class ClassedModel(PromptedModel):
    """A net that may be told the class of a word where the word is not known: the token V + c of a canvas."""

    coarse: nn.Embedding | None

    def add_classes(self, shape: Any) -> None:
        """Give the net vectors of classes and a place for the classes of its words, as its shape says.

        Args:
            shape: resolved.
        """
        self.coarse = nn.Embedding(shape.classes, shape.dim) if shape.classes else None
        classes = torch.arange(shape.vocab_size) % max(1, shape.classes)
        self.register_buffer("_class_of", classes.float() if shape.classes else None)  # stored as weights are

    @property
    def class_of(self) -> Int64[Tensor, "v"]:
        """Class of every word, 0 … K − 1.

        Raises:
            UsageError: a model without classes.
        """
        if not isinstance(self._class_of, Tensor):
            raise UsageError("this model has no classes of words")
        return self._class_of.long()

    @class_of.setter
    def class_of(self, classes: Int64[Tensor, "v"]) -> None:
        assert isinstance(self._class_of, Tensor), "a model with classes"
        self._class_of.copy_(classes)

    def parted(self, canvas: Int64[Tensor, "b n"]) -> tuple[Int64[Tensor, "b n"], Within | None]:
        """The words of a canvas, the mask token where none is known, and the classes; None of a model without any."""
        if self.coarse is None:
            return canvas, None
        classed = canvas >= self.config.vocab_size
        classes = (canvas - self.config.vocab_size).masked_fill(~classed, -1)
        return canvas.masked_fill(classed, MASK), Within(classes, self.class_of)

    def class_vectors(self, within: Within) -> Float[Tensor, "b n d"]:
        """Embedded classes, zeros where none is known."""
        assert self.coarse is not None, "a model with classes"
        return self.coarse(within.classes.clamp_min(0)).masked_fill(within.classes[..., None] < 0, 0.0)


def learn_classes(net: ClassedModel, corpus: Corpus) -> None:
    """Learn the classes of a net's words from training texts, if it has any.

    Args:
        net: to be trained.
        corpus: the texts.
    """
    if net.config.classes:
        rows = (corpus.text(row).tolist() for row in range(min(len(corpus), CLASSED)))
        net.class_of = word_classes(rows, net.config.vocab_size, net.config.classes, alone=[NULL])


def check_stored(net: ClassedModel) -> None:
    """See that every word of a net that was loaded is of one of its classes.

    Raises:
        ModelError: as said.
    """
    if net.config.classes and not bool(((net.class_of >= 0) & (net.class_of < net.config.classes)).all()):
        raise ModelError(f"a word is of no class among the model's {net.config.classes}; copy the folder again")


def coarse_of(net: ClassedModel) -> Coarse | None:
    """What settles the classes of a net's words before the words; None of a net without any."""
    return Coarse(net.class_of, MASK, NULL, COARSE_SHARE) if net.config.classes else None


def by_class(net: ClassedModel, tokens: Int64[Tensor, "b n"], generator: torch.Generator) -> Bool[Tensor, "b n"] | None:
    """Places whose class is shown in training if their word is hidden: a share of them in half of the rows.

    Args:
        net: None, and no draw, of one without classes.
        tokens: the texts.
        generator: of the draws.
    """
    if not net.config.classes:
        return None
    draws = torch.rand((2, len(tokens)), generator=generator).to(tokens.device)
    share = torch.where(draws[0] < 0.5, draws[1], 0.0)
    return torch.rand(tokens.shape, generator=generator).to(tokens.device) < share[:, None]


def covered(
    net: ClassedModel,
    tokens: Int64[Tensor, "b n"],
    hidden: Bool[Tensor, "b n"],
    classed: Bool[Tensor, "b n"] | None,
) -> Int64[Tensor, "b n"]:
    """A canvas with hidden words, some of which are told by their class.

    Args:
        net: of which the classes are.
        tokens: the texts.
        hidden: words that are hidden.
        classed: from `by_class`.
    """
    if classed is None:
        return tokens.masked_fill(hidden, MASK)
    coarse = torch.where(classed, net.config.vocab_size + net.class_of[tokens], MASK)
    return torch.where(hidden, coarse, tokens)
