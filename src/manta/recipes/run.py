"""A training run: stages in order, checkpoints, logs and samples, resumable bit for bit, by any number of processes.

The run folder holds `recipe.json`, `plan.json` (steps of each stage, decided as it begins), `metrics.jsonl`,
`checkpoints/`, `samples/`, `tensorboard/` if wanted, the data as prepared, the teacher where there is one, as a model
folder `teacher/` that writes by itself, and at the end the model folder `model/`, or the adapters `adapter/`.
"""

import errno
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from manta import __version__
from manta.config import to_dict
from manta.errors import CheckpointError, TrainingError
from manta.hub import load
from manta.recipes.budget import Clock, Watch, spoken, undertrained
from manta.recipes.logged import log_row, minutes_of
from manta.recipes.pace import Pacer
from manta.recipes.parts import OnDevice, RunRecipe, StageSpec
from manta.recipes.planning import Planner, observers_of
from manta.recipes.recipe import Recipe, seconds
from manta.recipes.runfolder import (
    RunFolder,
    edited_since,
    finished_model,
    fitting_checkpoint,
    newest,
    refuse_elsewhere,
    refuse_lost,
    standing,
    stored_recipe,
)
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
from manta.step import Observer
from manta.training import (
    NoLog,
    Processes,
    Progress,
    RunLog,
    Sharding,
    Stage,
    assemble,
    latest_checkpoint,
    load_checkpoint,
    own_device,
    require_tensorboard,
    save_checkpoint,
    save_shares,
    train_stage,
)
from manta.training.background import Writing
from manta.training.holding import described
from manta.training.team import Gone

TWICE = 5.0
"""Seconds within which a signal that comes again is the same one: a launcher passes on what its processes got too."""


@dataclass(frozen=True)
class Note:
    """Something to tell a person."""

    text: str


class TrainingRun:
    """One run in one folder, which nobody else may train in meanwhile.

    Where `torchrun` or Ray has started several processes, they train it together: each makes one `TrainingRun` of the
    same arguments and goes through the same events. The folder has to be one that all of them see.

    Args:
        recipe: what to train; `resolve` is applied. None when resuming: the folder's own counts.
        out: the run folder: new, or empty.
        resume: continue the run of that folder.
        device: see `resolve_device`.
        time_budget: when resuming a run that has one, a longer one.
        sharding: what several processes share out, see `training.holding`; it may change when resuming.
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
        sharding: Sharding = "none",
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.clock, self.out = Clock(), Path(out)
        self.sharding: Sharding = sharding
        self.device = resolve_device(own_device(device))
        self.team = assemble(self.device, tell)
        self.tell: Callable[[str], None] = tell if self.team.first else lambda line: None
        self.folder = RunFolder.followed(self.out, resume=resume)
        self.asked = self.team.alone(lambda: self._begin(recipe, resume, time_budget))
        self.recipe = self.asked
        self.saved = ""
        """Where the newest checkpoint stands, in words; empty where there is none."""
        self.minutes: dict[str, float] = {}
        """Minutes of what has no steps, by name."""
        self.unit = STATES[self.recipe.state].load().unit
        """What elements of a batch are, in the plural."""
        self._planner: Planner | None = None
        self._plan: dict[str, int] = {}
        self._writing: Writing | None = None
        self._being_saved = ""
        self._in_steps, self._stop, self._stopped = False, 0, 0.0

    def _begin(self, recipe: RunRecipe | None, resume: bool, time_budget: str | None) -> Any:
        """Take the folder, and tell what is trained."""
        asked = None if resume else resolved(recipe or Recipe(), self.tell)
        if asked is not None and asked.train.precision == "auto":
            asked = replace(asked, train=replace(asked.train, precision=faster_precision(self.device)))
        if asked is not None and asked.train.accumulate < self.team.size:
            asked = replace(asked, train=replace(asked.train, accumulate=self.team.size))
        if asked is not None and asked.train.tensorboard:
            require_tensorboard()
        self.folder = RunFolder(self.out, resume=resume)
        try:
            found = self.folder.extended(stored_recipe(self.out), time_budget) if asked is None else asked
            if asked is None and found.train.tensorboard:
                require_tensorboard()
            if asked is None:
                refuse_elsewhere(self.out, found.data)
            else:
                self.folder.write_recipe(asked)
        except BaseException:
            self.folder.close()
            raise
        return found

    @property
    def plan(self) -> dict[str, int]:
        """Steps of each stage that has begun."""
        return self._plan if self._planner is None else self._planner.plan

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
        waited for the end of a step, and write one too. Several processes save only together: a signal to one of them
        stops all, and closing the generator of one ends it.

        Raises:
            Interrupted: by a signal; a second one does not wait.
            TrainingError: when the loss is no longer finite, the disk is full, or another process has ended.
        """
        events = self._events()
        with closing(self.folder), closing(events):
            while True:
                try:
                    with on_signals(self._on_signal), self.team.meeting():
                        event = next(events, None)
                except Gone:
                    raise
                except BaseException:
                    with suppress(OSError, RuntimeError):  # which is not what has ended the run
                        self._wait()
                    raise
                if event is None:
                    return
                yield event

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask, from another thread, to stop after the step that is taken, with a checkpoint.

        Args:
            number: of the signal that `Interrupted` names.
        """
        self._stop = self._stop or number

    def _on_signal(self, number: int, frame: object) -> None:
        again = self._stop and (self.team.size == 1 or time.monotonic() - self._stopped > TWICE)
        if again or not self._in_steps:
            raise Interrupted(number)
        if not self._stop:
            self._stop, self._stopped = number, time.monotonic()

    def _events(self) -> Generator[Note | Progress, None, None]:
        keep_memory()
        try:
            found = self.team.alone(lambda: latest_checkpoint(self.out))
            edited = self.team.alone(lambda: edited_since(found, self.asked))
            done = self.team.alone(lambda: None if edited else finished_model(self.out, found, self.asked))
            if done is not None:
                folder, self._plan = done
                self.model = load(folder, device=str(self.device))
                yield Note(f"this run is finished; its model is in {folder}")
                return
            yield Note(f"preparing {self.recipe.data}")
            self._prepare()
            yield Note(f"{self.parts.report}; prepared in {spoken(self.clock.now())}")
            self._plan_for(self.parts.specs())
            tensors, state = self.team.in_turn(lambda: self._restore(found))
            names = [spec.name for spec in self.specs]
            if state is not None and state["stage"] not in names:
                raise CheckpointError(f"{found} is of a stage {state['stage']!r}, which this recipe does not have")
            first = names.index(state["stage"]) + int(state.get("completed", False)) if state else 0
            self.planner.check_time(first, state, extended="time_budget" in edited)
        except Exception:
            if self.folder.new:
                self.folder.forget(STATES[self.recipe.state].load().files)
            raise
        if edited:
            yield Note(f"recipe.json has another {', '.join(edited)} than at the last checkpoint; it counts from here")
        yield Note(f"stages: {', '.join(names)}; {self.parts.size}")
        yield from map(
            Note, [*described(self.team.size, self.recipe.train.accumulate, self.sharding), *self.parts.advice()]
        )
        yield from map(Note, self.folder.taken_up(state, names[first:]))
        try:
            yield from self._train(first, tensors, state)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TrainingError(
                f"the disk is full ({error.filename or self.out}); make room and resume: the newest checkpoint is "
                f"{newest(self.out)}"
            ) from error

    def _train(self, first: int, tensors: dict[str, Any], state: dict[str, Any] | None) -> Iterator[Note | Progress]:
        self.watch.budget = None
        step, events = state["step"] if state else 0, self.recipe.train.tensorboard
        self.log = RunLog(self.out, step, tensorboard=events) if self.team.first else NoLog()
        with closing(self.log):
            for index in range(first, len(self.specs)):
                resumed = (tensors, state) if state and index == first and not state.get("completed") else None
                yield from self._run_stage(index, resumed)
        self.model = self.parts.trained_model(self.specs[-1].name)
        yield from map(Note, self.team.alone(lambda: self._finished(begun=first < len(self.specs))))

    def _finished(self, *, begun: bool) -> list[str]:
        """Write the model; tells of it."""
        notes = list(self.parts.finished(self.model))
        target = self.out / self.parts.place
        if not begun and self.parts.is_saved(target, self.model):
            return [*notes, f"this run is finished; its model is in {target}"]
        self._save(target, self.model)
        steps = ", ".join(f"{name} {steps}" for name, steps in self.plan.items())
        notes.append(f"model written to {target} after {steps} steps in {spoken(self.clock.now())}")
        short = undertrained(self.plan)
        return [*notes, f"warning: the model is {short}"] if short else notes

    def trials(self, num_steps: int) -> Iterator[Stage]:
        """Each stage in turn, ready to train for some steps: for measuring. Only the data as prepared is written.

        Args:
            num_steps: of each stage.
        """
        self._prepare()
        self._plan_for(self.parts.specs())
        for spec in self.specs:
            self._free(spec)
            yield self._stage(spec, num_steps)

    def _prepare(self) -> None:
        """The data, and what reads them; both are kept in the folder and reused."""
        budget = None if self.recipe.time_budget is None else seconds(self.recipe.time_budget)
        self.watch = Watch(self.clock, budget, self.tell)
        kind: Any = STATES[self.recipe.state].load()

        def prepared() -> Any:
            if self.team.first:
                kind.refuse_strangers(self.out)
            else:
                self.watch.budget = None  # the first one has kept it
            parts = kind.prepared(self.recipe, self.out, self.device, self.watch)
            if self.team.first:
                self.folder.keep_data(parts.data, parts.recipe.data)
            return parts

        self.parts: Any = self.team.in_turn(prepared)
        self.recipe = self.parts.recipe
        self.minutes["preparation"] = self.clock.now() / 60

    def _plan_for(self, specs: list[StageSpec]) -> None:
        self.specs = specs
        self._planner = Planner(self.parts, specs, self.folder, self.watch, self.team, self._stage)

    @property
    def planner(self) -> Planner:
        """Decides how long stages are."""
        assert self._planner is not None, "the data are prepared first"
        return self._planner

    def _free(self, spec: StageSpec) -> None:
        """Let a stage train its own parts and nothing else."""
        self.parts.modules.requires_grad_(False)
        for part in spec.trained:
            part.requires_grad_(True)

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

    def _stage(
        self, spec: StageSpec, num_steps: int, observers: Sequence[Observer] | None = None, rows: Any = None
    ) -> Stage:
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
            team=self.team,
            sharding=self.sharding,
            observers=observers_of(self.parts) if observers is None else observers,
        )

    def _restore(self, found: Path | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Weights and state of a checkpoint."""
        if found is None:
            refuse_lost(self.out)
            return {}, None
        tensors, state = load_checkpoint(found)
        self.folder.refuse_other_data(state["data"], self.parts.data, self.recipe.data)
        with fitting_checkpoint(found):
            self.parts.modules.load_state_dict(tensors["model"])
            for name, part in self.parts.measured.items():
                part.load_state_dict(load_json_tensors(state["measured"][name]))
        self.planner.plan = dict(state["plan"])
        self.minutes = {**state["minutes"], "preparation": state["minutes"]["preparation"] + self.clock.now() / 60}
        self.clock.add(state["spent"])
        if state.get("pace") is not None:
            self.planner.paces[state["stage"]] = state["pace"]
        self.saved = standing(state)
        return tensors, state

    def _run_stage(
        self, index: int, resumed: tuple[dict[str, Any], dict[str, Any]] | None
    ) -> Iterator[Note | Progress]:
        spec = self.specs[index]
        self._free(spec)
        if resumed is None:
            self.team.in_turn(spec.begin)
        self._before_stage(spec)
        # Which takes time that has no steps.
        rows = self.team.in_turn(lambda: self._rows_of(index, begun=resumed is not None))
        stage = self._stage(spec, self.planner.steps_of(index, resumed[1]["stage_step"] if resumed else 0), rows=rows)
        before = sum(self.plan[s.name] for s in self.specs[:index])
        if resumed is not None:
            with fitting_checkpoint(self.out / "checkpoints"):
                stage.load(*resumed)
            yield Note(f"going on with {spec.name} at step {stage.step + 1} of {stage.num_steps}")
        elif index == 0:
            self._save_stage(stage, before)  # from here on nothing of what was prepared can change unnoticed
        saved, every = self.planner.clock.now(), 60 * self.recipe.checkpoint_minutes
        sample_every = max(1, stage.num_steps // 3)
        pacer = Pacer(self.planner.clock, stage, self.planner.paces.get(spec.name))
        self._in_steps = True
        try:
            for progress in train_stage(stage):
                self._log(stage, before + progress.step, progress)
                if (steps := pacer.cut()) is not None:
                    self.planner.cut(stage, steps)
                    yield Note(f"slower than measured: {spec.name} is cut to {steps} steps, to keep the time budget")
                asked, [now, *_] = zip(*self.team.gather((self._stop, self.clock.now())), strict=True)
                self._stop = max(asked)
                if self._stop and progress.step < stage.num_steps:
                    self._save_stage(stage, before)
                    raise Interrupted(self._stop)
                yield progress
                if progress.step % sample_every == 0:
                    yield from self._samples(stage, before + progress.step)
                if now - saved > every and progress.step < stage.num_steps:
                    self._save_stage(stage, before, wait=False)
                    saved = now
        except GeneratorExit:
            if self.team.size == 1:
                self._save_stage(stage, before)
            raise
        finally:
            self._in_steps = False
        for name, model in self.parts.besides(spec).items() if self.team.first else ():
            self.log.flush()
            self._save(self.out / name, model)
        self._checkpoint(before + stage.num_steps, {}, {"stage": spec.name, "completed": True})
        if self._stop:
            raise Interrupted(self._stop)

    def _log(self, stage: Stage, step: int, progress: Progress) -> None:
        """Write down what a step did."""
        with stage.held.present() if self.parts.measures(progress) else nullcontext():
            more = self.parts.row(step, progress) if self.team.first else {}
        self.log.row(step, log_row(step, progress, self.unit, more, self.device))

    def _before_stage(self, spec: StageSpec) -> None:
        """Have a stage's data, which may be the teacher's answers, made before it is planned."""
        begun = self.clock.now()
        if self.team.in_turn(spec.corpus) is not self.parts.corpus:
            spent = (self.clock.now() - begun) / 60
            self.minutes[self.parts.made] = self.minutes.get(self.parts.made, 0.0) + spent
            if self.recipe.time_budget is not None and spec.name not in self.plan:
                self.planner.paces.pop(spec.name, None)  # measured before there were such texts

    def _save(self, folder: Path, model: Any) -> None:
        """A model folder, with a card that tells how it came about."""
        minutes = {**minutes_of(self.out, self.plan), **self.minutes}
        self.parts.save(folder, model, self.parts.card(model, self.plan, minutes))

    def _save_stage(self, stage: Stage, before: int, *, wait: bool = True) -> None:
        """A checkpoint between two steps of a stage; shares may be written while it goes on."""
        state = {**stage.state_dict(), "stage_steps": stage.num_steps, "pace": self.planner.paces.get(stage.name)}
        self._checkpoint(before + stage.step, stage.tensors(), state, stage.held.held())
        if wait:
            self._wait()

    def _checkpoint(
        self, step: int, tensors: dict[str, Any], state: dict[str, Any], held: Mapping[int, Tensor] | None = None
    ) -> None:
        self._wait()
        self.log.flush()
        weights = self.parts.modules.state_dict(keep_vars=True)
        tensors = {"model": {name: (held or {}).get(id(t), t.detach()) for name, t in weights.items()}, **tensors}
        measured = {name: json_tensors(part.state_dict()) for name, part in self.parts.measured.items()}
        state = {**state, "measured": measured, "version": __version__, "recipe": to_dict(self.asked)}
        state |= {"plan": self.plan, "data": self.parts.data, "minutes": self.minutes, "spent": self.clock.now()}
        if held:
            assert isinstance(self.team, Processes), "one process holds no shares"
            self._writing = save_shares(self.out, step, tensors, state, self.team)
            self._being_saved = standing({**state, "step": step})
            return
        if self.team.first:
            save_checkpoint(self.out, step, tensors, state)
        self.saved = standing({**state, "step": step})

    def _wait(self) -> None:
        """Let the newest checkpoint be complete."""
        if self._writing is not None:
            self._writing.wait()
            self._writing, self.saved = None, self._being_saved

    def _samples(self, stage: Stage, step: int) -> Iterator[Note]:
        """A few samples by the averaged weights, into `samples/` and as a note."""
        lines: list[str] = []
        with stage.held.averaged(stage.average):
            if self.team.first:
                model = self.parts.trained_model(stage.name)
                lines = self.parts.samples(model, stage.name, self.out / "samples" / f"step-{step}")
        stage.model.train()
        if lines:
            self.log.samples(step, lines)
            yield Note("\n".join("  " + line for line in lines))
