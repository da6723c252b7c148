"""What a family that manta trains has to say for itself: its stages, its folder, its likelihood."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from manta.aligned import AlignmentConfig
from manta.errors import ConfigError, UsageError
from manta.families.batching import to_batch
from manta.families.canvas import Prompts, Template, whole_texts
from manta.families.events import GenerateOptions, Request
from manta.families.kept import KeptModel
from manta.families.objectives import ObjectiveConfig
from manta.families.observer import Beginning
from manta.families.prompted import PromptedModel, of_task
from manta.families.routing import Understood, understood
from manta.families.serving import RequestWriter
from manta.masked import MaskedObjectiveConfig
from manta.nets.trunk import Trunk
from manta.text import Batch, Corpus, ForeignTokenizer, Tokenizer
from manta.types import Loss

Net = TypeVar("Net", bound=PromptedModel)


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """log p of texts given their prompts, in nats."""

    kind: Literal["exact", "bound"]
    """`bound` is from below."""
    value: Float[Tensor, "b"]
    """Of each text, its closing token included."""
    standard_error: Float[Tensor, "b"] | None = None
    """Of a bound, from its random draws."""


@dataclass(frozen=True, kw_only=True)
class StageShares:
    """How the time, or the steps, of a run are divided among its stages; only ratios count."""

    teacher: float = 0.2
    """The autoregressive teacher, where consensus targets or a warm start come from one."""
    policy: float = 0.65
    """Space and policy together."""
    own: float = 0.15
    """The policy in states that it has reached by itself."""

    def __post_init__(self) -> None:
        if min(self.teacher, self.own) < 0 or self.policy <= 0:
            raise ConfigError("shares.teacher and shares.own should be at least 0, and shares.policy above 0")

    @property
    def model(self) -> float:
        """The model itself, a family's that has no stage of states it has reached by itself."""
        return self.policy + self.own


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What a recipe says of the objectives; its fields are the recipe's own."""

    shares: StageShares = field(default_factory=StageShares)
    """Division among the stages."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the stages are taught."""
    masking: MaskedObjectiveConfig = field(default_factory=MaskedObjectiveConfig)
    """How a masked model's words are hidden and weighed."""
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    """What an aligned model is shown of its alignments."""


@dataclass(frozen=True)
class Taught:
    """One stage of a family's training."""

    name: str
    share: float
    """Share of the time; only ratios count."""
    objective: Callable[[Any, Batch, torch.Generator], Loss]
    pace: float = 1.0
    """Factor of the learning rate."""
    part: str = ""
    """The only part of the net that is trained; all of it without one."""
    answers: bool = False
    """Learns from the net's own answers to prompts beside the texts."""
    comparable: bool = True
    """Two nets are asked the same by one batch and the same draws; not where a net's own answers lead to the rest."""


class TrainedWriter(RequestWriter, KeptModel, Generic[Net]):
    """A model of a family that manta trains, with its tokenizer, ready to write.

    Args:
        model: the net.
        tokenizer: the tokens it was trained on.
    """

    net_class: ClassVar[Callable[[Any], PromptedModel]]
    codec_class: ClassVar[type[Tokenizer]] = Tokenizer

    def __init__(self, model: Net, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self._of_tasks: dict[str, tuple[Any, TrainedWriter[Net]]] = {}
        """Models of single tasks that were asked for, each with what it was made of."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """See `Writer`."""
        return getattr(self.model.config, "tasks", ())

    def of_task(self, task: str | None) -> "TrainedWriter[Net]":
        """The model of one task, of the same family: it costs what a model without tasks does, and is one.

        With `film` its maps have shifts, for which the shape of a model without tasks has no weights, so that one is
        not to be stored.

        Args:
            task: one of `tasks`; None, and the model itself, where it has none.

        Raises:
            RequestError: the model has no such task, or has some and none is named.
        """
        self.check_task(task)
        if task is None:
            return self
        state = _state_of(self.model)
        if task not in self._of_tasks or self._of_tasks[task][0] != state:
            found = self.with_net(of_task(self.model, self.tasks.index(task)).eval())
            found._of_tasks = {}
            self._of_tasks[task] = state, found
        return self._of_tasks[task][1]

    def understand(self, instruction: str) -> Understood:
        """Which of its tasks an instruction in words asks for, or none where it does not say so surely enough.

        Raises:
            UsageError: the instruction is empty or too long, or the model has no tasks.
        """
        if not self.tasks:
            raise UsageError("the model has no tasks, so there is none to be told in words; leave the instruction out")
        return understood(instruction, self.tasks)

    @property
    def codec(self) -> Tokenizer:
        """The tokenizer."""
        return self.tokenizer

    @staticmethod
    def check_codec(shape: Any, codec: Tokenizer) -> None:
        """See that the net has a row for every token; a published table may have rows that no token has."""
        spare = isinstance(codec, ForeignTokenizer)
        if not (shape.vocab_size >= codec.vocab_size if spare else shape.vocab_size == codec.vocab_size):
            raise ConfigError(f"{shape.vocab_size} tokens, and its tokenizer has {codec.vocab_size}")

    @property
    def capacity(self) -> int:
        """Most tokens of a text."""
        return self.model.config.max_text

    def learn_from(self, corpus: Corpus, teacher: "TrainedWriter[Any] | None" = None) -> None:
        """Keep what the finished model needs of what it was trained on.

        Args:
            corpus: the texts.
            teacher: who answered its prompts or lent its weights, if there was one.
        """

    @classmethod
    @abstractmethod
    def stages(cls, net: Net, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """What the net is taught, in order.

        Args:
            net: to be trained.
            teaching: what the recipe says.
            measured: receives by name what is measured while training and steers it, and has a `state_dict`.
        """

    @staticmethod
    def begin_with(net: Net, corpus: Corpus) -> None:
        """What a net takes from the training texts before its first step; nothing, unless a family says so."""

    def with_vocabulary(
        self, tokenizer: Tokenizer, smaller: Callable[[Any], Any], rows: Iterable[Sequence[int]]
    ) -> "TrainedWriter[Net]":
        """The model with another tokenizer.

        Args:
            tokenizer: of fewer tokens.
            smaller: makes a net for it of one for the present tokenizer.
            rows: texts it was trained on, encoded anew; they may be gone through more than once.
        """
        found = copy(self)
        found.model, found.tokenizer = smaller(self.model).eval(), tokenizer
        return found

    def measured(self) -> dict[str, Any]:
        """What was measured while the model was trained, as far as it is kept, by the names that `stages` gives it."""
        return {}

    @classmethod
    def after(cls, net: Net, tokenizer: Tokenizer, measured: Mapping[str, Any]) -> "TrainedWriter[Net]":
        """The model as its stages have it by now.

        Args:
            net: as trained.
            tokenizer: the tokens it was trained on.
            measured: what `stages` has put there.
        """
        return cls(net, tokenizer)

    @classmethod
    def stored(
        cls, net: Net, codec: Tokenizer, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "TrainedWriter[Net]":
        """See `KeptModel`."""
        return cls(net, codec)

    @torch.no_grad()
    def begin(self, requests: Sequence[Request], options: GenerateOptions) -> Beginning:
        """Encode prompts, decide lengths and draw what comes first as `generate` does, for the family's `follow`.

        Args:
            requests: without a text to fill.
            options: the style counts, where the family has any.

        Raises:
            RequestError: for a prompt that does not fit, or a text to fill.
        """
        batch = whole_texts(requests, self.tokenizer, self.model.config.max_prompt, self.device)
        return self._beginning(batch, [None] * len(requests), options, encode=True)

    @abstractmethod
    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        """Where a batch begins; `encode` runs the prompt's encoder."""

    @staticmethod
    def trunk_of(net: Net) -> Trunk:
        """The blocks that may begin from a teacher's weights."""
        return net.trunk  # pyright: ignore[reportReturnType]

    @staticmethod
    def rate_of(net: Net) -> int:
        """Tokens that share a state: a batch's width is a multiple of it."""
        return 1

    def log_likelihood(
        self,
        batch: Batch,
        generators: Sequence[torch.Generator] = (),
        num_samples: int = 128,
        known: Int64[Tensor, "b"] | None = None,
    ) -> LogLikelihood:
        """log p of each text given its prompt, of the kind that `likelihood` names.

        Args:
            batch: the texts.
            generators: one a text, where a bound draws.
            num_samples: draws a text of a bound.
            known: tokens of each text that are given, from its first on, so that only what follows them is asked; None:
                none are.

        Raises:
            UsageError: the family has none.
        """
        raise UsageError(f"no sound bound is known for the family {self.family}; measure its texts instead")

    def likelihoods(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[float]:
        """See `RequestWriter`; of a family whose log-likelihood is exact."""
        if self.likelihood != "exact":
            return super().likelihoods(prompts, texts)
        return self.log_likelihood(to_batch(prompts, texts, self.device)).value.tolist() if texts else []

    @contextmanager
    def endless(self) -> "Iterator[TrainedWriter[Net]]":
        """The model with no token that ends a text, so that every text has its full length."""
        yield self


def _state_of(net: nn.Module) -> tuple[Any, ...]:
    """What changes when any weight of a net does, or the net, or where it lives."""
    weights = list(net.parameters())
    return net, tuple((str(w.device), w.dtype, w.data_ptr(), w._version) for w in weights)
