"""A text as it is written, step by step, with what generation forgets: for diagnostics and guided writing.

A trace is written by the family's own loop, the likeliest word everywhere; an observer keeps the words that stand after
each network call and the logits they were chosen from. It may begin anywhere (a text partly given, a plan half-way),
and hooks may change what it sees on the way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.aligned import Slots
from manta.families.aligned import AlignedLM
from manta.families.autoregressive import AutoregressiveLM
from manta.families.block import BlockCausalLM
from manta.families.events import GenerateOptions
from manta.families.manta_lm import MantaLM
from manta.families.masked import MaskedLM
from manta.families.observer import Beginning, Observer
from manta.families.page import Page
from manta.flow import SolverState
from manta.flow.solvers import Field
from manta.masked import Canvas
from manta.nets.vector_field import Condition
from manta.text import MASK

Guide = Callable[[Tensor, Tensor], Tensor]
"""`guide(logits "b n v", settled "b n") -> logits`: changes what the words are chosen from."""
Before = Callable[[int, Page, Tensor], Tensor]
"""`before(k, page, state) -> state`: may change the page in place, and the state, before step k of a flow."""
After = Callable[[int, Canvas | Slots], None]
"""`after(k, canvas)`: may change the canvas of a masked or aligned model in place after call k, counted from 1."""
Around = Callable[[Field, Page, Condition], Field]
"""`around(field, page, condition) -> field`: wraps the policy, for guidance of the plan."""


@dataclass(frozen=True)
class Trace:
    """A text as it was written."""

    beginning: Beginning
    """Where it began."""
    mask: Bool[Tensor, "b n"]
    """True at the positions of each text; an end token is one of them."""
    settled: Int64[Tensor, "points b n"]
    """Words that stood before each network call and after the last, the mask token elsewhere."""
    logits: tuple[Float[Tensor, "b n v"], ...] = ()
    """What each call said of the words, −∞ of all at a place of a block to come; none of an autoregressive model,
    which speaks of the next word alone."""

    @property
    def tokens(self) -> Int64[Tensor, "b n"]:
        """The text."""
        return self.settled[-1]

    def beliefs(self, vocab_size: int) -> Iterator[Float[Tensor, "b n v"]]:
        """The distribution of every word before the first call and after each.

            one-hot where a word is settled, softmax(logits) where the call spoke of one, one-hot at "unset" elsewhere

        Before the first call nothing is known of a word to be written. "Unset" is the mask token.
        """
        yield F.one_hot(self.settled[0], vocab_size).float()
        for k, settled in enumerate(self.settled[1:]):
            certain = F.one_hot(settled, vocab_size).float()
            yield torch.where((settled != MASK)[..., None], certain, self._spoken(k)) if self.logits else certain

    def drafts(self) -> Int64[Tensor, "points b n"]:
        """The likeliest word after each call, settled or not; the mask token where nothing was said."""
        points = [self.settled[0]]
        for k, settled in enumerate(self.settled[1:]):
            points.append(torch.where(settled != MASK, settled, self._spoken(k).argmax(-1)) if self.logits else settled)
        return torch.stack(points)

    def _spoken(self, k: int) -> Tensor:
        logits = self.logits[k].float().clone()
        silent = logits.isneginf().all(-1)
        logits[..., MASK] = torch.where(silent, 0.0, -torch.inf)
        return logits.softmax(-1)


@dataclass(frozen=True)
class FlowTrace(Trace):
    """The same with the plan's way."""

    grid: Float[Tensor, "points"] | None = None
    """Times of the states."""
    states: Float[Tensor, "points b m c"] | None = None
    """States at those times."""
    cleans: tuple[Float[Tensor, "b m c"], ...] = ()
    """The estimate of each step."""


class Guided(Observer):
    """Lets a hook change what words are chosen from.

    Args:
        guide: see its type; None changes nothing.
    """

    def __init__(self, guide: Guide | None = None) -> None:
        self.guide = guide

    def logits(self, logits: Tensor, settled: Tensor) -> Tensor:
        """Guided, if asked for."""
        return logits if self.guide is None else self.guide(logits, settled)


class Recorder(Guided):
    """Keeps all that a trace tells, and lets hooks change what is seen.

    Args:
        guide, before, around, after: hooks, see their types.
    """

    def __init__(
        self,
        *,
        guide: Guide | None = None,
        before: Before | None = None,
        around: Around | None = None,
        after: After | None = None,
    ) -> None:
        super().__init__(guide)
        self.change, self.around, self.after = before, around, after
        self.standing: list[Tensor] = []
        self.spoken: list[Tensor] = []
        self.reached: list[SolverState] = []
        self.states: list[Tensor] = []

    def field(self, field: Field, page: Page, cond: Condition) -> Field:
        """Wrapped, if asked for."""
        return field if self.around is None else self.around(field, page, cond)

    def before(self, k: int, page: Page, state: Tensor) -> Tensor:
        """Changed, if asked for, and kept."""
        state = state if self.change is None else self.change(k, page, state)
        self.states.append(state)
        self.standing.append(page.settled)
        return state

    def logits(self, logits: Tensor, settled: Tensor) -> Tensor:
        """Guided, if asked for, and kept."""
        self.spoken.append(super().logits(logits, settled))
        return self.spoken[-1]

    def moved(self, reached: SolverState) -> None:
        """Kept."""
        self.reached.append(reached)

    def settled(self, page: Page | Canvas | Slots) -> None:
        """The words that stand after the call are kept, and may be changed before the next."""
        if isinstance(page, Page):
            return
        self.standing.append(page.tokens if isinstance(page, Canvas) else page.standing(MASK))
        if self.after is not None:
            self.after(page.calls, page)


def trace_flow(
    lm: MantaLM,
    beginning: Beginning,
    num_steps: int,
    *,
    before: Before | None = None,
    guide: Guide | None = None,
    around: Around | None = None,
) -> FlowTrace:
    """Write with a Manta-LM whose plan flows in every call, see `MantaLM.follow`.

    Args:
        lm: the model.
        beginning: from `lm.begin`, or a text and a state half-way.
        num_steps: calls from the beginning's time to 1.
        before, guide, around: hooks, see their types.
    """
    recorder = Recorder(guide=guide, before=before, around=around)
    page = lm.follow(beginning, num_steps, recorder)
    return FlowTrace(
        beginning=beginning,
        mask=beginning.mask,
        settled=torch.stack([*recorder.standing, page.settled]),
        logits=tuple(recorder.spoken),
        grid=torch.tensor([beginning.t, *(reached.t for reached in recorder.reached)], dtype=torch.float64),
        states=torch.stack([*recorder.states, recorder.reached[-1].state]),
        cleans=tuple(reached.clean for reached in recorder.reached),
    )


def trace_masked(
    lm: MaskedLM,
    beginning: Beginning,
    num_steps: int,
    options: GenerateOptions,
    *,
    after: After | None = None,
    guide: Guide | None = None,
) -> Trace:
    """Write with a masked model and its decoder, see `MaskedLM.follow`.

    Args:
        lm: the model.
        beginning: from `lm.begin`, or a text partly given.
        num_steps: most calls.
        options: choose the decoder and its settings.
        after, guide: hooks, see their types.
    """
    recorder = Recorder(guide=guide, after=after)
    lm.follow(beginning, num_steps, options, recorder)
    settled = torch.stack([beginning.tokens, *recorder.standing])
    return Trace(beginning, beginning.mask, settled, tuple(recorder.spoken))


def trace_aligned(
    lm: AlignedLM, beginning: Beginning, num_steps: int, *, after: After | None = None, guide: Guide | None = None
) -> Trace:
    """Write with an aligned model, see `AlignedLM.follow`; what stands is the label of every slot, blanks among them.

    Args:
        lm: the model.
        beginning: from `lm.begin`, or a canvas partly given.
        num_steps: calls.
        after, guide: hooks, see their types.
    """
    recorder = Recorder(guide=guide, after=after)
    lm.follow(beginning, num_steps, recorder)
    settled = torch.stack([beginning.tokens, *recorder.standing])
    return Trace(beginning, beginning.mask, settled, tuple(recorder.spoken))


class RowRecorder(Guided):
    """Keeps what a trace tells of each row, of the calls that it took part in: a text is traced alike in any batch.

    Args:
        rows: texts.
        guide: a hook, see its type.
    """

    def __init__(self, rows: int, guide: Guide | None = None) -> None:
        super().__init__(guide)
        self.standing: list[list[Tensor]] = [[] for _ in range(rows)]
        self.spoken: list[list[Tensor]] = [[] for _ in range(rows)]
        self._said = torch.zeros(0)

    def logits(self, logits: Tensor, settled: Tensor) -> Tensor:
        """Guided, if asked for."""
        self._said = super().logits(logits, settled)
        return self._said

    def settled(self, page: Canvas) -> None:
        """What stands, and what was said of it, is kept of the rows that the call was for."""
        for row, (standing, spoken) in enumerate(zip(self.standing, self.spoken, strict=True)):
            if page.calls_of[row] > len(standing):
                standing.append(page.tokens[row])
                spoken.append(self._said[row])


def trace_block(
    lm: BlockCausalLM, beginning: Beginning, options: GenerateOptions, *, guide: Guide | None = None
) -> Trace:
    """Write with a block-causal model, block after block, see `BlockCausalLM.follow`.

    A call speaks of the block that is written; blocks to come are unset, but for given words. Behind an end that stands
    all is ended. Each row has the calls of its own, and stays as it is after them.

    Args:
        lm: the model.
        beginning: from `lm.begin`, or a text partly given.
        options: choose the decoder and its settings.
        guide: a hook; it sees the text so far and the block to be written.
    """
    recorder = RowRecorder(len(beginning.tokens), guide)
    text, end = lm.follow(beginning, options, recorder), lm.model.end
    mask = (text == end).cumsum(1) <= (text == end).long()
    calls = max(map(len, recorder.standing))
    points = beginning.tokens.repeat(calls + 1, 1, 1)
    said = points.new_full((calls, *text.shape, lm.model.embedding.num_embeddings), -torch.inf, dtype=torch.float32)
    for row, (standing, spoken) in enumerate(zip(recorder.standing, recorder.spoken, strict=True)):
        for k, (words, logits) in enumerate(zip(standing, spoken, strict=True)):
            points[k + 1, row, : len(words)] = words
            said[k, row, : len(words)] = logits
        points[max(1, len(standing)) :, row] = text[row]
    ended = (points == end).cummax(2).values
    return Trace(beginning, mask, points.masked_fill(ended, end), tuple(said))


def trace_autoregressive(lm: AutoregressiveLM, beginning: Beginning, *, guide: Guide | None = None) -> Trace:
    """Write from left to right, one network call a token, keeping the words that are given.

    Args:
        lm: the model.
        beginning: from `lm.begin`, or with a prefix given.
        guide: a hook; it sees the text so far and one position to be written.
    """
    tokens, end = lm.follow(beginning, Guided(guide)), lm.model.end
    mask = (tokens == end).cumsum(1) <= (tokens == end).long()
    place = torch.arange(tokens.shape[1], device=tokens.device)
    points = [torch.where(place < k, tokens, MASK) for k in range(tokens.shape[1] + 1)]
    return Trace(beginning, mask, torch.stack(points))
