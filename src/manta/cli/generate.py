"""`manta generate [MODEL]`: write texts."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal, cast

from manta.cli.options import argument
from manta.cli.screen import WIPE, in_place
from manta.cli.steering import check_steering, steer
from manta.cli.writing import parse_writing, run_elsewhere
from manta.errors import DataError, MantaError, UsageError
from manta.families.events import Event, Request, counted
from manta.families.lines import (
    check_line,
    check_prompted,
    for_model,
    has_prompt,
    options_of_line,
    requests_of_line,
    told,
)

OF_RAY = ("out", "out_format", "part_rows", "workers", "address")
"""Options of --engine ray."""
MAX_TEXTS = 1_000_000
"""Most texts of one call without it."""
MAX_INPUT = 256 << 20
"""Most characters of all lines of --input, which are held in memory."""


@dataclass(frozen=True, kw_only=True)
class GenerateVerbOptions:
    """Write texts with a model; the one that ships if none is named."""

    model: str = argument("")
    """A model folder, a run folder of `manta train`, a hub name, or `builtin:NAME` of one that ships; `builtin:e2e`
    without it."""
    prompt: str | None = None
    """What the text answers to."""
    input: str | None = None
    """A file of JSON lines with `prompt` and, if wanted, `infill` or `edit`, `seed` and `options` (such as
    {"num_steps": 16}, which count over the flags), or - for standard input; other keys pass through. With --engine
    ray also a folder of such files and of Parquet files, or a URL that fsspec knows (`s3://…`)."""
    infill: str | None = None
    """A text with blanks to fill: `___` for up to 8 tokens, `___{n}` for up to n; or with `[[words]]` to change."""
    edit: str | None = None
    """A text to change, as far as --strength says: all of it, or the `[[words]]` that it marks."""
    task: str | None = None
    """Of a model that tells tasks apart, which is asked for; a line of --input may name its own as `task`."""
    instruction: str | None = None
    """The same in words, such as "make it shorter"; what is not understood surely enough is refused."""
    num_samples: int = 1
    """Texts for each request."""
    seed: int = 0
    """Sample j of request i uses seed + i·num_samples + j."""
    target_entropy: float | None = None
    """Choose the temperature (and guidance) so that a text's words have this mean entropy, in nats; see --held-out."""
    held_out: str | None = None
    """Data whose split dev --target-entropy and --escape-scale are measured on, named as for manta train."""
    batch_size: int = 64
    """Texts written at once; it does not change them."""
    json: bool = False
    """One JSON object a sample on stdout."""
    engine: Literal["none", "ray"] = "none"
    """ray: by many processes, on this machine or on a cluster, into files; needs `pip install 'manta[ray]'`."""
    out: Path | None = None
    """With --engine ray, the folder for the texts; the same command goes on where an interrupted one was stopped."""
    out_format: Literal["jsonl", "parquet"] = "jsonl"
    """With --engine ray, the kind of files written."""
    part_rows: int = 256
    """With --engine ray, lines of --input for each file written, which are lost at most if its writer is killed."""
    workers: int | None = None
    """With --engine ray, processes that write; as many as there are cores, or CUDA devices, without it."""
    address: str | None = None
    """With --engine ray, a cluster that runs, such as `auto` or HOST:PORT; RAY_ADDRESS, or this machine, without it."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Run the verb: a model of images draws, see `cli.draw`."""
    if (status := run_elsewhere(argv, "generate")) is not None:
        return status
    options, settings = parse_writing(GenerateVerbOptions, argv, "generate")
    if options.num_samples < 1:
        raise UsageError(f"--num-samples should be at least 1, received {options.num_samples}")
    if options.input is not None and {options.prompt, options.infill, options.edit} != {None}:
        raise UsageError("give --input, or --prompt with --infill or --edit, not both")
    if options.edit is not None and options.infill is not None:
        raise UsageError("give --infill or --edit, not both")
    if options.task is not None and options.instruction is not None:
        raise UsageError("give --task or --instruction, not both")
    check_steering(options, settings)
    counted(options.batch_size, "batch_size", 1)
    if options.engine == "ray":
        from manta.cli.generate_many import run_many

        return run_many(options, settings)
    if moot := [name for name in OF_RAY if getattr(options, name) != getattr(GenerateVerbOptions(), name)]:
        raise UsageError(f"--{moot[0].replace('_', '-')} is for --engine ray; give that too, or leave it out")
    requests, asked = zip(*_requests(options), strict=True)
    from manta.hub import load_writer

    lm = load_writer(options.model or None, device=options.device)
    _check_prompts(lm.prompted, requests, options.input)
    task = options.task if options.instruction is None else understood_task(lm, options.instruction)
    requests = [for_model(request, lm.tasks) for request in requests]
    requests = [request if request.task is not None else replace(request, task=task) for request in requests]
    settings = steer(lm, options, settings)
    own = [options_of_line(line, settings) for line in asked]
    requests = [replace(request, options=how) for request, how in zip(requests, own, strict=True)]
    lively = sys.stdout.isatty() and not options.json
    done = _emerging(lm, requests, settings) if lively else _done(lm, requests, settings, options.batch_size)
    failures = 0
    for index, event, seconds in done:
        if event.error is not None:
            failures += 1
            _report_failure(event.error, index, len(requests), options.json)
        if options.json:
            print(json.dumps(told(requests[index], event, seconds), ensure_ascii=False), flush=True)
        elif event.error is None and not lively:
            print(event.text, flush=True)
    return int(failures > 0)


def understood_task(lm: Any, instruction: str) -> str:
    """The task of a model that an instruction asks for; what was understood is told on stderr.

    Raises:
        UsageError: the model has no tasks, or none is understood surely enough.
    """
    if not lm.tasks:
        raise UsageError("the model has no tasks, so there is none to be told in words; leave --instruction out")
    found = lm.understand(instruction)
    if found.task is None:
        raise UsageError(f"{instruction!r}: {found.explain()}")
    print(found.explain(), file=sys.stderr)
    return found.task


def _report_failure(error: MantaError, index: int, total: int, as_row: bool) -> None:
    """Say on stderr which request the model cannot serve, and why.

    Raises:
        MantaError: it is the only one, and its row is not asked for.
    """
    if total == 1 and not as_row:
        raise error
    from manta.cli import with_flags

    which = f"request {index + 1} of {total}: " if total > 1 else ""
    print(f"manta: error: {which}{' '.join(with_flags(str(error)).split())}", file=sys.stderr, flush=True)


def _requests(options: GenerateVerbOptions) -> Iterator[tuple[Request, dict[str, Any]]]:
    """Each text to be written, and its line."""
    lines: list[dict[str, Any]] = [{"prompt": options.prompt, "infill": options.infill, "edit": options.edit}]
    if options.input is not None:
        lines = list(read_lines(options.input))
    if len(lines) * options.num_samples > MAX_TEXTS:
        raise UsageError(
            f"{len(lines):,} requests with --num-samples {options.num_samples} are more than {MAX_TEXTS:,} texts; "
            "write them in several calls, or with --engine ray"
        )
    for i, line in enumerate(lines):
        for request in requests_of_line(line, i, options.num_samples, options.seed):
            yield request, line


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Requests from a file of JSON lines, or from standard input for `-`, checked; errors name the line.

    Raises:
        DataError: the file is missing, empty or too large, or a line is no request.
    """
    from manta.text import files

    standard = str(path) == "-"
    where = "standard input" if standard else str(path)
    found = False
    with nullcontext(sys.stdin.buffer) if standard else files.open_file(Path(path), once=True) as stream:
        numbered = _bounded(files.lines(cast(BufferedIOBase, stream), where), where)
        for at, row in files.parse_json(numbered, where, "prompt"):
            check_line(row, at)
            found = True
            yield row
    if not found:
        raise DataError(f"{where} is empty; --input takes one JSON object a line")


def _bounded(numbered: Iterator[tuple[int, str]], where: str) -> Iterator[tuple[int, str]]:
    size = 0
    for number, line in numbered:
        size += len(line)
        if size > MAX_INPUT or number > MAX_TEXTS:
            raise DataError(
                f"{where} line {number}: --input takes at most {MAX_TEXTS:,} lines and {MAX_INPUT >> 20} MiB; write "
                "the texts in several calls"
            )
        yield number, line


def _check_prompts(prompted: bool | None, requests: Sequence[Request], file: str | None) -> None:
    """Refuse, or warn of, requests that are of another kind than what a model was trained on; see `check_prompted`."""
    given = [has_prompt(request) for request in requests]
    bare = sum(not has and request.infill is None for has, request in zip(given, requests, strict=True))
    if warning := check_prompted(prompted, sum(given), bare, len(requests), file):
        print(f"warning: {warning}", file=sys.stderr)


def _done(lm: Any, requests: Sequence[Request], settings: Any, batch_size: int) -> Iterator[tuple[int, Event, float]]:
    """Last events with the seconds after which they came, in order of the requests: some families sort theirs."""
    start, following, early = time.perf_counter(), 0, {}
    for event in lm.generate(requests, settings, batch_size=batch_size):
        if event.kind != "draft":
            early[event.index] = event, time.perf_counter() - start
        while following in early:
            yield following, *early.pop(following)
            following += 1


def _emerging(lm: Any, requests: Sequence[Request], settings: Any) -> Iterator[tuple[int, Event, float]]:
    """Each text emerges in place: undecided words as dots, the network call beside it."""
    start = time.perf_counter()
    for index, request in enumerate(requests):
        if request.prompt:
            print(f"\x1b[2m{request.prompt}\x1b[0m")
        for event in lm.generate([request], settings):
            if event.error is None:
                emerge(event.text or "·" * max(1, len(event.tokens)), event.nfe, event.kind == "done")
            if event.kind != "draft":
                yield index, event, time.perf_counter() - start


def emerge(text: str, nfe: int, done: bool) -> None:
    """Redraw the line of a text that is being written."""
    calls = f"  {nfe} calls"
    shown = WIPE + text if done else in_place(text, sys.stdout, beside=len(calls))
    print(f"{shown}\x1b[2m{calls}\x1b[0m", end="\n" if done else "", flush=True)
    if not done:
        time.sleep(0.06)  # long enough for an eye
