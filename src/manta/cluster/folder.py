"""The folder of a job: what its texts depend on, its finished parts, what failed, and who may write in it now."""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from manta.errors import DataError, ModelError, UsageError
from manta.hub.adapters import is_adapter
from manta.hub.folder import base_of, find_folder, shipped
from manta.runtime import atomic_write, read_json, sweep
from manta.text.tables import PARQUET, write_table

JOB: Final = "_job.json"
LOCK: Final = ".lock"
LINES: Final = "_lines"
FAILURES: Final = "_failures"
COLUMNS: Final = {
    **{"prompt": "string", "text": "string", "nfe": "int64", "infill": "string", "error": "string"},
    **{"seconds": "double", "seed": "int64", "extra": "string"},
}
"""Columns of a part that is a Parquet file; `extra` is the JSON of what an input line passes through, so that all parts
have the same columns."""
NAMES: Final = ("model", "input")
"""Of what is recorded, what may change: the same model and the same lines may lie elsewhere."""


class JobFolder:
    """Where a job writes: `part-00000000.jsonl` and so on, each there when it is whole.

    Beside them `_job.json` says what the texts depend on, `_failures/` holds the lines that failed, by parts, and
    `_lines/`, while the job lasts, copies of the input.

    Args:
        path: the folder, on this machine or one that all machines of a cluster share.
        kind: ending of the parts, `.jsonl` or `.parquet`.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self._lock = FileLock(path / LOCK, thread_local=False)

    @property
    def lines(self) -> Path:
        """The folder with copies of the input."""
        return self.path / LINES

    def claim(self) -> None:
        """Make the folder, keep other processes out of it, and remove what killed ones have left unfinished.

        Raises:
            UsageError: it cannot be written, holds what is no job's, or another process writes in it.
        """
        self._refuse_strangers()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"another process is writing in {self.path}; wait for it to end, or choose another --out"
            ) from error
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written ({error.strerror}); choose another --out") from error
        sweep(self.path)

    def release(self) -> None:
        """Let another process write here."""
        self._lock.release(force=True)

    def _refuse_strangers(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file, and --out a folder for the texts; choose another --out")
        if not self.path.is_dir() or (self.path / JOB).exists():
            return
        # A job that was killed before it had read its input has left no more than its copies, and hidden files.
        if strange := sorted(
            file.name for file in self.path.iterdir() if file.name != LINES and not file.name.startswith(".")
        ):
            raise UsageError(
                f"{self.path} holds {strange[0]} and no job of manta generate; choose another --out, or empty it"
            )

    def job(self) -> dict[str, Any] | None:
        """What the job of this folder depends on; None before it has begun.

        Raises:
            UsageError: its record is damaged.
        """
        if not (self.path / JOB).exists():
            return None
        try:
            found = read_json(self.path / JOB)
        except ModelError as error:
            raise UsageError(f"{error}; without it the job in {self.path} cannot go on") from error
        if not isinstance(found, dict):
            raise UsageError(f"{self.path / JOB} is damaged; without it the job cannot go on; choose another --out")
        return found

    def refuse_other(self, job: Mapping[str, Any]) -> None:
        """Refuse to go on with a job that would write other texts; what is not known yet of it is not compared.

        Raises:
            UsageError: naming the first thing that differs.
        """
        known = self.job() or {}
        for name in job if known else ():
            if name not in NAMES and known.get(name) != job[name]:
                before, now = (json.dumps(each.get(name), ensure_ascii=False)[:80] for each in (known, job))
                raise UsageError(
                    f"{self.path} holds texts of another job: its {name} was {before} and is now {now}; choose "
                    "another --out, or give what it was begun with"
                )

    def begin(self, job: Mapping[str, Any]) -> None:
        """Write down what the texts depend on."""
        atomic_write(self.path / JOB, (json.dumps(job, indent=1, ensure_ascii=False) + "\n").encode())

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.path / f"part-{number:08d}{self.kind}"

    def finished(self) -> set[int]:
        """The parts that are there."""
        return {int(file.stem.removeprefix("part-")) for file in self.path.glob(f"part-{'[0-9]' * 8}{self.kind}")}

    def publish(self, number: int, rows: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]) -> None:
        """Write a part and its failures, whole or not at all; that of a killed writer is replaced by its equal.

        Args:
            number: of the part.
            rows: what is told of each text.
            failures: what is told of each line that failed.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        failed = self.path / FAILURES / f"part-{number:08d}.jsonl"
        if failures:  # first, since the part says that both are there
            failed.parent.mkdir(exist_ok=True)
            atomic_write(failed, _as_lines(failures))
        else:
            failed.unlink(missing_ok=True)
        if self.kind == PARQUET:
            table = [_as_columns(row) for row in rows]
            atomic_write(self.part(number), lambda file: write_table(table, COLUMNS, file))
        else:
            atomic_write(self.part(number), _as_lines(rows))

    def failures(self) -> Iterator[dict[str, Any]]:
        """What is told of each line that failed, in their order."""
        for file in sorted((self.path / FAILURES).glob("part-*.jsonl")):
            with file.open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)


def identity(job: Mapping[str, Any]) -> str:
    """Of all that the texts depend on, a name: two jobs that share it write the same texts."""
    told = {name: value for name, value in job.items() if name not in NAMES}
    return blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()


def model_digest(model: str | None) -> str:
    """Of all files of a model's folder but its card, adapters with their base.

    Args:
        model: as for `manta.hub.load`.

    Raises:
        ModelError: there is no such model.
        DataError: a file of it cannot be read.
    """
    folder = find_folder(model) if model else shipped()
    digest = blake2b(digest_size=16)
    for place in (folder, *([base_of(folder)] if is_adapter(folder) else [])):
        for file in sorted(file for file in place.iterdir() if file.is_file() and file.suffix != ".md"):
            if file.name.startswith("."):
                continue
            digest.update(f"{file.name}\0".encode(errors="surrogateescape"))
            try:
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise DataError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


def _as_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    # An error may quote half a surrogate pair, for which JSON has the same escape as Python.
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def _as_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    extra = {name: value for name, value in row.items() if name not in COLUMNS or name == "extra"}
    found = {name: value for name, value in row.items() if name in COLUMNS and name != "extra"}
    if found.get("error") is not None:
        found["error"] = found["error"].encode("utf-8", "backslashreplace").decode()
    return {**found, "extra": json.dumps(extra, ensure_ascii=False)}
