"""Every taught loss on a toy whose answers are known in closed form, against its definition, number by number."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from manta.families.autoregressive import NextToken, log_likelihood
from manta.families.masked_objective import MaskedMatching
from manta.families.objectives import (
    EmbeddingMatching,
    ObjectiveConfig,
    OwnStates,
    PolicyMatching,
    encode,
    hide,
    known_cells,
    lay_out,
    length_cost,
    read_prompt,
)
from manta.families.prompted import Memory
from manta.families.thinking import Told
from manta.masked import MaskedObjectiveConfig
from manta.runtime import make_generator
from manta.spaces import LatentSpace, RateController, Words
from manta.text import EOS, MASK, NULL
from manta.types import Estimate, Loss

from ..bounds import binomial_bounds
from .conftest import make_ar, make_lm, make_masked
from .test_objectives import make_batch

LOGITS = torch.linspace(-1, 2, 600)
LENGTHS = torch.linspace(0, 1, 7)
MEAN, STD = 0.6, 0.5
"""Of the toy encoder, in every channel."""


def nats(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """−log softmax(logits) of each token, the same logits everywhere."""
    return math.log(sum(math.exp(value) for value in logits.tolist())) - logits[tokens]


class Toy:
    """A Manta-LM that answers with constant logits and the field 0.5 state + 0.25 self_cond, and keeps its calls."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lm = make_lm(kind)
        self.model, self.calls = self.lm.model, []
        self.vocab = self.lm.tokenizer.vocab_size
        self.said = LOGITS[: self.vocab]

        def act(state, t, *, cond, self_cond=None):
            self.calls.append((state, t, cond.settled, self_cond))
            fed = torch.zeros_like(state) if self_cond is None else self_cond
            return Estimate(0.5 * state + 0.25 * fed, Words(torch.zeros(*cond.settled.shape, 32)))

        def logits(words, where=None):
            rows = words.hidden if where is None else words.hidden[where]
            return self.said.expand(*rows.shape[:-1], -1)

        def length_logits(memory):
            return LENGTHS.expand(len(memory.states), -1)

        def posterior(tokens, mask, memory, table):
            shape = (len(tokens), tokens.shape[1] // self.model.space.rate, self.model.space.channels)
            return torch.full(shape, MEAN), torch.full(shape, STD)

        monkeypatch.setattr(self.model, "act", act)
        monkeypatch.setattr(self.model, "logits", logits)
        monkeypatch.setattr(self.model, "length_logits", length_logits)
        if isinstance(self.model.space, LatentSpace):
            monkeypatch.setattr(self.model.space, "posterior", posterior)
            monkeypatch.setattr(self.model.space, "track", lambda latents: None)


def config(**changes: Any) -> ObjectiveConfig:
    """Without blanks, bare or dropped prompts and feedback, unless said."""
    plain = {"blank_share": 0.0, "extra_cell": 0.0, "prompt_drop": 0.0, "bare_share": 0.0, "known_share": 0.0}
    flow = {
        name: changes.pop(name) for name in ("self_cond_probability", "start_share", "end_share") if name in changes
    }
    made = ObjectiveConfig(**{**plain, **changes})
    return replace(made, flow=replace(made.flow, **{"self_cond_probability": 0.0, **flow}))


TEXTS = [5, 9, 13, 20]
CELLS = torch.tensor([2, 3, 4, 6])
"""Of texts so long, four words a latent and a null at the end."""


def canvases(batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The words and canvases of a batch whose texts are as long as said."""
    mask = torch.arange(24) < 4 * CELLS[:, None]
    tokens = torch.full((4, 24), NULL)
    tokens[:, :20] = batch.text
    return tokens, mask


@pytest.mark.parametrize("known_share", [0.0, 1.0])
def test_the_policys_loss_is_its_sum_of_four_costs(monkeypatch, known_share):
    toy, batch = Toy("latent", monkeypatch), make_batch(TEXTS)
    controller = RateController(5.0, weight=0.3, gain=0.0)
    settings = config(known_share=known_share, velocity_weight=0.7, all_hidden=0.3)
    before = toy.lm.density.state_dict()["num_observed"]
    loss = PolicyMatching(settings, toy.lm.density, controller)(toy.model, batch, make_generator(2))
    ((state, t, settled, _),) = toy.calls
    tokens, mask = canvases(batch)
    hidden = (settled == MASK) & mask
    assert torch.equal(settled, torch.where(hidden, MASK, tokens))
    times = t if t.ndim == 2 else t[:, None].expand(4, 6)
    known = (~hidden & mask).view(4, 6, 4).all(-1) if known_share else torch.zeros(4, 6, dtype=torch.bool)
    assert torch.equal(known, times == 1) if known_share else True
    costs = []
    for row, cell in (mask[:, ::4] & ~known).nonzero().tolist():
        here, at = state[row, cell], float(times[row, cell])
        target = MEAN + STD**2 * at / (STD**2 * at**2 + (1 - at) ** 2) * (here - at * MEAN)
        costs.append(min(1 / max(1 - at, 1e-9) ** 2, 20.0) * float((0.5 * here - target).square().mean()))
    velocity, words = sum(costs) / len(costs), float(nats(tokens[hidden], toy.said).mean())
    length = float(nats(CELLS - 1, LENGTHS).mean())
    rate = 6 * 0.5 * (MEAN**2 + STD**2 - 1 - 2 * math.log(STD)) * float(CELLS.sum()) / 4
    expected = words + 0.7 * velocity + 0.1 * length + 0.3 * rate / float(4 * CELLS.sum() / 4)
    assert float(loss.total) == pytest.approx(expected, rel=1e-4)
    parts = {name: float(loss.parts[name]) for name in ("nats", "velocity", "length", "rate", "beta")}
    assert parts == pytest.approx(
        {"nats": words, "velocity": velocity, "length": length, "rate": rate, "beta": 0.3}, rel=1e-4
    )
    assert controller.rate == pytest.approx(rate, rel=1e-5), "the controller hears of every batch"
    assert toy.lm.density.state_dict()["num_observed"] == before + 4 - int(known.eq(mask[:, ::4]).all(1).sum())


def test_the_clean_state_is_standardised(monkeypatch):
    toy, batch = Toy("latent", monkeypatch), make_batch(TEXTS)
    space = toy.model.space
    assert isinstance(space, LatentSpace)
    space.mean.fill_(0.2)
    space.std.fill_(2.0)
    settings = config(velocity_weight=1.0, start_share=0.9999, end_share=0.0)
    loss = PolicyMatching(settings, toy.lm.density, RateController(5.0))(toy.model, batch, make_generator(2))
    ((state, t, *_),) = toy.calls
    assert not t.any(), "at t = 0 the target is the mean, and the weight 1"
    cells = canvases(batch)[1][:, ::4]
    expected = (0.5 * state - (MEAN - 0.2) / 2.0).square().mean(-1)[cells].mean()
    assert float(loss.parts["velocity"]) == pytest.approx(float(expected), rel=1e-5)


def test_measuring_teaches_neither_the_statistics_nor_the_controller(monkeypatch):
    toy, batch = Toy("latent", monkeypatch), make_batch(TEXTS)
    tracked = []
    monkeypatch.setattr(toy.model.space, "track", tracked.append)
    controller = RateController(5.0)
    objective = PolicyMatching(config(), toy.lm.density, controller)
    with torch.no_grad():
        objective(toy.model, batch, make_generator(2))
    assert controller.rate is None and not tracked
    objective(toy.model, batch, make_generator(2))
    assert controller.rate is not None
    assert [tuple(latents.shape) for latents in tracked] == [(int(CELLS.sum()), 6)]
    assert tracked[0].mean().item() == pytest.approx(MEAN, abs=0.15)
    assert tracked[0].std().item() == pytest.approx(STD, abs=0.15)


def test_the_nats_of_rows_without_a_settled_word_are_told_at_either_end(monkeypatch):
    toy, batch = Toy("latent", monkeypatch), make_batch([5, 9, 13, 20] * 10)
    settings = config(start_share=0.3, end_share=0.3, all_hidden=0.5)
    loss = PolicyMatching(settings, toy.lm.density, RateController(5.0))(toy.model, batch, make_generator(2))
    ((_, t, settled, _),) = toy.calls
    mask = settled != NULL
    for row, cells in enumerate(CELLS.repeat(10).tolist()):
        mask[row, : 4 * cells] = True
    blank = ((settled == MASK) == mask).all(1)
    text = torch.full_like(settled, NULL)
    text[:, :20] = batch.text
    for name, time in (("nats_start", 0.0), ("nats_end", 1.0)):
        rows = blank & (t == time)
        assert 0 < int(rows.sum()) < 20
        assert float(loss.parts[name]) == pytest.approx(float(nats(text, toy.said)[rows][mask[rows]].mean()), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_from_own_states_is_that_of_the_last_action(monkeypatch, seed):
    toy, batch = Toy("latent", monkeypatch), make_batch(TEXTS)
    settings = config(own_share=1.0, velocity_weight=0.7)
    ordinary = PolicyMatching(settings, toy.lm.density, RateController(5.0))
    loss = OwnStates(settings, ordinary)(toy.model, batch, make_generator(seed))
    tokens, mask = canvases(batch)
    state, t, settled, fed = toy.calls[-1]
    hidden = (settled == MASK) & mask
    assert torch.equal(settled, torch.where(hidden, MASK, tokens)), "words settle as the text has them"
    estimate = 0.5 * state + 0.25 * fed
    weight = (1 / (1 - t) ** 2).clamp_max(20.0)[:, None]
    velocity = float((weight * (estimate - MEAN).square().mean(-1))[mask[:, ::4]].mean())
    words = float(nats(tokens[hidden], toy.said).mean())
    assert float(loss.total) == pytest.approx(words + 0.7 * velocity, rel=1e-4)
    assert float(loss.parts["nats"]) == pytest.approx(words, rel=1e-4)
    assert float(loss.parts["velocity"]) == pytest.approx(velocity, rel=1e-4)


def test_own_states_follow_the_policys_own_estimates(monkeypatch):
    toy, batch = Toy("latent", monkeypatch), make_batch(TEXTS)
    settings = config(own_share=1.0)
    objective = OwnStates(settings, PolicyMatching(settings, toy.lm.density, RateController(5.0)))
    lengths = set()
    for seed in range(12):
        toy.calls.clear()
        objective(toy.model, batch, make_generator(seed))
        lengths.add(len(toy.calls))
        assert toy.calls[0][3] is None
        for (state, t, settled, fed), (state_next, t_next, settled_next, fed_next) in zip(
            toy.calls, toy.calls[1:], strict=False
        ):
            estimate = 0.5 * state + (0 if fed is None else 0.25 * fed)
            torch.testing.assert_close(fed_next, estimate)
            share = ((t_next - t) / (1 - t))[:, None, None]
            torch.testing.assert_close(state_next, state + share * (estimate - state))
            steps = t_next - t
            assert all(any(abs(step - 1 / size) < 1e-6 for size in (2, 4, 8, 16)) or step == 0 for step in steps)
            still = steps == 0
            assert torch.equal(settled[still], settled_next[still])
            assert (t[still] >= 0.5 - 1e-6).all(), "a row stays where the next time would be the end"
            length = [round(1 / float(step)) if step else 0 for step in steps]
            for row in (~still).nonzero()[:, 0].tolist():
                left = length[row] - round(float(t_next[row]) * length[row])
                most = max(1, int(4 * CELLS[row]) * left // length[row])
                before = int((settled[row] == MASK).sum())
                assert int((settled_next[row] == MASK).sum()) == min(before, most)
    assert lengths == {2, 3, 4}, "one to three actions, and the one that learns"


def test_own_states_settle_the_surest_words_first_and_nulls_last(monkeypatch):
    """Confidences rise along the row, and the surest of all would be a null at its first place."""
    toy, batch = Toy("latent", monkeypatch), make_batch([7, 7])
    batch = replace(batch, tag=torch.zeros(2, dtype=torch.long))
    sure = torch.zeros(2, 8, toy.vocab)
    sure[:, torch.arange(8), 20 + torch.arange(8)] = torch.linspace(3, 10, 8)
    sure[:, 0, NULL] = 30.0
    monkeypatch.setattr(toy.model, "logits", lambda action, where=None: sure if where is None else sure[where])
    settings = config(own_share=1.0)
    objective = OwnStates(settings, PolicyMatching(settings, toy.lm.density, RateController(5.0)), earliest=0.0)
    moved = 0
    for seed in range(20):
        toy.calls.clear()
        objective(toy.model, batch, make_generator(seed))
        for (_, _, settled, _), (_, _, after, _) in zip(toy.calls, toy.calls[1:], strict=False):
            for row in range(2):
                open_ = (settled[row] == MASK).nonzero()[:, 0].tolist()
                left = (after[row] == MASK).nonzero()[:, 0].tolist()
                assert left == open_[: len(left)], "the least sure stay open: from the left, the null with them"
                moved += len(left) < len(open_)
    assert moved > 5


def test_own_states_begin_where_they_should(monkeypatch):
    """A consensus begins at noise in half of the rows and wherever its schedule does in the others."""
    toy = Toy("latent", monkeypatch)
    settings, rows = config(own_share=1.0), 4000
    objective = OwnStates(settings, PolicyMatching(settings, toy.lm.density, RateController(5.0)))
    batch = make_batch([23] * rows)
    batch = replace(batch, tag=torch.ones(rows, dtype=torch.long))
    objective(toy.model, batch, make_generator(0))
    state, t, settled, _ = toy.calls[0]
    low, high = binomial_bounds(1000, 0.5 + 0.5 * (1 / 2 + 1 / 4 + 1 / 8 + 1 / 16) / 4)
    assert low <= int((t[:1000] == 0).sum()) <= high
    start = state[t == 0]
    assert start.square().mean().item() == pytest.approx((1 - 0.5**3) / 1.5, rel=0.05), "scales uniform in [0.5, 1]"
    deviations = start.flatten(1).std(1)
    assert deviations.min() < 0.5 and deviations.max() > 1.0
    for time in (0.0, 0.25, 0.5, 0.75):
        open_ = (settled == MASK)[t == time].float().mean().item()
        assert open_ == pytest.approx(1 - time, abs=0.03), "as many words are hidden as time is left"
    toy.calls.clear()
    objective(toy.model, replace(batch, tag=torch.zeros(rows, dtype=torch.long)), make_generator(0))
    t = toy.calls[0][1]
    firsts = {2: 0.5, 4: 0.5, 8: 3 / 8, 16: 6 / 16}
    assert float(t.min()) == pytest.approx(3 / 8) and float(t.max()) == pytest.approx(15 / 16)
    begins = [(size, k / size) for size, first in firsts.items() for k in range(round(first * size), size)]
    number = {size: sum(1 for other, _ in begins if other == size) for size in firsts}
    chance = sum(0.25 / number[size] for size, time in begins if time == 0.5)
    low, high = binomial_bounds(1000, chance)
    assert low <= int((t[:1000] == 0.5).sum()) <= high


def test_a_state_of_its_own_begins_at_the_encoders_gaussian(monkeypatch):
    toy = Toy("latent", monkeypatch)
    settings, rows = config(own_share=1.0), 2000
    objective = OwnStates(settings, PolicyMatching(settings, toy.lm.density, RateController(5.0)), earliest=0.9)
    batch = make_batch([23] * rows)
    objective(toy.model, replace(batch, tag=torch.zeros(rows, dtype=torch.long)), make_generator(0))
    state, t, *_ = toy.calls[0]
    late = state[t == 15 / 16]
    assert late.mean().item() == pytest.approx(15 / 16 * MEAN, abs=0.01)
    assert late.std().item() == pytest.approx(math.hypot(15 / 16 * STD, 1 / 16), rel=0.03)


def test_a_share_of_the_batches_is_of_own_states(monkeypatch):
    toy, batch = Toy("latent", monkeypatch), make_batch([5])
    ordinary = []

    class Ordinary(PolicyMatching):
        def __call__(self, model, batch, generator):
            ordinary.append(model)
            return Loss(torch.zeros(()), {})

    settings = config(own_share=0.3)
    objective = OwnStates(settings, Ordinary(settings, toy.lm.density, RateController(5.0)))
    objective.actions = 1
    for seed in range(400):
        objective(toy.model, batch, make_generator(seed))
    low, high = binomial_bounds(400, 0.7)
    assert low <= len(ordinary) <= high
    assert len(toy.calls) == 2 * (400 - len(ordinary))


def test_embeddings_are_taught_the_cross_entropy_of_hidden_words(monkeypatch):
    toy, batch = Toy("embedding", monkeypatch), make_batch([5, 9, 6, 6])
    monkeypatch.setattr(toy.model, "length_logits", lambda memory: torch.linspace(0, 1, 25).expand(4, -1))
    settings = config(all_hidden=0.2, end_share=0.5)
    loss = EmbeddingMatching(settings, toy.lm.density)(toy.model, batch, make_generator(3))
    ((state, t, settled, _),) = toy.calls
    mask = torch.arange(10) < torch.tensor([6, 10, 7, 7])[:, None]
    hidden = (settled == MASK) & mask
    assert torch.equal(t == 1, mask & ~hidden) and hidden.any() and (mask & ~hidden).any()
    text = torch.cat([batch.text, torch.full((4, 1), NULL)], 1)
    assert torch.equal(state[t == 1], toy.model.space.embedding[text[t == 1]])  # pyright: ignore
    expected = float(nats(text[hidden], toy.said).mean())
    length = float(nats(torch.tensor([6, 10, 7, 7]) - 1, torch.linspace(0, 1, 25)).mean())
    assert float(loss.parts["cross_entropy"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss.total) == pytest.approx(expected + 0.1 * length, rel=1e-4)


def test_the_next_token_costs_its_nats_and_the_end_with_it(monkeypatch):
    model, batch = make_ar().model, make_batch([5, 3])
    said = LOGITS[: model.embedding.weight.shape[0]]
    monkeypatch.setattr(model, "forward", lambda tokens, memory: said.expand(*tokens.shape, -1))
    rows = [torch.cat([batch.text[row, :length], torch.tensor([EOS])]) for row, length in ((0, 5), (1, 3))]
    costs = [nats(row, said) for row in rows]
    loss = NextToken()(model, batch, make_generator(0))
    assert float(loss.total) == float(loss.parts["nats"]) == pytest.approx(float(torch.cat(costs).mean()), rel=1e-5)
    torch.testing.assert_close(log_likelihood(model, batch), -torch.stack([cost.sum() for cost in costs]))


@pytest.mark.parametrize("masking", [{}, {"complementary": True}])
def test_a_masked_model_is_taught_hidden_words_and_lengths(monkeypatch, masking):
    model, batch = make_masked().model, make_batch([7, 7, 7, 7])
    said, lengths = LOGITS[: model.embedding.weight.shape[0]], torch.linspace(0, 1, model.max_cells)
    given = []

    def think(tokens, mask, memory, thought):
        given.append(tokens)
        return Told(said.expand(*tokens.shape, -1), torch.zeros(len(tokens), 0, 32), None, None)

    monkeypatch.setattr(model, "think", think)
    monkeypatch.setattr(model, "length_logits", lambda memory: lengths.expand(len(memory.states), -1))
    objective = MaskedMatching(config(), MaskedObjectiveConfig(**masking))
    loss = objective(model, batch, make_generator(1))
    (shown,) = given
    text = torch.cat([batch.text, torch.full((4, 1), NULL)], 1).repeat(len(shown) // 4, 1)
    assert float(loss.parts["nats"]) == pytest.approx(float(nats(text[shown == MASK], said).mean()), rel=1e-4)
    length = float(nats(torch.tensor([7]), lengths))
    assert float(loss.parts["length"]) == pytest.approx(length, rel=1e-5)
    blanks = MaskedMatching(config(blank_share=1.0, max_blank=3), MaskedObjectiveConfig())
    totals = [objective(model, batch, make_generator(1)).total, blanks(model, batch, make_generator(1)).total]
    assert float(totals[0]) > 0.1 * length and bool(torch.stack(totals).isfinite().all())


def test_a_masked_model_is_asked_for_the_blank_alone_where_there_is_one(monkeypatch):
    model, batch = make_masked().model, make_batch([7] * 40)
    given = []
    said = LOGITS[: model.embedding.weight.shape[0]]

    def think(tokens, mask, memory, thought):
        given.append(tokens)
        return Told(said.expand(*tokens.shape, -1), torch.zeros(len(tokens), 0, 32), None, None)

    monkeypatch.setattr(model, "think", think)
    settings = config(blank_share=1.0)
    MaskedMatching(settings, MaskedObjectiveConfig())(model, batch, make_generator(1))
    canvas = lay_out(batch, 1, settings, make_generator(1), max_cells=model.max_cells)
    assert not (given[0] == MASK)[~canvas.hole].any()
    assert (given[0] == MASK)[canvas.hole].any()


def test_prompts_are_dropped_and_left_bare_in_their_shares(monkeypatch):
    model, batch, seen = make_lm("latent").model, make_batch([3] * 50), []

    def memory(prompt, lengths, tag, encode, task):
        seen.append((lengths, encode))
        return Memory(torch.zeros(50, 1, 32), torch.ones(50, 1, dtype=torch.bool))

    monkeypatch.setattr(model, "memory", memory)
    settings = config(prompt_drop=0.2, bare_share=0.3)
    for seed in range(40):
        read_prompt(model, batch, settings, make_generator(seed))
    low, high = binomial_bounds(1000, 0.2)
    assert low <= sum(int((lengths == 0).sum()) for lengths, _ in seen[:20]) <= high
    low, high = binomial_bounds(40, 0.3)
    assert low <= sum(not encoded for _, encoded in seen) <= high
    assert all(set(lengths.tolist()) <= {0, 5} for lengths, _ in seen)
    bare = replace(batch, prompt_lengths=torch.zeros(50, dtype=torch.long))
    seen.clear()
    read_prompt(model, bare, config(prompt_drop=1.0), make_generator(0))
    assert not seen[0][0].any()


def test_blanks_and_spare_latents_come_in_their_shares():
    batch = make_batch([10] * 1000)
    settings = config(blank_share=0.15, extra_cell=0.1, max_blank=4)
    canvas = lay_out(batch, 4, settings, make_generator(0), max_cells=9)
    low, high = binomial_bounds(1000, 0.15 * (1 - 1 / 11))
    blanks = canvas.hole.any(1)
    assert low <= int(blanks.sum()) <= binomial_bounds(1000, 0.15)[1]
    low, high = binomial_bounds(1000 - int(blanks.sum()), 0.1)
    assert set(canvas.cells[~blanks].tolist()) == {3, 4}
    assert low <= int((canvas.cells[~blanks] == 4).sum()) <= high
    slots = canvas.hole & (canvas.tokens == NULL)
    assert int(slots.sum(1).max()) == 4 and int((canvas.hole & ~slots).sum(1).max()) == 4
    starts = canvas.hole[blanks].float().argmax(1)
    assert int(starts.min()) == 0 and int(starts.max()) >= 9, "a blank may stand anywhere, the end of the text included"


def test_words_are_hidden_in_their_shares():
    canvas = lay_out(make_batch([19] * 1000), 4, config(), make_generator(0), max_cells=9)
    hidden = hide(canvas, config(all_hidden=0.4), make_generator(1))
    whole = (hidden | ~canvas.mask).all(1)
    low, high = binomial_bounds(1000, 0.4 + 0.6 / 21 * 2)  # one of 21 counts by share, and none hidden asks for all
    assert low <= int(whole.sum()) <= high
    share = hidden[~whole].float().mean(1) * canvas.mask.shape[1] / canvas.mask.sum(1)[0]
    assert share.mean().item() == pytest.approx(0.5, abs=0.04)
    assert share.std().item() == pytest.approx(12**-0.5, abs=0.04), "shares are uniform"
    low, high = binomial_bounds(400, 0.25)
    mask = canvas.mask[:1]
    found = [known_cells(mask & False, mask, 4, 0.25, make_generator(seed)) for seed in range(400)]
    assert low <= sum(cells is not None for cells in found) <= high


def test_half_of_the_rows_lose_a_share_of_their_words_before_the_encoder(monkeypatch):
    lm, seen = make_lm("latent"), []
    canvas = lay_out(make_batch([19] * 400), 4, config(), make_generator(0), max_cells=9)
    memory = lm.model.memory(torch.zeros(400, 0, dtype=torch.long), torch.zeros(400).long(), torch.zeros(400).long())

    def posterior(tokens, mask, memory, table):
        seen.append(tokens)
        return torch.zeros(400, 5, 6), torch.ones(400, 5, 6)

    monkeypatch.setattr(lm.model.space, "posterior", posterior)
    encode(lm.model, canvas, memory, make_generator(0))
    encode(lm.model, canvas, memory, make_generator(0), drop=0.3)
    assert torch.equal(seen[0], canvas.tokens)
    lost = seen[1] == MASK
    assert torch.equal(seen[1][~lost], canvas.tokens[~lost])
    rows = lost.any(1)
    low, high = binomial_bounds(400, 0.5 * (1 - 0.7**20))
    assert low <= int(rows.sum()) <= high
    low, high = binomial_bounds(1000, 0.3)
    assert low <= int(lost[rows].flatten()[:1000].sum()) <= high + 10


def test_a_length_costs_its_nats_in_rows_without_a_blank(monkeypatch):
    model = make_lm("latent").model
    monkeypatch.setattr(model, "length_logits", lambda memory: LENGTHS.expand(2, -1))
    canvas = lay_out(make_batch([5, 9]), 4, config(), make_generator(0), max_cells=6)
    hole = torch.zeros_like(canvas.hole)
    memory = Memory(torch.zeros(2, 1, 32), torch.ones(2, 1, dtype=torch.bool))
    both = length_cost(model, memory, replace(canvas, hole=hole))
    assert float(both) == pytest.approx(float(nats(torch.tensor([1, 2]), LENGTHS).mean()), rel=1e-5)
    hole[0, 1] = True
    one = length_cost(model, memory, replace(canvas, hole=hole))
    assert float(one) == pytest.approx(float(nats(torch.tensor([2]), LENGTHS)), rel=1e-5)


def test_the_controller_moves_the_weight_by_its_law():
    controller = RateController(10.0, weight=0.1, gain=0.02)
    controller.observe(15.0)
    assert controller.rate == 15.0
    assert controller.weight == pytest.approx(0.1 * math.exp(0.02 * 0.5))
    controller.observe(5.0)
    assert controller.rate == pytest.approx(14.5)
    assert controller.weight == pytest.approx(0.1 * math.exp(0.02 * 0.95))
    hasty = RateController(10.0, weight=0.1, gain=3.0)
    hasty.observe(1000.0)
    assert hasty.weight == 1.0, "the error counts at most 1, the weight at most 1"
    for _ in range(200):
        hasty.observe(0.0)
    assert hasty.weight == pytest.approx(1e-4)
    slow = RateController(10.0, weight=0.1, gain=0.5)
    slow.observe(1e6)
    assert slow.weight == pytest.approx(0.1 * math.exp(0.5))


def test_the_encoder_loses_words_while_it_is_taught_and_none_where_it_serves(monkeypatch):
    toy, batch, drops = Toy("latent", monkeypatch), make_batch(TEXTS), []
    space = toy.model.space
    assert isinstance(space, LatentSpace)

    def encoding(model, canvas, memory, generator, drop=0.0):
        drops.append(drop)
        return encode(model, canvas, memory, generator, drop=drop)

    monkeypatch.setattr("manta.families.objectives.encode", encoding)
    monkeypatch.setattr(space, "config", replace(space.config, token_drop=0.3))
    policy = PolicyMatching(config(), toy.lm.density, RateController(5.0))
    policy(toy.model, batch, make_generator(2))
    OwnStates(config(own_share=1.0), policy)(toy.model, batch, make_generator(2))
    assert drops == [0.3, 0.0]


def test_a_share_of_nothing_is_nothing_even_for_a_draw_of_zero(monkeypatch):
    """A uniform draw may be 0 itself."""
    lm = make_lm("latent")
    memory = Memory(torch.zeros(3, 1, 32), torch.ones(3, 1, dtype=torch.bool))
    batch, settings, seen = make_batch([5, 9, 13]), config(all_hidden=0.0), []
    monkeypatch.setattr(
        lm.model, "memory", lambda p, lengths, t, encode, task: seen.append((lengths, encode)) or memory
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(*shape))
    canvas = lay_out(batch, 4, settings, make_generator(0), max_cells=6)
    assert not canvas.hole.any() and canvas.cells.tolist() == [2, 3, 4]
    read_prompt(lm.model, batch, settings, make_generator(0))
    ((lengths, encoded),) = seen
    assert encoded and torch.equal(lengths, batch.prompt_lengths)
    hidden = canvas.mask.clone()
    assert known_cells(hidden, canvas.mask, 4, 0.0, make_generator(0)) is None
    ordinary = PolicyMatching(settings, lm.density, RateController(5.0))
    monkeypatch.setattr(PolicyMatching, "__call__", lambda *_: Loss(torch.ones(()), {"ordinary": torch.ones(())}))
    assert "ordinary" in OwnStates(config(own_share=0.0), ordinary)(lm.model, batch, make_generator(0)).parts
