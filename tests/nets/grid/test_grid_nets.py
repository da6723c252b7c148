import copy
import itertools
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from manta.errors import ConfigError
from manta.nets.grid import DicConfig, DitConfig, Told, UditConfig
from manta.nets.grid.dic import joined_blocks, saved_blocks
from manta.nets.grid.told import as_elements, as_grid
from manta.nets.grid.udit import DownsampledGrid, NearNetwork
from manta.operators import PyramidConfig

NETS = {
    "dic": DicConfig(width=8, depths=(1, 2, 1, 2, 1)),
    "dic, plain": DicConfig(
        width=8,
        depths=(2, 1, 1, 1, 2),
        skip_stride=1,
        stage_embeddings=False,
        mid_block=False,
        gated=False,
        activation="silu",
    ),
    "dic, no skips": DicConfig(width=8, depths=(1, 2, 1, 1, 1), skip_stride=0),
    "dic, isotropic": DicConfig(width=8, depths=(1, 1, 1, 1, 1), hourglass=False),
    "udit": UditConfig(width=8, depths=(1, 1, 1, 1, 1), heads=2),
    "udit, plain": UditConfig(
        width=8, depths=(1, 1, 1, 1, 1), heads=2, rate=1, mixing="none", cosine=False, rotary=False, near=False
    ),
    "udit, alone": UditConfig(width=8, depths=(1, 1, 1, 1, 1), heads=2, mixing="alone", stacked=False),
    "dit": DitConfig(width=16, depth=2, heads=2),
    "dit, convolution": DitConfig(width=16, depth=2, heads=2, operator=PyramidConfig(kernel=3)),
}


def built(name, height=12, width=8, channels=3, bits=0, seed=0):
    torch.manual_seed(seed)
    return NETS[name].build(channels, height, width, classes=3, bits=bits)


def moved(net: Any, by=0.05) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return net


def asked(batch=2, height=12, width=8, channels=3, bits=0) -> tuple[torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(2)
    state = torch.randn(batch, height * width, channels, generator=generator)
    code = torch.randint(0, 2, (batch, bits), generator=generator) * 2.0 - 1 if bits else None
    return state, torch.rand(batch, generator=generator), Told(torch.arange(batch) % 3, code)


@pytest.mark.parametrize("name", NETS)
def test_a_fresh_net_says_zero_and_a_moved_one_heeds_all_that_it_is_told(name):
    state, t, told = asked(bits=2)
    net = built(name, bits=2)
    said = net(state, t, told)
    assert said.shape == state.shape and not said.any()
    net = moved(net)
    before = net(state, t, told)
    for other in (
        (state + 0.1, t, told),
        (state, t * 0.5, told),
        (state, t, Told(told.label.flip(0), told.code)),
        (state, t, Told(told.label, -told.code)),
    ):
        assert not torch.allclose(before, net(*other), atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_rows_do_not_touch_each_other(name):
    net = moved(built(name))
    state, t, told = asked(batch=3)
    whole = net(state, t, told)
    alone = net(state[1:2], t[1:2], told.rows(torch.tensor([1])))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in NETS if "isotropic" not in name])
def test_a_grid_that_does_not_divide_is_filled_up_with_zeros(name):
    net = moved(built(name, height=7, width=5))
    state, t, told = asked(height=7, width=5)
    filled = moved(built(name, height=8, width=8))
    grid = as_elements(as_grid(state, 7, 5, 8), 8, 8)
    expected = as_elements(as_grid(filled(grid, t, told), 8, 8), 7, 5)
    if not name.startswith("dit"):  # whose patches beyond the edge are cut off as one
        torch.testing.assert_close(net(state, t, told), expected, atol=1e-5, rtol=1e-4)
    assert net(state, t, told).shape == state.shape


def test_a_grid_has_its_elements_in_rows():
    state = torch.arange(24.0).view(1, 12, 2)
    grid = as_grid(state, 3, 4)
    assert grid[0, 1, 2, 3] == state[0, 11, 1] and grid.is_contiguous()
    assert torch.equal(as_elements(grid, 3, 4), state)
    wider = as_grid(state, 3, 4, 3)
    assert wider.shape == (1, 2, 3, 6) and not wider[..., 4:].any() and torch.equal(as_elements(wider, 3, 4), state)


@pytest.mark.parametrize("depth, stride", list(itertools.product(range(1, 16), (1, 2, 3, 4))))
def test_as_many_skips_are_kept_as_are_taken_for_every_depth(depth, stride):
    saved, joined = saved_blocks(depth, stride), joined_blocks(depth, stride)
    assert len(saved) == len(joined) == -(-depth // stride)
    assert saved[-1] == depth - 1 and joined[0] == 0


def test_skips_run_from_the_last_block_down_to_the_first_one_up():
    config = DicConfig(width=8, depths=(4, 1, 1, 1, 4))
    net: Any = config.build(3, 8, 8, classes=0, bits=0)
    assert net.saved == [[0, 3], [0], [], [], []] and net.joined == [[], [], [], [0], [0, 3]]
    widths = [[block.conv1.weight.shape[1] for block in stage] for stage in net.stages]
    assert widths == [[8] * 4, [16], [32], [32], [16, 8, 8, 16]]


@pytest.mark.parametrize(
    "given, words",
    [
        ({"width": 6}, "multiple of 4"),
        ({"depths": (1, 1, 1)}, "5 numbers"),
        ({"depths": (1, 1, 1, 1, 4)}, "another number of skips"),
        ({"skip_stride": -1}, "skip_stride"),
    ],
)
def test_an_hourglass_that_cannot_be_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        DicConfig(**given)


def test_a_phase_receives_from_itself_alone_without_mixing():
    torch.manual_seed(0)
    part: Any = DownsampledGrid(8, 2, 2, UditConfig(mixing="parallel"))
    with torch.no_grad():
        part.mix.weight.zero_()
        part.mix.bias.zero_()
    grid = torch.randn(1, 8, 6, 4)
    changed = grid.clone()
    changed[0, :, 2, 1] += 1.0
    moved_at = (part(changed) - part(grid)).abs().amax(1)[0] > 1e-6
    phase = torch.zeros(6, 4, dtype=torch.bool)
    phase[0::2, 1::2] = True
    assert torch.equal(moved_at, phase)


def test_a_rate_of_one_is_full_attention():
    torch.manual_seed(0)
    part: Any = DownsampledGrid(8, 2, 1, UditConfig(mixing="none", rotary=False))
    grid = torch.randn(2, 8, 3, 4)
    x = grid.flatten(2).transpose(1, 2)
    q, k, v = part.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    cosines = torch.nn.functional.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    weights = (cosines * part.log_temperature.exp()[:, None, None]).softmax(-1)
    expected = part.out((weights @ v).transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (3, 4))
    torch.testing.assert_close(part(grid), expected, atol=1e-5, rtol=1e-4)


def test_turned_queries_know_how_far_apart_elements_are_and_not_where():
    torch.manual_seed(0)
    part = DownsampledGrid(8, 2, 1, UditConfig(mixing="none"))
    grid = torch.randn(1, 8, 1, 1).expand(1, 8, 4, 4) + 0.3 * torch.randn(1, 8, 4, 4)
    assert not torch.allclose(part(grid).flip(3), part(grid.flip(3)), atol=1e-5)
    plain = DownsampledGrid(8, 2, 1, UditConfig(mixing="none", rotary=False))
    torch.testing.assert_close(plain(grid).flip(3), plain(grid.flip(3)), atol=1e-5, rtol=1e-4)


def test_scores_of_downsampled_tokens_cost_a_quarter():
    grid = torch.randn(1, 8, 8, 8)

    def cost(rate):
        part = DownsampledGrid(8, 2, rate, UditConfig(mixing="none"))
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            part(grid)
        linear = 8 * 64 * 8 * 8  # qkv and out
        return counter.get_total_flops() - linear, part.score_flops(64)

    (full, told_full), (quarter, told_quarter) = cost(1), cost(2)
    assert (full, quarter) == (told_full, told_quarter) and full == 4 * quarter


@pytest.mark.parametrize("near, stacked", list(itertools.product((True, False), repeat=2)))
def test_a_merged_network_says_the_same_and_changes_no_weight(near, stacked):
    torch.manual_seed(0)
    net = moved(NearNetwork(6, UditConfig(near=near, stacked=stacked)), by=0.3)
    stored = copy.deepcopy(net.state_dict())
    grid = torch.randn(2, 6, 5, 7)
    for _ in range(3):
        trained = net.train()(grid)
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(grid), trained.detach(), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(stored[name], value) for name, value in net.state_dict().items())
    with torch.no_grad():
        before = net(grid)
        next(iter(net.outer.parameters())).mul_(2.0)  # merged anew once the weights have changed
        assert not torch.allclose(before, net(grid))


def test_a_level_that_does_not_divide_attends_to_all():
    net: Any = UditConfig(width=8, depths=(1, 1, 1, 1, 1), heads=2).build(1, 28, 28, classes=0, bits=0)
    rates = [stage[0].attention.rate for stage in net.stages]
    assert rates == [2, 2, 1, 2, 2]


def test_gradients_reach_every_weight_of_a_net_that_has_begun_to_learn():
    for name in NETS:
        net = moved(built(name))
        state, t, told = asked()
        net(state, t, told).square().mean().backward()
        still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still, f"{name}: {still}"
