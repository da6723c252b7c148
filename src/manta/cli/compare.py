"""`manta compare MODEL… --data NAME --out DIR`: models and settings side by side, as JSON and as one HTML page."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manta.cli.measuring import Line, MeasureOptions, check_data, make_evaluator
from manta.cli.options import argument
from manta.cli.outputs import claim_folder, marked
from manta.cli.writing import parse_writing
from manta.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CompareOptions(MeasureOptions):
    """Compare models over a sweep of settings: quality against calls, paired differences, texts side by side."""

    models: tuple[str, ...] = argument(())
    """Model folders, run folders of `manta train`, or hub names; the model that ships without any."""
    out: Path | None = None
    """Folder for compare.json and compare.html."""
    num_steps: tuple[int, ...] = (2, 4, 8, 16)
    """Budgets of network calls, separated by commas."""
    temperature: tuple[float, ...] = (0.0,)
    """Temperatures of the words, separated by commas."""
    guidance_scale: tuple[float, ...] = (1.0,)
    """Strengths of guidance by the prompt, separated by commas; 1 is off."""
    json: bool = False
    """Print what compare.json holds, too."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows the verb.

    Returns:
        0.

    Raises:
        UsageError: wrong options, or plots that cannot be drawn.
        DataError: the data is missing, empty, or does not allow a figure that was asked for.
        ModelError: a model or the judge cannot be loaded.
    """
    swept = ("num_steps", "temperature", "guidance_scale")
    options, how = parse_writing(CompareOptions, argv, "compare", leave_out=swept)
    if options.out is None:
        raise UsageError("say where the report goes: manta compare MODEL… --data NAME --out DIR")
    claim_folder(options.out, "compare")
    from manta.config import from_dict
    from manta.evaluation import contestant
    from manta.evaluation.comparison import Sweep, compare
    from manta.evaluation.comparison_page import comparison_page
    from manta.report.plots import require
    from manta.runtime import atomic_write

    require()
    check_data(options, "compare")
    progress = Line()
    sweep = from_dict(Sweep, {name: list(getattr(options, name)) for name in swept})
    models = [contestant(path, device=options.device, task=options.task) for path in options.models or ("",)]
    evaluator = make_evaluator(options, progress, "compare", models)
    comparison = compare(evaluator, models, sweep, how)
    progress.clear()
    command = shlex.join(["manta", "compare", *argv])
    report = marked("compare", comparison.row(evaluator, command))
    page = comparison_page(comparison, evaluator, command).encode()
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out / "compare.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    atomic_write(options.out / "compare.html", page)
    said = [f"{row.name}, {row.label}: {warning}" for row in comparison.rows for warning in row.evaluation.warnings]
    for warning in (*said, *(f"left out: {reason}" for reason in comparison.left_out)):
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        for name in ("compare.html", "compare.json"):
            print(options.out / name)
    return 0
