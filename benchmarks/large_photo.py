"""A photograph of 6,000 × 4,000 pixels restored: how much memory it takes, and whether tiles can be seen.

    python benchmarks/large_photo.py --out benchmarks/results/large_photo.json
    python benchmarks/large_photo.py --model my-restorer --photos KODAK --out benchmarks/results/large_photo.json

The photograph is drawn: slopes of colour, waves of many lengths, and discs with sharp edges. With --photos it is the
first one of a folder, enlarged three times and mirrored as often as it takes. Noise of 25/255 is put into it, and taken
out again with --model; without one by a small net of random weights, which takes nothing out but makes tiles differ at
their edges more than a net that has learned.

Memory is the most that a fresh process has had resident, less what one has had for a strip of a single row of tiles: of
`Restorer.restore` on pixels that are read already (`pixels`), and of the whole command `manta restore`, files read and
written (`command`). Seams are steps, from one pixel to the next, of the error of what was restored: across the borders
of tiles, and as many at each other distance from them. A photograph of 512 pixels is restored in tiles and as one tile
besides, and the same is told of the difference; with --num-pixels 0 that is all. Other models' rows in --out stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from manta.bench import machine
from manta.cli import main as manta
from manta.config import to_dict
from manta.families.restorer import Restorer, RestorerConfig, RestorerModel, borders
from manta.hub import load
from manta.hub.folder import save_model
from manta.image import read_image
from manta.image.degradations import add_noise
from manta.image.files import ENDINGS
from manta.metrics.fidelity import Seams, Steps, psnr, seams
from manta.nets.grid import DicConfig
from manta.runtime import atomic_write, resolve_device

SIZES = {"1,024 × 64": (64, 1024), "1,500 × 1,000": (1000, 1500), "6,000 × 4,000": (4000, 6000)}
WHOLE = 512
"""Pixels of the side of the largest tile."""
SIGMA = 25 / 255
ENLARGED = 3
BAND = 250
"""Rows that are drawn and spoiled at a time."""
RANDOM = "random weights"


def drawn(height: int, width: int) -> np.ndarray:
    """A photograph of nothing: slopes, waves of many lengths in all directions, and discs with sharp edges."""
    draws = np.random.default_rng(0)
    waves = [(2 * np.pi / draws.uniform(3, 300), draws.uniform(0, np.pi), draws.uniform(0, 6)) for _ in range(12)]
    discs = [(*draws.uniform(0, 1, 2), draws.uniform(0.01, 0.08), draws.uniform(-70, 70, 3)) for _ in range(40)]
    result = np.empty((height, width, 3), np.uint8)
    x = np.arange(width, dtype=np.float32)[None]
    for top in range(0, height, BAND):
        y = np.arange(top, min(top + BAND, height), dtype=np.float32)[:, None]
        band = np.stack([60 + 120 * x / width + 0 * y, 70 + 110 * y / height + 0 * x, 180 - 90 * x / width + 0 * y], 2)
        for number, (speed, angle, phase) in enumerate(waves):
            wave = np.sin(speed * (np.cos(angle) * x + np.sin(angle) * y) + phase)
            band[..., number % 3] += 9 * wave
        for down, right, radius, colour in discs:
            inside = np.hypot(y - down * height, x - right * width) < radius * height
            band[inside] += colour.astype(np.float32)
        result[top : top + len(y)] = np.rint(band.clip(0, 255))
    return result


def enlarged(folder: Path, height: int, width: int) -> np.ndarray:
    """The first photograph of a folder, three times as large, mirrored at its edges until it fills the size.

    A few pixels are cut off, so that mirrors and tiles do not lie in the same places.
    """
    first = min(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    image = Image.fromarray(read_image(first)[3:-3, 3:-3])
    wide = np.asarray(image.resize((ENLARGED * image.width, ENLARGED * image.height), Image.Resampling.LANCZOS))
    fill = [max(0, full - own) for full, own in zip((height, width), wide.shape, strict=False)]
    return np.pad(wide, ((0, fill[0]), (0, fill[1]), (0, 0)), mode="symmetric")[:height, :width]


def noisy(photo: np.ndarray) -> np.ndarray:
    """The photograph with noise of a known strength."""
    draws, result = np.random.default_rng(1), np.empty_like(photo)
    for top in range(0, len(photo), BAND):
        band = add_noise(photo[top : top + BAND].astype(np.float32) / 255, SIGMA, draws)
        result[top : top + BAND] = np.rint(band.clip(0, 1) * 255)
    return result


def random_restorer(folder: Path) -> None:
    """A small net of random weights in a folder."""
    torch.manual_seed(0)
    config = RestorerConfig(net=DicConfig(width=4, depths=(1, 1, 1, 1, 1), patch=2))
    net = RestorerModel(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    save_model(folder, Restorer(net), recipe={"model": to_dict(config)}, card="Random weights.\n")


def most_memory() -> int:
    """Bytes that this process has had resident at most; `getrusage` would count what its parent had, too."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def work(model: str, kind: str, file: Path, out: Path) -> None:
    """Restore one photograph in this process, and print what it took."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    if kind == "pixels":
        restorer: Any = load(model)
        photo = np.load(file.with_suffix(".npy"))
        start = time.perf_counter()
        found = restorer.restore(photo, task="noise")
        np.save(out.with_suffix(".npy"), found)
    else:
        assert manta(["restore", model, str(file), "--task", "noise", "--out", str(out)]) == 0
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": most_memory()}))


def measured(model: str, photos: Path | None, scratch: Path, num_pixels: int) -> dict[str, Any]:
    """Memory, seconds and seams of one model."""
    restorer: Any = load(model)
    side = restorer.model.config.tile
    memory: dict[str, dict[str, dict[str, float]]] = {"pixels": {}, "command": {}}
    row: dict[str, Any] = {"tile": side, "parameters": sum(p.numel() for p in restorer.model.parameters())}
    for name, (height, width) in SIZES.items():
        if height * width > num_pixels:
            continue
        photo = drawn(height, width) if photos is None else enlarged(photos, height, width)
        spoiled = noisy(photo)
        file, out = scratch / "spoiled.png", scratch / "restored.png"
        np.save(file.with_suffix(".npy"), spoiled)
        Image.fromarray(spoiled).save(file, compress_level=1)
        for kind, told in memory.items():
            out.unlink(missing_ok=True)
            argv = [sys.executable, __file__, "--work", kind, "--model", model, "--file", str(file), "--out", str(out)]
            line = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            told[name] = {**json.loads(line), "photo": float(photo.nbytes)}
            print(name, kind, told[name], flush=True)
        result = np.load(out.with_suffix(".npy"))
        assert np.array_equal(read_image(out), result), "the command restores as the library does"
        if min(height, width) > side:
            at = borders(height, side), borders(width, side)
            row.setdefault("seams", {})[name] = {
                "psnr_before": psnr(spoiled[:BAND], photo[:BAND]),
                "psnr": psnr(result[:BAND], photo[:BAND]),
                **told_seams(seams(result, photo, at, side // 2)),
            }
    return {**row, "memory": memory, "whole": beside_whole(restorer, photos)}


def beside_whole(restorer: Restorer, photos: Path | None) -> dict[str, Any]:
    """A photograph restored in tiles, and as one tile: how they differ, and whether that shows where tiles meet."""
    photo = drawn(WHOLE, WHOLE) if photos is None else enlarged(photos, WHOLE, WHOLE)
    spoiled, config = noisy(photo), restorer.model.config
    one = RestorerModel(replace(config, tile=WHOLE))
    one.load_state_dict(restorer.model.state_dict())
    tiled = restorer.restore(spoiled, task="noise")
    whole = Restorer(one, restorer.router).restore(spoiled, task="noise")
    apart = np.abs(tiled.astype(np.int16) - whole)
    at = borders(WHOLE, config.tile)
    return {
        "differs": {"mean": float(apart.mean()), "largest": int(apart.max())},
        "psnr": {"tiles": psnr(tiled, photo), "whole": psnr(whole, photo)},
        **told_seams(seams(tiled, whole, (at, at), config.tile // 2)),
    }


def told_seams(found: Seams) -> dict[str, Any]:
    """Steps across seams, and at the distance from them where they are least and most."""
    beside = np.array(found.beside)
    told = {"across": found.across, "least": Steps(*beside.min(0).tolist()), "most": Steps(*beside.max(0).tolist())}
    return {name: each._asdict() for name, each in told.items()}


def main() -> None:
    """Read the command line, measure, and keep other models' rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a restorer; a small net of random weights without it")
    parser.add_argument("--name", help="of the model in the report; its folder's without it")
    parser.add_argument("--photos", type=Path, help="folder of photographs; a drawn one without it")
    parser.add_argument(
        "--num-pixels",
        type=int,
        default=24_000_000,
        help="of the largest photograph that is tried; 0: that of 512 alone",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", choices=("pixels", "command"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.model, args.work, args.file, args.out)
    torch.set_num_threads(1)
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    report["machine"] = machine(resolve_device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            random_restorer(Path(folder) / "model")
        model = args.model or str(Path(folder) / "model")
        name = args.name or (Path(args.model).name if args.model else RANDOM)
        kind = "drawn" if args.photos is None else "photographed"
        row = {"name": name, "photo": kind, **measured(model, args.photos, Path(folder), args.num_pixels)}
    kept = [other for other in report["rows"] if (other["name"], other["photo"]) != (name, kind)]
    report["rows"] = [*kept, row]
    atomic_write(args.out, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
