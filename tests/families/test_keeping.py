"""What families keep of their training, what they are taught, and what becomes of it with other tokens."""

from typing import Any, cast

import pytest
import torch

from manta.autoregressive import NgramDrafter, count_ngrams
from manta.errors import ConfigError, UsageError
from manta.families.aligned import AlignedLM
from manta.families.block import BlockCausalLM
from manta.families.block_model import BlockCausalConfig, BlockCausalModel
from manta.families.decoding import chosen_decoder
from manta.families.masked import MaskedLM
from manta.families.options import read_options
from manta.families.trained import StageShares, Teaching
from manta.masked import LearnedConfig, ThresholdConfig
from manta.text import BOS, EOS, NULL, Corpus
from manta.text.classes import word_classes

from .conftest import SMALL, make_aligned, make_ar, make_lm, make_masked

TEACHING = Teaching(shares=StageShares(policy=0.5, own=0.3))
TEXTS = [[5, 6, 7, 8], [5, 6, 9], [10, 5, 6]]


class Texts(Corpus):
    """A corpus of a few texts."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, row: int) -> Any:
        return torch.tensor(self.texts[row]).numpy()

    def edges(self, index: int) -> tuple[bool, bool]:
        return True, True

    @property
    def text_tokens(self) -> int:
        return sum(map(len, self.texts))


def table_of(texts: list[list[int]], size: int) -> dict[str, torch.Tensor]:
    return dict(NgramDrafter(count_ngrams(texts, vocab_size=size, begin=BOS, end=EOS), size, BOS).table)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_model_of_one_objective_has_the_time_of_the_policy_and_its_own_states():
    block = BlockCausalModel(BlockCausalConfig(vocab_size=60, **SMALL))
    for found in (
        MaskedLM.stages(make_masked().model, TEACHING, {}),
        BlockCausalLM.stages(block, TEACHING, {}),
        AlignedLM.stages(make_aligned().model, TEACHING, {}),
    ):
        assert sum(stage.share for stage in found) == pytest.approx(0.8)
    plain, revealed = AlignedLM.stages(make_aligned().model, TEACHING, {})
    assert revealed.share == pytest.approx(3 * plain.share)
    assert (plain.comparable, revealed.comparable) == (True, False)
    objectives = [cast(Any, stage.objective) for stage in (plain, revealed)]
    assert [objective.reveal for objective in objectives] == [False, True]
    (teacher,) = make_ar().stages(make_ar().model, TEACHING, {})
    both = make_ar().stages(make_ar(draft_horizon=2).model, TEACHING, {})
    assert [stage.share / teacher.share for stage in both] == [1, 0.25]
    assert (both[1].part, both[1].answers, both[0].part, both[0].answers) == ("drafter", True, "", False)


def test_a_left_to_right_model_keeps_a_table_of_all_texts_unless_it_drafts_itself():
    lm, own = make_ar(), make_ar(draft_horizon=2)
    lm.learn_from(Texts(TEXTS))
    own.learn_from(Texts(TEXTS))
    assert own.table is None and own.parts() == {}
    assert same(lm.parts(), table_of(TEXTS, lm.model.config.vocab_size))


def test_an_aligned_model_keeps_its_teacher_with_what_drafts_its_words():
    lm, teacher = make_aligned(), make_ar()
    assert (lm.drafter, lm.likelihood, lm.estimator, lm.parts(), lm.extras()) == (None, "none", "", {}, {})
    lm.learn_from(Texts(TEXTS), None)
    lm.learn_from(Texts(TEXTS), make_masked())
    assert lm.causal is None
    with lm.endless() as endless:
        assert endless is lm
    lm.learn_from(Texts(TEXTS), teacher)
    assert lm.causal is teacher and lm.drafter is teacher.table and lm.drafter is not None
    assert lm.likelihood == "exact" and "chain rule" in lm.estimator
    with lm.endless():
        assert teacher.model.end == -1
    assert teacher.model.end == EOS
    again = AlignedLM.stored(lm.model, lm.tokenizer, lm.extras(), lm.parts())
    assert again.causal is not None and same(again.parts(), lm.parts())
    assert again.causal.model.config == teacher.model.config
    assert AlignedLM.stored(lm.model, lm.tokenizer, {}, {}).causal is None
    fewer = lm.with_vocabulary(lm.tokenizer, lambda net: net, TEXTS[:1])
    assert fewer.causal is not None and fewer.causal is not teacher
    assert same(fewer.causal.parts(), table_of(TEXTS[:1], teacher.model.config.vocab_size))
    bare = make_aligned().with_vocabulary(lm.tokenizer, lambda net: net, TEXTS)
    assert bare.causal is None and not bare.model.training


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda extras, parts: extras["causal"].update(vocab_size=7), "causal.vocab_size is 7"),
        (lambda extras, parts: parts.update({"causal.head.x": torch.ones(2)}), "do not fit each other"),
        (lambda extras, parts: parts.pop("causal.embedding.weight"), "do not fit each other"),
        (lambda extras, parts: parts.update({"causal.embedding.weight": torch.ones(2, 2).long()}), "as torch.int64"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(damage, said):
    lm = make_aligned()
    lm.causal = make_ar()
    extras, parts = lm.extras(), lm.parts()
    damage(extras, parts)
    with pytest.raises(ConfigError, match=said):
        AlignedLM.stored(lm.model, lm.tokenizer, extras, parts)


def test_a_model_of_two_scales_learns_its_classes_from_the_texts(monkeypatch):
    lm, texts = make_masked(classes=6), [[5, 6, 7, 8] * 4, [9, 10, 5, 6] * 3, [20, 21, 22] * 5]
    size = lm.model.config.vocab_size
    MaskedLM.begin_with(lm.model, Texts(texts))
    assert torch.equal(lm.model.class_of, word_classes(texts, size, 6, alone=[NULL]))
    monkeypatch.setattr("manta.families.scales.CLASSED", 2)
    MaskedLM.begin_with(lm.model, Texts(texts))
    assert torch.equal(lm.model.class_of, word_classes(texts[:2], size, 6, alone=[NULL]))
    plain = make_masked().model
    MaskedLM.begin_with(plain, Texts(texts))
    with pytest.raises(UsageError, match="no classes"):
        plain.class_of  # noqa: B018


def test_a_learned_schedule_is_the_models_own():
    options = read_options({"decoder": "learned"})
    for own in (None, ThresholdConfig()):
        with pytest.raises(UsageError, match="learned no schedule"):
            chosen_decoder(options, own)
    assert chosen_decoder(options, LearnedConfig()).kind == "learned"


def test_tokens_that_share_a_state_and_what_a_model_says_of_itself():
    lm = make_ar()
    assert lm.rate_of(lm.model) == 1
    latent = make_lm()
    assert latent.rate_of(latent.model) == 4
    count = sum(parameter.numel() for parameter in lm.model.parameters())
    assert (
        repr(lm)
        == f"<AutoregressiveLM: ar model, {count:,} parameters, up to 12 tokens of prompt and 24 of text, on cpu>"
    )
