"""The spectral convolution beyond the common contract: what its kernel is."""

import math

import pytest
import torch

from manta.operators import OperatorContext, SpectralConvolution, line
from manta.operators.fourier import TIME_FEATURES


def identity_projections(operator: SpectralConvolution) -> SpectralConvolution:
    torch.nn.init.eye_(operator.value.weight)
    torch.nn.init.eye_(operator.out.weight)
    return operator.double()


def context(n: int, time: torch.Tensor | None = None) -> OperatorContext:
    return OperatorContext(line(n).double(), None, time)


def test_the_constant_mode_is_the_mean():
    operator = identity_projections(SpectralConvolution(4, 1, 2))
    torch.nn.init.ones_(operator.spectrum)
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(operator(x, context(7)), x.mean(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize("causal", [False, True])
def test_kernel_is_translation_invariant_and_directional(causal):
    n = 8
    operator = identity_projections(SpectralConvolution(4, 5, 2, causal=causal, period=20.0))
    impulses = torch.eye(n, dtype=torch.float64)[:, :, None].repeat(1, 1, 4)
    kernel = operator(impulses, context(n)).permute(2, 1, 0)
    if causal:
        kernel = kernel * torch.arange(1, n + 1).double()[:, None]
    for channel in kernel:
        for lag in range(1 - n, n):
            diagonal = channel.diagonal(-lag)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert not torch.allclose(kernel[0], kernel[0].T)
    torch.testing.assert_close(kernel[0], kernel[1])
    assert not torch.allclose(kernel[0], kernel[2])


def test_rows_sampled_twice_as_finely_converge_to_the_same_function():
    operator = identity_projections(SpectralConvolution(4, 4, 2))
    outputs = []
    for n in (64, 128):
        u = (torch.arange(n).double() + 0.5) / n
        x = torch.stack([(k * u).sin() for k in (1, 2, 3, 4)], -1)[None]
        outputs.append(operator(x, context(n)))
    finer = outputs[1].unflatten(1, (64, 2)).mean(2)
    assert (outputs[0] - finer).abs().max() < 2e-3 * finer.abs().max()


def test_modes_beyond_the_length_of_a_row_are_dropped():
    few, many = (SpectralConvolution(4, modes, 2).double() for modes in (3, 9))
    torch.nn.init.normal_(many.out.weight)
    with torch.no_grad():
        for name, parameter in few.named_parameters():
            source = many.get_parameter(name)
            parameter.copy_(source[:, :3] if name in ("spectrum", "time_gain") else source)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(few(x, context(3)), many(x, context(3)))


@pytest.mark.parametrize("causal", [False, True])
def test_time_scales_each_mode_at_the_receiving_element(causal):
    operator = identity_projections(SpectralConvolution(4, 3, 2, causal=causal))
    x, time = torch.randn(1, 5, 4, dtype=torch.float64), torch.rand(1, 5, dtype=torch.float64)
    torch.testing.assert_close(operator(x, context(5, time)), operator(x, context(5)))
    gain = torch.arange(1.0, TIME_FEATURES + 1)
    with torch.no_grad():
        operator.time_gain.copy_(gain[:, None].expand_as(operator.time_gain))
    cosines = torch.stack([(math.pi * (k + 1) * time).cos() for k in range(TIME_FEATURES)], -1)
    factor = 1 + (gain * cosines).sum(-1, keepdim=True)
    torch.testing.assert_close(operator(x, context(5, time)), factor * operator(x, context(5)))
