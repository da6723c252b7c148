"""All solutions of a sudoku, by propagation and search on sets of cells."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

BLANK = "0"
"""A cell that is not given."""


@dataclass(frozen=True)
class Board:
    """The cells of a sudoku with sides of b² cells, numbered row by row; a set of cells is an integer, a bit a cell.

    Args:
        side: b², 4 or 9.
        units: rows, columns and boxes, in this order: the sets that hold each digit once.
        peers: for each cell, the other cells that share a unit with it.
        full: all cells.
    """

    side: int
    units: tuple[int, ...]
    peers: tuple[int, ...]
    full: int


@cache
def board_of(num_cells: int) -> Board:
    """The board of 16 or 81 cells."""
    side = math.isqrt(num_cells)
    box = math.isqrt(side)
    assert box**4 == num_cells, "a board has b⁴ cells"
    units = [0] * (3 * side)
    for cell in range(num_cells):
        row, column = divmod(cell, side)
        for unit in (row, side + column, 2 * side + row // box * box + column // box):
            units[unit] |= 1 << cell
    peers = []
    for cell in range(num_cells):
        union = 0
        for unit in units:
            union |= unit if unit >> cell & 1 else 0
        peers.append(union & ~(1 << cell))
    return Board(side, tuple(units), tuple(peers), (1 << num_cells) - 1)


def solutions(puzzle: str, rng: random.Random | None = None) -> Iterator[str]:
    """Every way to fill a sudoku so that each row, column and box holds each digit once.

    A depth-first search. Before each guess it settles the cells that one digit fits, and the digits that fit one cell
    of a unit; then it guesses a cell with the fewest digits. Each digit has the set of cells where it may stand, so a
    rule is a few operations on integers for the whole board.

    Args:
        puzzle: 16 or 81 symbols row by row, the digits and `0` for a blank.
        rng: tries digits in random order, so that the first solution of a board without clues is a random grid (not a
            uniform draw); None for ascending order.

    Yields:
        The solutions, each once; none where the clues contradict one another.
    """
    board = board_of(len(puzzle))
    places = [board.full] * board.side
    for cell, symbol in enumerate(puzzle):
        if symbol != BLANK:
            _put(places, 1 << cell, int(symbol) - 1)
    return _search(board, places, 0, rng)


def _put(places: list[int], cells: int, digit: int) -> None:
    """Takes every other digit from some cells."""
    for other in range(len(places)):
        if other != digit:
            places[other] &= ~cells


def _search(board: Board, places: list[int], settled: int, rng: random.Random | None) -> Iterator[str]:
    propagated = _propagate(board, places, settled)
    if propagated is None:
        return
    if propagated == board.full:
        yield _written(board, places)
        return
    cell = _narrowest(places, board.full & ~propagated)
    digits = [digit for digit, cells in enumerate(places) if cells & cell]
    if rng is not None:
        rng.shuffle(digits)
    for digit in digits:
        guess = places.copy()
        _put(guess, cell, digit)
        yield from _search(board, guess, propagated, rng)


def _propagate(board: Board, places: list[int], settled: int) -> int | None:
    """Settles cells until no rule says more; returns the settled cells, or None where no digit fits a cell."""
    while True:
        once = twice = 0
        for cells in places:
            twice |= once & cells
            once |= cells
        if once != board.full:
            return None
        fresh = once & ~twice & ~settled
        if fresh:
            settled |= fresh
            for digit in range(board.side):
                here = places[digit] & fresh
                while here:
                    cell = here & -here
                    here ^= cell
                    places[digit] &= ~board.peers[cell.bit_length() - 1]
            continue
        for digit in range(board.side):
            for unit in board.units:
                here = places[digit] & unit
                if here == 0:
                    return None
                if here & (here - 1) == 0 and not here & settled:
                    fresh |= here
                    _put(places, here, digit)
        if not fresh:
            return settled


def _narrowest(places: list[int], open_cells: int) -> int:
    """The first open cell with the fewest digits, as a set of one."""
    at_least = [open_cells] + [0] * len(places)
    for cells in places:
        for count in range(len(places), 0, -1):
            at_least[count] |= at_least[count - 1] & cells
    for count in range(2, len(places)):
        exactly = at_least[count] & ~at_least[count + 1]
        if exactly:
            return exactly & -exactly
    return open_cells & -open_cells


def _written(board: Board, places: list[int]) -> str:
    grid = [""] * board.full.bit_length()
    for digit, cells in enumerate(places, 1):
        while cells:
            cell = cells & -cells
            cells ^= cell
            grid[cell.bit_length() - 1] = str(digit)
    return "".join(grid)
