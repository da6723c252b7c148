"""Models that tell tasks apart: who learns what, that merging gives a task back, and that no row disturbs another."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from manta.config import from_dict, to_dict
from manta.errors import ConfigError, RequestError, UsageError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, NextToken
from manta.families.batching import to_batch
from manta.families.events import Request, finished
from manta.families.masked import MaskedLM
from manta.families.masked_objective import MaskedMatching, bound
from manta.families.objectives import ObjectiveConfig
from manta.families.options import read_options
from manta.hub import load_writer, save_model
from manta.masked import MaskedObjectiveConfig
from manta.nets.modulated import ModulationConfig, task_maps
from manta.runtime import make_generator

from .conftest import make_ar, make_lm, make_masked

NAMES = ("continue", "fill", "shorten")
KINDS = ("none", "low_rank", "full", "film")
MAKERS = {"ar": make_ar, "masked": make_masked}
PROMPTS = ["the cat sat", "a mat near", "", "old river while rain", "hills and"]
TEXTS = ["on a mat", "the cat sat on", "rain fell over", "it again", "nobody spoke of it"]


def tasked(family: str = "ar", kind: Any = "low_rank"):
    return MAKERS[family](modulation=ModulationConfig(kind=kind), tasks=NAMES)


def batch(lm, tasks):
    found = to_batch([lm.tokenizer.encode(p) for p in PROMPTS], [lm.tokenizer.encode(t) for t in TEXTS])
    return replace(found, task=None if tasks is None else torch.tensor(tasks))


def loss(lm, rows, seed=0) -> torch.Tensor:
    layout = ObjectiveConfig()
    objective = NextToken() if isinstance(lm, AutoregressiveLM) else MaskedMatching(layout, MaskedObjectiveConfig())
    return objective(lm.model, rows, make_generator(seed)).total


def values(lm, rows) -> torch.Tensor:
    if isinstance(lm, AutoregressiveLM):
        return lm.log_likelihood(rows).value
    assert isinstance(lm, MaskedLM)
    return bound(lm.model, rows, [make_generator(i) for i in range(len(rows))], num_samples=4).nats


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_model_of_one_task_tells_of_its_rows_what_the_whole_one_does_of_a_mixed_batch(family, kind):
    lm, order = tasked(family, kind), [0, 2, 1, 0, 2]
    mixed = values(lm, batch(lm, order))
    for number, name in enumerate(NAMES):
        alone = lm.of_task(name)
        assert not list(task_maps(alone.model)) and not alone.tasks and alone.model.config.modulation is None
        rows = [row for row, task in enumerate(order) if task == number]
        torch.testing.assert_close(values(alone, batch(alone, None))[rows], mixed[rows], rtol=1e-5, atol=1e-5)
    others = values(lm, batch(lm, [2, 0, 0, 1, 1]))
    assert (others - mixed).abs().min() > 1e-3


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("kind", ["low_rank", "full", "film"])
def test_a_step_on_one_task_leaves_what_others_have_of_their_own_as_it_is_bit_for_bit(family, kind):
    lm = tasked(family, kind)
    own = [parameter for _, part in task_maps(lm.model) for parameter in part.own]
    heading = lm.model.memory_encoder.heading.weight
    before, headings = [p.detach().clone() for p in own], heading.detach().clone()
    loss(lm, batch(lm, [1] * 5)).backward()
    torch.optim.SGD(lm.model.parameters(), 0.1).step()
    assert own and any(not torch.equal(now[1], then[1]) for now, then in zip(own, before, strict=True))
    for now, then in zip(own, before, strict=True):
        assert torch.equal(now[[0, 2]], then[[0, 2]])
    assert torch.equal(heading[:3], headings[:3]) and torch.equal(heading[6:], headings[6:])
    assert not torch.equal(heading[3:6], headings[3:6])


@pytest.mark.parametrize("family", MAKERS)
def test_without_tasks_nets_and_losses_are_those_of_before_to_the_last_bit(family):
    plain = MAKERS[family]()
    fresh = MAKERS[family](modulation=ModulationConfig(kind="full"), tasks=("only",))
    with torch.no_grad():  # a fresh change is none, and one task has one heading
        for _, part in task_maps(fresh.model):
            for parameter in part.own:
                parameter.zero_()
        theirs = plain.model.state_dict()
        own = {name.replace(".base.", "."): value for name, value in fresh.model.state_dict().items()}
        for name, value in theirs.items():
            own[name].copy_(value)
    assert set(theirs) == {name for name in own if not name.endswith(".change")}
    first, second = loss(plain, batch(plain, None)), loss(fresh, batch(fresh, [0] * 5))
    assert torch.equal(first, second) and torch.equal(first, loss(plain, batch(plain, [0] * 5)))


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"choose": 2, "temperature": 1.0}])
def test_a_text_is_the_same_alone_and_beside_texts_of_other_tasks(family, options):
    lm, how = tasked(family), read_options(options)
    tasks = ["fill", "shorten", "fill", "continue", "shorten"]
    asked = [Request(prompt=p, task=t, seed=i) for i, (p, t) in enumerate(zip(PROMPTS, tasks, strict=True))]
    together = {event.index: event.tokens for event in finished(lm.generate(asked, how))}
    for index, request in enumerate(asked):
        (alone,) = finished(lm.generate([request], how))
        (plain,) = finished(lm.of_task(str(request.task)).generate([replace(request, task=None)], how))
        assert alone.tokens == together[index] == plain.tokens
    assert sorted(together) == list(range(5))


@pytest.mark.parametrize("times", [1, 3])
@torch.no_grad()
def test_rows_that_come_several_times_over_keep_their_tasks(times):
    lm = tasked("masked")
    rows = batch(lm, [0, 2, 1, 0, 2])
    model, mask = lm.model, torch.ones(5, 16, dtype=torch.bool)
    tokens = torch.randint(20, 60, (5, 16), generator=make_generator(0))
    memory = model.memory(rows.prompt, rows.prompt_lengths, rows.tag, task=rows.task)
    once = model(tokens, mask, model.projected(model.trunk, memory))
    several = model.projected(model.trunk, memory.repeat(times))
    found = model(tokens.repeat(times, 1), mask.repeat(times, 1), several)
    torch.testing.assert_close(found, once.repeat(times, 1, 1), rtol=1e-5, atol=1e-5)
    config = MaskedObjectiveConfig(copies=times)
    MaskedMatching(ObjectiveConfig(), config)(model, rows, make_generator(0))
    assert rows.task is not None and torch.equal(model.tasks.rows, rows.task.repeat(config.times))


def test_drafted_words_change_no_text():
    lm = tasked()
    lm._count([lm.tokenizer.encode(text) for text in TEXTS])
    request = Request(prompt=PROMPTS[0], task="shorten")
    texts = [next(finished(lm.generate([request], read_options({"decoder": d})))) for d in ("sequential", "verified")]
    assert texts[0].tokens == texts[1].tokens


def test_another_task_writes_another_text():
    lm = tasked()
    assert len({lm.write("the cat sat", task=name) for name in NAMES}) > 1


def test_a_request_says_which_of_the_tasks_it_is_for():
    lm = tasked()
    events = list(lm.generate([Request(), Request(task="translate"), Request(task="fill")]))
    told = {event.index: str(event.error) for event in events if event.error is not None}
    assert sorted(told) == [0, 1] and all("continue, fill, shorten" in line for line in told.values())
    assert "translate" in told[1]
    for plain in (make_ar(), make_lm()):
        with pytest.raises(RequestError, match="no tasks"):
            plain.write("the cat", task="fill")


def test_what_knows_of_no_tasks_is_refused_and_never_answered_by_chance():
    lm = tasked()
    with pytest.raises(UsageError, match="export"):
        lm.begin([Request(prompt="the cat")], read_options({}))
    with pytest.raises(UsageError, match="continue, fill, shorten"):
        lm.log_likelihood(batch(lm, None))
    with pytest.raises(RequestError):
        lm.of_task("translate")


def test_what_is_kept_of_a_task_follows_the_weights():
    lm = tasked()
    first = lm.of_task("fill")
    assert lm.of_task("fill") is first
    with torch.no_grad():
        lm.model.memory_encoder.heading.weight.mul_(2)
    second = lm.of_task("fill")
    assert second is not first
    heading = lm.model.memory_encoder.heading.weight
    assert torch.equal(second.model.memory_encoder.heading.weight, heading[3:6])


def test_a_model_with_tasks_is_stored_and_read_back(tmp_path):
    lm = tasked()
    save_model(tmp_path / "model", lm, recipe={}, card="", dtype=torch.float32)
    again = load_writer(str(tmp_path / "model"), device="cpu")
    assert again.tasks == NAMES
    assert [again.write(PROMPTS[0], task=name) for name in NAMES] == [lm.write(PROMPTS[0], task=name) for name in NAMES]
    save_model(tmp_path / "one", lm.of_task("fill"), recipe={}, card="", dtype=torch.float32)
    assert load_writer(str(tmp_path / "one"), device="cpu").write(PROMPTS[0]) == lm.write(PROMPTS[0], task="fill")


def test_shapes_that_cannot_be_are_refused():
    modulation = ModulationConfig()
    wrongs: tuple[dict[str, Any], ...] = (
        {"tasks": ("a",)},
        {"modulation": modulation, "tasks": ("a", "a")},
        {"modulation": modulation, "tasks": (" ",)},
        {"modulation": ModulationConfig(frozen=True)},
        {"modulation": modulation, "draft_horizon": 4},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            AutoregressiveConfig(**wrong)
    config = AutoregressiveConfig(modulation=modulation, tasks=NAMES)
    assert from_dict(AutoregressiveConfig, to_dict(config)) == config


def test_a_model_of_a_task_follows_what_it_was_made_of():
    lm = tasked()
    first = lm.of_task("fill")
    assert lm.of_task("fill") is first
    lm.model.to(torch.float64)
    assert next(lm.of_task("fill").model.parameters()).dtype == torch.float64
