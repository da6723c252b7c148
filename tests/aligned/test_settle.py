"""How slots are settled: one of every neighbourhood a call, the surest first, each in sight of those before."""

import pytest
import torch

from manta.aligned import agreed, collapse, settle
from manta.fluency import Fluency, NgramModel

OPEN = 9


def likeliest(logits: torch.Tensor, labels: torch.Tensor, open_: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def constant(sureness: list[list[float]]):
    """A denoiser that always says label 1, as sure of it as told."""
    calls: list[torch.Tensor] = []

    def denoiser(labels: torch.Tensor) -> torch.Tensor:
        calls.append(labels.clone())
        chance = torch.tensor(sureness)
        return torch.stack([(1 - chance).log(), chance.log()], -1)

    return denoiser, calls


def test_each_call_settles_the_surest_of_every_neighbourhood():
    denoiser, calls = constant([[0.9, 0.8, 0.7, 0.6, 0.95, 0.99]])
    labels, open_ = torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool)
    steps = list(settle(denoiser, labels, open_, 3, open_id=OPEN, reader=likeliest))
    assert [step.open[0].tolist() for step in steps] == [
        [False, True, True, True, True, False],
        [False, False, True, True, False, False],
        [False] * 6,
    ]
    assert [call[0].tolist() for call in calls] == [
        [OPEN] * 6,
        [1, OPEN, OPEN, OPEN, OPEN, 1],
        [1, 1, OPEN, OPEN, 1, 1],
    ]
    assert [step.calls for step in steps] == [1, 2, 3] and steps[-1].calls_of.tolist() == [3]


def test_equal_slots_are_settled_from_the_left_one_a_call():
    denoiser, _ = constant([[0.8] * 4])
    open_ = torch.ones(1, 4, dtype=torch.bool)
    steps = list(settle(denoiser, torch.zeros(1, 4, dtype=torch.long), open_, 4, open_id=OPEN, reader=likeliest))
    assert [step.open[0].int().tolist() for step in steps] == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_one_call_settles_everything_and_more_calls_than_slots_are_not_made():
    denoiser, calls = constant([[0.9, 0.8, 0.7]])
    labels, open_ = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)
    (only,) = settle(denoiser, labels, open_, 1, open_id=OPEN, reader=likeliest)
    assert only.labels.tolist() == [[1, 1, 1]] and not only.open.any()
    calls.clear()
    assert len(list(settle(denoiser, labels, open_, 50, open_id=OPEN, reader=likeliest))) == 3 == len(calls)


def test_what_is_given_stays_and_is_certain():
    denoiser, calls = constant([[0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9]])
    labels = torch.tensor([[7, 0, 5, 0], [7, 7, 7, 7]])
    open_ = torch.tensor([[False, True, False, True], [False] * 4])
    steps = list(settle(denoiser, labels, open_, 2, open_id=OPEN, reader=likeliest))
    assert steps[-1].labels.tolist() == [[7, 1, 5, 1], [7, 7, 7, 7]]
    assert steps[-1].confidence[0].tolist() == [1.0, pytest.approx(0.9), 1.0, pytest.approx(0.9)]
    assert steps[-1].calls_of.tolist() == [2, 1] and all(call[1].tolist() == [7] * 4 for call in calls)


def test_a_slot_is_told_in_sight_of_those_before():
    """A denoiser whose right label depends on the label of the neighbour."""

    def denoiser(labels: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*labels.shape, 4)
        logits[:, 0, 2] = 5.0
        for row in range(len(labels)):
            logits[row, 1, 3 if labels[row, 0] == 2 else 1] = 2.0
        return logits

    labels, open_ = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
    *_, together = settle(denoiser, labels, open_, 1, open_id=OPEN, reader=likeliest)
    *_, apart = settle(denoiser, labels, open_, 2, open_id=OPEN, reader=likeliest)
    assert together.labels.tolist() == [[2, 1]] and apart.labels.tolist() == [[2, 3]]


def test_rows_do_not_see_each_other():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 4, generator=generator)
    open_ = torch.rand(5, 7, generator=generator) < 0.7
    labels = torch.randint(4, (5, 7), generator=generator)
    *_, both = settle(lambda _: logits, labels, open_, 3, open_id=OPEN, reader=likeliest)
    for row in range(5):
        one = slice(row, row + 1)
        *_, alone = settle(lambda _, one=one: logits[one], labels[one], open_[one], 3, open_id=OPEN, reader=likeliest)
        assert torch.equal(alone.labels, both.labels[one]) and torch.equal(alone.confidence, both.confidence[one])
        assert torch.equal(alone.calls_of, both.calls_of[one])


def test_a_reader_is_told_what_stands_and_where_nothing_does():
    told = []

    def denoiser(labels):
        return torch.zeros(1, 4, 6)

    def reader(logits, labels, open_):
        told.append((labels.tolist(), open_.tolist()))
        return torch.full_like(labels, 1 + len(told))

    open_ = torch.tensor([[True, True, False, True]])
    labels = torch.tensor([[0, 0, 7, 0]])
    *_, last = settle(denoiser, labels, open_, 3, open_id=OPEN, reader=reader)
    assert told[0] == ([[0, 0, 7, 0]], [[True, True, False, True]])
    # What is read of a slot that stands already changes nothing.
    assert told[1][0][0][2] == 7 and sum(told[1][1][0]) == 2 and sum(told[2][1][0]) == 1
    assert last.labels[0, 2] == 7 and sorted(last.labels[0, [0, 1, 3]].tolist()) == [2, 3, 4]


def test_open_slots_agree_with_those_that_stand():
    """A word that stands is part of the text that the counts know, whatever the logits say of its slot by now."""
    fluency = Fluency(NgramModel.count([[1, 2], [3, 4]] * 8, vocab_size=8, begin=6, end=7), 0.5)
    logits = torch.full((2, 3, 8), -20.0)
    logits[:, 0, 3] = 0.0  # would be the first word of "3 4", if it did not stand
    logits[:, 1, [2, 4]] = torch.tensor([0.49, 0.51]).log()
    logits[:, 2, 0] = 0.0
    labels, open_ = torch.tensor([[1, 0, 0], [3, 0, 0]]), torch.tensor([[False, True, True]] * 2)
    found = agreed(logits, labels, open_, torch.tensor([3, 3]), blank=0, fluency=fluency)
    assert [collapse(row, 0) for row in found.tolist()] == [[1, 2], [3, 4]]
    assert found[:, 0].tolist() == [1, 3]
