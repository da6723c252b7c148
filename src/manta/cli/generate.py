"""`manta generate [MODEL]`: write texts."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

from manta.cli.options import argument, parse_options
from manta.cli.steering import check_steering, steer
from manta.errors import DataError, RequestError, UsageError
from manta.families.events import CacheKind, Confidence, DecoderName, SolverName, Style

OURS = ("prompt", "infill", "seed", "text", "nfe", "seconds")
MAX_TEXTS = 1_000_000
"""Most texts of one call."""
MAX_INPUT = 256 << 20
"""Most characters of all lines of --input, which are held in memory."""


@dataclass(frozen=True, kw_only=True)
class GenerateVerbOptions:
    """Write texts with a model; the one that ships if none is named."""

    model: str = argument("")
    """A model folder, a run folder of `manta train`, or a hub name."""
    prompt: str | None = None
    """What the text answers to."""
    input: Path | None = None
    """A file of JSON lines with `prompt` and, if wanted, `infill` and `seed`, or - for standard input; other keys pass
    through."""
    infill: str | None = None
    """A text with blanks to fill: `___` for up to 8 tokens, `___{n}` for up to n."""
    num_samples: int = 1
    """Texts for each request."""
    num_steps: int = 8
    """Budget of network calls for a text."""
    seed: int = 0
    """Sample j of request i uses seed + i·num_samples + j."""
    style: Style = "diverse"
    """`diverse` draws from the distribution of human texts, `consensus` seeks the most agreed-on one."""
    solver: SolverName = "euler"
    """How the flow is followed."""
    guidance_scale: float = 1.0
    """Manta-LM: strength of guiding the plan by the prompt; 1 is off, anything else takes two calls where one was."""
    noise_scale: float | None = None
    """Standard deviation of the initial noise; the style's own without it."""
    temperature: float = 0.0
    """Temperature of the words; 0 takes the most likely one."""
    target_entropy: float | None = None
    """Choose the temperature (and guidance) so that a text's words have this mean entropy, in nats; see --held-out."""
    escape_scale: float = 0.0
    """Manta-LM: how far what is fed back is moved away from repetition (ACE); 0 is off; see --held-out."""
    held_out: str | None = None
    """Data whose split dev --target-entropy and --escape-scale are measured on, named as for manta train."""
    top_k: int | None = None
    """Autoregressive models: sample from the k likeliest words."""
    top_p: float = 1.0
    """Autoregressive models: sample from the fewest words that make up this probability."""
    decoder: DecoderName = ""
    """Masked models: how words are committed; the model's own way without it."""
    confidence: Confidence = "probability"
    """Masked models: how sure the model is of a position."""
    threshold: float | None = None
    """Masked models: least confidence of a word that is committed beside the surest one."""
    block_length: int | None = None
    """Masked models: words of a block."""
    window_masked: int | None = None
    """Masked models, deferred: most masked words in the window."""
    window_width: int | None = None
    """Masked models, deferred: most positions in the window."""
    cache: CacheKind = "none"
    """Masked models: what is kept between calls."""
    refresh: int = 32
    """Masked models: words written between full calls when there is a cache."""
    flow_steps: int | None = None
    """Network calls for the flow, out of the budget; the model's own split without it."""
    rounds: int | None = None
    """Rounds of the outer loop (decode, re-encode, re-noise, integrate); masked models: of taking words back."""
    max_tokens: int | None = None
    """Autoregressive and published masked models (LLaDA, Dream): most tokens of a text."""
    batch_size: int = 64
    """Texts written at once; it does not change them."""
    json: bool = False
    """One JSON object a sample on stdout."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(GenerateVerbOptions, argv, "generate")
    if options.num_samples < 1:
        raise UsageError(f"--num-samples should be at least 1, received {options.num_samples}")
    if options.input is not None and (options.prompt is not None or options.infill is not None):
        raise UsageError("give --input, or --prompt and --infill, not both")
    check_steering(options)
    settings = _settings(options)
    requests = list(_requests(options))
    from manta.hub import load

    lm = load(options.model or None, device=options.device)
    _check_prompts(lm.prompted, requests, options.input)
    settings = steer(lm, options, settings)
    write = _write_json if options.json else _write_terminal if sys.stdout.isatty() else _write_lines
    write(lm, requests, settings)
    return 0


def _settings(options: GenerateVerbOptions):
    from manta.config import from_dict
    from manta.families.events import GenerateOptions

    names = ("num_steps", "style", "solver", "guidance_scale", "noise_scale", "temperature", "escape_scale")
    names += ("flow_steps", "rounds", "batch_size", "top_k", "top_p", "decoder", "confidence", "threshold")
    names += ("block_length", "window_masked", "window_width", "cache", "refresh", "max_tokens")
    return from_dict(GenerateOptions, {name: getattr(options, name) for name in names})


def _requests(options: GenerateVerbOptions) -> Iterator[Any]:
    from manta.families.events import Request
    from manta.runtime import MAX_SEED

    lines: list[dict[str, Any]] = [{"prompt": options.prompt, "infill": options.infill}]
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
            yield Request(prompt=line.get("prompt"), infill=line.get("infill"), seed=seed, extra=extra)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Requests from a file of JSON lines, or from standard input for `-`, checked; errors name the line.

    Raises:
        DataError: the file is missing, empty or too large, or a line is no request.
    """
    from manta.data import files

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
    from manta.data import files

    for name in ("prompt", "infill"):
        files.check_key(row, name, at)
        if row.get(name) is not None:
            files.check_text(row[name], name, at)
    seed = row.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise DataError(f"{at}: `seed` should be a whole number, received {json.dumps(seed)[:60]}")
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{at} holds half a surrogate pair, which is no Unicode text; write it whole") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at} holds NaN or Infinity, which are no JSON; write null") from error


def _check_prompts(prompted: bool | None, requests: list[Any], file: Path | None) -> None:
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
            f"the model answers prompts, and no line of {file} has a `prompt`; rename the key that holds it"
        )
    of = "no prompt is given" if file is None else f"{bare} of {len(requests)} texts have no `prompt`"
    print(f"warning: the model was trained to answer prompts, and {of}", file=sys.stderr)


def _done(lm: Any, requests: list[Any], settings: Any) -> Iterator[tuple[Any, Any, float]]:
    """Finished texts with the seconds after which they came, in order of the requests: some families sort theirs."""
    start, following, early = time.perf_counter(), 0, {}
    for event in lm.generate(requests, settings):
        if event.kind == "done":
            early[event.index] = event, time.perf_counter() - start
        while following in early:
            yield requests[following], *early.pop(following)
            following += 1


def _write_json(lm: Any, requests: list[Any], settings: Any) -> None:
    for request, event, seconds in _done(lm, requests, settings):
        row = {**request.extra, "prompt": request.prompt, "text": event.text, "nfe": event.nfe}
        if request.infill is not None:
            row["infill"] = request.infill
        print(json.dumps({**row, "seconds": round(seconds, 4), "seed": request.seed}, ensure_ascii=False), flush=True)


def _write_lines(lm: Any, requests: list[Any], settings: Any) -> None:
    for _, event, _ in _done(lm, requests, settings):
        print(event.text, flush=True)


def _write_terminal(lm: Any, requests: list[Any], settings: Any) -> None:
    """The text emerges in place: undecided words as dots, the network call beside it."""
    from dataclasses import replace

    for request in requests:
        if request.prompt:
            print(f"\x1b[2m{request.prompt}\x1b[0m")
        for event in lm.generate([request], replace(settings, batch_size=1)):
            emerge(event.text if event.text else "·" * max(1, len(event.tokens)), event.nfe, event.kind == "done")


def emerge(text: str, nfe: int, done: bool) -> None:
    """Redraw the line of a text that is being written."""
    import shutil

    width = max(20, shutil.get_terminal_size().columns - 12)
    shown = text if done or len(text) <= width else text[: width - 1] + "…"
    print(f"\r\x1b[K{shown}  \x1b[2m{nfe} calls\x1b[0m", end="\n" if done else "", flush=True)
    if not done:
        time.sleep(0.06)  # long enough for an eye
