"""What turns gradients into steps: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manta.errors import CheckpointError
from manta.runtime import dtype_of
from manta.training.muon import Muon
from manta.training.shares import share_of

Kind = Literal["adamw", "muon"]
MUON_SLOT = "momentum_buffer"
"""The one thing that Muon keeps of a parameter, and AdamW does not."""


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The trained weights of linear maps, convolutions between all channels among them; tables of embeddings, gains,
    biases, spectra and kernels of single channels are none."""
    maps = (m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1))
    return [m.weight for m in maps if m.weight.requires_grad]


def build_optimizers(
    model: nn.Module,
    kind: Kind,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    precision: str = "float32",
) -> list[Optimizer]:
    """Make the optimisers of a model's parameters that require a gradient.

        adamw:  W <- W - lr (m / (sqrt(v) + eps) + decay W)
        muon:   M <- 0.95 M + 0.05 G,   W <- W - lr (0.2 sqrt(max(rows, columns)) orthogonal(0.05 G + 0.95 M) + decay W)

    `orthogonal` replaces the singular values of a matrix by numbers near 1 (five Newton-Schulz steps).
    The factor gives its steps the size of AdamW's, so that one learning rate and one decay serve both.

    Args:
        model: its parameters.
        kind: `adamw`, or `muon`: Muon for the hidden matrices, AdamW for all else.
        learning_rate: step size, above 0.
        weight_decay: decoupled decay of what has two axes or more; vectors have none.
        betas: averaging of AdamW's moments.
        precision: of Muon's matrix products, see `runtime.autocast`.

    Returns:
        One optimiser, or Muon after AdamW; every parameter belongs to exactly one.

    Source: AdamW, arXiv 1711.05101; Muon, Jordan et al. 2024 (kellerjordan.github.io/posts/muon); its factor, Liu et
    al., arXiv 2502.16982.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = hidden_matrices(model) if kind == "muon" else []
    taken = set(map(id, hidden))
    rest = [p for p in trained if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    found: list[Optimizer] = []
    if groups:
        found.append(torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True))
    if hidden:
        found.append(Muon(hidden, lr=learning_rate, weight_decay=weight_decay, dtype=dtype_of(precision)))
    return found


def moments(optimizers: list[Optimizer], named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The state of optimisers by parameter and slot, `blocks.0.out.weight/exp_avg`, to be stored."""
    return {
        f"{name}/{slot}": value
        for name, parameter in named.items()
        for optimizer in optimizers
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_moments(optimizers: list[Optimizer], named: dict[str, nn.Parameter], stored: Mapping[str, Tensor]) -> None:
    """Invert `moments`, on the devices of the parameters.

    Raises:
        CheckpointError: they are those of another kind of optimiser.
    """
    owner = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in stored.items():
        name, slot = key.rsplit("/", 1)
        parameter = named[name]
        optimizer = owner[id(parameter)]
        if isinstance(optimizer, Muon) != (slot == MUON_SLOT):
            raise CheckpointError(
                f"the checkpoint holds {slot} of {name}, which {type(optimizer).__name__} does not keep: the run began "
                "with another train.optimizer; set that one in the run's recipe.json"
            )
        value = value.to(parameter.device)
        optimizer.state[parameter][slot] = share_of(value, parameter) if value.shape == parameter.shape else value
