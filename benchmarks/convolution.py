"""Where attention becomes a convolution and where it cannot: a task of neighbours, and one of copying from far.

    python benchmarks/convolution.py --seeds 0 1 2 --out benchmarks/results/convolution.json

A masked model of two blocks of attention learns rows of 64 symbols; then both blocks become `pyramid_conv` of nine
elements, which learn as `manta convert` teaches them, everything else being frozen. `walk`: each symbol is its
neighbour's, one up or one down, so all that can be known is near. `copy`: the second half is the first again, of
symbols drawn apart, 32 places away. The control has the convolution's mean branch alone. Recovered is the share of the
gap, (control − converted) / (control − attention), in nats a hidden symbol; what attention looks at is `near`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manta.families.batching import to_batch
from manta.families.imitation import WordImitation
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.masked_objective import MaskedMatching
from manta.families.objectives import ObjectiveConfig
from manta.masked import MaskedObjectiveConfig
from manta.operators import PyramidConfig, SelfAttention, inherit_attention, near_share
from manta.recipes.conversion import mean_parts
from manta.runtime import atomic_write, make_generator
from manta.text import Batch

LENGTH, SYMBOLS, FIRST, ROWS, KERNEL = 64, 16, 8, 16, 9
SHAPE: dict[str, Any] = {"vocab_size": FIRST + SYMBOLS, "dim": 32, "heads": 4, "depth": 2, "prompt_depth": 1}
SHAPE |= {"max_prompt": 0, "max_text": LENGTH, "absolute_places": True}
LAYOUT = ObjectiveConfig(blank_share=0.0, extra_cell=0.0)
TASK = MaskedMatching(LAYOUT, MaskedObjectiveConfig())


def walk(generator: torch.Generator) -> torch.Tensor:
    """Symbols that go one up or one down from place to place, round a circle."""
    steps = 2 * torch.randint(0, 2, (ROWS, LENGTH), generator=generator) - 1
    return (torch.randint(0, SYMBOLS, (ROWS, 1), generator=generator) + steps.cumsum(1)) % SYMBOLS


def copied(generator: torch.Generator) -> torch.Tensor:
    """Symbols drawn apart, and the same again."""
    return torch.randint(0, SYMBOLS, (ROWS, LENGTH // 2), generator=generator).repeat(1, 2)


TASKS: dict[str, Callable[[torch.Generator], torch.Tensor]] = {"walk": walk, "copy": copied}


def batches(task: str, seed: int) -> Callable[[], Batch]:
    """One batch after the other."""
    generator = make_generator(seed)
    return lambda: to_batch([[]] * ROWS, (TASKS[task](generator) + FIRST).tolist())


def learn(net: MaskedModel, objective: Any, task: str, seed: int, steps: int, rate: float) -> None:
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


def converted(source: MaskedModel, seed: int) -> tuple[MaskedModel, list[nn.Module]]:
    """The net with convolutions for attention, frozen but for them."""
    torch.manual_seed(seed)
    net = MaskedModel(MaskedConfig(**SHAPE, operators=(PyramidConfig(kernel=KERNEL),)))
    weights = {name: value for name, value in source.state_dict().items() if ".operator." not in name}
    net.load_state_dict({**net.state_dict(), **weights})
    net.requires_grad_(False)
    new: list[nn.Module] = []
    for own, theirs in zip(net.trunk.blocks, source.trunk.blocks, strict=True):
        attention, operator = theirs.get_submodule("operator"), own.get_submodule("operator")
        assert isinstance(attention, SelfAttention)
        inherit_attention(attention, operator.requires_grad_(True))  # pyright: ignore[reportArgumentType]
        new.append(operator)
    return net, new


def measured(net: MaskedModel, task: str) -> float:
    """Nats a hidden symbol of rows that were not learned."""
    draw = batches(task, 10**6)
    return mean_parts(net, TASK, [draw() for _ in range(20)])["nats"]


@torch.no_grad()
def near(net: MaskedModel, task: str) -> list[float]:
    """Of each block, the share of its attention within reach of a kernel."""
    found: list[float] = []
    hooks = []
    for block in net.trunk.blocks:
        attention = block.get_submodule("operator")
        hooks.append(
            attention.register_forward_pre_hook(
                lambda module, args: found.append(float(near_share(module, *args[:2], KERNEL // 2).mean()))  # pyright: ignore
            )
        )
    TASK(net, batches(task, 7)(), make_generator(0))
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    """Read the command line and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1_200, help="of the source")
    parser.add_argument("--conversion-steps", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for task in TASKS:
            if any((old["task"], old["seed"]) == (task, seed) for old in done):
                continue
            torch.manual_seed(seed)
            source = MaskedModel(MaskedConfig(**SHAPE))
            learn(source, TASK, task, seed, args.steps, 3e-3)
            row: dict[str, Any] = {"task": task, "seed": seed, "near": near(source, task)}
            row["attention"] = measured(source, task)
            source.requires_grad_(False)
            imitation = WordImitation(TASK, source, lambda net: net.trunk, (0, 1), outputs=1.0, states=1.0)
            for name in ("converted", "mean alone"):
                net, new = converted(source, seed)
                for operator in new if name == "mean alone" else ():
                    operator.get_submodule("out").requires_grad_(False)  # which begins at zero
                learn(net, imitation, task, seed + 1, args.conversion_steps, 3e-3)
                row[name] = measured(net, task)
            row["recovered"] = (row["mean alone"] - row["converted"]) / (row["mean alone"] - row["attention"])
            done.append(row)
            print(json.dumps(row), flush=True)
            atomic_write(args.out, (json.dumps(done, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
