"""`manta generate MODEL` of a model of images: draw them into files."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_file
from manta.errors import UsageError

MAX_IMAGES = 100_000
"""Most images of one call."""
MAX_IN_GRID = 1_024
"""Most images of one grid."""


@dataclass(frozen=True, kw_only=True)
class DrawVerbOptions:
    """Draw images with a model of images: into one grid, or into a folder of single files."""

    model: str = argument("")
    """A model folder or a run folder of `manta train` on images."""
    out: Path | None = None
    """A .png file for a grid of all images, or a new or empty folder for a file each. A PNG tells seed, class, steps
    and model in its text chunks."""
    class_: tuple[str, ...] = ()
    """Name or number of a class; may be repeated. Any class without it."""
    num_samples: int = 1
    """Images of each class."""
    num_steps: int = 8
    """Budget of sequential network calls for an image, at least 1; never exceeded."""
    seed: int = 0
    """Image i has the seed `seed` + i, classes one after the other."""
    solver: Literal["euler", "heun", "renoise"] = "euler"
    """How the flow is followed: `heun` takes two calls a step, `renoise` draws noise on the way."""
    guidance_scale: float = 1.0
    """How far beyond the class's own estimate to go from the one without; 1 = off. It takes two calls an estimate."""
    edit: Path | None = None
    """An image to change: it is taken back towards noise, as far as --strength says, and drawn on from there."""
    strength: float = 0.6
    """Of a change, above 0 and at most 1, where nothing of the image is kept."""
    columns: int | None = None
    """Images side by side in a grid; about as many as below each other without it."""
    batch_size: int = 64
    """Images drawn at once."""
    json: bool = False
    """One JSON object an image on stdout: file, class, seed, network calls and seconds."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Draw."""
    options = parse_options(DrawVerbOptions, argv, "generate")
    if options.out is None:
        raise UsageError("say where the images go: --out grid.png, or --out FOLDER for a file each")
    as_grid = options.out.suffix.lower() == ".png"
    _check(options, as_grid)
    from manta.families.image_flow import DrawOptions, DrawRequest
    from manta.hub import load
    from manta.image import read_image, resized
    from manta.image.grid import grid_of, save_png

    flow: Any = load(options.model, device=options.device)
    labels = [flow.images.number(name) for name in options.class_] or [None]
    total = len(labels) * options.num_samples
    if total > (MAX_IN_GRID if as_grid else MAX_IMAGES):
        raise UsageError(f"{total:,} images are too many for one {'grid' if as_grid else 'call'}; lower --num-samples")
    how = DrawOptions(
        num_steps=options.num_steps,
        solver=options.solver,
        guidance_scale=options.guidance_scale,
        strength=options.strength,
    )
    height, width, channels = flow.images.shape
    begin = None
    if options.edit is not None:
        begin = resized(read_image(options.edit, channels=channels), (height, width))
    kinds = [label for label in labels for _ in range(options.num_samples)]
    requests = [DrawRequest(label=label, seed=options.seed + i, begin=begin) for i, label in enumerate(kinds)]
    flow.check(requests, how)
    files = None if as_grid else [options.out / f"{i:0{len(str(total - 1))}d}.png" for i in range(total)]
    if files is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    made = {"model": Path(options.model).resolve().name, "solver": how.solver, "num_steps": str(how.num_steps)}
    made |= {"guidance_scale": f"{how.guidance_scale:g}"}
    made |= {"edited": options.edit.name, "strength": f"{how.strength:g}"} if options.edit is not None else {}
    images, nfe, start = [], 0, time.perf_counter()
    for drawn in flow.generate(requests, how, batch_size=options.batch_size):
        request = requests[drawn.index]
        name = None if request.label is None else flow.images.classes[request.label]
        told = {"seed": str(request.seed), "steps": str(drawn.nfe), **made}
        told |= {"class": name} if name is not None else {}
        if files is not None:
            save_png(files[drawn.index], drawn.pixels, told)
        images.append(drawn.pixels)
        nfe = drawn.nfe
        if options.json:
            row = {"file": str(options.out if files is None else files[drawn.index]), "class": name}
            row |= {"seed": request.seed, "nfe": drawn.nfe, "seconds": round(time.perf_counter() - start, 4)}
            print(json.dumps(row, ensure_ascii=False), flush=True)
    if files is None:
        import numpy as np

        told = {"seed": f"{options.seed}", "steps": f"{nfe}", **made}
        told |= {"class": ",".join(options.class_)} if options.class_ else {}
        save_png(options.out, grid_of(np.stack(images), options.columns), told)
    spent = time.perf_counter() - start
    print(f"{total} images in {spent:.1f} s, {nfe} network calls each, in {options.out}", file=sys.stderr)
    return 0


def _check(options: DrawVerbOptions, as_grid: bool) -> None:
    """Refuse what cannot be drawn before the model is loaded.

    Raises:
        UsageError: as said.
    """
    assert options.out is not None
    if options.num_samples < 1 or options.batch_size < 1:
        raise UsageError("--num-samples and --batch-size should be at least 1")
    if options.columns is not None and options.columns < 1:
        raise UsageError(f"--columns should be at least 1, received {options.columns}")
    if options.edit is None and options.strength != DrawVerbOptions.strength:
        raise UsageError("--strength is for changing an image, and none is given; name it with --edit")
    if options.columns is not None and not as_grid:
        raise UsageError("--columns is for a grid; give --out a .png file, or leave it out")
    if as_grid:
        claim_file(options.out)
        return
    if options.out.suffix:
        raise UsageError(f"{options.out} is no .png file; give one, or a folder without a suffix")
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise UsageError(f"{options.out} is not a new or empty folder; choose another --out")
