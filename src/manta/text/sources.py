"""Data by name: a file, `e2e:PATH` and the like, `builtin:NAME` or `hf:NAME`, split into train, dev and test."""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b, file_digest, sha256
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import cast

from manta.errors import DataError, UsageError
from manta.text import files, hub
from manta.text.example import Example
from manta.text.hashing import SPLITS, Part, part_of, split_of
from manta.text.packed import BOMB_RATIO, BOMB_SIZE, PACKED
from manta.text.tasks import TASK_OF_SCHEME, TASKS, Task, published
from manta.text.tokenizers import Tokenizer

SCHEMES = ("e2e", "tinystories", *TASK_OF_SCHEME, "builtin", "hf")
_E2E_FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
FINGERPRINTED = 64
"""Examples of a drawn corpus that stand for all of it in its fingerprint."""


def read(name: str, split: str = "train", num: int | None = None, *, seed: int = 0) -> Iterator[Example]:
    """Streams the examples of a named data set, in the order of the source.

    | name | examples | split |
    |---|---|---|
    | `FILE.txt` | a line each, or a paragraph each (`files.has_paragraphs`) | by hash |
    | `FILE.jsonl`, `FILE.csv` | a record each: `text`, or `prompt` and `text`; other keys pass into `extra` | by hash |
    | `FILE.txt.xz`, … `.gz`, `.bz2` | of a packed file the same | by hash |
    | `e2e:PATH` | the E2E zip or its folder; the prompt is the meaning representation as the file has it | official |
    | `tinystories:PATH` | a story each (`tinystories`) | by hash |
    | `builtin:weather` | records and forecasts drawn from a grammar | by hash |
    | `builtin:sudoku4`, `builtin:sudoku9` | puzzles and solutions, drawn (`tasks.sudoku`) | by solution |
    | `builtin:countdown` | numbers with a target, and how to reach it, drawn (`tasks.countdown`) | by hash |
    | `builtin:paths` | small graphs with a start and a goal, and a shortest path, drawn (`tasks.paths`) | by hash |
    | `d1-sudoku:PATH`, `d1-countdown:PATH` | the test puzzles of d1 (`tasks.published`) | test; countdown also drawn |
    | `sudoku17:PATH` | puzzles made of those with 17 clues (`tasks.published`) | blocks of lines |
    | `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME?text=COLUMN&prompt=COLUMN` | rows of a hub data set, streamed, with the
      same fields or those columns; NAME may be a folder of .parquet, .jsonl, .csv files | official, else by hash |

    The hash is that of the prompt where there is one, else of the text (`Example.key`), so that a prompt never lies in
    two splits; a prompt of white space alone is none. A small file may have no example in dev or test. `train:1/2` is
    the first of two parts of a split, by another hash of the same, so that a judge can learn from prompts, or texts
    without one, that no contestant has seen.

    Args:
        name: as above.
        split: "train", "dev" or "test", or a part of one.
        num: at most so many examples of the split; None for all.
        seed: of the draws of a built-in corpus; files ignore it.

    Returns:
        An iterator that holds one example at a time.

    Raises:
        UsageError: unknown split, or negative `num`.
        DataError: the source is missing, or it is broken, naming file and line (raised while iterating).
    """
    part = part_of(split)
    if num is not None and num < 0:
        raise UsageError(f"the number of examples is {num}; give 0 or more")
    if part.of > 1:
        return islice(_in_part(read(name, part.split, None, seed=seed), part, name), num)
    split = part.split
    scheme, _, rest = name.partition(":")
    if scheme not in SCHEMES:
        return islice(_read_file(Path(name), split), num)
    if not rest:
        example = {"builtin": "builtin:weather", "hf": "hf:OWNER/NAME"}.get(scheme, f"{scheme}:PATH")
        raise UsageError(f"{name!r} names nothing after the colon; write {example}")
    if scheme == "builtin":
        return _read_builtin(rest, split, num, seed)
    if scheme == "hf":
        return islice(_read_hub(rest, split), num)
    path = files.expanded(rest)
    if scheme in TASK_OF_SCHEME:
        return published.read(scheme, path, split, num, seed)
    if scheme == "e2e":
        return islice(_read_e2e(path, split), num)
    files.open_file(path).close()
    return islice(_by_hash(tinystories(path), split, str(path)), num)


def is_split_by_hash(name: str) -> bool:
    """Whether a named source is a file without official splits, which may be read whole (`read_whole`)."""
    scheme = name.partition(":")[0]
    return scheme == "tinystories" or scheme not in SCHEMES


def read_whole(name: str) -> Iterator[Example]:
    """Streams all examples of a file that has no official splits, whichever split each would fall in.

    Raises:
        UsageError: the source has splits of its own.
        DataError: as for `read`.
    """
    if not is_split_by_hash(name):
        raise UsageError(f"{name} has splits of its own; choose train, dev or test")
    if name.startswith("tinystories:"):
        path = files.expanded(Path(name.partition(":")[2]))
        return _by_hash(tinystories(path), None, str(path))
    return _read_file(Path(name), None)


def admits(name: str, split: str = "train") -> Callable[[str], bool]:
    """What tells of a prompt, one that the source need not hold, whether it may be learned from with a split.

    It may not if it is a prompt of another split, or would be one by its hash.

    Raises:
        UsageError: unknown split.
        DataError: as for `read`.
    """
    part = part_of(split)
    if is_split_by_hash(name) or name == "builtin:weather":
        return lambda prompt: split_of(prompt) == part.split and (part.of == 1 or part.holds(prompt))
    others = {e.prompt for other in SPLITS if other != part.split for e in read(name, other)}
    return lambda prompt: prompt not in others and (part.of == 1 or part.holds(prompt))


def fingerprint(name: str, split: str = "train", num: int | None = None, *, seed: int = 0) -> str:
    """A line that changes when a named source does.

    It holds name, split and number; of a file its digest; of a drawn corpus the seed and a hash of its
    first `FINGERPRINTED` examples, which change with the grammar or the generator.

    Raises:
        DataError: the file is missing.
    """
    scheme, _, rest = name.partition(":")
    line = f"{name} split={split} num={num}"
    if scheme == "hf":
        folder = hub.HubData.named(rest).folder
        return line if folder is None else line + _file_state(folder, scheme)
    if scheme != "builtin":
        line += _file_state(files.expanded(rest if scheme in SCHEMES else name), scheme)
    if scheme in ("builtin", "d1-countdown"):
        first = read(name, split, FINGERPRINTED if num is None else min(num, FINGERPRINTED), seed=seed)
        rows = json.dumps([(example.prompt, example.text) for example in first])
        line += f" seed={seed} content={blake2b(rows.encode(), digest_size=8).hexdigest()}"
    return line


def _file_state(path: Path, scheme: str) -> str:
    """Digest of a file, or of the files of a folder."""
    whole = sha256()
    try:
        kind = {"d1-countdown": ".jsonl", "hf": None}.get(scheme, ".csv")
        folder = files.is_folder(path)
        parts = [part for part in files.files_in(path) if kind in (None, part.suffix)] if folder else [path]
        for part in parts:
            with part.open("rb") as stream:
                whole.update(file_digest(stream, "sha256").digest())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its name and permissions") from error
    return f" sha256={whole.hexdigest()}"


def tokenizer_for(name: str, vocab_size: int, num: int | None = None, *, split: str = "train") -> Tokenizer:
    """The tokenizer of a named data set.

    Args:
        name: as in `read`.
        vocab_size: tokens of a trained one, specials included.
        num: train on at most so many examples; None for all.
        split: what to train on.

    Returns:
        A token a symbol for a structured task; else byte-level BPE of the split's prompts and texts.

    Raises:
        DataError: the source is missing or broken.
    """
    if (task := task_of(name)) is not None:
        return Tokenizer.of_symbols(task.symbols)
    examples = read(name, split, num)
    return Tokenizer.train((text for e in examples for text in (e.prompt, e.text) if text), vocab_size)


def task_of(name: str) -> Task | None:
    """The structured task that a named data set belongs to; None for text.

    Its `symbols` make the tokenizer (`Tokenizer.of_symbols`), its `check` judges.
    """
    scheme, _, rest = name.partition(":")
    return TASKS.get(rest) if scheme == "builtin" else TASK_OF_SCHEME.get(scheme)


def _by_hash(examples: Iterable[Example], split: str | None, where: str) -> Iterator[Example]:
    seen = kept = 0
    for example in examples:
        seen += 1
        if split is None or split_of(example.key) == split:
            kept += 1
            yield example
    if seen == 0:
        raise DataError(f"{where} holds no examples; it needs at least one line of text or one record")
    if kept == 0 and split == "train":
        raise DataError(f"{where} holds {seen} examples and none falls in the train split; add more examples")


def _in_part(examples: Iterable[Example], part: Part, where: str) -> Iterator[Example]:
    kept = 0
    for example in examples:
        if part.holds(example.key):
            kept += 1
            yield example
    if kept == 0:
        raise DataError(
            f"no example of {where} falls in part {part.number} of {part.of} of its {part.split} split; add more "
            "examples, or take fewer parts"
        )


def _read_file(path: Path, split: str | None) -> Iterator[Example]:
    path = files.expanded(path)
    files.open_file(path).close()
    kind = files.kind_of(path)
    if kind == ".txt":
        return _by_hash(files.read_txt(path), split, str(path))
    if kind not in (".jsonl", ".csv"):
        raise DataError(
            f"{path}: unknown kind of file {kind or '(no ending)'!r}; use .txt, .jsonl or .csv, as it is or packed as "
            f"{', '.join(PACKED)}"
        )
    records = files.read_records(path, ["text"])
    return _by_hash((files.to_example(record, at) for at, record in records), split, str(path))


def _read_builtin(name: str, split: str, num: int | None, seed: int) -> Iterator[Example]:
    if name in TASKS:
        return TASKS[name].examples(split, num, seed)
    if name != "weather":
        others = ", ".join(f"builtin:{task}" for task in TASKS)
        raise DataError(f"there is no built-in corpus {name!r}; there is builtin:weather, {others}")
    from manta.text import weather

    return iter(weather.examples(split=split, num=num, seed=seed))


def _read_e2e(path: Path, split: str) -> Iterator[Example]:
    wanted = _E2E_FILES[split]
    with _e2e_member(path, wanted) as (stream, where):
        records = files.parse_csv(files.lines(stream, where), where)
        for at, record in records:
            if "mr" not in record or "ref" not in record:
                raise DataError(f"{at}: no columns `mr` and `ref` but {', '.join(record)}; give the E2E NLG data")
            yield Example(" ".join(record["ref"].split()), record["mr"])


@contextmanager
def _e2e_member(path: Path, wanted: str) -> Iterator[tuple[BufferedIOBase, str]]:
    """Opens a file of the E2E data, from its folder or its zip, wherever in it the file lies."""
    if files.is_folder(path):
        found = [part for part in files.files_in(path) if part.name == wanted]
        if not found:
            raise DataError(f"{path} holds no {wanted}; give the folder or the zip of the E2E NLG data")
        with files.open_file(found[0]) as stream:
            yield stream, str(found[0])
        return
    with files.open_file(path, unpack=False) as outer:
        try:
            archive = zipfile.ZipFile(outer)
        except files.DAMAGED as error:
            raise DataError(
                f"{path} is not a zip file ({error}); give the zip or the folder of the E2E NLG data"
            ) from error
        found = sorted(name for name in archive.namelist() if name.rsplit("/", 1)[-1] == wanted)
        if not found:
            raise DataError(f"{path} holds no {wanted}; give the zip or the folder of the E2E NLG data")
        member = archive.getinfo(found[0])
        if member.file_size > max(BOMB_SIZE, BOMB_RATIO * member.compress_size):
            raise DataError(f"{path}!{found[0]} unpacks to more than {BOMB_RATIO} times its size; it is no text")
        try:
            stream = archive.open(member)
        except files.DAMAGED as error:
            raise DataError(f"{path}!{found[0]} cannot be read: {error}; fetch it again") from error
        with stream:
            yield cast(BufferedIOBase, stream), f"{path}!{found[0]}"


def tinystories(path: Path) -> Iterator[Example]:
    """The ASCII stories of a TinyStories file (`.txt`, perhaps packed), their paragraphs separated by a blank line.

    Where the file has `<|endoftext|>` lines, they end the stories. Where it has none, a blank line separates
    paragraphs, and a single newline ends a story, or a paragraph where white space stands before it (what the original
    left of a blank line); the last story is dropped, since such excerpts are cut. Stories that are not ASCII (broken
    quotes) are dropped.

    Args:
        path: the file.

    Yields:
        A story each, streaming.
    """
    with files.open_file(path) as stream:
        head = files.head_of(stream, str(path))
        marked = b"<|endoftext|>" in head
        numbered = files.lines(stream, str(path), head)
        for paragraphs in _marked_stories(numbered) if marked else _plain_stories(numbered):
            story = "\n\n".join(paragraphs)
            if story and story.isascii():
                yield Example(story)


def _marked_stories(numbered: Iterable[tuple[int, str]]) -> Iterator[list[str]]:
    story: list[str] = []
    for _, line in numbered:
        if line.strip() == "<|endoftext|>":
            yield story
            story = []
        elif line.strip():
            story.append(line.strip())
    yield story


def _plain_stories(numbered: Iterable[tuple[int, str]]) -> Iterator[list[str]]:
    story: list[str] = []
    before = ""
    for _, line in numbered:
        if line.strip():
            if before.strip() and before == before.rstrip():
                yield story
                story = []
            story.append(line.strip())
        before = line


def _read_hub(name: str, split: str) -> Iterator[Example]:
    examples, official = hub.opened(hub.HubData.named(name), split)
    yield from examples if official else _by_hash(examples, split, f"hf:{name}")
