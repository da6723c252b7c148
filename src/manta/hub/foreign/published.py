"""Where the weights of a published checkpoint are in manta's own nets, and checkpoints written in its layout."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from manta.errors import ModelError
from manta.families.decoder import DecoderLM
from manta.hub.foreign import dream, llada
from manta.hub.foreign.causal import by_head, published_weights
from manta.hub.foreign.checkpoint import INDEX, Change, claims_of, published_names, stored_weights
from manta.hub.foreign.model import ForeignModel
from manta.runtime import atomic_folder, read_json

BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
)
"""Files of a checkpoint that say how its weights are used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where a published weight is in a net of ours."""

    ours: str
    """Name of our weight."""
    rows: tuple[int, int] | None = None
    """Its rows that are the published weight, from the first to the one behind the last; None: all."""
    order: Tensor | None = None
    """Of our rows, in the order in which they are published; None: as they are."""

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The published weight, from those of our net by name."""
        value = weights[self.ours]
        value = value if self.rows is None else value[slice(*self.rows)]
        return value if self.order is None else value[self.order.to(value.device)]


def masked_places(model: ForeignModel) -> dict[str, Place]:
    """Where each published weight of a LLaDA or a Dream is in its net.

    Args:
        model: as `load_foreign` made it.
    """
    layout = {"llada": llada, "Dream": dream}[model.family]
    names = published_names(model.net, layout.BLOCK, layout.PARTS)
    return {theirs: Place(ours=ours) for theirs, ours in names.items()}


def causal_places(lm: DecoderLM) -> dict[str, Place]:
    """The same of a causal model, whose queries, keys and values are one weight of ours."""
    found: dict[str, Place] = {}
    names, sizes, headwise = published_weights(lm.model)
    for ours, theirs in names.items():
        begin, several = 0, len(theirs) > 1
        for name in theirs:
            end = begin + sizes[name][0]
            order = None
            if headwise and ".qkv." in ours:
                order = by_head(torch.arange(sizes[name][0]), lm.model.config.heads or 1)
            found[name] = Place(ours=ours, rows=(begin, end) if several else None, order=order)
            begin = end
    return found


class Replaced:
    """Published weights with the values that a net has by now.

    Args:
        net: ours, of the checkpoint's layout.
        places: where each published weight is in it.
    """

    def __init__(self, net: nn.Module, places: Mapping[str, Place]) -> None:
        self.weights, self.places = dict(net.state_dict()), places

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """A weight as the net has it; one that the net does not have, as it is stored."""
        return value if name not in self.places else self.places[name].of(self.weights).detach()


def write_published(base: Path, folder: Path, change: Change, card: str, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint in the layout of another, file by file, whole or not at all.

    It takes the memory of one file of weights. The other's tokenizer, configuration and templates go along; code that
    lies beside them does not.

    Args:
        base: folder of the other.
        folder: new, empty, or of an earlier such checkpoint.
        change: what becomes of each weight.
        card: text of its card.
        dtype: of the weights; None: as the other stores each.

    Raises:
        ModelError: a file of the other is missing or damaged.
        OSError: the disk is full or the folder cannot be written.
    """
    with atomic_folder(folder) as new:
        for file in claims_of(base):
            weights = {name: _stored(change(name, value), dtype or value.dtype) for name, value in stored_weights(file)}
            save_file(weights, new / file.name, metadata={"format": "pt"})
        for name in (*BESIDE, INDEX):
            if (base / name).is_file():
                shutil.copyfile(base / name, new / name)
        if dtype is not None:
            config = read_json(new / "config.json")
            told = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
            config |= dict.fromkeys(told, str(dtype).removeprefix("torch."))
            (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")


def is_written(base: Path, folder: Path, change: Change, *, dtype: torch.dtype | None = None) -> bool:
    """Whether a folder holds what `write_published` would write, weight for weight."""
    try:
        for file in claims_of(base):
            kept: dict[str, Any] = dict(stored_weights(folder / file.name))
            for name, value in stored_weights(file):
                wanted = _stored(change(name, value), dtype or value.dtype)
                if name not in kept or kept[name].dtype != wanted.dtype or not torch.equal(kept[name], wanted):
                    return False
    except (ModelError, OSError):
        return False
    return True


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to("cpu", dtype).contiguous()
