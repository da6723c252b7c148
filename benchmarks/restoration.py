"""Restoration: what every fault's own weights are worth, and classical methods on the same photographs.

    python benchmarks/restoration.py --data restore:KODAK --num-steps 600 --seeds 0 \
        --out benchmarks/results/restoration.json
    python benchmarks/restoration.py --data restore:KODAK --classical --out benchmarks/results/restoration.json
    python benchmarks/restoration.py --data restore:KODAK --sensitivity --num-steps 600 \
        --out benchmarks/results/restoration_maps.json

KODAK is a folder with `train` and `test`: of the 24 photographs of Kodak's set every fourth is a test photograph. Each
arm is the same net with equal steps and equal batches, which hold every fault: shared weights alone; a scale and a
shift of features (`film`); products of rank 1, 4 and 8; whole weights (`full`); and one net for each fault, of a fifth
of the steps each, on its fault alone. Test photographs are spoiled by the same draws for all. `--classical`, which
needs scikit-image, measures a few settings of each method; tables take the best *by the test photographs themselves*,
so that the classical row is an upper bound. `--sensitivity` asks which maps a fault should change: over a shared model
that stays frozen, whole weights of one family of maps are trained for each fault in a quarter of the steps, and what is
gained is told for each thousand parameters; of whole weights of all maps, the rank that holds 90% of a change's energy.
`--ships` measures the restorer that ships. Finished rows in --out are kept.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from manta.bench import machine
from manta.config import from_dict
from manta.evaluation.restoration import held_out_photos, measure_restoration, with_restorer
from manta.families.instructions import TASKS
from manta.hub import load
from manta.nets.modulated import rank_energy, task_maps
from manta.recipes import TrainingRun
from manta.recipes.restore_recipe import RestoreRecipe
from manta.runtime import atomic_write, resolve_device

ARMS: dict[str, dict[str, Any]] = {
    "shared": {"kind": "none"},
    "film": {"kind": "film"},
    "rank 1": {"kind": "low_rank", "rank": 1},
    "rank 4": {"kind": "low_rank", "rank": 4},
    "rank 8": {"kind": "low_rank", "rank": 8},
    "full": {"kind": "full"},
    "separate": {"kind": "none"},
}


SHIPS = "rank 4, 2,400 steps: ships"
FAMILIES_OF_MAPS = ("conv1", "conv2", "skip", "moves", "stem", "head", "")
"""Names that maps of an hourglass have; the last are all."""


def trained(args: argparse.Namespace, seed: int, modulation: dict[str, Any], steps: int, **more: Any) -> Path:
    """A model in a folder of its own."""
    given = {
        "data": args.data,
        "size": args.size,
        "num_steps": steps,
        "seed": seed,
        "model": {"modulation": modulation},
    }
    folder = Path(tempfile.mkdtemp()) / "run"
    for _ in TrainingRun(from_dict(RestoreRecipe, {**given, **more}), folder).events():
        pass
    return folder


def measured(folder: Path | str, photos: list[Any], tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """Every fault of the test photographs."""
    found = measure_restoration(photos, with_restorer(load(folder)), tasks=tasks)
    return {row.task: asdict(row) for row in found}


def arm(name: str, seed: int, photos: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one arm."""
    start, modulation = time.perf_counter(), ARMS[name]
    scores: dict[str, Any] = {}
    if name == "separate":
        parameters = 0
        for task in TASKS:
            folder = trained(args, seed, modulation, args.num_steps // len(TASKS), only=task)
            scores |= measured(folder, photos, (task,))
            parameters += sum(p.numel() for p in load(folder).model.parameters())
        own = parameters
    else:
        folder = trained(args, seed, modulation, args.num_steps)
        model = load(folder).model
        parameters = sum(p.numel() for p in model.parameters())
        own = sum(p.numel() for _, part in task_maps(model) for p in part.own)
        scores = measured(folder, photos)
    minutes = round((time.perf_counter() - start) / 60, 2)
    row = {"name": name, "seed": seed, "steps": args.num_steps, "parameters": parameters, "of_faults": own}
    return {**row, "minutes": minutes, "scores": scores}


def classical(photos: list[Any]) -> list[dict[str, Any]]:
    """Non-local means, total variation and Richardson–Lucy, each with a few settings."""
    from skimage import restoration

    from manta.image.degradations import gaussian

    def as_bytes(image: Any) -> Any:
        return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)

    def non_local(strength: float) -> Any:
        def restore(photo: Any, task: str) -> Any:
            image = photo.astype(np.float32) / 255
            sigma = float(np.mean(restoration.estimate_sigma(image, channel_axis=2)))
            how = {"patch_size": 5, "patch_distance": 6, "channel_axis": 2, "fast_mode": True}
            return as_bytes(restoration.denoise_nl_means(image, h=strength * max(sigma, 1e-3), sigma=sigma, **how))

        return restore

    def variation(weight: float) -> Any:
        return lambda photo, task: as_bytes(
            restoration.denoise_tv_chambolle(photo.astype(np.float32) / 255, weight=weight, channel_axis=2)
        )

    def sharpened(width: float, rounds: int) -> Any:
        def restore(photo: Any, task: str) -> Any:
            image = photo.astype(np.float32) / 255
            planes = [restoration.richardson_lucy(image[..., c], gaussian(width), num_iter=rounds) for c in range(3)]
            return as_bytes(np.stack(planes, 2))

        return restore

    methods = {f"non-local means, h = {h:g} sigma": (non_local(h), ("noise", "rain", "snow")) for h in (0.6, 0.8, 1.0)}
    methods |= {f"total variation, {w:g}": (variation(w), TASKS) for w in (0.02, 0.05, 0.1, 0.2)}
    methods |= {
        f"Richardson-Lucy, width {width:g}, {rounds} rounds": (sharpened(width, rounds), ("blur",))
        for width in (1.0, 1.6)
        for rounds in (5, 10)
    }
    rows = []
    for name, (restore, tasks) in methods.items():
        found = measure_restoration(photos, restore, tasks=tasks)
        rows.append({"name": name, "scores": {row.task: asdict(row) for row in found}})
        print(name, {row.task: round(row.psnr[0], 2) for row in found}, flush=True)
    return rows


def sensitivity(photos: list[Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """What changing one family of maps gains over a shared model, and of what rank changes are."""
    shared = trained(args, 0, ARMS["shared"], args.num_steps)
    before = mean(score["psnr"][0] for score in measured(shared, photos).values())
    rows = []
    for family in FAMILIES_OF_MAPS:
        changed = {"kind": "full", "frozen": True, "maps": [family] if family else []}
        folder = trained(args, 0, changed, args.num_steps // 4, begin_from=str(shared))
        model = load(folder).model
        own = sum(p.numel() for _, part in task_maps(model) for p in part.own)
        ranks = sorted(rank for ranks in rank_energy(model.net).values() for rank in ranks)
        gained = mean(score["psnr"][0] for score in measured(folder, photos).values()) - before
        row = {"maps": family or "all", "parameters": own, "gained": gained, "ranks": ranks}
        rows.append({**row, "gained_a_thousand": 1000 * gained / own})
        print(row["maps"], own, round(gained, 3), ranks[len(ranks) // 2], flush=True)
    return rows


def ships(photos: list[Any]) -> dict[str, Any]:
    """The row of the restorer that ships."""
    restorer = load("builtin:restorer")
    model, recipe = restorer.model, restorer.recipe
    own = sum(p.numel() for _, part in task_maps(model) for p in part.own)
    row = {"name": SHIPS, "seed": recipe["seed"], "steps": recipe["num_steps"], "of_faults": own}
    parameters = sum(p.numel() for p in model.parameters())
    return {**row, "parameters": parameters, "scores": measured("builtin:restorer", photos)}


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="restore:FOLDER with the folders train and test")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), help="arms, in this order")
    parser.add_argument("--classical", action="store_true")
    parser.add_argument("--sensitivity", action="store_true")
    parser.add_argument("--ships", action="store_true", help="measure the restorer that ships")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    photos = held_out_photos(args.data, "test")
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    report |= {"machine": machine(resolve_device("cpu")), "photos": len(photos)}
    if args.classical:
        report["classical"] = classical(photos)
        atomic_write(args.out, (json.dumps(report, indent=1) + "\n").encode())
        return
    if args.sensitivity:
        report["maps"] = sensitivity(photos, args)
        atomic_write(args.out, (json.dumps(report, indent=1) + "\n").encode())
        return
    rows = report["rows"]
    if args.ships:
        report["rows"] = [row for row in rows if row["name"] != SHIPS] + [ships(photos)]
        atomic_write(args.out, (json.dumps(report, indent=1) + "\n").encode())
        return
    for seed in args.seeds:
        for name in args.only or ARMS:
            if any((row["name"], row["seed"], row["steps"]) == (name, seed, args.num_steps) for row in rows):
                continue
            rows.append(arm(name, seed, photos, args))
            told = {task: round(score["psnr"][0], 2) for task, score in rows[-1]["scores"].items()}
            print(name, seed, f"{rows[-1]['minutes']} minutes", told, flush=True)
            atomic_write(args.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
