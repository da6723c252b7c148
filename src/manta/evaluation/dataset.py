"""What a model is evaluated on: one prompt is one group of references, and the data says which figures it allows."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal

from manta.errors import DataError, UsageError
from manta.metrics.slots import parse_mr
from manta.metrics.words import Words, words_of
from manta.text import read, task_of, weather
from manta.text.sources import read_whole

Metric = Literal["likelihood", "diversity", "guards", "copying", "mauve", "overlap", "slots", "oracle", "judge"]
"""A group of figures that is measured together."""


@dataclass(frozen=True)
class Oracle:
    """What judges the texts of a built-in corpus."""

    judge: Callable[[Sequence[tuple[str, str]]], Mapping[str, Any]]
    """Figures of many pairs of prompt and text."""
    right: Callable[[str, str], bool]
    """Whether one text is right: true to its record, or a solution of its puzzle."""
    name: str
    """What a right text is called: `faithful` or `solved`."""


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out data: prompts with the human texts that answer them, or human texts alone."""

    name: str
    """As given, such as `e2e:PATH`."""
    split: str
    """train, dev or test; all for a file that is used whole."""
    prompts: tuple[str | None, ...] = field(repr=False)
    """One a group, each different; None where the data has no prompts."""
    references: tuple[tuple[str, ...], ...] = field(repr=False)
    """Human texts of each prompt, at least one; where there are no prompts, one a group."""
    training: Callable[[], Iterator[str]] = field(repr=False, compare=False)
    """Reads the texts of the training split anew."""
    oracle: Oracle | None = None
    """Judges texts of a built-in corpus."""
    slots: bool = False
    """The prompts are meaning representations of E2E."""
    task: bool = False
    """A structured task, whose texts are no prose."""
    words: int | None = None
    """The texts are passages of so many words, or characters where no space stands between words, and a model's are cut
    to as many; None: whole texts."""

    @property
    def conditional(self) -> bool:
        """The texts answer prompts."""
        return self.prompts[0] is not None

    @property
    def humans(self) -> list[str]:
        """One human text a group: as many as a model is asked for."""
        return [group[0] for group in self.references]

    def cut(self, text: str) -> str:
        """A model's text, no longer than a passage."""
        return text if self.words is None else self.reading.first(text, self.words)

    @cached_property
    def reading(self) -> Words:
        """What the words of its texts are, by their script."""
        return words_of(text for group in self.references for text in group)

    def why_not(self, metric: Metric) -> str | None:
        """Why a group of figures cannot be measured here; None where it can."""
        if metric == "overlap" and not self.conditional:
            return f"overlap compares a text with the references of its prompt, and {self.name} has no prompts"
        if metric == "slots" and not self.slots:
            return f"slot errors need meaning representations as prompts (name[…], food[…]), and {self.name} has none"
        if metric == "copying" and self.split == "all":
            return f"{self.name} is evaluated whole, so it has no training texts to be copied; choose --split test"
        if metric == "oracle" and self.oracle is None:
            return f"only built-in corpora and structured tasks have an oracle, and {self.name} is none"
        return None


def evaluation_set(
    name: str,
    split: str = "test",
    num: int | None = None,
    *,
    seed: int = 0,
    training_texts: int | None = None,
    words: int | None = None,
    only: str | None = None,
) -> EvaluationSet:
    """Read the held-out data that a model is evaluated on.

    Examples that share a prompt become one group, in the order of the source. Which figures the data allows is read off
    the data itself: an oracle from its name, slot errors from prompts that are meaning representations.

    Args:
        name: as for `manta.text.read`.
        split: train, dev or test; all for a file without official splits that no model was trained on.
        num: at most so many groups, drawn at random by `seed` where there are more; None for all.
        seed: of the draws of a built-in corpus and of the choice of groups.
        training_texts: at most so many texts of the training split are compared with; None for all.
        words: cut texts without prompts into passages of so many words, from first to last, a rest left out; so texts
            of models that write short pieces of long texts are compared at one length.
        only: of data that name tasks, the task whose examples are taken.

    Raises:
        DataError: the source is missing or broken, empty in this split or of this task, only some of its examples have
            prompts, or no text is as long as a passage.
        UsageError: an unknown split, `num` or `words` below 1, or passages of data with prompts.
    """
    if words is not None and words < 1:
        raise UsageError(f"a passage has at least one word, received --words {words}")
    if num is not None and num < 1:
        raise UsageError(f"an evaluation needs at least one text, received {num}")
    task = task_of(name)
    drawn = num if task is not None or name.startswith("builtin:") else None
    groups: dict[str | int, list[str]] = {}
    bare = 0
    found = read_whole(name) if split == "all" else read(name, split, drawn, seed=seed)
    for index, example in enumerate(found):
        prompt = example.prompt if (example.prompt or "").strip() else None
        if only is not None and example.task not in (None, only):  # data that name no tasks are of any
            continue
        bare += prompt is None
        groups.setdefault(index if prompt is None else prompt, []).append(example.text)
    if not groups:
        of = "" if only is None else f" of the task {only[:60]!r}"
        raise DataError(
            f"{name} has no examples{of} in its {split} split; choose another with --split, or give more data"
        )
    if bare and any(isinstance(key, str) for key in groups):
        raise DataError(f"{bare} examples of {name} have no prompt and others have one; evaluate the two apart")
    if words is not None:
        if not bare:
            raise UsageError(f"--words cuts texts without prompts into passages, and {name} has prompts; leave it out")
        reading = words_of(text for (text,) in groups.values())
        pieces = [piece for (text,) in groups.values() for piece in reading.passages(text, words)]
        if not pieces:
            raise DataError(f"no text of {name}, split {split}, has {words} {reading.unit}; ask for fewer with --words")
        groups = {index: [piece] for index, piece in enumerate(pieces)}
    keys = list(groups)
    if num is not None and num < len(keys):
        keys = [keys[at] for at in sorted(random.Random(f"evaluation {seed}").sample(range(len(keys)), num))]
    prompts = tuple(key if isinstance(key, str) else None for key in keys)
    return EvaluationSet(
        name=name,
        split=split,
        prompts=prompts,
        references=tuple(tuple(groups[key]) for key in keys),
        training=partial(_texts, name, training_texts),
        oracle=_oracle(name, seed),
        slots=not bare and all(_is_mr(prompt) for prompt in prompts if prompt is not None),
        task=task is not None,
        words=words,
    )


def _texts(name: str, num: int | None) -> Iterator[str]:
    """Of a built-in corpus the draws that models are trained on, whatever the seed of the evaluation."""
    return (example.text for example in islice(read(name, "train"), num))


def _oracle(name: str, seed: int) -> Oracle | None:
    if name == "builtin:weather":
        return Oracle(
            partial(weather.judge, seed=seed), lambda prompt, text: weather.check(prompt, text).faithful, "faithful"
        )
    task = task_of(name)
    if task is None:
        return None
    return Oracle(task.judge, lambda prompt, text: task.check(prompt, text).solved, "solved")


def _is_mr(prompt: str) -> bool:
    try:
        parse_mr(prompt)
    except DataError:
        return False
    return True
