"""`manta evaluate MODEL` of a model of images."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from manta.cli.options import argument, parse_options
from manta.cli.outputs import MARK, claim_file
from manta.errors import DataError, UsageError

SHARES = ("valid", "faithful", "class_accuracy", "copies", "precision", "recall", "distinct")
"""Figures that are shares."""


@dataclass(frozen=True, kw_only=True)
class EvaluateImagesOptions:
    """Measure a model of images on held-out ones: Fréchet distance, precision, recall, classes, oracle, copies."""

    model: str = argument("")
    """A model folder or a run folder of `manta train` on images."""
    data: str | None = None
    """The images, named as for manta train; those it was trained on without it."""
    split: Literal["dev", "test"] = "test"
    """What it is compared with."""
    num: int = 1000
    """Images that are drawn and compared with, at most; Fréchet distances of other numbers do not compare."""
    num_steps: tuple[int, ...] = (8,)
    """Budgets of sequential network calls for an image, such as 4,8,16."""
    seed: int = 0
    """Of the first image."""
    solver: Literal["euler", "heun", "renoise"] = "euler"
    """How the flow is followed."""
    guidance_scale: float = 1.0
    """How far beyond the class's own estimate to go; 1 = off."""
    classifier: Path | None = None
    """A file that keeps the classifier whose features are compared, so that it is trained once for several models."""
    batch_size: int = 64
    """Images drawn at once."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: Path | None = None
    """Write that JSON object to a file, too."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Measure."""
    options = parse_options(EvaluateImagesOptions, argv, "evaluate")
    if options.num < 1 or options.batch_size < 1:
        raise UsageError("--num and --batch-size should be at least 1")
    claim_file(options.out, "evaluate")
    if options.classifier is not None and not options.classifier.exists():
        claim_file(options.classifier)
    from manta.cli.measuring import Line
    from manta.evaluation.images import ImageEvaluator, as_told
    from manta.families.image_flow import DrawOptions
    from manta.hub import load, model_config
    from manta.runtime import atomic_write

    hows = [
        DrawOptions(num_steps=steps, solver=options.solver, guidance_scale=options.guidance_scale)
        for steps in options.num_steps
    ]
    flow: Any = load(options.model, device=options.device)
    recipe = _own_recipe(Path(options.model), model_config(options.model))
    data = options.data or _own_data(recipe)
    progress = Line()
    evaluator = ImageEvaluator(
        data,
        flow,
        num=options.num,
        split=options.split,
        num_train=recipe.get("num_examples"),
        fit=recipe.get("fit", "crop"),
        classifier=options.classifier,
        tell=progress,
    )
    rows = []
    for how in hows:
        found = evaluator.measure(flow, how, seed=options.seed, batch_size=options.batch_size)
        rows.append({"options": asdict(how), **as_told(found)})
    progress.clear()
    report = {
        MARK: "manta evaluate",
        "command": shlex.join(["manta", "evaluate", *argv]),
        "model": options.model,
        "family": flow.family,
        "data": data,
        "split": options.split,
        "images": len(evaluator.held_out.pixels),
        "level": 0.95,
        "rows": rows,
    }
    if options.out is not None:
        atomic_write(options.out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps(report, ensure_ascii=False) if options.json else _table(report))
    return 0


def _own_recipe(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run, which names its data as they were named; or that of a model, which keeps their last part."""
    from manta.runtime import read_json

    found: Any = read_json(folder / "recipe.json") if (folder / "recipe.json").is_file() else config.get("recipe")
    return found if isinstance(found, dict) else {}


def _own_data(recipe: dict[str, Any]) -> str:
    """The data that a model was trained on, where they can be found by what its folder says of them.

    Raises:
        UsageError: they cannot, as a model keeps no folder's name.
    """
    from manta.image.sources import BUILTIN, place_of

    data = str(recipe.get("data", ""))
    if data != BUILTIN:
        try:
            place_of(data)
        except (DataError, UsageError):
            raise UsageError(
                f"the model was trained on {data}, which is not here; name the images with --data"
            ) from None
    return data


def _table(report: dict[str, Any]) -> str:
    """Figures a line, budgets side by side, and the corpus's own."""
    rows = report["rows"]
    heads = [f"{row['options']['num_steps']} calls" for row in rows]
    lines = [f"{report['model']} on {report['data']}, {report['split']}: {report['images']} images", ""]
    lines.append(f"{'':<18}" + "".join(f"{head:>24}" for head in heads) + f"{'corpus':>12}")
    for name in rows[0]["figures"]:
        cells = "".join(f"{_cell(row, name):>24}" for row in rows)
        known = rows[0]["corpus"].get(name)
        lines.append(f"{name:<18}{cells}{'–' if known is None else _shown(name, known):>12}")
    return "\n".join([*lines, "", *rows[0]["notes"], "limits in brackets: 95%, over images"])


def _cell(row: dict[str, Any], name: str) -> str:
    ends = row["intervals"].get(name)
    told = _shown(name, row["figures"][name])
    return told if ends is None else f"{told} [{ends[0]:.1%}, {ends[1]:.1%}]"


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name in SHARES else f"{value:.4g}"
