"""How long the steps of a stage take: measured before it begins, and watched while it runs."""

import statistics

from manta.recipes.budget import LEAST_STEPS, SLOWER, Clock
from manta.training import Stage, train_stage

WARM_UP_STEPS = 3
"""Steps before the timed ones: the first take memory from the system and are several times slower."""
MEASURED_STEPS = 8
"""Steps of each stage that are timed to turn a time budget into a number of steps."""
MEASURED_SHARE = 0.02
"""Share of the budget that the measuring of one stage may take, where its steps are long."""


def seconds_per_step(stage: Stage, clock: Clock, most: float) -> float:
    """Median time of the steps of a stage after the first few, which is trained for it.

    Args:
        stage: of `WARM_UP_STEPS + MEASURED_STEPS` steps.
        clock: of the run.
        most: seconds to spend, where steps are long; two steps are taken in any case.

    Returns:
        Seconds, above 0.
    """
    end = clock.now() + most
    times: list[float] = []
    for progress in train_stage(stage):
        times.append(progress.seconds)
        if len(times) > 1 and clock.now() > end:
            break
    # A clock that was set back gives a time below zero.
    timed = [time for time in times[min(WARM_UP_STEPS, len(times) - 1) :] if time > 0] or [1e-3]
    return statistics.median(timed)


class Pacer:
    """Watches that a stage keeps the time it was given.

    Args:
        clock: of the run.
        stage: about to take its next step.
        pace: seconds a step as planned; None for a run without a time budget, or one that goes on as planned.
    """

    def __init__(self, clock: Clock, stage: Stage, pace: float | None) -> None:
        self.clock, self.stage, self.pace = clock, stage, pace
        self.first, self.begun = stage.step, clock.now()
        self.end = self.begun + (stage.num_steps - stage.step) * (pace or 0.0)

    def cut(self) -> int | None:
        """After a step: fewer steps for the stage, if it would take `SLOWER` times its time; None: all is well."""
        stage, done = self.stage, self.stage.step - self.first
        if self.pace is None or done % LEAST_STEPS or stage.step == stage.num_steps:
            return None
        now = self.clock.now()
        pace, left = (now - self.begun) / done, max(0.0, self.end - now)
        if (stage.num_steps - stage.step) * pace <= SLOWER * left:
            return None
        steps = max(LEAST_STEPS, stage.step + int(left / pace))
        return steps if steps < stage.num_steps else None
