"""A Manta-LM's policy at work: each action sees the words settled by then."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError
from manta.families.model import MantaModel
from manta.families.observer import Observer
from manta.families.page import Page
from manta.flow import SolverState, guided, solve
from manta.flow.solvers import Field
from manta.nets.vector_field import Condition
from manta.spaces import Words
from manta.types import Estimate


class ActingPolicy:
    """The policy at work on a page: each action sees the words settled by then.

    Args:
        model: the nets.
        page: read at every action.
        cond: prompt and canvas.
        null: the same without the prompt, for guidance.
        guidance_scale: 1 without guidance.
    """

    def __init__(
        self, model: MantaModel, page: Page, cond: Condition, null: Condition | None = None, guidance_scale: float = 1.0
    ) -> None:
        self.model, self.page = model, page
        self.words: Words
        """What the last action told of the words, as it reads the state with its prompt."""
        self.reached: SolverState | None = None
        self.ahead: Tensor | None = None
        """How far the step goes that is being taken, for a policy that is told."""
        self.field = self._acting(cond)
        if null is not None:
            self.field = guided(self.field, self._acting(null), guidance_scale)

    def _acting(self, condition: Condition) -> Field:
        def field(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None) -> Estimate:
            seen = replace(condition, settled=self.page.shown, ahead=self.ahead)
            # All rows are at one time: told once, it is embedded alike in every batch.
            return self.model.act_beside(state, t[:1], cond=seen, self_cond=self_cond)

        return field

    @property
    def logits(self) -> Float[Tensor, "b n v"]:
        """Token logits of the last action.

        Guidance moves the plan and leaves the words alone. Beside settled words the null condition tells what is fluent
        there, so that logits extrapolated away from it choose words that do not go together: `benchmarks/attempts.md`.
        """
        return self.model.logits(self.words)

    def flow(
        self, state: Tensor, grid: Tensor, self_cond: Tensor | None, observer: Observer, **settings: Any
    ) -> Iterator[tuple[float, int]]:
        """Follow the flow along a grid; yields the time reached and the calls made by each step."""
        for k, span in enumerate(grid.unfold(0, 2, 1)):
            seen = observer.before(k, self.page, state)
            assert seen is not None, "a flow has a state"
            self.ahead = span.diff().to(seen)
            reached = next(solve(self.field, seen, span, self_cond=self_cond, **settings))
            if not isinstance(reached.aux, Words):
                raise UsageError("an observer that wraps the field has to hand on the `aux` of its estimates")
            self.reached, self.words, state, self_cond = reached, reached.aux, reached.state, reached.clean
            observer.moved(reached)
            yield reached.t, reached.nfe

    def stay(self, state: Tensor, actions: int, begun: float) -> Iterator[tuple[float, int]]:
        """Act again and again where the flow has ended, or where it would have begun if there was none."""
        reached = self.reached
        t, self_cond = (begun, None) if reached is None else (1.0, reached.clean)
        state = state if reached is None else reached.state
        times, self.ahead = torch.full((len(state),), t, device=state.device), None
        for _ in range(actions):
            estimate = Estimate.of(self.field(state, times, self_cond=self_cond))
            self.words = estimate.aux
            self_cond = estimate.clean if reached is not None else None
            yield t, estimate.nfe
