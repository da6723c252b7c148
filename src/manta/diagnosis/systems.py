"""The families as one kind of system: a text in the making that can be disturbed, continued, put back and steered.

Time is the share of the way: of the network calls (Manta-LM: flow time), of a masked model's own calls, of an
autoregressive text's tokens. Everything is drawn for each request alone on a canvas of fixed size, so that no figure
depends on the batch a prompt is measured in.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.control import ChainStep, corrupt
from manta.errors import ModelError
from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import padded_draws
from manta.families.events import GenerateOptions, Request
from manta.families.manta_lm import PATH, MantaLM
from manta.families.masked import MaskedLM
from manta.families.observer import Beginning
from manta.families.page import Page
from manta.families.tracing import (
    Around,
    FlowTrace,
    Guide,
    Trace,
    trace_autoregressive,
    trace_flow,
    trace_masked,
)
from manta.masked import Canvas
from manta.nets.integers import count_parameters
from manta.operators import OperatorContext, line
from manta.runtime import MAX_SEED, make_generator
from manta.text import MASK, NULL

Commit = Callable[[Tensor], Tensor]
"""`commit(logits) -> weights`, one of `manta.control.chain`."""


class System(ABC):
    """A model on a batch of requests.

    Args:
        lm: the model.
        requests: the prompts with their seeds.
        num_steps: network calls of a text.
        options: the style, and a masked model's decoder.
        words: of a flow, the words that the policy sees at each time: `writing`, those that had settled by then, or
            `masked`, none.
    """

    family: str
    trace: Trace

    def __init__(
        self, lm: Any, requests: Sequence[Request], num_steps: int, options: GenerateOptions, words: str = "writing"
    ) -> None:
        self.lm, self.requests, self.num_steps, self.options = lm, list(requests), num_steps, options
        self.words = words
        self.vocab_size: int = lm.model.embedding.num_embeddings
        self.beginning: Beginning = lm.begin(self.requests, options)
        self.trace = self.write(self.beginning)

    @abstractmethod
    def write(self, beginning: Beginning, *, guide: Guide | None = None) -> Trace:
        """Write from a beginning, guided or not."""

    @abstractmethod
    def lengths(self) -> list[int]:
        """Steps of each request's own way."""

    @abstractmethod
    def standing(self, t: float) -> Int64[Tensor, "b n"]:
        """The words that stood at a time, the mask token elsewhere."""

    @abstractmethod
    def continued(self, t: float, standing: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """The text that comes of it when other words stand at that time, all else being as it was."""

    @abstractmethod
    def rewritten(self, tokens: Int64[Tensor, "b n"], t: float) -> Int64[Tensor, "b n"]:
        """The text that comes of a text put back to a time, and written on from there."""

    def facts(self) -> dict[str, Any]:
        """What a reader should know of the model."""
        facts: dict[str, Any] = {"parameters": count_parameters(self.lm.model)}
        facts["calls"] = round(sum(self.lengths()) / len(self.requests), 1)
        return facts

    @property
    def mask(self) -> Bool[Tensor, "b n"]:
        """True at the positions of each text."""
        return self.trace.mask

    @property
    def tokens(self) -> Int64[Tensor, "b n"]:
        """The texts."""
        return self.trace.tokens

    @property
    def seeds(self) -> list[int]:
        """The seed of each request."""
        return [request.seed for request in self.requests]

    def texts(self, tokens: Int64[Tensor, "b n"]) -> list[str]:
        """Tokens as texts; they end where an autoregressive text ends."""
        texts, end = [], getattr(self.lm.model, "end", None)
        for row in tokens.tolist():
            row = row[: row.index(end)] if end in row else row
            texts.append(self.lm.tokenizer.decode([token for token in row if token not in (NULL, MASK)]).strip())
        return texts

    def draws(self, purpose: int, shape: tuple[int, ...], width: int, kind: str = "normal") -> Float[Tensor, "b *rest"]:
        """Random numbers of each request, drawn for a canvas of fixed size and cut, or padded, to a width.

        Args:
            purpose: tells streams apart.
            shape: of the largest canvas; its first axis is cut.
            width: of the first axis.
            kind: normal or uniform.
        """
        draw = torch.randn if kind == "normal" else torch.rand
        rows = torch.stack([draw(shape, generator=self.generator(seed, purpose)) for seed in self.seeds])
        return padded_draws(rows, width).to(self.tokens.device)

    @staticmethod
    def generator(seed: int, purpose: int) -> torch.Generator:
        """The generator of a request's draws of one purpose."""
        return make_generator((seed * 7919 + purpose) % MAX_SEED)

    def corrupted(
        self, tokens: Int64[Tensor, "b n"], share: float, mask: Bool[Tensor, "b n"], purpose: int
    ) -> Int64[Tensor, "b n"]:
        """Exchange a share of each row's masked words for others of the vocabulary; one at least, if there is any.

        Replacements are tokens that were learned, not single bytes, where the vocabulary has any.
        """
        bytes_end = 4 + 256
        first = bytes_end if self.lm.tokenizer.symbols is None and self.vocab_size > bytes_end + 16 else 4
        choices = torch.arange(first, self.vocab_size)
        rows = []
        for row, (words, where, seed) in enumerate(zip(tokens.cpu(), mask.cpu(), self.seeds, strict=True)):
            width, count = int(self.mask[row].sum()), int(where.sum())
            wanted = max(share, 1 / count) if count else 0.0
            changed = corrupt(words[None, :width], wanted, choices, self.generator(seed, purpose), where[None, :width])
            rows.append(torch.cat([changed[0], words[width:]]))
        return torch.stack(rows).to(tokens.device)

    def hidden(self, t: float) -> Bool[Tensor, "b n"]:
        """Positions whose word a text put back to time t loses: each with probability 1 - t."""
        uniform = self.draws(11, (self.lm.model.config.max_text + 64,), self.tokens.shape[1], "uniform")
        return (uniform >= t) & self.mask


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


class MaskedSystem(System):
    """A masked model with its own decoder."""

    family = "masked"
    lm: MaskedLM

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "decoder": self.lm.decoder_for(self.options).kind}

    def write(
        self,
        beginning: Beginning,
        *,
        guide: Guide | None = None,
        after: Callable[[int, Canvas], None] | None = None,
        num_steps: int | None = None,
    ) -> Trace:
        generators = tuple(self.generator(seed, 13) for seed in self.seeds)
        beginning = replace(beginning, generators=generators)
        return trace_masked(self.lm, beginning, num_steps or self.num_steps, self.options, after=after, guide=guide)

    def lengths(self) -> list[int]:
        open_ = (self.trace.settled == MASK).any(2).sum(0)
        return [max(1, int(count)) for count in open_]

    def _calls_at(self, t: float) -> list[int]:
        return [min(round(t * length), length - 1) for length in self.lengths()]

    def standing(self, t: float) -> Int64[Tensor, "b n"]:
        return torch.stack([self.trace.settled[k, row] for row, k in enumerate(self._calls_at(t))])

    def continued(self, t: float, standing: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        at = torch.tensor(self._calls_at(t), device=standing.device)[:, None]

        def exchange(k: int, canvas: Canvas) -> None:
            canvas.tokens = torch.where((at == k) & (standing != MASK), standing, canvas.tokens)

        return self.write(self.beginning, after=exchange).tokens

    def rewritten(self, tokens: Int64[Tensor, "b n"], t: float) -> Int64[Tensor, "b n"]:
        """Mask words as the noise does, and decode them anew."""
        beginning = replace(self.beginning, tokens=tokens.masked_fill(self.hidden(t), MASK))
        return self.write(beginning, num_steps=max(1, round(self.num_steps * (1 - t)))).tokens

    def chain(self, commit: Commit) -> tuple[list[ChainStep], Tensor]:
        """Steps of the decoder as they were made, and the weights before them."""
        model = self.lm.model
        projected = model.trunk.project(self.beginning.memory.states, self.beginning.memory.mask)
        context = OperatorContext(line(self.mask.shape[1], self.mask.device), self.mask)
        unset = F.one_hot(torch.tensor(MASK), self.vocab_size).to(self.mask.device)

        def policy(state: Tensor) -> Tensor:
            hidden = model.trunk(model.embed_weights(state), context, memory=projected)
            return model.head(hidden).masked_fill(unset.bool(), -torch.inf)

        steps = []
        for before, after in self.trace.settled.unfold(0, 2, 1).movedim(-1, 1):
            chosen = ((before == MASK) & (after != MASK))[..., None]
            back = ((before != MASK) & (after == MASK))[..., None]

            def settle(logits: Tensor, state: Tensor, chosen: Tensor = chosen, back: Tensor = back) -> Tensor:
                return torch.where(back, unset.float(), torch.where(chosen, commit(logits), state))

            steps.append(ChainStep(policy, settle))
        return steps, F.one_hot(self.trace.settled[0], self.vocab_size).float()


class AutoregressiveSystem(System):
    """An autoregressive model; texts lie on the largest canvas, the end token behind each."""

    family = "ar"
    lm: AutoregressiveLM

    def write(self, beginning: Beginning, *, guide: Guide | None = None) -> Trace:
        trace = trace_autoregressive(self.lm, beginning, guide=guide)
        rest = (0, beginning.tokens.shape[1] - trace.mask.shape[1])
        settled = F.pad(trace.settled, rest, value=self.lm.model.end)
        return replace(trace, mask=F.pad(trace.mask, rest, value=False), settled=settled)

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
        tokens = self.tokens[:, : max(self.lengths())]
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
    system.family: system for system in (FlowSystem, MaskedSystem, AutoregressiveSystem)
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
            "train one with manta train --family manta, masked or ar"
        )
    return system(lm, requests, num_steps, options, words)
