"""A weighted grammar whose rules look at a record: one object that writes texts, reads them and scores them.

The grammar is a list of lines,

    HEAD feature=value … -> [weight:] [{slot=value, …}] item … | …

An item is a word, or `$Symbol`, or `$Symbol(feature=value, other=?feature)`, which sets features for the part of the
text below it; all other features are inherited, so that a choice made at the top (a register, say) binds everything
after it. A line applies where its features hold (`a=b`, `a=b/c`, `a!=b`; a feature never set is `none`); an alternative
applies to the records that meet its braces, written alike. Lines with the same head add up. Given a record r,

    p(rule | symbol, r) = weight(rule) / sum of the weights of the rules of that symbol that apply to r

and the probability of a text is the sum over its derivations of the products of these. No rule may lead back to its own
head, so that every language here is finite.

A record is a point: for each slot, the index of its value in the slot's domain.
"""

import itertools
import random
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, no_type_check

Point = tuple[int, ...]
Values = tuple[int, ...]
"""For each slot, the set of its values that are left, as a bit mask over the domain."""

_LINE = re.compile(r"^(\w+)((?: \w+!?=\S+)*) ->(.*)$")
_CONDITION = re.compile(r"^(\w+)(!=|=)(.+)$")
_ALTERNATIVE = re.compile(r"^(?:(\d+): ?)?(?:\{([^}]*)\} ?)?(.*)$")
_SYMBOL = re.compile(r"^\$(\w+)(?:\((.*)\))?$")


class Rule(NamedTuple):
    """One way to rewrite a symbol.

    Args:
        weight: positive; relative to the other rules that apply.
        values: the records it applies to.
        items: words, and symbols as integers.
    """

    weight: float
    values: Values
    items: tuple[str | int, ...]


class Semiring(NamedTuple):
    """How a chart adds up derivations: `one` for the empty one, `plus` of alternatives, `times` of parts.

    `times` may return None: the parts do not go together.
    """

    one: Any
    plus: Callable[[Any, Any], Any]
    times: Callable[[Any, Any], Any]


class _Template(NamedTuple):
    guards: tuple[tuple[str, str, tuple[str, ...]], ...]
    weight: float
    values: Values
    items: tuple[str | tuple[str, tuple[tuple[str, str], ...]], ...]


class _Choices(NamedTuple):
    """The rules of a symbol that apply to a record, with their probabilities."""

    rules: tuple[Rule, ...]
    shares: tuple[float, ...]
    cumulative: tuple[float, ...]


class Grammar:
    """A weighted, record-dependent, finite context-free grammar.

    Args:
        lines: the rules, in the notation of this module.
        domains: the values of each slot, in order; None is a value like any other, written `none`.
        start: the symbol a text is derived from.

    Raises:
        ValueError: a line that does not parse, an unknown slot, value or symbol, or a symbol without rules.
    """

    def __init__(self, lines: Sequence[str], domains: Mapping[str, Sequence[Any]], start: str) -> None:
        self.domains = {name: tuple(values) for name, values in domains.items()}
        self.every: Values = tuple((1 << len(values)) - 1 for values in self.domains.values())
        self.rules: list[tuple[Rule, ...]] = []
        templates: dict[str, list[_Template]] = {}
        for line in lines:
            head, alternatives = self._read(line)
            templates.setdefault(head, []).extend(alternatives)
        self.start = self._instantiate(templates, start)
        self._dependent = [self._slots_of(rules) for rules in self.rules]
        self._first = self._first_words()
        self._by_first = [self._index(rules) for rules in self.rules]
        self._choices: dict[tuple[int, Point], _Choices] = {}

    def sample(self, point: Point, rng: random.Random) -> list[str]:
        """Draws the words of a text for a record from p(text | record)."""
        words: list[str] = []
        stack: list[str | int] = [self.start]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                words.append(item)
            else:
                rules, _, cumulative = self._applicable(item, point)
                stack.extend(reversed(rules[bisect(cumulative, rng.random(), hi=len(rules) - 1)].items))
        return words

    def probability(self, words: Sequence[Sequence[str]], point: Point) -> float:
        """The probability of a text given a record, summed over its derivations; 0 if it has none.

        Args:
            words: for each place in the text, the words of the grammar that read like it.
            point: the record.
        """
        chart = _Chart(words, lambda symbol, _: zip(*self._applicable(symbol, point)[:2], strict=True), _PROBABILITY)
        return chart.value(self.start) or 0.0

    def readings(self, words: Sequence[Sequence[str]]) -> tuple[frozenset[Values], int]:
        """What a text can mean: for each derivation, the records it holds for.

        A text is derivable for a point exactly if every slot's value lies in the masks of one reading.

        Args:
            words: for each place in the text, the words of the grammar that read like it.

        Returns:
            The readings, and the length of the longest prefix of the text that a rule could still match.
        """
        semiring = Semiring(frozenset((self.every,)), frozenset.union, _intersect)
        chart = _Chart(
            words, lambda symbol, at: self._constrained(symbol, words[at] if at < len(words) else ()), semiring
        )
        return chart.value(self.start) or frozenset(), chart.furthest

    def enumerate(self, point: Point) -> dict[tuple[str, ...], float]:
        """All texts of a record with their probabilities; for small records only."""
        known: dict[int, dict[tuple[str, ...], float]] = {}

        def language(symbol: int) -> dict[tuple[str, ...], float]:
            if symbol not in known:
                texts: dict[tuple[str, ...], float] = {}
                rules = [rule for rule in self.rules[symbol] if _holds(rule.values, point)]
                for rule in rules:
                    share = rule.weight / sum(rule.weight for rule in rules)
                    parts = [{(item,): 1.0} if isinstance(item, str) else language(item) for item in rule.items]
                    for chosen in itertools.product(*(part.items() for part in parts)):
                        words, chance = (), share
                        for part, factor in chosen:
                            words, chance = words + part, chance * factor
                        texts[words] = texts.get(words, 0.0) + chance
                known[symbol] = texts
            return known[symbol]

        return language(self.start)

    @no_type_check
    def _applicable(self, symbol: int, point: Point) -> _Choices:
        """The rules of a symbol for a record; kept, as few slots matter to each."""
        key = (symbol, tuple([point[slot] for slot in self._dependent[symbol]]))
        if (known := self._choices.get(key)) is None:
            rules = tuple(rule for rule in self.rules[symbol] if _holds(rule.values, point))
            total = sum(rule.weight for rule in rules)
            shares = tuple(rule.weight / total for rule in rules)
            known = self._choices[key] = _Choices(rules, shares, tuple(itertools.accumulate(shares)))
        return known

    @no_type_check
    def _constrained(self, symbol: int, words: Sequence[str]) -> list[tuple[Rule, frozenset[Values]]]:
        """The rules of a symbol that can begin with one of these words or be empty, each with its records."""
        index = self._by_first[symbol]
        rules = {id(rule): rule for word in (*words, "") for rule in index.get(word, ())}
        return [(rule, frozenset((rule.values,))) for rule in rules.values()]

    def _slots_of(self, rules: Sequence[Rule]) -> tuple[int, ...]:
        slots = range(len(self.every))
        return tuple(slot for slot in slots if any(rule.values[slot] != self.every[slot] for rule in rules))

    def _first_words(self) -> list[frozenset[str]]:
        """For each symbol, the words a text of it can begin with, and "" if it can be empty."""
        first: dict[int, frozenset[str]] = {}

        def visit(symbol: int) -> frozenset[str]:
            if symbol not in first:
                first[symbol] = frozenset().union(*(begin(rule) for rule in self.rules[symbol]))
            return first[symbol]

        def begin(rule: Rule) -> frozenset[str]:
            words: frozenset[str] = frozenset()
            for item in rule.items:
                here = frozenset((item,)) if isinstance(item, str) else visit(item)
                words |= here - {""}
                if "" not in here:
                    return words
            return words | {""}

        return [visit(symbol) for symbol in range(len(self.rules))]

    def _index(self, rules: Sequence[Rule]) -> dict[str, list[Rule]]:
        """The rules of a symbol by the words they can begin with, "" for those that look past their own text."""
        index: dict[str, list[Rule]] = {}
        for rule in rules:
            head = rule.items[0] if rule.items else ""
            for word in (head,) if isinstance(head, str) else self._first[head]:
                index.setdefault(word, []).append(rule)
        return index

    def _instantiate(self, templates: Mapping[str, Sequence[_Template]], start: str) -> int:
        """Builds the rules of every symbol under every setting of the features that matter to it."""
        relevant = _relevant_features(templates)
        numbers: dict[tuple[str, tuple[str, ...]], int] = {}

        def visit(name: str, features: Mapping[str, str]) -> int:
            key = name, tuple(features.get(feature, "none") for feature in relevant[name])
            if key not in numbers:
                number = numbers[key] = len(self.rules)
                self.rules.append(())
                chosen = [template for template in templates[name] if _met(template.guards, features)]
                if not chosen:
                    raise ValueError(f"no rule for {name} where {dict(features)}")
                self.rules[number] = tuple(build(template, features) for template in chosen)
            return numbers[key]

        def build(template: _Template, features: Mapping[str, str]) -> Rule:
            items: list[str | int] = []
            for item in template.items:
                if isinstance(item, str):
                    items.append(item)
                else:
                    changes = {
                        key: features.get(value[1:], "none") if value[0] == "?" else value for key, value in item[1]
                    }
                    items.append(visit(item[0], {**features, **changes}))
            return Rule(template.weight, template.values, tuple(items))

        return visit(start, {})

    def _read(self, line: str) -> tuple[str, list[_Template]]:
        if not (match := _LINE.match(line)):
            raise ValueError(f"not a rule: {line!r}")
        head, features, body = match.groups()
        guards = tuple(_condition(text) for text in features.split())
        return head, [self._alternative(text.strip(), guards) for text in body.split("|")]

    def _alternative(self, text: str, guards: tuple[tuple[str, str, tuple[str, ...]], ...]) -> _Template:
        match = _ALTERNATIVE.match(text)
        assert match
        weight, conditions, body = match.groups()
        values = list(self.every)
        slots = list(self.domains)
        for condition in (conditions or "").split(", ") if conditions else ():
            name, relation, wanted = _condition(condition)
            if name not in self.domains:
                raise ValueError(f"no slot {name!r} in {text!r}")
            allowed = (_compare(value, relation, wanted) for value in self.domains[name])
            values[slots.index(name)] &= sum(1 << index for index, yes in enumerate(allowed) if yes)
        if not all(values):
            raise ValueError(f"no record meets the braces of {text!r}")
        return _Template(guards, float(weight or 1), tuple(values), tuple(_item(word) for word in body.split()))


# What follows runs thousands of times a text. Checking its types at run time, as the tests do elsewhere, would take
# most of their time; hence the decorator, here and on two methods above.
@no_type_check
class _Chart:
    """The inside algorithm in any semiring, top down, each span of a symbol once.

    Args:
        words: for each place in the text, the words of the grammar that read like it.
        choices: for a symbol and a place, the rules to try there and the value of each.
        semiring: how values add up.
    """

    def __init__(
        self,
        words: Sequence[Sequence[str]],
        choices: Callable[[int, int], Iterable[tuple[Rule, Any]]],
        semiring: Semiring,
    ) -> None:
        self.furthest = 0
        """Length of the longest prefix of the text that a rule matched."""
        self._words, self._choices, self._semiring = words, choices, semiring
        self._spans: dict[tuple[int, int], dict[int, Any]] = {}

    def value(self, start: int) -> Any | None:
        """The value of the whole text as a `start`; None if it is none."""
        return self._inside(start, 0).get(len(self._words))

    def _inside(self, symbol: int, at: int) -> dict[int, Any]:
        """Where a symbol that begins at a place can end, and with what value."""
        if (known := self._spans.get((symbol, at))) is not None:
            return known
        plus, times = self._semiring.plus, self._semiring.times
        total: dict[int, Any] = {}
        for rule, value in self._choices(symbol, at):
            ends = {at: value}
            for item in rule.items:
                reached: dict[int, Any] = {}
                for middle, before in ends.items():
                    for end, part in self._advance(item, middle).items():
                        if (both := times(before, part)) is not None:
                            reached[end] = plus(reached[end], both) if end in reached else both
                ends = reached
                if not ends:
                    break
            for end, part in ends.items():
                total[end] = plus(total[end], part) if end in total else part
        self._spans[symbol, at] = total
        return total

    def _advance(self, item: str | int, at: int) -> Mapping[int, Any]:
        if isinstance(item, int):
            return self._inside(item, at)
        if at < len(self._words) and item in self._words[at]:
            self.furthest = max(self.furthest, at + 1)
            return {at + 1: self._semiring.one}
        return {}


def _condition(text: str) -> tuple[str, str, tuple[str, ...]]:
    if not (match := _CONDITION.match(text)):
        raise ValueError(f"not a condition: {text!r}")
    return match[1], match[2], tuple(match[3].replace("_", " ").split("/"))


def _item(word: str) -> str | tuple[str, tuple[tuple[str, str], ...]]:
    if not word.startswith("$"):
        return word
    if not (match := _SYMBOL.match(word)):
        raise ValueError(f"not a symbol: {word!r}")
    pairs = (change.split("=") for change in match[2].split(",")) if match[2] else ()
    return match[1], tuple((key, value) for key, value in pairs)


def _compare(value: Any, relation: str, wanted: Sequence[str]) -> bool:
    return (("none" if value is None else str(value)) in wanted) == (relation == "=")


def _relevant_features(templates: Mapping[str, Sequence[_Template]]) -> dict[str, tuple[str, ...]]:
    """For each symbol, the features that a rule of it, or of a symbol below it, looks at: a fixed point."""
    relevant: dict[str, set[str]] = {name: set() for name in templates}
    while True:
        size = sum(map(len, relevant.values()))
        for name, alternatives in templates.items():
            for template in alternatives:
                relevant[name].update(guard[0] for guard in template.guards)
                for item in template.items:
                    if isinstance(item, tuple):
                        if item[0] not in relevant:
                            raise ValueError(f"no rule for {item[0]}, which {name} uses")
                        changes = dict(item[1])
                        inherited = (changes.get(feature, "?" + feature) for feature in relevant[item[0]])
                        relevant[name].update(value[1:] for value in inherited if value[0] == "?")
        if size == sum(map(len, relevant.values())):
            return {name: tuple(sorted(features)) for name, features in relevant.items()}


@no_type_check
def _met(guards: Sequence[tuple[str, str, tuple[str, ...]]], features: Mapping[str, str]) -> bool:
    return all((features.get(name, "none") in wanted) == (relation == "=") for name, relation, wanted in guards)


@no_type_check
def _holds(values: Values, point: Point) -> bool:
    return all(mask >> index & 1 for mask, index in zip(values, point, strict=True))


@no_type_check
def _intersect(left: frozenset[Values], right: frozenset[Values]) -> frozenset[Values] | None:
    both = {tuple([a & b for a, b in zip(one, other, strict=True)]) for one in left for other in right}
    return frozenset(values for values in both if all(values)) or None


_PROBABILITY = Semiring(1.0, lambda a, b: a + b, lambda a, b: a * b)
