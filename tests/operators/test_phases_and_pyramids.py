"""Attention over downsampled tokens and pyramid convolution: what each is made of."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from manta.errors import ConfigError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveModel
from manta.operators import Cache, DownsampledConfig, OperatorContext, PyramidConfig, line
from manta.operators.pyramid import _doubled, _halved
from manta.operators.rotary import rotary_tables, rotate

N, DIM = 12, 16


def downsampled(rate: int, *, mixing: bool = False, causal: bool = False):
    torch.manual_seed(0)
    operator = DownsampledConfig(heads=2, rate=rate).build(DIM, causal=causal)
    torch.nn.init.normal_(operator.out.weight)
    if not mixing:
        torch.nn.init.zeros_(operator.mixing)
    return operator


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_at_rate_one_it_is_cosine_attention_between_all(causal):
    operator, x = downsampled(1, causal=causal), torch.randn(3, N, DIM)
    q, k, v = operator.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    tables = rotary_tables(line(N), 8, operator.rotary_base)
    q, k = (rotate(F.normalize(part, dim=-1), tables) for part in (q, k))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=10.0)  # the temperature begins at ten
    whole = operator.out(y.transpose(1, 2).flatten(2))
    assert (operator(x, OperatorContext(line(N))) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("rate", [2, 3, 4])
@torch.no_grad()
def test_without_mixing_an_element_reaches_its_own_phase_only_and_with_it_all(rate):
    x = torch.randn(1, N, DIM)
    changed = x.clone()
    changed[:, 5] += 1
    for mixing, reached in ((False, {i for i in range(N) if i % rate == 5 % rate}), (True, set(range(N)))):
        operator, row = downsampled(rate, mixing=mixing), OperatorContext(line(N))
        moved = (operator(changed, row) - operator(x, row)).abs().amax((0, 2)) > 0
        assert set(moved.nonzero().flatten().tolist()) == reached


@pytest.mark.parametrize("rate", [1, 2, 3])
@torch.no_grad()
def test_one_element_more_is_that_of_the_row_and_costs_the_same_wherever_it_is(rate):
    """After one at a time from the first on, and after a span; what does not last in the state is computed once."""
    torch.manual_seed(1)
    operator, x = downsampled(rate, mixing=True, causal=True), torch.randn(3, 20, DIM)
    mask = torch.arange(20) < torch.tensor([20, 13, 7])[:, None]
    for row in (OperatorContext(line(20)), OperatorContext(line(20), mask)):
        whole, real = operator(x, row), torch.ones(3, 20, dtype=torch.bool) if row.mask is None else row.mask
        for first in (1, 8, 9):
            cache, costs = Cache(), set()
            operator(x[:, :first], row.span(0, first), cache)
            for place in range(first, 20):
                with FlopCounterMode(display=False) as counter:
                    told = operator(x[:, place : place + 1], row.span(place, place + 1), cache)
                costs.add(counter.get_total_flops())
                there = real[:, place]
                torch.testing.assert_close(told[there], whole[there, place : place + 1], rtol=1e-5, atol=1e-5)
            assert costs == {3 * 8 * DIM * DIM}  # projections of one place of three rows


def test_scores_cost_as_much_less_as_the_rate_is():
    scores = [DownsampledConfig(rate=rate, heads=2).build(DIM).flops(64, DIM) for rate in (1, 2, 4)]
    one, two, four = (whole - 8 * 64 * DIM * DIM for whole in scores)
    assert one == 2 * two == 4 * four


@torch.no_grad()
def test_the_temperature_is_bounded():
    operator, x = downsampled(2), torch.randn(1, N, DIM)
    operator.log_temperature.fill_(9.0)
    high = operator(x, OperatorContext(line(N)))
    operator.log_temperature.fill_(math.log(100))
    assert torch.allclose(operator(x, OperatorContext(line(N))), high)


def test_halving_and_doubling_leave_out_what_is_not_real():
    h = torch.tensor([1.0, 3.0, 5.0, 0.0, 0.0])[None, :, None]
    real = torch.tensor([1.0, 1, 1, 0, 0])[None, :, None]
    halved, half = _halved(h, real)
    assert halved.flatten().tolist() == [2, 5, 0] and half.flatten().tolist() == [1, 1, 0]
    doubled = _doubled(halved, half, 5).flatten()
    assert doubled[:3].tolist() == [2, (3 * 2 + 5) / 4, (3 * 5 + 2) / 4]
    alone = _doubled(halved[:, :2], half[:, :2], 3).flatten()
    assert torch.equal(doubled[:3], alone), "the end of a row is its end, whatever padding stands behind it"


def test_doubling_is_the_usual_interpolation():
    h = torch.randn(2, 6, 3)
    usual = F.interpolate(h.mT, scale_factor=2, mode="linear", align_corners=False).mT
    torch.testing.assert_close(_doubled(h, torch.ones(1, 6, 1), 12), usual)


@torch.no_grad()
def test_convolution_reaches_its_kernel_at_two_scales_and_the_mean_reaches_all():
    torch.manual_seed(0)
    operator = PyramidConfig(kernel=3).build(DIM)
    torch.nn.init.normal_(operator.out.weight)
    x, row = torch.randn(1, 32, DIM), OperatorContext(line(32))
    changed = x.clone()
    changed[:, 16] += 1
    moved = (operator(changed, row) - operator(x, row)).abs().amax((0, 2)) > 1e-6
    assert set(moved.nonzero().flatten().tolist()) == set(range(13, 21)), "pairs 7 to 9, and half a pair on either side"
    torch.nn.init.normal_(operator.mean.weight)
    assert bool(((operator(changed, row) - operator(x, row)).abs().amax((0, 2)) > 1e-6).all())


def test_a_left_to_right_model_says_that_it_cannot_use_it_and_an_even_kernel_has_no_middle():
    with pytest.raises(ConfigError, match="no left-to-right model can use it; choose attention, linear or dijiang"):
        AutoregressiveModel(AutoregressiveConfig(vocab_size=64, dim=16, heads=2, operator=PyramidConfig()))
    with pytest.raises(ConfigError, match="kernel must be odd"):
        PyramidConfig(kernel=4)
