"""Rows of Parquet files, by pyarrow, a few at a time."""

from collections.abc import Iterator, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Final

from manta.errors import DataError

PARQUET: Final = ".parquet"
"""The ending of the files."""
ROWS: Final = 1024
"""Rows read at once."""


def require_pyarrow() -> Any:
    """The package `pyarrow`.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet files need pyarrow; install it with: pip install 'manta[ray]'") from error
    return pyarrow


def read_table(stream: BufferedIOBase, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, as Python has them, in bounded memory.

    Args:
        stream: of the file, in which any place can be sought.
        where: what errors call it.

    Raises:
        DataError: it is no Parquet file, or damaged; or pyarrow is not installed.
    """
    pyarrow = require_pyarrow()
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=ROWS):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where} is no Parquet file, or damaged ({reason}); fetch it again") from error


def write_table(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str], path: Path) -> None:
    """Write rows as a Parquet file.

    Args:
        rows: values by column; what a row lacks is null.
        types: the columns with the names of their types, as pyarrow calls them.
        path: the file.

    Raises:
        DataError: pyarrow is not installed.
    """
    pyarrow = require_pyarrow()
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in types.items()])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema), path)
