"""Reading text files line by line, in bounded memory, with errors that name the file and the line."""

import csv
import difflib
import json
import lzma
import os
import stat
import statistics
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedIOBase, BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import Any

from manta.errors import DataError
from manta.text.example import Example
from manta.text.packed import PACKED, Unpacked

MAX_LINE = 16 << 20
"""Longest line, paragraph or CSV row read, in bytes: one example has to fit in memory many times over."""
HEAD = 64 << 10
"""Bytes of a .txt file from which its layout is decided."""
CHUNK = 256 << 10
"""Bytes read at once."""
MAX_FILES = 20_000
"""Most files and folders of a folder in which data is looked for."""
SEPARATORS = ",;\t"
"""What separates the fields of a `.csv` file: the first of these that its header holds."""
DAMAGED = (
    *(OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, lzma.LZMAError),
    *(zipfile.BadZipFile, tarfile.TarError),
)
"""What the readers of packed files raise at damaged bytes, encryption and methods that they do not know."""


def open_file(path: Path, *, once: bool = False, unpack: bool = True) -> BufferedIOBase:
    """Opens a file for reading, unpacking `.xz`, `.gz` and `.bz2`.

    Args:
        path: what to open.
        once: it is read only once, so that it may be a pipe or another stream; otherwise it has to be a file.
        unpack: False leaves a packed file packed, for what reads archives.

    Raises:
        DataError: the file is missing, a folder, empty, a pipe or a device, or not readable.
    """
    try:
        if not path.exists():
            raise DataError(
                f"{path} does not exist; give a .txt, .jsonl or .csv file, or a name such as builtin:weather"
            )
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise DataError(f"{path} is a folder, not a file; name a .txt, .jsonl or .csv file in it")
        if not stat.S_ISREG(found.st_mode) and not once:
            raise DataError(
                f"{path} is a pipe or a device, and data is read more than once; write it to a file first, for "
                "instance with `cat`"
            )
        if stat.S_ISREG(found.st_mode) and found.st_size == 0:
            raise DataError(f"{path} is empty; it needs at least one example")
        unpacker = PACKED.get(path.suffix.lower()) if unpack else None
        stream = path.open("rb")
        return BufferedReader(Unpacked(stream, unpacker), CHUNK) if unpacker else stream
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}; check its name and permissions") from error


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` replaced by the home folder.

    Raises:
        DataError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {error}; write the path out") from error


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False for one that cannot be, such as one that is too long."""
    return os.path.isdir(path)  # unlike Path.is_dir it never raises


def files_in(folder: Path) -> Iterator[Path]:
    """The files of a folder and the folders in it, sorted; links are not followed.

    Raises:
        DataError: there are more than `MAX_FILES`, as in a folder named by mistake.
    """
    seen = 0
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        seen += len(folders) + len(names)
        if seen > MAX_FILES:
            raise DataError(f"{folder} holds more than {MAX_FILES:,} files; name the folder of the data itself")
        found += [Path(place, name) for name in names]
    yield from sorted(found)


def kind_of(path: Path) -> str:
    """The ending of a file's name that tells what it holds, in lower case: `.jsonl` of `A.JSONL` and `a.jsonl.gz`."""
    return (path.with_suffix("") if path.suffix.lower() in PACKED else path).suffix.lower()


def head_of(stream: BufferedIOBase, where: str) -> bytes:
    """The first `HEAD` bytes of a stream; give them to `lines`, since a pipe cannot be read again.

    Raises:
        DataError: a corrupt packed stream.
    """
    return _read(stream, HEAD, f"{where} line 1")


def lines(stream: BufferedIOBase, where: str, head: bytes = b"") -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 stream, without their ends (`\\n`, `\\r\\n` or `\\r`) and without a byte-order mark.

    Args:
        stream: bytes.
        where: what errors call the stream.
        head: what was read of it before.

    Yields:
        The line number, from 1, and the line.

    Raises:
        DataError: NUL bytes, bytes that are not UTF-8 (with their offset), a line longer than `MAX_LINE`, or a
            corrupt packed stream.
    """
    for number, offset, raw in raw_lines(stream, where, head):
        yield number, line_of(raw, number, offset, where)


def raw_lines(stream: BufferedIOBase, where: str, head: bytes = b"") -> Iterator[tuple[int, int, bytes]]:
    """The lines of a stream as bytes with their ends, for who goes on after one that is no text; see `lines`.

    Yields:
        The line number, from 1, how many bytes come before it, and the bytes; `line_of` makes a text of them.

    Raises:
        DataError: UTF-16, a line longer than `MAX_LINE`, or a corrupt packed stream.
    """
    offset = 0
    for number, raw in enumerate(_cut(stream, where, head), 1):
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{where} is UTF-16, not UTF-8; convert it, for instance with `iconv -f UTF-16 -t UTF-8`")
        if len(raw) > MAX_LINE:
            raise DataError(f"{where} line {number} is longer than {MAX_LINE >> 20} MiB; break it into shorter lines")
        yield number, offset, raw
        offset += len(raw)


def line_of(raw: bytes, number: int, offset: int, where: str) -> str:
    """A line of `raw_lines` as text, without its end and without a byte-order mark.

    Raises:
        DataError: NUL bytes, or bytes that are not UTF-8.
    """
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(f"{where} line {number} holds a NUL byte at offset {offset + nul}: this is not a text file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} line {number} is not UTF-8 at byte offset {offset + error.start} "
            f"(0x{raw[error.start]:02x}); convert it, for instance with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    return text.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else "")


def _cut(stream: BufferedIOBase, where: str, head: bytes) -> Iterator[bytes]:
    """Lines with their ends; the last one that is yielded may be longer than `MAX_LINE`, and then it is a part."""
    rest, number = head, 1
    while chunk := _read(stream, CHUNK, f"{where} line {number}"):
        # The last line goes on in the next chunk, and so may its end: "\r" there, "\n" here.
        *whole, rest = (rest + chunk).splitlines(keepends=True)
        yield from whole
        number += len(whole)
        if len(rest) > MAX_LINE:
            break
    yield from rest.splitlines(keepends=True)


def _read(stream: BufferedIOBase, size: int, at: str) -> bytes:
    try:
        return stream.read(size)
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise DataError(f"{at} cannot be read: {reason}; the file is damaged, fetch it again") from error


def has_paragraphs(head: str) -> bool:
    """Whether blank lines separate paragraphs of several lines, judged from the head of a file.

    True when at least two blocks stand between blank lines and the median block has 2 to 50 lines. A stray blank line
    in a file of one example a line makes blocks of hundreds of lines, and blank lines between single lines make blocks
    of one: both are read as one example a line.
    """
    blocks, size = [], 0
    for line in head.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
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
        head = head_of(stream, str(path))
        numbered = lines(stream, str(path), head)
        paragraphs = has_paragraphs(head.decode("utf-8", errors="replace"))
        texts = _paragraphs(numbered, str(path)) if paragraphs else (line.strip() for _, line in numbered)
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


def read_records(path: Path, columns: Iterable[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a `.jsonl`, `.csv` or (separated by tabs) `.tsv` file, whatever their fields; read only once.

    Args:
        path: a file, or a pipe, whose records are JSON lines unless its name ends otherwise.
        columns: those that the header of a CSV file has to name.

    Yields:
        Where the record stands ("FILE line 3"), for later errors, and the record.

    Raises:
        DataError: a line that is not a JSON object, a header that lacks a column, or a CSV row that does not fit it.
    """
    kind, where = kind_of(path), str(path)
    with open_file(path, once=True) as stream:
        numbered = lines(stream, where)
        if kind == ".tsv":
            first = list(islice(numbered, 2))
            yield from parse_csv(chain(first, numbered), where, columns, separator="\t", quote=_quote(first[1:]))
        elif kind == ".csv":
            yield from parse_csv(numbered, where, columns)
        else:
            yield from parse_json(numbered, where)


def _quote(second: list[tuple[int, str]]) -> str:
    """The quotes of a file: single ones where its second line begins and ends with them."""
    return "'" if second and second[0][1].startswith("'") and second[0][1].endswith("'") else '"'


def parse_json(
    numbered: Iterable[tuple[int, str]], where: str, shown: str = "text"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of numbered lines that are a JSON object each, with where they stand; blank lines are none.

    Args:
        numbered: lines with their numbers.
        where: what errors call their source.
        shown: a key that errors show.

    Raises:
        DataError: a line that is no JSON object, or in which an object has a key twice.
    """
    for number, line in numbered:
        if line.strip():
            at = f"{where} line {number}"
            yield at, parse_record(line, at, shown)


def parse_record(line: str, at: str, shown: str = "text") -> dict[str, Any]:
    """The record of a line that is a JSON object.

    Args:
        line: of a file.
        at: where it stands.
        shown: a key that errors show.

    Raises:
        DataError: it is no JSON object, or an object in it has a key twice.
    """
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(
            f'{at} is not JSON: {reason}; each line must be one object such as {{"{shown}": "…"}}'
        ) from error
    if not isinstance(record, dict):
        raise DataError(f'{at} is a JSON {_kind(record)}, not an object; write it as {{"{shown}": …}}')
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {_shortened(repr(twice))} stands there twice")
    return found


def parse_csv(
    numbered: Iterable[tuple[int, str]],
    where: str,
    columns: Iterable[str] = (),
    *,
    separator: str = SEPARATORS,
    quote: str = '"',
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of numbered CSV lines, keyed by the header row, each with where it stands.

    Args:
        numbered: lines with their numbers.
        where: what errors call their source.
        columns: those that the header has to name.
        separator: between fields; of several the first that the header holds.
        quote: around fields that hold separators, quotes or line ends.

    Raises:
        DataError: a row that does not fit the header or is longer than `MAX_LINE`, a column missing or named twice, or
            broken quotes.
    """
    csv.field_size_limit(max(MAX_LINE, csv.field_size_limit()))  # the bound is the row's, below
    begin = size = 0

    def counted(numbered: Iterable[tuple[int, str]]) -> Iterator[str]:
        nonlocal begin, size
        for number, line in numbered:
            begin = begin or number
            size += len(line)
            if size > MAX_LINE:
                raise DataError(
                    f"{where} line {begin}: a row is longer than {MAX_LINE >> 20} MiB; close its quotes, or shorten it"
                )
            yield line + "\n"

    numbered = iter(numbered)
    first = list(islice((row for row in numbered if row[1].strip()), 1))
    used = next((mark for mark in separator if first and mark in first[0][1]), separator[0])
    rows = csv.reader(counted(chain(first, numbered)), delimiter=used, quotechar=quote, strict=True)
    header: list[str] | None = None
    while True:
        begin = size = 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{where} line {begin} is not valid CSV: {error}; quote fields that hold commas, quotes or line ends"
            ) from error
        at = f"{where} line {begin}"
        if not any(row):
            continue
        if header is None:
            header = [name.strip() for name in row]
            _check_header(header, columns, at)
        elif len(row) != len(header):
            raise DataError(
                f"{at} has {len(row)} fields where the header has {len(header)}; quote fields that hold commas"
            )
        else:
            yield at, dict(zip(header, row, strict=True))


def _check_header(names: list[str], columns: Iterable[str], at: str) -> None:
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{at} is no header with a column {_listed(missing)}; it reads: {_shortened(', '.join(names))}; "
            "begin the file with a row such as: prompt,text"
        )
    if len(set(names)) < len(names):
        raise DataError(f"{at}: the header names a column twice ({_listed(names)}); rename one")


def to_example(record: Mapping[str, Any], where: str) -> Example:
    """Turns a record into an example: `text`, an optional `prompt`, a `task` that is a word, with what the row is to be
    `split_by`, and all else as `extra`.

    Raises:
        DataError: `text` is missing, a field is not a string or not text, or the name of another field looks like a
            slip of `prompt`.
    """
    if "text" not in record:
        raise DataError(
            f"{where} has no field `text`; its fields are {_listed(record) or 'none'}; rename the one to learn"
        )
    check_key(record, "prompt", where)
    for name in ("text", "prompt"):
        if name == "text" or record.get(name) is not None:
            check_text(record[name], name, where)
    task = record.get("task")
    task = task if isinstance(task, str) else None  # numbers of somebody's own are no words
    if task is not None:
        check_text(task, "task", where)
    split_by = record.get("split_by") if task is not None else None
    if split_by is not None:
        check_text(split_by, "split_by", where)
    taken = ("text", "prompt") if task is None else ("text", "prompt", "task", "split_by")
    extra = {key: value for key, value in record.items() if key not in taken}
    return Example(record["text"], record.get("prompt"), task=task, split_by=split_by, extra=extra)


def check_text(value: Any, name: str, where: str) -> None:
    """Refuses a value that is no text.

    Args:
        value: of a field.
        name: of the field.
        where: where its record stands.

    Raises:
        DataError: it is no string, or holds half a surrogate pair or a NUL.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` is a {_kind(value)}, not a string; quote it or join it into one string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: `{name}` holds half a surrogate pair at character {error.start}, which is no Unicode text; "
            "write the character whole"
        ) from error
    if (nul := value.find("\0")) >= 0:
        raise DataError(f"{where}: `{name}` holds a NUL at character {nul}, which is no text; leave it out")


def check_key(record: Mapping[str, Any], name: str, where: str, kind: type = str) -> None:
    """Refuses a record without a field that has one whose name looks like a slip of it, such as `promt`.

    Args:
        record: with any fields.
        name: of a field that may be left out, such as `prompt`.
        where: where the record stands.
        kind: what it would hold.

    Raises:
        DataError: as said; without this the record would be read as if it had none.
    """
    alike = {key.strip().lower(): key for key, value in record.items() if isinstance(value, kind)}
    if name not in record and (close := difflib.get_close_matches(name, alike, n=1, cutoff=0.82)):
        raise DataError(
            f"{where} has no field `{name}` but `{alike[close[0]]}`; rename it to `{name}`, or to something unlike it "
            "if it is none"
        )


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _listed(names: Iterable[str]) -> str:
    return _shortened(", ".join(f"`{name}`" for name in names))


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "…"
