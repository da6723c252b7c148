"""Token shards on disk: a corpus of any size, memory-mapped."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from manta.errors import ConfigError, DataError
from manta.runtime import atomic_folder, digest_of_file
from manta.text.example import CONSENSUS, Example
from manta.text.hashing import HashIndex, digest
from manta.text.tokenizers import Tokenizer

VERSION = 1
_CHUNK_EXAMPLES, _CHUNK_CHARS = 2048, 4_000_000
_ROWS = ("text.bin", "text_ends.bin", "prompt.bin", "prompt_ends.bin", "groups.bin", "tags.bin")
_EDGES = "edges.bin"
"""Of each row which sides of it lie within a longer text; no part of the digest, since it changes no row."""
_TASKS = "tasks.bin"
"""Of each row the number of its task, where the corpus keeps tasks."""
MOST_TASKS = 64
"""Most tasks of a corpus."""
_GOES_BACK, _GOES_ON = 1, 2
_MANIFEST = "manifest.json"
FILES = (*_ROWS, _EDGES, _TASKS, _MANIFEST)
"""Names of all files of a corpus."""


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """What became of the examples that a corpus was built from."""

    read: int = 0
    """Examples received."""
    empty: int = 0
    """Dropped: no text."""
    duplicates: int = 0
    """Dropped: prompt, text and tag equal an earlier example's."""
    long_prompts: int = 0
    """Dropped: the prompt has more than `max_prompt` tokens."""
    long_texts: int = 0
    """Dropped: a prompt's text has more than `max_text` tokens."""
    windowed: int = 0
    """Texts without a prompt that were cut into windows of `max_text` tokens."""
    rows: int = 0
    """Examples in the corpus, windows counted one by one."""
    consensus: int = 0
    """Rows with tag 1."""
    prompts: int = 0
    """Distinct prompts."""
    text_tokens: int = 0
    """Tokens of all rows' texts."""
    prompt_tokens: int = 0
    """Tokens of the distinct prompts."""

    @property
    def truncation_share(self) -> float:
        """Share of the distinct, non-empty examples that did not fit: dropped or cut into windows."""
        whole = self.read - self.empty - self.duplicates
        return (self.long_prompts + self.long_texts + self.windowed) / whole if whole else 0.0

    def __str__(self) -> str:
        """One line for a person."""
        lost = {
            "duplicates": self.duplicates,
            "empty": self.empty,
            "with too long a prompt": self.long_prompts,
            "with too long a text": self.long_texts,
        }
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
        cut = f"; {self.windowed:,} texts cut into windows" if self.windowed else ""
        return (
            f"{self.rows:,} rows of {self.text_tokens:,} tokens from {self.read:,} examples, "
            f"{self.prompts:,} prompts; dropped: {dropped or 'none'}{cut}"
        )


def build(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    max_prompt: int,
    max_text: int,
    multiple: int = 1,
    source: str = "",
    tasks: bool = False,
) -> CorpusReport:
    """Tokenizes examples into memory-mapped files, dropping exact duplicates and pairs that do not fit.

    Texts without a prompt longer than `max_text` become consecutive windows. One prompt's tokens are stored once,
    however many texts answer it. Memory: one chunk of examples, 8 bytes a distinct example and 12 a distinct prompt
    (three times that while an index grows): 0.7 GB at most for 10 GB of 500-byte stories. The folder appears whole or
    not at all.

    Args:
        examples: read once, and not at all if the corpus is reused.
        tokenizer: its fingerprint is kept, and checked by `Corpus.open`.
        folder: replaced if it is a corpus already; whatever else lies in it stays.
        max_prompt: longest prompt, in tokens.
        max_text: longest text, in tokens; a multiple of `multiple`.
        multiple: what the loader pads texts to: the tokens that share one latent.
        source: what the examples are (`sources.fingerprint`). If it is given, and the folder holds a whole corpus of
            the same source, tokenizer and lengths, that corpus is kept.
        tasks: keep the task that each example names; equal pairs of two tasks are two rows.

    Returns:
        What became of the examples.

    Raises:
        ConfigError: lengths out of range.
        DataError: the examples are broken, or none is left; the folder holds files and is no corpus; or tasks are to be
            kept, and an example names none, no row of one is left, or there are more than `MOST_TASKS`.
    """
    if multiple < 1 or max_prompt < 0 or max_text < 1 or max_text % multiple:
        raise ConfigError(
            f"max_prompt={max_prompt}, max_text={max_text}, multiple={multiple}: "
            "give max_prompt ≥ 0, multiple ≥ 1, and max_text a positive multiple of it"
        )
    folder = Path(folder)
    settings = {
        "version": VERSION,
        "source": source,
        "tokenizer": tokenizer.fingerprint(),
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "max_prompt": max_prompt,
        "max_text": max_text,
        "multiple": multiple,
    }
    if source and (report := _reusable(folder, settings, tasks)):
        return report
    _refuse_strangers(folder)
    try:
        with atomic_folder(folder) as temporary:
            with _Writer(temporary, tokenizer, settings, tasks=tasks) as writer:
                for chunk in chunks(examples):
                    writer.add(chunk)
                report = writer.report()
            if report.rows == 0:
                raise DataError(f"no example is left to train on: {report}; raise the lengths or give more data")
            _write_manifest(temporary, {**settings, **({"tasks": writer.tasks} if tasks else {})}, report)
    except OSError as error:
        place = error.filename or folder
        raise DataError(
            f"{folder} cannot be made: {error.strerror or error} ({place}); check the disk and the permissions"
        ) from error
    return report


class Corpus:
    """A built corpus; arrays are read from disk as they are needed."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Maps the files of a checked folder; use `Corpus.open`."""
        self.folder = folder
        self.manifest = manifest
        self.report = CorpusReport(**manifest["report"])
        token = np.dtype(manifest["dtype"])
        self._text = _map(folder / "text.bin", token)
        self._text_ends = _map(folder / "text_ends.bin", np.dtype(np.int64))
        self._prompt = _map(folder / "prompt.bin", token)
        self._prompt_ends = _map(folder / "prompt_ends.bin", np.dtype(np.int64))
        self._groups = _map(folder / "groups.bin", np.dtype(np.int64))
        self._tags = _map(folder / "tags.bin", np.dtype(np.uint8))
        self._edges = _map(folder / _EDGES, np.dtype(np.uint8)) if _EDGES in manifest["bytes"] else None
        met = list(manifest.get("tasks", ()))
        self.tasks: tuple[str, ...] = tuple(sorted(met))
        """Names of the rows' tasks, in the order of their numbers; none where it keeps none."""
        self._tasks = _map(folder / _TASKS, np.dtype(np.uint8)) if met else None
        self._numbers = np.array([self.tasks.index(name) for name in met], dtype=np.int64)

    @classmethod
    def open(cls, folder: str | Path, *, tokenizer: Tokenizer | None = None) -> "Corpus":
        """Opens a folder that `build` wrote.

        Args:
            folder: the folder.
            tokenizer: where given, it must be the one that the corpus was built with.

        Raises:
            DataError: the folder is missing, incomplete, of another version, or of another tokenizer.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        if tokenizer is not None and manifest["tokenizer"] != tokenizer.fingerprint():
            raise DataError(f"{folder} was built with another tokenizer; build it again with this one")
        return cls(folder, manifest)

    @property
    def digest(self) -> str:
        """What two corpora share exactly when they hold the same rows in the same order."""
        parts = {**self.manifest["digests"], **{name: self.manifest[name] for name in ("tasks",) if self.tasks}}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._tags)

    def text(self, index: int) -> Integer[np.ndarray, " n"]:
        """The tokens of row `index`'s text, n ≥ 1, without padding."""
        return _slice(self._text, self._text_ends, index)

    def edges(self, index: int) -> tuple[bool, bool]:
        """Whether the text of row `index` begins, and ends, where the row does: a window of a longer text may not.

        A corpus that was built before windows were told apart takes every row for a whole text.
        """
        within = 0 if self._edges is None else int(self._edges[index])
        return not within & _GOES_BACK, not within & _GOES_ON

    def prompt(self, index: int) -> Integer[np.ndarray, " p"]:
        """The tokens of row `index`'s prompt; p = 0 where it has none."""
        group = int(self._groups[index])
        return self._prompt[:0] if group < 0 else _slice(self._prompt, self._prompt_ends, group)

    def prompt_group(self, index: int) -> int:
        """A number that rows with the same prompt share, from 0; -1 where the row has no prompt."""
        return int(self._groups[index])

    @property
    def prompt_groups(self) -> Integer[np.ndarray, " rows"]:
        """`prompt_group` of every row, on disk."""
        return self._groups

    @property
    def tags(self) -> UInt8[np.ndarray, " rows"]:
        """The tag of every row, on disk: 0 human, 1 consensus."""
        return self._tags

    def task(self, rows: Integer[np.ndarray, " k"]) -> Integer[np.ndarray, " k"] | None:
        """The numbers of the tasks of some rows, by `tasks`; None where the corpus keeps none."""
        return None if self._tasks is None else self._numbers[np.asarray(self._tasks[rows])]

    @property
    def text_tokens(self) -> int:
        """Tokens of all rows' texts."""
        return len(self._text)

    @property
    def text_lengths(self) -> Integer[np.ndarray, " rows"]:
        """The number of tokens of every row's text, in memory."""
        return np.diff(self._text_ends, prepend=0)

    def lengths(self, rows: Integer[np.ndarray, " k"]) -> tuple[Integer[np.ndarray, " k"], Integer[np.ndarray, " k"]]:
        """The numbers of tokens of the texts and of the prompts of some rows."""
        groups = np.asarray(self._groups[rows])
        prompts = np.zeros(len(rows), dtype=np.int64)
        prompts[groups >= 0] = _lengths(self._prompt_ends, groups[groups >= 0])
        return _lengths(self._text_ends, np.asarray(rows)), prompts


class _Writer:
    """Appends chunks of examples to the files of a corpus, and counts what becomes of them."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any], *, tasks: bool) -> None:
        self._tokenizer = tokenizer
        self._token = np.dtype(settings["dtype"])
        self._max_prompt, self._max_text = settings["max_prompt"], settings["max_text"]
        self._folder, self._stack = folder, ExitStack()
        self._files: dict[str, Any] = {}
        self._seen, self._prompts = HashIndex(), HashIndex()
        self._counts = {field.name: 0 for field in fields(CorpusReport)}
        self._numbers: dict[str, int] | None = {} if tasks else None
        self._with_rows = set[int]()

    def __enter__(self) -> "_Writer":
        for name in (*_files(self._numbers is not None), _EDGES):
            self._files[name] = self._stack.enter_context((self._folder / name).open("wb"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def report(self) -> CorpusReport:
        """The counts so far."""
        return CorpusReport(**self._counts)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks so far, in the order in which they were met.

        Raises:
            DataError: no row of one is left.
        """
        numbers = self._numbers or {}
        if gone := [name for name in numbers if numbers[name] not in self._with_rows]:
            raise DataError(
                f"no row of the task {gone[0][:60]!r} is left to train on: all are empty, or longer than max_prompt="
                f"{self._max_prompt} or max_text={self._max_text} tokens; raise these, or leave its rows out"
            )
        return list(numbers)

    def add(self, chunk: list[Example]) -> None:
        """Tokenizes a chunk and appends what fits."""
        counts = self._counts
        counts["read"] += len(chunk)
        whole = [example for example in chunk if example.text.strip()]
        counts["empty"] += len(chunk) - len(whole)
        numbers = {} if self._numbers is None else self._number_tasks(e for e in chunk if e.task or e.text.strip())
        _, fresh = self._seen.add([self._key(example) for example in whole])
        kept = [example for example, is_fresh in zip(whole, fresh, strict=True) if is_fresh]
        counts["duplicates"] += len(whole) - len(kept)
        groups = self._add_prompts({example.prompt: None for example in kept if example.prompt is not None})
        rows: list[list[int]] = []
        row_groups, row_tags, row_edges, row_tasks = (list[int]() for _ in range(4))
        for example, tokens in zip(kept, self._tokenizer.encode_batch([e.text for e in kept]), strict=True):
            group = -1 if example.prompt is None else groups[example.prompt]
            if group is None:
                counts["long_prompts"] += 1
                continue
            if len(tokens) > self._max_text and example.prompt is not None:
                counts["long_texts"] += 1
                continue
            counts["windowed"] += len(tokens) > self._max_text
            for start in range(0, len(tokens), self._max_text):
                rows.append(tokens[start : start + self._max_text])
                row_groups.append(group)
                row_tags.append(example.tag)
                row_tasks.append(numbers.get(example.task or "", 0))
                goes_on = start + self._max_text < len(tokens)
                row_edges.append(_GOES_BACK * (start > 0) + _GOES_ON * goes_on)
        self._append("text", rows)
        self._files["groups.bin"].write(np.array(row_groups, dtype=np.int64).tobytes())
        self._files["tags.bin"].write(np.array(row_tags, dtype=np.uint8).tobytes())
        self._files[_EDGES].write(np.array(row_edges, dtype=np.uint8).tobytes())
        if _TASKS in self._files:
            self._files[_TASKS].write(np.array(row_tasks, dtype=np.uint8).tobytes())
            self._with_rows.update(row_tasks)
        counts["rows"] += len(rows)
        counts["consensus"] += row_tags.count(CONSENSUS)

    def _key(self, example: Example) -> int:
        """What two equal examples share."""
        parts = (example.prompt, example.text, str(example.tag))
        return digest(*parts) if self._numbers is None else digest(*parts, example.task)

    def _number_tasks(self, examples: Iterable[Example]) -> dict[str, int]:
        """Numbers of the tasks met so far, those of some examples among them.

        Raises:
            DataError: an example names none, or there are too many.
        """
        assert self._numbers is not None, "asked for where tasks are kept"
        for example in examples:
            if example.task is None:
                raise DataError(
                    f"an example names no task, where the model is to tell tasks apart: {example.text[:60]!r}; give "
                    "every row a `task`, a word such as shorten, or train without modulation"
                )
            self._numbers.setdefault(example.task, len(self._numbers))
        if len(self._numbers) > MOST_TASKS:
            last = [*self._numbers][-1][:60]
            raise DataError(f"the data name more than {MOST_TASKS} tasks, such as {last!r}; name fewer")
        return self._numbers

    def _add_prompts(self, prompts: Iterable[str]) -> dict[str, int | None]:
        """Stores the prompts not stored before; returns each one's group, None where it is too long.

        A prompt that is too long takes a group too, of no tokens and no rows, so that a group is the prompt's rank.
        """
        prompts = list(prompts)
        encoded = self._tokenizer.encode_batch(prompts)
        ranks, fresh = self._prompts.add([digest(prompt) for prompt in prompts])
        fits = [len(tokens) <= self._max_prompt for tokens in encoded]
        new = [(tokens if fit else [], fit) for tokens, fit, first in zip(encoded, fits, fresh, strict=True) if first]
        self._append("prompt", [tokens for tokens, _ in new])
        self._counts["prompts"] += sum(fit for _, fit in new)
        return {p: int(rank) if fit else None for p, rank, fit in zip(prompts, ranks, fits, strict=True)}

    def _append(self, name: str, rows: list[list[int]]) -> None:
        count = f"{name}_tokens"
        ends = self._counts[count] + np.cumsum([len(row) for row in rows], dtype=np.int64)
        tokens = np.fromiter(chain.from_iterable(rows), self._token, sum(map(len, rows)))
        self._files[f"{name}.bin"].write(tokens.tobytes())
        self._files[f"{name}_ends.bin"].write(ends.tobytes())
        self._counts[count] += len(tokens)


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Lists of consecutive examples, each small enough to tokenize in memory."""
    chunk: list[Example] = []
    chars = 0
    for example in examples:
        chunk.append(example)
        chars += len(example.text)
        if len(chunk) == _CHUNK_EXAMPLES or chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _files(tasks: bool) -> tuple[str, ...]:
    """The files that hold a corpus's rows, perhaps with their tasks."""
    return (*_ROWS, _TASKS) if tasks else _ROWS


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _slice(tokens: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    if not 0 <= index < len(ends):
        raise IndexError(f"row {index} of {len(ends)}")
    return tokens[int(ends[index - 1]) if index else 0 : int(ends[index])]


def _lengths(ends: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return ends[rows] - np.where(rows > 0, ends[np.maximum(rows - 1, 0)], 0)


def _write_manifest(folder: Path, settings: Mapping[str, Any], report: CorpusReport) -> None:
    kept = _files("tasks" in settings)
    sizes = {name: (folder / name).stat().st_size for name in (*kept, _EDGES)}
    manifest = {**settings, "report": asdict(report), "truncation_share": report.truncation_share, "bytes": sizes}
    manifest["digests"] = {name: digest_of_file(folder / name) for name in kept}
    manifest["edges"] = digest_of_file(folder / _EDGES)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a whole corpus.

    Raises:
        DataError: there is none, or files are missing or of another size.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            raise DataError(f"{folder} is a corpus of version {manifest['version']}, not {VERSION}; build it again")
        wrong = [name for name, size in manifest["bytes"].items() if (folder / name).stat().st_size != size]
        CorpusReport(**manifest["report"])
        if names := manifest.get("tasks"):
            _check_tasks(names, np.unique(_map(folder / _TASKS, np.dtype(np.uint8))))
        if odd := [name for name, count in manifest["report"].items() if type(count) is not int]:
            raise ValueError(f"report.{odd[0]} is no number")
    except OSError as error:
        raise DataError(
            f"{folder} is not a whole corpus ({error.strerror}: {error.filename}); build it again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder}/{_MANIFEST} is damaged ({error}); build the corpus again") from error
    if wrong:
        raise DataError(f"{folder}/{wrong[0]} has another size than when it was written; build the corpus again")
    return manifest


def _check_tasks(names: Any, numbers: np.ndarray) -> None:
    """See that numbers of tasks have names.

    Raises:
        ValueError: they have not.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError("its tasks are no names")
    if len(numbers) and int(numbers.max()) >= len(names):
        raise ValueError("a row's task has no name")


def _reusable(folder: Path, settings: Mapping[str, Any], tasks: bool) -> CorpusReport | None:
    """What became of the examples of a corpus that is there, if it is the one wanted and every byte as written."""
    try:
        manifest = _read_manifest(folder)
        if any(manifest.get(k) != v for k, v in settings.items()) or ("tasks" in manifest) != tasks:
            return None
        kept = {name: manifest["digests"][name] for name in _files("tasks" in manifest)}
        kept |= {_EDGES: manifest["edges"]} if _EDGES in manifest["bytes"] else {}
        whole = all(value == digest_of_file(folder / name) for name, value in kept.items())
    except (DataError, OSError, KeyError, TypeError):
        return None
    return CorpusReport(**manifest["report"]) if whole else None


def _refuse_strangers(folder: Path) -> None:
    """Refuse to write into a folder that is no corpus.

    Raises:
        DataError: it holds something, and no manifest of a corpus.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        ours = isinstance(manifest, dict) and {"version", "tokenizer", "bytes", "report"} <= set(manifest)
    except (OSError, ValueError, RecursionError):
        ours = not folder.exists()
    if not ours:
        raise DataError(
            f"{folder} is not a corpus that manta wrote, and would be overwritten; move it elsewhere, or delete it if "
            "it is a corpus that was damaged"
        )
