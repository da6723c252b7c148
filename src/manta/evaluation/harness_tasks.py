"""Tasks of lm-evaluation-harness, run on a model of any family, and marked by the kind of its likelihoods."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from manta.errors import DataError, MantaError, UsageError
from manta.evaluation.writing import Contestant, Progress, silent


@dataclass(frozen=True)
class TaskFigure:
    """A figure of a task."""

    task: str
    """Its name."""
    metric: str
    """As the harness names it, with the filter of the answers where there is one."""
    value: float
    """The figure."""
    standard_error: float | None
    """Over the task's documents, as the harness estimates it; None where it does not."""
    higher_is_better: bool | None
    """None where the harness does not say."""


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """What tasks told of a model."""

    figures: tuple[TaskFigure, ...]
    """Of all tasks."""
    documents: dict[str, int]
    """Of each task, how many were asked."""
    about: dict[str, Any]
    """How the model was asked: `likelihood` exact, bound or none, its estimator and draws, how a context was read."""
    harness: str
    """Version of lm-evaluation-harness."""
    versions: dict[str, Any] = field(default_factory=dict)
    """Of the tasks."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the figures are believed."""
        found = []
        if self.about["likelihood"] == "bound":
            found.append(
                "likelihoods are bounds: a perplexity is at most what is told, and an accuracy compares bounds; "
                "whether an answer would be written greedily is not known, and counts as no"
            )
        if self.about["contexts_cut"]:
            found.append("contexts that the model has no room for were cut at their beginning")
        if overruled := self.about["overruled"]:
            found.append(f"what was asked for overruled what tasks ask for: {'; '.join(overruled)}")
        return tuple(found)

    def row(self) -> dict[str, Any]:
        """Everything, for JSON."""
        tasks: dict[str, Any] = {}
        for figure in self.figures:
            tasks.setdefault(figure.task, {})[figure.metric] = {
                "value": figure.value,
                "standard_error": figure.standard_error,
                "higher_is_better": figure.higher_is_better,
            }
        return {
            **self.about,
            "tasks": tasks,
            "documents": self.documents,
            "harness": self.harness,
            "task_versions": self.versions,
        }


def run_tasks(
    model: Contestant,
    tasks: Sequence[str],
    *,
    num: int | None = None,
    include: Path | None = None,
    shots: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **how: Any,
) -> TaskResults:
    """Ask a model the questions of some tasks.

    Args:
        model: of any family.
        tasks: names that the harness knows, its own or those of `include`.
        num: documents of each task, from its first on; None: all.
        include: a folder of tasks as YAML.
        shots: examples before each question; None: as the task says.
        options: how texts are written, by name; those that are named overrule a task's.
        progress: told what is done.
        how: see `evaluation.harness.HarnessModel`: task, samples, seed, context, cut, cache, batch_size.

    Raises:
        DataError: lm-eval is not installed, or a task's data cannot be had.
        UsageError: an unknown task, or one that asks for what the model has not.
        RequestError: a question that the model has no room for, or a task of its own that it has not.
    """
    if find_spec("lm_eval") is None:
        raise DataError("its tasks need lm-eval; install it with: pip install 'manta[lm-eval]'")
    if include is not None and not include.is_dir():
        raise UsageError(f"there is no folder {include} of tasks")
    import lm_eval

    from manta.evaluation.harness import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(tasks, include)
    asked = HarnessModel(model, progress=progress, **how, **(options or {}))
    evaluate: Any = lm_eval.simple_evaluate
    try:
        found: Any = evaluate(
            asked,
            tasks=list(tasks),
            limit=num,
            num_fewshot=shots,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except MantaError:
        raise
    except Exception as error:  # whatever a task's template, its data or the network raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"lm-eval could not run {', '.join(tasks)} ({reason})") from error
    assert found is not None, "one process has the results"
    return _read(found, asked.get_model_info())


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """Who finds the tasks: in their own folder alone, if they lie there, as the harness's list takes long to read.

    Raises:
        UsageError: a task that there is not.
    """
    from lm_eval.tasks import TaskManager

    if include is not None:
        own = TaskManager(include_path=str(include), include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise UsageError(
            f"lm-eval knows no task {unknown[0]!r}; its own are listed by `lm_eval ls tasks`, and yours lie in the "
            "folder of --lm-eval-include, a YAML file each"
        )
    return manager


def _read(found: dict[str, Any], about: dict[str, Any]) -> TaskResults:
    from lm_eval import __version__

    figures = []
    for task, row in {**found["results"], **found.get("groups", {})}.items():
        for key, value in row.items():
            name, _, kept = key.partition(",")
            if not isinstance(value, int | float) or isinstance(value, bool) or name.endswith("_stderr") or not kept:
                continue
            error = row.get(f"{name}_stderr,{kept}")
            better = found.get("higher_is_better", {}).get(task, {}).get(name)
            shown = name if kept == "none" else f"{name} ({kept})"
            told = float(error) if isinstance(error, int | float) else None
            figures.append(TaskFigure(task, shown, float(value), told, better))
    documents = {task: counts["effective"] for task, counts in found.get("n-samples", {}).items()}
    return TaskResults(
        figures=tuple(figures),
        documents=documents,
        about=about,
        harness=__version__,
        versions=found.get("versions", {}),
    )
