"""Attention by features: its three forms, long rows, a state that does not grow, and the features themselves."""

import math

import pytest
import torch

from manta.config import from_dict
from manta.errors import ConfigError
from manta.operators import (
    Cache,
    DijiangAttention,
    DijiangConfig,
    KernelAttention,
    LinearConfig,
    OperatorContext,
    line,
    linear,
)
from manta.operators.dijiang import chi_quantiles, cosines, directions

CONFIGS = {"linear": LinearConfig, "dijiang": DijiangConfig}
every_kind = pytest.mark.parametrize("kind", CONFIGS)


def build(kind: str, *, chunk: int, causal: bool = True, dim: int = 16) -> KernelAttention:
    torch.manual_seed(0)
    operator = CONFIGS[kind](heads=2, chunk=chunk).build(dim, causal=causal)
    torch.nn.init.normal_(operator.out.weight, std=0.3)
    return operator


def carried(operator: KernelAttention, x: torch.Tensor, context: OperatorContext) -> torch.Tensor:
    """The recurrent form: one element after the other, and where the row is long some at once."""
    cache, ends = Cache(), [*range(1, 300), *range(300, x.shape[1], 61), x.shape[1]]
    spans = zip([0, *ends], ends, strict=False)
    return torch.cat([operator(x[:, i:j], context.span(i, j), cache) for i, j in spans], 1)


@every_kind
@torch.no_grad()
def test_the_three_forms_of_a_causal_row_agree(kind):
    n = 4096
    x, context = torch.randn(1, n, 16), OperatorContext(line(n))
    chunkwise = build(kind, chunk=64)(x, context)
    materialised = build(kind, chunk=n)(x, context)
    recurrent = carried(build(kind, chunk=64), x, context)
    assert (chunkwise - materialised).abs().max() < 1e-4
    assert (recurrent - materialised).abs().max() < 1e-4
    assert chunkwise.abs().max() > 0.05, "there is something to compare"


@every_kind
@torch.no_grad()
def test_both_forms_of_a_row_that_sees_all_agree(kind):
    n = 1000
    x, context = torch.randn(2, n, 16), OperatorContext(line(n), torch.arange(n) < torch.tensor([[n], [700]]))
    chunkwise = build(kind, chunk=64, causal=False)(x, context)
    materialised = build(kind, chunk=n, causal=False)(x, context)
    assert (chunkwise - materialised)[context.mask].abs().max() < 1e-4


@every_kind
@pytest.mark.parametrize("causal", [True, False])
def test_segments_of_a_row_change_neither_it_nor_its_gradients(kind, causal, monkeypatch):
    """Rows with gaps between places, of several segments with a rest, against the materialised form."""
    monkeypatch.setattr(linear, "SEGMENT", 3)
    n = 45
    torch.manual_seed(3)
    places = torch.rand(2, n, 1, dtype=torch.float64).mul(9).cumsum(1)
    mask = torch.arange(n) < torch.tensor([[n], [n - 20]])
    found = []
    for chunk in (4, n):
        operator = build(kind, chunk=chunk, causal=causal).double()
        x = torch.randn(2, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = operator(x, OperatorContext(places, mask))
        y[mask].square().sum().backward()
        found.append([y[mask], x.grad, *(parameter.grad for parameter in operator.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@every_kind
def test_a_long_row_and_its_gradients_are_finite(kind):
    n = 65_536
    x = torch.randn(1, n, 8).requires_grad_()
    operator = build(kind, chunk=256, dim=8)
    y = operator(x, OperatorContext(line(n)))
    y.square().sum().backward()
    assert x.grad is not None
    for tensor in (y, x.grad, *(parameter.grad for parameter in operator.parameters())):
        assert tensor is not None and bool(tensor.isfinite().all())


@every_kind
@torch.no_grad()
def test_what_is_carried_does_not_grow(kind):
    operator, cache, row, sizes = build(kind, chunk=8), Cache(), OperatorContext(line(41)), set()
    for start in range(0, 40, 4):
        operator(torch.randn(2, 4, 16), row.span(start, start + 4), cache)
        sizes.add(sum(part.numel() for part in cache.carried(row.span(start + 4, start + 5))))
    assert len(sizes) == 1


@every_kind
@torch.no_grad()
def test_distant_places_are_forgotten_at_the_rate_of_their_head(kind):
    """The first head forgets within some dozen places, the last within some hundreds."""
    operator = build(kind, chunk=64)
    gamma = (-operator.log_rate.exp()).exp()
    torch.testing.assert_close(gamma, torch.tensor([1 - 1 / 32, 1 - 1 / 512]))


@every_kind
@torch.no_grad()
def test_in_bfloat16_what_is_carried_loses_nothing_over_a_long_row(kind):
    operator = build(kind, chunk=64)
    x, context, cache = torch.randn(1, 1500, 16), OperatorContext(line(1500)), Cache()
    exact = operator(x, context)
    rounded = operator.bfloat16()
    told = [rounded(x[:, i : i + 1].bfloat16(), context.span(i, i + 1), cache) for i in range(1500)]
    late = torch.cat(told, 1)[:, 1000:].float() - exact[:, 1000:]
    assert late.norm() < 0.05 * exact[:, 1000:].norm()


def test_the_cosine_transform_is_orthonormal():
    for size in (1, 2, 7, 64):
        table = cosines(size)
        assert (table @ table.T - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-6
    assert torch.allclose(cosines(4)[1], math.sqrt(0.5) * torch.tensor([1, 3, 5, 7]).mul(math.pi / 8).cos().double())


@torch.no_grad()
def test_features_are_not_negative_and_their_directions_are_frozen_and_kept():
    operator = build("dijiang", chunk=8)
    assert isinstance(operator, DijiangAttention)
    assert bool((operator.features(torch.randn(2, 2, 50, 8)) >= 0).all())
    assert "directions" in operator.state_dict() and "directions" not in dict(operator.named_parameters())
    other = DijiangConfig(heads=2).build(16)
    assert not torch.equal(other.directions, operator.directions)
    radii = operator.directions.norm(dim=1)
    below = torch.special.ndtr(torch.cat([radii, -radii]).double())
    assert 0.0 < float(below.min()) < 0.2 < 0.8 < float(below.max()) < 1.0, "they spread over the normal distribution"


def mean_kernel(radius: str, size: int = 32, draws: int = 3000) -> float:
    """<φ(q), φ(k)> over exp(<q, k>), in the mean over draws of the directions."""
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.nn.functional.normalize(torch.randn(size, generator=generator), dim=0).double() for _ in range(2))
    torch.manual_seed(0)
    total = 0.0
    for _ in range(draws):
        w = directions(size, radius)  # pyright: ignore[reportArgumentType]
        left, right = ((w @ x - x.square().sum() / 2).exp() / math.sqrt(size) for x in (q, k))
        total += float(left @ right)
    return total / draws / float((q @ k).exp())


def test_chi_radii_give_the_kernel_of_softmax_in_the_mean_and_normal_quantiles_do_not():
    assert mean_kernel("chi") == pytest.approx(1, abs=0.03)
    assert mean_kernel("icdf") < 0.75


def test_lengths_of_normal_vectors():
    chances = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    known = [0.1418, 1.1774, 3.0349]  # of two entries: sqrt(-2 log(1 - p))
    assert chi_quantiles(chances, 2).tolist() == pytest.approx(known, abs=1e-3)
    assert float(chi_quantiles(chances, 64)[1]) == pytest.approx(8, abs=0.1)


def test_values_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="radius"):
        from_dict(DijiangConfig, {"radius": "sphere"})
    with pytest.raises(ConfigError, match="chunk must be at least 1"):
        LinearConfig(chunk=0)
