"""Files that may lie anywhere: one, those of a folder, or those that a URL names, in a fixed order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any, Final

from manta.errors import DataError
from manta.text import files
from manta.text.packed import PACKED, Unpacked
from manta.text.tables import PARQUET

APART: Final = (".", "_")
"""What the names of files and folders begin with that belong to a folder and are no data of it."""


@dataclass(frozen=True)
class Place:
    """A file, wherever it lies."""

    name: str
    """As errors call it."""
    system: Any = field(repr=False)
    """The fsspec file system that it lies in."""
    path: str
    """Its name there."""

    @property
    def kind(self) -> str:
        """The ending that tells what it holds, in lower case: `.jsonl` of `a.jsonl.gz`."""
        return files.kind_of(Path(self.path))

    @contextmanager
    def opened(self) -> Iterator[BufferedIOBase]:
        """The file for reading, unpacked.

        Raises:
            DataError: it cannot be read.
        """
        unpacker = PACKED.get(Path(self.path).suffix.lower())
        try:
            stream = self.system.open(self.path, "rb")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name} cannot be read ({_reason(error)}); check its name and permissions") from error
        with stream:
            found = BufferedReader(stream, files.CHUNK)
            yield BufferedReader(Unpacked(found, unpacker), files.CHUNK) if unpacker else found


def find_places(source: str | Path, kinds: Sequence[str]) -> list[Place]:
    """The files that a path or a URL names: itself, or all of those kinds in a folder and the folders in it.

    They are sorted by their path, folder by folder, so that the order is the same everywhere. Names that begin with a
    dot or an underscore are left out, as what belongs to a folder itself.

    Args:
        source: a path, or a URL that fsspec knows, such as `s3://bucket/folder` or `memory://file.jsonl`.
        kinds: endings of file names, such as `.jsonl`; packed ones (`.jsonl.gz`) count.

    Raises:
        DataError: nothing is there, a folder holds no such file, a file is of another kind, or what speaks with such
            a place is not installed.
    """
    import fsspec

    name = str(source)
    local = "://" not in name and "::" not in name
    try:
        system, root = fsspec.core.url_to_fs(str(files.expanded(name).absolute()) if local else name)
        folder = system.isdir(root)
        if not folder and not system.exists(root):
            raise DataError(f"{name} does not exist; give a file, a folder of files, or a URL of one")
        paths = sorted(system.find(root), key=lambda path: path.split("/")) if folder else [root]
    except ImportError as error:
        raise DataError(f"{name} cannot be read: {_reason(error)}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read ({_reason(error)}); check the name and your permissions") from error
    whose = {path: _called(name, root, path) if folder else name for path in paths}
    found = [Place(whose[path], system, path) for path in paths if not folder or _is_data(path[len(root) :])]
    fitting = [place for place in found if place.kind in kinds]
    if not folder and not fitting:
        raise DataError(f"{name} is no {_listed(kinds)} file; give one, or a folder of such")
    if not fitting:
        raise DataError(f"{name} holds no {_listed(kinds)} file")
    return fitting


def records_of(place: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a `.jsonl` or `.parquet` file, each with where it stands.

    Raises:
        DataError: a record that is none, or a damaged file.
    """
    from manta.text.tables import read_table

    with place.opened() as stream:
        if place.kind == PARQUET:
            yield from ((f"{place.name} row {i + 1}", row) for i, row in enumerate(read_table(stream, place.name)))
        else:
            yield from files.parse_json(files.lines(stream, place.name), place.name)


def _is_data(below: str) -> bool:
    return not any(part.startswith(APART) for part in below.split("/") if part)


def _called(name: str, root: str, path: str) -> str:
    return f"{name.rstrip('/')}/{path[len(root) :].lstrip('/')}"


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:200]


def _listed(kinds: Sequence[str]) -> str:
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"
