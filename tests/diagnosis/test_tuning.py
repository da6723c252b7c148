"""Tuning a flow toward a word, and refusals."""

import pytest
import torch

from manta.diagnosis import Settings, TuningConfig, diagnose, system_of, tune
from manta.errors import ModelError, UsageError
from manta.families.events import GenerateOptions, Request

from ..families.conftest import make_lm
from ..hub.test_foreign_writing import make as make_foreign

PROMPTS = ["the cat", "some old river", "rain fell over"]
QUICK = TuningConfig(num_updates=12, num_steps=4, batch_size=8, learning_rate=0.02, reward_scale=4.0)


def test_tuning_raises_the_reward_and_touches_the_plan_alone():
    lm, rewards = make_lm(), []
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    tuned = tune(lm, PROMPTS, "hills", QUICK, progress=lambda done: rewards.append(done.reward))
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    changed = [name for name, value in tuned.model.state_dict().items() if not torch.equal(value, before[name])]
    assert set(changed) == {"field.merge.weight", "field.merge.bias"}


def test_the_same_seed_tunes_alike():
    lm, short = make_lm(), TuningConfig(num_updates=2, num_steps=3, batch_size=4)
    weights = [tune(lm, PROMPTS, "hills", short, seed=seed).model.field.merge.weight for seed in (0, 0, 1)]
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
