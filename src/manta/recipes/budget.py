"""From a time budget to steps: a clock that never runs backwards, and what each stage of a run may take."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from manta.errors import UsageError

LEAST_STEPS = 50
"""Steps that every stage of a run with a time budget gets; a budget for fewer is refused before the run begins."""
FEW_STEPS = 200
"""A stage of fewer steps is called undertrained."""
SAFETY = 0.96
"""Share of what is left that is planned: checkpoints, samples and averages take the rest."""
SLOWER = 1.1
"""A stage that would take so many times what was planned is cut."""
TOLD_EVERY = 10.0
"""Seconds between two lines about work that goes on."""

Row = TypeVar("Row")


class Clock:
    """Seconds that a run has worked, all its sittings together.

    It adds up what passes between two readings, so that a machine whose clock is set back loses one such span and no
    more.

    Args:
        before: seconds of earlier sittings.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._spent, self._last = before, time.perf_counter()

    def add(self, seconds: float) -> None:
        """Count what an earlier sitting has spent."""
        self._spent += seconds

    def now(self) -> float:
        """Read it."""
        now = time.perf_counter()
        self._spent, self._last = self._spent + max(0.0, now - self._last), now
        return self._spent


class Watch:
    """What is said, and what is allowed, while a run works on something that has no steps.

    Args:
        clock: of the run.
        budget: seconds after which preparing is given up; None: never.
        tell: takes a line for a person.
    """

    def __init__(
        self, clock: Clock, budget: float | None = None, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self.clock, self.budget, self.tell = clock, budget, tell
        self._told = clock.now()

    def over(self, rows: Iterable[Row], what: str) -> Iterator[Row]:
        """Pass rows on, and say now and then how many there were.

        Raises:
            UsageError: the budget is spent.
        """
        for count, row in enumerate(rows, 1):
            if count % 256 == 0:
                self.at(f"{what}: {count:,} examples")
            yield row

    def at(self, what: str) -> None:
        """Say what is being done, if the last line is a while ago.

        Raises:
            UsageError: the budget is spent.
        """
        now = self.clock.now()
        if now - self._told > TOLD_EVERY:
            self._told = now
            self.tell(what)
        if self.budget is not None and now > self.budget:
            raise UsageError(
                f"preparing the data takes more than the whole budget of {spoken(self.budget)} ({what}); give more "
                "time, or fewer examples with num_examples"
            )


def seconds_for(left: float, paces: Sequence[float], shares: Sequence[float], least: int = LEAST_STEPS) -> float:
    """Time of the first of some stages: its share of what is left, as long as every stage gets its least steps.

    Args:
        left: seconds for all of them.
        paces: seconds a step of each.
        shares: of the stages; only ratios count.
        least: steps of each.

    Returns:
        Seconds, at least those of `least` steps of the first.
    """
    others = least * sum(paces[1:])
    return max(min(left * shares[0] / sum(shares), left - others), least * paces[0])


def refuse_too_little(budget: float, spent: float, paces: dict[str, float], reserved: float) -> None:
    """Make sure that a budget gives every stage its least steps.

    Args:
        budget: seconds of the whole run.
        spent: seconds that preparing has taken.
        paces: seconds a step of each stage to come.
        reserved: share of the budget for other things.

    Raises:
        UsageError: it does not; the message says what budget would do.
    """
    steps = LEAST_STEPS * sum(paces.values())
    needed = (spent + steps / SAFETY) / (1 - reserved)
    if budget >= needed:
        return
    raise UsageError(
        f"a time budget of {spoken(budget)} is too short: preparing took {spoken(spent)}, and {LEAST_STEPS} steps of "
        f"each stage ({', '.join(paces)}) take about {spoken(steps)}, which teaches little yet; give --time-budget "
        f"{spoken(1.2 * needed)} or more, or a smaller size"
    )


def spoken(duration: float) -> str:
    """A duration in the form that a recipe reads, rounded up: `90s`, `7m`, `2.5h`."""
    if duration < 100:
        return f"{math.ceil(duration)}s"
    return f"{math.ceil(duration / 60)}m" if duration < 7200 else f"{math.ceil(duration / 360) / 10:g}h"


def undertrained(plan: dict[str, int]) -> str:
    """What to say of stages that were too short to teach much; empty where there are none."""
    short = [f"{name} had {steps}" for name, steps in plan.items() if steps < FEW_STEPS]
    return f"undertrained: {', '.join(short)} steps, fewer than {FEW_STEPS}; give the run more time" if short else ""
