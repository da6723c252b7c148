"""What tells one model from every other."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from manta.families.events import Writer
from manta.families.kept import KeptModel


def digest_of(lm: Writer | KeptModel) -> str:
    """A digest of all that a model's answers depend on: its family, its weights, its tokenizer, its shape, and what is
    stored beside them, such as a schedule or a published model's special tokens.

    Args:
        lm: of any family.
    """
    sums = hashlib.blake2b(lm.family.encode(), digest_size=20)
    net: Any = getattr(lm, "model", getattr(lm, "net", None))
    state: dict[str, Tensor] = {} if net is None else dict(net.state_dict())
    parts = getattr(lm, "parts", None)
    state |= {} if parts is None else {f"parts.{name}": value for name, value in parts().items()}
    for name, value in sorted(state.items()):
        sums.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        sums.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    tokenizer = getattr(lm, "tokenizer", None)
    sums.update(b"" if tokenizer is None else tokenizer.fingerprint().encode())
    shape, extras = getattr(net, "config", getattr(net, "shape", None)), getattr(lm, "extras", dict)
    own = ("mask_id", "eos_id", "pad_id", "max_length", "shifted", "frame", "prompted")
    sums.update(repr([shape, extras(), [getattr(lm, name, None) for name in own]]).encode())
    return sums.hexdigest()
