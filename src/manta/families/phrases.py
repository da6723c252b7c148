"""A linear reading of phrases: words, pairs of words and parts of words, learned from phrases with their answers."""

import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from manta.errors import UsageError

FEATURES: Final = 4096
"""Of a phrase, by hash."""
DECAY: Final = 2e-6
"""Of the squared weights."""
LONGEST: Final = 500
"""Characters of an instruction."""


def features(phrase: str) -> dict[int, float]:
    """Words, pairs of neighbouring words and parts of three to five letters of a phrase: numbers of the features that
    it has, by hash, each with the root of its count; of length 1."""
    words = "".join(c if c.isalnum() else " " for c in phrase.lower().replace("'", "")).split()
    found = [f"w {word}" for word in words] + [f"p {a} {b}" for a, b in pairwise(words)]
    found += [f"f {words[0]}"] if words else []
    for word in words:
        padded = f"<{word}>"
        found += [f"c {padded[i : i + n]}" for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
    counts = Counter(zlib.crc32(each.encode()) % FEATURES for each in found)
    return {number: (count / len(found)) ** 0.5 for number, count in counts.items()}


def answers_of(phrases: Sequence[str], weights: Float[Tensor, "k g"]) -> Float[Tensor, "b k"]:
    """Logits of each answer for each phrase."""
    return _read(_bags(phrases), weights[:, :-1].T, weights[:, -1])


def _bags(phrases: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Features of phrases one after the other, their sizes, and where each phrase begins."""
    rows = [features(phrase) for phrase in phrases]
    numbers = torch.tensor([number for row in rows for number in row], dtype=torch.int64)
    sizes = torch.tensor([size for row in rows for size in row.values()])
    return numbers, sizes, torch.tensor([0, *accumulate(len(row) for row in rows)][:-1])


def _read(bags: tuple[Tensor, Tensor, Tensor], table: Tensor, constant: Tensor) -> Float[Tensor, "b k"]:
    numbers, sizes, starts = bags
    return F.embedding_bag(numbers, table, starts, mode="sum", per_sample_weights=sizes) + constant


def learned(
    phrases: Sequence[str], answers: Float[Tensor, "b k"], worth: float, steps: int = 300
) -> Float[Tensor, "k g"]:
    """Weights of the reading, with a constant last, by logistic regression; always the same.

    Args:
        phrases: lessons.
        answers: 1 where a phrase asks for what the answer names.
        worth: what an answer of 1 counts beside one of 0, of which there are more.
        steps: of Adam.
    """
    bags, count = _bags(phrases), answers.shape[1]
    table, constant = torch.zeros(FEATURES, count), torch.zeros(count)
    optimizer = torch.optim.Adam([table.requires_grad_(), constant.requires_grad_()], 0.1)
    for _ in range(steps):
        with torch.enable_grad():
            told = _read(bags, table, constant)
            loss = F.binary_cross_entropy_with_logits(told, answers, pos_weight=torch.tensor(worth))
            (loss + DECAY * table.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([table.detach().T, constant.detach()[:, None]], 1)


def likeliest(chances: Float[Tensor, "k"], sure: float) -> int | None:
    """The one answer that is sure enough; None where there is none, or more than one.

    Args:
        chances: of each answer.
        sure: least chance of an answer that is followed, and greatest of any beside it.
    """
    best = int(chances.argmax())
    others = [float(chance) for place, chance in enumerate(chances) if place != best]
    return best if float(chances[best]) >= sure > max(others, default=0.0) else None


def check_instruction(instruction: str, how: str) -> None:
    """Refuse an instruction that says nothing, or is too long to be one.

    Args:
        instruction: in words.
        how: to say it.

    Raises:
        UsageError: as said.
    """
    if not instruction.strip():
        raise UsageError(f"the instruction is empty; {how}")
    if len(instruction) > LONGEST:
        raise UsageError(f"the instruction has {len(instruction)} characters; say it in {LONGEST} at most")
