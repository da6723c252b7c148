"""Training pairs made of texts, for models that answer prompts: spans to fill in, words to put in order, or tasks."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Literal

from manta.text.example import Example

Kind = Literal["infill", "holes", "reorder", "tasks"]
BLANK = "___"
"""Stands where words are missing, in the prompt, and between the spans of an answer."""
BEFORE = " | "
"""Between the prompt that a text has and what is asked of it."""
MOST_HOLES = 4
"""Most blanks of a text with several."""
SHORTER = 0.7
"""Most words of a shortened text, as a share of the long one's."""
LEAST_WORDS = 3
"""Texts of fewer words are left out."""


def make(kind: Kind, examples: Iterable[Example], seed: int, *, longest: int = 8) -> Iterator[Example]:
    """Pairs made of texts, one of each of three words or more, not all the same and none with a blank of its own.

    | kind | prompt | text |
    |---|---|---|
    | `infill` | `The ___ on the mat.` | `cat sat` |
    | `holes` | `The ___ on ___ mat.` | `cat sat ___ the` |
    | `reorder` | `mat. on The sat cat the` | `The cat sat on the mat.` |

    | `tasks` | as `making_tasks` says | |

    A text that answers a prompt keeps it in front: `name[Zizzi] | Zizzi is a ___.` Words are what white space parts; a
    run of it becomes one space.

    Args:
        kind: as above.
        examples: texts.
        seed: of all draws; the same for the same seed and texts.
        longest: most words of a blank.
    """
    draw = random.Random(f"{kind} {seed}")
    if kind == "tasks":
        yield from making_tasks(examples, draw, longest)
        return
    makers: dict[str, Callable[[list[str]], tuple[str, str]]] = {
        "infill": lambda words: _with_holes(words, 1, longest, draw),
        "holes": lambda words: _with_holes(words, draw.randint(2, MOST_HOLES), longest, draw),
        "reorder": lambda words: _reordered(words, draw),
    }
    for example in examples:
        words = example.text.split()
        if not _fit(words):
            continue
        asked, answer = makers[kind](words)
        prompt = asked if not (example.prompt or "").strip() else f"{example.prompt}{BEFORE}{asked}"
        yield Example(text=answer, prompt=prompt)


def making_tasks(examples: Iterable[Example], draw: random.Random, longest: int) -> Iterator[Example]:
    """Four tasks side by side: each text gives an example of every task that it is fit for, all in one split.

    | task | prompt | text | of |
    |---|---|---|---|
    | `describe` | the record | the text | texts that answer a prompt |
    | `continue` | its first words | the rest | all |
    | `fill` | the text with a blank `___` | the missing words | all |
    | `shorten` | the text | the shortest text of its record | texts of which that has at most `SHORTER` of the words |

    Args:
        examples: texts, all of them held in memory.
        draw: of all draws.
        longest: most words of a blank.
    """
    fit = [(example.prompt, words) for example in examples if _fit(words := example.text.split())]
    shortest: dict[str, list[str]] = {}
    for prompt, words in fit:
        if prompt is not None and (prompt not in shortest or len(words) < len(shortest[prompt])):
            shortest[prompt] = words
    for prompt, words in fit:
        yield from _tasks_of(prompt, words, shortest, draw, longest)


def _tasks_of(
    prompt: str | None, words: list[str], shortest: Mapping[str, list[str]], draw: random.Random, longest: int
) -> Iterator[Example]:
    """The examples of one text."""
    text = " ".join(words)
    record = f"pairs of {text if prompt is None else prompt}"  # else all would be of the split that the text is of
    if prompt is not None:
        yield Example(text, prompt, task="describe", split_by=record)
    given = draw.randint(1, len(words) - 1)
    yield Example(" ".join(words[given:]), " ".join(words[:given]), task="continue", split_by=record)
    asked, missing = _with_holes(words, 1, longest, draw)
    yield Example(missing, asked, task="fill", split_by=record)
    if prompt is not None and len(short := shortest[prompt]) <= SHORTER * len(words):
        yield Example(" ".join(short), text, task="shorten", split_by=record)


def _fit(words: list[str]) -> bool:
    """Whether a text has enough words, not all the same and none a blank."""
    return len(words) >= LEAST_WORDS and len(set(words)) > 1 and not any(BLANK in word for word in words)


def _with_holes(words: list[str], count: int, longest: int, draw: random.Random) -> tuple[str, str]:
    """Words with some spans missing, and the spans: no two of them touch, and something is left of the text."""
    count = min(count, (len(words) + 1) // 2, len(words) - 1)
    starts = sorted(draw.sample(range(len(words)), count))
    while any(right - left < 2 for left, right in pairwise(starts)):
        starts = sorted(draw.sample(range(len(words)), count))
    shown, spans, at = [], [], 0
    for start, following in zip(starts, [*starts[1:], len(words) + 1], strict=True):
        room = min(longest, following - start - 1, len(words) - count)
        length = draw.randint(1, max(1, room))
        shown += [*words[at:start], BLANK]
        spans.append(" ".join(words[start : start + length]))
        at = start + length
    return " ".join([*shown, *words[at:]]), f" {BLANK} ".join(spans)


def _reordered(words: list[str], draw: random.Random) -> tuple[str, str]:
    """Words in another order than theirs, where they have another, and in theirs."""
    text = " ".join(words)
    for _ in range(10):
        shuffled = " ".join(draw.sample(words, len(words)))
        if shuffled != text:
            break
    return shuffled, text
