"""Sudoku with 4×4 and 9×9 cells: puzzles drawn without a file, and an oracle that knows the rules and no key.

A puzzle and a solution are 16 or 81 symbols, row by row; `0` is a blank. A 4×4 puzzle may have several solutions, each
as good as the other. The built-in 9×9 puzzles have one.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

from manta.errors import DataError
from manta.text.example import Example
from manta.text.hashing import SPLITS, digest, split_of
from manta.text.tasks.solver import BLANK, Board, board_of, solutions
from manta.text.tasks.task import Task, Verdict

GRIDS4 = {"train": 200, "dev": 44, "test": 44}
"""The 288 complete 4×4 grids, divided among the splits in the order of their hashes."""
BLANKS4 = (6, 12)
"""Fewest and most blanks of a built-in 4×4 puzzle."""
CLUES9 = (50, 60)
"""Fewest and most clues of a built-in 9×9 puzzle."""
MAX_SOLUTIONS = 1_000
"""Solutions of a puzzle that the cell accuracy is willing to compare with."""
_IMAGES = 16
"""Symmetric images drawn of a 9×9 grid that the solver found."""


def parse_prompt(prompt: str, num_cells: int | None = None) -> Board:
    """The board of a puzzle.

    Args:
        prompt: 16 or 81 symbols, digits up to the side and `0` for a blank.
        num_cells: 16 or 81; None for either.

    Raises:
        DataError: the prompt has another length, or another symbol.
    """
    sizes = (16, 81) if num_cells is None else (num_cells,)
    if len(prompt) not in sizes:
        expected = " or ".join(map(str, sizes))
        raise DataError(f"a sudoku has {expected} symbols, row by row, and {_short(prompt)} has {len(prompt)}")
    board = board_of(len(prompt))
    if wrong := sorted(set(prompt) - set(symbols(board.side))):
        raise DataError(f"{_short(prompt)} holds {wrong[0]!r}; a sudoku has the symbols {symbols(board.side)}, 0 blank")
    return board


def symbols(side: int) -> str:
    """The symbols of a sudoku with this side: the blank and its digits."""
    return "0123456789"[: side + 1]


def check(prompt: str, text: str) -> Verdict:
    """Judges a filled grid by the rules: each row, column and box holds each digit once, and the clues are kept.

    The cell accuracy compares with every solution of the puzzle and takes the nearest one, so that it is 1 exactly
    where the blanks are filled right, and the agreement with the solution where there is one only. For a puzzle with
    several solutions that is not the agreement with a key, which would call right digits wrong.

    Args:
        prompt: a puzzle of 16 or 81 symbols.
        text: any string; well formed is one digit a cell.

    Returns:
        The verdict; its errors are of `form`, `clues`, `rows`, `columns` and `boxes`.

    Raises:
        DataError: the prompt is no puzzle.
    """
    board = parse_prompt(prompt)
    blanks = [cell for cell, clue in enumerate(prompt) if clue == BLANK]
    if len(text) != len(prompt) or set(text) - set(symbols(board.side)[1:]):
        return Verdict(False, False, 0.0 if blanks else None, ("form",))
    broken = ["clues"] if any(clue not in (BLANK, said) for clue, said in zip(prompt, text, strict=True)) else []
    broken += [
        kind for kind, units in _units(len(prompt)).items() if any(len({text[c] for c in u}) < len(u) for u in units)
    ]
    if not broken:
        return Verdict(True, True, 1.0 if blanks else None)
    return Verdict(True, False, _nearest(prompt, text, blanks), tuple(broken))


def _nearest(prompt: str, text: str, blanks: list[int]) -> float | None:
    """The largest share of the blanks in which a text agrees with one solution."""
    found = list(islice(solutions_of(prompt), MAX_SOLUTIONS + 1))
    if not blanks or not found or len(found) > MAX_SOLUTIONS:
        return None
    return max(sum(text[cell] == grid[cell] for cell in blanks) for grid in found) / len(blanks)


@cache
def _units(num_cells: int) -> dict[str, list[list[int]]]:
    """The cells of each row, column and box."""
    board = board_of(num_cells)
    cells = [list(_bits(unit)) for unit in board.units]
    return {kind: cells[i * board.side : (i + 1) * board.side] for i, kind in enumerate(("rows", "columns", "boxes"))}


def solutions_of(puzzle: str) -> Iterator[str]:
    """Every solution of a puzzle; for 4×4 from the list of grids, for 9×9 from the solver."""
    return map(grids4().__getitem__, _bits(_fitting(puzzle))) if len(puzzle) == 16 else solutions(puzzle)


@cache
def grids4() -> tuple[str, ...]:
    """The 288 complete 4×4 grids, in the order of their hashes, which decides their split (`GRIDS4`)."""
    return tuple(sorted(solutions(BLANK * 16), key=digest))


@cache
def _grids_with() -> dict[tuple[int, str], int]:
    """For each cell and digit, the 4×4 grids that have it there, a bit a grid."""
    found: dict[tuple[int, str], int] = {}
    for number, grid in enumerate(grids4()):
        for key in enumerate(grid):
            found[key] = found.get(key, 0) | 1 << number
    return found


@cache
def _grids_of(split: str) -> int:
    """The 4×4 grids of a split, a bit a grid."""
    before = sum(GRIDS4[name] for name in SPLITS[: SPLITS.index(split)])
    return (1 << before + GRIDS4[split]) - (1 << before)


def _fitting(puzzle: str) -> int:
    """The 4×4 grids that solve a puzzle, a bit a grid."""
    found = (1 << len(grids4())) - 1
    for key in enumerate(puzzle):
        if key[1] != BLANK:
            found &= _grids_with()[key]
    return found


def _bits(members: int) -> Iterator[int]:
    while members:
        yield (members & -members).bit_length() - 1
        members &= members - 1


def draw4(rng: random.Random, split: str) -> Iterator[Example]:
    """Endless 4×4 puzzles of whose solutions every one is a grid of the split; 6 to 12 blanks, each number as often."""
    grids = [grids4()[number] for number in _bits(_grids_of(split))]
    while True:
        num_blanks = rng.randint(*BLANKS4)
        while True:
            grid = rng.choice(grids)
            prompt = _blanked(grid, num_blanks, rng)
            if not _fitting(prompt) & ~_grids_of(split):
                break
        yield Example(text=grid, prompt=prompt)


def draw9(rng: random.Random, split: str) -> Iterator[Example]:
    """Endless 9×9 puzzles with 50 to 60 clues and one solution; the hash of the solution decides the split."""
    while True:
        found = next(solutions(BLANK * 81, rng))
        for _ in range(_IMAGES):
            grid = image9(found, rng)
            if split_of(grid) != split:
                continue
            prompt = _blanked(grid, 81 - rng.randint(*CLUES9), rng)
            if is_unique(prompt):
                yield Example(text=grid, prompt=prompt)


def is_unique(puzzle: str) -> bool:
    """Whether a puzzle has one solution and no second."""
    return len(list(islice(solutions_of(puzzle), 2))) == 1


def image9(grid: str, rng: random.Random) -> str:
    """A random image of a 9×9 grid under the symmetries of sudoku.

    They permute the digits, the bands, the rows of a band, the stacks and the columns of a stack, and may exchange
    rows and columns: 9! · 6⁸ · 2 maps (Russell and Jarvis 2006, "Mathematics of Sudoku II").
    """
    rows, columns = _shuffled_lines(rng), _shuffled_lines(rng)
    by_row, by_column = (9, 1) if rng.random() < 0.5 else (1, 9)
    digits = str.maketrans("123456789", "".join(rng.sample("123456789", 9)))
    return "".join([grid[by_row * row + by_column * column] for row in rows for column in columns]).translate(digits)


def _shuffled_lines(rng: random.Random) -> list[int]:
    return [3 * band + line for band in rng.sample(range(3), 3) for line in rng.sample(range(3), 3)]


def _blanked(grid: str, num: int, rng: random.Random) -> str:
    cells = list(grid)
    for cell in rng.sample(range(len(grid)), num):
        cells[cell] = BLANK
    return "".join(cells)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How far 4×4 puzzles can be known from the training split of `builtin:sudoku4`."""

    puzzles: int
    """Puzzles."""
    ambiguous: int
    """Puzzles with more than one solution."""
    known: int
    """Puzzles with a solution among the 200 training grids."""
    all_known: int
    """Puzzles all of whose solutions are training grids."""


def overlap(prompts: Iterable[str]) -> Overlap:
    """States how many puzzles have solutions among the training grids.

    Args:
        prompts: 4×4 puzzles, such as those of `published.d1_sudoku`.

    Raises:
        DataError: a prompt is no 4×4 puzzle.
    """
    fitting = []
    for prompt in prompts:
        parse_prompt(prompt, 16)
        fitting.append(_fitting(prompt))
    train = _grids_of("train")
    return Overlap(
        puzzles=len(fitting),
        ambiguous=sum(grids.bit_count() > 1 for grids in fitting),
        known=sum(grids & train != 0 for grids in fitting),
        all_known=sum(grids != 0 and grids & ~train == 0 for grids in fitting),
    )


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 81 else prompt[:80] + "…")


SUDOKU4 = Task(
    name="sudoku4",
    symbols=symbols(4),
    prompt_length=16,
    text_length=16,
    num_train=50_000,
    draw=draw4,
    parse=partial(parse_prompt, num_cells=16),
    check=check,
)
SUDOKU9 = Task(
    name="sudoku9",
    symbols=symbols(9),
    prompt_length=81,
    text_length=81,
    num_train=100_000,
    draw=draw9,
    parse=partial(parse_prompt, num_cells=81),
    check=check,
)
