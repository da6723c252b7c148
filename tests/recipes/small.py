"""Runs of a second or two that tests of recipes share."""

from pathlib import Path
from typing import Any, cast

import torch

from manta.families import FAMILIES
from manta.hub import load
from manta.recipes import TrainingRun
from manta.training import Progress


def small(depth: int, family: str = "manta", **changes: Any) -> dict[str, Any]:
    """The recipe of a run of any family on a few forecasts, without a teacher.

    Args:
        depth: blocks that write the text.
        family: that is trained.
        changes: other fields.
    """
    shape: dict[str, Any] = {"dim": 16, "heads": 2, "depth": depth, "prompt_depth": 1}
    space = {"space": {"encoder_depth": 1}} if family == "manta" else {}
    return {
        "data": "builtin:weather",
        "num_examples": 60,
        "vocab_size": 512,
        "max_prompt": 40,
        "max_text": 40,
        "size": "nano",
        "batch_tokens": 300,
        "num_steps": 8,
        "consensus": "none",
        "warm_start": False,
        "family": family,
        FAMILIES[family].shape: {**shape, **space},
        **changes,
    }


def finish(run: TrainingRun) -> TrainingRun:
    """Train to the end."""
    for _ in run.events():
        pass
    return run


def stop(run: TrainingRun, step: int = 1) -> None:
    """Train so many steps and leave."""
    events, steps = run.events(), 0
    for event in events:
        steps += isinstance(event, Progress)
        if steps == step:
            events.close()
            return
    raise AssertionError(f"the run has no step {step}")


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended on the same weights, to the last bit."""
    first, second = (cast(Any, load(folder, device="cpu")).model.state_dict() for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def card(run: Path) -> str:
    """What a card says before the minutes that each stage has taken."""
    return (run / "model" / "README.md").read_text().split("| stage |")[0]
