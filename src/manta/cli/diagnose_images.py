"""`manta diagnose MODEL` of models of images."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_file, claim_folder, marked
from manta.errors import UsageError

PICTURE = "trajectories.png"
MARKED = b"manta:steps"
"""In a picture of ours."""
MOST = 1024
"""Images that are looked at, at most."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseImagesOptions:
    """Diagnose models of images in the terms of control: how straight the way is, how stiff and turning the field, how
    far the end can be steered, and whether a push is corrected."""

    models: tuple[str, ...] = argument((), "MODEL…")
    """Model folders or run folders of `manta train` on images."""
    num: int = 16
    """Images that are looked at, one of each class in turn."""
    num_steps: int = 8
    """Steps that images are drawn by."""
    seed: int = 0
    """Of the first image."""
    out: Path | None = None
    """A folder for `diagnose.json` and `trajectories.png`, the images as estimated at each step."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Diagnose."""
    options = parse_options(DiagnoseImagesOptions, argv, "diagnose")
    if not (2 <= options.num <= MOST and 2 <= options.num_steps <= MOST):
        raise UsageError(f"--num and --num-steps should lie between 2 and {MOST:,}")
    if options.out is not None:
        claim_folder(options.out, "diagnose")
        picture = options.out / PICTURE
        if options.out.is_dir() and not (picture.is_file() and MARKED in picture.read_bytes()[:4096]):
            claim_file(picture)
    from manta.cli.measuring import Line
    from manta.diagnosis.images import MEANING, diagnose_images
    from manta.hub import load
    from manta.image.grid import grid_of, save_png
    from manta.runtime import atomic_write

    progress, found, pictures = Line(), {}, []
    for name in options.models:
        flow: Any = load(name, device=options.device)
        if flow.family != "image":
            raise UsageError(f"{name} is a model of texts; diagnose models of one kind at a time")
        progress.subject = f"{name}: "
        diagnosis = diagnose_images(
            flow, num=options.num, num_steps=options.num_steps, seed=options.seed, tell=progress
        )
        found[name] = {
            "figures": {key: list(ends) for key, ends in diagnosis.figures.items()},
            "profiles": diagnosis.profiles,
        }
        pictures.append(diagnosis.trajectories)
    progress.clear()
    report = {"command": shlex.join(["manta", "diagnose", *argv]), "level": 0.95, "models": found, "meaning": MEANING}
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        atomic_write(options.out / "diagnose.json", (json.dumps(marked("diagnose", report), indent=1) + "\n").encode())
        shown = pictures[0]
        grid = grid_of(shown.reshape(-1, *shown.shape[2:]), columns=shown.shape[1])
        save_png(options.out / PICTURE, grid, {"model": options.models[0], "steps": str(options.num_steps)})
    print(json.dumps(report) if options.json else _table(report))
    return 0


def _table(report: dict[str, Any]) -> str:
    names = list(report["models"])
    lines = [f"{'':<17}" + "".join(f"{name[-26:]:>28}" for name in names)]
    for figure, meaning in report["meaning"].items():
        cells = "".join(f"{_cell(report['models'][name]['figures'][figure]):>28}" for name in names)
        lines.append(f"{figure:<17}{cells}   {meaning}")
    return "\n".join([*lines, "", "limits in brackets: 95%, over images"])


def _cell(ends: list[float]) -> str:
    return f"{ends[0]:.3g} [{ends[1]:.3g}, {ends[2]:.3g}]"
