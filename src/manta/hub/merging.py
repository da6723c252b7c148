"""Adapters and the model they belong to, together: loaded, or written as one."""

from pathlib import Path

import torch

from manta.errors import ModelError
from manta.families.decoder import DecoderLM
from manta.hub.adapters import checked_change, is_adapter, load_adapted
from manta.hub.folder import base_of, card_of, find_folder
from manta.hub.foreign import ForeignModel
from manta.hub.foreign.published import write_published
from manta.runtime import dtype_of


def load_adapters(
    adapters: str | Path, base: str | Path | None = None, *, device: str | None = None
) -> ForeignModel | DecoderLM:
    """A published model with adapters added to its weights.

    Args:
        adapters: their folder, or that of the run that trained them.
        base: the model; None: where the adapters say it is.
        device: see `manta.load`.

    Raises:
        ModelError: there are no adapters, or they belong to another model.
    """
    folder = _adapters(adapters)
    return load_adapted(folder, base_of(folder) if base is None else find_folder(base), device)


def merge(
    adapters: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    precision: str | None = None,
    replace: bool = False,
) -> Path:
    """Write the model that adapters and their base make, in the base's layout, for manta and `transformers`.

    W + (alpha / rank) · B A is computed in float32 and rounded to how the base stores W.

    Args:
        adapters: their folder, or that of the run that trained them.
        out: a new or empty folder.
        base: the model; None: where the adapters say it is.
        precision: `float32` or `bfloat16` to store all weights so; None: as the base does.
        replace: `out` may hold an earlier merge, whose files are replaced.

    Returns:
        The folder.

    Raises:
        ModelError: there are no adapters, they belong to another model, or `out` holds files.
    """
    folder, target = _adapters(adapters), Path(out)
    if target.exists() and (not target.is_dir() or (not replace and any(target.iterdir()))):
        raise ModelError(f"{out} is not empty; give a new folder")
    source = base_of(folder) if base is None else find_folder(base)
    change = checked_change(folder, source)
    dtype: torch.dtype | None = None if precision is None else dtype_of(precision)
    card = f"# A model with its adapters merged\n\nWhat follows is the card of the adapters.\n\n{card_of(folder)}"
    write_published(source, target, change, card, dtype=dtype)
    return target


def _adapters(path: str | Path) -> Path:
    """Their folder.

    Raises:
        ModelError: it holds none.
    """
    for folder in (Path(path), Path(path) / "adapter"):
        if is_adapter(folder):
            return folder
    found = find_folder(path)
    if not is_adapter(found):
        raise ModelError(f"{path} holds no adapters; give a folder of manta train --lora")
    return found
