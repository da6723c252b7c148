"""Manta-LM as a family: from requests to events.

A text is written by one policy, called a few times. Each call sees the state, the prompt and the words settled so far,
and answers with words and an estimate of the clean state; the flow then carries the state, the plan, one step on, and
the words the policy is surest of are settled. An outer loop may encode the words, put them back on the path and go on
from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from manta.config import from_dict, to_dict
from manta.errors import ConfigError, RequestError, UsageError
from manta.families.acting import ActingPolicy
from manta.families.asked import check_options
from manta.families.batching import drawn_words, fresh_noise, padded_draws, padded_prompts
from manta.families.canvas import Prompts, Template, changes, check_strength, prompt_tokens, template_of
from manta.families.codes import expected_codes
from manta.families.decoding import batches
from manta.families.events import Event, GenerateOptions, Request
from manta.families.fluent import FluentWriter, counted
from manta.families.model import MantaConfig, MantaModel
from manta.families.objectives import EmbeddingMatching, OwnStates, PolicyMatching
from manta.families.observer import Beginning, Observer
from manta.families.page import Page
from manta.families.prompted import NO_PROMPT, Memory
from manta.families.scales import check_stored, coarse_of, learn_classes
from manta.families.trained import Taught, Teaching
from manta.flow import SOLVERS, LinearPath, escaping, steps_within
from manta.flow.time_density import TimeDensity
from manta.fluency import drawn_row, likeliest_row
from manta.nets.trunk import Trunk
from manta.runtime import check_logits, json_tensors, load_json_tensors, make_generator
from manta.spaces import RateController
from manta.text import MASK, NULL, Corpus, Tokenizer

PATH = LinearPath()
TAG_OF_STYLE = {"diverse": 0, "consensus": 1}
LENGTH_QUANTILE = 0.8
"""Canvas of a consensus text, as a quantile of the length's distribution: unused places come out as nulls, while a
canvas too short cuts the text. `benchmarks/attempts.md` compares them."""
CONSENSUS_NOISE = 0.5
"""Standard deviation of a consensus text's initial noise, chosen on held-out data like the splits."""
FEW_CALLS = 4
"""Most calls of a `diverse` text whose words are drawn beside counts unasked; with more of them the words see each
other, and are told better by themselves: `benchmarks/fluency.py`."""


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


@dataclass(frozen=True)
class Pass:
    """One way through the calls of the policy."""

    flow: int
    """Calls that carry the plan to its end."""
    total: int
    """All calls: those left read the finished plan."""
    silent: int = 0
    """First calls in which no word is settled yet."""
    self_cond: Float[Tensor, "b m c"] | None = None
    """Estimate that the first call is fed."""
    scaled: bool = False
    """Settle classes of words before words, in a model that has some."""


def default_split(budget: int, most: int = 0) -> Split:
    """A split that serves where a model has none of its own: the plan flows while the words settle.

    Args:
        budget: network calls.
        most: calls that carry the plan at most, see `MantaConfig.flow_calls`; 0: any.
    """
    flow = max(1, budget - 1)
    return Split(flow=min(flow, most) if most else flow)


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


class MantaLM(FluentWriter[MantaModel]):
    """A Manta-LM with its tokenizer, ready to write.

    Args:
        model: the nets.
        tokenizer: the tokens they were trained on.
        density: training times as calibrated; its quantiles are the sampling grid.
        splits: budget → split of `consensus` texts, chosen on held-out data; other budgets use the next smaller one.
            Without any, and for `diverse` texts, whose variety is the plan's, `default_split`.
    """

    family = "manta"
    observed = fills = changes = True
    config_class, net_class = MantaConfig, MantaModel

    def __init__(
        self, model: MantaModel, tokenizer: Tokenizer, density: TimeDensity, splits: dict[int, Split] | None = None
    ) -> None:
        super().__init__(model, tokenizer)
        self.density = density
        self.splits = splits or {}
        self.repetition: Tensor | None = None
        """Direction in which texts repeat, "c" (`metrics.repetition.learn_repetition`), for `escape_scale`."""
        self._empty: dict[bool, Memory] = {}
        """The memory of no prompt, for guidance, encoded or bare: the same for every request, so it is kept."""

    @staticmethod
    def begin_with(net: MantaModel, corpus: Corpus) -> None:
        """Learn the classes of the words."""
        learn_classes(net, corpus)

    @classmethod
    def stages(cls, net: MantaModel, teaching: Teaching, measured: dict[str, Any]) -> list[Taught]:
        """The policy, with its space if that has an encoder, and then in states that it has reached by itself."""
        density = measured["density"] = net.config.time.build()
        information = getattr(net.config.space, "information", None)
        if information is None:  # a space without an encoder has no rate to control
            return [Taught("policy", teaching.shares.model, EmbeddingMatching(teaching.objective, density))]
        controller = measured["controller"] = RateController(information)
        matching = PolicyMatching(teaching.objective, density, controller)
        own = Taught("own", teaching.shares.own, OwnStates(teaching.objective, matching), pace=0.5, comparable=False)
        return [Taught("policy", teaching.shares.policy, matching), *([own] if teaching.shares.own else [])]

    def measured(self) -> dict[str, Any]:
        """The density of times."""
        return {"density": self.density}

    @classmethod
    def after(cls, net: MantaModel, tokenizer: Tokenizer, measured: Mapping[str, Any]) -> "MantaLM":
        """With the density of times as far as it is calibrated."""
        return cls(net, tokenizer, measured["density"])

    @classmethod
    def stored(
        cls, net: MantaModel, codec: Tokenizer, extras: Mapping[str, Any], parts: Mapping[str, Tensor]
    ) -> "MantaLM":
        """With its own splits, its density of times and the counts of its training texts.

        Raises:
            ModelError: a word is of a class that there is none of.
        """
        check_stored(net)
        state = load_json_tensors(extras["time_density"])
        if any(isinstance(value, Tensor) and not bool(value.isfinite().all()) for value in state.values()):
            raise ConfigError("time_density is not finite")
        density = net.config.time.build()
        density.load_state_dict(state)
        splits = {int(k): from_dict(Split, v, f"splits.{k}") for k, v in extras.get("splits", {}).items()}
        lm = cls(net, codec, density, splits)
        lm.ngrams = counted(parts, net.config.vocab_size)
        return lm

    def extras(self) -> dict[str, Any]:
        """Its own splits and its density of times."""
        splits = {str(budget): to_dict(split) for budget, split in sorted(self.splits.items())}
        return {"splits": splits, "time_density": json_tensors(self.density.state_dict())}

    @staticmethod
    def trunk_of(net: MantaModel) -> Trunk:
        """The policy's."""
        return net.field.trunk

    @staticmethod
    def rate_of(net: MantaModel) -> int:
        """Tokens that share a latent."""
        return net.space.rate

    def split(self, options: GenerateOptions) -> Split:
        """How a request's budget is spent, by the options or the model's own table.

        Raises:
            UsageError: when the split asked for does not fit the budget, or guidance has no plan to move.
        """
        budget = options.num_steps
        known = self.splits if options.style == "consensus" else {}
        fitting = [size for size in known if size <= budget]
        usual = default_split(budget, self.model.config.flow_calls)
        split = known[max(fitting)] if fitting and max(fitting) > budget // 2 else usual
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

    def _first_pass(self, split: Split, options: GenerateOptions, *, read: bool = False) -> int:
        """Actions of the policy before the outer loop, once a text to change is read; guided ones take two calls."""
        encoding = self.model.space.encoder_calls
        per_round = encoding + split.refine * _calls(options.guidance_scale)
        left = options.num_steps - _encoding_calls(options) - split.rounds * per_round - read * encoding
        return left // _calls(options.guidance_scale)

    def check(self, options: GenerateOptions) -> None:
        """Refuse options that do not fit each other, the budget or what the model knows; see `RequestWriter`."""
        check_options(options, self.family)
        self.check_fluency(options)
        if options.escape_scale and self.repetition is None:
            raise UsageError(
                "an escape from repetition needs its direction: set the model's `repetition` to what "
                "manta.metrics.repetition.learn_repetition measures"
            )
        split = self.split(options)
        if options.solver != "euler" and not split.flow and not split.rounds:
            raise UsageError("`solver` is for the flow, and there is none; leave it or `flow_steps` 0 out")

    def read(self, request: Request, options: GenerateOptions) -> tuple[list[int], Template | None, int]:
        """Tokens of the prompt, the text to fill if there is one, and the seed; see `RequestWriter`."""
        prompt = prompt_tokens(request, self.tokenizer, self.model.config.max_prompt)
        rate, cells = self.model.space.rate, self.model.max_cells
        template = template_of(request, self.tokenizer, rate=rate, max_cells=cells)
        check_strength(changes(template), options)
        if changes(template) and self._first_pass(self.split(options), options, read=True) < 1:
            raise RequestError(
                f"words to change are read in a network call of their own, and a budget of {options.num_steps} leaves "
                "none to write them; raise `num_steps`"
            )
        return prompt, template, request.seed

    def write_rows(
        self,
        rows: Sequence[tuple[list[int], Template | None, int]],
        options: GenerateOptions,
        batch_size: int,
        observer: Observer,
    ) -> Iterator[Event]:
        """Texts to change apart from others, which begin at another time; see `RequestWriter`."""
        split = self.split(options)
        for chosen in batches([changes(template) for _, template, _ in rows], batch_size):
            prompts, given, seeds = zip(*(rows[i] for i in chosen), strict=True)
            generators = tuple(make_generator(seed) for seed in seeds)
            batch = Prompts(*padded_prompts(prompts, self.device), generators)
            beginning = self._beginning(batch, given, options, encode=_encoding_calls(options) > 0)
            for written in self._write(beginning, options, split, observer):
                yield from self._events(written, given, chosen)

    def _beginning(
        self, batch: Prompts, templates: Sequence[Template | None], options: GenerateOptions, *, encode: bool
    ) -> Beginning:
        """Noise, or texts that are to change, put back on the path; given words stand."""
        tag = torch.full_like(batch.lengths, TAG_OF_STYLE[options.style])
        memory = self.model.memory(batch.tokens, batch.lengths, tag, encode=encode)
        cells = self._lengths(batch, templates, memory, options)
        page = Page.blank(templates, cells, self.model.space.rate)
        noise = self._noise(batch, page, options)
        code = expected_codes(self.model, memory, templates, batch.generators, options)
        beginning = Beginning(memory, page.tokens, page.mask, batch.generators, noise, code=code)
        if not any(map(changes, templates)):
            return beginning
        old = page.tokens.clone()
        for row, template in enumerate(templates):
            assert template is not None and template.old is not None, "such texts are written by themselves"
            old[row, : len(template.old)] = template.old.to(self.device)
        t = self.density.quantile(torch.tensor(1 - options.strength, dtype=torch.float64))
        times = t.float().to(self.device).expand(len(old))
        state = PATH.sample(noise, self.model.encode(old, page.mask, memory), times)
        return replace(beginning, state=state, t=float(t), nfe=self.model.space.encoder_calls)

    def _write(
        self, beginning: Beginning, options: GenerateOptions, split: Split, observer: Observer
    ) -> Iterator[Page]:
        """The text as it forms: the first pass, then the rounds of the outer loop.

        first pass   the plan flows from noise to its end, words settle on the way
        each round   encode the words, put them back on the path, ask again for the unsure half, flow and settle
        """
        page = Page(beginning.tokens.clone(), beginning.mask, self.model.space.rate)
        page.nfe = _encoding_calls(options) + beginning.nfe
        policy = self._policy(beginning, page, options, observer)
        total = self._first_pass(split, options, read=beginning.nfe > 0)
        first = Pass(flow=min(split.flow, total), total=total, silent=min(split.silent, total - 1), scaled=True)
        for _ in self._pass(policy, page, beginning, options, first, observer):
            page.done = page.written and split.rounds == 0
            yield page
        for left in reversed(range(split.rounds)):
            encoded = self.model.encode(page.tokens, page.mask, beginning.memory)
            page.nfe += self.model.space.encoder_calls
            start = float(self.density.grid(2)[1])
            fresh = self._noise(beginning, page, replace(options, noise_scale=1.0))
            state = PATH.sample(fresh, encoded, torch.full((len(encoded),), start, device=self.device))
            page.ask_again(0.5)
            page.forget_classes()
            again = replace(beginning, state=state, t=start)
            plan = Pass(flow=split.refine, total=split.refine, self_cond=encoded)
            for _ in self._pass(policy, page, again, options, plan, observer):
                page.done = page.written and left == 0
                yield page

    @torch.no_grad()
    def follow(self, beginning: Beginning, num_steps: int, observer: Observer) -> Page:
        """Write from a beginning in calls that all carry the plan; words settle from the first call on.

        It is what `generate` does with that many `flow_steps`, Euler's, and no calls after them, the likeliest word
        everywhere. The observer sees what is written.

        Args:
            beginning: from `begin`, or a text and a state half-way.
            num_steps: calls from the beginning's time to 1.
            observer: who watches.

        Returns:
            The words as they were left.
        """
        options = GenerateOptions(num_steps=num_steps, fluency=0.0)
        page = Page(beginning.tokens.clone(), beginning.mask, self.model.space.rate)
        policy = self._policy(beginning, page, options, observer)
        for _ in self._pass(policy, page, beginning, options, Pass(flow=num_steps, total=num_steps), observer):
            pass
        return page

    def _pass(
        self,
        policy: ActingPolicy,
        page: Page,
        beginning: Beginning,
        options: GenerateOptions,
        plan: "Pass",
        observer: Observer,
    ) -> Iterator[None]:
        """One way through the calls; yields after each step.

        1. flow:   a step of the solver carries the plan on, along a grid from the beginning's time to 1
        2. stay:   the policy answers beside the finished plan, or where it would have begun if there was none
        after each step but the silent ones, a word for every open place, and the surest are settled; in the first
        share of these the surest classes of words, in a model that has some
        """
        assert beginning.state is not None, "a flow begins at a state"
        flow, heun = plan.flow, options.solver == "heun" and plan.flow > 0
        steps = steps_within(options.solver, flow) if flow else 0
        stays = plan.total - (2 * steps - 1 if heun else steps)
        moves = [policy.stay(beginning.state, stays, beginning.t)]
        if flow:
            grid = self.density.grid(steps) * (1 - beginning.t) + beginning.t
            noise = partial(fresh_noise, beginning.generators, self.model.max_cells)
            settings = {"step": SOLVERS[options.solver], "noise": noise}
            moves.insert(0, policy.flow(beginning.state, grid, plan.self_cond, observer, **settings))
        # Actions made by the end of each step; a step of Heun's but the last takes two.
        actions = [min(2 * (k + 1), 2 * steps - 1) if heun else k + 1 for k in range(steps)]
        actions += [plan.total - stays + k + 1 for k in range(stays)]
        speaking = sum(made > plan.silent for made in actions)
        scales = coarse_of(self.model) if plan.scaled else None
        coarse = 0 if scales is None else min(int(scales.share * speaking), speaking - 1)
        for done, (t, calls) in enumerate(chain(*moves), 1):
            page.t, page.nfe = t, page.nfe + calls
            if actions[done - 1] > plan.silent:
                logits = observer.logits(policy.logits, page.settled)
                choice, chance = self._choose(logits, page, beginning.generators, options)
                rest = len(actions) - done
                if scales is not None and (more := rest - speaking + coarse) >= 0:
                    page.settle_classes(choice, chance, logits, more / coarse, scales, drawn=self._draws(options))
                else:
                    page.settle(choice, chance, left=rest / (speaking - coarse))
                observer.settled(page)
            page.written = done == len(actions)
            yield

    def _unasked(self, options: GenerateOptions) -> bool:
        """Drawn texts of few calls, too: `benchmarks/fluency.py`."""
        return options.temperature == 0 and (options.style == "consensus" or options.num_steps <= FEW_CALLS)

    def _draws(self, options: GenerateOptions) -> bool:
        """Whether words are drawn; beside counts those of a `diverse` text are."""
        return options.temperature > 0 or (options.style == "diverse" and self.fluency(options) is not None)

    def _policy(self, beginning: Beginning, page: Page, options: GenerateOptions, observer: Observer) -> ActingPolicy:
        null, cond = None, self.model.condition(beginning.memory, page.mask, code=beginning.code)
        if options.guidance_scale != 1:
            encode = _encoding_calls(options) > 0
            if encode not in self._empty:
                nothing, none = padded_prompts([[]], self.device)
                self._empty[encode] = self.model.memory(nothing, none, none + NO_PROMPT, encode=encode)
            null = self.model.condition(self._empty[encode], page.mask, code=beginning.code)
        policy = ActingPolicy(self.model, page, cond, null, options.guidance_scale)
        if options.escape_scale:
            assert self.repetition is not None, "generate refuses to escape from nothing"
            policy.field = escaping(policy.field, self.repetition, options.escape_scale)
        policy.field = observer.field(policy.field, page, cond)
        return policy

    def _choose(
        self,
        logits: Float[Tensor, "b n v"],
        page: Page,
        generators: Sequence[torch.Generator],
        options: GenerateOptions,
    ) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
        """A word for every place, and its probability."""
        check_logits(logits, page.nfe, page.mask)
        logits = logits.clone()
        logits[..., MASK] = -torch.inf
        if (fluency := self.fluency(options)) is not None:
            places = page.mask.sum(1).tolist()
            told: dict[str, Any] = {"blank": NULL, "fluency": fluency}
            row = (logits.log_softmax(-1), page.tokens, page.asked, places)
            if not self._draws(options):
                choice = likeliest_row(*row, **told)
            else:
                longest = self.model.max_cells * self.model.space.rate
                uniform = [torch.rand(longest + 1, generator=g, dtype=torch.float64).numpy() for g in generators]
                choice = drawn_row(*row, **told, temperature=options.temperature or 1.0, uniform=uniform)
        else:  # draws are made for the largest canvas
            choice = drawn_words(logits, options.temperature, generators, self.model.max_cells * self.model.space.rate)
        return choice, F.softmax(logits, -1).gather(-1, choice[..., None])[..., 0]

    def _lengths(
        self, batch: Prompts, templates: Sequence[Template | None], memory: Memory, options: GenerateOptions
    ) -> Int64[Tensor, "b"]:
        """Latents of each text: a high quantile of their number, or a draw; a template brings its own."""
        logits = self.model.length_logits(memory)
        check_logits(logits, 1)
        if options.style == "consensus":
            below = (logits.softmax(-1).cumsum(-1) < LENGTH_QUANTILE).sum(-1)
            cells = (below + 1).clamp_max(self.model.max_cells)
        else:
            rows = zip(logits.softmax(-1).cpu(), batch.generators, strict=True)
            cells = torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows]).to(self.device) + 1
        for i, template in enumerate(templates):
            if template is not None:
                cells[i] = len(template.tokens) // self.model.space.rate
        return cells

    def _noise(self, drawing: Prompts | Beginning, page: Page, options: GenerateOptions) -> Float[Tensor, "b m c"]:
        """Initial noise on a canvas of fixed size for every request, cut to the batch's width."""
        usual = CONSENSUS_NOISE if options.style == "consensus" else 1.0
        scale = usual if options.noise_scale is None else options.noise_scale
        cells, width = self.model.max_cells, self.model.space.channels
        draws = torch.stack([torch.randn(cells, width, generator=g) for g in drawing.generators])
        return scale * padded_draws(draws, page.num_cells).to(self.device)

    def _events(self, written: Page, templates: Sequence[Template | None], indices: Sequence[int]) -> Iterator[Event]:
        kind = "done" if written.done else "draft"
        for row, template in enumerate(templates):
            tokens, sure = written.tokens[row][written.mask[row]], written.confidence[row][written.mask[row]]
            tokens, said, chances = tokens.tolist(), sure[tokens != MASK], tuple(sure.tolist())
            confidence = said.mean().item() if len(said) else 0.0
            if template is None:
                text = self.tokenizer.decode([t for t in tokens if t not in (NULL, MASK)]).strip()
            else:
                text = template.text(tokens, self.tokenizer)
            yield Event(kind, indices[row], text, tuple(tokens), written.t, confidence, written.nfe, chances=chances)
