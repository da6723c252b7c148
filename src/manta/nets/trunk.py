"""A stack of blocks with a norm at its end: the body of every net here."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from manta.errors import UsageError
from manta.nets.blocks import Block, RMSNorm, SwiGLU
from manta.operators.context import Cache, OperatorConfig, OperatorContext
from manta.operators.cross_attention import ProjectedMemory


class Trunk(nn.Module):
    """Blocks, one after the other, and a final norm.

    Args:
        dim: width of the residual stream.
        depth: number of blocks, ≥ 1.
        operators: how elements act on each other, block by block; repeated where there are fewer than blocks.
        heads: of the reading of memory, and of an operator whose configuration does not set its own.
        cross: every block reads a memory.
        modulation: every block takes the shared modulation of the time.
        causal: build causal operators.
        hidden: width inside the blocks' pointwise networks; 0: 8/3 of `dim`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        operators: Sequence[OperatorConfig],
        *,
        heads: int,
        cross: bool = False,
        modulation: bool = False,
        causal: bool = False,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for index in range(depth):
            operator = operators[index % len(operators)].build(dim, heads=heads, causal=causal)
            self.blocks.append(Block(dim, operator, cross=cross, modulation=modulation, heads=heads, hidden=hidden))
        self.norm = RMSNorm(dim)

    def project(
        self, memory: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"] | None = None
    ) -> tuple[ProjectedMemory, ...]:
        """Keys and values of a memory for every block, computed once for all calls that read it."""
        return tuple(block.cross.project(memory, mask) for block in self.blocks)  # pyright: ignore

    @property
    def networks(self) -> tuple[SwiGLU, ...]:
        """The pointwise networks of the blocks."""
        return tuple(block.mlp for block in self.blocks)  # pyright: ignore

    @property
    def cacheable(self) -> bool:
        """Whether spans can be computed from what is kept of the rest."""
        return all(block.operator.cacheable for block in self.blocks)  # pyright: ignore

    @property
    def answers_alone(self) -> bool:
        """Whether an element of a span gets what it would get alone, see ``OperatorContext.alone``."""
        return all(block.operator.answers_alone for block in self.blocks)  # pyright: ignore

    @property
    def follows_blocks(self) -> bool:
        """Whether elements can be kept to their own block and those before, see ``OperatorContext.blocks``."""
        return all(block.operator.follows_blocks for block in self.blocks)  # pyright: ignore

    def new_cache(self) -> tuple[Cache, ...]:
        """An empty cache a block, for one batch of rows.

        Raises:
            UsageError: the operator cannot keep anything.
        """
        if not self.cacheable:
            kinds = {type(block.operator).__name__ for block in self.blocks}
            raise UsageError(f"{', '.join(kinds)} computes whole rows only and cannot keep a part; go without a cache")
        return tuple(Cache() for _ in self.blocks)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: OperatorContext | Sequence[OperatorContext],
        *,
        memory: tuple[ProjectedMemory, ...] | None = None,
        modulation: Float[Tensor, "#b #n k"] | None = None,
        cache: tuple[Cache, ...] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The normalised state after the last block: of whole rows, or of the context's span.

        Args:
            x: the state.
            context: coordinates, mask and time, and the span; or one a block.
            memory: one projection a block, from `project`; only with `cross`.
            modulation: shared modulation; only with `modulation`.
            cache: from `new_cache`; needed for a span that is not the row.
        """
        for index, block in enumerate(self.blocks):
            read = None if memory is None else memory[index]
            kept = None if cache is None else cache[index]
            told = context if isinstance(context, OperatorContext) else context[index]
            x = block(x, told, memory=read, modulation=modulation, cache=kept)
        return self.norm(x)
