"""What Manta-LM is taught: its space and its policy, together.

Each objective is `(model, batch, generator) → Loss` and draws all randomness from the generator.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from manta.errors import ConfigError
from manta.families.model import MantaModel
from manta.families.prompted import Memory, PromptedModel
from manta.families.scales import by_class, covered
from manta.flow import FlowObjectiveConfig, LinearPath, TimeDensity, terminal_cross_entropy, velocity_matching
from manta.flow.adaptive import code_numbers
from manta.flow.objective import joined
from manta.nets.vector_field import Condition
from manta.spaces import LatentSpace, RateController, gaussian_rate
from manta.step import deciding
from manta.text import MASK, NULL, Batch
from manta.types import Estimate, Loss

PATH = LinearPath()
NoiseOfTexts = Callable[[Batch, Tensor, tuple[int, int, int], torch.Generator], Tensor]
"""The noise that belongs to each text, NaN where it is to be fresh; see `families.coupling`."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Shares and weights of Manta-LM's objectives."""

    prompt_drop: float = 0.05
    """Share of rows trained without their prompt, for the null condition."""
    blank_share: float = 0.15
    """Share of rows with a blank: a span to fill, with unused null slots after it."""
    max_blank: int = 8
    """Most null slots inserted into a text."""
    extra_cell: float = 0.1
    """Share of rows whose canvas is one latent longer than needed."""
    all_hidden: float = 0.5
    """Share of rows in which no word is settled; in the others a uniform share of the words is hidden."""
    levels: int = 1
    """Noise levels and hidings a text; they share its prompt and its encoding."""
    known_share: float = 0.15
    """Share of batches in which latents with no hidden word are known, at t = 1."""
    velocity_weight: float = 0.3
    """Weight of velocity matching beside the cross-entropy of the words. 0 leaves the words alone."""
    bare_share: float = 0.05
    """Share of batches whose prompts stay bare embeddings, for a budget of a single call."""
    own_share: float = 0.5
    """Share of batches in the last stage whose states the policy has reached by itself."""
    coupling: Literal["independent", "teacher"] = "independent"
    """Noise that a text is put on the path from: drawn afresh, or the noise that it has under the teacher, which says
    which words it is of (`families/coupling.py`)."""
    code_dropout: float = 0.1
    """Share of rows whose adaptive condition is not told, [0, 1]."""
    flow: FlowObjectiveConfig = field(default_factory=FlowObjectiveConfig)
    """Weight cap and self-conditioning of the flow."""

    def __post_init__(self) -> None:
        for name in (
            "prompt_drop",
            "blank_share",
            "extra_cell",
            "all_hidden",
            "known_share",
            "bare_share",
            "own_share",
            "code_dropout",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name} should lie in [0, 1], received {getattr(self, name)}")
        if self.levels < 1 or self.max_blank < 0 or self.velocity_weight < 0:
            raise ConfigError("objective.levels should be at least 1, max_blank and velocity_weight at least 0")


@dataclass(frozen=True)
class Canvas:
    """Texts laid out for training."""

    tokens: Int64[Tensor, "b n"]
    """Tokens, null from the end of the text to the end of its canvas and in unused slots of a blank."""
    mask: Bool[Tensor, "b n"]
    """True on each row's canvas, a multiple of r positions."""
    cells: Int64[Tensor, "b"]
    """Latents of each canvas."""
    hole: Bool[Tensor, "b n"]
    """True in the blank of rows that have one."""

    def repeat(self, times: int) -> "Canvas":
        """Each row several times, one after the other."""
        parts = (part.repeat_interleave(times, 0) for part in (self.tokens, self.mask, self.cells, self.hole))
        return Canvas(*parts)


def lay_out(batch: Batch, rate: int, config: ObjectiveConfig, generator: torch.Generator, *, max_cells: int) -> Canvas:
    """Lay texts out on canvases: a blank in some, at least one closing null, whole latents.

        text      w w w w w w w                  length 7
        canvas    w w [w w - -] w w w - - -      r = 4: 12 positions, 3 latents
                       hole: 2 words covered, 2 slots unused; then nulls to the end

    A blank covers up to `max_blank` tokens of the text and as many unused slots after them, so that a span can come
    out shorter than the room it is given. Where the largest canvas leaves no room, there are fewer slots.

    Args:
        batch: the texts.
        rate: tokens that share a latent.
        config: shares of rows with a blank and with a latent to spare.
        generator: of all draws.
        max_cells: latents of the largest canvas; it holds the longest text and a null.
    """
    b, n = batch.text.shape
    device, lengths = batch.text.device, batch.text_lengths
    draws = torch.rand(6, b, generator=generator).to(device)
    # 1. Which rows have a blank, and how many of its slots stay unused.
    has_hole = draws[0] < config.blank_share
    slots = has_hole * (draws[1] * (config.max_blank + 1)).long()
    slots = torch.minimum(slots, max_cells * rate - 1 - lengths)
    # 2. The words it covers: [start, end) of the text; the slots follow them.
    start = (draws[2] * (lengths + 1)).long()
    covered = torch.minimum((draws[3] * config.max_blank).long() + 1, lengths - start)
    end = start + covered
    # 3. Whole latents: the text, its slots, one null at least, and in some rows a latent to spare.
    cells = ((lengths + slots) // rate + 1 + (draws[4] < config.extra_cell).long()).clamp_max(max_cells)
    # 4. Where each position of the canvas has its word from.
    place = torch.arange(int(cells.max()) * rate, device=device)[None]
    source = torch.where(place < end[:, None], place, place - slots[:, None])
    unused = (place >= end[:, None]) & (place < (end + slots)[:, None])
    tokens = batch.text.gather(1, source.clamp(0, n - 1))
    tokens = torch.where(unused | (source >= lengths[:, None]), NULL, tokens)
    mask = place < (cells * rate)[:, None]
    hole = has_hole[:, None] & (place >= start[:, None]) & (place < (end + slots)[:, None]) & mask
    return Canvas(tokens=tokens.masked_fill(~mask, NULL), mask=mask, cells=cells, hole=hole)


def read_prompt(model: PromptedModel, batch: Batch, config: ObjectiveConfig, generator: torch.Generator) -> Memory:
    """Encode the prompts, dropping some for the null condition and leaving some batches bare."""
    dropped = torch.rand(len(batch), generator=generator).to(batch.text.device) < config.prompt_drop
    dropped = dropped & (batch.prompt_lengths > 0)
    lengths = torch.where(dropped, 0, batch.prompt_lengths)
    bare = float(torch.rand((), generator=deciding(generator))) < config.bare_share
    return model.memory(batch.prompt, lengths, batch.tag, encode=not bare, task=batch.task)


def length_cost(model: PromptedModel, memory: Memory, canvas: Canvas) -> Tensor:
    """Mean nats of the texts' lengths; rows that a blank has made longer say nothing of them."""
    nats = F.cross_entropy(model.length_logits(memory), canvas.cells - 1, reduction="none")
    free = ~canvas.hole.any(1)
    return (nats * free).sum() / free.sum().clamp_min(1)


def hide(canvas: Canvas, config: ObjectiveConfig, generator: torch.Generator) -> Bool[Tensor, "b n"]:
    """Choose the positions that the policy must predict: all, a uniform share, or the blank."""
    b, n = canvas.tokens.shape
    draws = torch.rand(2, b, generator=generator).to(canvas.tokens.device)
    share = torch.where(draws[0] < config.all_hidden, 1.0, draws[1])[:, None]
    hidden = torch.rand(b, n, generator=generator).to(canvas.tokens.device) < share
    hidden = torch.where(canvas.hole.any(1, keepdim=True), canvas.hole, hidden) & canvas.mask
    return torch.where(hidden.any(1, keepdim=True), hidden, canvas.mask)


def latent_space(model: MantaModel) -> LatentSpace:
    """The space of a model whose objective is of latents."""
    return cast(LatentSpace, model.space)


def encode(
    model: MantaModel, canvas: Canvas, memory: Memory, generator: torch.Generator, drop: float = 0.0
) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b m c"]]:
    """Mean and deviation of the latents of a canvas, some tokens masked in half of the rows."""
    space, tokens = latent_space(model), canvas.tokens
    if drop > 0:
        rows = torch.rand(len(tokens), 1, generator=generator).to(tokens.device) < 0.5
        places = torch.rand(tokens.shape, generator=generator).to(tokens.device) < drop
        tokens = tokens.masked_fill(rows & places, MASK)
    projected = space.encoder.project(memory.states, memory.mask)
    return space.posterior(tokens, canvas.mask, projected, model.embedding.weight)


def code_cost(
    model: MantaModel,
    clean: Float[Tensor, "b m c"],
    mask: Bool[Tensor, "b m"],
    memory: Memory,
    config: ObjectiveConfig,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b k"] | None, Tensor | None]:
    """Codes of texts, some of which are not told, and the mean nats of their numbers; None of a model without them."""
    code = model.code(clean, mask)
    if code is None:
        return None, None
    nats = F.cross_entropy(model.code_logits(memory), code_numbers(code))
    told = torch.rand(len(code), generator=generator).to(code.device) >= config.code_dropout
    return code * told[:, None], nats


def _ends(
    nats: Float[Tensor, "k"],
    hidden: Bool[Tensor, "b n"],
    settled: Int64[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    t: Float[Tensor, "b"],
) -> dict[str, Tensor]:
    """Mean nats a token of the rows that see nothing settled, with no plan (t = 0) and with the whole one (t = 1)."""
    blank = (hidden & (settled == MASK)).eq(mask).all(1)
    row = hidden.nonzero()[:, 0]
    found = {}
    for name, time in (("nats_start", 0.0), ("nats_end", 1.0)):
        chosen = (blank & (t == time))[row]
        if bool(chosen.any()):
            found[name] = nats[chosen].mean()
    return found


def known_cells(
    hidden: Bool[Tensor, "b n"], mask: Bool[Tensor, "b n"], rate: int, share: float, generator: torch.Generator
) -> Bool[Tensor, "b m"] | None:
    """In a share of the batches, the latents none of whose words is hidden are known; never a whole row.

    A batch without known latents has one time a row, which is cheaper than one a latent.
    """
    if float(torch.rand((), generator=generator)) >= share:
        return None
    b, n = hidden.shape
    return (mask & ~hidden).view(b, n // rate, rate).all(-1)


class PolicyMatching:
    """The latent space and the policy, taught together.

    A text is encoded to latents, put on the path at a random time, and part of its words hidden; from state, prompt and
    the words left, and the classes of some others, the policy must tell the hidden words and the clean latents:

        nats a hidden token + velocity_weight · velocity matching + β · rate/tokens

    Time and hiding are drawn apart, so that any schedule of flowing and settling is met in training; rows at t = 0 and
    t = 1 are the policy without a plan and with all of it. The encoder learns through the state, at every noise level;
    the clean latents are a constant target for the policy.

    Args:
        config: shares and weights.
        density: of training times; it learns from the losses and is part of the checkpoint.
        controller: holds the rate; part of the checkpoint.
        coupling: tells the noise of a text; None: noise is independent of it.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        density: TimeDensity,
        controller: RateController,
        coupling: NoiseOfTexts | None = None,
    ) -> None:
        self.config, self.density, self.controller, self.coupling = config, density, controller, coupling

    def coupled(
        self, model: MantaModel, batch: Batch, canvas: Canvas, generator: torch.Generator
    ) -> Float[Tensor, "b m c"] | None:
        """The noise that belongs to each text, NaN where it is fresh; None: it is so everywhere."""
        if self.coupling is None:
            return None
        space, free = latent_space(model), ~canvas.hole.any(1)
        shape = space.rate, canvas.tokens.shape[1] // space.rate, space.channels
        return self.coupling(batch, free, shape, generator)

    def __call__(self, model: MantaModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts nats (a token), velocity, clean_error, length (nats), rate (nats a text) and beta.

        `nats_start` and `nats_end` are those of rows that see nothing settled, at t = 0 and at t = 1.
        """
        space, config = latent_space(model), self.config
        canvas = lay_out(batch, space.rate, config, generator, max_cells=model.max_cells)
        memory = read_prompt(model, batch, config, generator)
        mean, std = encode(model, canvas, memory, generator, drop=space.config.token_drop)
        trained = any(parameter.requires_grad for parameter in space.parameters())
        if not trained:  # it is a given place: nothing that it reads is moved for its sake
            mean, std = mean.detach(), std.detach()
        sample = mean + std * torch.randn(mean.shape, generator=generator).to(mean.device)
        cell_mask = canvas.mask[:, :: space.rate]
        rate = (gaussian_rate(mean, std) * cell_mask).sum(1).mean()
        if torch.is_grad_enabled() and trained:
            space.track(sample[cell_mask].detach())
            self.controller.observe(rate.item())
        code, code_nats = code_cost(model, space.standardise(mean), cell_mask, memory, config, generator)
        told = None if code is None else code.repeat_interleave(config.levels, 0)
        seen = canvas.repeat(config.levels)
        hidden = hide(seen, config, generator)
        settled = covered(model, seen.tokens, hidden, by_class(model, seen.tokens, generator))
        coupled = self.coupled(model, batch, canvas, generator)
        words: dict[str, Tensor] = {}

        def cost(estimate: Estimate, t: Tensor) -> Tensor:
            nats = F.cross_entropy(model.logits(estimate.aux, hidden), seen.tokens[hidden], reduction="none")
            words.update(_ends(nats.detach(), hidden, settled, seen.mask, t))
            return nats.mean()

        loss = velocity_matching(
            model.act,
            space.standardise(sample).repeat_interleave(config.levels, 0),
            path=PATH,
            time_density=self.density,
            generator=generator,
            config=config.flow,
            observe=torch.is_grad_enabled(),
            mask=seen.mask[:, :: space.rate],
            known=known_cells(hidden, seen.mask, space.rate, config.known_share, generator),
            cond=model.condition(memory, seen.mask, settled, told),
            select=lambda condition, rows: condition.rows(rows, config.levels),
            posterior=(
                space.standardise(mean).detach().repeat_interleave(config.levels, 0),
                (std / space.std).detach().repeat_interleave(config.levels, 0),
            ),
            coupled=None if coupled is None else coupled.repeat_interleave(config.levels, 0),
            weight=config.velocity_weight,
            terminal=cost,
        )
        length = length_cost(model, memory, canvas)
        tokens_a_text = canvas.mask.sum(1).float().mean()
        total = loss.total + 0.1 * length + self.controller.weight * rate / tokens_a_text
        parts = {"nats": loss.parts["terminal"], "velocity": loss.parts["velocity"]}
        parts |= {"clean_error": loss.parts["clean_error"], "length": length.detach(), **words}
        if code_nats is not None:
            total, parts["code"] = total + 0.1 * code_nats, code_nats.detach()
        return Loss(total, {**parts, "rate": rate.detach(), "beta": self.controller.weight}, int(hidden.sum()))


class OwnStates:
    """The last stage: in a share of the batches, the policy acts from states that it has reached by itself.

    A text is put back on the path at a random time, a few actions follow as in writing (the plan flows on the policy's
    own estimates, words settle in its own order), and from there the hidden words and the clean latents must be told.
    Words settle as the text has them, so that the target stays right. A text that the prompt does not determine starts
    late enough for its state to tell it; a consensus text may start at pure noise.

    Args:
        config: shares and weights.
        ordinary: objective of the other batches.
        earliest: earliest time a text is put back to, unless it is a consensus.
    """

    schedules = (2, 4, 8, 16)
    """Lengths of writing, in actions, of which a row plays a part."""
    actions = 3
    """Most actions of a row."""

    def __init__(self, config: ObjectiveConfig, ordinary: PolicyMatching, earliest: float = 0.35) -> None:
        self.config, self.ordinary, self.earliest = config, ordinary, earliest

    def __call__(self, model: MantaModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts nats (a token) and velocity, or those of the ordinary objective."""
        if float(torch.rand((), generator=deciding(generator))) >= self.config.own_share:
            return self.ordinary(model, batch, generator)
        space = latent_space(model)
        layout = replace(self.config, blank_share=0.0)
        canvas = lay_out(batch, space.rate, layout, generator, max_cells=model.max_cells)
        memory = read_prompt(model, batch, self.config, generator)
        with torch.no_grad():
            mean, std = encode(model, canvas, memory, generator)
            clean = space.standardise(mean)
            sample = clean + std / space.std * torch.randn(mean.shape, generator=generator).to(mean.device)
            cells = canvas.mask[:, :: space.rate]
            code, _ = code_cost(model, clean, cells, memory, self.config, generator)
            noise = self.ordinary.coupled(model, batch, canvas, generator)
            classed = by_class(model, canvas.tokens, generator)
            state, t, hidden, self_cond = self._write(
                model, canvas, classed, memory, sample, batch.tag == 1, code, noise, generator
            )
        cond = model.condition(memory, canvas.mask, covered(model, canvas.tokens, hidden, classed), code)
        action = model.act(state, t, cond=cond, self_cond=self_cond)
        nats = F.cross_entropy(model.logits(action.aux, hidden), canvas.tokens[hidden])
        stiffness = (1 - t).square().clamp_min(1 / self.config.flow.weight_cap).reciprocal()
        error = stiffness[:, None] * (action.clean - clean).square().mean(-1)
        velocity = error[canvas.mask[:, :: space.rate]].mean()
        total = nats + self.config.velocity_weight * velocity
        return Loss(total, {"nats": nats.detach(), "velocity": velocity.detach()}, int(hidden.sum()))

    def _write(
        self,
        model: MantaModel,
        canvas: Canvas,
        classed: Bool[Tensor, "b n"] | None,
        memory: Memory,
        sample: Float[Tensor, "b m c"],
        consensus: Bool[Tensor, "b"],
        code: Float[Tensor, "b k"] | None,
        coupled: Float[Tensor, "b m c"] | None,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b"], Bool[Tensor, "b n"], Tensor | None]:
        """State, time, hidden words and last estimate after some actions of the policy."""
        device, b = sample.device, len(sample)
        draws = torch.rand(3, b, generator=generator).to(device)
        lengths = torch.tensor(self.schedules, device=device)
        length = lengths[torch.randint(len(self.schedules), (b,), generator=generator).to(device)]
        first = torch.where(consensus, 0, (self.earliest * length).ceil().long().clamp_max(length - 1))
        begin = first + (draws[0] * (length - first)).long()
        begin = torch.where(consensus & (draws[1] < 0.5), 0, begin)
        noise = joined(torch.randn(sample.shape, generator=generator).to(device), coupled)
        scale = torch.where(consensus, 0.5 + 0.5 * draws[2], 1.0)
        t = begin / length
        state = PATH.sample(scale[:, None, None] * noise, sample, t)
        share = (1 - t)[:, None]
        hidden = (torch.rand(canvas.tokens.shape, generator=generator).to(device) < share) & canvas.mask
        hidden = torch.where(hidden.any(1, keepdim=True), hidden, canvas.mask)
        cond, self_cond = model.condition(memory, canvas.mask, code=code), None
        for _ in range(int(torch.randint(1, self.actions + 1, (), generator=deciding(generator)))):
            moving = begin + 1 < length
            settled = covered(model, canvas.tokens, hidden, classed)
            action = model.act(state, t, cond=replace(cond, settled=settled), self_cond=self_cond)
            chance, choice = model.logits(action.aux).softmax(-1).max(-1)
            # As in writing, nulls settle last and the surest words first.
            rank = chance.masked_fill(choice == NULL, 0.0).masked_fill(~hidden, torch.inf).argsort(1).argsort(1)
            count = (canvas.mask.sum(1) * (length - begin - 1)).div(length, rounding_mode="floor").clamp_min(1)
            kept = hidden & (rank < count[:, None])
            begin = torch.where(moving, begin + 1, begin)
            t_next = begin / length
            state = torch.lerp(state, action.clean, ((t_next - t) / (1 - t))[:, None, None])
            hidden, t, self_cond = torch.where(moving[:, None], kept, hidden), t_next, action.clean
        return state, t, hidden, self_cond


class EmbeddingMatching:
    """The embedding space and the policy, taught together by the cross-entropy of hidden words alone.

    Words that are not hidden are settled, and their states known, at t = 1.

    Args:
        config: shares.
        density: of training times.
    """

    def __init__(self, config: ObjectiveConfig, density: TimeDensity) -> None:
        # At t = 1 the state spells the word: nothing would be left to tell.
        self.config = replace(config, flow=replace(config.flow, end_share=0.0))
        self.density = density

    def __call__(self, model: MantaModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts cross_entropy (nats a hidden token) and length (nats)."""
        canvas = lay_out(batch, 1, self.config, generator, max_cells=model.max_cells)
        memory = read_prompt(model, batch, self.config, generator)
        hidden = hide(canvas, self.config, generator)
        settled = covered(model, canvas.tokens, hidden, by_class(model, canvas.tokens, generator))
        code, code_nats = None, None
        if model.config.bits:
            clean = model.encode(canvas.tokens, canvas.mask, memory)
            code, code_nats = code_cost(model, clean, canvas.mask, memory, self.config, generator)

        def logits_field(state: Tensor, t: Tensor, *, cond: Condition, self_cond: Tensor | None) -> Tensor:
            return model.logits(model.act(state, t, cond=cond, self_cond=self_cond).aux)

        loss = terminal_cross_entropy(
            logits_field,
            canvas.tokens,
            model.space.embedding,  # pyright: ignore[reportArgumentType]
            path=PATH,
            time_density=self.density,
            generator=generator,
            config=self.config.flow,
            observe=torch.is_grad_enabled(),
            mask=canvas.mask,
            known=canvas.mask & ~hidden,
            cond=model.condition(memory, canvas.mask, settled, code),
            select=lambda condition, rows: condition.rows(rows),
        )
        length = length_cost(model, memory, canvas)
        total, parts = loss.total + 0.1 * length, {**loss.parts, "length": length.detach()}
        if code_nats is not None:
            total, parts["code"] = total + 0.1 * code_nats, code_nats.detach()
        return Loss(total, parts, int(hidden.sum()))
