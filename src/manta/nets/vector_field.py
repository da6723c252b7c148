"""The policy: a net made of operators that answers a state with the words it sees in it and the clean state."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.nets.conditioning import SharedModulation, TimeEmbedding
from manta.nets.trunk import Trunk
from manta.operators.context import OperatorConfig, OperatorContext, line
from manta.operators.cross_attention import ProjectedMemory

ROWS = 4
"""A product of a multiple of so many rows gives each row what it gives it among any others, on CPUs."""


@dataclass(frozen=True)
class Condition:
    """What a policy is told besides state and time."""

    memory: tuple[ProjectedMemory, ...]
    """The prompt as each block reads it, computed once for all calls. One row may serve several consecutive rows."""
    mask: Bool[Tensor, "b n"]
    """True on each row's canvas."""
    settled: Int64[Tensor, "b n"]
    """Tokens already settled; elsewhere the mask token, or what is settled there besides words."""
    code: Float[Tensor, "b k"] | None = None
    """Bits ±1 of an adaptive condition, 0 for none; None means zeros."""
    ahead: Float[Tensor, "1"] | None = None
    """How far in time the solver's step will carry the state; None: it is not told."""

    def rows(self, rows: Tensor, states_per_memory: int = 1) -> "Condition":
        """The condition of some rows of the state, each with a row of memory of its own."""
        source = torch.div(rows, states_per_memory, rounding_mode="floor")
        memory = tuple(
            ProjectedMemory(m.key[source], m.value[source], None if m.bias is None else m.bias[source])
            for m in self.memory
        )
        code = None if self.code is None else self.code[rows]
        return replace(self, memory=memory, mask=self.mask[rows], settled=self.settled[rows], code=code)


class VectorField(nn.Module):
    """Reads state, time, prompt and settled words: `field(state, t, words, cond, self_cond) → hidden`.

    r tokens share one latent. The state, the last estimate and the words that are settled enter at the bottom of one
    stack over the positions of the tokens; blocks of an operator, a reading of the prompt and a pointwise net follow;
    time modulates every block. What comes out is a hidden vector a token, from which both answers are read: the words
    (by the token table) and the clean state (`estimate`). One net for both means that what it knows of words serves
    the plan, and the plan it is carrying serves the words.

    Times are per latent: a known latent is clean, at t = 1. The velocity is `(clean − state)/(1 − t)`, which makes the
    policy a feedback law: it answers to the state it is in.

    Args:
        channels: c, width of a latent.
        dim: width of the net.
        depth: blocks.
        operators: the global integral operators of the blocks; repeated where there are fewer.
        heads: heads, for the trunk.
        rate: r, tokens that share one latent.
        estimates: build `estimate`; a space in which the words determine the clean state does without.
        shifted: each place reads the word before it as an autoregressive model does, and its own through a linear map
            that starts at zero: weights of such a model then mean the same here (Gong et al., arXiv 2410.17891).
        hidden: width inside the pointwise networks; 0: 8/3 of `dim`.
        bits: of an adaptive condition, which is added to the embedding of the time; 0: there is none.
        spans: build what reads how far a step goes, which is added to the embedding of the time; zero at the start.
    """

    told_time = True

    def __init__(
        self,
        *,
        channels: int,
        dim: int,
        depth: int,
        operators: Sequence[OperatorConfig],
        heads: int,
        rate: int = 1,
        estimates: bool = True,
        shifted: bool = False,
        hidden: int = 0,
        bits: int = 0,
        spans: bool = False,
    ) -> None:
        super().__init__()
        self.rate, self.dim = rate, dim
        self.spread = nn.Linear(2 * channels, rate * dim)
        self.own = nn.Linear(dim, dim, bias=False) if shifted else None
        self.time = TimeEmbedding(dim)
        self.modulation = SharedModulation(dim)
        self.trunk = Trunk(dim, depth, operators, heads=heads, cross=True, modulation=True, hidden=hidden)
        self.merge = nn.Linear(rate * dim, channels) if estimates else None
        self.code = nn.Parameter(torch.randn(bits, dim) * bits**-0.5) if bits else None
        self.span = TimeEmbedding(dim, silent=True) if spans else None
        nn.init.normal_(self.spread.weight, std=0.1)
        nn.init.zeros_(self.spread.bias)
        if self.own is not None:
            nn.init.zeros_(self.own.weight)

    def forward(
        self,
        state: Float[Tensor, "b m c"],
        t: Float[Tensor, "#b"] | Float[Tensor, "b m"],
        given: Float[Tensor, "b n d"],
        before: Float[Tensor, "b n d"] | None = None,
        *,
        cond: Condition,
        self_cond: Float[Tensor, "b m c"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """A hidden vector for each token; n = m·r.

        Args:
            state: the present state.
            t: time of each row or latent, or one for all rows, 0 = noise, 1 = data.
            given: what is settled at each place, embedded: `cond.settled`.
            before: the same of the place before each; there if and only if built with `shifted`.
            cond: prompt and canvas.
            self_cond: the policy's own last estimate; None and zeros mean the same.
        """
        assert (before is None) == (self.own is None), "what is before goes with a net built with shifted=True"
        b, n, _ = given.shape
        fed_back = torch.zeros_like(state) if self_cond is None else self_cond
        if self.own is not None and before is not None:
            given = before + self.own(given)
        x = given + self.spread(torch.cat([state, fed_back], -1)).reshape(b, n, self.dim).to(given.dtype)
        times = t.repeat_interleave(self.rate, 1) if t.ndim == 2 else t[:, None].expand(b, n)
        modulation = self._modulation(t, cond)
        if t.ndim == 2:
            modulation = modulation.repeat_interleave(self.rate, 1)
        context = OperatorContext(line(n, given.device), cond.mask, times)
        return self.trunk(x, context, memory=cond.memory, modulation=modulation)

    def _modulation(self, t: Tensor, cond: Condition) -> Float[Tensor, "r n e"]:
        """The modulation of time, span and code: ``W silu(time(t) + span(ahead) + Σ_k code_k c_k) + c``."""
        embedding, code = self.time(t), cond.code
        if self.span is not None and cond.ahead is not None:
            embedding = embedding + self.span(cond.ahead)
        if self.code is None or code is None:
            return self.modulation(embedding)
        # A sum bit by bit, and a product of a multiple of four rows: no row depends on how many there are.
        told = (code.to(embedding.dtype)[..., None] * self.code.to(embedding.dtype)).sum(1)
        if t.ndim == 2:
            return self.modulation(embedding + told[:, None])
        return self.modulation(F.pad(embedding + told, (0, 0, 0, -len(told) % ROWS)))[: len(told)]

    def estimate(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b m c"]:
        """The clean state that the hidden vectors stand for."""
        assert self.merge is not None, "built without estimates"
        b, n, d = hidden.shape
        return self.merge(hidden.reshape(b, n // self.rate, self.rate * d)).float()
