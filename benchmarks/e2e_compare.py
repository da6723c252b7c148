"""E2E test under `manta compare`: models of equal steps, paired differences, and slot errors against length.

    python benchmarks/e2e_compare.py --data PATH --models runs/spaces/latents-r-=-4-0 runs/spaces/embeddings-0 \
        runs/spaces/masked-0 runs/spaces/autoregressive-0 --report DIR --out benchmarks/results/e2e_compare.json

PATH is e2e-dataset.zip or its folder; the models are those of `variants.py e2e --keep`. The page is left in DIR, and
only figures are kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from stories import done, kept

from manta.bench import machine
from manta.runtime import atomic_write, resolve_device


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--num", type=int, default=200, help="prompts")
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    command = ["compare", *args.models, "--data", f"e2e:{args.data}", "--out", str(args.report)]
    command += ["--num", str(args.num), "--num-seeds", "1", "--num-steps", "2,4,8,16,32", "--style", "consensus"]
    found = done(command, args.report / "compare.json")
    differences: list[dict[str, Any]] = [
        row
        for row in found["differences"]
        if row["why"] == "best of each" and row["figure"] in ("slot_errors", "chrf", "entropy")
    ]
    result = {"machine": machine(resolve_device()), **kept(found), "differences": differences}
    atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
