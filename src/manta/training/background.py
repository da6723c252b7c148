"""Checkpoints of which every process writes its shares, by `torch.distributed.checkpoint`, while training goes on.

Shares are safetensors with the places of their pieces in the header (`HuggingFaceStorageWriter`), so that any number of
processes can read them and nothing is unpickled. The folder takes its name once all shares are there, as any other
checkpoint does (`training.checkpoint`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from manta.training.team import Processes

_PIECES = "DCP_SHARDING_INFO"
"""Key of a share's header under which `torch.distributed.checkpoint` tells where its pieces begin."""


class Writing:
    """Shares that are being written.

    Args:
        tensors: file stem → tensors by name; they may change meanwhile.
        folder: that holds the files, the same for all processes; it exists.
        team: the processes.
        finish: called in the first process once all shares are there.
    """

    def __init__(
        self, tensors: Mapping[str, Mapping[str, Tensor]], folder: Path, team: Processes, finish: Callable[[], None]
    ) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        kept = {f"{stem}.{name}": _copy(t) for stem, group in tensors.items() for name, t in group.items()}
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        with team.meeting():
            self._shares: Any = async_save(kept, storage_writer=writer, process_group=team.saving)
        self._done: Future[None] | None = None
        if team.first:
            pool = ThreadPoolExecutor(1, "checkpoint")
            self._done = pool.submit(lambda: (self._shares.result(), finish())[1])
            pool.shutdown(wait=False)

    def wait(self) -> None:
        """Return when the checkpoint is complete, for what this process knows of it.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
            RuntimeError: another process has not written its shares.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            (self._done or self._shares).result()
        except CheckpointException as error:  # which is no Exception
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, OSError)), RuntimeError(str(error))) from error


class Stored(Mapping[str, Tensor]):
    """Tensors that stand in shares, each put together when it is asked for.

    Args:
        files: the shares.
        stem: of the tensors wanted.

    Raises:
        ValueError: a header does not tell where its pieces belong.
        OSError, SafetensorError: a file cannot be read.
    """

    def __init__(self, files: list[Path], stem: str) -> None:
        self._pieces: dict[str, list[tuple[Path, str, list[int]]]] = {}
        for file in files:
            with safe_open(file, "pt") as share:
                try:
                    told: Any = json.loads((share.metadata() or {})[_PIECES])
                    places = {key: [int(place) for place in told[key]["saved_offsets"]] for key in share.keys()}  # noqa: SIM118
                except (KeyError, TypeError, ValueError, RecursionError) as error:
                    raise ValueError(f"{file.name} does not tell where its pieces belong") from error
            for key, place in places.items():
                if key.startswith(f"{stem}."):
                    self._pieces.setdefault(key.removeprefix(f"{stem}."), []).append((file, key, place))

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor.

        Raises:
            ValueError: its pieces do not make one.
        """
        pieces = []
        for file, key, place in self._pieces[name]:
            with safe_open(file, "pt") as share:
                pieces.append((place, share.get_tensor(key)))
        ends = [[begin + length for begin, length in zip(place, t.shape, strict=True)] for place, t in pieces]
        size = [max(axis) for axis in zip(*ends, strict=True)]
        if sum(piece.numel() for _, piece in pieces) != torch.Size(size).numel():
            raise ValueError(f"the shares of {name} do not make a whole")
        whole = torch.empty(size, dtype=pieces[0][1].dtype)
        for (place, piece), end in zip(pieces, ends, strict=True):
            whole[tuple(slice(begin, stop) for begin, stop in zip(place, end, strict=True))] = piece
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def stems(files: list[Path]) -> list[str]:
    """The stems that shares hold tensors of."""
    found: dict[str, None] = {}
    for file in files:
        with safe_open(file, "pt") as share:
            found |= {key.partition(".")[0]: None for key in share.keys()}  # noqa: SIM118
    return list(found)


def _copy(tensor: Tensor) -> Tensor:
    """A tensor, or shares of one, that later steps do not change."""
    kept = tensor.detach()
    return kept.clone() if kept.device.type == "cpu" else kept  # from a GPU they are copied before anything is written
