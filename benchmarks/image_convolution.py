"""Where attention between patches becomes a convolution and where it cannot: textures, and copies from far.

    python benchmarks/image_convolution.py --only texture --out benchmarks/results/image_convolution.json
    python benchmarks/image_convolution.py --only copy --steps 5000 --out benchmarks/results/image_convolution.json

An image flow of one block of attention over 16 × 4 patches learns grey images of 32 × 8 pixels; then the block becomes
`pyramid_conv` of 5 × 5 patches, which learns as `manta convert` teaches it, everything else being frozen. `texture`:
noise blurred by a pixel and a half, so that all that can be known of a pixel is near. `copy`: the lower half is the
upper half again, of patches drawn apart, eight patches away, further than the kernels reach at either scale. The
control has the convolution's mean branch alone. Recovered is the share of the gap, (control − converted) / (control −
attention), in the squared error of the velocity on images that were not learned; what attention looks at is `near`, the
share of it within two patches.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from manta.families.image_flow import ImageFlow, shaped
from manta.families.image_imitation import FieldImitation
from manta.families.image_model import ImageConfig, ImageModel
from manta.families.image_objective import ImageMatching, ImageObjectiveConfig
from manta.flow import TimeDensityConfig
from manta.image import ImageBatch, ImageCodec
from manta.nets.grid import DitConfig
from manta.operators import PyramidConfig
from manta.recipes.conversion import begin_as, mean_parts, near_shares, new_parts
from manta.runtime import atomic_write, make_generator

HEIGHT, WIDTH, PATCH, ROWS, KERNEL, BLOCKS = 32, 8, 2, 32, 5, (0,)
CODEC = ImageCodec(height=HEIGHT, width=WIDTH, channels=1)
NET = DitConfig(width=48, depth=1, heads=4, patch=PATCH)
TASK = ImageMatching(ImageObjectiveConfig(), TimeDensityConfig(kind="uniform").build())


def texture(generator: torch.Generator) -> torch.Tensor:
    """Noise, blurred and made as strong again."""
    noise = torch.randn(ROWS, 1, HEIGHT, WIDTH, generator=generator)
    line = torch.exp(-0.5 * (torch.arange(-4, 5) / 1.5) ** 2)
    line /= line.square().sum().sqrt()
    blurred = F.conv2d(F.conv2d(F.pad(noise, [4] * 4, "circular"), line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
    return blurred[:, 0]


def copied(generator: torch.Generator) -> torch.Tensor:
    """Patches of one brightness each, drawn apart, and the same again below."""
    half = 2 * torch.rand(ROWS, HEIGHT // (2 * PATCH), WIDTH // PATCH, generator=generator) - 1
    return torch.cat([half, half], 1).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2) * 1.5


TASKS: dict[str, Callable[[torch.Generator], torch.Tensor]] = {"texture": texture, "copy": copied}


def batches(task: str, seed: int) -> Callable[[], ImageBatch]:
    """One batch after the other."""
    generator = make_generator(seed)

    def draw() -> ImageBatch:
        values = (TASKS[task](generator).clamp(-2, 2) * 63.75 + 127.5).round().to(torch.uint8)
        return ImageBatch(
            pixels=values[..., None], label=torch.full((ROWS,), -1), index=torch.arange(ROWS, dtype=torch.int64)
        )

    return draw


def learn(net: ImageModel, objective: Any, task: str, seed: int, steps: int, rate: float) -> None:
    """Train what of a net is not frozen."""
    draw, generator = batches(task, seed), make_generator(seed)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        objective(net, draw(), generator).total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def model(seed: int, *operators: PyramidConfig) -> ImageModel:
    """A net, of attention or of other operators."""
    torch.manual_seed(seed)
    return ImageModel(shaped(ImageConfig(net=replace(NET, operators=operators)), CODEC))


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--steps", type=int, default=1_500, help="of the source")
    parser.add_argument("--conversion-steps", type=int, default=700)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for task in args.only:
            if any((old["task"], old["seed"]) == (task, seed) for old in done):
                continue
            source = model(seed)
            learn(source, TASK, task, seed, args.steps, 2e-3)
            flow, draw = ImageFlow(source, CODEC), batches(task, 10**6)
            held_out = [draw() for _ in range(20)]
            row: dict[str, Any] = {
                "task": task,
                "seed": seed,
                "near": near_shares(flow, TASK, held_out[:4], KERNEL // 2),
            }
            row["attention"] = mean_parts(source, TASK, held_out)["velocity"]
            frozen = source.requires_grad_(False)
            imitation = FieldImitation(TASK, frozen, flow.trunk_of, BLOCKS, outputs=1.0, states=1.0)
            for name in ("converted", "mean alone"):
                net = model(seed, PyramidConfig(kernel=KERNEL))
                begin_as(flow, net, BLOCKS)
                net.requires_grad_(False)
                for operator in new_parts(flow, net, BLOCKS):
                    operator.requires_grad_(True)
                    if name == "mean alone":
                        operator.get_submodule("out").requires_grad_(False)  # which begins at zero
                learn(net, imitation, task, seed + 1, args.conversion_steps, 2e-3)
                row[name] = mean_parts(net, TASK, held_out)["velocity"]
            row["recovered"] = (row["mean alone"] - row["converted"]) / (row["mean alone"] - row["attention"])
            done.append(row)
            print(json.dumps(row), flush=True)
            atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
