"""What all families share: a token table that is also read by, an encoded prompt, and a guess of the length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.config import Unset
from manta.errors import ConfigError
from manta.families.batching import rowwise
from manta.nets.head import Head
from manta.nets.memory import MemoryEncoder
from manta.operators import AttentionConfig

Operator = TypeVar("Operator", bound=Any)

TAGS = 3
"""Kinds of text asked for: human, consensus, and none (the null condition, without a prompt)."""
NO_PROMPT = 2
"""Heading of the null condition."""


@dataclass(frozen=True)
class Memory:
    """A prompt, encoded once for all nets that read it."""

    states: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]

    def rows(self, rows: Tensor) -> "Memory":
        """Some of its rows."""
        return Memory(self.states[rows], self.mask[rows])


def check_shape(dim: int, heads: int, depth: int, *, built: bool = False) -> None:
    """Refuse shapes that no net can have; what is not set, 0, passes until a net is built.

    Args:
        dim: width.
        heads: attention heads.
        depth: blocks.
        built: a net is made of them now.

    Raises:
        ConfigError: as said.
    """
    if min(dim, heads, depth) < 0:
        raise ConfigError(f"dim, heads and depth should be at least 1, received {dim}, {heads} and {depth}")
    if 0 < dim < 8 or (dim and heads and dim % (2 * heads)):
        whole = f", a multiple of 2·heads = {2 * heads}" if heads else ""
        raise ConfigError(f"dim should be at least 8{whole}, received {dim}")
    if built and not min(dim, heads, depth):
        raise ConfigError("dim, heads or depth is not set; a recipe takes them from its size")


def with_heads(operator: Operator, heads: int) -> Operator:
    """An operator's configuration with its model's heads, unless it has none or they were set by hand.

    Args:
        operator: of any kind.
        heads: of the model.
    """
    return replace(operator, heads=heads) if isinstance(getattr(operator, "heads", None), Unset) else operator


class PromptedModel(nn.Module):
    """Token table, prompt encoder and, if asked for, places and a length head.

    Args:
        vocab_size: tokens.
        dim: width.
        heads: attention heads.
        prompt_depth: blocks of the prompt's encoder.
        num_lengths: lengths a text can have, counted from 1; None builds no head.
        num_places: tells prompt and text the absolute place of each of so many tokens, for texts that answer their
            prompt place by place, such as puzzles; 0 leaves places relative.
    """

    config: Any
    """Shape, of the family's own class."""

    def __init__(
        self, *, vocab_size: int, dim: int, heads: int, prompt_depth: int, num_lengths: int | None, num_places: int = 0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head = Head(self.embedding)
        operator = AttentionConfig(heads=heads)
        self.memory_encoder = MemoryEncoder(dim, prompt_depth, operator, heads=heads, kinds=TAGS)
        self.places = nn.Embedding(num_places, dim) if num_places else None
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.1)
        self.length = (
            None if num_lengths is None else nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, num_lengths))
        )

    def embed(self, tokens: Int64[Tensor, "b n"], start: int | Sequence[int] = 0) -> Float[Tensor, "b n d"]:
        """Embedded tokens, with their places where the model has them.

        Args:
            tokens: of a prompt or a text.
            start: place of the first, of all rows or of each.
        """
        x = self.embedding(tokens)
        if self.places is None:
            return x
        if isinstance(start, int):
            return x + self._places(start, tokens.shape[1])
        return x + torch.stack([self._places(first, tokens.shape[1]) for first in start])

    def embed_weights(self, weights: Float[Tensor, "b n v"]) -> Float[Tensor, "b n d"]:
        """Expected embeddings: tokens given as weights over the vocabulary, so that a gradient can reach them."""
        x = weights @ self.embedding.weight
        return x if self.places is None else x + self._places(0, weights.shape[1])

    def _places(self, start: int, count: int) -> Float[Tensor, "{count} d"]:
        """Embeddings of places; zeros beyond the last one, where there is padding alone."""
        assert self.places is not None, "built without places"
        known = self.places.weight[start : start + count]
        return known if len(known) == count else F.pad(known, (0, 0, 0, count - len(known)))

    def memory(
        self,
        prompt: Int64[Tensor, "b p"],
        lengths: Int64[Tensor, "b"],
        kind: Int64[Tensor, "b"],
        *,
        encode: bool = True,
    ) -> Memory:
        """Encode prompts: one network call, or none if they stay bare embeddings.

        Args:
            prompt: prompt tokens, padded at the right.
            lengths: prompt tokens of each row; 0 for none.
            kind: kind of text asked for, in [0, TAGS); rows without a prompt are of the kind `NO_PROMPT`, whatever is
                asked, in training as in writing.
            encode: run the encoder; False is for a budget of a single call.
        """
        mask = torch.arange(prompt.shape[1], device=prompt.device) < lengths[:, None]
        kind = torch.where(lengths == 0, NO_PROMPT, kind)
        states, mask = self.memory_encoder(self.embed(prompt), mask, kind, encode=encode)
        return Memory(states, mask)

    def length_logits(self, memory: Memory) -> Float[Tensor, "b k"]:
        """Logits of the length of a text, 1 … k, in the family's own unit."""
        assert self.length is not None, "built without a length head"
        weight = memory.mask[..., None].to(memory.states.dtype)
        return rowwise(self.length, (memory.states * weight).sum(1) / weight.sum(1)).float()
