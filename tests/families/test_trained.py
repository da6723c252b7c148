"""What a family says of its training and of its folder: stages, what is stored, likelihoods."""

from typing import Any

import pytest
import torch

from manta.errors import ConfigError, UsageError
from manta.families.autoregressive import AutoregressiveLM, NextToken
from manta.families.events import GenerateOptions, Request, finished
from manta.families.manta_lm import MantaLM, Split
from manta.families.masked import MaskedLM
from manta.families.masked_objective import MaskedMatching, bound
from manta.families.objectives import EmbeddingMatching, ObjectiveConfig, OwnStates, PolicyMatching
from manta.families.trained import StageShares, Teaching
from manta.masked import DECODERS, MaskedObjectiveConfig
from manta.runtime import make_generator
from manta.spaces import RateController
from manta.text import MASK

from .conftest import make_ar, make_lm, make_masked
from .test_objectives import make_batch


def teaching(policy: float = 3.0, own: float = 1.0) -> Teaching:
    objective = ObjectiveConfig(levels=2)
    masking = MaskedObjectiveConfig(complementary=True)
    return Teaching(objective=objective, masking=masking, shares=StageShares(policy=policy, own=own))


def test_a_latent_policy_is_taught_in_data_and_then_slower_in_its_own_states():
    measured: dict[str, Any] = {}
    taught = MantaLM.stages(make_lm("latent").model, teaching(), measured)
    assert [(stage.name, stage.share, stage.pace) for stage in taught] == [("policy", 3.0, 1.0), ("own", 1.0, 0.5)]
    policy, own = (stage.objective for stage in taught)
    assert isinstance(policy, PolicyMatching) and isinstance(own, OwnStates)
    assert own.ordinary is policy and own.config is policy.config and policy.config.levels == 2
    assert policy.density is measured["density"] and policy.controller is measured["controller"]
    assert isinstance(policy.controller, RateController)
    (alone,) = MantaLM.stages(make_lm("latent").model, teaching(own=0.0), {})
    assert (alone.name, alone.share) == ("policy", 3.0)


def test_a_space_without_an_encoder_and_the_other_families_have_one_stage_of_the_whole_time():
    measured: dict[str, Any] = {}
    (policy,) = MantaLM.stages(make_lm("embedding").model, teaching(), measured)
    assert (policy.name, policy.share, policy.pace) == ("policy", 4.0, 1.0)
    assert isinstance(policy.objective, EmbeddingMatching) and set(measured) == {"density"}
    (masked,) = MaskedLM.stages(make_masked().model, teaching(), measured)
    assert (masked.name, masked.share, masked.pace) == ("masked", 4.0, 1.0)
    assert isinstance(masked.objective, MaskedMatching)
    assert masked.objective.layout.levels == 2 and masked.objective.config.complementary
    (teacher,) = AutoregressiveLM.stages(make_ar().model, teaching(), measured)
    assert (teacher.name, teacher.pace) == ("teacher", 1.0) and isinstance(teacher.objective, NextToken)


def test_a_manta_lm_comes_back_with_its_splits_and_its_density():
    lm = make_lm("latent")
    lm.splits = {8: Split(flow=5, silent=2), 4: Split(flow=3, rounds=1, refine=1)}
    lm.density.observe(torch.linspace(0, 1, 64), torch.linspace(3, 0, 64))
    stored = lm.extras()
    assert list(stored["splits"]) == ["4", "8"]
    back = MantaLM.stored(lm.model, lm.tokenizer, stored, {})
    assert back.splits == lm.splits
    torch.testing.assert_close(back.density.grid(5), lm.density.grid(5))
    assert MantaLM.stored(lm.model, lm.tokenizer, {"time_density": stored["time_density"]}, {}).splits == {}
    after = MantaLM.after(lm.model, lm.tokenizer, {"density": lm.density})
    assert after.density is lm.density and not after.model.training


def test_a_masked_model_comes_back_with_its_decoder():
    lm = make_masked()
    assert lm.extras() == {} and MaskedLM.stored(lm.model, lm.tokenizer, {}, {}).decoder is None
    lm.decoder = DECODERS["block"](threshold=0.7)
    assert MaskedLM.stored(lm.model, lm.tokenizer, lm.extras(), {}).decoder == lm.decoder


def test_a_masked_log_likelihood_is_the_bound_of_the_words_and_the_nats_of_their_number():
    lm, batch = make_masked(), make_batch([5, 3], vocab=300)

    def generators() -> list[torch.Generator]:
        return [make_generator(row) for row in range(2)]

    found = lm.log_likelihood(batch, generators(), num_samples=7)
    words = bound(lm.model, batch, generators(), num_samples=7)
    with torch.no_grad():
        memory = lm.model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
        length = lm.model.length_logits(memory).log_softmax(-1)[torch.arange(2), torch.tensor([5, 3])]
    torch.testing.assert_close(found.value, length - words.nats)
    assert found.kind == "bound"
    torch.testing.assert_close(found.standard_error, words.standard_error)


def test_a_flow_has_no_log_likelihood_and_says_so():
    with pytest.raises(UsageError, match="no sound bound"):
        make_lm().log_likelihood(make_batch([5]))


def test_without_an_end_a_text_has_its_full_length_and_the_end_comes_back():
    lm = make_ar()
    end = lm.model.end
    with torch.no_grad():
        lm.model.embedding.weight[end] *= 50

    def length() -> int:
        (done,) = finished(lm.generate([Request(seed=1)], GenerateOptions(temperature=1.0)))
        return len(done.tokens)

    with pytest.raises(ConfigError, match="stop"), lm.endless() as endless:
        assert endless is lm and length() == lm.capacity == 24
        raise ConfigError("stop")
    assert lm.model.end == end and length() < 24


def test_a_left_to_right_text_begins_with_all_its_room_open():
    lm = make_ar()
    start = lm.begin([Request(prompt="the cat", seed=3), Request()], GenerateOptions())
    assert start.tokens.shape == start.mask.shape == (2, lm.capacity)
    assert bool((start.tokens == MASK).all()) and bool(start.mask.all())
    assert [source.initial_seed() for source in start.generators] == [3, 0]
