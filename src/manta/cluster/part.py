"""One part of a job: its lines read, written by a model, and told row by row."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from manta.cluster.folder import LINES, JobFolder, identity, model_digest
from manta.cluster.rows import Line, copy_of, staged
from manta.errors import DataError, MantaError, ModelError, RequestError
from manta.families.events import Event, Request, Writer
from manta.families.lines import (
    NO_PROMPTS,
    check_line,
    for_model,
    has_prompt,
    options_of_line,
    requests_of_line,
    told,
)
from manta.families.options import GenerateOptions
from manta.hub import load_writer
from manta.text import files

DEATHS: Final = 3
"""How often a part is begun whose worker dies under it, in one start."""
FEW: Final = 16
"""Requests of which all may fail by an unforeseen error before it is taken for the model's or the machine's."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What every worker is told."""

    out: str
    """The job's folder."""
    kind: str
    """Ending of its parts."""
    identity: str
    """Of the job, so that no worker of an earlier one writes into it."""
    model: str | None
    """As for `manta.hub.load`."""
    model_digest: str
    """Of its folder."""
    device: str
    """`cpu` or `cuda`."""
    settings: GenerateOptions
    """How to write."""
    repetition: Any
    """The direction that `escape_scale` leads away from, if it was measured."""
    num_samples: int
    """Texts for each line."""
    seed: int
    """Of the first text of the first line."""
    part_rows: int
    """Lines of a part."""
    batch_size: int
    """Texts written at once."""
    threads: int | None
    """Of each worker; None: as Ray says."""


class PartWriter:
    """A worker: loads the model when it is first asked, and writes one part after the other.

    Args:
        how: what every worker is told.
    """

    def __init__(self, how: Writing) -> None:
        self.how = how
        self._lm: Any = None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write a part.

        Args:
            row: its number under `part`.

        Returns:
            The number, its lines, those that failed, and, where the job has to stop, why, as an error's name and words.
        """
        part = int(row["part"])
        try:
            count_try(Path(self.how.out), part)
            lines, failed = write_part(self._model(), self.how, part)
        except (MantaError, OSError) as error:
            said = error if isinstance(error, MantaError) else f"{error.strerror}: {error.filename}"
            return {"part": part, "rows": 0, "failed": 0, "stopped": type(error).__name__, "why": str(said)}
        return {"part": part, "rows": lines, "failed": failed, "stopped": "", "why": ""}

    def _model(self) -> Any:
        """The model.

        Raises:
            ModelError: it is another than the job began with, as on a machine with a copy of its own.
        """
        if self._lm is None:
            import torch

            if self.how.threads is not None:
                torch.set_num_threads(self.how.threads)
            if model_digest(self.how.model) != self.how.model_digest:
                raise ModelError(f"{self.how.model} on this machine is another model; copy the job's own there")
            self._lm = load_writer(self.how.model, device=self.how.device)
            if self.how.repetition is not None:
                self._lm.repetition = self.how.repetition
        return self._lm


def count_try(out: Path, part: int) -> None:
    """Note that a part is begun, so that lines that kill whoever writes them do not keep a cluster busy for ever.

    Args:
        out: the job's folder.
        part: which part.

    Raises:
        ModelError: it was begun `DEATHS` times in this start.
    """
    with copy_of(out / LINES, part).with_suffix(".tries").open("ab") as stream:
        stream.write(b".")
        if stream.tell() > DEATHS:
            raise ModelError(
                f"part {part} was begun {DEATHS} times and its worker died each time, as when memory runs out; take a "
                "smaller --batch-size, or look for a line that the model cannot stand in the part's lines, "
                f"{copy_of(out / LINES, part)}"
            )


def write_part(lm: Writer, how: Writing, part: int) -> tuple[int, int]:
    """Write the texts of a part's lines and publish them; a line that fails is told with its error, and costs itself.

    Args:
        lm: the model.
        how: what is written.
        part: which part.

    Returns:
        How many lines there are, and how many of them failed.

    Raises:
        ModelError: nothing of it could be written, or the folder is another job's by now.
        UsageError: the options do not fit the model.
        OSError: the part cannot be read or written.
    """
    folder = JobFolder(Path(how.out), how.kind)
    list(lm.generate([], how.settings))  # so that settings that do not fit are refused as such, not line by line
    lines = staged(folder.lines, part)
    asked = [_asked(lm, line, part * how.part_rows + at, how) for at, line in enumerate(lines)]
    slots = [(request, one.fault) for one in asked for request in one.requests]
    sound = [at for at, (_, fault) in enumerate(slots) if fault is None]
    ends = [(_failed(fault), 0.0) for _, fault in slots]
    written = answers(lm, [slots[at][0] for at in sound], how.settings, how.batch_size)
    for at, end in zip(sound, written, strict=True):
        ends[at] = end
    rows = [told(request, *end) for (request, _), end in zip(slots, ends, strict=True)]
    failures = list(_failures(lines, asked, [event for event, _ in ends], part * how.part_rows))
    if identity(folder.job() or {}) != how.identity:
        raise ModelError(f"{how.out} belongs to another job by now; this one stops")
    folder.publish(part, rows, failures)
    return len(lines), len(failures)


@dataclass(frozen=True)
class Asked:
    """What a line asks for."""

    requests: list[Request]
    """Its texts."""
    row: dict[str, Any] | None
    """The line as it was read; None where it could not be."""
    fault: MantaError | None
    """Why none of them is written."""


def _asked(lm: Writer, line: Line, i: int, how: Writing) -> Asked:
    """The texts that line i of the whole input asks for."""
    first = how.seed + i * how.num_samples
    blank = [Request(seed=first + j) for j in range(how.num_samples)]
    try:
        if line.fault is not None:
            raise DataError(line.fault)
        row = files.parse_record(line.text, line.at, "prompt")
        check_line(row, line.at)
        requests = [for_model(each, lm.tasks) for each in requests_of_line(row, i, how.num_samples, how.seed)]
    except MantaError as error:
        return Asked(blank, None, error)
    try:
        options = options_of_line(row, how.settings)
    except MantaError as error:
        return Asked(requests, row, error)
    if lm.prompted is False and has_prompt(requests[0]):
        return Asked(requests, row, RequestError(NO_PROMPTS))
    return Asked([replace(request, options=options) for request in requests], row, None)


def answers(
    lm: Writer, requests: Sequence[Request], settings: GenerateOptions, batch_size: int
) -> list[tuple[Event, float]]:
    """The last event of each request, and the seconds after which it came.

    Where writing raises, what is left is written by halves, down to the one request that it is about, which fails.

    Args:
        lm: the model.
        requests: may have options of their own.
        settings: of those that have none.
        batch_size: texts written at once.

    Raises:
        ModelError: every one of more than `FEW` requests raised.
    """
    start, raised = time.perf_counter(), 0
    found: dict[int, tuple[Event, float]] = {}
    waiting = [list(range(len(requests)))]
    while waiting:
        now = [at for at in waiting.pop() if at not in found]
        if not now:
            continue
        try:
            for event in lm.generate([requests[at] for at in now], settings, batch_size=batch_size):
                if event.kind != "draft":
                    found[now[event.index]] = event, time.perf_counter() - start
        except Exception as error:
            left = [at for at in now if at not in found]
            if len(left) == 1:
                raised += 1
                found[left[0]] = _failed(_as_ours(error)), time.perf_counter() - start
            else:
                waiting += [left[len(left) // 2 :], left[: len(left) // 2]]
            if raised == len(requests) > FEW:
                raise ModelError(f"none of {raised} texts in a row could be written: {_as_ours(error)}") from error
    return [found[at] for at in range(len(requests))]


def _failures(
    lines: Sequence[Line], asked: Sequence[Asked], events: Sequence[Event], first: int
) -> Iterator[dict[str, Any]]:
    """What is told of each line of which some text failed."""
    ends = iter(events)
    for at, (line, one) in enumerate(zip(lines, asked, strict=True)):
        errors = [next(ends).error for _ in one.requests]
        if failed := [j for j, error in enumerate(errors) if error is not None]:
            read = line.text if one.row is None else one.row
            told_of = {"row": first + at, "at": line.at, "samples": failed, "error": str(errors[failed[0]])}
            yield {**told_of, "input": read}


def _failed(error: MantaError | None) -> Event:
    return Event("failed", 0, "", (), 0.0, 0.0, 0, error=error)


def _as_ours(error: Exception) -> MantaError:
    if isinstance(error, MantaError):
        return error
    return RequestError(f"writing it raised {type(error).__name__}: {' '.join(str(error).split())[:300]}")
