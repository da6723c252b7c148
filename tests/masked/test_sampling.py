"""A word for every position, and how sure the model is of it, by hand."""

import math

import pytest
import torch

from manta.errors import ModelError, UsageError
from manta.masked import WordSampler

CHANCE = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]])


def entropy(chances: list[float]) -> float:
    return -sum(chance * math.log(chance) for chance in chances)


@pytest.mark.parametrize(
    ("confidence", "values"),
    [
        ("probability", [0.5, 0.8]),
        ("margin", [0.2, 0.7]),
        ("entropy", [-entropy([0.5, 0.3, 0.2]), -entropy([0.1, 0.1, 0.8])]),
    ],
)
def test_confidences_have_their_values(confidence, values):
    word, sure = WordSampler(confidence=confidence)(CHANCE.log())
    assert word.tolist() == [[0, 2]]
    assert sure[0].tolist() == pytest.approx(values, abs=1e-6)


def test_draws_are_made_for_the_whole_canvas_and_belong_to_places():
    logits = torch.zeros(1, 6, 40)
    whole, _ = WordSampler(1.0, [torch.Generator().manual_seed(3)], 9)(logits)
    part, sure = WordSampler(1.0, [torch.Generator().manual_seed(3)], 9)(logits[:, :3], start=2)
    assert part.tolist() == whole[:, 2:5].tolist()
    assert sure[0].tolist() == pytest.approx([1 / 40] * 3)
    assert len(set(whole[0].tolist())) > 3


def test_a_word_that_must_not_come_has_no_part_in_a_confidence():
    logits = CHANCE.log()
    logits[..., 2] = -torch.inf
    word, sure = WordSampler(confidence="entropy")(logits)
    assert word.tolist() == [[0, 0]]
    assert sure[0].tolist() == pytest.approx([-entropy([5 / 8, 3 / 8]), -entropy([0.5, 0.5])], abs=1e-6)


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan, 1.0])
def test_what_cannot_be_drawn_is_refused(temperature):
    with pytest.raises(UsageError, match="one generator a row"):
        WordSampler(temperature)
    with pytest.raises(UsageError, match="unknown confidence"):
        WordSampler(confidence="hope")
    assert WordSampler(0.0).temperature == 0


def test_logits_that_are_no_numbers_are_an_error_of_their_call():
    sampler = WordSampler()
    sampler(CHANCE.log())
    with pytest.raises(ModelError, match="logits of network call 2 are not finite"):
        sampler(torch.full((1, 2, 3), torch.nan))


def test_words_are_drawn_by_the_gumbel_trick_in_float64():
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]]).expand(1, 5, 4) * torch.arange(1, 6)[None, :, None]
    word, _ = WordSampler(0.7, [torch.Generator().manual_seed(3)], 5)(logits)
    uniform = torch.rand(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert word[0].tolist() == (logits[0].double() / 0.7 - torch.log(-torch.log(uniform))).argmax(-1).tolist()


def test_two_words_are_enough_for_a_margin():
    _, sure = WordSampler(confidence="margin")(torch.tensor([[[0.7, 0.3]]]).log())
    assert float(sure) == pytest.approx(0.4)
