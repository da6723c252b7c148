"""Data sets of the hub, or folders in their layout, streamed: a row at a time is held, however many there are."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from manta.errors import DataError, UsageError
from manta.text import files
from manta.text.example import Example

SPLITS_OF = {"train": ("train",), "dev": ("validation", "dev", "valid"), "test": ("test",)}
"""What others call our splits."""
KINDS = ("parquet", "json", "csv", "text", "arrow", "xml")
"""Kinds of files that hold rows; others hold pictures and sounds, or pickles, which can run code when they are read."""
FIELDS = ("text", "prompt")


@dataclass(frozen=True)
class HubData:
    """A data set as it is named: `NAME[:CONFIG][?text=COLUMN&prompt=COLUMN]`."""

    name: str
    """The whole of it, for messages."""
    source: str
    """Name on the hub, or a folder."""
    config: str | None
    """Which part of the data set; None for its only one."""
    columns: Mapping[str, str]
    """From our fields to the columns that hold them."""

    @classmethod
    def named(cls, name: str) -> "HubData":
        """Read a name.

        Raises:
            UsageError: it names a field that there is none of, or an empty column.
        """
        where, _, columns = name.partition("?")
        source, _, config = where.partition(":")
        found = dict(parse_qsl(columns, keep_blank_values=True))
        if wrong := [field for field, column in found.items() if field not in FIELDS or not column]:
            raise UsageError(
                f"hf:{name} says which column holds {wrong[0]!r}; write hf:NAME?text=COLUMN or "
                "hf:NAME?text=COLUMN&prompt=COLUMN"
            )
        if columns and "text" not in found:
            raise UsageError(f"hf:{name} says which column holds the prompt, and not the text; add text=COLUMN")
        return cls(name, source, config or None, found)

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one of this machine."""
        folder = files.expanded(self.source)
        return folder if folder.is_dir() else None


def opened(data: HubData, split: str) -> tuple[Iterator[Example], bool]:
    """Its rows, and whether they are of the split: without three official ones, all rows are those of `train`.

    Args:
        data: which.
        split: "train", "dev" or "test".

    Raises:
        DataError: there is no such data set, or it holds no rows of text, or `datasets` is not installed.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f'hf:{data.name} needs `datasets`; install it with: pip install "manta[hf]"') from error
    source = str(data.folder or data.source)
    with _told(data):
        found = datasets.get_dataset_split_names(source, data.config)
        official = {ours: next((name for name in names if name in found), None) for ours, names in SPLITS_OF.items()}
        if official["train"] is None:
            raise DataError(f"hf:{data.name} has no split `train` but {', '.join(found)}; choose another data set")
        complete = all(official.values())
        builder = datasets.load_dataset_builder(source, data.config)
        if builder.name not in KINDS:
            raise DataError(
                f"hf:{data.name} holds files of the kind {builder.name}; manta reads rows of {', '.join(KINDS)}"
            )
        rows: Any = builder.as_streaming_dataset(split=official[split if complete else "train"])
    return _examples(rows, data), complete


def _examples(rows: Iterable[Mapping[str, Any]], data: HubData) -> Iterator[Example]:
    numbered, number = iter(rows), 0
    while True:
        with _told(data):
            row = next(numbered, None)
        if row is None:
            return
        number += 1
        yield files.to_example(_renamed(row, data), f"hf:{data.name} row {number}")


def _renamed(row: Mapping[str, Any], data: HubData) -> dict[str, Any]:
    """A row with our fields.

    Raises:
        DataError: it lacks a column.
    """
    wanted = data.columns or {"text": "text"}
    if absent := [column for column in wanted.values() if column not in row]:
        raise DataError(
            f"hf:{data.name} has no column {absent[0]!r}; its columns are {', '.join(row)}; say which to learn: "
            f"hf:{data.name.partition('?')[0]}?text=COLUMN, or ?text=COLUMN&prompt=COLUMN"
        )
    if not data.columns:
        return dict(row)
    taken = {*data.columns.values(), *FIELDS}
    return {
        **{ours: row[theirs] for ours, theirs in data.columns.items()},
        **{name: value for name, value in row.items() if name not in taken},
    }


@contextmanager
def _told(data: HubData) -> Iterator[None]:
    """Whatever the library or the network makes of a data set, in one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each kind of file raises errors of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"hf:{data.name} cannot be read: {reason}; check the name and the connection") from error
