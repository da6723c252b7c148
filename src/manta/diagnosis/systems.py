"""A Manta-LM and a left-to-right model as systems, and which system a family is."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from manta.control import ChainStep
from manta.diagnosis.canvas_systems import AlignedSystem, BlockSystem, MaskedSystem
from manta.diagnosis.system import Commit, System
from manta.errors import ModelError
from manta.families.autoregressive import AutoregressiveLM
from manta.families.events import GenerateOptions, Request
from manta.families.manta_lm import PATH, MantaLM
from manta.families.observer import Beginning
from manta.families.page import Page
from manta.families.tracing import Around, FlowTrace, Guide, Trace, trace_autoregressive, trace_flow
from manta.operators import OperatorContext, line
from manta.text import MASK, NULL


class FlowSystem(System):
    """A Manta-LM: the plan as a state, the policy as a field over it."""

    family = "manta"
    lm: MantaLM
    trace: FlowTrace

    def __init__(
        self, lm: MantaLM, requests: Sequence[Request], num_steps: int, options: GenerateOptions, words: str = "writing"
    ) -> None:
        super().__init__(lm, requests, num_steps, options, words)
        self.rate = lm.model.space.rate
        self.condition = lm.model.condition(self.beginning.memory, self.mask, code=self.beginning.code)
        self.cells = self.mask[:, :: self.rate]
        """True at the latents of each canvas, "b m"."""
        assert self.trace.grid is not None
        self.grid = self.trace.grid
        self.dimensions = self.cells.sum(1) * lm.model.space.channels
        """Dimensions of each request's state, "b"."""

    def facts(self) -> dict[str, Any]:
        space = self.lm.model.config.space
        facts = {**super().facts(), "space": f"{space.kind}s"}
        if space.kind == "latent":
            facts["noise_floor"] = space.noise_floor
        facts["state"] = f"{self.rate} tokens a latent of {space.channels} channels"
        facts["own_split"] = {str(size): split.flow for size, split in sorted(self.lm.splits.items())}
        return facts

    def write(
        self,
        beginning: Beginning,
        *,
        guide: Guide | None = None,
        around: Around | None = None,
        before: Callable[[int, Page, Tensor], Tensor] | None = None,
        num_steps: int | None = None,
    ) -> FlowTrace:
        return trace_flow(self.lm, beginning, num_steps or self.num_steps, guide=guide, around=around, before=before)

    def lengths(self) -> list[int]:
        return [self.num_steps] * len(self.requests)

    @cached_property
    def states(self) -> Float[Tensor, "points b m c"]:
        """The plan's way, 0 off the canvas."""
        assert self.trace.states is not None
        return self.trace.states * self.cells[..., None]

    def self_cond(self, k: int) -> Tensor | None:
        """The estimate that was fed back into step k."""
        return self.trace.cleans[k - 1] if k else None

    def field_at(self, k: int) -> Callable[..., Tensor]:
        """The policy as a field over latents, with the words that were held in step k."""
        held = self.trace.settled[k]
        if self.words == "masked":
            held = torch.where(self.mask, MASK, held)
        condition = replace(self.condition, settled=held)

        def field(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Tensor:
            estimate = self.lm.model.act_beside(state, t, cond=condition, self_cond=self_cond)
            return estimate.clean * self.cells[..., None]

        return field

    def field(self, state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None = None) -> Tensor:
        """The policy with the words that were held at the time it is asked at."""
        k = int((self.grid[:-1] <= float(t.min()) + 1e-6).sum()) - 1
        return self.field_at(max(0, k))(state, t, cond=cond, self_cond=self_cond)

    def times(self, t: float) -> Float[Tensor, "b m"]:
        """The time of each latent; 1 off the canvas, where nothing moves."""
        return torch.full(self.cells.shape, t, device=self.cells.device).masked_fill(~self.cells, 1.0)

    def readout(self, state: Float[Tensor, "b m c"]) -> Float[Tensor, "b n v"]:
        """Logits of all words from a finished plan alone."""
        nothing = replace(self.condition, settled=torch.where(self.mask, MASK, NULL))
        model = self.lm.model
        logits = model.logits(model.act_beside(state, torch.ones_like(state[:, 0, 0]), cond=nothing).aux)
        banned = torch.zeros(self.vocab_size, dtype=torch.bool, device=logits.device)
        banned[MASK] = True
        return logits.masked_fill(banned, -torch.inf)

    def step_at(self, t: float) -> int:
        """The step that starts nearest to a time."""
        return int((self.grid[:-1] - t).abs().argmin())

    def standing(self, t: float) -> Int64[Tensor, "b n"]:
        return self.trace.settled[self.step_at(t)]

    def continued(self, t: float, standing: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        at = self.step_at(t)

        def exchange(k: int, page: Page, state: Tensor) -> Tensor:
            if k == at:
                page.tokens = torch.where(standing != MASK, standing, page.tokens)
            return state

        return self.write(self.beginning, before=exchange).tokens

    def rewritten(self, tokens: Int64[Tensor, "b n"], t: float) -> Int64[Tensor, "b n"]:
        """Encode, re-noise to t, hide words, and integrate from there."""
        with torch.no_grad():
            clean = self.lm.model.encode(tokens, self.mask, self.beginning.memory)
        canvas = (self.lm.model.max_cells, self.lm.model.space.channels)
        noise = self.draws(12, canvas, clean.shape[1])
        state = PATH.sample(noise, clean, torch.full((len(clean),), t, device=clean.device))
        given = tokens.masked_fill(self.hidden(t), MASK)
        beginning = replace(self.beginning, tokens=given, state=state, t=t)
        return self.write(beginning, num_steps=max(1, round(self.num_steps * (1 - t)))).tokens


class AutoregressiveSystem(System):
    """An autoregressive model; texts lie on the largest canvas, the end token behind each."""

    family = "ar"
    lm: AutoregressiveLM
    grows = True

    def write(self, beginning: Beginning, *, guide: Guide | None = None) -> Trace:
        trace = trace_autoregressive(self.lm, beginning, guide=guide)
        rest = (0, beginning.tokens.shape[1] - trace.mask.shape[1])
        settled = F.pad(trace.settled, rest, value=self.lm.model.end)
        return replace(trace, mask=F.pad(trace.mask, rest, value=False), settled=settled)

    @property
    def width(self) -> int:
        return max(self.lengths())

    def lengths(self) -> list[int]:
        return self.mask.sum(1).tolist()

    def standing(self, t: float) -> Int64[Tensor, "b n"]:
        return self._prefix(self.tokens, t)

    def continued(self, t: float, standing: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        return self.write(replace(self.beginning, tokens=standing)).tokens

    def rewritten(self, tokens: Int64[Tensor, "b n"], t: float) -> Int64[Tensor, "b n"]:
        """Keep the first share t of the text and write the rest anew: no other way back is open to such a model."""
        return self.continued(t, self._prefix(tokens, t))

    def _prefix(self, tokens: Tensor, t: float) -> Tensor:
        kept = torch.tensor([round(t * length) for length in self.lengths()], device=tokens.device)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return tokens.masked_fill(place >= kept[:, None], MASK)

    def chain(self, commit: Commit) -> tuple[list[ChainStep], Tensor]:
        """One step a token, and the weights before them; a text that has ended stays as it is."""
        model, memory = self.lm.model, self.beginning.memory
        tokens = self.tokens[:, : self.width]
        projected = model.trunk.project(memory.states, memory.mask)
        start = F.one_hot(torch.full_like(tokens[:, :1], model.begin), self.vocab_size).float()
        width, ended = tokens.shape[1], F.one_hot(torch.tensor(model.end), self.vocab_size).float().to(tokens.device)
        steps = []
        for place in range(width):
            context = OperatorContext(line(place + 1, tokens.device))
            written = self.mask[:, place, None]

            def policy(state: Tensor, place: int = place, context: OperatorContext = context) -> Tensor:
                weights = model.embed_weights(torch.cat([start, state[:, :place]], 1))
                hidden = model.trunk(weights, context, memory=projected)[:, -1:]
                logits = model.head(hidden)
                return F.pad(logits, (0, 0, place, width - place - 1))

            def settle(logits: Tensor, state: Tensor, place: int = place, written: Tensor = written) -> Tensor:
                word = torch.where(written[:, None], commit(logits[:, place : place + 1]), ended)
                return torch.cat([state[:, :place], word, state[:, place + 1 :]], 1)

            steps.append(ChainStep(policy, settle))
        return steps, F.one_hot(torch.full_like(tokens, MASK), self.vocab_size).float()


SYSTEMS: dict[str, type[System]] = {
    system.family: system for system in (FlowSystem, MaskedSystem, BlockSystem, AlignedSystem, AutoregressiveSystem)
}
"""From a family to the system that its models are diagnosed as."""


def system_of(
    lm: Any, requests: Sequence[Request], num_steps: int, options: GenerateOptions, words: str = "writing"
) -> System:
    """The system of a model on some requests.

    Raises:
        ModelError: for a model that gives no gradients, or not its states.
    """
    family = getattr(lm, "family", "foreign")
    system = SYSTEMS.get(family)
    if system is None:
        raise ModelError(
            f"a diagnosis follows gradients through a model's own steps, which is not built for the family {family}; "
            "train one with manta train --family manta, masked, block, aligned or ar"
        )
    return system(lm, requests, num_steps, options, words)
