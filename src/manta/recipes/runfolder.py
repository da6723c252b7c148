"""A run's folder: whose it is, who may write in it now, and what was written in it of the run itself."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manta.config import from_dict, to_dict
from manta.errors import CheckpointError, ConfigError, DataError, UsageError
from manta.families.trained import Teaching
from manta.hub.folder import holds_weights
from manta.image.photos import RESTORE
from manta.image.sources import IMAGES
from manta.recipes.recipe import seconds
from manta.recipes.states import recipe_class
from manta.runtime import atomic_write, sweep
from manta.text.files import expanded
from manta.text.sources import SCHEMES
from manta.training import latest_checkpoint, load_checkpoint, load_state, read_log

RECIPE = "recipe.json"
PLAN = "plan.json"
DATA = "data.json"
LOCK = ".lock"
LENT = ("converted_from", "drafter_of", "taught_by", "inherit", "begin_from")
"""What gives a run a second model, which it needs until it is finished."""
TAUGHT = tuple(field.name for field in fields(Teaching) if field.name != "shares")
"""Those of the objectives."""
EDITABLE = ("train", "checkpoint_minutes", "time_budget", *TAUGHT)
"""Fields of a run's recipe that may be changed while it is interrupted; the others are in its weights, its data and the
steps that its stages were given."""


class RunFolder:
    """The folder of one run, held by one process at a time.

    Args:
        path: the folder; made for a new run.
        resume: it holds a run already, which goes on.

    Raises:
        UsageError: the folder of a new run is not empty, another process trains in it, or it cannot be written.
        CheckpointError: there is nothing to resume.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.new = path, not resume
        if resume and not (path / RECIPE).exists():
            raise CheckpointError(f"nothing to resume in {path}: it has no {RECIPE}")
        self._refuse_strangers()
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        self._lock = FileLock(path / LOCK, thread_local=False)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"another process is training in {path}; wait for it to end, or choose another --out"
            ) from error
        except OSError as error:
            raise UsageError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
        try:
            self._refuse_strangers()  # another process may have come first
        except UsageError:
            self.close()
            raise
        sweep(path)

    def close(self) -> None:
        """Let another process write here."""
        self._lock.release(force=True)

    def forget(self, patterns: Iterable[str]) -> None:
        """Remove what a new run has written before its first step, so that nothing stands in the way of the next.

        Args:
            patterns: of what preparing its data writes.
        """
        written = [file for pattern in patterns for file in self.path.glob(pattern)]
        for file in (*written, *(self.path / name for name in (RECIPE, PLAN, DATA, LOCK))):
            file.unlink(missing_ok=True)
        for folder in {file.parent for file in written} - {self.path}:
            with suppress(OSError):
                folder.rmdir()
        self.close()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    @classmethod
    def followed(cls, path: Path, *, resume: bool) -> "RunFolder":
        """The folder as a process sees it that leaves writing to another one of the same run."""
        return _Followed(path, resume=resume)

    def write_recipe(self, recipe: Any) -> None:
        """Write down what is trained."""
        atomic_write(self.path / RECIPE, (json.dumps(to_dict(recipe), indent=1) + "\n").encode())

    def extended(self, own: Any, time_budget: str | None) -> Any:
        """The run's own recipe, with more time if that is asked for.

        Raises:
            UsageError: the run has steps and no time, or more time than that.
        """
        if time_budget is None or time_budget == own.time_budget:
            return own
        if own.time_budget is None:
            raise UsageError(f"{self.path} is a run of {own.num_steps} steps; leave --time-budget out")
        if seconds(time_budget) < seconds(own.time_budget):
            raise UsageError(
                f"{self.path} has a time budget of {own.time_budget}, of which --resume can give more and not less; "
                f"received {time_budget}"
            )
        found = replace(own, time_budget=time_budget)
        self.write_recipe(found)
        return found

    def write_plan(self, plan: dict[str, int]) -> None:
        """Write down, for people, the steps of each stage that has begun; checkpoints hold what counts."""
        atomic_write(self.path / PLAN, (json.dumps(plan) + "\n").encode())

    def taken_up(self, state: dict[str, Any] | None, left: Sequence[str]) -> Iterator[str]:
        """Say where a run goes on that is not new.

        Args:
            state: of its newest checkpoint; None: there is none.
            left: names of the stages that are not finished.
        """
        if self.new:
            return
        if state is None:
            yield "there is no checkpoint yet, so training begins at its first step"
            return
        if (kept := sum(row["global_step"] <= state["step"] for row in read_log(self.path)[0])) < state["step"]:
            yield f"warning: the log holds {kept} of {state['step']} steps; the others were lost or damaged"
        if state.get("completed") and left:
            yield f"{state['stage']} is finished; going on with {left[0]} at its first step"

    def keep_data(self, data: dict[str, str], name: str) -> None:
        """Write down what a run is trained on, so that it is known before there is a checkpoint.

        Args:
            data: digests of its source, its tokenizer and its corpus.
            name: of the data, as the recipe has it.

        Raises:
            CheckpointError: the run began with other data.
        """
        file = self.path / DATA
        if not file.exists():
            atomic_write(file, (json.dumps(data) + "\n").encode())
            return
        try:
            stored = dict(json.loads(file.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); the run cannot be continued without it") from error
        self.refuse_other_data(stored, data, name)

    @staticmethod
    def refuse_other_data(stored: dict[str, Any], data: dict[str, str], name: str) -> None:
        """Refuse to go on with other data than those that a run began with.

        Raises:
            CheckpointError: as said.
        """
        if wrong := [part for part, digest in data.items() if stored.get(part) != digest]:
            raise CheckpointError(
                f"the {wrong[0]} of this run has changed since it began ({name}); bring the data back as they were, or "
                "begin another run"
            )

    def _refuse_strangers(self) -> None:
        path = self.path
        if not self.new or not path.exists():
            return
        if not path.is_dir():
            raise UsageError(f"{path} is a file; give --out a folder of its own")
        try:
            found = sorted(entry.name for entry in path.iterdir() if not _is_lock(entry))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); choose another --out") from error
        if RECIPE in found:
            raise UsageError(f"{path} holds a run already; add --resume to continue it, or choose another --out")
        if found:
            raise UsageError(
                f"{path} is not empty: it holds {found[0]}{' and more' if len(found) > 1 else ''}, and a run would "
                "write over what is there; give --out a new folder"
            )


class _Followed(RunFolder):
    """A run's folder that another process holds."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.new = path, not resume

    def close(self) -> None:
        pass

    def forget(self, patterns: Iterable[str]) -> None:
        pass

    def write_plan(self, plan: dict[str, int]) -> None:
        pass


def refuse_changes(run: Path, changed: Any, whole: Any, option: str) -> None:
    """Refuse what would make another run of one that is continued; what it has already may be said again.

    Args:
        run: its folder.
        changed: its own recipe with what is given now.
        whole: what is given now as a whole recipe, resolved; None where it is none.
        option: how resuming is asked for.

    Raises:
        UsageError: neither is the run's own; the fields that differ are named.
    """
    own = stored_recipe(run)
    if whole is not None and whole.train.precision == "auto":  # the run found the faster one, and keeps it
        whole = replace(whole, train=replace(whole.train, precision=own.train.precision))
    if own in (changed, whole):
        return
    names = [name for name, value in to_dict(changed).items() if value != to_dict(own).get(name)]
    names = ["state"] if changed.state != own.state else names
    mend = f"change {run / RECIPE}" if set(names) <= set(EDITABLE) else "begin another run"
    raise UsageError(
        f"{option} continues {run} by its own recipe, which has another {', '.join(names)}; leave that out, or {mend}"
    )


def _is_lock(entry: Path) -> bool:
    """Whether a file of a folder is our lock, which holds nothing."""
    return entry.name == LOCK and entry.is_file() and entry.stat().st_size == 0


def stored_recipe(run: Path) -> Any:
    """What a run trains.

    Raises:
        CheckpointError: there is no run, or its recipe is damaged, or not one that a run wrote.
    """
    file = run / RECIPE
    if not file.exists():
        raise CheckpointError(f"nothing to resume in {run}: it has no {RECIPE}")
    try:
        stored = json.loads(file.read_bytes())
        recipe = from_dict(recipe_class(stored.get("state")), stored)
    except (OSError, ValueError, RecursionError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); the run cannot be continued without it") from error
    if missing := next(_missing(stored, to_dict(recipe)), None):
        raise CheckpointError(f"{file} is not as a run writes it: {missing} is missing")
    return recipe


def refuse_elsewhere(run: Path, data: str) -> None:
    """Say of a run that is continued that its data are named from another working directory.

    Args:
        run: its folder.
        data: as its recipe names them.

    Raises:
        DataError: they are named by a relative path, and nothing stands there.
    """
    scheme, _, rest = data.partition(":")
    if scheme in ("builtin", "hf"):
        return
    path = expanded(rest if scheme in (*SCHEMES, IMAGES, RESTORE) else data)
    if not path.is_absolute() and not path.exists():
        raise DataError(
            f"{run} names its data {data}, a path from the folder in which it was begun, and {Path.cwd()} has no such "
            "file; resume the run from there"
        )


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the fields in which two recipes differ.

    Raises:
        CheckpointError: one of them cannot change while a run is interrupted.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    rounds = {name: value for name, value in now["train"].items() if name.startswith("round")}
    fixed = [f"train.{name}" for name, value in rounds.items() if before.get("train", {}).get(name, value) != value]
    if fixed := fixed + [name for name in changed if name not in EDITABLE]:
        raise CheckpointError(
            f"{RECIPE} has another {', '.join(fixed)} than the run began with; change it back, or begin another run"
        )
    return changed


def edited_since(checkpoint: Path | None, recipe: Any) -> list[str]:
    """Names of the fields of a run's recipe that have changed since a checkpoint, if there is one.

    Raises:
        CheckpointError: one of them cannot change, or the checkpoint is damaged.
    """
    return [] if checkpoint is None else changes(load_state(checkpoint)["recipe"], to_dict(recipe))


def finished_model(run: Path, checkpoint: Path | None, recipe: Any) -> tuple[Path, dict[str, int]] | None:
    """The model of a run that began with another one, and the steps of its stages, where all is done.

    All is done if a stage is at its end and the folder `model`, which comes last, has the weights of then. So neither
    the other model nor the data are needed.

    Args:
        run: its folder.
        checkpoint: the newest; None: there is none.
        recipe: of the run.

    Returns:
        None where something is left to do, or the run began with no other model.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    if checkpoint is None or not any(getattr(recipe, name, None) for name in LENT):
        return None
    if not load_state(checkpoint).get("completed") or not (run / "model").exists():
        return None
    tensors, state = load_checkpoint(checkpoint)
    for net in ("model.", "teacher."):
        own = {name.removeprefix(net): part for name, part in tensors["model"].items() if name.startswith(net)}
        if holds_weights(run / "model", own):
            return run / "model", dict(state["plan"])
    return None


def refuse_lost(run: Path) -> None:
    """Refuse to go on without checkpoints where there have been some.

    Raises:
        CheckpointError: as said.
    """
    for name in ("teacher", "model", "adapter"):
        if (run / name).exists():
            raise CheckpointError(f"{run} has a folder {name} and its checkpoints are gone, so it cannot be continued")


def newest(run: Path) -> str:
    """Where the newest checkpoint of a run on the disk stands, in words."""
    try:
        found = latest_checkpoint(run)
        return "none" if found is None else standing(load_state(found))
    except CheckpointError:
        return "damaged"


def _missing(stored: Any, whole: Any, where: str = "") -> Iterator[str]:
    """Keys that a whole recipe has and a stored one lacks."""
    if isinstance(whole, dict):
        for key, value in whole.items():
            if not isinstance(stored, dict) or key not in stored:
                yield f"{where}{key}"
            else:
                yield from _missing(stored[key], value, f"{where}{key}.")


@contextmanager
def fitting_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Load a checkpoint's state.

    Raises:
        CheckpointError: it does not fit the nets of the recipe.
    """
    try:
        yield
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint} does not fit this recipe ({error})") from error


def standing(state: dict[str, Any]) -> str:
    """Where a checkpoint stands, in words."""
    if state.get("completed"):
        return f"step {state['step']}, the end of {state['stage']}"
    return f"step {state['step']} ({state['stage']} {state['stage_step']} of {state['stage_steps']})"
