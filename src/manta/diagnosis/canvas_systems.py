"""Masked, aligned and block-causal models as systems: each call settles some places of a canvas."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

from manta.aligned import Slots, collapse
from manta.control import ChainStep
from manta.diagnosis.system import Commit, System
from manta.families.aligned import AlignedLM
from manta.families.block import BlockCausalLM
from manta.families.masked import MaskedLM
from manta.families.observer import Beginning
from manta.families.tracing import After, Guide, Trace, trace_aligned, trace_block, trace_masked
from manta.masked import Canvas
from manta.operators import OperatorContext, line
from manta.text import MASK, NULL


class CanvasSystem(System):
    """A model that settles the places of a canvas, some in each call."""

    @abstractmethod
    def traced(self, beginning: Beginning, num_steps: int, *, guide: Guide | None, after: After | None) -> Trace:
        """Write from a beginning in so many calls."""

    def write(
        self,
        beginning: Beginning,
        *,
        guide: Guide | None = None,
        after: After | None = None,
        num_steps: int | None = None,
    ) -> Trace:
        """Write from a beginning, guided, changed after calls, or neither, in `num_steps` calls or as many as ever."""
        return self.traced(beginning, num_steps or self.num_steps, guide=guide, after=after)

    @abstractmethod
    def policy(self) -> Callable[[Tensor], Tensor]:
        """Logits of every place from the weights of all words there, each "b n v"."""

    def lengths(self) -> list[int]:
        open_ = (self.trace.settled == MASK).any(2).sum(0)
        return [max(1, int(count)) for count in open_]

    def _calls_at(self, t: float) -> list[int]:
        return [min(round(t * length), length - 1) for length in self.lengths()]

    def standing(self, t: float) -> Int64[Tensor, "b n"]:
        return torch.stack([self.trace.settled[k, row] for row, k in enumerate(self._calls_at(t))])

    def continued(self, t: float, standing: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        at = torch.tensor(self._calls_at(t), device=standing.device)[:, None]

        def exchange(k: int, canvas: Canvas | Slots) -> None:
            exchanged = (at == k) & (standing != MASK)
            if isinstance(canvas, Canvas):
                canvas.tokens = torch.where(exchanged, standing, canvas.tokens)
            else:
                canvas.labels = torch.where(exchanged, standing, canvas.labels)

        return self.write(self.beginning, after=exchange).tokens

    def rewritten(self, tokens: Int64[Tensor, "b n"], t: float) -> Int64[Tensor, "b n"]:
        """Mask words as the noise does, and decode them anew."""
        beginning = replace(self.beginning, tokens=tokens.masked_fill(self.hidden(t), MASK))
        return self.write(beginning, num_steps=max(1, round(self.num_steps * (1 - t)))).tokens

    def undecided(self, settled: Int64[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Places that stand as they do whatever the logits there say."""
        return torch.zeros_like(settled, dtype=torch.bool)

    def chain(self, commit: Commit) -> tuple[list[ChainStep], Tensor]:
        """Steps of the decoder as they were made, and the weights before them."""
        policy, points = self.policy(), self.trace.settled[:, :, : self.width]
        steps = []
        for before, after in points.unfold(0, 2, 1).movedim(-1, 1):
            chosen = ((before == MASK) & (after != MASK))[..., None]
            fixed = (((before != MASK) & (after == MASK)) | self.undecided(after))[..., None]
            stands = F.one_hot(after, self.vocab_size).float()

            def settle(
                logits: Tensor, state: Tensor, chosen: Tensor = chosen, fixed: Tensor = fixed, stands: Tensor = stands
            ) -> Tensor:
                return torch.where(fixed, stands, torch.where(chosen, commit(logits), state))

            steps.append(ChainStep(policy, settle))
        return steps, F.one_hot(points[0], self.vocab_size).float()


class MaskedSystem(CanvasSystem):
    """A masked model with its own decoder."""

    family = "masked"
    lm: MaskedLM

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "decoder": self.lm.decoder_for(self.options).kind}

    def traced(self, beginning: Beginning, num_steps: int, *, guide: Guide | None, after: After | None) -> Trace:
        generators = tuple(self.generator(seed, 13) for seed in self.seeds)
        beginning = replace(beginning, generators=generators)
        return trace_masked(self.lm, beginning, num_steps, self.options, after=after, guide=guide)

    def policy(self) -> Callable[[Tensor], Tensor]:
        model = self.lm.model
        projected = model.trunk.project(self.beginning.memory.states, self.beginning.memory.mask)
        context = OperatorContext(line(self.mask.shape[1], self.mask.device), self.mask)
        unset = F.one_hot(torch.tensor(MASK), self.vocab_size).to(self.mask.device)

        def policy(state: Tensor) -> Tensor:
            hidden = model.trunk(model.embed_weights(state), context, memory=projected)
            return model.head(hidden).masked_fill(unset.bool(), -torch.inf)

        return policy


class BlockSystem(CanvasSystem):
    """A block-causal model with its own decoder, in as many calls as it takes; texts lie on the largest canvas."""

    family = "block"
    lm: BlockCausalLM
    grows = True

    def facts(self) -> dict[str, Any]:
        kind, length = self.lm.decoder_for(self.options).kind, self.lm.model.config.block_length
        return {**super().facts(), "decoder": kind, "block_length": length}

    @property
    def places(self) -> int:
        return self.beginning.tokens.shape[1]

    @property
    def width(self) -> int:
        length = self.lm.model.config.block_length
        return -(-int(self.mask.sum(1).max()) // length) * length

    def traced(self, beginning: Beginning, num_steps: int, *, guide: Guide | None, after: After | None) -> Trace:
        assert after is None, "a text with other words is written on from them"
        generators = tuple(self.generator(seed, 13) for seed in self.seeds)
        return trace_block(self.lm, replace(beginning, generators=generators), self.options, guide=guide)

    def continued(self, t: float, standing: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        return self.write(replace(self.beginning, tokens=standing)).tokens

    def policy(self) -> Callable[[Tensor], Tensor]:
        """The blocks before the one that is written stand, so that one row tells what a call behind them does."""
        model, n, device = self.lm.model, self.width, self.mask.device
        projected = model.trunk.project(self.beginning.memory.states, self.beginning.memory.mask)
        blocks = torch.arange(n, device=device) // model.config.block_length
        context = OperatorContext(line(n, device), blocks=blocks)
        unset, begin = F.one_hot(torch.tensor([MASK, model.begin]), self.vocab_size).to(device)

        def policy(state: Tensor) -> Tensor:
            before = torch.cat([begin.to(state).expand(len(state), 1, -1), state[:, :-1]], 1)
            hidden = model.trunk(model.read_weights(state, before), context, memory=projected)
            return model.head(hidden).masked_fill(unset.bool(), -torch.inf)

        return policy

    def undecided(self, settled: Int64[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Behind an end all is ended."""
        ended = (settled == self.lm.model.end).long()
        return ended.cumsum(1) > ended


class AlignedSystem(CanvasSystem):
    """An aligned model: its places are slots, each of which holds a word or the blank; counts choose no words."""

    family = "aligned"
    lm: AlignedLM

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "slots_per_word": self.lm.model.config.slots_per_word}

    @property
    def places(self) -> int:
        return self.lm.model.max_slots

    def traced(self, beginning: Beginning, num_steps: int, *, guide: Guide | None, after: After | None) -> Trace:
        return trace_aligned(self.lm, beginning, num_steps, after=after, guide=guide)

    def policy(self) -> Callable[[Tensor], Tensor]:
        model = self.lm.model
        projected = model.trunk.project(self.beginning.memory.states, self.beginning.memory.mask)
        return lambda state: model.told(model.embed_weights(state), self.mask, projected)

    def texts(self, tokens: Int64[Tensor, "b n"]) -> list[str]:
        """What the slots say."""
        rows = (labels[own].tolist() for labels, own in zip(tokens, self.mask, strict=True))
        return [self.lm.tokenizer.decode(collapse(row, NULL)[: self.lm.capacity]).strip() for row in rows]

    def corrupted(
        self, tokens: Int64[Tensor, "b n"], share: float, mask: Bool[Tensor, "b n"], purpose: int
    ) -> Int64[Tensor, "b n"]:
        """Exchange words alone, no blanks, and the slots of a run, which are one word, together."""
        says = mask & (tokens != NULL)
        goes_on = F.pad((tokens[:, 1:] == tokens[:, :-1]) & says[:, 1:] & says[:, :-1], (1, 0))
        changed = super().corrupted(tokens, share, says & ~goes_on, purpose)
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return changed.gather(1, place.masked_fill(goes_on, 0).cummax(1).values)
