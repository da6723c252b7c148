"""Masked models with classes of words: learnt before the first step, told to the model, and never part of a text."""

import pytest
import torch

from manta.errors import ConfigError, ModelError, UsageError
from manta.families.events import GenerateOptions, Request, finished
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.masked_objective import MaskedMatching
from manta.families.objectives import ObjectiveConfig
from manta.families.thinking import ThinkingConfig
from manta.hub import load, save_model
from manta.masked import MaskedObjectiveConfig
from manta.recipes import Recipe, TrainingRun
from manta.runtime import make_generator
from manta.text import MASK, NULL

from .conftest import SMALL, make_masked
from .test_objectives import make_batch


@pytest.fixture(scope="module")
def lm() -> MaskedLM:
    return make_masked(classes=6)


def test_a_class_restricts_the_words_and_changes_what_others_say(lm):
    model, v = lm.model, lm.model.config.vocab_size
    tokens = torch.full((2, 5), MASK)
    memory = model.memory(torch.randint(4, 90, (2, 3)), torch.tensor([3, 2]), torch.zeros(2, dtype=torch.long))
    projected, mask = model.trunk.project(memory.states, memory.mask), torch.ones(2, 5).bool()
    with torch.no_grad():
        plain = model(tokens, mask, projected)
        tokens[0, 1] = v + 4
        told = model(tokens, mask, projected)
    allowed = told[0, 1].isfinite()
    assert torch.equal(allowed, model.class_of == 4) and told[:, 2:].isfinite().all()
    assert not torch.allclose(told[0, 3], plain[0, 3], atol=1e-3)
    torch.testing.assert_close(told[1], plain[1])


@pytest.mark.parametrize("decoder", ["deferred", "confidence", "remask", "block"])
def test_a_text_is_the_same_alone_and_in_any_batch_and_holds_words(lm, decoder):
    requests = [Request(prompt=p, seed=i) for i, p in enumerate(["the cat", "rain fell over hills", None])]
    requests.append(Request(prompt="the cat", infill="the cat ___{4} river", seed=7))
    options = GenerateOptions(decoder=decoder, num_steps=9, style="consensus")
    together = {e.index: e.tokens for e in finished(lm.generate(requests, options))}
    for index, request in enumerate(requests):
        *drafts, alone = lm.generate([request], options)
        assert alone.tokens == together[index]
        assert all(token < lm.model.config.vocab_size for event in (*drafts, alone) for token in event.tokens)
        assert MASK not in alone.tokens and alone.nfe <= 9
    (held,) = finished(lm.generate([Request(prompt="the cat")], GenerateOptions(pattern="(the|a) cat+")))
    assert held.text.startswith(("the", "a"))


def test_a_step_shows_classes_of_hidden_words(lm, monkeypatch):
    seen, think = [], lm.model.think
    monkeypatch.setattr(lm.model, "think", lambda tokens, *rest: seen.append(tokens) or think(tokens, *rest))
    batch = make_batch([9, 6, 12, 4] * 20, vocab=250)
    loss = MaskedMatching(ObjectiveConfig(blank_share=0.0), MaskedObjectiveConfig())(lm.model, batch, make_generator(0))
    assert loss.total.isfinite()
    (shown,), v = seen, lm.model.config.vocab_size
    text = torch.nn.functional.pad(batch.text, (0, shown.shape[1] - batch.text.shape[1]), value=NULL)
    classed = shown >= v
    rows = classed.any(1).float().mean()
    assert 0.25 < rows < 0.55 and (shown == MASK).any()
    assert torch.equal(lm.model.class_of[text[classed]], shown[classed] - v)


def test_classes_are_learnt_before_the_first_step_and_kept(tmp_path):
    recipe = Recipe(
        data="builtin:weather",
        num_examples=300,
        family="masked",
        size="nano",
        num_steps=4,
        batch_tokens=200,
        consensus="none",
        masked=MaskedConfig(classes=12),
    )
    for _ in TrainingRun(recipe, tmp_path / "run").events():
        pass
    lm = load(tmp_path / "run")
    assert isinstance(lm, MaskedLM)
    found = lm.model.class_of
    assert found[NULL] == 0 and (found == 0).sum() == 1 and 8 < len(found.unique()) <= 12
    assert not torch.equal(found, torch.arange(len(found)) % 12)
    for wrong in (-1, 12, float("nan")):
        lm.model._class_of[5] = wrong  # pyright: ignore[reportIndexIssue]
        save_model(tmp_path / "wrong", lm, recipe={}, card="")
        with pytest.raises(ModelError, match=r"of no class|not finite"):
            load(tmp_path / "wrong")


def test_what_does_not_fit_is_refused(lm):
    with pytest.raises(UsageError, match="settles classes computes the whole text anew"):
        lm.check(GenerateOptions(decoder="block", cache="dual"))
    for classes, words in ((2, None), (301, 300), (-1, None)):
        with pytest.raises(ConfigError, match="classes should be 0, or from 3"):
            MaskedConfig(classes=classes, vocab_size=words)
    for elastic, doubts in ((True, False), (False, True)):
        with pytest.raises(ConfigError, match="neither think nor doubt"):
            MaskedConfig(classes=8, elastic=elastic, thinking=ThinkingConfig(doubts=doubts))
    with pytest.raises(UsageError, match="has no classes"):
        _ = MaskedModel(MaskedConfig(vocab_size=90, **SMALL)).class_of


def test_every_class_has_a_vector_of_its_own():
    """The first one too: a change of its row changes what is told where that class is known."""
    lm = make_masked(classes=6)
    model, v = lm.model, lm.model.config.vocab_size
    memory = model.memory(torch.randint(4, 90, (1, 3)), torch.tensor([3]), torch.zeros(1, dtype=torch.long))
    projected, mask = model.trunk.project(memory.states, memory.mask), torch.ones(1, 5).bool()
    for number in range(6):
        tokens = torch.full((1, 5), MASK)
        tokens[0, 1] = v + number
        with torch.no_grad():
            before = model(tokens, mask, projected)[0, 3].clone()
            model.coarse.weight[number] += 1.0
            after = model(tokens, mask, projected)[0, 3]
            model.coarse.weight[number] -= 1.0
        assert not torch.allclose(before, after, atol=1e-4), number
