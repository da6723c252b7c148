"""The readout: its formula, the owner's table, and nothing of its own to store."""

import copy

import torch
from torch import nn

from manta.nets.head import Head


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = Head(self.embedding)


def test_logits_are_products_with_the_table():
    owner, hidden = Owner(), torch.randn(2, 3, 4)
    expected = torch.einsum("bnd,vd->bnv", hidden, owner.embedding.weight)
    torch.testing.assert_close(owner.head(hidden), expected)
    assert owner.head(hidden.bfloat16()).dtype is torch.bfloat16


def test_the_table_is_the_owners_and_stored_once():
    owner = Owner()
    assert list(owner.state_dict()) == ["embedding.weight"] and len(list(owner.parameters())) == 1
    other, hidden = copy.deepcopy(owner), torch.randn(2, 4)
    with torch.no_grad():
        other.embedding.weight.zero_()
    assert other.head(hidden).abs().sum() == 0 < owner.head(hidden).abs().sum()
    assert other.double().head(hidden.double()).dtype is torch.float64
    other.load_state_dict(owner.state_dict())
    other.head(hidden.double()).sum().backward()
    assert other.embedding.weight.grad is not None
