"""One thread a model that writes what many ask: requests that ask alike are written side by side.

Texts do not depend on their batch (`families.batching`), so whoever comes within a few milliseconds shares the
network's calls, and every text is still the one of its seed. Writing never happens on the event loop: a ticket's events
are handed over to it.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from manta.errors import MantaError, ModelError, UsageError
from manta.families.events import Event, GenerateOptions, Request

LOG: Final = logging.getLogger("manta.server")

MOST_WAIT: Final = 600
"""Seconds that a client is told to wait at most before it comes again."""


class Busy(Exception):
    """No place is left in the queue, or for what there can be one of.

    Args:
        seconds: after which one may be.
        why: what takes it.
    """

    def __init__(self, seconds: int, why: str = "the queue is full") -> None:
        super().__init__(f"{why}; come again in {seconds} s")
        self.seconds = seconds


class Closing(Exception):
    """The server takes nothing more."""


@dataclass(eq=False)
class Ticket:
    """One text that somebody waits for."""

    request: Request
    """What is to be written, its options among it."""
    drafts: bool
    """Whether drafts are told, too."""
    tell: Callable[[Event], None]
    """Called on the writing thread."""
    since: float = field(default_factory=time.monotonic)
    """When it came."""
    over: bool = False
    """It is written, has failed, or nobody waits for it any more."""


class Writing:
    """The texts of one call: its events, in the order they come, until every text has its last.

    Args:
        engine: which writes them.
        requests: one a text.
        drafts: tell drafts.
    """

    def __init__(self, engine: "Engine", requests: Sequence[Request], *, drafts: bool) -> None:
        loop, self._engine = asyncio.get_running_loop(), engine
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def teller(index: int) -> Callable[[Event], None]:
            def tell(event: Event) -> None:
                # The loop may have ended while a thread was still writing.
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

            return tell

        self.tickets = [Ticket(request, drafts, teller(i)) for i, request in enumerate(requests)]

    async def events(self) -> AsyncGenerator[tuple[int, Event]]:
        """`(which text, event)`; whoever stops listening gives the places of the rest back."""
        left = len(self.tickets)
        try:
            while left:
                index, event = await self._events.get()
                left -= event.kind != "draft"
                yield index, event
        finally:
            self.leave()

    def leave(self) -> None:
        """Nobody waits any more: what is not written yet is not, and its places are free."""
        self._engine.leave(self.tickets)


class Engine:
    """Writes with one model what many ask.

    Args:
        lm: the model.
        batch_size: most texts written at once.
        patience: seconds that the first of a batch waits for others.
        queue: most texts that wait or are being written.
        seen: called with the size of each batch as it begins.
        ended: called with what became of each text: `written`, `failed` or `left`.
    """

    def __init__(
        self,
        lm: Any,
        *,
        batch_size: int,
        patience: float,
        queue: int,
        seen: Callable[[int], None] = lambda size: None,
        ended: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self.lm, self.batch_size, self.patience, self.queue = lm, batch_size, patience, queue
        self.seen, self.ended = seen, ended
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._closing = False
        self._pace = 0.1
        """Seconds a text, of late."""
        self._thread = threading.Thread(target=self._work, name="manta-writing", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can write."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Texts that wait to be written."""
        return _size(list(self._waiting))

    @property
    def running(self) -> int:
        """Texts that are being written and waited for."""
        return _size(ticket for ticket in list(self._running) if not ticket.over)

    def enter(self, requests: Sequence[Request], *, drafts: bool) -> Writing:
        """Let texts be written.

        Raises:
            UsageError: there are more texts than the queue has places.
            Busy: not as many places are free.
            Closing: the server is leaving.
        """
        writing = Writing(self, requests, drafts=drafts)
        with self._changed:
            if self._closing:
                raise Closing("the server is shutting down")
            taken, size = self.waiting + self.running, _size(writing.tickets)
            if size > self.queue:
                raise UsageError(f"the queue has {self.queue} places, and the request takes {size}; ask for fewer")
            if taken + size > self.queue:
                raise Busy(max(1, min(MOST_WAIT, round((taken + size - self.queue) * self._pace))))
            self._waiting.extend(writing.tickets)
            self._changed.notify()
        return writing

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """Give up what nobody waits for."""
        with self._changed:
            for ticket in tickets:
                if not ticket.over:
                    ticket.over = True
                    self.ended("left")
            if any(ticket.over for ticket in self._waiting):
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.over)

    def close(self) -> None:
        """Write what was accepted, then end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            self.seen(len(batch))
            self._write(batch)
            self._pace += 0.2 * ((time.monotonic() - began) / _size(batch) - self._pace)

    def _next(self) -> list[Ticket]:
        """The oldest text that waits and those that ask to be written alike; none when the server ends."""
        with self._changed:
            self._running = []
            while not self._ready():
                self._changed.wait(None if not self._waiting else max(0.0, self._due()))
            if not self._waiting:
                return []
            how = self._shared(self._waiting[0])
            alike = [ticket for ticket in self._waiting if self._shared(ticket) == how][: self.batch_size]
            chosen = set(map(id, alike))
            self._waiting = deque(ticket for ticket in self._waiting if id(ticket) not in chosen)
            self._running = alike
            return alike

    def _shared(self, ticket: Ticket) -> GenerateOptions:
        """What those share that are written side by side."""
        return self.lm.together(ticket.request.options or GenerateOptions())

    def _ready(self) -> bool:
        """Whether there is something to write, and nothing to wait for."""
        if self._closing or not self._waiting:
            return self._closing
        return len(self._waiting) >= self.batch_size or self._due() <= 0

    def _due(self) -> float:
        """Seconds that the oldest text still waits for company."""
        return self._waiting[0].since + self.patience - time.monotonic()

    def _write(self, batch: list[Ticket]) -> None:
        events = self.lm.generate([ticket.request for ticket in batch], batch_size=self.batch_size)
        try:
            for event in events:
                ticket = batch[event.index]
                if event.kind != "draft":
                    self._tell(ticket, event)
                elif ticket.drafts and not ticket.over:
                    ticket.tell(event)
                if all(ticket.over for ticket in batch):
                    break  # nobody waits for the rest
        except Exception as error:
            left = [ticket for ticket in batch if not ticket.over]
            if len(batch) > 1:  # only those fail by whom it came
                for ticket in left:
                    self._write([ticket])
                return
            if not isinstance(error, MantaError):
                LOG.exception("writing failed")
                error = ModelError(f"writing failed ({type(error).__name__}); the server's log says more")
            self._fail(batch, error)
        else:
            self._fail(batch, ModelError("the model has not finished a text"))
        finally:
            events.close()

    def _fail(self, batch: list[Ticket], error: MantaError) -> None:
        """Tell those that still wait."""
        for index, ticket in enumerate(batch):
            self._tell(ticket, Event("failed", index, "", (), 0.0, 0.0, 0, error=error))

    def _tell(self, ticket: Ticket, event: Event) -> None:
        """A ticket's last event."""
        if not ticket.over:
            ticket.over = True
            self.ended("failed" if event.kind == "failed" else "written")
            ticket.tell(event)


def _size(tickets: Iterable[Ticket]) -> int:
    """Texts that are written for some tickets, those that are chosen from among them."""
    return sum(1 if ticket.request.options is None else ticket.request.options.choose for ticket in tickets)
