"""The weights of a published checkpoint: safetensors only, every name and shape checked, one tensor at a time."""

import re
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from manta.errors import ModelError
from manta.runtime import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin*", "*.ckpt", "*.pt", "*.pth", "*.bin", "*.pkl")
FLOATS = ("F64", "F32", "F16", "BF16")

Claims = dict[Path, set[str] | None]
"""Files of a checkpoint, each with the weights that the index says it holds; None where there is no index."""

Change = Callable[[str, Tensor], Tensor]
"""From a weight's published name and its stored value to the value that takes its place."""


def published_names(net: nn.Module, block: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Map the names of a checkpoint's weights to those of the net.

    Args:
        net: a stack of `blocks` with an embedding and a head.
        block: published name of a block, with `{}` for its number.
        parts: from the name of a part, in a block or beside the blocks, to its published name.

    Returns:
        Every weight of the net, by its published name.
    """
    names = {}
    for ours in net.state_dict():
        part, _, kind = ours.rpartition(".")
        place, number, inner = part.split(".", 2) if part.startswith("blocks.") else ("", "", part)
        theirs = f"{block.format(number)}.{parts[inner]}" if place else parts[inner]
        names[f"{theirs}.{kind}"] = ours
    return names


def load_weights(
    net: nn.Module,
    folder: Path,
    names: Mapping[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    constants: Mapping[str, Tensor] | None = None,
    unused: str = r"(?!)",
    change: Change | None = None,
) -> None:
    """Fill a net that was built on the meta device; the checkpoint has to hold its weights and nothing else.

    Everything is checked against the files' headers before any memory is taken. Then the net is allocated once, in
    `dtype`, and tensors are copied into it one by one, so that loading takes the net's own size and one tensor more.

    Args:
        net: on the meta device.
        folder: with `model.safetensors`, or `model.safetensors.index.json` and its shards.
        names: from a weight's published name to its name in the net.
        device: where the net goes.
        dtype: of its weights.
        constants: values that some checkpoints also store and the net computes; checked where they are there.
        unused: regular expression of the names of what is stored and nobody reads.
        change: what becomes of each weight that is read; None: nothing.

    Raises:
        ModelError: a file is missing, damaged, a pickle or outside the folder, or a weight is missing, unexpected or of
            another shape; the message names it and the file.
    """
    constants = constants or {}
    shapes = {name: net.get_parameter(ours).shape for name, ours in names.items()}
    shapes |= {name: value.shape for name, value in constants.items()}
    claims = claims_of(folder)
    found: set[str] = set()
    for file, claimed in claims.items():
        for name, shape in headers(file).items():
            if re.fullmatch(unused, name):
                continue
            _check_weight(file, name, shape, shapes, claimed)
            found.add(name)
        if absent := sorted(name for name in (claimed or set()) - found if not re.fullmatch(unused, name)):
            raise ModelError(f"{file} does not hold {absent[0]}, which {INDEX} says it does; copy the model again")
    if missing := sorted(names.keys() - found):
        file = next(iter(claims)) if len(claims) == 1 else folder / INDEX
        raise ModelError(f"{file} has no {missing[0]} ({len(missing)} weights are missing); copy the model again")
    net.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for file in claims:
            _copy(file, net, names, constants, unused, change or (lambda name, value: value))


def _copy(
    file: Path, net: nn.Module, names: Mapping[str, str], constants: Mapping[str, Tensor], unused: str, change: Change
) -> None:
    for name, value in stored_weights(file):
        if not re.fullmatch(unused, name):
            if name in names:
                net.get_parameter(names[name]).copy_(change(name, value))
            elif not torch.allclose(value.float(), constants[name].float(), rtol=1e-2):
                raise ModelError(f"{file} holds {name} with other values than the model's equation gives")


def stored_weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a file with its name, one at a time.

    Raises:
        ModelError: the file is missing or damaged, or a weight is not finite.
    """
    with _opened(file) as handle:
        for name in handle.keys():  # noqa: SIM118  (a handle is no mapping)
            try:
                value: Tensor = handle.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{file} is damaged at {name} ({error}); copy it again") from error
            check_weight(name, value, file)
            yield name, value


def check_weight(name: str, value: Tensor, file: Path) -> None:
    """Refuse a weight that holds a NaN or an infinity.

    Raises:
        ModelError: naming it and its file.
    """
    # A sum is fast, and not finite if one of its terms is not; if it is not, it may only have been too large.
    if value.numel() and not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
        raise ModelError(f"{file} holds {name} with values that are not finite; copy it again")


def _check_weight(
    file: Path, name: str, shape: tuple[str, tuple[int, ...]], shapes: Mapping[str, Any], claimed: Set[str] | None
) -> None:
    kind, size = shape
    if name not in shapes:
        raise ModelError(f"{file} holds {name}, a weight that the model of its config.json does not have")
    if claimed is not None and name not in claimed:
        raise ModelError(f"{file} holds {name}, which {INDEX} does not say; copy the model again")
    if size != tuple(shapes[name]):
        raise ModelError(f"{file} holds {name} of shape {size}, but its config.json asks for {tuple(shapes[name])}")
    if kind not in FLOATS:
        raise ModelError(f"{file} holds {name} as {kind}; manta reads {', '.join(FLOATS)}, not quantised weights")


def headers(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Kind and shape of every weight of a file."""
    with _opened(file) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise ModelError(f"{file} is no plain file; copy it again")
    try:
        handle = safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is missing or damaged ({error}); copy it again") from error
    with handle:
        yield handle


def claims_of(folder: Path) -> Claims:
    """The files of a checkpoint's weights.

    Raises:
        ModelError: there are none, they are pickles, or the index is damaged or names a file outside the folder.
    """
    if (folder / SINGLE).exists():
        return {_inside(folder, SINGLE, folder): None}
    index = folder / INDEX
    if not index.exists():
        pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
        if pickles:
            raise ModelError(
                f"{folder} holds its weights in {pickles[0]}, a pickle, which can run code when it is read; manta "
                "reads safetensors only, so convert it first"
            )
        raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}; copy the model again")
    try:
        weights = read_json(index)["weight_map"]
        pairs = [(name, file) for name, file in weights.items() if isinstance(file, str)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged ({error!r}); copy it again") from error
    if not pairs or len(pairs) < len(weights):
        raise ModelError(f"{index} is damaged: not every weight has a file; copy it again")
    claims: dict[Path, set[str]] = {}
    for name, file in sorted(pairs):
        claims.setdefault(_inside(folder, file, index), set()).add(name)
    return dict(claims)


def _inside(folder: Path, name: str, source: Path) -> Path:
    """The file of that name, if it lies in the folder.

    A link may lead to the folder's own files, or to the `blobs` that the hub's cache keeps beside its `snapshots`.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(sign in name for sign in "\\:\0"):
        raise ModelError(f"{source} asks for {name!r}, which lies outside the model's folder; do not trust this model")
    if not name.endswith(".safetensors"):
        raise ModelError(f"{source} asks for {name!r}; manta reads safetensors only, as a pickle can run code")
    try:
        home, target = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{folder / name} cannot be read ({error}); copy it again") from error
    roots = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(root) for root in roots):
        raise ModelError(f"{folder / name} is a link that leads out of the model's folder; put the file itself there")
    return folder / name
