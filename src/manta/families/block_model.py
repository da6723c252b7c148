"""The net of block-causal masked models, and how it is called block after block."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.errors import ConfigError
from manta.families.batching import WIDTH, padded_width, repeated_rows
from manta.families.prompted import Memory, PromptedConfig, PromptedModel, resolved
from manta.masked import Extension
from manta.nets.layout import columnwise
from manta.nets.trunk import Trunk
from manta.operators import OperatorContext, line
from manta.operators.cross_attention import ProjectedMemory
from manta.text import BOS, EOS, Batch


@dataclass(frozen=True, kw_only=True)
class BlockCausalConfig(PromptedConfig):
    """Shape of a block-causal masked model."""

    family: Literal["block"] = "block"
    """Which family this is."""
    block_length: int = 8
    """b, words of a block; 1 is left to right."""
    shifted: bool = True
    """Each place reads the word before it as an autoregressive model does, and its own through a linear map that starts
    at zero: weights of such a model then mean the same here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_length < 1:
            raise ConfigError(f"block_length should be at least 1, received {self.block_length}")


class BlockCausalModel(PromptedModel):
    """Logits of every place of a block, given the prompt, the blocks before and the words that are not masked.

    Args:
        config: shape.

    Raises:
        ConfigError: an operator cannot keep elements to the blocks before.

    Source: Arriola et al., "Block Diffusion", arXiv 2503.09573; reading the word before: Gong et al., arXiv 2410.17891.
    """

    begin, end = BOS, EOS

    def __init__(self, config: BlockCausalConfig) -> None:
        shape = resolved(config)
        num_places = max(shape.max_prompt, shape.max_text + shape.block_length) if shape.absolute_places else 0
        super().__init__(shape, num_lengths=None, num_places=num_places)
        self.trunk = Trunk(shape.dim, shape.depth, shape.mix, heads=shape.heads, cross=True, hidden=shape.hidden)
        if not self.trunk.follows_blocks:
            raise ConfigError(f"{shape.kinds} sees whole rows or what lies before alone; blocks need attention")
        self.own = nn.Linear(shape.dim, shape.dim, bias=False) if shape.shifted else None
        if self.own is not None:
            nn.init.zeros_(self.own.weight)
        self.inside = nn.Embedding(shape.block_length, shape.dim) if shape.block_length > 1 else None
        """Place in the block: without it the places of an unwritten one are alike."""
        if self.inside is not None:
            nn.init.normal_(self.inside.weight, std=0.1)

    def read(
        self, tokens: Int64[Tensor, "b n"], before: Int64[Tensor, "b n"], start: int = 0
    ) -> Float[Tensor, "b n d"]:
        """States at the bottom of the stack.

        Args:
            tokens: the word of each place, or the mask token.
            before: the same of the place before each; looked at if the model is shifted.
            start: number of the first place.
        """
        x = self.embed(tokens if self.own is None else before, start)
        return self._beside(x, self.embedding(tokens), start)

    def read_weights(self, weights: Float[Tensor, "b n v"], before: Float[Tensor, "b n v"]) -> Float[Tensor, "b n d"]:
        """`read` of whole texts whose tokens are weights over the vocabulary, so that a gradient can reach them."""
        x = self.embed_weights(weights if self.own is None else before)
        return self._beside(x, weights @ self.embedding.weight, 0)

    def _beside(self, x: Float[Tensor, "b n d"], own: Float[Tensor, "b n d"], start: int) -> Float[Tensor, "b n d"]:
        """Embeddings with those of each place's own word, where it is shifted, and of its place in the block."""
        if self.own is not None:
            x = x + self.own(own)
        if self.inside is None:
            return x
        place = torch.arange(start, start + x.shape[1], device=x.device)
        return x + self.inside(place % self.config.block_length)

    def forward(
        self,
        clean: Int64[Tensor, "b n"],
        shown: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        memory: tuple[ProjectedMemory, ...],
    ) -> Float[Tensor, "b n v"]:
        """Logits of every place of all blocks at once, each behind the clean blocks before it.

        One row holds both copies of a text; a place of the copy that is shown receives from its block there, and from
        the earlier blocks of the clean one.

        Args:
            clean: the texts; n is a multiple of the block's length.
            shown: the same, the mask token where a word is hidden.
            mask: True where a row has blocks.
            memory: the prompt, from `trunk.project`.
        """
        n, length = clean.shape[1], self.config.block_length
        place = torch.arange(n, device=clean.device)
        first = torch.full_like(clean[:, :1], self.begin)
        before = torch.cat([first, clean[:, :-1]], 1)
        before_shown = torch.where(place % length == 0, before, torch.cat([first, shown[:, :-1]], 1))
        x, blocks, where = self.read(shown, before_shown), place // length, line(n, clean.device)
        if n == length:  # there is nothing before the only block
            return self.head(self.trunk(x, OperatorContext(where, mask, blocks=blocks), memory=memory))
        context = OperatorContext(
            where.repeat(2, 1),
            mask.repeat(1, 2),
            blocks=blocks.repeat(2),
            lasting=torch.arange(2 * n, device=clean.device) < n,
        )
        hidden = self.trunk(torch.cat([self.read(clean, before), x], 1), context, memory=memory)
        return self.head(hidden[:, n:])

    def in_blocks(self, batch: Batch) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Texts as rows of whole blocks, closed and filled up by ends; and where each row has blocks.

        n is a multiple of `WIDTH`, too, so that a likelihood does not depend on the batch.
        """
        length = self.config.block_length
        blocks = batch.text_lengths // length + 1  # room for one end at least
        multiple = math.lcm(length, WIDTH)
        place = torch.arange(-(-int(blocks.max()) * length // multiple) * multiple, device=batch.text.device)[None]
        text = F.pad(batch.text, (0, max(0, place.shape[1] - batch.text.shape[1])))[:, : place.shape[1]]
        tokens = torch.where(place < batch.text_lengths[:, None], text, self.end)
        return tokens, place < (blocks * length)[:, None]


class BlockReader:
    """A model on one batch of texts, block after block, behind a cache of the blocks before.

    The clean states of a block are computed within the first call of the next, so that they cost no call of their own.
    On CPU what a block is told is, bit for bit, the same beside any other rows, and with nothing kept.

    Args:
        model: the model.
        memory: encoded prompts.
        room: places that are written at most.
    """

    def __init__(self, model: BlockCausalModel, memory: Memory, room: int) -> None:
        self.model, self.rows = model, len(memory.states)
        device, length = memory.states.device, model.config.block_length
        on_cpu = device.type == "cpu"
        self.trunk = columnwise(model.trunk) if on_cpu and memory.states.dtype is torch.float32 else model.trunk
        self._room = -(-room // length) * length
        place = torch.arange(padded_width(self._room), device=device)
        self.context = OperatorContext(
            line(len(place), device), blocks=place // length, alone=on_cpu and model.trunk.answers_alone
        )
        self.memory = self.trunk.project(repeated_rows(memory.states), repeated_rows(memory.mask))
        self.cache = self.trunk.new_cache()
        self.settled = torch.full((self.rows, 1), model.begin, device=device)
        """Words of the blocks that are written, behind the beginning."""
        self._kept = 0

    @property
    def room(self) -> int:
        """Places that are left to write, those of the present block included."""
        return self._room - (self.settled.shape[1] - 1)

    def __call__(
        self, tokens: Int64[Tensor, "b l"], start: int, stop: int, ahead: Extension | None = None
    ) -> Float[Tensor, "b k v"]:
        """Logits of places of the present block, and of those beyond that it reaches; see `SpanDenoiser`.

        Args:
            tokens: of these places.
            start, stop: which of them are asked for.
            ahead: knows how far the block of each row reaches; None: as far as itself.
        """
        row = repeated_rows(torch.cat([self.settled, tokens], 1))
        begin, end = self._kept, row.shape[1] - 1
        x = self.model.read(row[:, begin + 1 :], row[:, begin:-1], begin)
        context = self.context if ahead is None or not ahead.reaches else self._extended(repeated_rows(ahead.extra))
        hidden = self.trunk(x, context.span(begin, end), memory=self.memory, cache=self.cache)
        self._kept = end - tokens.shape[1]
        return self.model.head(hidden[:, -tokens.shape[1] :])[: self.rows, start:stop]

    def _extended(self, extra: Int64[Tensor, "k"]) -> OperatorContext:
        """The present block and the places beyond that it reaches as one; no row sees what another one reaches."""
        assert self.context.blocks is not None, "made with blocks"
        place, length = torch.arange(self.context.length, device=extra.device), self.model.config.block_length
        end = self.settled.shape[1] - 1 + length + extra[:, None]
        own = (self.settled.shape[1] - 1) // length
        blocks = torch.where(place < end.max(), self.context.blocks.clamp_max(own), self.context.blocks)
        return replace(self.context, blocks=blocks, mask=place < end)

    def settle(self, tokens: Int64[Tensor, "b l"]) -> None:
        """Go on to the next block.

        Args:
            tokens: the present one, all written.
        """
        self.settled = torch.cat([self.settled, tokens], 1)
