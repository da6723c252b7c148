"""A text as it is written, step by step, with what generation forgets: for diagnostics and guided writing.

A trace takes the steps of `generate` for one batch of requests, the likeliest word everywhere, and keeps the words that
stand after each network call and the logits they were chosen from. It may begin anywhere (a text partly given, a plan
half-way), and hooks may change what it sees on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.data import MASK, NULL
from manta.errors import RequestError
from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import padded_width
from manta.families.canvas import prompt_tokens
from manta.families.events import GenerateOptions, Request
from manta.families.manta_lm import MantaLM, Page, _Batch, _Policy
from manta.families.masked import FullDenoiser, MaskedLM, write_canvas
from manta.families.prompted import Memory
from manta.flow import solve
from manta.masked import Canvas
from manta.nets.vector_field import Condition
from manta.runtime import make_generator

Guide = Callable[[Tensor, Tensor], Tensor]
"""`guide(logits "b n v", settled "b n") -> logits`: changes what the words are chosen from."""
Before = Callable[[int, Page, Tensor], Tensor]
"""`before(k, page, state) -> state`: may change the page in place, and the state, before step k of a flow."""
After = Callable[[int, Canvas], None]
"""`after(k, canvas)`: may change the canvas of a masked model in place after call k, counted from 1."""
Around = Callable[[Callable[..., Tensor], Page, Condition], Callable[..., Tensor]]
"""`around(field, page, condition) -> field`: wraps the policy, for guidance of the plan."""


@dataclass(frozen=True)
class Beginning:
    """Where a trace begins."""

    memory: Memory
    """The encoded prompts."""
    tokens: Int64[Tensor, "b n"]
    """Words that are given, the mask token where the model writes."""
    mask: Bool[Tensor, "b n"]
    """True on each row's canvas; all of it for an autoregressive model, whose texts end where they end."""
    generators: tuple[torch.Generator, ...] = ()
    """One a request, for decoders that draw."""
    state: Float[Tensor, "b m c"] | None = None
    """Of a flow: the state at `t`."""
    t: float = 0.0
    """Of a flow: the time it begins at."""


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
    """What each call said of the words; none of an autoregressive model, which speaks of the next word alone."""

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
        logits[..., MASK] = -torch.inf
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


@torch.no_grad()
def begin(
    lm: MantaLM | MaskedLM | AutoregressiveLM, requests: Sequence[Request], options: GenerateOptions
) -> Beginning:
    """Encode prompts, decide lengths and draw the initial noise as `generate` does.

    Args:
        lm: the model.
        requests: without a text to fill.
        options: the style counts.

    Raises:
        RequestError: for a prompt that does not fit, or a text to fill.
    """
    if any(request.infill is not None for request in requests):
        raise RequestError("a trace writes whole texts; leave infill out")
    prompts = [prompt_tokens(request, lm.tokenizer, lm.model.config.max_prompt) for request in requests]
    generators = [make_generator(request.seed) for request in requests]
    if isinstance(lm, MantaLM):
        batch = _Batch(prompts, [None] * len(prompts), generators, lm.device)
        memory = lm._memory(batch, options, encode=True)
        page = Page.blank(batch, lm._lengths(batch, memory, options), lm.model)
        state = lm._noise(batch, page, options)
        return Beginning(memory, page.tokens, page.mask, tuple(generators), state)
    if isinstance(lm, MaskedLM):
        memory = lm._memory(prompts, options, encode=True)
        tokens, mask = lm._canvas([None] * len(prompts), generators, memory, options)
        return Beginning(memory, tokens, mask, tuple(generators))
    batch = _Batch(prompts, [None] * len(prompts), generators, lm.model.embedding.weight.device)
    memory = lm.model.memory(batch.prompt, batch.prompt_lengths, torch.zeros_like(batch.prompt_lengths))
    tokens = torch.full((batch.size, lm.model.config.max_text), MASK, device=batch.prompt.device)
    return Beginning(memory, tokens, torch.ones_like(tokens, dtype=torch.bool))


@torch.no_grad()
def trace_flow(
    lm: MantaLM,
    beginning: Beginning,
    num_steps: int,
    *,
    before: Before | None = None,
    guide: Guide | None = None,
    around: Around | None = None,
) -> FlowTrace:
    """Write with a Manta-LM whose plan flows in every call, words settling from the first call on.

    It is what `generate` does with that many `flow_steps`, Euler's, and none to follow.

    Args:
        lm: the model.
        beginning: from `begin`, or a text and a state half-way.
        num_steps: calls from the beginning's time to 1.
        before, guide, around: hooks, see their types.
    """
    assert beginning.state is not None, "a flow begins at a state"
    page = Page(beginning.tokens.clone(), beginning.mask, lm.model.space.rate)
    condition = lm.model.condition(beginning.memory, beginning.mask)
    policy = _Policy(lm.model, page, condition)
    field = policy.field if around is None else around(policy.field, page, condition)
    grid = lm.density.grid(num_steps).double() * (1 - beginning.t) + beginning.t
    state, self_cond = beginning.state, None
    states, settled, logits, cleans = [], [], [], []
    for k, span in enumerate(grid.unfold(0, 2, 1)):
        state = state if before is None else before(k, page, state)
        states.append(state)
        settled.append(page.settled)
        reached = next(solve(field, state, span, self_cond=self_cond))
        state, self_cond = reached.state, reached.clean
        said = policy.logits
        said = said if guide is None else guide(said, page.settled)
        said[..., MASK] = -torch.inf
        chance, choice = said.softmax(-1).max(-1)
        page.settle(choice, chance, left=(num_steps - 1 - k) / num_steps)
        logits.append(said)
        cleans.append(self_cond)
    return FlowTrace(
        beginning=beginning,
        mask=beginning.mask,
        settled=torch.stack([*settled, page.settled]),
        logits=tuple(logits),
        grid=grid,
        states=torch.stack([*states, state]),
        cleans=tuple(cleans),
    )


@torch.no_grad()
def trace_masked(
    lm: MaskedLM,
    beginning: Beginning,
    num_steps: int,
    options: GenerateOptions,
    *,
    after: After | None = None,
    guide: Guide | None = None,
) -> Trace:
    """Write with a masked model and its decoder; see `trace_flow`.

    Args:
        lm: the model.
        beginning: from `begin`, or a text partly given.
        num_steps: most calls.
        options: choose the decoder and its settings.
        after, guide: hooks, see their types.
    """
    net = FullDenoiser(lm.model, beginning.mask, beginning.memory)
    logits: list[Tensor] = []

    def denoiser(tokens: Tensor, start: int, stop: int) -> Tensor:
        said = net(tokens, start, stop).float()
        logits.append(said if guide is None else guide(said, tokens))
        return logits[-1]

    settled = [beginning.tokens]
    settings: dict[str, Any] = {"mask_id": MASK, "end_id": NULL, "ends_last": True, "max_calls": num_steps}
    settings |= {"generators": beginning.generators, "width": padded_width(lm.model.max_cells)}
    plain = replace(options, cache="none", temperature=0.0)
    for canvas in write_canvas(denoiser, beginning.tokens, lm.decoder_for(options), plain, **settings):
        settled.append(canvas.tokens)
        if after is not None:
            after(canvas.calls, canvas)
    return Trace(beginning, beginning.mask, torch.stack(settled), tuple(logits))


@torch.no_grad()
def trace_autoregressive(lm: AutoregressiveLM, beginning: Beginning, *, guide: Guide | None = None) -> Trace:
    """Write from left to right, one network call a token, keeping the words that are given.

    Args:
        lm: the model.
        beginning: from `begin`, or with a prefix given.
        guide: a hook; it sees the text so far and one position to be written.
    """
    model, given = lm.model, beginning.tokens
    start = torch.full_like(given[:, :1], model.begin)
    ended = torch.zeros_like(given[:, 0], dtype=torch.bool)
    written: list[Tensor] = []
    for place in range(given.shape[1]):
        said = model(torch.cat([start, *written], 1), beginning.memory)[:, -1:].float()
        if guide is not None:
            before = torch.zeros_like(said).expand(-1, place, -1)
            seen = torch.cat([*written, torch.full_like(start, MASK)], 1)
            said = guide(torch.cat([before, said], 1), seen)[:, -1:]
        word = torch.where(given[:, place : place + 1] != MASK, given[:, place : place + 1], said.argmax(-1))
        word = word.masked_fill(ended[:, None], model.end)
        written.append(word)
        ended = ended | (word[:, 0] == model.end)
        if bool(ended.all()):
            break
    tokens = torch.cat(written, 1)
    mask = (tokens == model.end).cumsum(1) <= (tokens == model.end).long()
    place = torch.arange(tokens.shape[1], device=tokens.device)
    points = [torch.where(place < k, tokens, MASK) for k in range(tokens.shape[1] + 1)]
    return Trace(beginning, mask, torch.stack(points))
