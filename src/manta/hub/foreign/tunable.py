"""What training on, adapters and checkpoints have to know of a published model: one class a kind, and a row of
`TUNABLE`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import nn

from manta.errors import ConfigError, ModelError
from manta.families import PUBLISHED_AS
from manta.families.decoder import DecoderLM
from manta.families.trained import Teaching
from manta.hub.foreign.causal import CAUSAL_KINDS, describe_decoder, load_decoder
from manta.hub.foreign.model import ForeignModel, describe_foreign, load_foreign
from manta.hub.foreign.published import Place, causal_places, masked_places
from manta.hub.foreign.teaching import MaskedAnswers, frame_of
from manta.text import Batch
from manta.types import Loss


class Tunable(ABC):
    """A published model that is trained on.

    Args:
        lm: ready to write; its net may be on the meta device.
    """

    loss: ClassVar[str]
    """What the loss is, in words."""
    calls: ClassVar[Mapping[str, int]] = {}
    """Options by which a sample takes few network calls."""
    mixed: ClassVar[bool] = False
    """Batches hold texts of any length, since what is padded is learned too."""
    lm: Any

    def __init__(self, lm: Any) -> None:
        self.lm = lm

    @classmethod
    @abstractmethod
    def describe(cls, folder: Path, kind: Any) -> "Tunable":
        """The model of a folder without its weights.

        Args:
            folder: of a published model.
            kind: its layout.

        Raises:
            ModelError: the folder does not hold all of one.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, kind: Any, device: str, *, half: bool) -> "Tunable":
        """The model of a folder.

        Args:
            folder: of a published model.
            kind: its layout.
            device: where it goes.
            half: the weights may be of half precision, since they stay as they are.
        """

    @property
    @abstractmethod
    def net(self) -> nn.Module:
        """What is trained, or beside what."""

    @property
    def frame(self) -> int:
        """Tokens of a chat's frame around a prompt."""
        return 0

    @abstractmethod
    def check(self, longest: int, *, full: bool) -> None:
        """Refuse what the model cannot be taught.

        Args:
            longest: most tokens of a row.
            full: every row is padded to that.

        Raises:
            ConfigError, ModelError: as said.
        """

    @abstractmethod
    def places(self) -> dict[str, Place]:
        """Where each published weight is in the net."""

    @abstractmethod
    def objective(self, longest: int, *, full: bool) -> Callable[[Any, Batch, torch.Generator], Loss]:
        """What is taught, see `check`."""

    def bounded(self, longest: int) -> None:  # noqa: B027
        """Tell the net the most tokens of a row, where it has to know them."""


class TunableDecoder(Tunable):
    """A causal model: the next token of the answer, to its end, is taught as in training from nothing."""

    loss = "nats a token of the answer"
    lm: DecoderLM

    @classmethod
    def describe(cls, folder: Path, kind: Any) -> "TunableDecoder":
        """See `Tunable`."""
        return cls(describe_decoder(folder, kind))

    @classmethod
    def load(cls, folder: Path, kind: Any, device: str, *, half: bool) -> "TunableDecoder":
        """See `Tunable`; always of single precision."""
        return cls(load_decoder(folder, kind, device))

    @property
    def net(self) -> nn.Module:
        """See `Tunable`."""
        return self.lm.model

    def check(self, longest: int, *, full: bool) -> None:
        """See `Tunable`."""
        if full:
            raise ConfigError("full_rows is for a LLaDA or a Dream; a causal model ends by one token: leave it out")

    def places(self) -> dict[str, Place]:
        """See `Tunable`."""
        return causal_places(self.lm)

    def objective(self, longest: int, *, full: bool) -> Callable[[Any, Batch, torch.Generator], Loss]:
        """The family's own."""
        return self.lm.stages(self.lm.model, Teaching(), {})[0].objective

    def bounded(self, longest: int) -> None:
        """See `Tunable`."""
        self.lm.model.config = replace(self.lm.model.config, max_text=longest, max_prompt=longest - 1)


class TunableMasked(Tunable):
    """A LLaDA or a Dream: hidden words of the answer and the ends behind it, see `MaskedAnswers`."""

    loss = "the training objective"
    calls: ClassVar[Mapping[str, int]] = {"num_steps": 16}
    mixed = True
    lm: ForeignModel

    @classmethod
    def describe(cls, folder: Path, kind: Any) -> "TunableMasked":
        """See `Tunable`; with its tokenizer."""
        model = describe_foreign(folder)
        if model.tokenizer is None:
            raise ModelError(f"{folder} has no tokenizer.json; save the model's fast tokenizer there")
        return cls(model)

    @classmethod
    def load(cls, folder: Path, kind: Any, device: str, *, half: bool) -> "TunableMasked":
        """See `Tunable`."""
        return cls(load_foreign(folder, device, dtype=torch.bfloat16 if half else torch.float32))

    @property
    def net(self) -> nn.Module:
        """See `Tunable`."""
        return self.lm.net

    @property
    def frame(self) -> int:
        """See `Tunable`."""
        return sum(map(len, frame_of(self.lm)))

    def check(self, longest: int, *, full: bool) -> None:
        """See `Tunable`."""
        self.objective(longest, full=full)  # which refuses a model whose texts have no end
        if self.frame + 3 > longest:
            raise ConfigError(f"max_length is {longest}, and the frame of a prompt alone takes {self.frame}; raise it")

    def places(self) -> dict[str, Place]:
        """See `Tunable`."""
        return masked_places(self.lm)

    def objective(self, longest: int, *, full: bool) -> Callable[[Any, Batch, torch.Generator], Loss]:
        """See `Tunable`."""
        return MaskedAnswers(self.lm, longest, full=full)


TUNABLE: Final[Mapping[str, type[Tunable]]] = {
    "llada": TunableMasked,
    "Dream": TunableMasked,
    **dict.fromkeys(CAUSAL_KINDS, TunableDecoder),
}
"""By the layout of a published model: the kinds that are trained on."""


def tunable(lm: Any) -> Tunable:
    """A published model as one that is trained on.

    Args:
        lm: ready to write, such as `load_foreign` or `load_decoder` make; its family says its kind.

    Raises:
        ModelError: of a layout that is not trained on.
    """
    for kind, row in TUNABLE.items():
        if lm.family == PUBLISHED_AS.get(kind, kind):
            return row(lm)
    raise ModelError(f"models of the layout {lm.family} are not trained on here; give one of {', '.join(TUNABLE)}")
