"""Feedback against replay on a trained Manta-LM: push the plan on its way and compare where it ends.

    python benchmarks/feedback.py [MODEL] --data e2e:PATH --out benchmarks/results/feedback.json

The same noise, grid and calls for both; the words are held as they were written. Without MODEL the one that ships.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manta.control import respond
from manta.diagnosis.systems import FlowSystem
from manta.families.events import GenerateOptions, Request
from manta.hub import load
from manta.runtime import atomic_write
from manta.text import read

TIMES = (0.3, 0.6, 0.8)
PUSHES = (0.1, 0.5, 1.0)
"""Lengths of a push over the root of the state's dimensions: 1 is as long as the noise a text begins from."""


def measured(lm: Any, requests: list[Request], style: Any, num_steps: int) -> list[dict[str, Any]]:
    """Rows of one style: mean and standard deviation over the requests."""
    system = FlowSystem(lm, requests, num_steps, GenerateOptions(style=style))
    canvas = (lm.model.max_cells, lm.model.space.channels)
    direction = system.draws(70, canvas, system.states.shape[2]) * system.cells[..., None]
    rows = []
    for size in PUSHES:
        length = size * system.dimensions.sqrt() / direction.flatten(1).norm(dim=1)
        responses = respond(
            system.field,
            system.states[0],
            system.grid,
            direction * length[:, None, None],
            times=TIMES,
            readout=lambda state: system.readout(state).argmax(-1),
            mask=system.mask,
            known=~system.cells,
        )
        for t, response in zip(TIMES, responses, strict=True):
            row: dict[str, Any] = {"style": style, "calls": num_steps, "push": size, "t": t, "num": len(requests)}
            for name in ("feedback_gain", "replay_gain", "feedback_flips", "replay_flips"):
                row[name] = spread(getattr(response, name))
            rows.append(row)
            print(row, flush=True)
    return rows


def spread(values: Tensor) -> list[float]:
    """Mean and standard deviation."""
    return [round(float(values.mean()), 4), round(float(values.std()), 4)]


def main() -> None:
    """Read the command line, measure both styles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data", required=True)
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lm = load(args.model)
    prompts = list(dict.fromkeys(e.prompt for e in read(args.data, "test", 50 * args.num_prompts)))[: args.num_prompts]
    requests = [Request(prompt=prompt, seed=i) for i, prompt in enumerate(prompts)]
    with torch.no_grad():
        rows = [row for style in ("diverse", "consensus") for row in measured(lm, requests, style, args.num_steps)]
    atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
