"""Published puzzles for the structured tasks, read from where they lie on disk.

`4x4_test_sudoku.csv` and `countdown_cd3_test.jsonl` are the test sets of d1 (Zhao et al. 2025, arXiv:2504.12216;
github.com/dllm-reasoning/d1). `sudoku17.txt` is Gordon Royle's list of 9×9 sudoku with 17 clues.
"""

import random
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import cast

from manta.errors import DataError
from manta.text import files
from manta.text.example import Example
from manta.text.tasks import countdown
from manta.text.tasks.countdown import COUNTDOWN, Countdown
from manta.text.tasks.solver import solutions
from manta.text.tasks.sudoku import SUDOKU4, SUDOKU9

TASK_OF_SCHEME = {"d1-sudoku": SUDOKU4, "d1-countdown": COUNTDOWN, "sudoku17": SUDOKU9}
"""The task of each kind of source."""
CLUES17 = (30, 40)
"""Fewest and most clues of an example made from a puzzle with 17."""
BLOCK = 2_458
"""Consecutive lines of sudoku17 that stay in one split, a twentieth of the list: neighbours there share most clues."""
_D1_SUDOKU, _D1_COUNTDOWN = "4x4_test_sudoku.csv", "countdown_cd3_test.jsonl"
_CYCLE = ("train",) * 18 + ("dev", "test")
_NUMBERS = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*")


def read(scheme: str, path: Path, split: str, num: int | None = None, seed: int = 0) -> Iterator[Example]:
    """The examples of a split.

    | scheme | train, dev | test |
    |---|---|---|
    | `d1-sudoku` | none: train on `builtin:sudoku4`; `sudoku.overlap` states what it knows of the test | d1's puzzles |
    | `d1-countdown` | `builtin:countdown` without the puzzles of the test, in any order of the numbers | d1's puzzles |
    | `sudoku17` | blocks of lines | blocks of lines |

    The 100,000 examples of `builtin:countdown` hold 44 of d1's 256 puzzles: a model to be tested on d1's has to be
    trained on `d1-countdown`, which holds none.

    Args:
        scheme: a key of `TASK_OF_SCHEME`.
        path: of d1 the archive, a folder that holds the file somewhere, or the file; of sudoku17 the file.
        split: "train", "dev" or "test".
        num: at most so many; None for all, of `builtin:countdown` for its default.
        seed: of the draws of `builtin:countdown`.

    Raises:
        DataError: the file is missing or broken, or has no such split (raised while iterating).
    """
    if scheme == "sudoku17":
        yield from islice(sudoku17(path, split), num)
    elif scheme == "d1-sudoku":
        if split != "test":
            raise DataError(
                f"d1-sudoku:{path} is a test set and has no split {split!r}; "
                "take its split test, and train on builtin:sudoku4"
            )
        yield from islice(d1_sudoku(path), num)
    elif split == "test":
        yield from islice(d1_countdown(path), num)
    else:
        held_out = {_key(example) for example in d1_countdown(path)}
        if not held_out:  # nothing would be held out, unnoticed
            raise DataError(f"d1-countdown:{path} holds no puzzle; give d1's file")

        def draw(rng: random.Random, split: str) -> Iterator[Example]:
            return (example for example in COUNTDOWN.draw(rng, split) if _key(example) not in held_out)

        yield from replace(COUNTDOWN, draw=draw).examples(split, num, seed)


def _key(example: Example) -> str:
    assert example.prompt is not None, "a puzzle is a prompt"
    return countdown.parse_prompt(example.prompt).key


def d1_sudoku(path: Path) -> Iterator[Example]:
    """d1's 4×4 test puzzles, 8 blanks each; the text is the solution that the file names, one of several perhaps.

    Raises:
        DataError: the file is missing, or a row is no puzzle with a solution.
    """
    with _member(path, _D1_SUDOKU) as (stream, where):
        for at, record in files.parse_csv(files.lines(stream, where), where):
            if "Puzzle" not in record or "Solution" not in record:
                raise DataError(f"{at}: no columns `Puzzle` and `Solution` but {', '.join(record)}; give d1's file")
            example = Example(text=record["Solution"], prompt=record["Puzzle"])
            _parsed(SUDOKU4.parse, record["Puzzle"], at)
            if not SUDOKU4.check(record["Puzzle"], example.text).solved:
                raise DataError(f"{at}: {example.text!r} does not solve {example.prompt!r}; fetch d1's file again")
            yield example


def d1_countdown(path: Path) -> Iterator[Example]:
    """d1's countdown test puzzles; the text is a solution of ours, as the file names none.

    Raises:
        DataError: the file is missing, or a line is no puzzle that has a solution.
    """
    with _member(path, _D1_COUNTDOWN) as (stream, where):
        for at, record in files.parse_json(files.lines(stream, where), where):
            numbers = _NUMBERS.fullmatch(str(record.get("input")))
            target = str(record.get("output")).strip()
            if numbers is None or not target.isdecimal():
                raise DataError(f'{at} is no puzzle of the form {{"input": "3,7,25", "output": "46"}}; give d1\'s file')
            puzzle = Countdown(tuple(map(int, numbers.groups())), int(target))
            found = countdown.solutions(puzzle)
            if not found:
                raise DataError(f"{at}: no solution of {puzzle.prompt!r} in positive integers; fetch d1's file again")
            yield Example(text=found[0], prompt=puzzle.prompt)


def sudoku17(path: Path, split: str) -> Iterator[Example]:
    """Puzzles with 30 to 40 clues and one solution: those of the list, with more cells of their solution revealed.

    Lines go to splits in blocks of 2,458: eighteen to train, one to dev, one to test. Two of the 2,449 test puzzles
    then share 13 or more of their 17 clues with one in train; with blocks of 512 it would be one in eighteen.
    How many cells are revealed, and which, depends on the line alone.

    Args:
        path: a text file, perhaps `.xz`, of one puzzle a line: 81 symbols, `*`, `.` or `0` for a blank.
        split: "train", "dev" or "test".

    Raises:
        DataError: the file is missing, or a line is no puzzle with exactly one solution.
    """
    with files.open_file(path) as stream:
        for number, line in files.lines(stream, str(path)):
            puzzle = line.strip().replace("*", "0").replace(".", "0")
            at = f"{path} line {number}"
            _parsed(SUDOKU9.parse, puzzle, at)
            if _CYCLE[(number - 1) // BLOCK % len(_CYCLE)] != split:
                continue
            found = list(islice(solutions(puzzle), 2))
            if len(found) != 1:
                count = "more than one solution" if found else "no solution"
                raise DataError(f"{at}: the puzzle has {count}; give a list of puzzles with exactly one")
            yield Example(text=found[0], prompt=_revealed(puzzle, found[0]))


def _revealed(puzzle: str, grid: str) -> str:
    rng = random.Random(f"sudoku17 {puzzle}")
    blanks = [cell for cell, clue in enumerate(puzzle) if clue == "0"]
    missing = max(0, rng.randint(*CLUES17) - (len(puzzle) - len(blanks)))
    cells = list(puzzle)
    for cell in rng.sample(blanks, min(missing, len(blanks))):
        cells[cell] = grid[cell]
    return "".join(cells)


def _parsed(parse: Callable[[str], object], prompt: str, at: str) -> None:
    try:
        parse(prompt)
    except DataError as error:
        raise DataError(f"{at}: {error}") from error


@contextmanager
def _member(path: Path, wanted: str) -> Iterator[tuple[BufferedIOBase, str]]:
    """Opens a file of a name from a folder or a tar archive, wherever in it the file lies, or by its own path."""
    if files.is_folder(path):
        found = [part for part in files.files_in(path) if part.name == wanted]
        if not found:
            raise DataError(f"{path} holds no {wanted}; give the folder, the archive or the file of d1's test data")
        path = found[0]
    alone = files.kind_of(path) in (".csv", ".jsonl")
    with files.open_file(path, unpack=alone) as outer, ExitStack() as opened:
        if alone:
            yield outer, str(path)
            return
        try:
            archive = opened.enter_context(tarfile.open(fileobj=outer))
            members = sorted(m.name for m in archive if m.isfile() and m.name.rsplit("/", 1)[-1] == wanted)
        except files.DAMAGED as error:
            reason = str(error).partition(":")[0]  # tarfile lists on further lines what it has tried
            raise DataError(
                f"{path} is no whole tar archive ({reason}); give the folder, the archive or the file of d1's test data"
            ) from error
        if not members:
            raise DataError(f"{path} holds no {wanted}; give the folder, the archive or the file of d1's test data")
        stream = opened.enter_context(cast(BufferedIOBase, archive.extractfile(members[0])))
        yield stream, f"{path}!{members[0]}"
