"""The texts that are evaluated, written by any family through its one interface."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from manta.errors import MantaError, UsageError
from manta.evaluation.dataset import EvaluationSet
from manta.families.events import BATCH, GenerateOptions, Request, Writer, finished
from manta.families.serving import RequestWriter
from manta.hub import load_writer, model_config
from manta.nets.integers import count_parameters
from manta.runtime import MAX_SEED
from manta.text import read, task_of
from manta.text.sources import SCHEMES

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that says nothing."""


@dataclass(frozen=True)
class Contestant:
    """A model with what its folder records of itself."""

    name: str
    """As it is shown."""
    lm: Writer
    """Writes."""
    config: dict[str, Any]
    """Of its `config.json`; empty where it is not known."""

    @property
    def parameters(self) -> int | None:
        """Numbers that are learned; None where they cannot be counted."""
        net = getattr(self.lm, "model", getattr(self.lm, "net", None))
        return None if net is None else count_parameters(net)

    def of_task(self, task: str | None) -> "Contestant":
        """The same with the model of one task, or as it is, where it has none and none is named.

        Raises:
            RequestError: the model has no such task, or has some and none is named.
        """
        return replace(self, lm=self.lm.of_task(task)) if isinstance(self.lm, RequestWriter) else self


SHIPPED: Final = "the model that ships"
"""Name of the model that is taken where none is named."""


def contestant(path: str, *, device: str | None = None, task: str | None = None) -> Contestant:
    """Load a model to evaluate.

    Args:
        path: a model folder, a run folder or a hub name; empty for the model that ships.
        device: see `manta.hub.load`.
        task: of a model that tells tasks apart, the one that is measured; of others it is not looked at.

    Raises:
        ModelError: as `manta.hub.load`.
        RequestError: the model tells tasks apart, and none of them is named.
    """
    found = loaded(path, device=device)
    return found.of_task(task if found.lm.tasks else None)


def loaded(path: str, *, device: str | None = None) -> Contestant:
    """The same with all the tasks that a model may have.

    Args:
        path: see `contestant`.
        device: see `manta.hub.load`.

    Raises:
        ModelError: as `manta.hub.load`.
    """
    where = path or None
    return Contestant(path or SHIPPED, load_writer(where, device=device), model_config(where))


def trained_with_prompts(model: Contestant) -> bool | None:
    """Whether a model learned texts that answer prompts, as far as its folder, its chat frame or its data tell.

    Returns:
        None where nothing tells.
    """
    told = model.config.get("prompted") if model.lm.prompted is None else model.lm.prompted
    if isinstance(told, bool):
        return told
    if getattr(model.lm, "frame", None) is not None:
        return True
    data = str(model.config.get("recipe", {}).get("data", ""))
    scheme = data.partition(":")[0]
    if scheme in ("e2e", "builtin") or task_of(data) is not None:
        return True
    if scheme == "tinystories" or data.endswith(".txt"):
        return False
    if not data or scheme in SCHEMES:
        return None
    try:
        return next(iter(read(data))).prompt is not None
    except (MantaError, StopIteration):
        return None


def fitting(lm: Writer, prompts: Sequence[str | None]) -> list[bool]:
    """Which prompts a model has room for.

    Families differ in what they add to a prompt and in what they leave for the text, so the model is asked itself. A
    shorter prompt fits where a longer one does, so that few have to be tried.

    Args:
        lm: any family.
        prompts: some.

    Raises:
        RequestError: the model refuses the shortest one, and says why.
    """
    encode = getattr(getattr(lm, "tokenizer", None), "encode", None) or str
    sizes = [len(encode(prompt or "")) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda at: sizes[at])
    low, high = 0, len(order)  # the first `low` fit, those from `high` on do not
    refusal: MantaError | None = None
    middle = high - 1
    while low < high:
        event = next(iter(lm.generate([Request(prompt=prompts[order[middle]])])), None)
        if event is None or event.error is None:
            low = middle + 1
        else:
            high, refusal = middle, event.error
        middle = (low + high) // 2
    if refusal is not None and not low:
        raise refusal
    fits = set(order[:low])
    return [at in fits for at in range(len(prompts))]


@dataclass(frozen=True)
class Written:
    """One text for each prompt, and what it cost."""

    texts: list[str]
    """In the order of the prompts."""
    nfe: list[int]
    """Sequential network calls of each text."""
    seconds: float
    """Wall time of all texts together, s."""


def write(
    lm: Writer,
    data: EvaluationSet,
    options: GenerateOptions,
    *,
    seed: int = 0,
    batch_size: int = BATCH,
    progress: Progress = silent,
) -> Written:
    """Write one text for each prompt of a set.

    Args:
        lm: any family.
        data: whose prompts are answered; without prompts as many texts are written freely.
        options: how to write.
        seed: text i uses seed + i.
        batch_size: texts written at once; it does not change them.
        progress: told of every finished text.

    Raises:
        RequestError: a prompt does not fit the model.
        UsageError: the options do not fit the model, or a seed out of range.
    """
    total = len(data.prompts)
    if not 0 <= seed <= MAX_SEED - total:
        raise UsageError(f"seeds lie between 0 and {MAX_SEED}, received {seed} for {total} texts")
    requests = [Request(prompt=prompt, seed=seed + i) for i, prompt in enumerate(data.prompts)]
    texts, calls, done = [""] * total, [0] * total, 0
    start = time.perf_counter()
    for event in finished(lm.generate(requests, options, batch_size=batch_size)):
        texts[event.index], calls[event.index], done = event.text, event.nfe, done + 1
        progress("writing", done, total)
    return Written(texts, calls, time.perf_counter() - start)
