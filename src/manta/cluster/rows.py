"""The lines of all input files, one after the other, and the copies of them that each part is written from."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from manta.errors import DataError
from manta.text import files
from manta.text.places import Place
from manta.text.tables import PARQUET, read_table

KINDS: Final = (".jsonl", PARQUET)
"""Files that hold requests."""


@dataclass(frozen=True)
class Line:
    """One line of the input."""

    at: str
    """Where it stands."""
    text: str
    """A JSON object; of a Parquet file, its row as such."""
    fault: str | None = None
    """Why it is none."""


@dataclass(frozen=True)
class Staged:
    """What was read of the input."""

    rows: int
    """Lines."""
    digest: str
    """Of all lines, in their order."""
    answered: int
    """Lines with a prompt."""
    bare: int
    """Lines with neither a prompt nor a text to fill."""


def lines_of(place: Place) -> Iterator[Line]:
    """The lines of a file, also those that are no text; blank ones are none.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    with place.opened() as stream:
        if place.kind == PARQUET:
            for i, row in enumerate(read_table(stream, place.name)):
                yield _of_row(row, f"{place.name} row {i + 1}")
            return
        for number, offset, raw in files.raw_lines(stream, place.name):
            at = f"{place.name} line {number}"
            try:
                text = files.line_of(raw, number, offset, place.name)
            except DataError as error:
                yield Line(at, raw.decode("utf-8", "replace"), str(error))
                continue
            if text.strip():
                yield Line(at, text)


def _of_row(row: dict[str, Any], at: str) -> Line:
    """A row of a table as a line; an option that is null there is one that is not given."""
    if isinstance(row.get("options"), dict):
        row = {**row, "options": {name: value for name, value in row["options"].items() if value is not None}}
    try:
        return Line(at, json.dumps(row))
    except (TypeError, ValueError) as error:
        return Line(at, str(row), f"{at} holds what is no JSON: {error}; write it as a text")


def stage(places: list[Place], folder: Path, part_rows: int, finished: set[int]) -> Staged:
    """Copy the lines of each part into a file of its own.

    What is copied is what was hashed, whatever becomes of the input; a part can be read by itself, however the input
    is packed; and whoever writes it needs no way to where the input lies.

    Args:
        places: the input.
        folder: for the copies; what is in it is removed.
        part_rows: lines of each part.
        finished: parts that need no copy.

    Raises:
        DataError: a file cannot be read, or there is no line at all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    digest, rows, answered, bare = blake2b(digest_size=16), 0, 0, 0
    part: list[str] = []
    for line in (line for place in places for line in lines_of(place)):
        digest.update(json.dumps([line.text, line.fault is None]).encode())
        if rows // part_rows not in finished:
            has, lacks = _kind_of(line)
            answered, bare = answered + has, bare + lacks
            part.append(json.dumps([line.at, line.text, line.fault]) + "\n")
        rows += 1
        if rows % part_rows == 0:
            _keep(folder, rows // part_rows - 1, part)
            part = []
    _keep(folder, rows // part_rows, part)
    if not rows:
        raise DataError(f"{places[0].name} is empty; --input takes one JSON object a line")
    return Staged(rows, digest.hexdigest(), answered, bare)


def staged(folder: Path, part: int) -> list[Line]:
    """The lines of a part."""
    with copy_of(folder, part).open(encoding="utf-8") as stream:
        return [Line(*json.loads(line)) for line in stream]


def _keep(folder: Path, part: int, lines: list[str]) -> None:
    if lines:
        copy_of(folder, part).write_text("".join(lines), encoding="utf-8")


def copy_of(folder: Path, part: int) -> Path:
    """The file with the lines of a part."""
    return folder / f"lines-{part:08d}.jsonl"


def _kind_of(line: Line) -> tuple[bool, bool]:
    """Whether a line has a prompt, and whether it has nothing that it asks about; a broken one is neither."""
    try:
        row = files.parse_record(line.text, line.at)
    except DataError:
        return False, False
    prompt = row.get("prompt")
    has = bool(isinstance(prompt, str) and prompt.strip())
    return has, not has and row.get("infill") is None and row.get("edit") is None
