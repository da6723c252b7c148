"""Matrices stored by columns: the same products to the last bit, and nothing of the net itself is touched."""

import pytest
import torch
from torch import nn

from manta.nets.head import Head
from manta.nets.layout import columnwise
from manta.nets.trunk import Trunk
from manta.operators import CAUSAL, KINDS, OperatorContext, line


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("rows", [4, 8, 64])
def test_a_net_stored_by_columns_gives_the_same_to_the_last_bit(kind, rows):
    torch.manual_seed(0)
    trunk = Trunk(96, 2, (KINDS[kind](),), heads=4, causal=True)
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, context = torch.randn(rows, 1, 96), OperatorContext(line(1))
    with torch.no_grad():
        assert torch.equal(columnwise(trunk)(x, context), trunk(x, context))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(7, 4), nn.Linear(4, 8)
        self.head = Head(self.table)


def test_the_net_keeps_its_weights_and_shares_what_is_no_matrix():
    net = Net()
    before = {name: (weight, weight.clone(), weight.stride()) for name, weight in net.named_parameters()}
    laid = columnwise(net)
    for name, (weight, value, stride) in before.items():
        assert net.get_parameter(name) is weight and torch.equal(weight, value) and weight.stride() == stride
        assert torch.equal(laid.get_parameter(name), value)
    assert laid.linear.bias is net.linear.bias
    assert laid.linear.weight.mT.is_contiguous() and laid.table.weight.mT.is_contiguous()
    torch.testing.assert_close(laid.head(torch.eye(4)), net.table.weight.mT)
