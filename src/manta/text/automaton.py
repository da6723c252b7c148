"""Patterns as automata over tokens: which token may follow which, so that the text matches in the end.

`interegular` turns a regular expression into an automaton over characters, and here it becomes one over the tokens of a
vocabulary. (`outlines-core`, which does both, loses texts that go on behind a first match unless the end is said, and
takes exponential time if it is: 0.2.14, measured.)
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import interegular
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.errors import UsageError
from manta.text.schemas import pattern_of
from manta.text.tokenizers import SPECIALS, Tokenizer

MOST_EDGES = 1_000_000
"""Of an automaton."""
MOST_PARTS = 2_000
"""Characters and classes of a pattern, as often as its counts repeat them: a bound on the time that it takes."""
MOST_CALLS = 1_000_000
"""Calls of functions that making an automaton over characters may take, about three seconds: some short patterns, such
as `(a|ab|[a-z]*b){100}`, have more states than anybody can wait for."""
KEPT = 16
"""Automata that are kept for the next request."""
FAR = 2**40
"""Distance of a state from which no text can be ended."""


@dataclass(frozen=True)
class TokenAutomaton:
    """States, and the tokens that lead from one to another; a text matches if it leads to one that accepts."""

    start: int
    """State before the first token."""
    accepting: Bool[Tensor, "s"]
    """Where a text may end."""
    sources: Int64[Tensor, "e"]
    """State that each edge leaves, ascending."""
    tokens: Int64[Tensor, "e"]
    """Token of each edge."""
    targets: Int64[Tensor, "e"]
    """State that each edge leads to."""
    _kept: dict[int, dict[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def distance(self) -> Int64[Tensor, "s"]:
        """Fewest tokens from each state to one that accepts; at least `FAR` where there is no way."""
        found = torch.where(self.accepting, 0, FAR)
        while True:
            onward = found[self.targets] + 1
            shorter = found.scatter_reduce(0, self.sources, onward, "amin")
            if torch.equal(shorter, found):
                return found
            found = shorter

    @cached_property
    def bounds(self) -> Int64[Tensor, "k"]:
        """Where the edges of each state begin; those of one end where those of the next begin."""
        counts = torch.bincount(self.sources, minlength=len(self.accepting))
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def onward(self, state: int) -> dict[int, int]:
        """Where each token leads from a state."""
        if state not in self._kept:
            edges = slice(int(self.bounds[state]), int(self.bounds[state + 1]))
            self._kept[state] = dict(zip(self.tokens[edges].tolist(), self.targets[edges].tolist(), strict=True))
        return self._kept[state]

    def accepts(self, tokens: list[int]) -> bool:
        """Whether a text matches."""
        state: int | None = self.start
        for token in tokens:
            state = self.onward(state).get(token)
            if state is None:
                return False
        return bool(self.accepting[state])


def automaton_of(tokenizer: Tokenizer, pattern: str | None, schema: str | None) -> TokenAutomaton:
    """The automaton of a regular expression that whole texts match, or of a JSON Schema.

    Args:
        tokenizer: of a model that manta trains.
        pattern: in Python's syntax, without back-references, look-around, possessive repeats and
            negated classes, which are refused; an anchor at its beginning or end says what is so anyway.
        schema: JSON text of the schema, see `schemas.pattern_of`; instead of a pattern.

    Raises:
        UsageError: both are given, one is none, matches nothing or is too large, or the tokenizer is another's.
    """
    if pattern is not None and schema is not None:
        raise UsageError("a text is held to a `pattern` or to a `schema`; give one of them")
    if type(tokenizer) is not Tokenizer:
        raise UsageError("texts of a published model cannot be held to a pattern yet; leave `pattern` and `schema` out")
    if pattern is not None:
        _check_syntax(pattern)
    name, given = ("schema", pattern_of(schema or "")) if pattern is None else ("pattern", pattern)
    if not given:
        raise UsageError(f"the `{name}` is empty; leave it out, or say what the text should match")
    if (parts := num_parts(given)) > MOST_PARTS:
        raise UsageError(
            f"the `{name}` has {parts:,} characters, as often as its counts repeat them, and {MOST_PARTS:,} can be "
            "followed; make it smaller"
        )
    return _built(tokenizer, given, name)


def num_parts(pattern: str) -> int:
    """Characters and classes of a regular expression, as often as its counts repeat them.

    Args:
        pattern: any text; one that is no regular expression gives some number.
    """
    open_, last = [0], 0
    for found in re.finditer(r"\\(?:[pPx]\{[^}]*\}|.)|\[\^?\]?(?:\\.|[^\]])*\]|\{(\d*)(,?)(\d*)\}|.", pattern, re.S):
        part = found[0]
        if part[0] == "{" and len(part) > 2:
            times = int(found[3] or found[1] or 0) + (found[2] == "," and not found[3])
            last, extra = last * times, last * (times - 1)
            open_[-1] += extra
        elif part == "(":
            open_.append(0)
            last = 0
        elif part == ")" and len(open_) > 1:
            last = open_.pop()
            open_[-1] += last
        elif part not in "*+?|":
            last = 1
            open_[-1] += 1
    return sum(open_)


def _check_syntax(pattern: str) -> None:
    """Refuse what is no regular expression, and what the library understands otherwise than Python.

    Raises:
        UsageError: naming it.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"the `pattern` is none that can be followed ({error})") from None
    for found in re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|\(\?[=!<]|(?:[*+?]|\{[\d,]+\})\+", pattern, re.S):
        part = found[0]
        negated = part.startswith("[^") and re.search(r"\\[wds]", part)
        if part[0] == "[" and (part.startswith(("[]", "[^]")) or re.search(r"\\[WDSb]", part) or negated):
            raise UsageError(
                f"the `pattern` has the class {part[:40]}, which cannot be followed; spell its characters out"
            )
        if part[0] in "(*+?{" or part[:2] in (r"\W", r"\D", r"\S", r"\b", r"\B", r"\A", r"\Z"):
            raise UsageError(f"the `pattern` has {part[:40]}, which cannot be followed; write it without")


class _TooMuch(Exception):
    """More calls than were allowed."""


@contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Stop Python code of this thread after so many calls of functions, the same on every machine.

    Raises:
        _TooMuch: there were more.
    """
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event.endswith("call")
        if calls > most:
            raise _TooMuch

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)


@lru_cache(KEPT)
def _built(tokenizer: Tokenizer, pattern: str, name: str) -> TokenAutomaton:
    if (len(pattern) - len(pattern.removesuffix("$").rstrip("\\"))) % 2:  # no sign that stands for itself
        pattern = pattern.removesuffix("$")
    try:
        with _bounded(MOST_CALLS):
            characters = interegular.parse_pattern(pattern.removeprefix("^")).to_fsm()
    except _TooMuch:
        raise UsageError(f"the `{name}` takes too many steps to follow; make it simpler") from None
    except Exception as error:  # the library raises classes of its own, and Python's, for what it does not follow
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if reason.strip("'") in ("^", "$"):
            reason = f"{reason} stands inside, and anchors stand at its ends alone"
        raise UsageError(f"the `{name}` is none that can be followed ({reason})") from None
    walk = _Walk(tokenizer, characters)
    edges, waiting, number = [], [walk.start], {walk.start: 0}
    while waiting:
        place = waiting.pop()
        for token, target in walk.onward(place):
            if target not in number:
                number[target] = len(number)
                waiting.append(target)
            edges.append((number[place], token, number[target]))
        if len(edges) > MOST_EDGES:
            raise UsageError(f"the `{name}` takes more than {MOST_EDGES:,} steps; make it smaller")
    rows = torch.tensor(sorted(edges), dtype=torch.long).view(-1, 3)
    accepting = torch.tensor([walk.accepts(place) for place in number])
    found = TokenAutomaton(0, accepting, rows[:, 0], rows[:, 1], rows[:, 2])
    if found.distance[0] >= FAR:
        raise UsageError(f"no text of this model's tokens matches the `{name}`")
    alive = (found.distance < FAR)[found.targets]
    return TokenAutomaton(0, accepting, rows[alive, 0], rows[alive, 1], rows[alive, 2])


Place = tuple[Any, bytes]
"""A state of the automaton over characters, and the bytes of a character that is begun."""


class _Walk:
    """From place to place by the bytes of tokens.

    A character that the pattern names can be spelled by tokens that hold a part of it; any other one that it lets pass
    is written where a token holds all of it.

    Args:
        tokenizer: the vocabulary, and whether a space stands before a text.
        characters: the automaton of the text.
    """

    def __init__(self, tokenizer: Tokenizer, characters: Any) -> None:
        self.map, self.alphabet, self.finals = characters.map, characters.alphabet, characters.finals
        named = [symbol for symbol in self.alphabet if isinstance(symbol, str)]
        spelled = [symbol.encode("utf-8", "ignore") for symbol in named]
        self.begun = {each[:k] for each in spelled for k in range(1, len(each))}
        self.initial = characters.initial
        self.lead = "" if tokenizer.symbols is not None else " "
        self.start: Place = (None, b"") if self.lead else (self.initial, b"")
        self.trie = _trie_of(tokenizer)

    def accepts(self, place: Place) -> bool:
        """Whether a text may end there."""
        return not place[1] and place[0] in self.finals

    def onward(self, place: Place) -> Iterator[tuple[int, Place]]:
        """Tokens that lead on, and where to."""
        waiting = [(self.trie, place)]
        while waiting:
            node, at = waiting.pop()
            for byte, below in node.items():
                if byte < 0:
                    if not at[1] or at[1] in self.begun:
                        yield below, at
                elif (reached := self._by(at, byte)) is not None:
                    waiting.append((below, reached))

    def _by(self, place: Place, byte: int) -> Place | None:
        """Where a byte leads; None: nowhere."""
        state, begun = place
        begun += bytes([byte])
        if len(begun) < _length(begun[0]):
            return (state, begun) if len(begun) == 1 or byte & 0xC0 == 0x80 else None
        try:
            character = begun.decode()
        except UnicodeDecodeError:
            return None
        if state is None:  # the space that stands before every text
            return (self.initial, b"") if character == self.lead else None
        target = self.map.get(state, {}).get(self.alphabet[character])
        return None if target is None else (target, b"")


def _length(first: int) -> int:
    """Bytes of a character by its first one."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


@lru_cache(KEPT)
def _trie_of(tokenizer: Tokenizer) -> dict[int, Any]:
    """Tokens by their bytes; under −1 the token that ends there."""
    trie: dict[int, Any] = {}
    for index, token in enumerate(tokenizer.bytes_of_tokens):
        if index < len(SPECIALS) or not token:
            continue
        node = trie
        for byte in token:
            node = node.setdefault(byte, {})
        node[-1] = index
    return trie
