"""What all families share: a token table that is also read by, an encoded prompt, and a guess of the length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from manta.config import filled
from manta.errors import ConfigError, UsageError
from manta.families.batching import rowwise
from manta.nets.head import Head
from manta.nets.memory import MemoryEncoder
from manta.nets.modulated import ModulationConfig, Tasks, merged, modulate
from manta.nets.trunk import Trunk
from manta.operators import AttentionConfig, OperatorChoice
from manta.operators.cross_attention import ProjectedMemory

TAGS = 3
"""Kinds of text asked for: human, consensus, and none (the null condition, without a prompt)."""
NO_PROMPT = 2
"""Heading of the null condition."""


@dataclass(frozen=True)
class Memory:
    """A prompt, encoded once for all nets that read it."""

    states: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]
    task: Int64[Tensor, "b"] | None = None
    """Number of each row's task, of a model that tells tasks apart: it goes wherever the rows go."""

    def rows(self, rows: Tensor) -> "Memory":
        """Some of its rows."""
        return Memory(self.states[rows], self.mask[rows], None if self.task is None else self.task[rows])

    def repeat(self, times: int) -> "Memory":
        """All of its rows, several times over."""
        task = None if self.task is None else self.task.repeat(times)
        return Memory(self.states.repeat(times, 1, 1), self.mask.repeat(times, 1), task)


@dataclass(frozen=True, kw_only=True)
class PromptedConfig:
    """What the shapes of all families tell; None is what no one has set: a recipe derives it, or `resolved`."""

    family: str
    """Which family this is."""
    vocab_size: int | None = None
    """Tokens of the tokenizer; None: as the recipe says."""
    dim: int | None = None
    """Width of every net; None: the recipe's size says it."""
    heads: int | None = None
    """Attention heads, also of operators that are not told their own; None: the recipe's size says it."""
    prompt_depth: int | None = None
    """Blocks of the prompt's encoder; None: 2, and in a teacher as many as its pupil has."""
    depth: int | None = None
    """Blocks that write the text; None: the recipe's size says it."""
    max_prompt: int | None = None
    """Most tokens of a prompt; None: as the recipe says."""
    max_text: int | None = None
    """Most tokens of a text; None: as the recipe says."""
    absolute_places: bool | None = None
    """Tell prompt and text the absolute place of each token: for texts that answer their prompt place by place, and for
    masked models: without it the positions of an unwritten canvas cannot be told apart, since attention between equal
    tokens gives each of them the same, however it is turned, so the first words of a text are all the same one. None:
    as the recipe says, and without one no."""
    hidden: int = 0
    """Width inside the pointwise networks of the blocks that write the text; 0: 8/3 of `dim`."""
    operator: OperatorChoice = field(default_factory=AttentionConfig)
    """How the elements of a text act on each other: the integral operator of every block that writes it."""
    operators: tuple[OperatorChoice, ...] = ()
    """Operators of the blocks one by one, from the first on, instead of `operator`; where there are fewer than blocks,
    they are repeated."""

    def __post_init__(self) -> None:
        least = {"vocab_size": 1, "dim": 8, "heads": 1, "prompt_depth": 1, "depth": 1, "max_prompt": 0, "max_text": 1}
        least["hidden"] = 0
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(
                    f"{name} should be at least {lowest}, received {value}; left out, or none, it is derived"
                )
        if self.dim is not None and self.heads is not None and self.dim % (2 * self.heads):
            raise ConfigError(f"dim should be a multiple of 2·heads = {2 * self.heads}, received {self.dim}")
        if self.depth is not None and len(self.operators) > self.depth:
            raise ConfigError(f"operators holds {len(self.operators)}, and there are {self.depth} blocks")

    @property
    def mix(self) -> tuple[OperatorChoice, ...]:
        """Operators of the blocks, repeated where there are fewer."""
        return self.operators or (self.operator,)

    @property
    def kinds(self) -> str:
        """Kinds of the operators, each once, in words."""
        return ", ".join(dict.fromkeys(operator.kind for operator in self.mix))


@dataclass(frozen=True, kw_only=True)
class TaskedConfig(PromptedConfig):
    """Shape of a model that may tell tasks apart, such as to continue a text and to shorten one."""

    modulation: ModulationConfig | None = None
    """What a row's task changes of the weights that all tasks share, in the prompt's encoder and in the blocks that
    write; the heading of the prompt tells the task in any case, and with the kind `none` it alone does. None: there is
    one task."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks, in the order of their numbers; a run takes them from its data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks and self.modulation is None:
            raise ConfigError("tasks are told apart by a modulation; set modulation.kind, or leave tasks out")
        if len(set(self.tasks)) < len(self.tasks) or not all(name.strip() for name in self.tasks):
            raise ConfigError(f"tasks should have names, each its own, received {', '.join(map(repr, self.tasks))}")
        if self.modulation is not None and self.modulation.frozen:
            raise ConfigError("modulation.frozen would leave the words and blocks of a fresh model untrained")


DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 1024,
    "dim": 128,
    "heads": 4,
    "prompt_depth": 2,
    "depth": 4,
    "max_prompt": 128,
    "max_text": 128,
    "absolute_places": False,
}
"""What a net takes for what neither its configuration nor a recipe has set."""


def resolved(config: PromptedConfig) -> Any:
    """A shape in which everything is set: what no one has set is taken from `DEFAULTS`.

    Args:
        config: of any family.

    Returns:
        A configuration of the same class, none of whose fields is None.

    Raises:
        ConfigError: what was set does not fit what was not.
    """
    return filled(config, DEFAULTS)


class PromptedModel(nn.Module):
    """Token table, prompt encoder and, if asked for, places and a length head.

    Args:
        config: shape, as `resolved` gives it.
        num_lengths: lengths a text can have, counted from 1; None builds no head.
        num_places: tells prompt and text the absolute place of each of so many tokens, for texts that answer their
            prompt place by place, such as puzzles; 0 leaves places relative.
    """

    config: Any
    """Shape, of the family's own class, in which everything is set."""

    def __init__(self, config: Any, *, num_lengths: int | None, num_places: int = 0) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.embedding = nn.Embedding(config.vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head = Head(self.embedding)
        self.tasks: Tasks | None = None
        """Of a model that tells tasks apart, what its maps are told the rows' tasks by."""
        kinds = TAGS * max(1, len(getattr(config, "tasks", ())))
        self.memory_encoder = MemoryEncoder(
            dim, config.prompt_depth, AttentionConfig(), heads=config.heads, kinds=kinds
        )
        self.places = nn.Embedding(num_places, dim) if num_places else None
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.1)
        self.length = (
            None if num_lengths is None else nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, num_lengths))
        )

    def embed(self, tokens: Int64[Tensor, "b n"], start: int | Sequence[int] = 0) -> Float[Tensor, "b n d"]:
        """Embedded tokens, with their places where the model has them.

        Args:
            tokens: of a prompt or a text.
            start: place of the first, of all rows or of each.
        """
        x = self.embedding(tokens)
        if self.places is None:
            return x
        if isinstance(start, int):
            return x + self._places(start, tokens.shape[1])
        return x + torch.stack([self._places(first, tokens.shape[1]) for first in start])

    def embed_weights(self, weights: Float[Tensor, "b n v"]) -> Float[Tensor, "b n d"]:
        """Expected embeddings: tokens given as weights over the vocabulary, so that a gradient can reach them."""
        x = weights @ self.embedding.weight
        return x if self.places is None else x + self._places(0, weights.shape[1])

    def _places(self, start: int, count: int) -> Float[Tensor, "{count} d"]:
        """Embeddings of places."""
        assert self.places is not None, "built without places"
        return rows_of(self.places, start, count)

    def memory(
        self,
        prompt: Int64[Tensor, "b p"],
        lengths: Int64[Tensor, "b"],
        kind: Int64[Tensor, "b"],
        *,
        encode: bool = True,
        task: Int64[Tensor, "b"] | None = None,
    ) -> Memory:
        """Encode prompts: one network call, or none if they stay bare embeddings.

        Args:
            prompt: prompt tokens, padded at the right.
            lengths: prompt tokens of each row; 0 for none.
            kind: kind of text asked for, in [0, TAGS); rows without a prompt are of the kind `NO_PROMPT`, whatever is
                asked, in training as in writing.
            encode: run the encoder; False is for a budget of a single call.
            task: number of each row's task, of a model that tells tasks apart; of others it is not looked at.

        Raises:
            UsageError: such a model is told no tasks.
        """
        mask = torch.arange(prompt.shape[1], device=prompt.device) < lengths[:, None]
        kind = torch.where(lengths == 0, NO_PROMPT, kind)
        if self.tasks is None:
            task = None
        elif task is None:
            raise UsageError(
                f"the model tells tasks apart ({', '.join(self.config.tasks)}), and here none can be told; take the "
                "model of one out first: manta export MODEL --task TASK --out FOLDER"
            )
        else:
            self.tasks.tell(task)
            kind = kind + TAGS * task
        states, mask = self.memory_encoder(self.embed(prompt), mask, kind, encode=encode)
        return Memory(states, mask, task)

    def modulate(self, trunk: Trunk) -> None:
        """Let tasks change the maps of the prompt's encoder and of the blocks that write, as the shape says; a shape
        without tasks changes nothing."""
        if self.config.tasks:
            read = nn.ModuleDict({"memory_encoder": self.memory_encoder, "trunk": trunk})
            self.tasks = modulate(read, self.config.modulation, len(self.config.tasks))

    def projected(self, trunk: Trunk, memory: Memory) -> tuple[ProjectedMemory, ...]:
        """Keys and values of a memory for every block, whose maps are told the rows' tasks for the calls to come."""
        if self.tasks is not None:
            assert memory.task is not None, "its own memory knows the tasks of its rows"
            self.tasks.tell(memory.task)
        return trunk.project(memory.states, memory.mask)

    def length_logits(self, memory: Memory) -> Float[Tensor, "b k"]:
        """Logits of the length of a text, 1 … k, in the family's own unit."""
        assert self.length is not None, "built without a length head"
        return rowwise(self.length, pooled(memory)).float()


def of_task(net: PromptedModel, number: int) -> Any:
    """The net of one task: a copy with that task's weights and headings, of the shape of a net that knows one task.

    Args:
        net: that tells tasks apart.
        number: of the task.
    """
    assert net.tasks is not None, "it tells tasks apart"
    found: Any = merged(net, number)
    heading = net.memory_encoder.heading.weight[TAGS * number : TAGS * (number + 1)]
    found.memory_encoder.heading = nn.Embedding.from_pretrained(heading.detach().clone(), freeze=False)
    found.config, found.tasks = replace(net.config, modulation=None, tasks=()), None
    return found.train(net.training)


def rows_of(table: nn.Embedding, start: int, count: int) -> Float[Tensor, "{count} d"]:
    """Some rows of a table of places; zeros beyond the last one, where there is padding alone.

    Args:
        table: a row a place.
        start: the first.
        count: how many.
    """
    known = table.weight[start : start + count]
    return known if len(known) == count else F.pad(known, (0, 0, 0, count - len(known)))


def pooled(memory: Memory) -> Float[Tensor, "b d"]:
    """The mean of a prompt's memory."""
    weight = memory.mask[..., None].to(memory.states.dtype)
    return (memory.states * weight).sum(1) / weight.sum(1)
