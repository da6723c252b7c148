"""Weights that a net begins with: those of a teacher, or of another model."""

from typing import Any

import torch
from torch import nn

from manta.families.autoregressive import AutoregressiveModel
from manta.nets.trunk import Trunk
from manta.text import CONSENSUS, HUMAN


def warm_start(model: Any, teacher: AutoregressiveModel, trunk: Trunk) -> None:
    """Start prompt encoder, token table, places and blocks from the teacher's weights, where the shapes agree.

    Args:
        model: the net.
        teacher: a left-to-right model.
        trunk: the net's blocks that stand for the teacher's.
    """
    inherit(teacher.embedding, model.embedding)
    inherit(teacher.memory_encoder, model.memory_encoder)
    begin_styles(model, teacher)
    if model.places is not None and teacher.places is not None:  # a canvas may be longer than a text, or shorter
        both = min(len(model.places.weight), len(teacher.places.weight))
        with torch.no_grad():
            model.places.weight[:both] = teacher.places.weight[:both]
    inherit(teacher.trunk, trunk)


def begin_styles(model: Any, source: Any) -> None:
    """Have answers begin as people's texts do, in a net that tells them apart and has its weights from one that does
    not."""
    if getattr(model.config, "styles", False) and not getattr(source.config, "styles", False):
        heading = model.memory_encoder.heading.weight
        with torch.no_grad():
            heading[CONSENSUS] = heading[HUMAN]


def inherit(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights that both have, name and shape alike: what one net knows of reading prompts serves the next."""
    own = target.state_dict()
    same = {k: v for k, v in source.state_dict().items() if k in own and own[k].shape == v.shape}
    target.load_state_dict({**own, **same})
