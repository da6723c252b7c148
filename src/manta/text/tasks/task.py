"""What the structured tasks have in common: a puzzle is the prompt, a solution the text, and a rule the judge."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from manta.errors import UsageError
from manta.text.example import Example
from manta.text.hashing import SPLITS


@dataclass(frozen=True)
class Verdict:
    """What an oracle says of a text.

    Args:
        well_formed: the text has the form of a solution, right or wrong.
        solved: it solves the puzzle.
        cell_accuracy: share of the blanks filled as in the solution nearest to the text; None where the task has no
            cells, or the puzzle has no blank, no solution, or too many to compare with. 0 where the text is not well
            formed.
        errors: the rules that are broken, a word each.
    """

    well_formed: bool
    solved: bool
    cell_accuracy: float | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A structured task, such as `SUDOKU4`."""

    name: str
    """As in `builtin:NAME`."""
    symbols: str
    """Every character of a prompt or a text, each once (`Tokenizer.of_symbols`)."""
    prompt_length: int
    """Symbols of the longest prompt."""
    text_length: int
    """Symbols of the longest solution."""
    num_train: int
    """Training examples where no number is asked for; dev and test have 1,000."""
    draw: Callable[[random.Random, str], Iterator[Example]]
    """Endless examples of a split."""
    parse: Callable[[str], object]
    """Reads a prompt; raises `DataError` where it is no puzzle of this task."""
    check: Callable[[str, str], Verdict]
    """Judges a text for a prompt by the rules of the task, never by a key."""

    def examples(self, split: str = "train", num: int | None = None, seed: int = 0) -> Iterator[Example]:
        """Draws puzzles with a solution each, the same ones for the same arguments on every machine.

        Args:
            split: "train", "dev" or "test"; no puzzle can come in two of them, whatever the seeds.
            num: how many, at least 0; None for `num_train` or 1,000.
            seed: any integer; others give other draws of the same splits.

        Returns:
            Pairs of prompt and text.

        Raises:
            UsageError: an unknown split or a negative number.
        """
        if split not in SPLITS:
            raise UsageError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
        if num is not None and num < 0:
            raise UsageError(f"the number of examples is {num}; give 0 or more")
        size = num if num is not None else self.num_train if split == "train" else 1_000
        return islice(self.draw(random.Random(f"{self.name} {split} {seed}"), split), size)

    def judge(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Judges many texts.

        Args:
            pairs: prompt and text; at least one.

        Returns:
            `num`; the shares `well_formed` and `solved`, and the mean `cell_accuracy` over the texts that have one
            (None where none has), each with its standard error; `errors`, the number of texts that break each rule.

        Raises:
            DataError: a prompt is no puzzle of this task.
        """
        for prompt, _ in pairs:
            self.parse(prompt)
        verdicts = [self.check(prompt, text) for prompt, text in pairs]
        cells = [verdict.cell_accuracy for verdict in verdicts if verdict.cell_accuracy is not None]
        return {
            "num": len(pairs),
            **_mean("well_formed", [verdict.well_formed for verdict in verdicts]),
            **_mean("solved", [verdict.solved for verdict in verdicts]),
            **_mean("cell_accuracy", cells),
            "errors": dict(Counter(error for verdict in verdicts for error in verdict.errors).most_common()),
        }


def _mean(name: str, values: Sequence[float] | Sequence[bool]) -> dict[str, float | None]:
    """The mean of a sample and its standard error, None where it is empty."""
    if not values:
        return {name: None, f"{name}_stderr": None}
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return {name: mean, f"{name}_stderr": math.sqrt(variance / len(values))}
