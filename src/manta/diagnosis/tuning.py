"""Controllability learned instead of applied: a flow fine-tuned toward a keyword by adjoint matching."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from manta.control import Start, TuningProgress, match_adjoint
from manta.control.goals import keyword_goal
from manta.errors import ModelError, UsageError
from manta.families.events import GenerateOptions, Request
from manta.families.manta_lm import MantaLM
from manta.families.observer import Beginning
from manta.nets.vector_field import Condition
from manta.runtime import make_generator
from manta.text import MASK


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How a flow is tuned."""

    num_updates: int = 60
    """Updates; each samples a path for every request of a batch."""
    num_steps: int = 8
    """Steps of a path."""
    reward_scale: float = 8.0
    """Nats of reward a nat of the keyword's log-likelihood: how far the density is tilted."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    batch_size: int = 16
    """Paths of an update."""

    def __post_init__(self) -> None:
        if min(self.num_updates, self.batch_size) < 1 or self.num_steps < 2:
            raise UsageError("num_updates and batch_size should be at least 1, and num_steps at least 2")
        if min(self.reward_scale, self.learning_rate) <= 0:
            raise UsageError("reward_scale and learning_rate should be above 0")


@dataclass(frozen=True)
class _Start:
    """What a path begins with."""

    condition: Condition
    beginning: Beginning


def tune(
    lm: MantaLM,
    prompts: Sequence[str | None],
    keyword: str,
    config: TuningConfig | None = None,
    *,
    seed: int = 0,
    progress: Callable[[TuningProgress], None] = lambda done: None,
) -> MantaLM:
    """A copy of a model whose plans are drawn toward texts that hold a keyword.

    The reward of a finished plan is the log-likelihood that the words read from it alone hold the keyword. What is
    tuned is the linear map that tells the clean state from the policy's hidden vectors: the words are read from them
    as before, so that only the plan is controlled, not the language. Paths are those of `diverse` texts in ancestral
    steps, with no word settled and no estimate fed back; writing, which settles words and feeds back, only resembles
    them.

    Args:
        lm: in a latent space.
        prompts: to sample paths for.
        keyword: one word or phrase.
        config: how.
        seed: of everything drawn.
        progress: called after each update.

    Raises:
        ModelError: for embeddings, whose clean state is read from the words, so that there is no plan of its own.
        UsageError: without prompts, or for a keyword without tokens.
    """
    config = config or TuningConfig()
    if not lm.model.space.estimates:
        raise ModelError("adjoint matching tunes the plan of a latent space; this model's states are word embeddings")
    if not prompts:
        raise UsageError("tuning takes prompts, received none")
    tuned = copy.deepcopy(lm)
    tuned.model.requires_grad_(False)
    assert tuned.model.field.merge is not None, "a latent space has estimates"
    parameters = [p.requires_grad_() for p in tuned.model.field.merge.parameters()]
    phrase = lm.tokenizer.encode(keyword)
    options = GenerateOptions(style="diverse")
    generator, drawn = make_generator(seed), [0]
    latest: list[_Start] = []

    def start() -> Start:
        chosen = torch.randint(len(prompts), (config.batch_size,), generator=generator).tolist()
        requests = [Request(prompt=prompts[i], seed=seed + 1_000_003 + drawn[0] + k) for k, i in enumerate(chosen)]
        drawn[0] += len(requests)
        beginning = lm.begin(requests, options)
        with torch.no_grad():
            latest[:] = [_Start(lm.model.condition(beginning.memory, beginning.mask, code=beginning.code), beginning)]
        assert beginning.state is not None
        return Start(beginning.state, latest[0].condition, beginning.mask[:, :: lm.model.space.rate])

    def reward(state: Tensor) -> Tensor:
        nothing = replace(latest[0].condition, settled=latest[0].beginning.tokens)
        logits = lm.model.logits(lm.model.act_beside(state, torch.ones_like(state[:, 0, 0]), cond=nothing).aux)
        logits = logits.masked_fill(
            F.one_hot(torch.tensor(MASK), logits.shape[-1]).bool().to(logits.device), -torch.inf
        )
        return config.reward_scale * keyword_goal(phrase, latest[0].beginning.mask)(logits.softmax(-1))

    updates = match_adjoint(
        tuned.model.act,
        lm.model.act,
        reward,
        start,
        lm.density.grid(config.num_steps).double(),
        noise=lambda like: torch.randn(like.shape, generator=generator).to(like),
        parameters=parameters,
        num_steps=config.num_updates,
        learning_rate=config.learning_rate,
        generator=generator,
    )
    for done in updates:
        progress(done)
    tuned.model.requires_grad_(False)
    return tuned
