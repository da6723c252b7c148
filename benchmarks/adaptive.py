"""Adaptive conditions on eight Gaussians in a plane: are ways straighter, and fewer steps enough?

    python benchmarks/adaptive.py --seeds 0 1 2 --out benchmarks/results/adaptive.json

A small field is told three bits of the clean point by an encoder that learns with it; the controls have no code, and
codes that are shuffled among the points of a batch. Curvature is the mean over the way of |(end − start) − velocity|²;
distances are sliced Wasserstein ones between 4,000 drawn points and as many true ones.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manta.bench import machine
from manta.flow.adaptive import code_numbers, code_of, sign_code
from manta.runtime import atomic_write, make_generator, resolve_device

STEPS, BATCH, BITS, POINTS, FINE = 1500, 256, 3, 4000, 64
KINDS = ("no code", "3 bits", "3 bits, shuffled")


def points(num: int, generator: torch.Generator) -> Tensor:
    """Draws from the eight Gaussians."""
    angles = torch.randint(0, 8, (num,), generator=generator) * (2 * math.pi / 8)
    return 2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * torch.randn(num, 2, generator=generator)


def net(inner: int, outer: int, width: int) -> nn.Sequential:
    """A net of three layers."""
    layers = [nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outer)]
    return nn.Sequential(*layers)


def sliced(ours: Tensor, theirs: Tensor, generator: torch.Generator) -> float:
    """Sliced Wasserstein distance of second order."""
    angles = torch.rand(128, generator=generator) * math.pi
    lines = torch.stack([angles.cos(), angles.sin()])
    return float(((ours @ lines).sort(0).values - (theirs @ lines).sort(0).values).square().mean().sqrt())


def measured(kind: str, seed: int) -> dict[str, Any]:
    """Train a field, and measure it."""
    torch.manual_seed(seed)
    generator, bits = make_generator(seed), 0 if kind == "no code" else BITS
    field, encoder = net(3 + bits, 2, 128), net(2, max(bits, 1), 16)
    optimizer = torch.optim.Adam([*field.parameters(), *encoder.parameters()], lr=2e-3)

    def told(clean: Tensor) -> Tensor:
        code = sign_code(encoder(clean))[:, :bits]
        return code[torch.randperm(len(code), generator=generator)] if "shuffled" in kind else code

    for _ in range(STEPS):
        clean = points(BATCH, generator)
        noise, t = torch.randn(BATCH, 2, generator=generator), torch.rand(BATCH, 1, generator=generator)
        state = torch.lerp(noise, clean, t)
        said = field(torch.cat([state, t, told(clean)], 1))
        optimizer.zero_grad()
        (said - (clean - noise)).square().sum(1).mean().backward()
        optimizer.step()
    with torch.no_grad():
        corpus = points(POINTS, generator)
        numbers = code_numbers(sign_code(encoder(corpus)))
        counts = torch.bincount(numbers, minlength=1 << bits).float()
        drawn = code_of(torch.multinomial(counts, POINTS, replacement=True, generator=generator), BITS)[:, :bits]
        noise = torch.randn(POINTS, 2, generator=generator)
        ends = {steps: way(field, noise, drawn, steps) for steps in (1, 2, 4, FINE)}
        states = torch.stack(ends[FINE])
        velocities = states.diff(dim=0) * FINE
        bend = ((states[-1] - states[0]) - velocities).square().sum(-1).mean()
        apart = {steps: sliced(found[-1], points(POINTS, generator), generator) for steps, found in ends.items()}
    return {
        "kind": kind,
        "seed": seed,
        "curvature": float(bend),
        "codes": int((counts > 0).sum()) if bits else 0,
        "distance": apart,
    }


def way(field: nn.Module, state: Tensor, code: Tensor, steps: int) -> list[Tensor]:
    """States of Euler's method."""
    found = [state]
    for i in range(steps):
        t = torch.full((len(state), 1), i / steps)
        found.append(found[-1] + field(torch.cat([found[-1], t, code], 1)) / steps)
    return found


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [measured(kind, seed) for seed in args.seeds for kind in KINDS]
    result = {"machine": machine(resolve_device()), "rows": rows}
    atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
