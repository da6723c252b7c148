"""Reading text files line by line, in bounded memory, with errors that name the file and the line."""

import csv
import json
import lzma
import statistics
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any

from manta.data.example import Example
from manta.errors import DataError

MAX_LINE = 16 << 20
"""Longest line or paragraph read, in bytes: one example has to fit in memory many times over."""
HEAD = 64 << 10
"""Bytes of a .txt file from which its layout is decided."""


def open_file(path: Path) -> BufferedIOBase:
    """Opens a file for reading, decompressing `.xz`.

    Raises:
        DataError: the file is missing, a folder, empty, or not readable.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder, not a file; name a .txt, .jsonl or .csv file in it")
        if not path.exists():
            raise DataError(
                f"{path} does not exist; give a .txt, .jsonl or .csv file, or a name such as builtin:weather"
            )
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"{path} is empty; it needs at least one example")
        return lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check its name and permissions") from error


def lines(stream: BufferedIOBase, where: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 stream, without their ends (`\\n` or `\\r\\n`) and without a byte-order mark.

    Args:
        stream: bytes.
        where: what errors call the stream.

    Yields:
        The line number, from 1, and the line.

    Raises:
        DataError: NUL bytes, bytes that are not UTF-8 (with their offset), a line longer than `MAX_LINE`, or a
            corrupt compressed stream.
    """
    offset = number = 0
    while True:
        number += 1
        try:
            raw = stream.readline(MAX_LINE + 1)
        except (lzma.LZMAError, EOFError, OSError) as error:
            raise DataError(
                f"{where} line {number} cannot be read: {error}; the file is damaged, fetch it again"
            ) from error
        if not raw:
            return
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{where} is UTF-16, not UTF-8; convert it, for instance with `iconv -f UTF-16 -t UTF-8`")
        if len(raw) > MAX_LINE:
            raise DataError(f"{where} line {number} is longer than {MAX_LINE >> 20} MiB; break it into shorter lines")
        if (nul := raw.find(b"\0")) >= 0:
            raise DataError(f"{where} line {number} holds a NUL byte at offset {offset + nul}: this is not a text file")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where} line {number} is not UTF-8 at byte offset {offset + error.start} "
                f"(0x{raw[error.start]:02x}); convert it, for instance with `iconv -f LATIN1 -t UTF-8`"
            ) from error
        offset += len(raw)
        yield number, text.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff" if number == 1 else "")


def has_paragraphs(head: str) -> bool:
    """Whether blank lines separate paragraphs of several lines, judged from the head of a file.

    True when at least two blocks stand between blank lines and the median block has 2 to 50 lines. A stray blank line
    in a file of one example a line makes blocks of hundreds of lines, and blank lines between single lines make blocks
    of one: both are read as one example a line.
    """
    blocks, size = [], 0
    for line in head.split("\n"):
        if line.strip():
            size += 1
        elif size:
            blocks.append(size)
            size = 0
    if size:
        blocks.append(size)
    return len(blocks) >= 2 and 2 <= statistics.median(blocks) <= 50


def read_txt(path: Path) -> Iterator[Example]:
    """The examples of a text file: its paragraphs if `has_paragraphs` says so of its head, else its lines.

    White space around an example is dropped, and so are blank examples; lines of a paragraph stay lines.
    """
    with open_file(path) as stream:
        head = stream.read(HEAD).decode("utf-8", errors="replace")
    with open_file(path) as stream:
        numbered = lines(stream, str(path))
        texts = _paragraphs(numbered, str(path)) if has_paragraphs(head) else (line.strip() for _, line in numbered)
        yield from (Example(text) for text in texts if text)


def _paragraphs(numbered: Iterable[tuple[int, str]], where: str) -> Iterator[str]:
    block: list[str] = []
    size = 0
    for number, line in numbered:
        if line.strip():
            block.append(line)
            size += len(line)
            if size > MAX_LINE:
                raise DataError(
                    f"{where} line {number}: a paragraph is longer than {MAX_LINE >> 20} MiB; break it by blank lines"
                )
        elif block:
            yield "\n".join(block).strip()
            block, size = [], 0
    if block:
        yield "\n".join(block).strip()


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a `.jsonl`, `.csv` or (separated by tabs) `.tsv` file, whatever their fields.

    Yields:
        Where the record stands ("FILE line 3"), for later errors, and the record.

    Raises:
        DataError: a line that is not a JSON object, or a CSV row that does not fit its header.
    """
    with open_file(path) as stream:
        numbered = lines(stream, str(path))
        if path.suffix.lower() == ".tsv":
            yield from parse_csv(numbered, str(path), separator="\t", quote=_quote(path))
        else:
            yield from (parse_csv if path.suffix.lower() == ".csv" else parse_json)(numbered, str(path))


def _quote(path: Path) -> str:
    """The quotes of a file: single ones where its second line begins and ends with them."""
    with open_file(path) as stream:
        second = [line for _, line in islice(lines(stream, str(path)), 2)][1:]
    return "'" if second and second[0].startswith("'") and second[0].endswith("'") else '"'


def parse_json(numbered: Iterable[tuple[int, str]], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of numbered lines that are a JSON object each, with where they stand; blank lines are none.

    Raises:
        DataError: a line that is no JSON object.
    """
    for number, line in numbered:
        if not line.strip():
            continue
        at = f"{where} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f'{at} is not JSON: {reason}; each line must be one object such as {{"text": "…"}}'
            ) from error
        if not isinstance(record, dict):
            raise DataError(f'{at} is a JSON {_kind(record)}, not an object; write it as {{"text": …}}')
        yield at, record


def parse_csv(
    numbered: Iterable[tuple[int, str]], where: str, *, separator: str = ",", quote: str = '"'
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of numbered CSV lines, keyed by the header row, each with where it stands.

    Raises:
        DataError: a row that does not fit the header, a column named twice, or broken quotes.
    """
    rows = csv.reader((line + "\n" for _, line in numbered), delimiter=separator, quotechar=quote, strict=True)
    header: list[str] | None = None
    while True:
        at = f"{where} line {rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{at} is not valid CSV: {error}; quote fields that hold commas, quotes or line ends"
            ) from error
        if not any(row):
            continue
        if header is None:
            header = [name.strip() for name in row]
            if len(set(header)) < len(header):
                raise DataError(f"{at}: the header names a column twice ({_listed(header)}); rename one")
        elif len(row) != len(header):
            raise DataError(
                f"{at} has {len(row)} fields where the header has {len(header)}; quote fields that hold commas"
            )
        else:
            yield at, dict(zip(header, row, strict=True))


def check_csv_header(path: Path, fields: Iterable[str]) -> None:
    """Refuses a CSV file whose first row does not name the given columns.

    Raises:
        DataError: the header is missing or lacks a column.
    """
    with open_file(path) as stream:
        row = next(csv.reader(line + "\n" for _, line in lines(stream, str(path)) if line.strip()), [])
    names = [name.strip() for name in row]
    if missing := [name for name in fields if name not in names]:
        raise DataError(
            f"{path} line 1 is no header with a column {_listed(missing)}; it reads: {_shortened(', '.join(names))}; "
            "begin the file with a row such as: prompt,text"
        )


def to_example(record: Mapping[str, Any], where: str) -> Example:
    """Turns a record into an example: `text`, an optional `prompt`, and everything else as `extra`.

    Raises:
        DataError: `text` is missing, or a field is not a string or not valid Unicode.
    """
    if "text" not in record:
        raise DataError(
            f"{where} has no field `text`; its fields are {_listed(record) or 'none'}; rename the one to learn"
        )
    for name in ("text", "prompt"):
        value = record.get(name)
        if value is None and name == "prompt":
            continue
        if not isinstance(value, str):
            raise DataError(f"{where}: `{name}` is a {_kind(value)}, not a string; quote it or join it into one string")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: `{name}` holds half a surrogate pair at character {error.start}, which is no Unicode text; "
                "write the character whole"
            ) from error
    extra = {key: value for key, value in record.items() if key not in ("text", "prompt")}
    return Example(record["text"], record.get("prompt"), extra=extra)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _listed(names: Iterable[str]) -> str:
    return _shortened(", ".join(f"`{name}`" for name in names))


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "…"
