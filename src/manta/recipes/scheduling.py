"""Teaching a masked model a schedule of its own: which words when, and how many calls, against a price per call."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from manta.config import from_dict, to_dict
from manta.errors import CheckpointError, ConfigError, DataError, UsageError
from manta.families.events import GenerateOptions, Request
from manta.families.masked import MaskedLM
from manta.families.observer import Beginning, Observer
from manta.masked import Canvas, ConfidenceConfig, DecoderConfig, LearnedConfig
from manta.masked.learned import Learned, Schedule
from manta.runtime import make_generator
from manta.text import Example, read, task_of
from manta.text.tasks import Task
from manta.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_state,
    pack_bytes,
    save_checkpoint,
    unpack_bytes,
)

OPTIONS = GenerateOptions(style="consensus")
PROMPTS, TRIES = 16, 8
"""Prompts of an update, and texts of each, which are compared with each other."""
LEARNING_RATE = 0.02
READ = 20_000
"""Most examples that are read to learn on."""
MEASURED = 64
"""Prompts on which a schedule is measured, held-out ones if there are any."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """What a schedule is learned from; its checkpoints tell it."""

    model: str
    """Folder of the model that learns it."""
    data: str
    """Prompts to learn on."""
    price: float = 0.02
    """Of a call, where a text is worth 1 at most."""
    updates: int = 100
    """Of the schedule."""
    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        if not 0 <= self.price < 1 or self.updates < 1:
            raise ConfigError(
                f"price should lie in [0, 1) and updates be at least 1, received {self.price} and {self.updates}"
            )


@dataclass(frozen=True)
class Kept:
    """Where learning keeps a checkpoint after each update."""

    folder: Path
    """Its own; made with the first checkpoint."""
    recipe: ScheduleRecipe
    """What is learned from."""
    model: str
    """Digest of the model."""

    @classmethod
    def found(cls, folder: Path) -> "Kept":
        """What interrupted learning has left.

        Raises:
            CheckpointError: nothing, or something else.
        """
        checkpoint = latest_checkpoint(folder)
        if checkpoint is None:
            raise CheckpointError(f"no schedule is half learned in {folder}, so there is nothing to resume; begin anew")
        told = load_state(checkpoint).get("learning", {})
        try:
            return cls(folder, from_dict(ScheduleRecipe, told["recipe"]), str(told["model"]))
        except (KeyError, ConfigError) as error:
            raise CheckpointError(f"{checkpoint} is not that of a schedule; choose another --out") from error


@dataclass(frozen=True)
class Scored:
    """What a decoder makes of prompts."""

    quality: float
    """Mean reward of a text without the price of its calls."""
    calls: float
    """Mean network calls of a text, without the prompt's."""


@dataclass(frozen=True)
class Learning:
    """What was learned, beside what learning began with."""

    decoder: LearnedConfig
    """The schedule."""
    reward: str
    """What a text is worth, in words."""
    held_out: bool
    """The prompts of what follows are no training prompts; data with few have none else."""
    slowly: Scored
    """A word a call."""
    before: Scored
    """The threshold rule that learning began with."""
    after: Scored
    """The schedule."""


@dataclass(frozen=True)
class _Recorded(LearnedConfig):
    """A decoder whose one policy is at hand after it has written."""

    policy: Learned | None = None

    def build(self) -> Learned:
        assert self.policy is not None, "made with one"
        return self.policy


class Player:
    """A model that writes the texts of some prompts, each worth something.

    Args:
        lm: the model.
        task: judges the texts: 1 for a solution, else 0. None: a text is worth the share of its places that are as
            the model writes them a word a call.
    """

    def __init__(self, lm: MaskedLM, task: Task | None) -> None:
        self.lm, self.task = lm, task
        self.known: Sequence[Example] | None = None
        """Prompts that were scored last."""
        self.known_slow: Tensor | None = None
        """Their texts of a word a call."""

    @torch.no_grad()
    def write(self, beginning: Beginning, decoder: DecoderConfig, most: int | None = None) -> Canvas:
        """The canvases that a decoder fills, in a number of calls at most; without one, in as many as it takes."""
        own = copy(self.lm)
        own.decoder = decoder
        most = most or beginning.tokens.shape[1] + 1
        *_, canvas = own.canvases(beginning, OPTIONS, Observer(), ends_last=True, max_calls=most)
        return canvas

    def slowly(self, beginning: Beginning) -> Canvas:
        """A word a call, the surest first."""
        return self.write(beginning, ConfidenceConfig())

    def worth(
        self, examples: Sequence[Example], beginning: Beginning, written: Canvas, slow: Int64[Tensor, "b n"] | None
    ) -> Float[Tensor, "b"]:
        """What each text is worth, in [0, 1], where no task judges it by how it is written `slow`."""
        if self.task is None:
            assert slow is not None, "something to compare with"
            same = (written.tokens == slow) & beginning.mask
            return same.sum(1).double().cpu() / beginning.mask.sum(1).cpu()
        texts = (self.lm.text_of(row[mask].tolist()) for row, mask in zip(written.tokens, beginning.mask, strict=True))
        solved = [
            self.task.check(example.prompt or "", text).solved for example, text in zip(examples, texts, strict=True)
        ]
        return torch.tensor(solved, dtype=torch.float64)

    @torch.no_grad()
    def begin(self, examples: Sequence[Example], seed: int = 0) -> Beginning:
        """Canvases of the prompts."""
        requests = [Request(prompt=example.prompt, seed=seed + row) for row, example in enumerate(examples)]
        return self.lm.begin(requests, OPTIONS)

    def scored(self, examples: Sequence[Example], decoder: DecoderConfig, most: int | None = None) -> Scored:
        """A decoder on prompts."""
        beginning = self.begin(examples)
        if self.task is None and self.known is not examples:
            self.known, self.known_slow = examples, self.slowly(beginning).tokens
        written = self.write(beginning, decoder, most)
        worth = self.worth(examples, beginning, written, self.known_slow)
        return Scored(worth.mean().item(), written.calls_of.double().mean().item())


def learn_schedule(
    lm: MaskedLM,
    data: str,
    price: float,
    *,
    updates: int = 100,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
    kept: Kept | None = None,
) -> Learning:
    """Teach a schedule by the policy gradient.

        for each update:
            for some prompts, write several texts each, with commitments drawn from the policy
            advantage ← (worth − price · calls) less its mean over the texts of the prompt
            ascend  Σ advantage · Σ log π(what was committed)

    The policy is small (`manta.masked.learned`) and begins as the threshold rule. Sources: Jazbec et al., "Learning
    Unmasking Policies for Diffusion Language Models", arXiv 2512.09106; the group's mean as baseline is that of GRPO.

    Args:
        lm: a masked model that neither thinks nor doubts, without classes, on a canvas that stays.
        data: prompts to learn on, and held-out ones to measure on; see `manta.text.read`.
        price: of a call, where a text is worth 1 at most.
        updates: of the policy.
        seed: of all draws.
        tell: takes lines about what is being done.
        kept: keeps checkpoints; where there are some, learning goes on from the newest as if it had never stopped.

    Raises:
        ConfigError: a price or a number of updates that makes no sense.
        UsageError: a model that it is not for.
        DataError: there are no prompts.
        CheckpointError: the newest checkpoint is damaged.
    """
    ScheduleRecipe(model="", data=data, price=price, updates=updates, seed=seed)
    shape = lm.model.config
    if shape.elastic or shape.classes or shape.thinking.carries or shape.thinking.doubts:
        raise UsageError(
            "a schedule is for masked models that neither think nor doubt, without classes, on a canvas that stays"
        )
    task, reads = task_of(data), lm.model.config.max_prompt
    examples = [e for e in read(data, "train", READ, seed=seed) if _fits(lm, e, reads)]
    held = [e for e in read(data, "dev", 4 * MEASURED) if _fits(lm, e, reads)][:MEASURED]
    if not examples:
        raise DataError(f"{data} has no prompts that the model reads")
    player, generator = Player(lm, task), make_generator(seed)
    torch.manual_seed(seed)
    schedule = Schedule()
    optimizer = torch.optim.Adam(schedule.parameters(), LEARNING_RATE)
    begun = 0 if kept is None else _restore(kept, schedule, optimizer, generator)
    if begun:
        tell(f"going on after update {begun} of {updates}")
    for update in range(begun, updates):
        chosen = torch.randint(len(examples), (PROMPTS,), generator=generator).tolist()
        rows = [examples[i] for i in chosen for _ in range(TRIES)]
        beginning = player.begin(rows, seed=PROMPTS * TRIES * (1 + update + updates * seed))
        policy = Learned(schedule, drawn=True)
        written = player.write(beginning, _Recorded(policy=policy))
        slow = None
        if task is None:
            slow = player.slowly(player.begin([examples[i] for i in chosen])).tokens.repeat_interleave(TRIES, 0)
        reward = player.worth(rows, beginning, written, slow) - price * written.calls_of.cpu()
        advantage = reward.view(PROMPTS, TRIES)
        advantage = (advantage - advantage.mean(1, keepdim=True)).flatten().float()
        optimizer.zero_grad()
        _surrogate(policy, advantage).backward()
        optimizer.step()
        if kept is not None:
            _keep(kept, update + 1, schedule, optimizer, generator)
        if (update + 1) % max(1, updates // 10) == 0:
            calls = written.calls_of.double().mean()
            tell(f"update {update + 1} of {updates}: reward {reward.mean():.3f}, {calls:.1f} calls a text")
    decoder = LearnedConfig(weights=schedule.weights(), price=price)
    said = (
        "a text is worth 1 where it solves its puzzle, else 0"
        if task
        else "a text is worth the share of its places that are as the model writes them a word a call"
    )
    tell("measuring it beside a word a call and the rule that it began as")
    measured = held or examples[:MEASURED]
    sides = [player.scored(measured, each) for each in (ConfidenceConfig(), LearnedConfig(), decoder)]
    return Learning(decoder, said, bool(held), *sides)


def _keep(
    kept: Kept, update: int, schedule: Schedule, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """Write a checkpoint with all that the next update depends on."""
    moments = {
        f"{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    learning = {"recipe": to_dict(kept.recipe), "model": kept.model}
    state = {"generator": pack_bytes(generator.get_state()), "learning": learning}
    save_checkpoint(kept.folder, update, {"schedule": schedule.state_dict(), "optimizer": moments}, state)


def _restore(kept: Kept, schedule: Schedule, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
    """Take the newest checkpoint up, if there is one; returns the updates that are done."""
    checkpoint = latest_checkpoint(kept.folder)
    if checkpoint is None:
        return 0
    tensors, state = load_checkpoint(checkpoint)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors["optimizer"].items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = value
    schedule.load_state_dict(tensors["schedule"])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    generator.set_state(unpack_bytes(state["generator"]))
    return state["step"]


def _surrogate(policy: Learned, advantage: Float[Tensor, "b"]) -> Tensor:
    """The negative of what is ascended: the gradient of its mean is that of the reward's."""
    total = torch.zeros(())
    for signs, drawn, free in policy.steps:
        logit = policy.schedule(signs)
        likelihood = -F.binary_cross_entropy_with_logits(logit, drawn.float(), reduction="none")
        total = total - (advantage.to(logit)[:, None] * likelihood * free).sum() / len(advantage)
    return total


def _fits(lm: MaskedLM, example: Example, most: int) -> bool:
    return example.prompt is not None and len(lm.tokenizer.encode(example.prompt)) <= most


def scheduling_card(card: str, data: str, found: Learning) -> str:
    """The card of a model with what its schedule was learned on, and what it brings.

    Args:
        card: the model's own.
        data: name of the data.
        found: what was learned.
    """
    rows = [("a word a call", found.slowly), ("threshold 0.9", found.before), ("the learned schedule", found.after)]
    table = "\n".join(f"| {name} | {side.quality:.3f} | {side.calls:.1f} |" for name, side in rows)
    own, prompts = card.partition("\n## A learned schedule")[0], "held-out prompts" if found.held_out else "prompts"
    return (
        f"{own.rstrip()}\n\n## A learned schedule\n\nLearned on `{data}` at a price of {found.decoder.price:g} a "
        f"call; {found.reward}.\n\n| {prompts} | worth | calls |\n|---|---|---|\n{table}\n"
    )
