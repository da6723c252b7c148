"""What attention's weights mean in other operators: equal at once where they mean the same."""

import math

import pytest
import torch

from manta.errors import ConfigError
from manta.operators import (
    KINDS,
    AttentionConfig,
    DijiangConfig,
    DownsampledConfig,
    FourierConfig,
    LinearConfig,
    OperatorContext,
    PyramidConfig,
    SelfAttention,
    WindowedConfig,
    inherit_attention,
    line,
    near_share,
)
from manta.operators.linear import KernelAttention

DIM, HEADS = 16, 2


def attention(*, causal: bool = False) -> SelfAttention:
    """With weights and gains of any sign, as training may leave them."""
    torch.manual_seed(0)
    found = AttentionConfig().build(DIM, heads=HEADS, causal=causal)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.4)
        found.gain.copy_(torch.tensor([1.7, -0.6]))
    return found


def states(n: int = 11) -> tuple[torch.Tensor, OperatorContext]:
    x = torch.randn(3, n, DIM, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(n) < torch.tensor([[n], [n - 3], [2]])
    return x, OperatorContext(line(n), mask)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(),
        WindowedConfig(radius=20),
        KINDS["attention_fourier"](),
        DownsampledConfig(rate=1),
    ],
)
def test_what_means_the_same_is_equal_at_once(config, causal):
    source, (x, context) = attention(causal=causal), states()
    target = config.build(DIM, heads=HEADS, causal=causal)
    inherit_attention(source, target)
    real = context.mask
    torch.testing.assert_close(target(x, context)[real], source(x, context)[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [LinearConfig(), DijiangConfig(), DownsampledConfig(rate=2)])
def test_scores_mean_what_they_meant(config):
    """Products of turned queries and keys, times the gains, are attention's scores, whatever the features then do."""
    source, (x, context) = attention(), states()
    target = config.build(DIM, heads=HEADS)
    inherit_attention(source, target)
    told = SelfAttention(DIM, HEADS)
    told.load_state_dict(source.state_dict())
    with torch.no_grad():
        told.qkv.weight.copy_(target.qkv.weight)
        if isinstance(target, KernelAttention):
            told.gain.copy_(target.gain.square())
        else:
            told.gain.copy_(target.log_temperature.exp() / math.sqrt(DIM / HEADS))
    before = source.scores(*source.turned(x, context)[:2], context)
    after = told.scores(*told.turned(x, context)[:2], context)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert torch.equal(target.out.weight, source.out.weight)


def test_a_convolution_begins_as_attention_with_equal_weights():
    source, (x, context) = attention(), states()
    with torch.no_grad():
        source.qkv.weight[:DIM] = 0
    target = PyramidConfig(kernel=3).build(DIM)
    inherit_attention(source, target)
    real = context.mask
    torch.testing.assert_close(target(x, context)[real], source(x, context)[real], atol=1e-5, rtol=1e-5)


def test_an_operator_without_queries_keeps_its_own_start():
    target = FourierConfig(groups=4).build(DIM)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    inherit_attention(attention(), target)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_another_number_of_heads_is_refused():
    with pytest.raises(ConfigError, match="attention of 2 heads means nothing to an operator of 4"):
        inherit_attention(attention(), LinearConfig().build(DIM, heads=4))


def test_the_share_that_stays_near_by_hand():
    """Equal scores: an element's share is that of the real elements within reach, among those it sees."""
    source = attention()
    with torch.no_grad():
        source.qkv.weight[: 2 * DIM] = 0
    x = torch.randn(2, 6, DIM)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    shares = near_share(source, x, OperatorContext(line(6), mask), 1)
    whole = (2 + 3 + 3 + 3 + 3 + 2) / 6 / 6
    cut = (2 + 3 + 2) / 3 / 3
    torch.testing.assert_close(shares, torch.tensor([whole, cut]), atol=1e-5, rtol=1e-5)
    backward = attention(causal=True)
    with torch.no_grad():
        backward.qkv.weight[: 2 * DIM] = 0
    told = near_share(backward, x, OperatorContext(line(6)), 1)
    torch.testing.assert_close(told, torch.full((2,), (1 + 1 + 2 / 3 + 2 / 4 + 2 / 5 + 2 / 6) / 6))
