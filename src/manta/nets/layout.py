"""How weights lie in memory, for nets that are asked for a few rows at a time."""

import copy
from typing import Any, TypeVar

from torch import nn

from manta.nets.integers import IntegerMap

Net = TypeVar("Net", bound=nn.Module)


def columnwise(net: Net) -> Net:
    """A copy of a net, for reading only, whose matrices are stored column after column.

    A product of four rows with a matrix stored by rows first packs all of it anew, which on CPU takes longer than the
    product; stored by columns it is read as it lies, and gives the same to the last bit. Writing a text makes hundreds
    of such products with every matrix, for which laying it out once costs about what one of them does. All other
    weights are those of the net itself.

    Args:
        net: any net on CPU.
    """
    weights: dict[int, Any] = {id(weight): weight for weight in net.parameters()}
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            laid = module.weight.detach().mT.contiguous().mT
            weights[id(module.weight)] = nn.Parameter(laid, requires_grad=False)
        elif isinstance(module, IntegerMap):
            weights[id(module)] = module
    return copy.deepcopy(net, weights)
