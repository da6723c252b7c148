"""Structured tasks that need no file, each symbol a token, with oracles that judge by the rules of the task."""

from manta.text.tasks.countdown import COUNTDOWN, Countdown
from manta.text.tasks.paths import PATHS
from manta.text.tasks.published import TASK_OF_SCHEME
from manta.text.tasks.sudoku import SUDOKU4, SUDOKU9, Overlap, overlap
from manta.text.tasks.task import Task, Verdict

TASKS = {task.name: task for task in (SUDOKU4, SUDOKU9, COUNTDOWN, PATHS)}
"""The built-in tasks by name."""

__all__ = [
    "COUNTDOWN",
    "PATHS",
    "SUDOKU4",
    "SUDOKU9",
    "TASKS",
    "TASK_OF_SCHEME",
    "Countdown",
    "Overlap",
    "Task",
    "Verdict",
    "overlap",
]
