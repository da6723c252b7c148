"""Masked models with an elastic canvas: texts of their own length, blanks that grow, and what a request may ask."""

import pytest
import torch

from manta.errors import ConfigError, UsageError
from manta.families import masked
from manta.families.canvas import parse_template
from manta.families.events import GenerateOptions, Request, finished
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.masked_objective import MaskedMatching, bound
from manta.families.objectives import ObjectiveConfig
from manta.families.options import read_options
from manta.families.thinking import ThinkingConfig
from manta.hub import load
from manta.hub.folder import save_model
from manta.masked import MaskedObjectiveConfig
from manta.runtime import make_generator
from manta.text import MASK, NULL

from .conftest import SMALL, make_masked
from .test_objectives import make_batch


@pytest.fixture(scope="module")
def lm() -> MaskedLM:
    made = make_masked(elastic=True)
    with torch.no_grad():  # growing is about as likely as the likeliest word
        assert made.model.grow is not None
        made.model.grow.bias.add_(6)
    return made


def requests() -> list[Request]:
    asked = [Request(prompt=p, seed=i) for i, p in enumerate(["the cat", "rain fell over quiet hills", None])]
    asked.append(Request(prompt="the cat", infill="the cat ___ river", seed=7))
    return [*asked, Request(infill="some ___{3} fell ___{2} hills", seed=8)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("style", ["consensus", "diverse"])
@pytest.mark.parametrize("decoder", ["deferred", "rounds", "confidence", "first_hitting", "remask"])
def test_a_text_is_the_same_alone_and_in_any_batch(lm, decoder, style, temperature):
    how = {"decoder": "deferred", "rounds": 2} if decoder == "rounds" else {"decoder": decoder}
    options = read_options({**how, "num_steps": 14, "style": style, "temperature": temperature})
    together = {e.index: e for e in finished(lm.generate(requests(), options))}
    for index, request in enumerate(requests()):
        *drafts, alone = lm.generate([request], options)
        assert (alone.tokens, alone.nfe, alone.text) == tuple(getattr(together[index], n) for n in TOLD)
        assert MASK not in alone.tokens and alone.nfe <= 14 and len(alone.tokens) <= lm.model.max_cells
        if index == 3:
            assert alone.text.startswith("the cat") and alone.text.endswith(" river")
            assert all(d.text.startswith("the cat") and d.text.endswith(" river") for d in drafts)


TOLD = ("tokens", "nfe", "text")


def test_canvases_grow_and_a_blank_of_a_stated_size_does_not(lm, monkeypatch):
    monkeypatch.setattr(masked, "ELASTIC_START", 0.3)
    options = GenerateOptions(num_steps=20, decoder="confidence")
    drafts = list(lm.generate([Request(prompt="the cat", seed=1)], GenerateOptions(num_steps=20, style="consensus")))
    lengths = [len(event.tokens) for event in drafts]
    assert max(lengths) > lengths[0] and lengths[-1] <= lm.model.max_cells
    for infill, most in (("the cat ___ river", 30), ("the cat ___{3} river", 3)):
        template = parse_template(infill, lm.tokenizer, rate=1, max_cells=lm.model.max_cells)
        (event,) = finished(lm.generate([Request(infill=infill)], options))
        given = int((template.tokens != MASK).sum())
        assert len(event.tokens) - given <= most
        if most > 8:
            assert len(event.tokens) - given > 8, "more than the usual room"


def test_a_template_tells_where_places_have_come_from(lm):
    template = parse_template("the ___{2} cat ___ sat", lm.tokenizer, rate=1, max_cells=25)
    blanks = (template.tokens == MASK).nonzero()[:, 0].tolist()
    assert template.stated.nonzero()[:, 0].tolist() == blanks[:2]
    tokens, origin = [], []
    for place, token in enumerate(template.tokens.tolist()):
        told = {blanks[0]: " rain rain rain", blanks[2]: " old mat"}.get(place)
        words = lm.tokenizer.encode(told, start=False) if told else [NULL if place in blanks else token]
        tokens += words
        origin += [place] * len(words)
    assert template.text(tokens, lm.tokenizer, origin) == "the rain rain rain cat old mat sat"


def test_what_does_not_fit_is_refused(lm):
    with pytest.raises(UsageError, match="elastic canvas move; leave `cache` out"):
        lm.check(GenerateOptions(decoder="block", cache="dual"))
    with pytest.raises(ConfigError, match="thinking and doubting"):
        MaskedConfig(elastic=True, thinking=ThinkingConfig(carry=True))
    (event,) = finished(lm.generate([Request(prompt="the cat")], GenerateOptions(pattern="(the|a) cat+")))
    assert event.text.startswith(("the", "a")), "what is held to a pattern is written on a canvas that stays"


def test_a_folder_keeps_it_and_the_bound_asks_for_words_alone(lm, tmp_path):
    save_model(tmp_path / "model", lm, recipe={}, card="", dtype=torch.float32)
    again = load(tmp_path / "model", device="cpu")
    assert isinstance(again, MaskedLM) and again.model.config.elastic
    options = GenerateOptions(num_steps=9)
    one, two = ([e.tokens for e in finished(each.generate(requests(), options))] for each in (lm, again))
    assert one == two
    batch = make_batch([6, 4], vocab=200)
    told = bound(lm.model, batch, [make_generator(i) for i in range(2)], num_samples=4)
    assert told.nats.isfinite().all()


def test_growing_is_learnt_where_places_stand_for_several_words():
    torch.manual_seed(0)
    model = MaskedModel(MaskedConfig(vocab_size=300, absolute_places=True, elastic=True, **SMALL))
    objective = MaskedMatching(ObjectiveConfig(), MaskedObjectiveConfig(complementary=True))
    loss = objective(model, make_batch([9, 6, 12, 4], vocab=300), make_generator(0))
    loss.total.backward()
    assert model.grow is not None and model.grow.weight.grad is not None
    assert model.grow.weight.grad.abs().sum() > 0 and loss.total.isfinite()
