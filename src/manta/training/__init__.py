"""Training: stages driven by one loop, with state that resumes bit for bit."""

from manta.training.checkpoint import latest_checkpoint, load_checkpoint, load_state, save_checkpoint, save_shares
from manta.training.ema import ExponentialAverage
from manta.training.holding import Sharding
from manta.training.log import METRICS, NoLog, RunLog, read_log, require_tensorboard
from manta.training.loop import Progress, Stage, TrainConfig, train_stage
from manta.training.progress import show_progress
from manta.training.team import Processes, Team, assemble, own_device

__all__ = [
    "METRICS",
    "ExponentialAverage",
    "NoLog",
    "Processes",
    "Progress",
    "RunLog",
    "Sharding",
    "Stage",
    "Team",
    "TrainConfig",
    "assemble",
    "latest_checkpoint",
    "load_checkpoint",
    "load_state",
    "own_device",
    "read_log",
    "require_tensorboard",
    "save_checkpoint",
    "save_shares",
    "show_progress",
    "train_stage",
]
