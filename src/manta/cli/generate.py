"""`manta generate [MODEL]`: write texts."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

from manta.cli.options import argument
from manta.cli.steering import check_steering, steer
from manta.cli.writing import parse_writing, run_elsewhere
from manta.errors import DataError, MantaError, RequestError, UsageError
from manta.families.events import Event, Request, counted
from manta.families.options import read_options

OURS = ("prompt", "infill", "edit", "seed", "options", "text", "nfe", "seconds", "error")
MAX_TEXTS = 1_000_000
"""Most texts of one call."""
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
    input: Path | None = None
    """A file of JSON lines with `prompt` and, if wanted, `infill` or `edit`, `seed` and `options` (such as
    {"num_steps": 16}, which count over the flags), or - for standard input; other keys pass through."""
    infill: str | None = None
    """A text with blanks to fill: `___` for up to 8 tokens, `___{n}` for up to n; or with `[[words]]` to change."""
    edit: str | None = None
    """A text to change, as far as --strength says: all of it, or the `[[words]]` that it marks."""
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
    check_steering(options, settings)
    counted(options.batch_size, "batch_size", 1)
    requests, asked = zip(*_requests(options), strict=True)
    from manta.hub import load_writer

    lm = load_writer(options.model or None, device=options.device)
    _check_prompts(lm.prompted, requests, options.input)
    settings = steer(lm, options, settings)
    own = [replace(settings, **given) if given else None for given in asked]
    requests = [replace(request, options=how) for request, how in zip(requests, own, strict=True)]
    lively = sys.stdout.isatty() and not options.json
    done = _emerging(lm, requests, settings) if lively else _done(lm, requests, settings, options.batch_size)
    failures = 0
    for index, event, seconds in done:
        if event.error is not None:
            failures += 1
            _report_failure(event.error, index, len(requests), options.json)
        if options.json:
            print(json.dumps(_row(requests[index], event, seconds), ensure_ascii=False), flush=True)
        elif event.error is None and not lively:
            print(event.text, flush=True)
    return int(failures > 0)


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
    """Each text to be written, and the options that its line asks for."""
    from manta.runtime import MAX_SEED

    lines: list[dict[str, Any]] = [{"prompt": options.prompt, "infill": options.infill, "edit": options.edit}]
    if options.input is not None:
        lines = list(read_lines(options.input))
    if len(lines) * options.num_samples > MAX_TEXTS:
        raise UsageError(
            f"{len(lines):,} requests with --num-samples {options.num_samples} are more than {MAX_TEXTS:,} texts; "
            "write them in several calls"
        )
    for i, line in enumerate(lines):
        extra = {key: value for key, value in line.items() if key not in OURS}
        for j in range(options.num_samples):
            seed = line.get("seed")
            seed = options.seed + i * options.num_samples + j if seed is None else seed + j
            if not 0 <= seed <= MAX_SEED:
                raise UsageError(f"a seed lies between 0 and {MAX_SEED}, received {seed}")
            request = Request(prompt=line.get("prompt"), infill=to_fill(line), seed=seed, extra=extra)
            yield request, line.get("options") or {}


def to_fill(line: Mapping[str, Any]) -> str | None:
    """The text of a request that has blanks, or words to change: all of an edited text where it marks none."""
    text = line.get("edit")
    if text is None:
        return line.get("infill")
    return text if "[[" in text else f"[[{text}]]"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Requests from a file of JSON lines, or from standard input for `-`, checked; errors name the line.

    Raises:
        DataError: the file is missing, empty or too large, or a line is no request.
    """
    from manta.text import files

    standard = str(path) == "-"
    where = "standard input" if standard else str(path)
    found = False
    with nullcontext(sys.stdin.buffer) if standard else files.open_file(path, once=True) as stream:
        numbered = _bounded(files.lines(cast(BufferedIOBase, stream), where), where)
        for at, row in files.parse_json(numbered, where, "prompt"):
            _check_line(row, at)
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


def _check_line(row: dict[str, Any], at: str) -> None:
    """Refuse a line of --input that is no request, or that could not be written out again."""
    from manta.text import files

    if row.get("infill") is not None and row.get("edit") is not None:
        raise DataError(f"{at}: `infill` and `edit` are two ways to ask; give one")
    for name in ("prompt", "infill", "edit"):
        files.check_key(row, name, at)
        if row.get(name) is not None:
            files.check_text(row[name], name, at)
    files.check_key(row, "options", at, dict)
    _check_asked(row.get("options"), at)
    seed = row.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise DataError(f"{at}: `seed` should be a whole number, received {json.dumps(seed)[:60]}")
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{at} holds half a surrogate pair, which is no Unicode text; write it whole") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at} holds NaN or Infinity, which are no JSON; write null") from error


def _check_asked(asked: Any, at: str) -> None:
    """Refuse options of a line that no family has, or that have values they cannot have."""
    if asked is None:
        return
    if not isinstance(asked, dict):
        raise DataError(f'{at}: `options` should be an object such as {{"num_steps": 16}}, received {str(asked)[:60]}')
    try:
        read_options(asked)
    except UsageError as error:
        raise DataError(f"{at}: {error}") from error


def _check_prompts(prompted: bool | None, requests: Sequence[Request], file: Path | None) -> None:
    """Refuse, or warn of, requests that are of another kind than what a model was trained on.

    Args:
        prompted: whether the model was trained on prompts; None where it does not say.
        requests: all of them.
        file: where they come from; None for the command line.

    Raises:
        RequestError: the model knows no prompts and is given one, or answers prompts and a file has none.
    """
    given = [bool((request.prompt or "").strip()) for request in requests]
    bare = sum(not has and request.infill is None for has, request in zip(given, requests, strict=True))
    if prompted is False and any(given):
        raise RequestError(
            "the model was trained on texts without prompts, so it cannot answer one; leave it out, or, unless the "
            "model is autoregressive, let it go on from a beginning: --infill 'Once upon a time ___{40}'"
        )
    if not prompted or not bare:
        return
    if file is not None and bare == len(requests):
        raise RequestError(
            f"the model answers prompts, and no line of {'standard input' if str(file) == '-' else file} has a "
            "`prompt`; rename the key that holds it"
        )
    of = "no prompt is given" if file is None else f"{bare} of {len(requests)} texts have no `prompt`"
    print(f"warning: the model was trained to answer prompts, and {of}", file=sys.stderr)


def _done(lm: Any, requests: Sequence[Request], settings: Any, batch_size: int) -> Iterator[tuple[int, Event, float]]:
    """Last events with the seconds after which they came, in order of the requests: some families sort theirs."""
    start, following, early = time.perf_counter(), 0, {}
    for event in lm.generate(requests, settings, batch_size=batch_size):
        if event.kind != "draft":
            early[event.index] = event, time.perf_counter() - start
        while following in early:
            yield following, *early.pop(following)
            following += 1


def _row(request: Request, event: Event, seconds: float) -> dict[str, Any]:
    """What --json tells of a text, or of why there is none."""
    row = {**request.extra, "prompt": request.prompt}
    row |= {"text": event.text, "nfe": event.nfe} if event.error is None else {"error": str(event.error)}
    if request.infill is not None:
        row["infill"] = request.infill
    return {**row, "seconds": round(seconds, 4), "seed": request.seed}


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
    import shutil

    width = max(20, shutil.get_terminal_size().columns - 12)
    shown = text if done or len(text) <= width else text[: width - 1] + "…"
    print(f"\r\x1b[K{shown}  \x1b[2m{nfe} calls\x1b[0m", end="\n" if done else "", flush=True)
    if not done:
        time.sleep(0.06)  # long enough for an eye
