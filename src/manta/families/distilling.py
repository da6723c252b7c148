"""What a Manta-LM is taught that is to write in few calls: to be, after one action, where two have led another."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from manta.families.model import MantaModel
from manta.families.objectives import ObjectiveConfig, lay_out
from manta.families.page import Page
from manta.flow import landing_target
from manta.flow.adaptive import code_of
from manta.flow.time_density import TimeDensity
from manta.nets.vector_field import Condition
from manta.step import deciding
from manta.text import MASK, Batch
from manta.types import Estimate, Loss

CONSENSUS = 1
"""Tag of texts in that style, whose noise is smaller."""


class Distillation:
    """One action does what two of a teacher's did: it lands in their state, and tells the words as they left them.

    A batch is at one step of one budget. It begins at noise, not at a text: the student's own actions lead to where the
    step begins, words settling as in writing, and the teacher takes the two halves of the step from there.

        target      landing_target(state, t, t_next, what the teacher reached)
        words       a word that settled between the halves, for certain; the teacher's second belief elsewhere
        loss        cross-entropy of the open words + velocity_weight · min(1/(1 − t)², cap) · |clean − target|²

    Of the texts only prompts, lengths, and what stands around blanks are read.

    Args:
        config: shares and weights.
        density: whose quantiles are the grids.
        teacher: acts twice in a step of the largest budget; frozen. In smaller ones the student is its own teacher.
        budgets: actions of a text, each twice the one before or half of it.
        consensus_rows: share of the texts in `consensus` style.

    Source: Salimans and Ho, arXiv 2202.00512, for the flow; several budgets at once, Frans et al., arXiv 2410.12557.
        That words settle between the halves is ours.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        density: TimeDensity,
        teacher: MantaModel,
        budgets: Sequence[int],
        consensus_rows: float,
    ) -> None:
        self.config, self.density, self.teacher = config, density, teacher
        self.budgets, self.consensus_rows = tuple(budgets), consensus_rows

    def __call__(self, model: MantaModel, batch: Batch, generator: torch.Generator) -> Loss:
        """Loss with parts nats (a token, of the teacher's beliefs too) and velocity."""
        chosen = deciding(generator)
        budget = self.budgets[int(torch.randint(len(self.budgets), (), generator=chosen))]
        step = int(torch.randint(budget, (), generator=chosen))
        teacher = self.teacher if budget == max(self.budgets) else model
        grid = self.density.grid(2 * budget).float().to(batch.text.device)
        # 1. Prompts, canvases with some blanks, and noise.
        canvas = lay_out(batch, model.space.rate, self.config, generator, max_cells=model.max_cells)
        draws = torch.rand(2, len(batch), generator=generator).to(grid.device)
        consensus = draws[0] < self.consensus_rows
        batch = replace(batch, tag=torch.where(consensus, CONSENSUS, 0))
        hidden = torch.where(canvas.hole.any(1, keepdim=True), canvas.hole, canvas.mask)
        page = Page(canvas.tokens.masked_fill(hidden, MASK), canvas.mask, model.space.rate)
        shape = len(batch), page.num_cells, model.space.channels
        scale = torch.where(consensus, 0.5 + 0.5 * draws[1], 1.0)[:, None, None]
        state = scale * torch.randn(shape, generator=generator).to(grid.device)
        # 2. What the student is told; its code is drawn as its prompt lets expect.
        cond = told(model, batch, page, None, generator)
        with torch.no_grad():
            # 3. The student's way to the step, then the teacher's two halves of it.
            fed = None
            for k in range(step):
                state, estimate = act(model, cond, page, state, grid[2 * k : 2 * k + 3 : 2], fed)
                settle(model, page, estimate, left=1 - (k + 1) / budget)
                fed = estimate.clean
            begun, settled, asked = state, page.settled, page.asked
            theirs = cond if teacher is model else told(teacher, batch, page, cond.code, generator)
            reached, first, chances = state, fed, torch.empty(0)
            for half in range(2):
                k = 2 * step + half
                reached, estimate = act(teacher, theirs, page, reached, grid[k : k + 2], first)
                between = asked & ~page.asked
                chances = settle(teacher, page, estimate, left=1 - (k + 1) / (2 * budget))
                first = estimate.clean
            certain = F.one_hot(page.tokens, chances.shape[-1]).to(chances)
            words = torch.where(between[..., None], certain, chances)[asked]
            target = landing_target(begun, grid[2 * step], grid[2 * step + 2], reached)
        # 4. The student's one action.
        span = grid[2 * step : 2 * step + 3 : 2]
        seen = replace(cond, settled=settled, ahead=span.diff())
        action = model.act_beside(begun, span[:1], cond=seen, self_cond=fed)
        nats = -(words * model.logits(action.aux, asked).log_softmax(-1)).sum() / asked.sum().clamp_min(1)
        total, parts = nats, {"nats": nats.detach()}
        if model.space.estimates:
            stiffness = (1 - span[0]).square().clamp_min(1 / self.config.flow.weight_cap).reciprocal()
            error = (action.clean - target).square().mean(-1)
            velocity = stiffness * error[page.mask[:, :: model.space.rate]].mean()
            total, parts["velocity"] = total + self.config.velocity_weight * velocity, velocity.detach()
        return Loss(total, parts, int(asked.sum()))


def told(
    model: MantaModel, batch: Batch, page: Page, code: Float[Tensor, "b k"] | None, generator: torch.Generator
) -> Condition:
    """What a policy is told of a batch: prompt and canvas, and a code, drawn unless it is given."""
    memory = model.memory(batch.prompt, batch.prompt_lengths, batch.tag, task=batch.task)
    if model.config.bits and code is None:
        chances = model.code_logits(memory).softmax(-1).detach().cpu()
        code = code_of(torch.multinomial(chances, 1, generator=generator)[:, 0], model.config.bits).to(page.mask.device)
    return model.condition(memory, page.mask, code=code)


def act(
    model: MantaModel,
    cond: Condition,
    page: Page,
    state: Float[Tensor, "b m c"],
    span: Float[Tensor, "2"],
    self_cond: Float[Tensor, "b m c"] | None,
) -> tuple[Float[Tensor, "b m c"], Estimate]:
    """One action, and Euler's step on it from the first time of a span to the second."""
    seen = replace(cond, settled=page.settled, ahead=span.diff())
    action = model.act_beside(state, span[:1], cond=seen, self_cond=self_cond)
    return torch.lerp(state, action.clean, (span[1] - span[0]) / (1 - span[0])), action


def settle(model: MantaModel, page: Page, action: Estimate, left: float) -> Float[Tensor, "b n v"]:
    """Settle the likeliest words as writing does; returns the chances of all."""
    logits = model.logits(action.aux)
    logits[..., MASK] = -torch.inf
    chances = logits.softmax(-1)
    chance, choice = chances.max(-1)
    page.settle(choice, chance, left)
    return chances
