import pytest
import torch

from manta.errors import ConfigError
from manta.operators import OperatorContext, PyramidConfig, PyramidGrid, inherit_attention, lattice, line
from manta.operators.attention import SelfAttention


def built(dim=8, kernel=3):
    torch.manual_seed(0)
    operator = PyramidGrid(dim, kernel)
    torch.nn.init.normal_(operator.out.weight)
    torch.nn.init.normal_(operator.mean.weight)
    return operator


def on(rows, columns):
    return OperatorContext(lattice(rows, columns), grid=(rows, columns))


def slowly(operator, x, rows, columns):
    """Element by element, from the formula."""
    b, _, d = x.shape
    h = operator.inner(x).view(b, rows, columns, d // 2)

    def level(grid, kernels):
        high, wide, reach = grid.shape[1], grid.shape[2], operator.kernel // 2
        found = torch.zeros_like(grid)
        for i in range(high):
            for j in range(wide):
                for k in range(-reach, reach + 1):
                    for m in range(-reach, reach + 1):
                        if 0 <= i + k < high and 0 <= j + m < wide:
                            found[:, i, j] += grid[:, i + k, j + m] * kernels[:, k + reach, m + reach]
        value, gate = found.chunk(2, -1)
        return value * gate * (d / 4) ** -0.5

    half_rows, half_columns = -(-rows // 2), -(-columns // 2)
    halved = torch.stack(
        [
            torch.stack([h[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for j in range(half_columns)], 1)
            for i in range(half_rows)
        ],
        1,
    )
    low = level(halved, operator.kernels[1])

    def share(index, size, whole):
        place = min(max((index + 0.5) * size / whole - 0.5, 0.0), size - 1.0)
        return int(place), min(int(place) + 1, size - 1), place - int(place)

    raised = torch.zeros(b, rows, columns, d // 4)
    for i in range(rows):
        for j in range(columns):
            (top, bottom, down), (left, right, along) = share(i, half_rows, rows), share(j, half_columns, columns)
            upper = (1 - along) * low[:, top, left] + along * low[:, top, right]
            lower = (1 - along) * low[:, bottom, left] + along * low[:, bottom, right]
            raised[:, i, j] = (1 - down) * upper + down * lower
    levels = torch.cat([level(h, operator.kernels[0]), raised], -1).flatten(1, 2)
    return operator.out(levels) + operator.mean(x.mean(1, keepdim=True))


@pytest.mark.parametrize("rows, columns", [(4, 6), (5, 3), (1, 4)])
def test_output_and_gradients_equal_the_slow_reference(rows, columns):
    operator = built()
    x = torch.randn(2, rows * columns, 8, requires_grad=True)
    weights = torch.randn(2, rows * columns, 8)
    results = []
    for compute in (lambda: operator(x, on(rows, columns)), lambda: slowly(operator, x, rows, columns)):
        y = compute()
        grads = torch.autograd.grad((y * weights).sum(), [x, *operator.parameters()])
        results.append((y, *grads))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_without_its_mean_an_element_receives_from_near_it_alone():
    operator = built(kernel=3)
    with torch.no_grad():
        operator.mean.weight.zero_()
    x = torch.randn(1, 144, 8)
    changed = x.clone()
    changed[0, 0] += 1.0
    moved = (operator(changed, on(12, 12)) - operator(x, on(12, 12))).abs().amax(-1).view(12, 12) > 1e-6
    assert moved[:2, :2].any() and not moved[6:].any() and not moved[:, 6:].any()


def test_a_fresh_one_adds_nothing_and_attention_leaves_it_its_mean():
    operator = PyramidConfig(kernel=3, axes=2).build(8)
    x = torch.randn(2, 12, 8)
    assert isinstance(operator, PyramidGrid) and not operator(x, on(3, 4)).any()
    attention = SelfAttention(8, 2)
    torch.nn.init.normal_(attention.out.weight)
    inherit_attention(attention, operator)
    values = attention.qkv(x)[..., 16:].mean(1, keepdim=True)
    torch.testing.assert_close(operator(x, on(3, 4)), attention.out(values).expand(2, 12, 8), atol=1e-5, rtol=1e-4)


def test_what_is_no_whole_grid_is_refused():
    operator = built()
    x = torch.randn(1, 12, 8)
    for context in (
        OperatorContext(line(12)),
        OperatorContext(lattice(3, 4), torch.ones(1, 12, dtype=torch.bool), grid=(3, 4)),
    ):
        with pytest.raises(ConfigError, match="whole grid"):
            operator(x, context)
    with pytest.raises(ConfigError, match="quarters"):
        PyramidGrid(6, 3)
    with pytest.raises(AssertionError):
        OperatorContext(lattice(3, 4), grid=(3, 3))
