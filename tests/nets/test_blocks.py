"""Blocks: identity at birth, the written formula after, and no leak through padding, order or dtype."""

import pytest
import torch
import torch.nn.functional as F

from manta.nets.blocks import Block, RMSNorm, SwiGLU
from manta.operators import CAUSAL, KINDS, OperatorContext, line

DIM = 16


def build(kind: str = "attention", *, cross: bool = True, modulation: bool = True, causal: bool = False) -> Block:
    torch.manual_seed(0)
    block = Block(DIM, KINDS[kind]().build(DIM, causal=causal), cross=cross, modulation=modulation, heads=2).double()
    for name, parameter in block.named_parameters():
        if name != "table":
            torch.nn.init.normal_(parameter, std=0.3)
    return block


def sample(b: int = 2, n: int = 5, m: int = 3, per_element: bool = False):
    generator = torch.Generator().manual_seed(1)
    shapes = [(b, n, DIM), (b, m, DIM), (b, n if per_element else 1, 6 * DIM)]
    x, memory, modulation = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, {"memory": memory, "modulation": 0.3 * modulation}, OperatorContext(line(n).double())


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("per_element", [False, True])
def test_the_block_is_its_formula(per_element):
    block = build()
    x, inputs, context = sample(per_element=per_element)
    assert block.cross is not None and block.table is not None
    table = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64).repeat_interleave(DIM)
    b1, a1, g1, b2, a2, g2 = (inputs["modulation"] + table).unflatten(-1, (6, DIM)).unbind(-2)
    y = x + g1 * block.operator(a1 * unit(x) + b1, context)
    y = y + block.cross(unit(y), inputs["memory"])
    y = y + g2 * block.mlp(a2 * unit(y) + b2)
    torch.testing.assert_close(block(x, context, **inputs), y)


def test_without_modulation_the_factors_are_those_of_the_table_at_birth():
    plain, modulated = build(modulation=False), build()
    x, inputs, context = sample()
    zero = torch.zeros_like(inputs["modulation"])
    modulated.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(
        plain(x, context, memory=inputs["memory"]), modulated(x, context, memory=inputs["memory"], modulation=zero)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_block_is_the_identity_whatever_the_modulation(kind):
    block = Block(DIM, KINDS[kind]().build(DIM), cross=True, modulation=True, heads=2).double()
    x, inputs, context = sample()
    assert torch.equal(block(x, context, **inputs), x)


def test_modulation_of_one_element_acts_through_the_mlp_on_it_alone():
    block = build("windowed", cross=False)
    x, inputs, context = sample(per_element=True)
    other = inputs["modulation"].clone()
    other[:, 4, 3 * DIM :] += 1
    before, after = (block(x, context, modulation=modulation) for modulation in (inputs["modulation"], other))
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=0)
    assert not torch.allclose(before[:, 4], after[:, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_the_row_in_a_padded_batch(kind):
    block = build(kind)
    x, inputs, _ = sample(2, 6)
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    memory_mask = torch.arange(3) < torch.tensor([[2], [3]])
    coordinates = line(6).double()
    together = block(x, OperatorContext(coordinates, mask), memory_mask=memory_mask, **inputs)
    alone = block(
        x[:1, :4],
        OperatorContext(coordinates[:4]),
        memory=inputs["memory"][:1, :2],
        modulation=inputs["modulation"][:1],
    )
    torch.testing.assert_close(together[:1, :4], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_operator_makes_a_causal_block(kind):
    block = build(kind, causal=True)
    x, inputs, context = sample()
    other = x.clone()
    other[:, 3:] += 1
    assert torch.equal(block(x, context, **inputs)[:, :3], block(other, context, **inputs)[:, :3])


def test_a_projected_memory_gives_the_same():
    block = build()
    x, inputs, context = sample()
    assert block.cross is not None
    mask = torch.tensor([[True, False, True], [False, False, False]])
    cached = {**inputs, "memory": block.cross.project(inputs["memory"], mask)}
    assert torch.equal(block(x, context, memory_mask=mask, **inputs), block(x, context, **cached))


def test_what_a_block_was_not_built_for_is_a_bug_of_the_caller():
    x, inputs, context = sample()
    with pytest.raises(AssertionError, match="cross=True"):
        build(cross=False)(x, context, **inputs)
    with pytest.raises(AssertionError, match="modulation=True"):
        build()(x, context, memory=inputs["memory"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_keeps_its_dtype_under_autocast_and_stays_close(kind, dtype):
    block = build(kind).float()
    x, inputs, context = sample()
    inputs = {name: tensor.float() for name, tensor in inputs.items()}
    with torch.no_grad():
        exact = block(x.float(), context, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x.to(dtype), context, **inputs)
    assert y.dtype is dtype
    assert (y.float() - exact).norm() < 0.02 * exact.norm()


def test_swiglu_is_its_formula_and_costs_two_thirds_of_twelve():
    mlp = SwiGLU(24).double()
    assert mlp.out.weight.shape == (24, 64)
    torch.nn.init.normal_(mlp.out.weight)
    x = torch.randn(3, 24, dtype=torch.float64)
    gate, up = mlp.gate_up.weight.unflatten(0, (2, 64))
    torch.testing.assert_close(mlp(x), (F.silu(x @ gate.T) * (x @ up.T)) @ mlp.out.weight.T)
    assert SwiGLU(192).out.weight.shape == (192, 512)


def test_rms_norm_applies_its_gain():
    norm = RMSNorm(4).double()
    torch.nn.init.normal_(norm.gain)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(x), norm.gain * unit(x))
