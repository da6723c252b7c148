"""Maps of integers against their formulas, alone and among others, in groups of times, with and without gradients."""

from copy import deepcopy
from threading import Thread
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from manta.errors import ConfigError
from manta.nets import integers, products
from manta.nets.blocks import Block
from manta.nets.clock import Clock
from manta.nets.head import Head
from manta.nets.integer_nets import Fold, with_integers
from manta.nets.integers import (
    IntegerConv2d,
    IntegerEmbedding,
    IntegerLinear,
    IntegerSpec,
    count_parameters,
    pack,
    unpack,
)
from manta.nets.layout import columnwise
from manta.nets.products import IntegerMatrix, exact_sums
from manta.operators import AttentionConfig, OperatorContext, line


def drawn(spec, inner=24, outer=40, bias=True, seed=0) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(seed)
    made: Any = IntegerLinear(inner, outer, spec, bias=bias)
    most = 127 if spec.bits == 8 else 7
    values = torch.randint(-most, most + 1, (outer, inner), dtype=torch.int8)
    made.weight.copy_(values if spec.bits == 8 else pack(values))
    made.weight_scale.uniform_(0.001, 0.01)
    for name, draw in {"step": (0.01, 0.05), "spread": (0.3, 1.0), "shift": (-1, 1), "bias": (-1, 1)}.items():
        if (buffer := getattr(made, name, None)) is not None:
            buffer.uniform_(*draw)
    if made.edges is not None:
        made.edges.copy_(torch.linspace(0, 1, spec.groups + 1)[1:-1])
    made.clock = Clock()
    return made, values


@given(st.integers(1, 9), st.integers(1, 17), st.integers(0, 10**6))
def test_packed_integers_come_back(outer, inner, seed):
    values = torch.randint(-8, 8, (outer, inner), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack(values)
    assert packed.shape == (outer, -(-inner // 2)) and packed.dtype is torch.uint8
    assert torch.equal(unpack(packed, inner), values)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 16, 33, 65])
@pytest.mark.parametrize(("inner", "outer"), [(8, 24), (7, 5), (1100, 3)])
def test_every_kernel_gives_the_same_to_the_last_bit(rows, inner, outer):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randint(-127, 128, (outer, inner), generator=generator, dtype=torch.int8)
    given_rows = torch.randint(-127, 128, (rows, inner), generator=generator, dtype=torch.int8)
    scale, bias = torch.rand(outer, generator=generator) * 0.01, torch.randn(outer, generator=generator)
    matrix = IntegerMatrix(values)
    whole = given_rows.long() @ values.long().mT
    wanted = whole.to(torch.int32) * scale + bias
    assert torch.equal(matrix.times(given_rows, scale, bias), wanted)
    assert torch.equal(matrix.times(given_rows, scale), whole.to(torch.int32) * scale)
    if rows:
        assert torch.equal(products._plain(matrix, given_rows, scale, bias), wanted)
        assert torch.equal(products._fused(matrix, given_rows, scale, bias), wanted)
        assert torch.equal(matrix.sums(given_rows).long(), whole)
        assert torch.equal(exact_sums(given_rows, values).long(), whole)


def test_kernels_that_give_something_else_are_not_used(monkeypatch):
    """As on machines that add up in 16 bits."""
    monkeypatch.setattr(products, "_fused", lambda *args: products._plain(*args).clamp_max(1e3))
    products.has_fused_products.cache_clear()
    try:
        assert not products.has_fused_products()
        matrix = IntegerMatrix(torch.full((8, 64), 127, dtype=torch.int8))
        rows = torch.full((64, 64), 127, dtype=torch.int8)
        assert torch.equal(matrix.times(rows, torch.ones(8)), torch.full((64, 8), 64.0 * 127**2))
    finally:
        products.has_fused_products.cache_clear()
    monkeypatch.undo()
    assert products.has_fused_products() and integers.has_fused_convolutions()  # where these tests are meant to run


def test_a_convolution_does_without_the_kernel_that_is_not_exact(monkeypatch):
    made = IntegerConv2d(nn.Conv2d(4, 4, 3, padding=1), IntegerSpec())
    made.weight.fill_(127)
    x = torch.rand(2, 4, 5, 5)
    with torch.no_grad():
        exact = made(x)
        monkeypatch.setattr(IntegerConv2d, "_fused", lambda self, *args: torch.zeros(2, 4, 5, 5))
        monkeypatch.setattr(integers, "has_fused_convolutions", lambda: False)
        torch.testing.assert_close(made(x), exact)


def test_tables_made_in_inference_mode_serve_where_derivatives_are_asked_for():
    made, _ = drawn(IntegerSpec(shift=True))
    with torch.inference_mode():
        made(torch.randn(3, 24))
    x = torch.randn(3, 24, requires_grad=True)
    assert torch.autograd.grad(made(x).sum(), x)[0].shape == x.shape


def test_copies_and_files_of_a_map_that_has_been_called(tmp_path):
    conv, table = IntegerConv2d(nn.Conv2d(4, 4, 3), IntegerSpec()), IntegerEmbedding(9, 4)
    made, _ = drawn(IntegerSpec(groups=2))
    made.clock.tell(torch.tensor([0.9]))
    with torch.no_grad():
        for call in (conv(torch.rand(1, 4, 5, 5)), table.logits(torch.rand(2, 4)), made(torch.rand(64, 24))):
            assert len(call)
        for each in (conv, table, made):
            copied = deepcopy(each)
            torch.save(each, tmp_path / "map.pt")
            again = torch.load(tmp_path / "map.pt", weights_only=False)
            for name, value in each.state_dict().items():
                assert torch.equal(value, copied.state_dict()[name]) and torch.equal(value, again.state_dict()[name])
        conv.load_state_dict({**conv.state_dict(), "weight": torch.full_like(conv.weight, 3)})
        assert float(conv(torch.ones(1, 4, 3, 3)).abs().max()) > 1
    last: Any = copied
    assert last.clock.time is None and made.clock.one == pytest.approx(0.9)


def test_another_precision_leaves_scales_as_they_are():
    for made in (drawn(IntegerSpec(groups=2, shift=True))[0], IntegerConv2d(nn.Conv2d(4, 4, 3), IntegerSpec())):
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            moved = deepcopy(made).to(dtype)
            assert {value.dtype for value in moved.buffers()} <= {torch.int8, torch.float32}


def test_threads_have_times_of_their_own():
    clock, seen = Clock(), []
    clock.tell(torch.tensor([0.5]))
    thread = Thread(target=lambda: seen.append(clock.time))
    thread.start()
    thread.join()
    assert seen == [None] and clock.one == 0.5


@pytest.mark.parametrize(
    ("name", "value"), [("step", 0.0), ("step", -1.0), ("step", float("nan")), ("spread", 0.0), ("edges", [0.9, 0.1])]
)
def test_what_is_stored_is_looked_at(name, value):
    made, _ = drawn(IntegerSpec(groups=3, spread=True))
    made.check()
    getattr(made, name).copy_(torch.tensor(value))
    with pytest.raises(ConfigError):
        made.check()


def test_zero_of_a_convolution_is_an_unsigned_integer():
    made = IntegerConv2d(nn.Conv2d(4, 4, 3), IntegerSpec())
    for wrong in (-1.0, 256.0, 1e30):
        made.zero.fill_(wrong)
        with pytest.raises(ConfigError):
            made.check()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_a_static_map_does_what_its_formula_says(bits, spread, shift):
    spec = IntegerSpec(bits=bits, groups=3, shift=shift, spread=spread)
    made, values = drawn(spec)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        for group, time in enumerate((0.1, 0.5, 0.9)):
            made.clock.tell(torch.tensor([time]))
            z = made.shift.view(3, -1)[group] if shift else 0.0
            s = made.spread if spread else 1.0
            q = ((x - z) / s / made.step[group]).round().clamp(-127, 127)
            wanted = (
                q @ values.float().mT * (made.step[group] * made.weight_scale)
                + made.bias.view(made.spec.groups, -1)[group]
            )
            torch.testing.assert_close(made(x), wanted, rtol=1e-5, atol=2e-2 * float(made.step.max()))
            assert (made(x) - wanted).abs().mean() < 1e-4


def test_rows_of_several_times_get_what_they_get_alone():
    made, _ = drawn(IntegerSpec(groups=3, shift=True, spread=True))
    x, times = torch.randn(6, 5, 24), torch.tensor([0.1, 0.9, 0.5, 0.5, 1 / 3, 0.0])
    with torch.no_grad():
        made.clock.tell(times)
        together = made(x)
        for row, time in enumerate(times):
            made.clock.tell(time[None])
            assert torch.equal(together[row], made(x[row : row + 1])[0])
        made.clock.tell(times[:, None].expand(6, 5))  # told of each element
        assert torch.equal(made(x), together)


@pytest.mark.parametrize("inputs", ["static", "dynamic", "float"])
def test_a_row_does_not_depend_on_those_beside_it(inputs):
    made, _ = drawn(IntegerSpec(inputs=inputs))
    x = torch.randn(64, 24)
    with torch.no_grad():
        whole = made(x)
        for size in (4, 16):
            assert torch.equal(made(x[:size]), whole[:size])


def test_dynamic_inputs_are_rounded_by_the_largest_of_their_row():
    made, values = drawn(IntegerSpec(inputs="dynamic"), bias=False)
    x = torch.randn(7, 24) * torch.logspace(-3, 3, 7)[:, None]
    step = x.abs().amax(1, keepdim=True) / 127
    wanted = (x / step).round() * step @ (values.float() * made.weight_scale[:, None]).mT
    with torch.no_grad():
        torch.testing.assert_close(made(x), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(made(torch.zeros(1, 24)), torch.zeros(1, 40))
        assert not made(torch.zeros(1, 24)).isnan().any()


@pytest.mark.parametrize("inputs", ["static", "dynamic"])
def test_derivatives_pass_by_the_rounding(inputs):
    made, _ = drawn(IntegerSpec(inputs=inputs, shift=inputs == "static", spread=inputs == "static"))
    made.step = torch.full_like(made.step, 0.1) if inputs == "static" else None
    x = torch.randn(3, 24, requires_grad=True)
    with torch.no_grad():
        exact = made(x)
    y = made(x)
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, made.matrix.sum(0).expand(3, -1), rtol=1e-4, atol=1e-5)
    for scope in (torch.no_grad(), torch.enable_grad()):
        with scope:
            pair = torch.func.jvp(made, (x.detach(),), (torch.ones(3, 24),))
        torch.testing.assert_close(pair[1], made.matrix.sum(1).expand(3, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("zero", [0.0, 20.0, 128.0, 255.0])
def test_a_convolution_has_zeros_beyond_its_edges(zero, bits):
    torch.manual_seed(0)
    base = nn.Conv2d(6, 10, 3, padding=1, stride=2)
    made: Any = IntegerConv2d(base, IntegerSpec(groups=2, bits=bits, spread=True))
    values = torch.randint(-7, 8, base.weight.shape, dtype=torch.int8)
    made.weight.copy_(values if bits == 8 else pack(values.flatten(1)))
    made.weight_scale.uniform_(0.001, 0.01)
    made.step.copy_(torch.tensor([0.02, 0.05]))
    made.spread.uniform_(0.5, 1)
    made.zero.copy_(torch.tensor([zero, 128.0]))
    made.edges.fill_(0.5)
    made.bias.normal_()
    made.clock = Clock()
    x = torch.randn(3, 6, 7, 9)
    with torch.no_grad():
        parts = []
        for group, time in enumerate((0.1, 0.9)):
            low = -made.zero[group]
            q = (x / made.spread[:, None, None] / made.step[group]).round().clamp(low, 255 + low)
            wanted = F.conv2d(q, values.float(), padding=1, stride=2)
            wanted = wanted * (made.step[group] * made.weight_scale)[:, None, None]
            wanted = wanted + made.bias.view(made.spec.groups, -1)[group][:, None, None]
            made.clock.tell(torch.tensor([time]))
            parts.append(made(x))
            torch.testing.assert_close(parts[-1], wanted, rtol=1e-4, atol=6e-3)
        made.clock.tell(torch.tensor([0.1, 0.9, 0.1]))
        assert torch.equal(made(x), torch.stack([parts[0][0], parts[1][1], parts[0][2]]))
    made.clock.tell(torch.tensor([0.9]))
    follow = x.clone().requires_grad_()
    y = made(follow)
    torch.testing.assert_close(y, parts[1], rtol=1e-4, atol=1e-5)
    direct = F.conv_transpose2d(torch.ones_like(y), made.matrix, padding=1, stride=2, output_padding=(0, 0))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), follow)[0], direct, rtol=1e-3, atol=1e-4)


def test_a_table_is_read_and_tells_words():
    torch.manual_seed(0)
    table = IntegerEmbedding(30, 16)
    table.integers.copy_(torch.randint(-127, 128, (30, 16), dtype=torch.int8))
    table.weight_scale.uniform_(0.01, 0.02)
    tokens = torch.randint(0, 30, (2, 5))
    assert torch.equal(table(tokens), table.weight[tokens])
    owner = nn.Embedding(30, 16)
    head: Any = Head(owner)
    head._shared = (table,)
    hidden = torch.randn(2, 5, 16)
    with torch.no_grad():
        told = head(hidden)
        assert torch.equal(head(hidden[:1, :4]), told[:1, :4])
    exact = hidden @ table.weight.mT
    assert (told - exact).norm() / exact.norm() < 0.01
    assert torch.equal(head(hidden.requires_grad_()), told)


def block(seed=0):
    torch.manual_seed(seed)
    made = Block(32, AttentionConfig(heads=2).build(32), modulation=True, cross=False)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return made.eval()


def in_integers(made, folded) -> Any:
    spec = IntegerSpec(shift=True, spread=True, folded=folded)
    specs = {"block.operator.qkv": spec, "block.mlp.gate_up": spec}
    net: Any = with_integers(nn.ModuleDict({"block": deepcopy(made)}), specs)
    for name in ("operator.qkv", "mlp.gate_up"):
        part: Any = net.get_submodule(f"block.{name}")
        torch.manual_seed(len(name))
        part.weight.copy_(torch.randint(-127, 128, part.shape, dtype=torch.int8))
        part.weight_scale.fill_(0.002)
        part.step.fill_(0.03)
        part.shift.uniform_(-0.5, 0.5)
        part.spread.uniform_(0.3, 1)
    return net["block"]


def test_a_folded_modulation_brings_the_inputs_that_a_map_would_make_itself():
    made = block()
    x, modulation = torch.randn(2, 5, 32), 0.3 * torch.randn(2, 1, 192)
    context = OperatorContext(line(5, torch.device("cpu")))
    folded, plain = in_integers(made, True), in_integers(made, False)
    assert isinstance(folded.factors, Fold) and isinstance(plain.factors, nn.Identity)
    seen = {}
    for which, net in (("folded", folded), ("plain", plain)):
        for name in ("operator.qkv", "mlp.gate_up"):
            net.get_submodule(name).register_forward_pre_hook(
                lambda part, args, key=(which, name): seen.__setitem__(key, (part, args[0]))
            )
    with torch.no_grad():
        one, other = folded(x, context, modulation=modulation), plain(x, context, modulation=modulation)
    assert (one - other).abs().max() < 1e-2 * other.abs().max()  # a step at the most, here and there
    part, inputs = seen["plain", "operator.qkv"]
    stepped = (inputs - part.shift) / part.spread / part.step[0]
    folded_inputs = seen["folded", "operator.qkv"][1]
    assert (folded_inputs - stepped).abs().max() < 1e-4 * stepped.abs().max()


def test_what_cannot_be_is_refused():
    wrongs: tuple[dict[str, Any], ...] = (
        {"groups": 0},
        {"inputs": "dynamic", "groups": 2},
        {"inputs": "float", "shift": True},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            IntegerSpec(**wrong)
    net = nn.ModuleDict({"map": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "table": nn.Embedding(8, 8)})
    for specs in (
        {"nothing": IntegerSpec()},
        {"norm": IntegerSpec()},
        {"table": IntegerSpec()},
        {"map": IntegerSpec(groups=2)},  # no clock
        {"map": IntegerSpec(folded=True)},  # no modulation
        {"": IntegerSpec()},
    ):
        with pytest.raises(ConfigError):
            with_integers(deepcopy(net), specs)
    with pytest.raises(ConfigError):
        with_integers(nn.Sequential(nn.Conv2d(8, 8, 3)), {"0": IntegerSpec(shift=True)})
    with pytest.raises(ConfigError):
        with_integers(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), {"0": IntegerSpec()})


def test_numbers_that_were_learned_are_counted_and_copies_for_reading_share_them():
    net: Any = with_integers(
        nn.ModuleDict({"map": nn.Linear(8, 6), "norm": nn.LayerNorm(8)}), {"map": IntegerSpec(bits=4)}
    )
    assert count_parameters(net) == 8 * 6 + 16
    copied: Any = columnwise(net)
    assert copied["map"] is net["map"]


def test_what_is_stored_anew_is_used():
    made, _ = drawn(IntegerSpec())
    x = torch.randn(4, 24)
    with torch.no_grad():
        before = made(x)
        made.load_state_dict({**made.state_dict(), "weight_scale": 2 * made.weight_scale, "bias": 2 * made.bias})
        torch.testing.assert_close(made(x), 2 * before)
