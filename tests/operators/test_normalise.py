"""The hand-written normalisation: equal to torch's own in value and in every kind of derivative."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.operators.normalise import EPS, rms_normalise


@given(rows=st.integers(0, 4), d=st.integers(1, 9), scale=st.sampled_from([1e-4, 1.0, 1e3]))
@settings(max_examples=20, deadline=None)
def test_value_and_gradient_equal_torchs(rows, d, scale):
    generator = torch.Generator().manual_seed(d)
    x = (scale * torch.randn(rows, d, generator=generator, dtype=torch.float64)).requires_grad_()
    g = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    fast, slow = rms_normalise(x), F.rms_norm(x, (d,), eps=EPS)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, x, g), torch.autograd.grad(slow, x, g))


def test_first_second_and_forward_derivatives():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_normalise, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(rms_normalise, x)


def test_function_transforms_see_the_true_jacobian():
    x, tangent = torch.randn(2, 4, dtype=torch.float64)
    x.requires_grad_()
    expected = torch.autograd.functional.jacobian(lambda x: F.rms_norm(x, (4,), eps=EPS), x)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(torch.func.jvp(rms_normalise, (x,), (tangent,))[1], expected @ tangent)
    torch.testing.assert_close(torch.func.jacrev(rms_normalise)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(rms_normalise)(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_is_kept_with_and_without_gradients_also_under_autocast(dtype):
    x = (1e3 * torch.randn(5, 48)).to(dtype)
    exact = F.rms_norm(x.double(), (48,), eps=EPS)
    for grad in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            y = rms_normalise(x.clone().requires_grad_(grad))
        assert y.dtype is dtype
        torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_zero_row_is_finite():
    x = torch.zeros(2, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(rms_normalise(x).sum(), x)
    torch.testing.assert_close(grad, torch.full((2, 4), EPS**-0.5))


@pytest.mark.parametrize("shape", [(4, 1, 192), (2, 4, 6, 1, 32), (3, 17, 160), (7, 5, 768)])
def test_without_a_gradient_it_is_torchs_own_to_the_last_bit(shape):
    x = 3 * torch.randn(shape)
    assert torch.equal(rms_normalise(x), F.rms_norm(x, (shape[-1],), eps=EPS))
    part = x[..., : shape[-1] // 2]
    assert torch.equal(rms_normalise(part), F.rms_norm(part, part.shape[-1:], eps=EPS))
