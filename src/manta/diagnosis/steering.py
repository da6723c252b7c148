"""Controllability: how far a keyword moves the output at sampling time, and what it costs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from manta.control import flip_rate
from manta.control.goals import TokenGoal, goal_guided, guide_logits, keyword_goal
from manta.diagnosis.common import presence
from manta.diagnosis.judging import Judgement
from manta.diagnosis.results import Figure, Settings
from manta.diagnosis.system import System
from manta.diagnosis.systems import FlowSystem
from manta.families.manta_lm import MantaLM
from manta.families.page import Page
from manta.families.tracing import trace_flow
from manta.flow.solvers import Field
from manta.nets.vector_field import Condition
from manta.text import MASK

LEAST_LETTERS = 4
"""Letters of the shortest word that is taken for a goal."""


@dataclass
class Steered:
    """What one strength of guidance did."""

    way: str
    """What was guided: `logits` (the words' choice), `plan` (the state of a flow), or `plan, tuned`."""
    strength: float
    """Its strength; 0 is off."""
    figures: dict[str, Figure]
    """`met` (1 where the text holds the word), `edited` (share of the words that differ from the unguided text's),
    `faithfulness_lost`, `likelihood_lost`."""

    def row(self) -> dict[str, Any]:
        """Plain values."""
        figures = {name: figure.row() for name, figure in self.figures.items()}
        return {"way": self.way, "strength": self.strength, "figures": figures}

    def join(self, other: "Steered") -> None:
        """Append the prompts of another part."""
        self.figures = {
            name: Figure(figure.values + other.figures[name].values) for name, figure in self.figures.items()
        }


def choose_keyword(texts: Sequence[str], prompts: Sequence[str | None]) -> str | None:
    """A word that could be asked for: of some texts but not of most, and of no prompt.

    Of the words with four letters or more that stand in no prompt, the one whose share of texts is nearest to a
    quarter; the first in the alphabet of equals. None if there is no such word.

    Args:
        texts: unguided texts.
        prompts: their prompts.
    """
    asked = {word for prompt in prompts for word in _words(prompt or "")}
    counts = Counter(word for text in texts for word in set(_words(text)))
    open_ = [word for word in counts if len(word) >= LEAST_LETTERS and word not in asked and word.isalpha()]
    return min(open_, key=lambda word: (abs(counts[word] / len(texts) - 0.25), word), default=None)


def _words(text: str) -> list[str]:
    return "".join(char.lower() if char.isalnum() else " " for char in text).split()


def steer(system: System, keyword: str, settings: Settings, judgement: Judgement) -> list[Steered]:
    """Guide a system toward a keyword at several strengths.

    Args:
        system: the model on its prompts.
        keyword: one word.
        settings: the strengths.
        judgement: of fluency and truth.

    Returns:
        Strength 0 first, then each strength of guided logits and, for a flow, of the guided plan.
    """
    phrase = system.lm.tokenizer.encode(keyword)
    goal = keyword_goal(phrase, None if system.grows else system.mask)
    clean = judgement.of(system, system.tokens)
    found = [_outcome(system, "logits", 0.0, system.tokens, keyword, clean, judgement)]
    # Behind what is written there are no positions yet: the phrase gets room to end in, where nothing is known.
    room = len(phrase) - 1 if system.grows else 0
    ways: list[tuple[str, Callable[[float], Tensor]]] = [("logits", lambda s: _by_logits(system, goal, s, room))]
    if isinstance(system, FlowSystem):
        ways.append(("plan", lambda s: _by_plan(system, goal, s)))
    for way, written in ways:
        for strength in settings.strengths:
            found.append(_outcome(system, way, strength, written(strength), keyword, clean, judgement))
    return found


def steer_tuned(system: FlowSystem, tuned: MantaLM, scale: float, keyword: str, judgement: Judgement) -> Steered:
    """What a tuned model writes from the same noise; see `diagnosis.tuning.tune`.

    Args:
        system: the model as it was, on its prompts.
        tuned: the tuned copy.
        scale: of the reward, told as the strength.
        keyword: the goal.
        judgement: of fluency and truth.
    """
    tokens = trace_flow(tuned, system.beginning, system.num_steps).tokens
    clean = judgement.of(system, system.tokens)
    return _outcome(system, "plan, tuned", scale, tokens, keyword, clean, judgement)


def _by_logits(system: System, goal: TokenGoal, strength: float, room: int) -> Tensor:
    def guide(logits: Tensor, settled: Tensor) -> Tensor:
        width = settled.shape[1]
        logits, settled = F.pad(logits, (0, 0, 0, room)), F.pad(settled, (0, room), value=MASK)
        return guide_logits(logits, settled, settled != MASK, goal, strength)[:, :width]

    return system.write(system.beginning, guide=guide).tokens


def _by_plan(system: FlowSystem, goal: TokenGoal, strength: float) -> Tensor:
    """The field bent toward plans whose words, as the policy tells them, hold the goal."""
    model = system.lm.model

    def around(field: Field, page: Page, condition: Condition) -> Field:
        def met(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Tensor:
            seen = replace(condition, settled=page.settled)
            logits = model.logits(model.act_beside(state, t, cond=seen, self_cond=self_cond).aux)
            return goal(logits.softmax(-1))

        return goal_guided(field, met, strength)

    return system.write(system.beginning, around=around).tokens


def _outcome(
    system: System,
    way: str,
    strength: float,
    tokens: Tensor,
    keyword: str,
    clean: dict[str, Float[Tensor, "b"]],
    judgement: Judgement,
) -> Steered:
    figures = {
        "met": presence(tokens, system.texts(tokens), keyword),
        "edited": flip_rate(system.tokens, tokens, system.mask),
    }
    figures |= {f"{name}_lost": clean[name] - value for name, value in judgement.of(system, tokens).items()}
    return Steered(way, strength, {name: Figure.of(value) for name, value in figures.items()})
