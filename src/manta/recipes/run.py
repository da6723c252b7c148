"""A training run: stages in order, checkpoints, logs and samples, resumable bit for bit.

The run folder holds `recipe.json`, `plan.json` (steps of each stage, decided as it begins), `metrics.jsonl`,
`checkpoints/`, `samples/`, `tensorboard/` if wanted, the data as prepared, the teacher where there is one, as a model
folder `teacher/` that writes by itself, and at the end the model folder `model/`, or the adapters `adapter/`.
"""

import copy
import errno
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from manta import __version__
from manta.config import to_dict
from manta.errors import CheckpointError, TrainingError, UsageError
from manta.recipes.budget import (
    LEAST_STEPS,
    SAFETY,
    Clock,
    Watch,
    refuse_too_little,
    seconds_for,
    spoken,
    undertrained,
)
from manta.recipes.logged import log_row, minutes_of
from manta.recipes.pace import (
    MEASURED_SHARE,
    MEASURED_STEPS,
    WARM_UP_STEPS,
    Pacer,
    seconds_per_step,
)
from manta.recipes.parts import RunRecipe, StageSpec
from manta.recipes.recipe import Recipe, seconds
from manta.recipes.runfolder import RunFolder, changes, fitting_checkpoint, refuse_elsewhere, standing, stored_recipe
from manta.recipes.states import STATES, resolved
from manta.runtime import (
    faster_precision,
    json_tensors,
    keep_memory,
    load_json_tensors,
    make_generator,
    resolve_device,
)
from manta.signals import Interrupted, on_signals
from manta.training import (
    Progress,
    RunLog,
    Stage,
    latest_checkpoint,
    load_checkpoint,
    load_state,
    read_log,
    require_tensorboard,
    save_checkpoint,
    train_stage,
)


@dataclass(frozen=True)
class Note:
    """Something to tell a person."""

    text: str


class TrainingRun:
    """One run in one folder, which nobody else may train in meanwhile.

    Args:
        recipe: what to train; `resolve` is applied. None when resuming: the folder's own counts.
        out: the run folder: new, or empty.
        resume: continue the run of that folder.
        device: see `resolve_device`.
        time_budget: when resuming a run that has one, a longer one.
        tell: takes lines about what is being done between two events, such as reading much data.

    Raises:
        UsageError: when the folder holds anything and `resume` is not set, when another process trains in it, or for a
            time budget that does not extend that of the run.
        CheckpointError: when there is nothing to resume, or what there is is damaged.
        DataError: when resuming where the run's data, named by a relative path, are not.
        ConfigError: when TensorBoard events are wanted and the package is missing.
    """

    def __init__(
        self,
        recipe: RunRecipe | None,
        out: str | Path,
        *,
        resume: bool = False,
        device: str | None = None,
        time_budget: str | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.clock, self.tell = Clock(), tell
        self.out = Path(out)
        self.device = resolve_device(device)
        asked = None if resume else resolved(recipe or Recipe(), tell)
        if asked is not None and asked.train.precision == "auto":
            asked = replace(asked, train=replace(asked.train, precision=faster_precision(self.device)))
        if asked is not None and asked.train.tensorboard:
            require_tensorboard()
        self.folder = RunFolder(self.out, resume=resume)
        try:
            self.asked = self.folder.extended(stored_recipe(self.out), time_budget) if asked is None else asked
            if asked is None and self.asked.train.tensorboard:
                require_tensorboard()
            if asked is None:
                refuse_elsewhere(self.out, self.asked.data)
            else:
                self.folder.write_recipe(asked)
        except BaseException:
            self.folder.close()
            raise
        self.recipe = self.asked
        self.plan: dict[str, int] = {}
        """Steps of each stage that has begun."""
        self.saved = ""
        """Where the newest checkpoint stands, in words; empty where there is none."""
        self.minutes: dict[str, float] = {}
        """Minutes of what has no steps, by name."""
        self.unit = STATES[self.recipe.state].load().unit
        """What elements of a batch are, in the plural."""
        self._paces: dict[str, float] = {}
        self._in_steps, self._stop = False, 0

    def __repr__(self) -> str:
        """What is trained, where, and how far its stages have come to be planned."""
        stages = ", ".join(f"{name} {steps:,}" for name, steps in self.plan.items()) or "none has begun"
        recipe = self.recipe
        return (
            f"<TrainingRun: {recipe.family}, {recipe.size}, on {recipe.data} in {self.out}; stages and steps: {stages}>"
        )

    def events(self) -> Generator[Note | Progress, None, None]:
        """Train to the end; yields notes and the progress of every step.

        Stop between two yields at will: closing the generator writes a checkpoint. The signals INT, TERM and HUP are
        waited for the end of a step, and write one too.

        Raises:
            Interrupted: by a signal; a second one does not wait.
            TrainingError: when the loss is no longer finite, or the disk is full.
        """
        events = self._events()
        with closing(self.folder), closing(events):
            while True:
                with on_signals(self._on_signal):
                    event = next(events, None)
                if event is None:
                    return
                yield event

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stop or not self._in_steps:
            raise Interrupted(number)
        self._stop = number

    def _events(self) -> Generator[Note | Progress, None, None]:
        keep_memory()
        try:
            found = latest_checkpoint(self.out)
            edited = changes(load_state(found)["recipe"], to_dict(self.asked)) if found else []
            yield Note(f"preparing {self.recipe.data}")
            self._prepare()
            yield Note(f"{self.parts.report}; prepared in {spoken(self.clock.now())}")
            self.specs = self.parts.specs()
            tensors, state = self._restore(found)
            names = [spec.name for spec in self.specs]
            if state is not None and state["stage"] not in names:
                raise CheckpointError(f"{found} is of a stage {state['stage']!r}, which this recipe does not have")
            first = names.index(state["stage"]) + int(state.get("completed", False)) if state else 0
            self._check_time(first, state, extended="time_budget" in edited)
        except Exception:
            if self.folder.new:
                self.folder.forget(STATES[self.recipe.state].load().files)
            raise
        if edited:
            yield Note(f"recipe.json has another {', '.join(edited)} than at the last checkpoint; it counts from here")
        yield Note(f"stages: {', '.join(names)}; {self.parts.size}")
        yield from map(Note, self.parts.advice())
        yield from self._goes_on(first, state)
        try:
            yield from self._train(first, tensors, state)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TrainingError(
                f"the disk is full ({error.filename or self.out}); make room and resume: the newest checkpoint is "
                f"{self.saved or 'none'}"
            ) from error

    def _train(self, first: int, tensors: dict[str, Any], state: dict[str, Any] | None) -> Iterator[Note | Progress]:
        self.watch.budget = None
        self.log = RunLog(self.out, state["step"] if state else 0, tensorboard=self.recipe.train.tensorboard)
        with closing(self.log):
            for index in range(first, len(self.specs)):
                resumed = (tensors, state) if state and index == first and not state.get("completed") else None
                yield from self._run_stage(index, resumed)
        self.model = self.parts.trained_model(self.specs[-1].name)
        yield from map(Note, self.parts.finished(self.model))
        target = self.out / self.parts.place
        if first == len(self.specs) and self.parts.is_saved(target, self.model):
            yield Note(f"this run is finished; its model is in {target}")
            return
        self._save(target, self.model)
        steps = ", ".join(f"{name} {steps}" for name, steps in self.plan.items())
        yield Note(f"model written to {target} after {steps} steps in {spoken(self.clock.now())}")
        if short := undertrained(self.plan):
            yield Note(f"warning: the model is {short}")

    def _goes_on(self, first: int, state: dict[str, Any] | None) -> Iterator[Note]:
        """Say where a run is taken up again."""
        if self.folder.new:
            return
        if state is None:
            yield Note("there is no checkpoint yet, so training begins at its first step")
            return
        kept = sum(row["global_step"] <= state["step"] for row in read_log(self.out)[0])
        if kept < state["step"]:
            yield Note(f"warning: the log holds {kept} of {state['step']} steps; the others were lost or damaged")
        if state.get("completed") and first < len(self.specs):
            yield Note(f"{state['stage']} is finished; going on with {self.specs[first].name} at its first step")

    def trials(self, num_steps: int) -> Iterator[Stage]:
        """Each stage in turn, ready to train for some steps: for measuring. Only the data as prepared is written.

        Args:
            num_steps: of each stage.
        """
        self._prepare()
        self.specs = self.parts.specs()
        for spec in self.specs:
            self._free(spec)
            yield self._stage(spec, num_steps)

    def _prepare(self) -> None:
        """The data, and what reads them; both are kept in the folder and reused."""
        budget = None if self.recipe.time_budget is None else seconds(self.recipe.time_budget)
        self.watch = Watch(self.clock, budget, self.tell)
        kind: Any = STATES[self.recipe.state].load()
        kind.refuse_strangers(self.out)
        self.parts: Any = kind.prepared(self.recipe, self.out, self.device, self.watch)
        self.recipe = self.parts.recipe
        self.folder.keep_data(self.parts.data, self.recipe.data)
        self.minutes["preparation"] = self.clock.now() / 60

    def _check_time(self, first: int, state: dict[str, Any] | None, *, extended: bool) -> None:
        """Before anything is trained: see that a time budget gives every stage its least steps.

        A longer budget than that of the checkpoint gives more steps to the stages that are not finished.
        """
        if self.recipe.time_budget is None:
            return
        budget = seconds(self.recipe.time_budget)
        if extended and first == len(self.specs):
            raise UsageError(f"the run in {self.out} is finished, and more time cannot be added; begin another run")
        if extended or state is None:
            self.plan = {spec.name: self.plan[spec.name] for spec in self.specs[:first]}
            self._before = state["plan"].get(state["stage"], 0) if state else 0
            self._paces.clear()
            paces = {spec.name: self._pace(spec) for spec in self.specs[first:]}
            refuse_too_little(budget, self.clock.now(), paces, self.parts.reserved(self.specs, first))

    def _steps_of(self, index: int, done: int = 0) -> int:
        """Steps of a stage: decided as it begins and stored, so that a resumed run keeps them.

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
            paces = [self._pace(other) for other in self.specs[index:]]
            left = SAFETY * (budget - self.clock.now())
            left -= self.parts.reserved(self.specs, index, planned=True) * budget
            shares = [other.share for other in self.specs[index:]]
            if done:
                shares[0] *= 1 - done / max(self._before, done + 1)
            steps = done + int(seconds_for(left, paces, shares, 0 if done >= LEAST_STEPS else LEAST_STEPS) / paces[0])
            self.plan[spec.name] = max(LEAST_STEPS, steps)
        self.folder.write_plan(self.plan)
        return self.plan[spec.name]

    def _free(self, spec: StageSpec) -> None:
        """Let a stage train its own parts and nothing else."""
        self.parts.modules.requires_grad_(False)
        for part in spec.trained:
            part.requires_grad_(True)

    def _pace(self, spec: StageSpec) -> float:
        """Seconds a step of a stage; measured when first asked for, on what is there where other data are to come."""
        if spec.name not in self._paces:
            self.watch.tell(f"measuring the pace of {spec.name}")
            corpus = self.parts.at_hand
            self._paces[spec.name] = self._seconds_per_step(replace(spec, corpus=lambda: corpus))
        return self._paces[spec.name]

    def _seconds_per_step(self, spec: StageSpec) -> float:
        """Time of a step of a stage, on copies, which leave no trace in the run."""
        own = {id(p) for p in self.parts.modules.parameters()}  # no stage trains the others
        shared: dict[int, Any] = {id(p): p for p in spec.model.parameters() if id(p) not in own}
        model, objective = copy.deepcopy((spec.model, spec.objective), shared)
        trial = StageSpec(spec.name, spec.share, model, (model,), objective, spec.corpus)
        trained = {id(p) for part in spec.trained for p in part.parameters()}
        for ours, theirs in zip(spec.model.parameters(), model.parameters(), strict=True):
            theirs.requires_grad_(id(ours) in trained)
        most = MEASURED_SHARE * seconds(self.recipe.time_budget or "1h")
        return seconds_per_step(self._stage(trial, WARM_UP_STEPS + MEASURED_STEPS), self.clock, most)

    def _seed(self, spec: StageSpec) -> int:
        return self.recipe.seed * 1000 + len(spec.name) + ord(spec.name[0])

    def _rows_of(self, index: int, *, begun: bool) -> Any:
        """The examples of a stage's later round; None: all."""
        spec, before = self.specs[index], self.specs[index - 1]
        if spec.round == 0:
            return None
        loader = self.parts.batches(before, self._seed(before), self._rows_of(index - 1, begun=True))
        num_batches = self.plan[before.name] * self.recipe.train.accumulate
        return self.parts.rows_of_round(spec, loader, num_batches, self._seed(spec), begun=begun)

    def _stage(self, spec: StageSpec, num_steps: int, rows: Any = None) -> Stage:
        seed = self._seed(spec)
        batches = OnDevice(self.parts.batches(spec, seed, rows), self.device)
        rate = self.recipe.train.learning_rate
        assert rate is not None, "resolved"
        return Stage(
            spec.name,
            spec.model,
            spec.objective,
            batches,
            num_steps,
            replace(self.recipe.train, learning_rate=spec.pace * rate),
            make_generator(seed),
        )

    def _restore(self, found: Path | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Weights and state of a checkpoint."""
        if found is None:
            for name in ("teacher", "model", "adapter"):
                if (self.out / name).exists():
                    raise CheckpointError(
                        f"{self.out} has a folder {name} and its checkpoints are gone, so it cannot be continued"
                    )
            return {}, None
        tensors, state = load_checkpoint(found)
        self.folder.refuse_other_data(state["data"], self.parts.data, self.recipe.data)
        with fitting_checkpoint(found):
            self.parts.modules.load_state_dict(tensors["model"])
            for name, part in self.parts.measured.items():
                part.load_state_dict(load_json_tensors(state["measured"][name]))
        self.plan = dict(state["plan"])
        self.minutes = {**state["minutes"], "preparation": state["minutes"]["preparation"] + self.clock.now() / 60}
        self.clock.add(state["spent"])
        if state.get("pace") is not None:
            self._paces[state["stage"]] = state["pace"]
        self.saved = standing(state)
        return tensors, state

    def _run_stage(
        self, index: int, resumed: tuple[dict[str, Any], dict[str, Any]] | None
    ) -> Iterator[Note | Progress]:
        spec = self.specs[index]
        self._free(spec)
        if resumed is None:
            spec.begin()
        self._before_stage(spec)
        rows = self._rows_of(index, begun=resumed is not None)  # which takes time that has no steps
        stage = self._stage(spec, self._steps_of(index, resumed[1]["stage_step"] if resumed else 0), rows)
        before = sum(self.plan[s.name] for s in self.specs[:index])
        if resumed is not None:
            with fitting_checkpoint(self.out / "checkpoints"):
                stage.load(*resumed)
            yield Note(f"going on with {spec.name} at step {stage.step + 1} of {stage.num_steps}")
        elif index == 0:
            self._save_stage(stage, before)  # from here on nothing of what was prepared can change unnoticed
        saved, every = self.clock.now(), 60 * self.recipe.checkpoint_minutes
        sample_every = max(1, stage.num_steps // 3)
        pacer = Pacer(self.clock, stage, self._paces.get(spec.name))
        self._in_steps = True
        try:
            for progress in train_stage(stage):
                step, more = before + progress.step, self.parts.row(before + progress.step, progress)
                self.log.row(step, log_row(step, progress, self.unit, more, self.device))
                if (steps := pacer.cut()) is not None:
                    self.plan[spec.name] = stage.num_steps = steps
                    stage.average.horizon = max(1.0, stage.config.average_share * steps)
                    self.folder.write_plan(self.plan)
                    yield Note(f"slower than measured: {spec.name} is cut to {steps} steps, to keep the time budget")
                if self._stop and progress.step < stage.num_steps:
                    self._save_stage(stage, before)
                    raise Interrupted(self._stop)
                yield progress
                if progress.step % sample_every == 0:
                    yield from self._samples(stage, before + progress.step)
                if self.clock.now() - saved > every and progress.step < stage.num_steps:
                    self._save_stage(stage, before)
                    saved = self.clock.now()
        except GeneratorExit:
            self._save_stage(stage, before)
            raise
        finally:
            self._in_steps = False
        for name, model in self.parts.besides(spec).items():
            self.log.flush()
            self._save(self.out / name, model)
        self._checkpoint(before + stage.num_steps, {}, {"stage": spec.name, "completed": True})
        if self._stop:
            raise Interrupted(self._stop)

    def _before_stage(self, spec: StageSpec) -> None:
        """Have a stage's data, which may be the teacher's answers, made before it is planned."""
        begun = self.clock.now()
        if spec.corpus() is not self.parts.corpus:
            spent = (self.clock.now() - begun) / 60
            self.minutes[self.parts.made] = self.minutes.get(self.parts.made, 0.0) + spent
            if self.recipe.time_budget is not None and spec.name not in self.plan:
                self._paces.pop(spec.name, None)  # measured before there were such texts

    def _save(self, folder: Path, model: Any) -> None:
        """A model folder, with a card that tells how it came about."""
        minutes = {**minutes_of(self.out, self.plan), **self.minutes}
        self.parts.save(folder, model, self.parts.card(model, self.plan, minutes))

    def _save_stage(self, stage: Stage, before: int) -> None:
        """A checkpoint between two steps of a stage."""
        state = {**stage.state_dict(), "stage_steps": stage.num_steps, "pace": self._paces.get(stage.name)}
        self._checkpoint(before + stage.step, stage.tensors(), state)

    def _checkpoint(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        self.log.flush()
        tensors = {"model": self.parts.modules.state_dict(), **tensors}
        measured = {name: json_tensors(part.state_dict()) for name, part in self.parts.measured.items()}
        state = {**state, "measured": measured, "version": __version__, "recipe": to_dict(self.asked)}
        state |= {"plan": self.plan, "data": self.parts.data, "minutes": self.minutes, "spent": self.clock.now()}
        save_checkpoint(self.out, step, tensors, state)
        self.saved = standing({**state, "step": step})

    def _samples(self, stage: Stage, step: int) -> Iterator[Note]:
        """A few samples by the averaged weights, into `samples/` and as a note."""
        model = self.parts.trained_model(stage.name)
        stage.average.swap(stage.model)
        try:
            lines = self.parts.samples(model, stage.name, self.out / "samples" / f"step-{step}")
        finally:
            stage.average.swap(stage.model)
            stage.model.train()
        if not lines:
            return
        self.log.samples(step, lines)
        yield Note("\n".join("  " + line for line in lines))


class OnDevice:
    """A loader whose batches are moved to a device."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __next__(self) -> Any:
        return next(self.loader).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
