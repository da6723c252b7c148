"""Image flows: nets, their switches and adaptive conditions, at equal minutes of one machine or equal steps.

    python benchmarks/images.py --data PATH.npz --suite nets --minutes 4 --num 500 --out benchmarks/results/images.json
    python benchmarks/images.py --data builtin:shapes --suite shapes --minutes 3 --seeds 0 1 \
        --out benchmarks/results/shapes.json

PATH.npz is fashion_mnist_20k_5k.npz, on one thread (OMP_NUM_THREADS=1); the shapes have both cores of two.

`nets` compares the nets, `dic` and `udit` the switches of each, `codes` adaptive conditions. Each row tells parameters,
operations of a call, steps and images seen, and what `manta evaluate` measures. Finished rows in --out are kept, so
that the command can be repeated after an interruption. All models of a file are compared by one classifier.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from manta.bench import machine
from manta.config import from_dict
from manta.evaluation.images import ImageEvaluator, as_told
from manta.families.image_flow import DrawOptions, DrawRequest, ImageFlow
from manta.recipes import TrainingRun
from manta.recipes.image_recipe import ImageRecipe
from manta.runtime import atomic_write, resolve_device

BUDGETS = (4, 8, 16, 32)
DIC = {"kind": "dic"}
UDIT = {"kind": "udit"}
SUITES: dict[str, dict[str, dict[str, Any]]] = {
    "shapes": {"dic": {}},
    "nets": {"dic": {"net": DIC}, "udit": {"net": UDIT}, "dit": {"net": {"kind": "dit"}}},
    "dic": {
        "dic": {"net": DIC},
        "isotropic": {"net": {**DIC, "hourglass": False}},
        "no skips": {"net": {**DIC, "skip_stride": 0}},
        "skips of every block": {"net": {**DIC, "skip_stride": 1}},
        "one embedding": {"net": {**DIC, "stage_embeddings": False}},
        "condition first": {"net": {**DIC, "mid_block": False}},
        "no gate": {"net": {**DIC, "gated": False}},
        "silu": {"net": {**DIC, "activation": "silu"}},
    },
    "udit": {
        "udit": {"net": UDIT},
        "all tokens": {"net": {**UDIT, "rate": 1}},
        "no mixing": {"net": {**UDIT, "mixing": "none"}},
        "no shortcut": {"net": {**UDIT, "mixing": "alone"}},
        "products": {"net": {**UDIT, "cosine": False}},
        "no places": {"net": {**UDIT, "rotary": False}},
        "pointwise": {"net": {**UDIT, "near": False}},
        "not stacked": {"net": {**UDIT, "stacked": False}},
    },
    "codes": {"no code": {}, "4 bits": {"bits": 4}, "8 bits": {"bits": 8}},
}


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for manta train")
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", default="nano")
    parser.add_argument("--minutes", type=float, help="time budget of each")
    parser.add_argument("--num-steps", type=int, help="steps of each, instead")
    parser.add_argument("--num", type=int, default=1000, help="images drawn and compared with")
    parser.add_argument("--keep", type=Path, help="folder for the models")
    parser.add_argument("--classifier", type=Path, help="file that keeps the classifier")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result = json.loads(args.out.read_text()) if args.out.exists() else {"machine": machine(resolve_device())}
    rows: list[dict[str, Any]] = result.setdefault("rows", [])
    budget = {"num_steps": args.num_steps} if args.num_steps else {"time_budget": f"{60 * args.minutes:g}s"}
    evaluator = None
    for seed in args.seeds:
        for name in args.only or SUITES[args.suite]:
            if any((row["suite"], row["name"], row["seed"]) == (args.suite, name, seed) for row in rows):
                continue
            changes = {"data": args.data, "size": args.size, "seed": seed, "model": SUITES[args.suite][name], **budget}
            folder = Path(tempfile.mkdtemp())
            start = time.perf_counter()
            run = TrainingRun(from_dict(ImageRecipe, changes), folder / "run")
            for _ in run.events():
                pass
            minutes = (time.perf_counter() - start) / 60
            flow: Any = run.model
            if evaluator is None:
                evaluator = ImageEvaluator(args.data, flow, num=args.num, classifier=args.classifier)
            steps = run.plan["flow"]
            row = {"suite": args.suite, "name": name, "seed": seed, "minutes": round(minutes, 2), "steps": steps}
            row |= {"images": steps * run.recipe.batch_size, "parameters": count(flow), "flops": flops(flow)}
            row["scores"] = {}
            for calls in BUDGETS:
                found = evaluator.measure(flow, DrawOptions(num_steps=calls), seed=10_000)
                row["scores"][str(calls)] = as_told(found)
            rows.append(row)
            atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
            print(json.dumps({**row, "scores": row["scores"]["8"]["figures"]}), flush=True)
            if args.keep is not None:
                shutil.copytree(folder / "run" / "model", args.keep / f"{args.suite}-{name}-{seed}", dirs_exist_ok=True)
            shutil.rmtree(folder)


def count(flow: ImageFlow) -> int:
    """Parameters that draw: the encoder of codes is not among them."""
    return sum(p.numel() for p in flow.model.net.parameters())


def flops(flow: ImageFlow) -> int:
    """Floating-point operations of the products of one call for one image."""
    noise, told, _ = flow.begin([DrawRequest()])
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        flow.model.act(noise, torch.zeros(1, device=flow.device), cond=told)
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
