"""What each of several processes does in the tests of `test_together`: some runs, one after the other.

torchrun --nproc-per-node N together.py JOBS.json
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from manta.config import from_dict
from manta.recipes import TrainingRun
from manta.recipes.states import recipe_class
from manta.training import Progress, Sharding


def run_job(out: Path, job: dict[str, Any]) -> TrainingRun:
    """Train as one job says: a `recipe`, or the run that is there; its `sharding`; `stop` or `die` after some steps."""
    told = job.get("recipe")
    recipe = None if told is None else from_dict(recipe_class(told.get("state", "text")), told)
    sharding: Sharding = job.get("sharding", "none")
    run = TrainingRun(recipe, out, resume=recipe is None, device="cpu", sharding=sharding)
    last = run.team.rank == run.team.size - 1
    try:
        for event in run.events():
            if isinstance(event, Progress) and last:
                if event.step == job.get("stop"):
                    run.stop()
                if event.step == job.get("die"):
                    os.kill(os.getpid(), signal.SIGKILL)
    except KeyboardInterrupt:
        run.folder.close()
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    team = None
    for folder, job in json.loads(Path(sys.argv[1]).read_text()).items():
        team = run_job(Path(folder), job).team
    if team is not None:
        team.close()
