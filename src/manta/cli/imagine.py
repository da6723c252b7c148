"""`manta generate MODEL` of a model of captions and images: draw captions, describe images, complete either."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_file
from manta.errors import UsageError

MAX_IN_GRID = 1_024
"""Most images of one grid."""


@dataclass(frozen=True, kw_only=True)
class ImagineOptions:
    """Draw images of captions, describe images, or complete a caption beside an image."""

    model: str = argument("")
    """A model folder or a run folder of `manta train … --family joint`."""
    caption: tuple[str, ...] = ()
    """What to draw; may be repeated. `___` stands for each word that is to be found."""
    describe: tuple[Path, ...] = ()
    """Images to describe, one line each on stdout; may be repeated."""
    num_samples: int = 1
    """Images of each caption; without a caption, images with captions of their own."""
    num_steps: int = 16
    """Sequential network calls, at least 1."""
    seed: int = 0
    """Image i has the seed `seed` + i, captions one after the other."""
    out: Path | None = None
    """A .png file for a grid of all images."""
    columns: int | None = None
    """Images side by side in the grid; about as many as below each other without it."""
    batch_size: int = 64
    """Images at once."""
    json: bool = False
    """One JSON object an image on stdout: caption, seed, network calls."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Draw or describe."""
    options = parse_options(ImagineOptions, argv, "generate")
    _check(options)
    from manta.families.joint_flow import JointRequest
    from manta.hub import load, model_config
    from manta.image import read_image, resized

    flow: Any = load(options.model, device=options.device)
    height, width, channels = flow.codec.shape
    settings = {"num_steps": options.num_steps, "batch_size": options.batch_size}
    if options.describe:
        fit = (model_config(options.model).get("recipe") or {}).get("fit", "crop")
        images = [resized(read_image(file, channels=channels), (height, width), fit) for file in options.describe]
        given = options.caption[0] if options.caption else None
        requests = [JointRequest(image=image, caption=given, seed=options.seed + i) for i, image in enumerate(images)]
        for made in flow.generate(requests, **settings):
            file = str(options.describe[made.index])
            row = {"file": file, "caption": made.caption, "nfe": made.nfe}
            print(json.dumps(row, ensure_ascii=False) if options.json else made.caption, flush=True)
        return 0
    import numpy as np

    from manta.image.grid import grid_of, save_png

    captions = [caption for caption in options.caption or (None,) for _ in range(options.num_samples)]
    requests = [JointRequest(caption=caption, seed=options.seed + i) for i, caption in enumerate(captions)]
    start, images = time.perf_counter(), []
    for made in flow.generate(requests, **settings):
        images.append(made.pixels)
        row = {"caption": made.caption, "seed": options.seed + made.index, "nfe": made.nfe}
        if options.json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        elif captions[made.index] is None or "___" in (captions[made.index] or ""):
            print(made.caption, flush=True)
    told = {"seed": str(options.seed), "steps": str(options.num_steps), "model": Path(options.model).resolve().name}
    assert options.out is not None
    save_png(options.out, grid_of(np.stack(images), options.columns), told)
    print(f"{len(images)} images in {time.perf_counter() - start:.1f} s, in {options.out}", file=sys.stderr)
    return 0


def _check(options: ImagineOptions) -> None:
    """Refuse what does not fit together before the model is loaded.

    Raises:
        UsageError: as said.
    """
    if options.num_samples < 1 or options.batch_size < 1 or options.num_steps < 1:
        raise UsageError("--num-samples, --num-steps and --batch-size should be at least 1")
    if options.columns is not None and options.columns < 1:
        raise UsageError(f"--columns should be at least 1, received {options.columns}")
    if options.describe:
        if options.out is not None or options.num_samples > 1 or options.columns is not None:
            raise UsageError("an image that is described is there; leave --out, --num-samples and --columns out")
        if len(options.caption) > 1:
            raise UsageError("beside images to describe one caption with blanks may be given")
        if options.caption and "___" not in options.caption[0]:
            raise UsageError("a caption beside an image has a word to find; write ___ for each")
        return
    if options.out is None:
        raise UsageError("say where the images go: --out grid.png; or what to describe: --describe photo.png")
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"{options.out} is no .png file; give one")
    if max(1, len(options.caption)) * options.num_samples > MAX_IN_GRID:
        raise UsageError(f"a grid holds {MAX_IN_GRID:,} images; lower --num-samples")
    claim_file(options.out)
