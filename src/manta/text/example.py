"""The unit every reader yields and every corpus is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HUMAN = 0
"""Tag of an untouched human target."""
CONSENSUS = 1
"""Tag of a consensus target (`manta.text.consensus`)."""


@dataclass(frozen=True)
class Example:
    """One text, with the prompt it answers where there is one.

    Args:
        text: what the model learns to write; any Unicode string.
        prompt: what the text answers; None for plain prose, and what an empty one or one of white space becomes.
        tag: 0 for an untouched human target, 1 for a consensus target.
        extra: keys of an input record that are not ours; passed through, never read.
        task: what was asked for with the prompt, a word such as `shorten`; None where there is one task alone.
        split_by: what decides the split in place of prompt or text, such as the record that several pairs were made of.
    """

    text: str
    prompt: str | None = None
    tag: int = HUMAN
    extra: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    split_by: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            object.__setattr__(self, "prompt", None)
        if self.task is not None:
            object.__setattr__(self, "task", self.task.strip() or None)

    @property
    def key(self) -> str:
        """What decides the split: what is said to, else the prompt where there is one, else the text."""
        if self.split_by is not None:
            return self.split_by
        return self.text if self.prompt is None else self.prompt
