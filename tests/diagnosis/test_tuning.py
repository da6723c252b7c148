"""Tuning a flow toward a word, and refusals."""

import pytest
import torch

from manta.diagnosis import Settings, TuningConfig, diagnose, system_of, tune
from manta.errors import ModelError, UsageError
from manta.families.events import GenerateOptions, Request

from ..families.conftest import make_lm
from ..hub.test_foreign_writing import make as make_foreign

PROMPTS = ["the cat", "some old river", "rain fell over"]
QUICK = TuningConfig(num_updates=32, num_steps=4, batch_size=32, learning_rate=1e-3, reward_scale=400.0)


def test_tuning_raises_the_reward_and_touches_the_plan_alone():
    lm, done = make_lm(), []
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    tuned = tune(lm, PROMPTS[:1], "hills", QUICK, progress=done.append)
    first, last = (sum(update.reward for update in part) / 4 for part in (done[:4], done[-4:]))
    assert last > first + 0.05 * QUICK.reward_scale
    assert done[-1].loss < 0.6 * done[0].loss
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    changed = [name for name, value in tuned.model.state_dict().items() if not torch.equal(value, before[name])]
    assert set(changed) == {"field.merge.weight", "field.merge.bias"}


def test_the_same_seed_tunes_alike():
    lm, short = make_lm(), TuningConfig(num_updates=2, num_steps=3, batch_size=4)
    tuned = [tune(lm, PROMPTS, "hills", short, seed=seed).model.state_dict() for seed in (0, 0, 1)]
    weights = [state["field.merge.weight"] for state in tuned]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_diagnosis_tells_what_tuning_did():
    settings = Settings(num_steps=3, probes=1, strengths=(4.0,), tune=2, batch_size=2)
    row = diagnose({"m": make_lm()}, PROMPTS, settings, keyword="hills").models[0].row()
    (tuned,) = [part for part in row["steering"] if part["way"] == "plan, tuned"]
    assert tuned["figures"]["met"]["n"] == len(PROMPTS)


def test_what_cannot_be_tuned_or_diagnosed_is_refused(tmp_path):
    with pytest.raises(ModelError, match="word embeddings"):
        tune(make_lm("embedding"), PROMPTS, "hills")
    with pytest.raises(UsageError, match="prompts"):
        tune(make_lm(), [], "hills")
    foreign = make_foreign(tmp_path, "llada")
    with pytest.raises(ModelError, match="follows gradients"):
        system_of(foreign, [Request(prompt="w1")], 4, GenerateOptions())
