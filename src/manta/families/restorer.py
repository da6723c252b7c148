"""Restorers: one net takes noise, blur, rain, haze or snow out of photographs of any size, told in words which.

The faults are far apart, so each has a small change of its own to the weights that all share (`nets.modulated`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from manta.errors import ConfigError, ModelError, UsageError
from manta.families.instructions import TASKS, Understood, learned_router, understand
from manta.families.kept import KeptModel
from manta.families.phrases import FEATURES
from manta.image import from_pixels
from manta.image.photos import PhotoBatch
from manta.nets.grid import DicConfig, GridNetChoice, Told
from manta.nets.modulated import ModulationConfig, merged, modulate
from manta.runtime import atomic_write, read_json
from manta.types import Loss

BATCH = 16
"""Tiles that go through the net at once."""
ROUTER = "router"
"""Name of the stored weights that read instructions."""
SOFT = 1e-3
"""Errors below it are squared, those above are taken as they are (Charbonnier)."""
Tell = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class RestorerConfig:
    """Shape of a restorer."""

    family: Literal["restorer"] = "restorer"
    """Which family this is."""
    tile: int = 64
    """Pixels of a side that the net sees at once, a multiple of 8 from 16 to 512; photographs are cut into such tiles,
    which overlap."""
    net: GridNetChoice = field(default_factory=DicConfig)
    """The net."""
    modulation: ModulationConfig = field(default_factory=ModulationConfig)
    """What each fault changes of it."""
    only: Literal["noise", "blur", "rain", "haze", "snow"] | None = None
    """The one fault that it takes out; None: all."""

    def __post_init__(self) -> None:
        if self.tile % 8 or not 16 <= self.tile <= 512:
            raise ConfigError(f"tile should be a multiple of 8 from 16 to 512, received {self.tile}")


@dataclass(frozen=True)
class FaultCodec:
    """The faults that a restorer knows, in the order of their numbers."""

    key: ClassVar[str] = "faults"
    file: ClassVar[str] = "faults.json"

    names: tuple[str, ...] = TASKS
    """Of the faults."""

    def fingerprint(self) -> str:
        """32 hex digits that two codecs share exactly when they are equal."""
        return blake2b(self._json(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `faults.json`, atomically."""
        atomic_write(Path(path), self._json())

    @classmethod
    def load(cls, path: str | Path) -> "FaultCodec":
        """Read a file that `save` wrote.

        Raises:
            ModelError: the file is missing or damaged, or knows other faults than this version.
        """
        found: Any = read_json(Path(path))
        if not isinstance(found, dict) or found.get("faults") != list(TASKS):
            raise ModelError(f"{path} should name the faults {', '.join(TASKS)}; copy it again, or update manta")
        return cls()

    def _json(self) -> bytes:
        return json.dumps({"faults": list(self.names)}).encode()


class RestorerModel(nn.Module):
    """A photograph's tile without its fault: ``clean = spoiled + net_k(spoiled)``, k the fault's number.

    Args:
        config: shape, with a net in which everything is set.
    """

    def __init__(self, config: RestorerConfig) -> None:
        super().__init__()
        self.config = config
        self.net = config.net.build(3, config.tile, config.tile, classes=0, bits=0)
        self.tasks = modulate(self.net, config.modulation, len(TASKS))

    def forward(self, spoiled: Float[Tensor, "b n 3"], task: Int64[Tensor, "b"]) -> Float[Tensor, "b n 3"]:
        """The clean tiles, values in [−1, 1] and a little beyond.

        Args:
            spoiled: values in [−1, 1], row by row.
            task: number of each one's fault.
        """
        self.tasks.tell(task)
        return spoiled + said(self.net, spoiled)


def said(net: nn.Module, state: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """What a net over a grid says of a state; there is no time and no class to tell it."""
    return net(state, torch.ones(len(state), device=state.device), Told()).float()


class Restoration:
    """What a restorer is taught: ``sqrt(|clean_hat − clean|² + ε²)``, the mean over all faults of a batch alike."""

    def __call__(self, model: RestorerModel, batch: PhotoBatch, generator: torch.Generator) -> Loss:
        """Loss with the parts psnr (decibels, of all) and one a fault."""
        clean, spoiled = from_pixels(batch.clean), from_pixels(batch.spoiled)
        error = model(spoiled, batch.task) - clean
        total = (error.square() + SOFT**2).sqrt().mean()
        squared = error.detach().square().mean((1, 2))
        parts: dict[str, Any] = {"psnr": _decibels(squared.mean())}
        for number, name in enumerate(TASKS):
            if bool((rows := batch.task == number).any()):
                parts[name] = _decibels(squared[rows].mean())
        return Loss(total, parts, len(batch))


def _decibels(error: Tensor) -> Tensor:
    """Peak signal to noise, of values with a range of 2."""
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


class Restorer(KeptModel):
    """A restorer ready to work.

    Args:
        model: the net.
        router: weights that read instructions; None learns them, which takes a second.
    """

    family = "restorer"
    config_class, net_class, codec_class = RestorerConfig, RestorerModel, FaultCodec

    def __init__(self, model: RestorerModel, router: Float[Tensor, "k g"] | None = None) -> None:
        self.model = model.eval()
        self._router = router
        self._merged: dict[int, nn.Module] = {}

    def with_net(self, net: Any) -> "Restorer":
        """See `KeptModel`."""
        found = super().with_net(net)
        found._merged = {}
        return found

    @property
    def codec(self) -> FaultCodec:
        """The faults it knows."""
        return FaultCodec()

    @property
    def faults(self) -> tuple[str, ...]:
        """What it takes out."""
        only = self.model.config.only
        return TASKS if only is None else (only,)

    @property
    def router(self) -> Float[Tensor, "k g"]:
        """Weights that read instructions."""
        if self._router is None:
            self._router = learned_router()
        return self._router

    @staticmethod
    def check_codec(shape: RestorerConfig, codec: FaultCodec) -> None:
        """All restorers know the same faults."""

    @classmethod
    def stored(
        cls, net: RestorerModel, codec: FaultCodec, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "Restorer":
        """With what reads its instructions."""
        router = parts.get(ROUTER)
        if router is None or router.shape != (len(TASKS), FEATURES + 1):
            raise ConfigError("what reads instructions is missing or damaged")
        return cls(net, router.float())

    def parts(self) -> dict[str, Tensor]:
        """What reads instructions."""
        return {ROUTER: self.router}

    def understand(self, instruction: str) -> Understood:
        """What an instruction asks for.

        Raises:
            UsageError: it is empty or too long.
        """
        return understand(instruction, self.router)

    def restore(
        self,
        photo: UInt8[np.ndarray, "h w c"],
        instruction: str | Sequence[str] = (),
        *,
        task: str | Sequence[str] = (),
        tell: Tell = lambda done, total: None,
    ) -> UInt8[np.ndarray, "h w c"]:
        """A photograph without one fault, or without several, one after the other.

        Args:
            photo: colours or grey, of any size.
            instruction: in words, such as "take the rain away"; or several.
            task: name of a fault, instead of words; or several.
            tell: takes how many tiles are done, and of how many.

        Raises:
            UsageError: an instruction names no fault surely enough, a fault is unknown, or nothing is asked for.
        """
        words = [instruction] if isinstance(instruction, str) else list(instruction)
        names = [task] if isinstance(task, str) else list(task)
        for each in words:
            found = self.understand(each)
            if found.task is None:
                raise UsageError(f"{each!r}: {found.explain()}")
            names.append(found.task)
        if not names:
            raise UsageError("say what should go: an instruction, or the name of a fault")
        if unknown := [name for name in names if name not in self.faults]:
            raise UsageError(f"no fault {unknown[0]!r}; this model takes out {', '.join(self.faults)}")
        if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8 or photo.ndim != 3 or not photo.size:
            raise UsageError("a photograph is an array of uint8, height × width × channels")
        if photo.shape[2] not in (1, 3):
            raise UsageError(f"a photograph has 1 or 3 channels, received {photo.shape[2]}")
        colours = photo if photo.shape[2] == 3 else photo.repeat(3, 2)
        for index, name in enumerate(names):
            colours = self._without(colours, TASKS.index(name), index, len(names), tell)
        return colours if photo.shape[2] == 3 else np.rint(colours.mean(2, keepdims=True)).astype(np.uint8)

    @torch.no_grad()
    def cleaned(self, spoiled: Float[Tensor, "b n 3"], task: int) -> Float[Tensor, "b n 3"]:
        """Tiles without a fault.

        Args:
            spoiled: values in [−1, 1], row by row, of the size that the net sees.
            task: number of the fault among `TASKS`.
        """
        return spoiled + said(self._net_of(task), spoiled)

    @torch.no_grad()
    def _without(
        self, photo: UInt8[np.ndarray, "h w 3"], task: int, round_: int, rounds: int, tell: Tell
    ) -> UInt8[np.ndarray, "h w 3"]:
        """A photograph without one fault: tiles overlap by half, and each counts the less the nearer to its edge.

        Rows of tiles go from top to bottom, and what no later row touches is written down, so that the memory beside
        the photograph is that of one row.
        """
        side = self.model.config.tile
        height, width = photo.shape[:2]
        tops, lefts = _starts(height, side), _starts(width, side)
        weight = _window(side)
        result = np.empty_like(photo)
        total = torch.zeros(side, max(width, side), 3)
        shares = torch.zeros(side, max(width, side), 1)
        for row, top in enumerate(tops):
            for begin in range(0, len(lefts), BATCH):
                chosen = lefts[begin : begin + BATCH]
                tiles = np.stack([_tile(photo, top, left, side) for left in chosen])
                state = from_pixels(torch.from_numpy(tiles)).to(self.device)
                clean = self.cleaned(state, task).cpu().unflatten(1, (side, side))
                for left, tile in zip(chosen, clean, strict=True):
                    total[:, left : left + side] += weight * tile
                    shares[:, left : left + side] += weight
                done = round_ * len(tops) * len(lefts) + row * len(lefts) + begin + len(chosen)
                tell(done, rounds * len(tops) * len(lefts))
            until = tops[row + 1] if row + 1 < len(tops) else height
            ready = ((total / shares.clamp_min(1e-9)).clamp(-1, 1) + 1)[: until - top, :width] * 127.5
            result[top:until] = ready.round().to(torch.uint8).numpy()
            moved = until - top
            total = F.pad(total[moved:], (0, 0, 0, 0, 0, min(moved, side)))
            shares = F.pad(shares[moved:], (0, 0, 0, 0, 0, min(moved, side)))
        return result

    def _net_of(self, task: int) -> nn.Module:
        """The net with the weights of one fault, kept for the next photograph."""
        if task not in self._merged:
            self._merged[task] = merged(self.model.net, task).eval()
        return self._merged[task]


def borders(length: int, side: int) -> list[int]:
    """Where a tile begins or has just ended, within an axis of a photograph.

    Args:
        length: pixels along it.
        side: of a tile.
    """
    starts = _starts(length, side)
    return sorted({place for start in starts for place in (start, start + side) if 0 < place < length})


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin along an axis: half a tile apart, the last one at the end."""
    last = max(0, length - side)
    return sorted({*range(0, last, side // 2), last})


def _window(side: int) -> Float[Tensor, "s s 1"]:
    """How much each pixel of a tile counts: one in the middle, and little at the edge."""
    line = torch.minimum(torch.arange(1.0, side + 1), torch.arange(float(side), 0, -1)) / (side / 2)
    return (line[:, None] * line[None])[..., None]


def _tile(photo: UInt8[np.ndarray, "h w 3"], top: int, left: int, side: int) -> UInt8[np.ndarray, "s s 3"]:
    """A tile of a photograph, mirrored beyond its edges where it is smaller."""
    part = photo[top : top + side, left : left + side]
    below, right = side - part.shape[0], side - part.shape[1]
    return np.pad(part, ((0, below), (0, right), (0, 0)), mode="symmetric") if below or right else part
