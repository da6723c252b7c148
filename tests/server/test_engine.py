"""The engine: who is written beside whom, who leaves, and what ends."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from manta.errors import ModelError, RequestError, UsageError
from manta.families.events import Event, GenerateOptions, Request
from manta.server.engine import Busy, Closing, Engine


class Slow:
    """A writer that waits for a gate before each call, and keeps what it was asked."""

    def __init__(self, calls: int = 1, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.calls, self.error, self.seconds = calls, error, seconds
        self.gate, self.batches, self.closed = threading.Event(), [], threading.Event()

    def together(self, options: GenerateOptions) -> GenerateOptions:
        return replace(options, temperature=0.0)

    def generate(self, requests: Sequence[Request], **how: Any) -> Iterator[Event]:
        self.batches.append([request.seed for request in requests])
        try:
            self.gate.wait(10)
            if self.error is not None:
                raise self.error
            for call in range(1, self.calls + 1):
                time.sleep(self.seconds)
                for index, request in enumerate(requests):
                    kind = "done" if call == self.calls else "draft"
                    yield Event(kind, index, f"{request.seed} after {call}", (), 1.0, 1.0, call)
        finally:
            self.closed.set()


def engine_of(lm: Any, **how: Any) -> Engine:
    return Engine(lm, **{"batch_size": 4, "patience": 0.0, "queue": 8, **how})


def asked(*seeds: int, **options: Any) -> list[Request]:
    return [Request(seed=seed, options=GenerateOptions(**options)) for seed in seeds]


async def told(writing: Any) -> list[tuple[int, str, str]]:
    return [(index, event.kind, event.text) async for index, event in writing.events()]


async def until(true: Callable[[], bool], seconds: float = 5.0) -> float:
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, "it did not come about"
        await asyncio.sleep(0.002)
    return time.monotonic() - start


def test_those_who_ask_alike_are_written_together_the_oldest_first():
    async def play() -> None:
        lm = Slow()
        engine = engine_of(lm)
        first = engine.enter(asked(0), drafts=False)
        await until(lambda: bool(lm.batches))
        # While the first is being written, others come: two of one kind, one of another, five more of the first.
        others = [
            engine.enter(requests, drafts=False)
            for requests in (asked(1, 2, num_steps=4), asked(3), asked(4, num_steps=4))
        ]
        lm.gate.set()
        texts = await asyncio.gather(*(told(writing) for writing in [first, *others]))
        assert lm.batches == [[0], [1, 2, 4], [3]]
        assert [text for writing in texts for _, _, text in writing] == [f"{k} after 1" for k in range(5)]
        engine.close()

    asyncio.run(play())


def test_what_each_text_has_for_itself_keeps_nobody_apart():
    async def play() -> None:
        lm = Slow()
        engine = engine_of(lm, patience=0.3)
        lm.gate.set()
        kinds = ({}, {"temperature": 0.7}, {"temperature": 1.2}, {"num_steps": 4})
        writings = [engine.enter(asked(k, **how), drafts=False) for k, how in enumerate(kinds)]
        await asyncio.gather(*map(told, writings))
        assert lm.batches == [[0, 1, 2], [3]]
        engine.close()

    asyncio.run(play())


def test_a_batch_is_no_larger_than_it_may_be_and_waits_for_others():
    async def play() -> None:
        lm = Slow()
        lm.gate.set()
        engine = engine_of(lm, patience=0.3)
        writings = [engine.enter(asked(k), drafts=False) for k in range(6)]
        await asyncio.gather(*map(told, writings))
        assert lm.batches[0] == [0, 1, 2, 3] and sorted(lm.batches[1]) == [4, 5]
        engine.close()

    asyncio.run(play())


def test_drafts_come_to_those_who_want_them():
    async def play() -> None:
        lm = Slow(calls=3)
        engine = engine_of(lm, patience=0.2)
        plain, drafts = engine.enter(asked(7), drafts=False), engine.enter(asked(8), drafts=True)
        lm.gate.set()
        assert await told(plain) == [(0, "done", "7 after 3")]
        assert [kind for _, kind, _ in await told(drafts)] == ["draft", "draft", "done"]
        assert lm.batches == [[7, 8]]
        engine.close()

    asyncio.run(play())


def test_who_leaves_gives_the_places_back_and_nobody_writes_for_no_one():
    async def play() -> None:
        lm = Slow(calls=1000, seconds=0.01)
        engine = engine_of(lm, queue=2)
        lm.gate.set()
        one = engine.enter(asked(0), drafts=False)
        await until(lambda: engine.running == 1)
        two = engine.enter(asked(1), drafts=False)
        with pytest.raises(Busy) as full:
            engine.enter(asked(2), drafts=False)
        assert full.value.seconds >= 1
        two.leave()  # it waited
        assert (engine.waiting, engine.running) == (0, 1)
        one.leave()  # it was being written: a thousand calls, of which few were made
        assert engine.running == 0
        assert await until(lm.closed.is_set) < 0.1
        three = engine.enter(asked(3, 4), drafts=False)
        await until(lambda: len(lm.batches) == 2)
        three.leave()
        assert lm.batches == [[0], [3, 4]]
        engine.close()

    asyncio.run(play())


def test_who_stops_listening_leaves():
    async def play() -> None:
        lm = Slow(calls=1000, seconds=0.01)
        engine = engine_of(lm)
        lm.gate.set()
        writing = engine.enter(asked(0), drafts=True)
        events = writing.events()
        await anext(events)
        await events.aclose()
        assert engine.running == 0 and await until(lm.closed.is_set) < 0.1
        engine.close()

    asyncio.run(play())


def test_one_of_a_batch_may_leave_and_the_others_have_their_texts():
    async def play() -> None:
        lm = Slow(calls=3)
        engine = engine_of(lm, patience=0.2)
        one, two = engine.enter(asked(0), drafts=False), engine.enter(asked(1), drafts=False)
        await until(lambda: bool(lm.batches))
        one.leave()
        assert engine.running == 1
        lm.gate.set()
        assert await told(two) == [(0, "done", "1 after 3")]
        engine.close()

    asyncio.run(play())


@pytest.mark.parametrize("error", [RequestError("it does not fit"), ZeroDivisionError("a bug")])
def test_what_goes_wrong_is_told_to_all_who_wait_and_the_next_are_written(error, caplog):
    async def play() -> None:
        lm = Slow(error=error)
        lm.gate.set()
        engine = engine_of(lm)
        failed = [event async for _, event in engine.enter(asked(0, 1), drafts=False).events()]
        assert [event.kind for event in failed] == ["failed", "failed"]
        kind = RequestError if isinstance(error, RequestError) else ModelError
        assert all(isinstance(event.error, kind) for event in failed)
        lm.error = None
        assert len(await told(engine.enter(asked(2), drafts=False))) == 1
        engine.close()

    asyncio.run(play())


def test_a_model_that_forgets_a_text_keeps_nobody_waiting():
    class Forgetful(Slow):
        def generate(self, requests: Sequence[Request], **how: Any) -> Iterator[Event]:
            yield Event("done", 1, "the second", (), 1.0, 1.0, 1)

    async def play() -> None:
        engine = engine_of(Forgetful())
        found = [event async for _, event in engine.enter(asked(0, 1), drafts=False).events()]
        assert [event.kind for event in found] == ["done", "failed"]
        engine.close()

    asyncio.run(play())


def test_closing_writes_what_was_accepted_and_takes_no_more():
    async def play() -> None:
        lm = Slow()
        engine = engine_of(lm)
        writings = [engine.enter(asked(k, num_steps=k + 1), drafts=False) for k in range(4)]
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.05)
        with pytest.raises(Closing):
            engine.enter(asked(9), drafts=False)
        lm.gate.set()
        texts = await asyncio.gather(*map(told, writings))
        await closing
        assert [text for writing in texts for _, _, text in writing] == [f"{k} after 1" for k in range(4)]

    asyncio.run(play())


def test_the_thread_outlives_any_number_of_those_who_leave():
    """Each empties the queue while the thread waits for company."""

    async def play() -> None:
        lm = Slow()
        lm.gate.set()
        engine = engine_of(lm, patience=0.001)
        for k in range(3000):
            engine.enter(asked(k), drafts=False).leave()
            if k % 100 == 0:
                await asyncio.sleep(0.003)
        assert engine.alive
        assert len(await told(engine.enter(asked(1), drafts=False))) == 1
        engine.close()
        assert not engine.alive

    asyncio.run(play())


def test_one_that_cannot_be_written_fails_alone():
    class Picky(Slow):
        def generate(self, requests: Sequence[Request], **how: Any) -> Iterator[Event]:
            for event in super().generate(requests, **how):
                if any(request.seed == 1 for request in requests):
                    raise ZeroDivisionError("a bug that one request meets")
                yield event

    async def play() -> None:
        lm = Picky()
        lm.gate.set()
        outcomes: list[str] = []
        engine = engine_of(lm, patience=0.1, ended=outcomes.append)
        writings = [engine.enter(asked(k), drafts=False) for k in range(3)]
        kinds = [[event.kind async for _, event in writing.events()] for writing in writings]
        assert kinds == [["done"], ["failed"], ["done"]]
        assert sorted(outcomes) == ["failed", "written", "written"]
        engine.close()

    asyncio.run(play())


def test_what_is_chosen_from_takes_places_and_what_never_fits_is_refused():
    async def play() -> None:
        engine = engine_of(Slow(), queue=8)
        with pytest.raises(UsageError, match="8 places"):
            engine.enter(asked(0, 1, 2, choose=3), drafts=False)
        one = engine.enter(asked(0, 1, choose=3), drafts=False)
        assert engine.waiting + engine.running == 6
        with pytest.raises(Busy):
            engine.enter(asked(2, choose=3), drafts=False)
        one.leave()
        engine.close()

    asyncio.run(play())
