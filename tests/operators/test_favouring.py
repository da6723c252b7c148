"""How uneven attention is, beside closed forms; keys of equal content, told apart by their turn alone."""

import math

import pytest
import torch

from manta.operators import OperatorContext, SelfAttention
from manta.operators.favouring import favouring, scores_among

PLACES = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.5], [2.0, 0.5], [0.0, 3.0]])


def attention(**changes) -> SelfAttention:
    torch.manual_seed(0)
    found = SelfAttention(16, 2, **changes)
    with torch.no_grad():
        found.qkv.weight.copy_(torch.randn_like(found.qkv.weight))
        found.gain.copy_(torch.tensor([0.7, 1.9])[: len(found.gain)])
    return found


@pytest.mark.parametrize("count", [1, 2, 7, 49, 64])
def test_equal_scores_favour_nothing_to_the_last_bit(count):
    for figure in favouring(torch.full((3, count), -7.3)):
        assert figure.shape == (3,) and (figure == 0).all()


def test_the_figures_are_those_of_their_definitions():
    scores = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0 + math.log(3.0)]])
    found = favouring(scores)
    assert found.spread.tolist() == pytest.approx([math.log(3) / 2**0.5] * 2)
    assert found.deficit.tolist() == pytest.approx([math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)] * 2)
    assert found.variation.tolist() == pytest.approx([0.25] * 2)
    torch.manual_seed(1)
    scores = 3 * torch.randn(4, 9, dtype=torch.float64)
    p = scores.softmax(-1)
    found = favouring(scores)
    torch.testing.assert_close(found.spread, scores.std(-1))
    torch.testing.assert_close(found.deficit, math.log(9) + (p * p.log()).sum(-1))
    torch.testing.assert_close(found.variation, (p - 1 / 9).abs().sum(-1) / 2)


def test_one_that_gets_all_attention_is_told_without_a_fault():
    found = favouring(torch.tensor([0.0, -3000.0, -3000.0, -3000.0]))
    assert float(found.deficit) == pytest.approx(math.log(4)) and float(found.variation) == pytest.approx(0.75)


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 1}, {"rotary_share": 0.5, "bias": True}])
def test_scores_among_some_are_those_of_the_operator_but_for_a_constant(changes):
    operator, x = attention(**changes), torch.randn(3, 5, 16)
    context = OperatorContext(PLACES)
    q, k, _ = operator.turned(x, context)
    expected = operator.scores(q, k, context)[:, :, :2, 2:]
    found = scores_among(operator, x, context, slice(0, 2), slice(2, 5))
    torch.testing.assert_close(found, expected - expected[..., :1], rtol=1e-4, atol=1e-4)


def test_alike_a_key_is_the_mean_state_where_each_element_is():
    operator, x = attention(), torch.randn(3, 5, 16)
    context = OperatorContext(PLACES)
    even = torch.cat([x[:, :2], x[:, 2:].mean(1, keepdim=True).expand(-1, 3, -1)], 1)
    q, k = operator.turned(x, context)[0], operator.turned(even, context)[1]
    expected = operator.scores(q, k, context)[:, :, :2, 2:]
    found = scores_among(operator, x, context, slice(0, 2), slice(2, 5), alike=True)
    torch.testing.assert_close(found, expected - expected[..., :1], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[..., 1], found[..., 0]) and not torch.allclose(found[..., 2], found[..., 0], atol=0.01)
    shuffled = scores_among(operator, x[:, [0, 1, 4, 2, 3]], context, slice(0, 2), slice(2, 5), alike=True)
    torch.testing.assert_close(shuffled, found, rtol=1e-4, atol=1e-4)
