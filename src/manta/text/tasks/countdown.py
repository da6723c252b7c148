"""Countdown with three numbers: reach a target with each number once, and an oracle that does the sum.

The prompt `3 7 25 = 46` asks for a text such as `3*7+25=46`. Numbers and targets lie in 1 … 100, as in the test set of
d1 (Zhao et al. 2025, arXiv:2504.12216). Built-in solutions follow the rule of the game, that every intermediate result
is a positive integer; the oracle grades as d1 does and allows any rational number on the way.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from manta.errors import DataError
from manta.text.example import Example
from manta.text.hashing import split_of
from manta.text.tasks.task import Task, Verdict

LARGEST = 100
"""Largest number and largest target."""
_OPERATORS = "+-*/"
_TRIES = 200
"""Draws of operations for three numbers before others are drawn."""
_MAX_CHARACTERS = 100
_NUMBER = r"(?:0|[1-9][0-9]{0,5})"
_PROMPT = re.compile(rf"({_NUMBER}) ({_NUMBER}) ({_NUMBER}) = ({_NUMBER})")
_TEXT = re.compile(rf"([0-9+*/()-]+)=({_NUMBER})")
_TOKEN = re.compile(r"[0-9]+|[^0-9]")


@dataclass(frozen=True)
class Countdown:
    """A puzzle.

    Args:
        numbers: three integers, at least 0, each to be used once; two may be equal.
        target: what to reach.
    """

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """The puzzle as a prompt, such as `3 7 25 = 46`."""
        return f"{' '.join(map(str, self.numbers))} = {self.target}"

    @property
    def key(self) -> str:
        """What puzzles have in common that differ in the order of their numbers only."""
        return Countdown(tuple(sorted(self.numbers)), self.target).prompt


def parse_prompt(prompt: str) -> Countdown:
    """Reads a puzzle such as `3 7 25 = 46`.

    Raises:
        DataError: the prompt has another form.
    """
    found = _PROMPT.fullmatch(prompt) if len(prompt) <= _MAX_CHARACTERS else None
    if found is None:
        raise DataError(f"{prompt[:_MAX_CHARACTERS]!r} is no countdown puzzle; write one as '3 7 25 = 46'")
    *numbers, target = map(int, found.groups())
    return Countdown(tuple(numbers), target)


def check(prompt: str, text: str) -> Verdict:
    """Judges a text by doing the sum, in exact fractions.

    Args:
        prompt: a puzzle.
        text: any string; well formed is an expression of integers with `+ - * /` and parentheses, without a sign
            before a number and without spaces, then `=` and an integer.

    Returns:
        The verdict; its errors are of `form`, `numbers` (not each number once), `value` (the expression has another
        value than the target, or none) and `target` (another number stands after `=`).

    Raises:
        DataError: the prompt is no puzzle.
    """
    puzzle = parse_prompt(prompt)
    found = _TEXT.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    tokens = _TOKEN.findall(found[1]) if found else []
    try:
        value = _Parser(tokens).value()
    except _NoExpression:
        return Verdict(False, False, None, ("form",))
    assert found, "without a match there are no tokens, and no expression"
    used = sorted(int(token) for token in tokens if token.isdigit())
    broken = {
        "numbers": used != sorted(puzzle.numbers),
        "value": value != puzzle.target,
        "target": int(found[2]) != puzzle.target,
    }
    errors = tuple(name for name, wrong in broken.items() if wrong)
    return Verdict(True, not errors, None, errors)


class _NoExpression(Exception):
    """The tokens are no expression."""


class _Parser:
    """Recursive descent: sum = product {(+|-) product}; product = atom {(*|/) atom}; atom = number | ( sum )."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [*tokens, ""]
        self._at = 0

    def value(self) -> Fraction | None:
        """The value of all tokens; None where it divides by zero."""
        found = self._sum()
        if self._tokens[self._at]:
            raise _NoExpression
        return found

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _sum(self) -> Fraction | None:
        found = self._product()
        while self._tokens[self._at] in ("+", "-"):
            found = _applied(self._next(), found, self._product())
        return found

    def _product(self) -> Fraction | None:
        found = self._atom()
        while self._tokens[self._at] in ("*", "/"):
            found = _applied(self._next(), found, self._atom())
        return found

    def _atom(self) -> Fraction | None:
        token = self._next()
        if token == "(":
            found = self._sum()
            if self._next() != ")":
                raise _NoExpression
            return found
        if re.fullmatch(_NUMBER, token) is None:
            raise _NoExpression
        return Fraction(int(token))


def _applied(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    if left is None or right is None or (operator == "/" and right == 0):
        return None
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def solutions(puzzle: Countdown) -> list[str]:
    """Every text that solves a puzzle with positive integers all the way, the shortest first, then in ASCII order.

    Parentheses stand where they are needed only. Expressions that differ by exchanging the terms of a sum or the
    factors of a product count as different ones.
    """
    terms = [(number, str(number), 3) for number in puzzle.numbers if number > 0]
    if len(terms) < len(puzzle.numbers):
        return []
    found = {text for value, text in _combined(terms) if value == puzzle.target}
    return sorted((f"{text}={puzzle.target}" for text in found), key=lambda text: (len(text), text))


_Term = tuple[int, str, int]
"""Value, expression, and how tightly its last operation binds: 1 a sum, 2 a product, 3 a number."""


def _combined(terms: Sequence[_Term]) -> Iterator[tuple[int, str]]:
    """All values of expressions with each term once, and the expressions."""
    if len(terms) == 1:
        yield terms[0][:2]
        return
    for i, left in enumerate(terms):
        for j, right in enumerate(terms):
            if i != j:
                rest = [term for k, term in enumerate(terms) if k not in (i, j)]
                for operator in _OPERATORS:
                    value = _result(operator, left[0], right[0])
                    if value is not None:
                        yield from _combined([_joined(operator, value, left, right), *rest])


def _result(operator: str, left: int, right: int) -> int | None:
    """The result of an operation on positive integers; None where it is no positive integer."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right if left > right else None
    if operator == "*":
        return left * right
    return left // right if left % right == 0 else None


def _joined(operator: str, value: int, left: _Term, right: _Term) -> _Term:
    """`left operator right` with the parentheses that a reading from the left needs."""
    binds = 1 if operator in "+-" else 2
    before = f"({left[1]})" if left[2] < binds else left[1]
    after = f"({right[1]})" if right[2] <= binds else right[1]
    return value, f"{before}{operator}{after}", binds


def draw(rng: random.Random, split: str) -> Iterator[Example]:
    """Endless puzzles whose text is the first of their `solutions`; the hash of `Countdown.key` decides the split.

    Three numbers are uniform in 1 … 100; operations are drawn in random order until they give a target in 1 … 100.
    Of the schemes tried, this came nearest to d1's test set in the targets that its numbers can reach, and in the
    share of puzzles that sums and differences solve.
    """
    while True:
        numbers = tuple(rng.randint(1, LARGEST) for _ in range(3))
        target = next((value for value in (_drawn(numbers, rng) for _ in range(_TRIES)) if value), None)
        if target is None:
            continue
        puzzle = Countdown(numbers, target)
        if split_of(puzzle.key) == split:
            yield Example(text=solutions(puzzle)[0], prompt=puzzle.prompt)


def _drawn(numbers: Sequence[int], rng: random.Random) -> int | None:
    """The value of two random operations on three numbers, where the game allows them and it is a target."""
    first, second, third = rng.sample(numbers, 3)
    value = _result(rng.choice(_OPERATORS), first, second)
    if value is None:
        return None
    left, right = (value, third) if rng.random() < 0.5 else (third, value)
    value = _result(rng.choice(_OPERATORS), left, right)
    return value if value is not None and value <= LARGEST else None


COUNTDOWN = Task(
    name="countdown",
    symbols="0123456789+-*/()= ",
    prompt_length=len("100 100 100 = 100"),
    text_length=len("(100-100)*100=100"),
    num_train=100_000,
    draw=draw,
    parse=parse_prompt,
    check=check,
)
