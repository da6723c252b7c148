"""A text asked for in a line of a file: the line checked, made a request, and told again with what became of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from manta.errors import DataError, RequestError, UsageError
from manta.families.events import Event, Request
from manta.families.options import GenerateOptions, read_options
from manta.runtime import MAX_SEED
from manta.text import files

OURS: Final = ("prompt", "infill", "edit", "seed", "options", "text", "nfe", "seconds", "error")
"""Keys that a line may not pass through: what is asked, and what is told."""


NO_PROMPTS: Final = (
    "the model was trained on texts without prompts, so it cannot answer one; leave it out, or let it go on from a "
    "beginning: --infill 'Once upon a time ___{40}'"
)
"""Why such a model refuses a prompt."""


def check_line(row: dict[str, Any], at: str) -> None:
    """Refuse a line that is no request, or that could not be written out again.

    Args:
        row: the line.
        at: where it stands.

    Raises:
        DataError: as said, with where it stands.
    """
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


def requests_of_line(row: Mapping[str, Any], i: int, num_samples: int, seed: int) -> Iterator[Request]:
    """The texts that a line asks for, without its options: they count over what may not be settled yet.

    Args:
        row: the line, checked.
        i: how many lines come before it.
        num_samples: texts for each line.
        seed: text j of a line without a seed of its own uses seed + i·num_samples + j, that of one with it, own + j.

    Raises:
        UsageError: a seed out of range, 0 … 2⁶³−1.
    """
    task = row.get("task") if isinstance(row.get("task"), str) else None  # anything else is somebody's own
    extra = {key: value for key, value in row.items() if key not in OURS and (key != "task" or task is None)}
    for j in range(num_samples):
        own = seed + i * num_samples + j if row.get("seed") is None else row["seed"] + j
        if not 0 <= own <= MAX_SEED:
            raise UsageError(f"a seed lies between 0 and {MAX_SEED}, received {own}")
        yield Request(prompt=row.get("prompt"), infill=to_fill(row), task=task, seed=own, extra=extra)


def for_model(request: Request, tasks: Sequence[str]) -> Request:
    """A line's request as a model takes it: to one without tasks a `task` is a key as any, and passes through.

    Args:
        request: of a line.
        tasks: of the model.
    """
    if tasks or request.task is None:
        return request
    return replace(request, task=None, extra={**request.extra, "task": request.task})


def options_of_line(row: Mapping[str, Any], settings: GenerateOptions) -> GenerateOptions | None:
    """How a line says that its texts are to be written, over the settings; None where it says nothing.

    Raises:
        UsageError: its options do not go together with the settings.
    """
    asked = row.get("options")
    return replace(settings, **asked) if asked else None


def to_fill(row: Mapping[str, Any]) -> str | None:
    """The text of a request that has blanks, or words to change: all of an edited text where it marks none."""
    text = row.get("edit")
    if text is None:
        return row.get("infill")
    return text if "[[" in text else f"[[{text}]]"


def told(request: Request, event: Event, seconds: float) -> dict[str, Any]:
    """What is told of a text, or of why there is none, as one line.

    Args:
        request: what was asked.
        event: its last.
        seconds: after which it came, s.
    """
    row = {**request.extra, "prompt": request.prompt}
    row |= {"text": event.text, "nfe": event.nfe} if event.error is None else {"error": str(event.error)}
    row |= {name: value for name in ("infill", "task") if (value := getattr(request, name)) is not None}
    return {**row, "seconds": round(seconds, 4), "seed": request.seed}


def check_prompted(prompted: bool | None, answered: int, bare: int, total: int, where: str | None) -> str | None:
    """Refuse requests that are of another kind than what a model was trained on.

    Args:
        prompted: whether the model was trained on prompts; None where it does not say.
        answered: requests with a prompt.
        bare: requests with neither a prompt nor a text to fill.
        total: all of them.
        where: the file that they come from; None for the command line.

    Returns:
        A warning, if one is due.

    Raises:
        RequestError: the model knows no prompts and is given one, or answers prompts and a file has none.
    """
    if prompted is False and answered:
        raise RequestError(NO_PROMPTS)
    if not prompted or not bare:
        return None
    if where is not None and bare == total:
        raise RequestError(
            f"the model answers prompts, and no line of {'standard input' if where == '-' else where} has a "
            "`prompt`; rename the key that holds it"
        )
    of = "no prompt is given" if where is None else f"{bare} of {total} texts have no `prompt`"
    return f"the model was trained to answer prompts, and {of}"


def has_prompt(request: Request) -> bool:
    """Whether a request has a prompt that says something."""
    return bool((request.prompt or "").strip())
