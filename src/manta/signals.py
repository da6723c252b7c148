"""Signals that ask a process to end: how to be told of them, and how they look as an exit code."""

import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal that asks this process to end.

    Args:
        number: of the signal.
        note: what a person should know of how things stand.
    """

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(note)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Status of a process that this signal ended, as shells count: 130 for INT, 143 for TERM, 129 for HUP."""
        return 128 + self.number


def interrupt(number: int, frame: object = None) -> None:
    """A handler of signals that stops whatever is being done.

    Raises:
        Interrupted: always.
    """
    raise Interrupted(number)


@contextmanager
def on_signals(handler: Callable[[int, Any], None], names: Iterable[str] = ("SIGINT", "SIGTERM", "SIGHUP")):
    """Let a function receive the signals that ask a process to end, for a while.

    A signal that is ignored (`nohup`, a shell's background) stays so, and outside the main thread nothing changes.

    Args:
        handler: takes the signal's number and the frame that it met.
        names: of the signals.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
