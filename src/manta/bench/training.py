"""How much of the machine a training step uses."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from statistics import mean, median

import torch
from torch.utils.flop_counter import FlopCounterMode

from manta.bench.timing import Row
from manta.errors import UsageError
from manta.recipes import Recipe, TrainingRun
from manta.runtime import keep_memory, matmul_rate
from manta.training import train_stage

WARM_UP = 2
"""Steps before the measured ones, which take memory from the system."""


def training_rates(recipe: Recipe, *, pairs: int = 5, device: str | None = None) -> Iterator[Row]:
    """Measure every stage of a recipe: its share of the machine's matrix rate, tokens a second, seconds a step.

    The share is matrix FLOPs executed in a step (`FlopCounterMode`, backward and self-conditioning included) over the
    time of a step, against the best bf16 matrix product of the same minute. Steps are timed and counted in turns, as
    counting takes time. Consensus targets, warm starts and recombined prompts, which would train a teacher first, are
    left out.

    Args:
        recipe: what to train; its length is of no account.
        pairs: steps that are timed, each followed by one that is counted; at least 1.
        device: see `resolve_device`.

    Yields:
        A row for each stage.

    Raises:
        UsageError: without a step.
    """
    if pairs < 1:
        raise UsageError(f"pairs should be at least 1, received {pairs}")
    keep_memory()
    steps = WARM_UP + 2 * pairs
    none = {"consensus": "none", "warm_start": False, "recombined": 0, "retries": 0, "targets": None}
    short = replace(recipe, num_steps=max(4, steps), time_budget=None, **none)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(short, folder + "/run", device=device)
        # One step more than are taken: at its end a stage would swap the averaged weights in.
        for stage in run.trials(steps + 1):
            progress = train_stage(stage)
            for _ in range(WARM_UP):
                next(progress)
            seconds, tokens, flops = [], [], []
            for _ in range(pairs):
                done = next(progress)
                seconds.append(done.seconds)
                tokens.append(done.num_elements)
                with FlopCounterMode(display=False) as counter:
                    next(progress)
                flops.append(counter.get_total_flops())
            rate = matmul_rate(torch.bfloat16, run.device)
            yield {
                "family": recipe.family,
                "stage": stage.name,
                "parameters": sum(parameter.numel() for parameter in stage.named.values()),
                "share_of_matrix_rate": mean(flops) / median(seconds) / rate,
                "text_tokens_per_second": round(sum(tokens) / sum(seconds)),
                "milliseconds_per_step": round(1000 * median(seconds), 1),
                "gflop_per_step": round(mean(flops) / 1e9, 2),
                "matrix_gflop_per_second": round(rate / 1e9, 1),
            }
