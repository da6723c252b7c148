"""Checkpoints that a kill at any moment cannot break: a folder appears under its name only when it is whole.

A checkpoint `checkpoints/step-N/` holds `model.safetensors`, `optimizer.safetensors`, `average.safetensors` and
`state.json`, which tells the digest of each and its own. They are written to a hidden folder first, flushed, and the
folder is renamed at the end, so that every `step-N` is complete. Nothing is ever unpickled. Where processes hold shares
of the tensors, each writes its own (`training.background`), and `state.json` says so.
"""

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from manta.errors import CheckpointError
from manta.runtime import atomic_folder, digest_of_file, hidden_name
from manta.training.background import Stored, Writing, stems
from manta.training.team import Processes

KEPT = 2
"""Complete checkpoints kept in a run folder: the newest, and one in case the disk damages it."""
STATE = "state.json"


def save_checkpoint(run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write a checkpoint atomically and drop the old ones.

    Args:
        run: the run folder; `checkpoints/step-N` appears in it.
        step: global step, ≥ 0; a checkpoint of the same step is replaced.
        tensors: file stem → tensors by name, such as `model`, `optimizer`, `average`.
        state: everything else, as plain JSON values (see `pack_bytes` for generators).

    Returns:
        The folder written.

    Raises:
        OSError: when the disk is full or the folder cannot be written; older checkpoints stay.
    """
    root = run / "checkpoints"
    final = root / f"step-{step}"
    with atomic_folder(final) as hidden:
        for stem, group in tensors.items():
            # safetensors refuses shared memory; parameters of a stage may alias across groups but not within one.
            whole = {name: t.detach().contiguous() for name, t in group.items()}
            _save_file(whole, hidden / f"{stem}.safetensors")
        _seal(hidden, final, {**state, "step": step})
    for old in _complete(root)[:-KEPT]:
        _drop(old)
    return final


def save_shares(
    run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], team: Processes
) -> Writing:
    """Begin to write a checkpoint whose tensors several processes hold in shares; all of them call it at once.

    Args:
        run: see `save_checkpoint`, as the others are.
        step: global step.
        tensors: shares, or tensors that every process holds whole.
        state: of the first process.
        team: the processes.

    Returns:
        What is being written; the next checkpoint waits for it.
    """
    root = run / "checkpoints"
    final = root / f"step-{step}"
    hidden = hidden_name(final)

    def begin() -> Path:
        hidden.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        return hidden

    def finish() -> None:
        with atomic_folder(final) as whole:
            for file in hidden.iterdir():
                os.replace(file, whole / file.name)
            hidden.rmdir()
            _seal(whole, final, {**state, "step": step, "shares": True})
        for old in _complete(root)[:-KEPT]:
            _drop(old)

    return Writing(tensors, team.alone(begin), team, finish)


def _seal(hidden: Path, final: Path, body: dict[str, Any]) -> None:
    """Write the state of a checkpoint, whose other files are there; an older one of its step goes."""
    body = {**body, "files": {file.name: digest_of_file(file) for file in sorted(hidden.iterdir())}}
    (hidden / STATE).write_text(json.dumps({**body, "digest": _digest_of(body)}), encoding="utf-8")
    if final.exists():
        _drop(final)


def latest_checkpoint(run: Path) -> Path | None:
    """Find the newest checkpoint of a run folder; None where there is none.

    Raises:
        CheckpointError: a checkpoint has lost its state, which it never has by a kill.
    """
    root = run / "checkpoints"
    for folder in _numbered(root):
        if not (folder / STATE).exists() and any(folder.glob("*.safetensors")):
            raise _damaged(folder, f"{STATE} is missing")
    found = _complete(root)
    return found[-1] if found else None


def load_state(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint holds beside its tensors.

    Returns:
        `state` as it was given to `save_checkpoint`, and the names of its files by their digests.

    Raises:
        CheckpointError: it is missing, damaged, or not of this checkpoint.
    """
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{STATE}: {error}") from error
    if not isinstance(state, dict) or state.pop("digest", None) != _digest_of(state):
        raise _damaged(folder, f"{STATE} is not as it was written")
    if state["step"] != int(folder.name[5:]):
        raise _damaged(folder, f"it is that of step {state['step']}")
    return state


def load_checkpoint(folder: Path) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint.

    Returns:
        `tensors` and `state` as they were given to `save_checkpoint`. Those that were written in shares are put
        together one by one as they are asked for.

    Raises:
        CheckpointError: when a file is missing or damaged; the message names it.
    """
    state = load_state(folder)
    tensors: dict[str, Mapping[str, Tensor]] = {}
    shares, name = state.pop("shares", False), ""
    files = state.pop("files")
    try:
        for name, digest in files.items():
            if digest_of_file(folder / name) != digest:
                raise _damaged(folder, f"{name} is not as it was written")
            if not shares:
                tensors[Path(name).stem] = load_file(folder / name)
        if shares:
            whole = [folder / name for name in files]
            tensors = {stem: Stored(whole, stem) for stem in stems(whole)}
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(folder, f"{name}: {error}") from error
    return tensors, state


def pack_bytes(tensor: Tensor) -> str:
    """Encode a byte tensor (the state of a `torch.Generator`) as a string for JSON."""
    return base64.b64encode(tensor.numpy().tobytes()).decode("ascii")


def unpack_bytes(packed: str) -> Tensor:
    """Invert `pack_bytes`."""
    return torch.frombuffer(bytearray(base64.b64decode(packed)), dtype=torch.uint8)


def _numbered(root: Path) -> list[Path]:
    found = [p for p in root.glob("step-*") if re.fullmatch(r"step-[0-9]{1,18}", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def _complete(root: Path) -> list[Path]:
    return [folder for folder in _numbered(root) if (folder / STATE).exists()]


def _drop(folder: Path) -> None:
    """Remove a checkpoint; one that holds anything that was not written with it is left."""
    try:
        written = {STATE, *load_state(folder)["files"]}
    except CheckpointError:
        return
    if {entry.name for entry in folder.iterdir()} <= written:
        hidden = hidden_name(folder.with_name(f"{folder.name}-dropped"))
        os.replace(folder, hidden)  # half of a checkpoint never stands under its name
        shutil.rmtree(hidden)


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} cannot be read ({what}); delete that folder and resume from the one before"
    )


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _save_file(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file of tensors.

    Raises:
        OSError: it cannot be written; safetensors has an exception of its own for that.
    """
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
