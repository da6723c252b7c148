"""A student that acts once comes to be where its teacher's two actions lead, its words too."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from manta.families.distilling import Distillation
from manta.families.manta_lm import MantaLM
from manta.families.model import MantaModel
from manta.families.objectives import ObjectiveConfig
from manta.families.page import Page
from manta.runtime import make_generator
from manta.text import MASK

from .conftest import make_lm
from .test_objectives import make_batch

CONFIG = ObjectiveConfig(blank_share=0.5)


def distillation(lm: MantaLM, teacher: MantaModel, budgets: tuple[int, ...] = (2,)) -> Distillation:
    return Distillation(CONFIG, lm.density, teacher, budgets, 0.5)


def student_of(lm: MantaLM, **changes) -> MantaModel:
    """Another net of the same weights."""
    model = MantaModel(replace(lm.model.config, **changes))
    model.load_state_dict({**model.state_dict(), **lm.model.state_dict()})
    return model


@pytest.mark.parametrize("kind", ["latent", "embedding"])
@pytest.mark.parametrize("bits", [0, 2])
def test_a_student_comes_nearer_to_its_teacher(kind, bits):
    lm = make_lm(kind, bits=bits)
    student, batch = student_of(lm), make_batch([9, 14, 20, 6])
    objective = distillation(lm, deepcopy(lm.model), (1,))

    def loss(seed: int):
        return objective(student, batch, make_generator(seed))

    with torch.no_grad():
        before = sum(float(loss(seed).total) for seed in range(4))
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for seed in range(100, 140):
        optimizer.zero_grad()
        loss(seed).total.backward()
        optimizer.step()
    with torch.no_grad():
        after = sum(float(loss(seed).total) for seed in range(4))
    assert after < 0.9 * before
    assert ("velocity" in loss(0).parts) == (kind == "latent")


def test_the_teacher_gets_no_gradient_and_the_student_all_of_it():
    lm = make_lm()
    student, teacher = student_of(lm), deepcopy(lm.model)
    distillation(lm, teacher, (4,))(student, make_batch([9, 14]), make_generator(1)).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    gradient = student.get_parameter("field.trunk.blocks.0.mlp.out.weight").grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_given_words_are_told_to_both_and_never_scored():
    lm = make_lm()
    student, seen = student_of(lm), []
    act_beside = student.act_beside

    def watched(state, t, *, cond, self_cond=None):
        seen.append(cond)
        return act_beside(state, t, cond=cond, self_cond=self_cond)

    student.act_beside = watched
    batch = make_batch([20, 20, 20, 20, 20, 20])
    loss = Distillation(replace(CONFIG, blank_share=1.0), lm.density, lm.model, (1,), 0.5)(
        student, batch, make_generator(0)
    )
    open_words = (seen[-1].settled == MASK) & seen[-1].mask
    assert loss.count == int(open_words.sum()) < int(seen[-1].mask.sum())


def test_a_flow_map_begins_as_its_source_and_is_told_how_far_a_step_goes():
    lm = make_lm()
    student = student_of(lm, spans=True)
    mapped = MantaLM(student, lm.tokenizer, lm.density)
    [text] = lm.write(["the cat"], num_steps=5)
    assert mapped.write(["the cat"], num_steps=5) == [text]
    objective = distillation(lm, lm.model, (4, 2, 1))
    spans = set()
    act_beside = student.act_beside

    def watched(state, t, *, cond, self_cond=None):
        spans.add(round(float(cond.ahead), 3))
        return act_beside(state, t, cond=cond, self_cond=self_cond)

    student.act_beside = watched
    for seed in range(12):
        objective(student, make_batch([9, 14]), make_generator(seed)).total.backward()
    assert spans == {0.25, 0.5, 1.0}
    assert student.get_parameter("field.span.mlp.2.weight").grad is not None


def test_a_flow_map_says_how_far_each_of_its_steps_goes_when_it_writes():
    lm = make_lm(spans=True)
    told = []
    act_beside = lm.model.act_beside

    def watched(state, t, *, cond, self_cond=None):
        told.append((float(t[0]), None if cond.ahead is None else float(cond.ahead)))
        return act_beside(state, t, cond=cond, self_cond=self_cond)

    lm.model.act_beside = watched
    lm.write(["the cat"], num_steps=4, style="diverse")
    grid = lm.density.grid(3).tolist()
    for (t, ahead), begin, end in zip(told, grid, grid[1:], strict=False):
        assert t == pytest.approx(begin) and ahead == pytest.approx(end - begin)


def test_a_progressive_student_flows_in_its_own_calls_and_then_reads():
    lm = make_lm(flow_calls=1)
    times = []
    act_beside = lm.model.act_beside

    def watched(state, t, *, cond, self_cond=None):
        times.append(float(t[0]))
        return act_beside(state, t, cond=cond, self_cond=self_cond)

    lm.model.act_beside = watched
    lm.write(["the cat"], num_steps=4, style="diverse")
    assert times == [0.0, 1.0, 1.0]


def test_a_batch_without_an_open_place_costs_nothing_of_words(monkeypatch):
    lm = make_lm()
    monkeypatch.setattr(Page, "ask_again", lambda page, share: setattr(page, "asked", torch.zeros_like(page.asked)))
    losses = [
        distillation(lm, lm.model, (4,))(lm.model, make_batch([9, 14]), make_generator(seed)) for seed in range(8)
    ]
    assert any(loss.count == 0 and loss.parts["nats"] == 0 for loss in losses)
    assert all(bool(loss.total.isfinite()) for loss in losses)
