"""What every kind of operator promises, whatever it computes."""

from collections.abc import Callable
from dataclasses import fields
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from manta.errors import ConfigError, UsageError
from manta.operators import CAUSAL as CAUSAL_KINDS
from manta.operators import KINDS, Cache, Operator, OperatorChoice, OperatorContext, line
from manta.operators.reference import reference

DIM = 8
CONFIGS = {
    "attention": {"heads": 2},
    "fourier": {"modes": 5, "groups": 4, "period": 16.0},
    "attention_fourier": {"heads": 2, "modes": 3, "groups": 2, "period": 16.0},
    "windowed": {"heads": 2, "radius": 1},
    "linear": {"heads": 2, "chunk": 3},
    "dijiang": {"heads": 2, "chunk": 3},
    "pyramid_conv": {"kernel": 3},
    "downsampled": {"heads": 2, "rate": 2},
    "attention as others have it": {"heads": 2, "kv_heads": 1, "rotary_share": 0.5, "bias": True, "normalised": False},
    "linear with biases": {"heads": 2, "chunk": 3, "rotary_share": 0.5, "bias": True},
}
CAUSAL = tuple(kind for kind in CONFIGS if kind.split()[0] in CAUSAL_KINDS)
AXES = {kind: (1, 2) if kind in ("attention", "windowed") else (1,) for kind in CONFIGS}
"""Numbers of axes that an operator can follow, with heads of this width."""
SHARED_OUT = ("heads", "groups", "kernel")
"""Fields of what shares a width out."""
every_kind = pytest.mark.parametrize("kind", CONFIGS)
every_causal_kind = pytest.mark.parametrize("kind", CAUSAL)
every_kind_along_its_axes = pytest.mark.parametrize(
    ("kind", "axes"), [(kind, axes) for kind in CONFIGS for axes in AXES[kind]]
)
WAYS = [(kind, causal) for kind in CONFIGS for causal in (False, True) if kind in CAUSAL or not causal]
every_kind_either_way = pytest.mark.parametrize(("kind", "causal"), WAYS)


def splits(kind: str) -> bool:
    """Whether an operator shares its width out among parts."""
    return any(field.name in SHARED_OUT for field in fields(KINDS[kind.split()[0]]))


def test_the_tables_name_the_same_operators():
    assert {kind.split()[0] for kind in CONFIGS} == set(KINDS), "every operator is under this contract"
    assert set(get_args(OperatorChoice)) == set(KINDS.values()), "every operator can be chosen by its kind"
    assert {config().kind: config for config in KINDS.values()} == KINDS


def build(kind: str, causal: bool, *, dtype: torch.dtype = torch.float64) -> Operator:
    """An operator with every weight away from its initial value, so that nothing is hidden by a zero."""
    torch.manual_seed(0)
    operator = KINDS[kind.split()[0]](**CONFIGS[kind]).build(DIM, causal=causal).to(dtype)
    for parameter in operator.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return operator


def sample(b: int, n: int, lengths: list[int] | None = None, *, seed: int = 0, shared: bool = False, axes: int = 1):
    """A state and a context with fractional coordinates, a right-padded mask and a time for each element."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, DIM, generator=generator, dtype=torch.float64)
    rows = (n, axes) if shared else (b, n, axes)
    coordinates = torch.rand(rows, generator=generator, dtype=torch.float64).cumsum(-2) * 2
    time = torch.rand(b, n, generator=generator, dtype=torch.float64)
    mask = None if lengths is None else torch.arange(n) < torch.tensor(lengths)[:, None]
    return x, OperatorContext(coordinates, mask, time)


def real(output: torch.Tensor, context: OperatorContext) -> torch.Tensor:
    return output if context.mask is None else output[context.mask]


def gradients(function: Callable[..., torch.Tensor], operator: Operator, x: torch.Tensor, context: OperatorContext):
    x = x.clone().requires_grad_()
    output = real(function(x, context), context)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, torch.autograd.grad((output * weights).sum(), [x, *operator.parameters()])


@pytest.mark.parametrize(("kind", "causal", "axes"), [(*way, axes) for way in WAYS for axes in AXES[way[0]]])
@pytest.mark.parametrize("lengths", [None, [5, 3, 1]])
@pytest.mark.parametrize("shared", [False, True])
def test_output_and_gradients_equal_the_slow_reference(kind, causal, lengths, shared, axes):
    operator = build(kind, causal)
    x, context = sample(3, 5, lengths, shared=shared, axes=axes)
    fast = gradients(operator, operator, x, context)
    slow = gradients(lambda x, context: reference(operator, x, context), operator, x, context)
    torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(real(operator(x, context), context), slow[0].detach(), rtol=1e-8, atol=1e-10)


@every_kind_either_way
@given(b=st.integers(1, 3), n=st.integers(1, 7), seed=st.integers(0, 99), masked=st.booleans(), timed=st.booleans())
@settings(max_examples=8, deadline=None)
def test_any_shape_equals_the_reference(kind, causal, b, n, seed, masked, timed):
    operator = build(kind, causal)
    x, context = sample(b, n, [(seed + row) % n + 1 for row in range(b)] if masked else None, seed=seed)
    context = OperatorContext(context.coordinates, context.mask, context.time if timed else None)
    with torch.no_grad():
        output = operator(x, context)
        assert output.shape == x.shape
        torch.testing.assert_close(real(output, context), real(reference(operator, x, context), context))


@every_kind_either_way
def test_a_row_alone_equals_the_row_in_a_padded_batch(kind, causal):
    operator = build(kind, causal)
    lengths = [4, 9, 6]
    x, context = sample(3, 9, lengths)
    assert context.time is not None
    with torch.no_grad():
        together = operator(x, context)
        for row, length in enumerate(lengths):
            part = slice(row, row + 1), slice(0, length)
            alone = operator(x[part], OperatorContext(context.coordinates[part], None, context.time[part]))
            torch.testing.assert_close(together[part], alone, rtol=1e-10, atol=1e-12)


@every_kind
def test_what_stands_at_masked_elements_reaches_nobody(kind):
    operator = build(kind, False)
    x, context = sample(2, 6, [3, 5])
    assert context.mask is not None
    disturbed = torch.where(context.mask[..., None], x, 100 * torch.randn_like(x))
    with torch.no_grad():
        assert torch.equal(real(operator(x, context), context), real(operator(disturbed, context), context))


@every_causal_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_causal_is_exact_to_the_bit(kind, dtype, training):
    operator = build(kind, True, dtype=dtype)
    assert operator.causal
    x, context = sample(2, 9)
    x, time = x.to(dtype), context.time
    assert time is not None
    for i in (0, 4, 7):
        later = torch.arange(9) > i
        other_x = torch.where(later[:, None], torch.randn_like(x) * 3, x)
        other_time = torch.where(later, 1 - time, time)
        with torch.set_grad_enabled(training):
            before = operator(x, OperatorContext(context.coordinates, None, time))
            after = operator(other_x, OperatorContext(context.coordinates, None, other_time))
        assert torch.equal(before[:, : i + 1], after[:, : i + 1])
        assert not torch.equal(before[:, i + 1 :], after[:, i + 1 :])


@every_causal_kind
@pytest.mark.parametrize("lengths", [None, [7, 4, 1]])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("spans", [[(0, 7)], [(i, i + 1) for i in range(7)], [(0, 3), (3, 4), (4, 7), (1, 5)]])
def test_a_causal_pass_in_spans_is_the_pass_over_the_row(kind, lengths, shared, spans):
    operator, cache = build(kind, True), Cache()
    x, context = sample(3, 7, lengths, shared=shared)
    with torch.no_grad():
        whole = operator(x, context)
        for start, stop in spans:
            if operator.carries and start == 1 and stop == 5:
                with pytest.raises(UsageError, match="has come to element 7, and a span begins at 1"):
                    operator(x[:, start:stop], context.span(start, stop), cache)
                continue
            part = operator(x[:, start:stop], context.span(start, stop), cache)
            real = slice(None) if context.mask is None else context.mask[:, start:stop]
            torch.testing.assert_close(part[real], whole[:, start:stop][real], rtol=1e-10, atol=1e-12)


@every_kind
@pytest.mark.parametrize("lengths", [None, [7, 4, 1]])
@pytest.mark.parametrize("span", [(0, 7), (2, 3), (1, 6), (6, 7)])
def test_a_span_that_has_changed_is_computed_as_in_the_row_that_has_changed(kind, lengths, span):
    operator, cache = build(kind, False), Cache()
    x, context = sample(3, 7, lengths)
    here = slice(*span)
    changed = x.clone()
    changed[:, here] = torch.randn_like(x[:, here])
    with torch.no_grad():
        torch.testing.assert_close(operator(x, context, cache), operator(x, context), rtol=0, atol=0)
        part = operator(changed[:, here], context.span(*span), cache)
        whole = operator(changed, context)[:, here]
    real = slice(None) if context.mask is None else context.mask[:, here]
    torch.testing.assert_close(part[real], whole[real], rtol=1e-10, atol=1e-12)


def test_a_cache_grows_and_keeps_what_it_has():
    context, cache = OperatorContext(line(300)), Cache()
    rows = torch.randn(2, 300, 3)
    for place in range(300):
        found = cache.renew("rows", rows[:, place : place + 1], context.span(place, place + 1), place + 1)
        assert torch.equal(found, rows[:, : place + 1])


def influence(operator: Operator, x: torch.Tensor, context: OperatorContext) -> torch.Tensor:
    """True at (i, j) where the output at i depends on the input at j."""
    jacobian = torch.autograd.functional.jacobian(lambda x: operator(x, context), x)
    assert isinstance(jacobian, torch.Tensor)
    return jacobian[0, :, :, 0].abs().amax((1, 3)) > 0


@every_kind_along_its_axes
def test_support_is_global_except_for_the_windowed_control(kind, axes):
    n = 12
    grid = line(n) if axes == 1 else torch.cartesian_prod(torch.arange(3), torch.arange(4))
    x, context = sample(1, n)
    context = OperatorContext(grid, None, context.time)
    places = grid.tolist()
    apart = [[max(abs(a - b) for a, b in zip(i, j, strict=True)) for j in places] for i in places]
    near = torch.tensor(apart) <= CONFIGS[kind].get("radius", 0)
    expected = near if kind == "windowed" else torch.ones(n, n, dtype=torch.bool)
    assert torch.equal(influence(build(kind, False), x, context), expected)
    if kind in CAUSAL:
        assert torch.equal(influence(build(kind, True), x, context), expected.tril())


def test_what_sees_both_sides_refuses_to_be_causal():
    with pytest.raises(ConfigError, match="sees both sides of an element, so no left-to-right model can use it"):
        build("pyramid_conv", True)


@pytest.mark.parametrize(
    ("kind", "causal"), [way for way in WAYS if AXES[way[0]] == (1,) and way[0].split()[0] != "attention"]
)
def test_what_follows_one_axis_refuses_two(kind, causal):
    with pytest.raises(ConfigError, match="follows one axis, received 2"):
        build(kind, causal)(*sample(1, 4, axes=2))


@every_kind_either_way
@given(n=st.integers(1, 40))
@settings(max_examples=6, deadline=None)
def test_flops_equal_the_counted_ones(kind, causal, n):
    operator = build(kind, causal)
    x, context = sample(1, n)
    with FlopCounterMode(display=False) as counter:
        operator(x.requires_grad_(), context)
    assert operator.flops(n, DIM) == counter.get_total_flops()


@every_kind_either_way
def test_a_fresh_operator_adds_nothing_but_can_learn(kind, causal):
    operator = KINDS[kind.split()[0]](**CONFIGS[kind]).build(DIM, causal=causal).double()
    x, context = sample(2, 4)
    output = operator(x, context)
    assert torch.count_nonzero(output) == 0
    output.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in operator.parameters())


@every_kind_either_way
def test_a_row_without_real_elements_stays_finite(kind, causal):
    operator = build(kind, causal)
    x, context = sample(2, 4, [0, 2])
    x.requires_grad_()
    output = operator(x, context)
    output.square().sum().backward()
    for tensor in (output, x.grad, *(parameter.grad for parameter in operator.parameters())):
        assert tensor is not None and tensor.isfinite().all()
    with torch.no_grad():
        assert operator(x, context).isfinite().all()


@every_kind
def test_autocast_stays_close_to_full_precision(kind):
    operator = build(kind, False, dtype=torch.float32)
    x, context = sample(4, 24, [24, 20, 9, 1])
    x = x.float()
    with torch.no_grad():
        exact = real(operator(x, context), context)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = real(operator(x, context), context)
    assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if splits(kind)])
def test_a_width_that_does_not_split_is_refused(kind):
    with pytest.raises(ConfigError, match="does not split into"):
        KINDS[kind.split()[0]]().build(30)


@pytest.mark.parametrize(
    ("kind", "field"),
    [(k, f) for k, fields in CONFIGS.items() for f, value in fields.items() if type(value) is not bool],
)
def test_a_value_out_of_range_is_refused(kind, field):
    with pytest.raises(ConfigError, match=rf"{field} (must|should) be .*received 0"):
        KINDS[kind.split()[0]](**{field: type(CONFIGS[kind][field])(0)})


def test_an_operator_without_reference_is_named():
    with pytest.raises(TypeError, match="Operator"):
        reference(Operator(), *sample(1, 2))  # pyright: ignore[reportAbstractUsage]
