"""Progress of a run for whoever waits: bars on a terminal, lines elsewhere, on stderr."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from manta.training.loop import Progress

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


def show_progress(events: Iterable[Any], shown: bool | None = None) -> None:
    """Follow a run to its end and show how it goes.

    Args:
        events: notes, which have a `text`, and the `Progress` of every step.
        shown: True shows it wherever stderr goes, False never; None on a terminal and in a notebook.
    """
    from rich.console import Console

    console = Console(stderr=True)
    live = console.is_terminal or console.is_jupyter
    if live if shown is None else shown:
        (_bars if live else _lines)(events, console)
        return
    for _ in events:
        pass


def _bars(events: Iterable[Any], console: Any) -> None:
    """A bar a stage, with its loss and the time left; notes stand above the bars."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, Any] = {}
        for event in events:
            if not isinstance(event, Progress):
                console.print(event.text, markup=False, highlight=False)
                continue
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.num_steps, loss=event.loss)
            bars.update(tasks[event.stage], completed=event.step, loss=event.loss)


def _lines(events: Iterable[Any], console: Any) -> None:
    last = time.perf_counter()
    for event in events:
        if not isinstance(event, Progress):
            print(event.text, file=sys.stderr, flush=True)
        elif time.perf_counter() - last > EVERY or event.step == event.num_steps:
            last = time.perf_counter()
            line = f"{event.stage} {event.step}/{event.num_steps}  loss {event.loss:.3f}"
            print(line, file=sys.stderr, flush=True)
