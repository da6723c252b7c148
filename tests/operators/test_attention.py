"""Attention beyond the common contract: its two ways of computing, and what its positions mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.operators import OperatorContext, SelfAttention
from manta.operators import attention as attention_module
from manta.operators.attention import attend


def operands(n: int, m: int, *, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n * 31 + m)
    shapes = [(2, 3, n, 4), (2, 3, m, 4), (2, 3, m, 4), (3, 1, 1)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@given(n=st.integers(1, 9), m=st.integers(1, 9), masked=st.booleans())
@settings(max_examples=15, deadline=None)
def test_explicit_and_fused_ways_agree_in_outputs_and_gradients(n, m, masked):
    bias = torch.where(torch.arange(m) % 2 == 0, 0.0, -1e4).double()[None, None, None] if masked else None
    results = []
    for limit in (256, 0):
        tensors = [tensor.requires_grad_() for tensor in operands(n, m)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_module, "EXPLICIT_MAX_LENGTH", limit)
            q, k, v, scale = tensors
            y = attend(q, k, v, scale, bias)
        assert ("ScaledDotProduct" in type(leaf_of(y)).__name__) == (limit == 0)
        results.append((y, *torch.autograd.grad(y.square().sum(), tensors)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def leaf_of(y: torch.Tensor):
    """The graph node that made y, or the attention kernel behind a view of its output."""
    node = y.grad_fn
    while node is not None and "Attention" not in type(node).__name__ and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node


def test_short_rows_with_gradients_are_explicit_and_all_else_is_fused(monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    q, k, v, scale = operands(3, 5)
    attend(q, k, v, scale)
    assert len(calls) == 1, "no gradient asked for"
    attend(q.requires_grad_(), k, v, scale)
    assert len(calls) == 1, "gradient asked for"
    with torch.no_grad():
        attend(q, k, v, scale)
    assert len(calls) == 2, "gradients switched off"
    attend(*(tensor.requires_grad_() for tensor in operands(3, 257)))
    assert len(calls) == 3, "long"


def test_no_key_gives_zero_and_zero_gradients():
    tensors = [tensor.requires_grad_() for tensor in operands(3, 0)]
    y = attend(*tensors)
    assert y.shape == (2, 3, 3, 4) and torch.count_nonzero(y) == 0
    for grad in torch.autograd.grad(y.sum(), tensors):
        assert torch.count_nonzero(grad) == 0


@pytest.mark.parametrize("shift", [(0.25,), (17.0,), (0.25, 0.0), (-3.5, 17.0)])
def test_output_depends_on_relative_positions_only(shift):
    torch.manual_seed(0)
    operator = SelfAttention(8, 2).double()
    torch.nn.init.normal_(operator.out.weight)
    x, positions = torch.randn(2, 5, 8, dtype=torch.float64), torch.rand(5, len(shift), dtype=torch.float64) * 9
    base, moved = (operator(x, OperatorContext(p)) for p in (positions, positions + torch.tensor(shift)))
    torch.testing.assert_close(base, moved, rtol=1e-9, atol=1e-11)
    for axis in range(len(shift)):
        stretched = torch.where(torch.arange(len(shift)) == axis, positions * 1.5, positions)
        assert not torch.allclose(base, operator(x, OperatorContext(stretched))), "every axis counts"


def test_permuting_elements_with_their_positions_permutes_the_output():
    torch.manual_seed(0)
    operator = SelfAttention(8, 2).double()
    torch.nn.init.normal_(operator.out.weight)
    x, positions, order = torch.randn(1, 6, 8, dtype=torch.float64), torch.rand(6, 1).double(), torch.randperm(6)
    torch.testing.assert_close(
        operator(x, OperatorContext(positions))[:, order], operator(x[:, order], OperatorContext(positions[order]))
    )
