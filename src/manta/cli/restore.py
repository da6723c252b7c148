"""`manta restore MODEL PHOTO --instruction "take the rain away" --out clean.png`: take faults out of a photograph."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_file
from manta.errors import ModelError, UsageError


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """Take noise, blur, rain, haze or snow out of a photograph of any size, told in words which."""

    model: str = argument("")
    """A model folder or a run folder of `manta train restore:PHOTOS`."""
    photo: Path | None = argument(None, "PHOTO")
    """An image file. Its orientation, its colour profile and what is transparent stay as they are."""
    instruction: tuple[str, ...] = ()
    """What should go, such as "take the rain away"; may be repeated, and is then done one after the other."""
    task: tuple[str, ...] = ()
    """The name of a fault instead: noise, blur, rain, haze, snow; may be repeated."""
    out: Path | None = None
    """Where the restored photograph goes: a .png, .jpg, .webp, .tif or .bmp file."""
    json: bool = False
    """Print one JSON object: file, faults, confidence, seconds."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Restore."""
    options = parse_options(RestoreOptions, argv, "restore")
    if not options.model or options.photo is None:
        raise UsageError("say what to restore with, and what: manta restore MODEL PHOTO --instruction … --out FILE")
    if options.out is None:
        raise UsageError("say where the restored photograph goes: --out clean.png")
    if not options.instruction and not options.task:
        raise UsageError("say what should go: --instruction 'take the rain away', or --task rain")
    from manta.image.keeping import ENDINGS_WRITTEN, open_photo

    if options.out.suffix.lower() not in ENDINGS_WRITTEN:
        raise UsageError(f"{options.out} is no file that can be written; name one of {', '.join(ENDINGS_WRITTEN)}")
    if options.out.resolve() == options.photo.resolve():
        raise UsageError(f"--out {options.out} is the photograph itself; choose another name, so that it is kept")
    claim_file(options.out)
    photo = open_photo(options.photo)
    photo.check(options.out)
    from manta.cli.measuring import Line
    from manta.families.restorer import Restorer
    from manta.hub import load

    restorer: Any = load(options.model, device=options.device)
    if not isinstance(restorer, Restorer):
        raise ModelError(f"{options.model} is no restorer; train one with manta train restore:PHOTOS")
    tasks, sure = [], []
    for each in options.instruction:
        found = restorer.understand(each)
        if found.task is None:
            raise UsageError(f"{each!r}: {found.explain()}")
        print(f"{each!r}: {found.explain()}", file=sys.stderr)
        tasks.append(found.task)
        sure.append(found.confidence)
    tasks += options.task
    line, start = Line(), time.perf_counter()
    pixels = restorer.restore(photo.pixels, task=tasks, tell=lambda done, total: line("tiles", done, total))
    line.clear()
    photo.save(options.out, pixels)
    seconds = time.perf_counter() - start
    if options.json:
        import json

        row = {"file": str(options.out), "faults": tasks, "confidence": sure, "seconds": round(seconds, 3)}
        print(json.dumps(row, ensure_ascii=False))
    height, width = pixels.shape[:2]
    print(
        f"{width} × {height} pixels without {', then '.join(tasks)} in {seconds:.1f} s: {options.out}", file=sys.stderr
    )
    return 0
