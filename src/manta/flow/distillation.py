"""Fewer steps of a flow that land where more of them did: the target, and what a run says of it."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from manta.errors import ConfigError
from manta.flow.path import expand_time


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How a model learns to write in few calls what it writes in many."""

    method: Literal["progressive", "flow_map"] = "progressive"
    """`progressive`: half the calls, and half of those, each time by a student of the one before (Salimans and Ho,
    arXiv 2202.00512). `flow_map`: one student for all those budgets at once, which is told how far a step goes (Frans
    et al., arXiv 2410.12557; Boffi et al., arXiv 2505.18825)."""
    num_steps: int | None = None
    """Network calls that the student writes a text in, from 2 on: the prompt's encoder and an action or more. None: the
    run distils nothing."""
    halvings: int = 3
    """Times that the actions are halved: the model that is distilled acts 2^halvings times as often, 1 to 6."""
    consensus_rows: float = 0.5
    """Share of the texts in `consensus` style, whose noise is smaller, [0, 1]; the others are `diverse`."""

    def __post_init__(self) -> None:
        if self.num_steps is not None and not 2 <= self.num_steps <= 64:
            raise ConfigError(f"distillation.num_steps should lie between 2 and 64, received {self.num_steps}")
        if not 1 <= self.halvings <= 6:
            raise ConfigError(f"distillation.halvings should lie between 1 and 6, received {self.halvings}")
        if not 0 <= self.consensus_rows <= 1:
            raise ConfigError(f"distillation.consensus_rows should lie in [0, 1], received {self.consensus_rows}")

    @property
    def actions(self) -> int:
        """Actions of the student's policy: its calls but the prompt's encoder."""
        assert self.num_steps is not None, "a run that distils nothing asks for none"
        return self.num_steps - 1

    @property
    def levels(self) -> tuple[int, ...]:
        """Actions after each halving, from the first to the last."""
        return tuple(self.actions << k for k in reversed(range(self.halvings)))


def landing_target(
    state: Float[Tensor, "b m c"], t: Tensor, t_next: Tensor, reached: Float[Tensor, "b m c"]
) -> Float[Tensor, "b m c"]:
    """The clean estimate with which one Euler step lands where several steps did.

        state + (t_next − t) (target − state) / (1 − t) = reached

    Args:
        state: where the steps began.
        t: at what time, below 1; one for all, or "b".
        t_next: when they ended, above t.
        reached: the state by then.

    Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512,
        appendix G, for the linear path.
    """
    share = expand_time((t_next - t) / (1 - t), state)
    return state + (reached - state) / share
