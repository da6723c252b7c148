"""A training run: stages in order, checkpoints, logs and samples, resumable bit for bit.

The run folder holds `recipe.json`, `plan.json` (steps of each stage, decided as it begins), `metrics.jsonl`,
`checkpoints/`, `samples/`, `tensorboard/` if wanted, the data as prepared, the teacher where there is one, as a model
folder `teacher/` that writes by itself, and at the end the model folder `model/`.
"""

import copy
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from manta import __version__
from manta.config import from_dict, to_dict
from manta.data import read
from manta.errors import CheckpointError, UsageError
from manta.families.autoregressive import AutoregressiveLM
from manta.families.manta_lm import MantaLM
from manta.families.masked import MaskedLM, MaskedModel
from manta.hub import save_model
from manta.hub.folder import LanguageModel
from manta.recipes.card import model_card
from manta.recipes.prepare import TARGETS_SHARE, corpus_of, fitting, guided_by, tokenizer_of
from manta.recipes.recipe import Recipe, resolve, seconds
from manta.recipes.stages import Parts, StageSpec, stage_specs
from manta.runtime import (
    atomic_write,
    faster_precision,
    json_tensors,
    keep_memory,
    load_json_tensors,
    make_generator,
    peak_memory_bytes,
    resolve_device,
)
from manta.spaces import LatentSpace
from manta.training import (
    METRICS,
    Progress,
    RunLog,
    Stage,
    latest_checkpoint,
    load_checkpoint,
    require_tensorboard,
    save_checkpoint,
    show_progress,
    train_stage,
)

WARM_UP_STEPS = 3
"""Steps before the timed ones: the first take memory from the system and are several times slower."""
MEASURED_STEPS = 8
"""Steps of each stage that are timed to turn a time budget into a number of steps."""
SAFETY = 0.96
"""Share of what is left that is planned: checkpoints, samples and averages take the rest."""
NUM_SAMPLES = 4


@dataclass(frozen=True)
class Note:
    """Something to tell a person."""

    text: str


class TrainingRun:
    """One run in one folder.

    Args:
        recipe: what to train; `resolve` is applied. None when resuming: the folder's own counts.
        out: the run folder.
        resume: continue the run of that folder.
        device: see `resolve_device`.

    Raises:
        UsageError: when the folder holds a run and `resume` is not set.
        CheckpointError: when there is nothing to resume.
        ConfigError: when TensorBoard events are wanted and the package is missing.
    """

    def __init__(
        self, recipe: Recipe | None, out: str | Path, *, resume: bool = False, device: str | None = None
    ) -> None:
        self.start = time.perf_counter()
        self.out = Path(out)
        self.device = resolve_device(device)
        file = self.out / "recipe.json"
        if resume:
            if not file.exists():
                raise CheckpointError(f"nothing to resume in {self.out}: it has no recipe.json")
            self.recipe = from_dict(Recipe, _stored(file))
        elif file.exists():
            raise UsageError(f"{self.out} holds a run already; add --resume to continue it, or choose another --out")
        else:
            self.recipe = resolve(recipe or Recipe())
            if self.recipe.train.precision == "auto":
                faster = faster_precision(self.device)
                self.recipe = replace(self.recipe, train=replace(self.recipe.train, precision=faster))
        if self.recipe.train.tensorboard:
            require_tensorboard()
        if resume:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        atomic_write(file, (json.dumps(to_dict(self.recipe), indent=1) + "\n").encode())

    def __repr__(self) -> str:
        """What is trained, where, and how far its stages have come to be planned."""
        stages = ", ".join(f"{name} {steps:,}" for name, steps in self.plan.items()) or "none has begun"
        recipe = self.recipe
        return (
            f"<TrainingRun: {recipe.family}, {recipe.size}, on {recipe.data} in {self.out}; stages and steps: {stages}>"
        )

    def events(self) -> Iterator[Note | Progress]:
        """Train to the end; yields notes and the progress of every step. Stop between two yields at will."""
        keep_memory()
        self._prepare()
        yield Note(str(self.report))
        self.specs = stage_specs(self.parts)
        tensors, state = self._restore()
        names = [spec.name for spec in self.specs]
        yield Note("stages: " + ", ".join(names))
        first = names.index(state["stage"]) + int(state.get("completed", False)) if state else 0
        self.log = RunLog(self.out, state["step"] if state else 0, tensorboard=self.recipe.train.tensorboard)
        self.earlier = 60 * sum(self._minutes().values())
        with closing(self.log):
            for index in range(first, len(self.specs)):
                resumed = (tensors, state) if state and index == first and not state.get("completed") else None
                yield from self._run_stage(index, resumed)
        self.language_model = self._language_model(self.specs[-1].name)
        self._save(self.out / "model", self.language_model)
        yield Note(f"model written to {self.out / 'model'}")

    def trials(self, num_steps: int) -> Iterator[Stage]:
        """Each stage in turn, ready to train for some steps: for measuring. Only the data as prepared is written.

        Args:
            num_steps: of each stage.
        """
        self._prepare()
        self.specs = stage_specs(self.parts)
        for spec in self.specs:
            self._free(spec)
            yield self._stage(spec, num_steps)

    def _prepare(self) -> None:
        """Tokenizer and corpus; both are kept in the folder and reused."""
        recipe = guided_by(self.recipe)
        tokenizer = tokenizer_of(recipe, self.out)
        size = tokenizer.vocab_size
        shapes = {name: replace(getattr(recipe, name), vocab_size=size) for name in ("model", "masked", "teacher")}
        self.recipe = replace(recipe, **shapes)
        corpus, self.report = corpus_of(recipe, self.out, tokenizer, None)
        self.parts = Parts(self.recipe, self.out, tokenizer, corpus, self.device)

    @property
    def plan(self) -> dict[str, int]:
        """Steps of each stage that has begun, from the run's folder."""
        file = self.out / "plan.json"
        return _stored(file) if file.exists() else {}

    def _steps_of(self, index: int) -> int:
        """Steps of a stage: decided as it begins and stored, so that a resumed run keeps them.

        Of a time budget a stage takes its share of what is left for it and the stages after it, at the pace that a few
        trial steps have; so no stage pays for another's wrong estimate.
        """
        spec, plan = self.specs[index], self.plan
        if spec.name in plan:
            return plan[spec.name]
        if self.recipe.num_steps is not None:
            steps = self.recipe.num_steps * spec.share / sum(other.share for other in self.specs)
            plan[spec.name] = max(1, round(steps))
        else:
            assert self.recipe.time_budget is not None, "resolve sets a budget"
            pace, budget = self._seconds_per_step(spec), seconds(self.recipe.time_budget)
            left = SAFETY * (budget - self.earlier - (time.perf_counter() - self.start))
            if left <= 0 and not plan:
                raise UsageError(f"preparing the data took the whole budget of {self.recipe.time_budget}; give more")
            if spec.name == "teacher" and self.recipe.consensus == "teacher":
                left -= TARGETS_SHARE * budget
            share = spec.share / sum(other.share for other in self.specs[index:])
            plan[spec.name] = max(1, int(left * share / pace))
        atomic_write(self.out / "plan.json", (json.dumps(plan) + "\n").encode())
        return plan[spec.name]

    def _free(self, spec: StageSpec) -> None:
        """Let a stage train its own parts and nothing else."""
        self.parts.modules.requires_grad_(False)
        for part in spec.trained:
            part.requires_grad_(True)

    def _seconds_per_step(self, spec: StageSpec) -> float:
        """Median time of a few real steps on copies, which leave no trace in the run."""
        model, objective = copy.deepcopy((spec.model, spec.objective))
        trial = StageSpec(spec.name, spec.share, model, (model,), objective, spec.corpus)
        trained = {id(p) for part in spec.trained for p in part.parameters()}
        for ours, theirs in zip(spec.model.parameters(), model.parameters(), strict=True):
            theirs.requires_grad_(id(ours) in trained)
        stage = self._stage(trial, WARM_UP_STEPS + MEASURED_STEPS)
        times = [progress.seconds for progress in train_stage(stage)]
        return statistics.median(times[WARM_UP_STEPS:])

    def _stage(self, spec: StageSpec, num_steps: int) -> Stage:
        seed = self.recipe.seed * 1000 + len(spec.name) + ord(spec.name[0])
        batches = _OnDevice(self.parts.loader(spec.corpus(), seed), self.device)
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

    def _restore(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Weights and state of the newest checkpoint."""
        found = latest_checkpoint(self.out)
        if found is None:
            return {}, None
        tensors, state = load_checkpoint(found)
        try:
            self.parts.modules.load_state_dict(tensors["model"])
            for name, part in self.parts.measured.items():
                part.load_state_dict(load_json_tensors(state["measured"][name]))
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{found} does not fit this recipe ({error})") from error
        return tensors, state

    def _run_stage(self, index: int, resumed: tuple | None) -> Iterator[Note | Progress]:
        spec = self.specs[index]
        self._free(spec)
        if resumed is None:
            spec.begin()
        stage = self._stage(spec, self._steps_of(index))
        before = sum(self.plan[s.name] for s in self.specs[:index])
        if resumed is not None:
            stage.load(*resumed)
            yield Note(f"resumed {spec.name} at step {stage.step} of {stage.num_steps}")
        saved, every = time.perf_counter(), 60 * self.recipe.checkpoint_minutes
        sample_every = max(1, stage.num_steps // 3)
        for progress in train_stage(stage):
            self._log(before + progress.step, progress)
            yield progress
            if progress.step % sample_every == 0:
                yield from self._samples(stage, before + progress.step)
            if time.perf_counter() - saved > every and progress.step < stage.num_steps:
                self._checkpoint(before + progress.step, stage.tensors(), stage.state_dict())
                saved = time.perf_counter()
        if spec.name == "teacher" and len(self.specs) > 1:
            self.log.flush()
            self._save(self.out / "teacher", AutoregressiveLM(self.parts.teacher, self.parts.tokenizer))
        self._checkpoint(before + stage.num_steps, {}, {"stage": spec.name, "completed": True})

    def _save(self, folder: Path, lm: LanguageModel) -> None:
        """A model folder, with a card that tells how it came about."""
        lm.prompted = self.report.prompts > 0
        recipe = portable(self.recipe)
        card = model_card(lm.family, recipe, self.plan, self._minutes(), self.report)
        save_model(folder, lm, recipe=to_dict(recipe), card=card)

    def _checkpoint(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        self.log.flush()
        tensors = {"model": self.parts.modules.state_dict(), **tensors}
        measured = {name: json_tensors(part.state_dict()) for name, part in self.parts.measured.items()}
        save_checkpoint(self.out, step, tensors, {**state, "measured": measured, "version": __version__})

    def _log(self, step: int, progress: Progress) -> None:
        row: dict[str, Any] = {"global_step": step, "stage": progress.stage, "step": progress.step}
        row |= {"loss": progress.loss, "lr": progress.learning_rate, "gradient_norm": progress.gradient_norm}
        row |= {"seconds": progress.seconds, "tokens": progress.tokens, **progress.parts}
        density = self.parts.density
        if density is not None and progress.step % 50 == 0 and density.calibrated:
            space = self.parts.model.space
            if progress.stage == "policy" and isinstance(space, LatentSpace):
                # Beyond snr = 1/floor² a standardised latent says no more about its text.
                snr = 1 / max(space.config.noise_floor, 0.05) ** 2
                row["implied_nats_a_latent"] = density.implied_likelihood(space.channels, snr)
        if progress.step % 100 == 0:
            row["peak_memory_bytes"] = peak_memory_bytes(self.device)
        self.log.row(step, row)

    def _samples(self, stage: Stage, step: int) -> Iterator[Note]:
        """A few texts by the averaged weights, into `samples/` and as a note."""
        found = (example.prompt for example in read(self.recipe.data, "dev", 50 * NUM_SAMPLES))
        lm = self._language_model(stage.name)
        kept = dict.fromkeys(p for p in found if not p or fitting([p], lm.tokenizer, lm.model.config.max_prompt))
        prompts = list(kept)[:NUM_SAMPLES]
        if not prompts:
            return
        prompts += prompts[-1:] * (NUM_SAMPLES - len(prompts))  # texts without a prompt differ by their seeds
        stage.average.swap(stage.model)
        try:
            texts = lm.write(prompts, num_steps=8)
        finally:
            stage.average.swap(stage.model)
            stage.model.train()
        lines = [f"{prompt or ''} -> {text}" for prompt, text in zip(prompts, texts, strict=True)]
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        atomic_write(folder / f"step-{step}.txt", ("\n".join(lines) + "\n").encode())
        self.log.text(step, "\n".join(lines))
        yield Note("\n".join("  " + line for line in lines))

    def _language_model(self, stage: str) -> LanguageModel:
        """What a stage trains, as a model that writes."""
        parts = self.parts
        if stage == "teacher":
            return AutoregressiveLM(parts.teacher, parts.tokenizer)
        if isinstance(model := parts.modules["model"], MaskedModel):
            return MaskedLM(model, parts.tokenizer)
        assert parts.density is not None
        return MantaLM(parts.model, parts.tokenizer, parts.density)

    def _minutes(self) -> dict[str, float]:
        """Minutes of each stage, from the log."""
        spent: dict[str, float] = {}
        file = self.out / METRICS
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            row = json.loads(line)
            spent[row["stage"]] = spent.get(row["stage"], 0.0) + row["seconds"] / 60
        return spent


def _stored(file: Path) -> dict[str, Any]:
    """What a run wrote down of itself.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}); the run cannot be continued without it") from error


def portable(recipe: Recipe) -> Recipe:
    """The recipe as a model carries it away: of a path to data only the last part, which tells no folder's name."""
    kind, colon, place = recipe.data.rpartition(":")
    return replace(recipe, data=kind + colon + Path(place).name)


class _OnDevice:
    """A loader whose batches are moved to a device."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __next__(self) -> Any:
        return next(self.loader).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


def train(
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool | None = None,
    **recipe: Any,
) -> LanguageModel:
    """Train a model and return it, ready to write.

        lm = manta.train("mine.jsonl", "runs/mine", time_budget="30m")
        print(lm.write("what it should answer to"))

    Args:
        data: a file, or a name of data; see `Recipe.data`.
        out: the run folder; the model folder is `out/model`.
        resume: continue the run of that folder.
        device: see `resolve_device`.
        progress: show how it goes, on stderr: True does, False is quiet; None shows it on a terminal and in a notebook.
        recipe: fields of `Recipe`, e.g. `time_budget="3m"`, `size="tiny"`.

    Returns:
        The model, of the family that the recipe names: `write` gives texts, `generate` gives events.

    Raises:
        UsageError: data or folder are no path or name, or the folder holds a run and `resume` is not set.
        ConfigError: for an unknown or ill-typed field.
        DataError: for data that cannot be read.
        CheckpointError: there is nothing to resume.
        TrainingError: when the loss is no longer finite.
    """
    for name, value in (("data", data), ("out", out)):
        if not isinstance(value, str | Path) or not str(value):
            raise UsageError(f"{name} should be a path or a name, received {value!r} ({type(value).__name__})")
    run = TrainingRun(from_dict(Recipe, {"data": str(data), **recipe}), out, resume=resume, device=device)
    show_progress(run.events(), progress)
    return run.language_model
