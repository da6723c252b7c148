"""Training: stages driven by one loop, with state that resumes bit for bit."""

from manta.training.checkpoint import latest_checkpoint, load_checkpoint, load_state, save_checkpoint
from manta.training.ema import ExponentialAverage
from manta.training.log import METRICS, RunLog, read_log, require_tensorboard
from manta.training.loop import Progress, Stage, TrainConfig, train_stage
from manta.training.progress import show_progress

__all__ = [
    "METRICS",
    "ExponentialAverage",
    "Progress",
    "RunLog",
    "Stage",
    "TrainConfig",
    "latest_checkpoint",
    "load_checkpoint",
    "load_state",
    "read_log",
    "require_tensorboard",
    "save_checkpoint",
    "show_progress",
    "train_stage",
]
