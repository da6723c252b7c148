"""Manta-LM as a family: from requests to events.

A text is written by one policy, called a few times. Each call sees the state, the prompt and the words settled so far,
and answers with words and an estimate of the clean state; the flow then carries the state, the plan, one step on, and
the words the policy is surest of are settled. An outer loop may encode the words, put them back on the path and go on
from there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.data import MASK, NULL, Tokenizer
from manta.errors import ConfigError, UsageError
from manta.families.batching import padded_draws, padded_prompts, padded_width
from manta.families.canvas import Template, prompt_tokens, template_of
from manta.families.events import Event, GenerateOptions, Request, Writer
from manta.families.model import Action, MantaModel
from manta.families.options import check_options
from manta.families.prompted import NO_PROMPT, Memory
from manta.flow import SOLVERS, LinearPath, SolverState, escaping, guided, solve, steps_within
from manta.flow.time_density import TimeDensity
from manta.nets.vector_field import Condition
from manta.runtime import check_logits, make_generator
from manta.spaces import EmbeddingSpace

PATH = LinearPath()
TAG_OF_STYLE = {"diverse": 0, "consensus": 1}
LENGTH_QUANTILE = 0.8
"""Canvas of a consensus text, as a quantile of the length's distribution: unused places come out as nulls, while a
canvas too short cuts the text. `benchmarks/attempts.md` compares them."""
CONSENSUS_NOISE = 0.5
"""Standard deviation of a consensus text's initial noise, chosen on held-out data like the splits."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a budget of network calls is spent; what is left after the prompt's encoder is calls of the policy."""

    flow: int
    """Calls that carry the plan from noise to its end; the calls after them read the finished plan."""
    silent: int = 0
    """First calls in which no word is settled yet."""
    rounds: int = 0
    """Rounds of the outer loop; each takes an encoder and `refine` calls."""
    refine: int = 2
    """Calls of a round."""

    def __post_init__(self) -> None:
        if min(self.flow, self.silent, self.rounds) < 0 or self.refine < 1:
            raise ConfigError(f"a split counts calls: refine from 1 on, the others from 0 on; received {self}")


def default_split(budget: int) -> Split:
    """A split that serves where a model has none of its own: the plan flows while the words settle."""
    return Split(flow=max(1, budget - 1))


def _calls(guidance_scale: float) -> int:
    """Network calls of one action: two with guidance."""
    return 1 if guidance_scale == 1 else 2


def _encoding_calls(options: GenerateOptions) -> int:
    """Calls of the prompt's encoder: one, and with guidance one for the empty prompt too.

    A budget that would leave none to act reads bare embeddings, which costs no call. The empty prompt is encoded once a
    model, but counts for every text: what a text costs must not depend on what was written before it.
    """
    calls = _calls(options.guidance_scale)
    return calls if options.num_steps >= 2 * calls else 0


class MantaLM(Writer):
    """A Manta-LM with its tokenizer, ready to write.

    Args:
        model: the nets.
        tokenizer: the tokens they were trained on.
        density: training times as calibrated; its quantiles are the sampling grid.
        splits: budget → split, chosen on held-out data; other budgets use the next smaller one, or `default_split`.
    """

    family = "manta"

    def __init__(
        self, model: MantaModel, tokenizer: Tokenizer, density: TimeDensity, splits: dict[int, Split] | None = None
    ) -> None:
        self.model, self.tokenizer, self.density = model.eval(), tokenizer, density
        self.splits = splits or {}
        self.repetition: Tensor | None = None
        """Direction in which texts repeat, "c" (`metrics.repetition.learn_repetition`), for `escape_scale`."""
        self._empty: dict[bool, Memory] = {}
        """The memory of no prompt, for guidance, encoded or bare: the same for every request, so it is kept."""

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.embedding.weight.device

    def split(self, options: GenerateOptions) -> Split:
        """How a request's budget is spent, by the options or the model's own table.

        Raises:
            UsageError: when the split asked for does not fit the budget, or guidance has no plan to move.
        """
        budget = options.num_steps
        fitting = [size for size in self.splits if size <= budget]
        split = self.splits[max(fitting)] if fitting and max(fitting) > budget // 2 else default_split(budget)
        rounds = split.rounds if options.rounds is None else options.rounds
        split = replace(split, rounds=rounds, flow=split.flow if options.flow_steps is None else options.flow_steps)
        left = self._first_pass(split, options)
        if left < 1:
            raise UsageError(
                f"a budget of {budget} network calls leaves none to write the text with {rounds} rounds of the outer "
                "loop; raise `num_steps` or lower `rounds`"
            )
        if options.flow_steps is not None and options.flow_steps > left:
            raise UsageError(
                f"`flow_steps` {options.flow_steps} does not fit a budget of {budget} network calls, which leaves the "
                f"flow {left}; raise `num_steps` or lower `flow_steps`"
            )
        if options.guidance_scale != 1 and (left < 2 or split.flow == 0):
            raise UsageError(
                f"guidance moves the plan and takes two calls an action: it needs `num_steps` of 6 or more and "
                f"`flow_steps` of 1 or more, received {budget} and {split.flow}; leave `guidance_scale` out"
            )
        return replace(split, flow=min(split.flow, left), silent=min(split.silent, left - 1))

    def _first_pass(self, split: Split, options: GenerateOptions) -> int:
        """Actions of the policy before the outer loop; with guidance an action takes two calls."""
        per_round = self.model.space.encoder_calls + split.refine * _calls(options.guidance_scale)
        left = options.num_steps - _encoding_calls(options) - split.rounds * per_round
        return left // _calls(options.guidance_scale)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], options: GenerateOptions | None = None) -> Iterator[Event]:
        """Write texts; yields drafts as they form and one `done` event a request.

        A request's text depends on its prompt, its seed and the options, never on the batch it rides in.

        Raises:
            RequestError: for a prompt or a text to fill that does not fit the model.
            UsageError: for options that do not fit each other.
        """
        options = options or GenerateOptions()
        check_options(options, self.family)
        if options.escape_scale and self.repetition is None:
            raise UsageError(
                "an escape from repetition needs its direction: set the model's `repetition` to what "
                "manta.metrics.repetition.learn_repetition measures"
            )
        split = self.split(options)
        if options.solver != "euler" and not split.flow and not split.rounds:
            raise UsageError("`solver` is for the flow, and there is none; leave it or `flow_steps` 0 out")
        limit = self.model.config.max_prompt
        prompts = [prompt_tokens(request, self.tokenizer, limit) for request in requests]
        rate, cells = self.model.space.rate, self.model.max_cells
        templates = [template_of(request, self.tokenizer, rate=rate, max_cells=cells) for request in requests]
        for begin in range(0, len(requests), options.batch_size):
            chosen = list(range(begin, min(begin + options.batch_size, len(requests))))
            batch = _Batch(
                [prompts[i] for i in chosen],
                [templates[i] for i in chosen],
                [make_generator(requests[i].seed) for i in chosen],
                self.device,
            )
            for written in self._write(batch, options, split):
                yield from self._events(written, batch.templates, begin)

    def _write(self, batch: "_Batch", options: GenerateOptions, split: Split) -> Iterator["Page"]:
        """The text as it forms: the first pass, then the rounds of the outer loop."""
        encoding = _encoding_calls(options)
        memory = self._memory(batch, options, encode=encoding > 0)
        cells = self._lengths(batch, memory, options)
        page = Page.blank(batch, cells, self.model)
        page.nfe = encoding
        noise = self._noise(batch, page, options)
        policy = self._policy(memory, page, options)
        total = self._first_pass(split, options)
        for _ in self._pass(policy, page, noise, batch, options, split.flow, total, split.silent):
            page.done = page.written and split.rounds == 0
            yield page
        for left in reversed(range(split.rounds)):
            encoded = self.model.encode(page.tokens, page.mask, memory)
            page.nfe += self.model.space.encoder_calls
            start = float(self.density.grid(2)[1])
            fresh = self._noise(batch, page, replace(options, noise_scale=1.0))
            state = PATH.sample(fresh, encoded, torch.full((batch.size,), start, device=self.device))
            page.ask_again(0.5)
            for _ in self._pass(policy, page, state, batch, options, split.refine, split.refine, 0, start, encoded):
                page.done = page.written and left == 0
                yield page

    def _pass(
        self,
        policy: "_Policy",
        page: "Page",
        state: Tensor,
        batch: "_Batch",
        options: GenerateOptions,
        flow: int,
        total: int,
        silent: int,
        start: float = 0.0,
        self_cond: Tensor | None = None,
    ) -> Iterator[None]:
        """Carry the plan from `start` to 1 in `flow` actions, settle the words in `total`; yields after each step."""
        steps = steps_within(options.solver, flow) if flow else 0
        stays = total - (2 * steps - 1 if options.solver == "heun" and flow else steps)
        pieces = [policy.stay(state, stays)]
        if flow:
            grid = self.density.grid(steps) * (1 - start) + start
            noise = partial(_fresh_noise, batch.generators, self.model.max_cells)
            settings = {"step": SOLVERS[options.solver], "noise": noise, "self_cond": self_cond}
            pieces.insert(0, policy.flow(state, grid, **settings))
        # Actions made by the end of each event; a step of Heun's but the last takes two.
        actions = [min(2 * (k + 1), 2 * steps - 1) if options.solver == "heun" else k + 1 for k in range(steps)]
        actions += [total - stays + k + 1 for k in range(stays)]
        speaking = sum(made > silent for made in actions)
        for done, (t, calls) in enumerate(chain(*pieces), 1):
            page.t, page.nfe = t, page.nfe + calls
            if actions[done - 1] > silent:
                choice, chance = self._choose(policy.logits, page, batch, options)
                page.settle(choice, chance, left=(len(actions) - done) / speaking)
            page.written = done == len(actions)
            yield

    def _policy(self, memory: Memory, page: "Page", options: GenerateOptions) -> "_Policy":
        null = None
        if options.guidance_scale != 1:
            encode = _encoding_calls(options) > 0
            if encode not in self._empty:
                nothing, none = padded_prompts([[]], self.device)
                self._empty[encode] = self.model.memory(nothing, none, none + NO_PROMPT, encode=encode)
            null = self.model.condition(self._empty[encode], page.mask)
        policy = _Policy(self.model, page, self.model.condition(memory, page.mask), null, options.guidance_scale)
        if options.escape_scale:
            assert self.repetition is not None, "generate refuses to escape from nothing"
            policy.field = escaping(policy.field, self.repetition, options.escape_scale)
        return policy

    def _choose(
        self, logits: Float[Tensor, "b n v"], page: "Page", batch: "_Batch", options: GenerateOptions
    ) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
        """A word for every place, and its probability."""
        check_logits(logits, page.nfe, page.mask)
        logits = logits.clone()
        logits[..., MASK] = -torch.inf
        width = self.model.max_cells * self.model.space.rate  # draws are made for the largest canvas
        choice = _sample(logits, options.temperature, batch.generators, width)
        return choice, F.softmax(logits, -1).gather(-1, choice[..., None])[..., 0]

    def _memory(self, batch: "_Batch", options: GenerateOptions, *, encode: bool) -> Memory:
        tag = torch.full((batch.size,), TAG_OF_STYLE[options.style], device=self.device)
        return self.model.memory(batch.prompt, batch.prompt_lengths, tag, encode=encode)

    def _lengths(self, batch: "_Batch", memory: Memory, options: GenerateOptions) -> Int64[Tensor, "b"]:
        """Latents of each text: a high quantile of their number, or a draw; a template brings its own."""
        logits = self.model.length_logits(memory)
        check_logits(logits, 1)
        if options.style == "consensus":
            below = (logits.softmax(-1).cumsum(-1) < LENGTH_QUANTILE).sum(-1)
            cells = (below + 1).clamp_max(self.model.max_cells)
        else:
            rows = zip(logits.softmax(-1).cpu(), batch.generators, strict=True)
            cells = torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows]).to(self.device) + 1
        for i, template in enumerate(batch.templates):
            if template is not None:
                cells[i] = len(template.tokens) // self.model.space.rate
        return cells

    def _noise(self, batch: "_Batch", page: "Page", options: GenerateOptions) -> Float[Tensor, "b m c"]:
        """Initial noise on a canvas of fixed size for every request, cut to the batch's width."""
        scale = options.noise_scale
        if scale is None:
            scale = CONSENSUS_NOISE if options.style == "consensus" else 1.0
        shape = (self.model.max_cells, self.model.space.channels)
        draws = torch.stack([torch.randn(shape, generator=g) for g in batch.generators])
        return scale * padded_draws(draws, page.num_cells).to(self.device)

    def _events(self, written: "Page", templates: Sequence[Template | None], begin: int) -> Iterator[Event]:
        kind = "done" if written.done else "draft"
        for row, template in enumerate(templates):
            tokens = written.tokens[row][written.mask[row]].tolist()
            said = written.mask[row] & (written.tokens[row] != MASK)
            confidence = written.confidence[row][said].mean().item() if bool(said.any()) else 0.0
            if template is None:
                text = self.tokenizer.decode([t for t in tokens if t not in (NULL, MASK)]).strip()
            else:
                text = template.text(tokens, self.tokenizer)
            yield Event(kind, begin + row, text, tuple(tokens), written.t, confidence, written.nfe)


class _Batch:
    """Requests side by side."""

    def __init__(self, prompts, templates, generators, device) -> None:
        self.size = len(prompts)
        self.templates: list[Template | None] = templates
        self.generators: list[torch.Generator] = generators
        self.prompt, self.prompt_lengths = padded_prompts(prompts, device)


class Page:
    """The words of a batch while they are written.

    Args:
        tokens: given words, the mask token where the model writes, null off the canvas.
        mask: True on each row's canvas.
        rate: tokens that share a latent.
    """

    def __init__(self, tokens: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"], rate: int) -> None:
        self.tokens, self.mask = tokens, mask
        self.num_cells = tokens.shape[1] // rate
        self.writable = mask & (tokens == MASK)
        self.asked = self.writable.clone()
        """Places without a settled word."""
        self.confidence = (mask & ~self.writable).float()
        """Probability of each word when it was chosen; 1 where it was given."""
        self.t, self.nfe, self.written, self.done = 0.0, 0, False, False

    @classmethod
    def blank(cls, batch: _Batch, cells: Int64[Tensor, "b"], model: MantaModel) -> "Page":
        """The canvases of a batch of requests, with what their templates give."""
        rate = model.space.rate
        width = padded_width(int(cells.max()) * rate, rate)
        mask = torch.arange(width, device=cells.device) < (cells * rate)[:, None]
        tokens = torch.full(mask.shape, MASK, device=cells.device).masked_fill(~mask, NULL)
        for row, template in enumerate(batch.templates):
            if template is not None:
                tokens[row, : len(template.tokens)] = template.tokens.to(cells.device)
        return cls(tokens, mask, rate)

    @property
    def settled(self) -> Int64[Tensor, "b n"]:
        """Settled words, the mask token elsewhere."""
        return self.tokens.masked_fill(self.asked, MASK)

    def settle(self, choice: Int64[Tensor, "b n"], chance: Float[Tensor, "b n"], left: float) -> None:
        """Write a word at every place asked for, then ask again for the least certain ones.

        Fewer words are asked for again from call to call (Mask-Predict, arXiv 1904.09324). A null is sure before the
        words are: settled early it would shorten the text, so nulls are asked for until the end.

        Args:
            choice: a word for every place.
            chance: its probability.
            left: share of the words to ask for again; 0 settles everything.
        """
        self.tokens = torch.where(self.asked, choice, self.tokens)
        self.confidence = torch.where(self.asked, chance, self.confidence)
        self.ask_again(left)

    def ask_again(self, share: float) -> None:
        """Ask again for all nulls and a share of the words, the least certain first; nothing if the share is 0."""
        null = (self.tokens == NULL) & self.writable
        words = self.writable & ~null
        count = (words.sum(1) * share).floor().long()
        ranked = self.confidence.masked_fill(~words, torch.inf).argsort(dim=1, stable=True).argsort(1)
        self.asked = null | (ranked < count[:, None]) if share > 0 else torch.zeros_like(null)


def act_beside(
    model: MantaModel,
    state: Float[Tensor, "b m c"],
    t: Float[Tensor, "*time"],
    *,
    cond: Condition,
    self_cond: Tensor | None = None,
) -> Action:
    """One action of the policy beside settled words, which in the embedding space are known states, at t = 1.

    Args:
        model: the nets.
        state: the present state.
        t: its time, "b", "b m", or "1" for all rows.
        cond: prompt, canvas and the words settled.
        self_cond: the policy's last estimate.
    """
    if isinstance(model.space, EmbeddingSpace):
        known = cond.mask & (cond.settled != MASK)
        state = torch.where(known[..., None], model.space.clean(cond.settled), state)
        t = (t if t.ndim == 2 else t[:, None]).expand(known.shape).masked_fill(known, 1.0)
    return model.act(state, t, cond=cond, self_cond=self_cond)


class _Policy:
    """The policy at work on a page: each action sees the words settled by then.

    Args:
        model: the nets.
        page: read at every action.
        cond: prompt and canvas.
        null: the same without the prompt, for guidance.
        guidance_scale: 1 without guidance.
    """

    def __init__(
        self, model: MantaModel, page: Page, cond: Condition, null: Condition | None = None, guidance_scale: float = 1.0
    ) -> None:
        self.model, self.page, self.scale = model, page, guidance_scale
        self.actions: dict[str, Action] = {}
        self.reached: SolverState | None = None
        self.field = self._acting("prompt", cond)
        if null is not None:
            self.field = guided(self.field, self._acting("null", null), guidance_scale)

    def _acting(self, name: str, condition: Condition) -> Callable[..., Tensor]:
        def field(state: Tensor, t: Tensor, *, cond: Any = None, self_cond: Tensor | None) -> Tensor:
            seen = replace(condition, settled=self.page.settled)
            # All rows are at one time: told once, it is embedded alike in every batch.
            action = act_beside(self.model, state, t[:1], cond=seen, self_cond=self_cond)
            self.actions[name] = action
            return action.estimate

        return field

    @property
    def logits(self) -> Float[Tensor, "b n v"]:
        """Token logits of the last action, as it reads the state with its prompt.

        Guidance moves the plan and leaves the words alone. Beside settled words the null condition tells what is fluent
        there, so that logits extrapolated away from it choose words that do not go together: `benchmarks/attempts.md`.
        """
        return self.model.logits(self.actions["prompt"])

    def flow(self, state: Tensor, grid: Tensor, **settings: Any) -> Iterator[tuple[float, int]]:
        """Follow the flow along a grid; yields the time reached and the calls made by each step."""
        made = 0
        for reached in solve(self.field, state, grid, **settings):
            self.reached = reached
            yield reached.t, reached.nfe - made
            made = reached.nfe

    def stay(self, state: Tensor, actions: int) -> Iterator[tuple[float, int]]:
        """Act again and again where the flow has ended, or at pure noise if there was none."""
        reached = self.reached
        t, self_cond = (0.0, None) if reached is None else (1.0, reached.clean)
        state = state if reached is None else reached.state
        times = torch.full((len(state),), t, device=state.device)
        for _ in range(actions):
            estimate = self.field(state, times, self_cond=self_cond)
            self_cond = estimate if reached is not None else None
            yield t, _calls(self.scale)


def _fresh_noise(generators: Sequence[torch.Generator], cells: int, like: Tensor) -> Tensor:
    """Noise in the shape of `like`, drawn on a canvas of fixed size for each request."""
    draws = torch.stack([torch.randn(cells, like.shape[-1], generator=g) for g in generators])
    return padded_draws(draws, like.shape[1]).to(like)


def _sample(logits: Tensor, temperature: float, generators: Sequence[torch.Generator], width: int) -> Tensor:
    """The likeliest tokens, or draws from softmax(logits/temperature) by the Gumbel trick in float64."""
    if temperature == 0:
        return logits.argmax(-1)
    _, n, v = logits.shape
    uniform = torch.stack([torch.rand(width, v, generator=g, dtype=torch.float64) for g in generators])
    uniform = padded_draws(uniform, n)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    # Below the greatest logit, so that no temperature is too low for a number.
    below = logits.double() - logits.amax(-1, keepdim=True)
    return (below / temperature + gumbel.to(logits.device)).argmax(-1)
