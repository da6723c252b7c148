"""Alignments against every alignment there is, one by one."""

import itertools
import math

import pytest
import torch

from manta.aligned import AlignmentConfig, alignment_nats, best_alignment, clamped, collapse, least_slots
from manta.errors import ConfigError

BLANK = 0
TEXTS = ([1, 1], [2, 3, 1], [3], [1, 2, 2], [])


def rows(texts=TEXTS) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(1, max(map(len, texts)))
    words = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    return words, torch.tensor([len(text) for text in texts])


def alignments(chances: torch.Tensor, text: list[int], count: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every row of labels that says a text."""
    found = {}
    for labels in itertools.product(range(chances.shape[-1]), repeat=count):
        if collapse(labels, BLANK) == text:
            found[labels] = sum(chances[slot, label].item() for slot, label in enumerate(labels))
    return found


def test_runs_are_one_word_and_blanks_vanish():
    assert collapse([0, 5, 5, 0, 5, 7, 7, 0, 0], BLANK) == [5, 5, 7]
    assert collapse([5, 5, 0], BLANK) == [5] and collapse([0, 0], BLANK) == [] and collapse([], BLANK) == []


def test_a_repeated_word_needs_a_blank_between():
    words, lengths = rows()
    assert least_slots(words, lengths).tolist() == [3, 3, 1, 4, 0]
    assert least_slots(torch.tensor([[4, 4, 4]]), torch.tensor([2])).tolist() == [3]  # what is padding does not count


def test_nats_are_those_of_all_alignments_and_the_best_is_the_likeliest():
    counts = torch.tensor([5, 4, 3, 5, 2])
    words, lengths = rows()
    chances = torch.randn(len(TEXTS), 5, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    nats = alignment_nats(chances, counts, words, lengths, blank=BLANK)
    best = best_alignment(chances, counts, words, lengths, blank=BLANK)
    for row, text in enumerate(TEXTS):
        every = alignments(chances[row], text, int(counts[row]))
        assert nats[row].item() == pytest.approx(-math.log(sum(map(math.exp, every.values()))), abs=1e-5)
        likeliest = max(every, key=lambda labels: every[labels])
        assert best[row].tolist() == [*likeliest, *[BLANK] * (5 - len(likeliest))]


def test_a_text_without_room_costs_infinitely_much():
    chances = torch.zeros(1, 2, 4).log_softmax(-1)
    assert alignment_nats(chances, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2]), blank=BLANK).isinf()


def test_what_is_given_leaves_only_the_alignments_that_have_it():
    words, lengths = rows([[2, 3, 1]])
    counts = torch.tensor([5])
    chances = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    labels = torch.tensor([[0, 2, 0, 3, 0]])
    known = torch.tensor([[False, True, False, True, False]])
    given = clamped(chances, labels, known)
    every = alignments(chances[0], [2, 3, 1], 5)
    kept = {labels: chance for labels, chance in every.items() if labels[1] == 2 and labels[3] == 3}
    free = [sum(chances[0, slot, labels[slot]].item() for slot in (0, 2, 4)) for labels in kept]
    nats = alignment_nats(given, counts, words, lengths, blank=BLANK)
    assert 0 < len(kept) < len(every)
    assert nats.item() == pytest.approx(-math.log(sum(map(math.exp, free))), abs=1e-4)
    best = best_alignment(given, counts, words, lengths, blank=BLANK)[0].tolist()
    assert tuple(best) == max(kept, key=lambda labels: kept[labels])


def test_a_gradient_reaches_only_what_is_not_given():
    words, lengths = rows([[2, 3]])
    logits = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    known = torch.tensor([[True, False, False, False]])
    given = clamped(logits.log_softmax(-1), torch.tensor([[2, 0, 0, 0]]), known)
    alignment_nats(given, torch.tensor([4]), words, lengths, blank=BLANK).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].abs().sum() == 0 and bool((logits.grad[0, 1:].abs().sum(-1) > 0).all())


@pytest.mark.parametrize(
    "wrong", [{"glance": 1.5}, {"reveal_share": -0.1}, {"least_room": 0.0}, {"least_room": 2.0, "most_room": 1.0}]
)
def test_shares_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="alignment"):
        AlignmentConfig(**wrong)
