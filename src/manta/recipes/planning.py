"""How many steps each stage of a run gets: of its time budget, at a measured pace, or as its recipe says."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from manta.errors import UsageError
from manta.recipes.budget import LEAST_STEPS, SAFETY, Clock, Watch, refuse_too_little, seconds_for
from manta.recipes.pace import MEASURED_SHARE, MEASURED_STEPS, WARM_UP_STEPS, seconds_per_step
from manta.recipes.parts import Parts, StageSpec
from manta.recipes.recipe import seconds
from manta.recipes.runfolder import RunFolder
from manta.step import Observer
from manta.training import Stage
from manta.training.team import Team


class AgreedClock(Clock):
    """The first process's clock, read by all of them at once.

    Args:
        clock: of this process.
        team: all of them.
    """

    def __init__(self, clock: Clock, team: Team) -> None:
        self._own, self._team = clock, team

    def now(self) -> float:
        """Read it."""
        return self._team.agree(self._own.now())


class Planner:
    """Decides the steps of each stage as it begins, so that a resumed run keeps them.

    Args:
        parts: what is trained.
        specs: the stages, in order.
        folder: of the run, where the plan is written for people.
        watch: with the run's clock; tells what is measured.
        team: the processes of the run, which decide alike.
        stage_of: a stage of some steps, to be measured, and what learns from its batches.
    """

    def __init__(
        self,
        parts: Parts,
        specs: list[StageSpec],
        folder: RunFolder,
        watch: Watch,
        team: Team,
        stage_of: Callable[[StageSpec, int, Sequence[Observer]], Stage],
    ) -> None:
        self.parts, self.specs, self.folder, self.watch, self.stage_of = parts, specs, folder, watch, stage_of
        self.recipe, self.team = parts.recipe, team
        self.clock: Clock = AgreedClock(watch.clock, team)
        self.plan: dict[str, int] = {}
        """Steps of each stage that has begun."""
        self.paces: dict[str, float] = {}
        """Seconds a step, of the stages that were measured."""
        self._before = 0

    def check_time(self, first: int, state: dict[str, Any] | None, *, extended: bool) -> None:
        """Before anything is trained: see that a time budget gives every stage its least steps.

        A longer budget than that of the checkpoint gives more steps to the stages that are not finished.

        Args:
            first: stage to go on with.
            state: of the checkpoint; None: there is none.
            extended: the budget has become longer.

        Raises:
            UsageError: it does not, or the run is finished.
        """
        if self.recipe.time_budget is None:
            return
        budget = seconds(self.recipe.time_budget)
        if extended and first == len(self.specs):
            raise UsageError(
                f"the run in {self.folder.path} is finished, and more time cannot be added; begin another run"
            )
        if extended or state is None:
            self.plan = {spec.name: self.plan[spec.name] for spec in self.specs[:first]}
            self._before = state["plan"].get(state["stage"], 0) if state else 0
            self.paces.clear()
            paces = {spec.name: self.pace(spec) for spec in self.specs[first:]}
            refuse_too_little(budget, self.clock.now(), paces, self.parts.reserved(self.specs, first))

    def steps_of(self, index: int, done: int = 0) -> int:
        """Steps of a stage: decided as it begins.

        Of a time budget a stage takes its share of what is left for it and the stages after it, at the pace that a few
        trial steps have; so no stage pays for another's wrong estimate. Each gets `LEAST_STEPS` at least.

        Args:
            index: of the stage.
            done: steps that it has done already, where a longer budget asks to decide anew.
        """
        spec = self.specs[index]
        if spec.name in self.plan:
            return self.plan[spec.name]
        if self.recipe.num_steps is not None:
            steps = self.recipe.num_steps * spec.share / sum(other.share for other in self.specs)
            self.plan[spec.name] = max(1, round(steps))
        else:
            assert self.recipe.time_budget is not None, "resolve sets a budget"
            budget = seconds(self.recipe.time_budget)
            paces = [self.pace(other) for other in self.specs[index:]]
            left = SAFETY * (budget - self.clock.now())
            left -= self.parts.reserved(self.specs, index, planned=True) * budget
            shares = [other.share for other in self.specs[index:]]
            if done:
                shares[0] *= 1 - done / max(self._before, done + 1)
            steps = done + int(seconds_for(left, paces, shares, 0 if done >= LEAST_STEPS else LEAST_STEPS) / paces[0])
            self.plan[spec.name] = max(LEAST_STEPS, steps)
        self.folder.write_plan(self.plan)
        return self.plan[spec.name]

    def pace(self, spec: StageSpec) -> float:
        """Seconds a step of a stage; measured when first asked for, on what is there where other data are to come."""
        if spec.name not in self.paces:
            self.watch.tell(f"measuring the pace of {spec.name}")
            corpus = self.parts.at_hand
            # Each process has measured its own; they have to plan alike.
            self.paces[spec.name] = self.team.agree(self._seconds_per_step(replace(spec, corpus=lambda: corpus)))
        return self.paces[spec.name]

    def cut(self, stage: Stage, steps: int) -> None:
        """Give a stage that is slower than measured fewer steps."""
        self.plan[stage.name] = stage.num_steps = steps
        stage.average.horizon = max(1.0, stage.config.average_share * steps)
        self.folder.write_plan(self.plan)

    def _seconds_per_step(self, spec: StageSpec) -> float:
        """Time of a step of a stage, on copies, which leave no trace in the run."""
        own = {id(p) for p in self.parts.modules.parameters()}  # no stage trains the others
        shared: dict[int, Any] = {id(p): p for p in spec.model.parameters() if id(p) not in own}
        observers = observers_of(self.parts)  # objectives hold them, too
        model, objective, observers = copy.deepcopy((spec.model, spec.objective, observers), shared)
        trial = StageSpec(spec.name, spec.share, model, (model,), objective, spec.corpus)
        trained = {id(p) for part in spec.trained for p in part.parameters()}
        for ours, theirs in zip(spec.model.parameters(), model.parameters(), strict=True):
            theirs.requires_grad_(id(ours) in trained)
        most = MEASURED_SHARE * seconds(self.recipe.time_budget or "1h")
        stage = self.stage_of(trial, WARM_UP_STEPS + MEASURED_STEPS, observers)
        found = seconds_per_step(stage, self.clock, most)
        stage.held.release()  # what it shares with the run
        return found


def observers_of(parts: Parts) -> list[Observer]:
    """What learns from batches beside the weights of a run."""
    return [part for part in parts.measured.values() if isinstance(part, Observer)]
