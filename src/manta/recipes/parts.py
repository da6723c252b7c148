"""What a run has to know of the state that it trains a model of: `Parts`, of which texts and images are two kinds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from manta.config import to_dict
from manta.errors import ConfigError
from manta.families.kept import KeptModel
from manta.hub.folder import is_saved, refuse_strangers, save_model
from manta.recipes.budget import Watch
from manta.training import Progress, TrainConfig
from manta.training.loop import Batches, Objective


@runtime_checkable
class RunRecipe(Protocol):
    """What a recipe says of a run, whatever it trains."""

    @property
    def state(self) -> str:
        """A key of `STATES`."""
        ...

    @property
    def family(self) -> str:
        """Which family."""
        ...

    @property
    def data(self) -> str:
        """Where the examples come from."""
        ...

    @property
    def size(self) -> str:
        """The size dial."""
        ...

    @property
    def time_budget(self) -> str | None:
        """Time for the whole run."""
        ...

    @property
    def num_steps(self) -> int | None:
        """Steps of all stages together, instead of a time budget."""
        ...

    @property
    def seed(self) -> int:
        """All randomness of the run."""
        ...

    @property
    def checkpoint_minutes(self) -> float:
        """Time between checkpoints."""
        ...

    @property
    def train(self) -> TrainConfig:
        """How the stages are optimised."""
        ...


@dataclass(frozen=True)
class StageSpec:
    """One stage of a run, before its length is known."""

    name: str
    share: float
    """Share of the run's time; only ratios count."""
    model: nn.Module
    """Passed to the objective."""
    trained: tuple[nn.Module, ...]
    """Parts whose parameters are trained; all others are frozen."""
    objective: Objective
    corpus: Callable[[], Any]
    """The data, asked for when the stage begins: an earlier stage may make it."""
    pace: float = 1.0
    """Factor of the learning rate."""
    begin: Callable[[], None] = lambda: None
    """Called once before the first step."""
    answers: bool = False
    """The data are a teacher's answers, or the model's own, which take time to write."""
    round: int = 0
    """Rounds of the same stage before this one, by which its examples are chosen."""


class OnDevice:
    """A loader whose batches are moved to a device.

    Args:
        loader: of batches on the CPU.
        device: where they go.
    """

    def __init__(self, loader: Batches, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __next__(self) -> Any:
        """The next batch."""
        return next(self.loader).to(self.device)

    def skip(self, count: int) -> None:
        """Leave some batches out."""
        self.loader.skip(count)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.loader.load_state_dict(state)


class Parts(ABC):
    """Everything a run trains, and its data."""

    unit: ClassVar[str]
    """What elements of a batch are, in the plural."""
    made: ClassVar[str] = "data that were made"
    """What an earlier stage may make for a later one."""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of what preparing writes into the folder of a run."""
    precision: torch.dtype = torch.bfloat16
    """That the matrices of a model are stored in."""

    recipe: Any
    """As resolved and fitted to the data."""
    device: torch.device
    """Where the nets are."""
    corpus: Any
    """The data as they were read."""
    report: Any
    """What became of them; it prints as a line."""
    data: dict[str, str]
    """Digests by which it is known again."""
    modules: nn.ModuleDict
    """All nets."""
    measured: dict[str, Any]
    """What is measured while training and steers it: part of every checkpoint, whatever the stage."""

    @classmethod
    @abstractmethod
    def resolved(cls, recipe: Any, tell: Callable[[str], None]) -> Any:
        """A recipe with all that follows from it.

        Args:
            recipe: as asked for.
            tell: takes what is measured on the way.

        Raises:
            ConfigError: what is asked for does not fit together.
        """

    @classmethod
    @abstractmethod
    def prepared(cls, recipe: Any, folder: Path, device: torch.device, watch: Watch) -> "Parts":
        """Read a recipe's data, or take what the folder keeps of it.

        Args:
            recipe: as resolved.
            folder: of the run.
            device: where the nets go.
            watch: sees to the time budget and tells what is done.
        """

    @abstractmethod
    def specs(self) -> list[StageSpec]:
        """The stages in order; builds the modules that they train."""

    @abstractmethod
    def batches(self, spec: StageSpec, seed: int, rows: Any = None) -> Batches:
        """Endless batches of a stage's data, on the CPU.

        Args:
            spec: the stage.
            seed: of their order.
            rows: those of a later round; None: all.
        """

    @abstractmethod
    def trained_model(self, stage: str) -> Any:
        """What a stage trains, as a model that can be used and kept."""

    @property
    @abstractmethod
    def size(self) -> str:
        """How large the model is, in words."""

    @property
    def at_hand(self) -> Any:
        """Data by which the pace of a stage is measured whose own may have to be made."""
        return self.corpus

    def reserved(self, specs: Sequence[StageSpec], index: int, *, planned: bool = False) -> float:
        """Share of a time budget that is kept for something without steps.

        Args:
            specs: the stages.
            index: the first of those that are left.
            planned: it is this stage's turn to be planned, whose own data are there.
        """
        return 0.0

    def rows_of_round(self, spec: StageSpec, before: Any, num_batches: int, seed: int, *, begun: bool) -> Any:
        """The examples of a later round, see `StageSpec.round`.

        Args:
            spec: the round.
            before: batches of the one before, from its first on.
            num_batches: that it has learned from.
            seed: of the draws.
            begun: the round has begun.

        Raises:
            ConfigError: there are no rounds of this kind of state.
        """
        raise ConfigError("rounds are for models of texts; set train.rounds=1")

    def advice(self) -> tuple[str, ...]:
        """What a person should know before anything is trained."""
        return ()

    def measures(self, progress: Progress) -> bool:
        """Whether `row` asks the net after a step."""
        return False

    def row(self, step: int, progress: Progress) -> dict[str, Any]:
        """What the log holds of a step beside what it holds of any.

        Args:
            step: of the whole run, from 1.
            progress: of the step within its stage.
        """
        return {}

    def besides(self, spec: StageSpec) -> Mapping[str, KeptModel]:
        """Models that are kept beside the run's own once a stage has ended, by the name of their folder."""
        return {}

    @property
    def place(self) -> str:
        """Name of the folder in which a run keeps its finished model."""
        return "model"

    @classmethod
    def refuse_strangers(cls, run: Path) -> None:
        """Refuse a run's folder where somebody else's files stand in the way of its models.

        Args:
            run: the folder.

        Raises:
            ModelError: as said.
        """
        for name in ("model", "teacher"):
            refuse_strangers(run / name)

    def save(self, folder: Path, model: Any, card: str) -> None:
        """Write a model with its card, whole or not at all.

        Args:
            folder: where it goes.
            model: that is kept.
            card: text of its card.
        """
        save_model(folder, model, recipe=to_dict(self.portable()), card=card, dtype=self.precision)

    def is_saved(self, folder: Path, model: Any) -> bool:
        """Whether a folder holds a model already, weight for weight."""
        return is_saved(folder, model, dtype=self.precision)

    def finished(self, model: Any) -> list[str]:
        """Give the finished model what it needs of its data; returns what a person should know."""
        return []

    @abstractmethod
    def samples(self, model: Any, stage: str, file: Path) -> list[str]:
        """Have a model make a few samples, and keep them.

        Args:
            model: as it is by now.
            stage: that it is in.
            file: where they go, without a suffix.

        Returns:
            What a person may read; none if it can make none.
        """

    @abstractmethod
    def portable(self) -> Any:
        """The recipe as a model carries it away: of a path only the last part, which tells no folder's name."""

    @abstractmethod
    def card(self, model: Any, plan: dict[str, int], minutes: dict[str, float]) -> str:
        """The card of a model.

        Args:
            model: that it is of.
            plan: steps of each stage.
            minutes: wall minutes of each stage, and of whatever else took time.
        """
