"""A writer that says what it is told to, and small data to evaluate it on."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest

from manta.evaluation import Contestant, EvaluationSet, evaluation_set
from manta.families.events import Event, GenerateOptions, Request, Writer

Script = Callable[[int, Request], str]


class Scripted(Writer):
    """Writes `script(index, request)`; every text takes as many calls as the budget allows."""

    family = "scripted"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[GenerateOptions] = []

    def generate(
        self,
        requests: Sequence[Request],
        options: GenerateOptions | None = None,
        observer: Any = None,
        *,
        batch_size: int = 64,
    ) -> Iterator[Event]:
        options = options or GenerateOptions()
        self.asked.append(options)
        for index in reversed(range(len(requests))):  # the order of finished texts is not that of the requests
            text = self.script(index, requests[index])
            yield Event("done", index, text, (), 1.0, 1.0, options.num_steps)


def scripted(script: Script, name: str = "scripted") -> Contestant:
    return Contestant(name, Scripted(script), {})


@cache
def weather(num: int = 120) -> EvaluationSet:
    return evaluation_set("builtin:weather", "test", num, training_texts=400)


@pytest.fixture(scope="session")
def data() -> EvaluationSet:
    return weather()
