"""`manta evaluate MODEL --lm-eval TASKS`: tasks of lm-evaluation-harness, on a model of any family."""

import json
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from manta.cli.measuring import Line
from manta.cli.outputs import MARK
from manta.cli.writing import parse_asked
from manta.errors import UsageError
from manta.families.asked import follows

if TYPE_CHECKING:
    from manta.cli.evaluate import EvaluateOptions

OF_TEXTS = ("data", "split", "texts", "metrics", "judge", "words", "num_seeds", "likelihood_texts", "training_texts")
"""Options of evaluations on data, which mean nothing to tasks."""


def run_tasks_of(options: "EvaluateOptions", argv: Sequence[str]) -> int:
    """Ask a model the questions of tasks, and tell what came of it.

    Args:
        options: of the verb.
        argv: what follows the verb, which says how to write, too.

    Returns:
        0.

    Raises:
        UsageError: options of evaluations on data, an unknown task, or one that asks for what the model has not.
        DataError: lm-eval is not installed, or a task's data cannot be had.
        RequestError: the model has no such task, or has some and none is named.
        ModelError: the model cannot be loaded.
    """
    tasks = _checked(options)
    from manta.evaluation import run_tasks
    from manta.evaluation.writing import loaded
    from manta.runtime import atomic_write

    progress, said = Line(), []
    model = loaded(options.model, device=options.device)
    _, asked = parse_asked(type(options), argv, "evaluate")
    if "num_steps" in asked and not follows(model.lm.family, "num_steps"):
        del asked["num_steps"]
        said.append(f"{model.name} takes a call a token, so --num-steps is left out")
    found = run_tasks(
        model,
        tasks,
        num=options.num,
        include=options.lm_eval_include,
        shots=options.lm_eval_shots,
        options=asked,
        progress=progress,
        task=options.task,
        samples=options.likelihood_samples,
        seed=options.seed,
        context=None if options.lm_eval_context == "auto" else options.lm_eval_context,
        cut=options.lm_eval_cut,
        cache=options.lm_eval_cache,
        batch_size=options.batch_size,
    )
    progress.clear()
    report = {
        MARK: "manta evaluate",
        "command": shlex.join(["manta", "evaluate", *argv]),
        "model": model.name,
        "seed": options.seed,
        "num": options.num,
        "options": asked,
        **found.row(),
        "warnings": [*said, *found.warnings],
    }
    if options.out is not None:
        atomic_write(options.out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(report, ensure_ascii=False) if options.json else _table(report))
    return 0


def _checked(options: "EvaluateOptions") -> list[str]:
    """The tasks that are named, after what means nothing to them is refused.

    Raises:
        UsageError: as said.
    """
    usual = type(options)()
    if moot := [name for name in OF_TEXTS if getattr(options, name) != getattr(usual, name)]:
        flag = f"--{moot[0].replace('_', '-')}"
        raise UsageError(f"--lm-eval brings data and figures of its own, so {flag} means nothing; leave it out")
    tasks = list(dict.fromkeys(name for part in options.lm_eval for name in part.split(",") if name))
    if not tasks:
        raise UsageError("--lm-eval names no task")
    if options.num < 1 or options.likelihood_samples < 2 or (options.lm_eval_shots or 0) < 0:
        raise UsageError("tasks need at least 1 document, 2 draws for a bound, and 0 examples or more")
    return tasks


def _table(report: dict[str, Any]) -> str:
    asked_for = "" if report["task"] is None else f", its task {report['task']}"
    lines = [
        f"{report['model']} ({report['family']}){asked_for}, lm-evaluation-harness {report['harness']}",
        "",
        f"{'task':<28} {'documents':>9} {'figure':<28} {'value':>10} {'standard error':>15}",
    ]
    for task, figures in report["tasks"].items():
        for name, figure in figures.items():
            error = "" if figure["standard_error"] is None else f"{figure['standard_error']:.3g}"
            row = f"{task:<28} {report['documents'].get(task, ''):>9} {name:<28} {figure['value']:>10.4g} {error:>15}"
            lines.append(row.rstrip())
    draws = "" if report["samples"] is None else f", {report['samples']} draws a question"
    said = f"{report['likelihood']} ({report['estimator']}{draws})" if report["estimator"] else report["likelihood"]
    taken = "the model's prompt" if report["context"] == "prompt" else "the beginning of the text"
    lines += ["", f"likelihoods: {said}; a context is {taken}; standard errors are the harness's, over documents"]
    return "\n".join(lines)
