"""What a run writes into `metrics.jsonl` of each step, and what is read from it again."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from manta.families.events import Request, finished
from manta.families.options import read_options
from manta.hub.folder import LanguageModel
from manta.recipes.answers import fitting
from manta.runtime import peak_memory_bytes
from manta.training import Progress, read_log

NUM_SAMPLES = 4
"""Texts that are shown now and then."""
Asked = tuple[str | None, str | None]
"""A prompt, and the task that it is given for."""


def log_row(step: int, progress: Progress, unit: str, more: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The row of a step.

    Args:
        step: of the whole run, from 1.
        progress: of the step within its stage.
        unit: of a batch's elements.
        more: what else is told of it.
        device: where it was made.
    """
    row: dict[str, Any] = {"global_step": step, "stage": progress.stage, "step": progress.step}
    row |= {"loss": progress.loss, "lr": progress.learning_rate, "gradient_norm": progress.gradient_norm}
    row |= {"seconds": progress.seconds, unit: progress.num_elements, **progress.parts, **more}
    if progress.step % 100 == 0:
        row["peak_memory_bytes"] = peak_memory_bytes(device)
    return row


def written_samples(lm: LanguageModel, prompts: Sequence[Asked]) -> list[str]:
    """A few prompts with what a model writes to them; texts without a prompt differ by their seeds.

    Args:
        lm: as it is by now.
        prompts: at most `NUM_SAMPLES`; those that it cannot read are left out.
    """
    read = [(p, task) for p, task in prompts if not p or fitting([p], lm.tokenizer, lm.model.config.max_prompt)]
    if not read:
        return []
    read += read[-1:] * (NUM_SAMPLES - len(read))
    asked = [Request(prompt=p, task=task, seed=i) for i, (p, task) in enumerate(read)]
    done = sorted(finished(lm.generate(asked, read_options({"num_steps": 8}))), key=lambda event: event.index)
    told = ["" if task is None else f"{task}: " for _, task in read]
    return [f"{how}{p or ''} -> {event.text}" for how, (p, _), event in zip(told, read, done, strict=True)]


def minutes_of(run: Path, stages: Iterable[str]) -> dict[str, float]:
    """Minutes of each stage, from the log of a run's folder; 0 for one without a step."""
    spent: dict[str, float] = {}
    for row in read_log(run)[0]:
        spent[row["stage"]] = spent.get(row["stage"], 0.0) + max(0.0, row.get("seconds", 0.0)) / 60
    return {name: spent.get(name, 0.0) for name in stages}
