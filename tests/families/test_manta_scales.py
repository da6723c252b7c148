"""Manta-LMs with classes of words: settled before words within the budget, learnt before the first step, and kept."""

from typing import Any, cast

import pytest
import torch

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, ModelError
from manta.families import scales
from manta.families.events import GenerateOptions, Request, finished
from manta.families.manta_lm import MantaLM, Split
from manta.families.model import MantaConfig
from manta.families.objectives import EmbeddingMatching, ObjectiveConfig, OwnStates, PolicyMatching
from manta.families.page import Page
from manta.families.tracing import trace_flow
from manta.hub import load, save_model
from manta.masked.coarse import Coarse
from manta.recipes import Recipe, TrainingRun
from manta.runtime import make_generator
from manta.spaces import RateController
from manta.text import MASK, NULL

from .conftest import make_lm
from .test_objectives import make_batch

PROMPTS = ["the cat", "rain fell over hills", None]


def make(kind: str) -> Any:
    """Six classes, of which the ends have the first alone."""
    lm = make_lm(kind, classes=6)
    found = 1 + torch.arange(lm.model.config.vocab_size) % 5
    found[NULL] = 0
    lm.model.class_of = found
    return lm


@pytest.fixture(scope="module", params=["latent", "embedding"])
def lm(request) -> MantaLM:
    return make(request.param)


def seen_by(lm: MantaLM, monkeypatch) -> list[torch.Tensor]:
    """The canvases that the policy is shown from now on."""
    seen, act = [], lm.model.act
    told: Any = lambda *state, cond, **given: seen.append(cond.settled) or act(*state, cond=cond, **given)  # noqa: E731
    monkeypatch.setattr(lm.model, "act", told)
    return seen


@torch.no_grad()
def test_a_class_restricts_the_words_and_changes_what_others_say(lm):
    model, v = lm.model, lm.model.config.vocab_size
    settled, mask = torch.full((2, 8), MASK), torch.ones(2, 8).bool()
    memory = model.memory(torch.randint(4, 90, (2, 3)), torch.tensor([3, 2]), torch.zeros(2, dtype=torch.long))
    state, t = torch.randn(2, 8 // model.space.rate, model.space.channels), torch.full((2,), 0.4)

    def told(canvas: torch.Tensor) -> Any:
        return model.act_beside(state, t, cond=model.condition(memory, mask, canvas))

    plain = told(settled)
    classed = settled.clone()
    classed[0, 1] = v + 4
    found = told(classed)
    logits, before = model.logits(found.aux), model.logits(plain.aux)
    assert torch.equal(logits[0, 1].isfinite(), model.class_of == 4) and logits[0, 2:].isfinite().all()
    assert not torch.allclose(logits[0, 2], before[0, 2], atol=1e-4)
    torch.testing.assert_close(logits[1], before[1])
    chosen = torch.tensor([[False, True, True] + [False] * 5, [True] + [False] * 7])
    torch.testing.assert_close(model.logits(found.aux, chosen), logits[chosen])
    if not model.space.estimates:  # the clean state is the mean of the words that are left
        chance = logits[0, 1].softmax(-1)
        torch.testing.assert_close(found.clean[0, 1], chance @ model.space.embedding)
        assert chance[model.class_of != 4].sum() == 0


def page_of(rows: list[list[int]]) -> Page:
    return Page(torch.tensor(rows), torch.ones(len(rows), len(rows[0])).bool(), 1)


def test_the_surest_classes_are_settled_and_sure_words_do_not_wait():
    """Seven words in classes 0 (ends), 1, 2 and 3; the word at place 0 is given."""
    v, none = 7, MASK
    coarse = Coarse(torch.tensor([0, 3, 1, 1, 2, 2, 2]), MASK, NULL)
    assert NULL == 0, "the first class is the ends'"
    chances = torch.tensor(
        [
            [0.1, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1],
            [0.02, 0.1, 0.4, 0.0, 0.16, 0.16, 0.16],  # the likeliest word is of class 1, the likeliest class is 2
            [0.02, 0.0, 0.95, 0.03, 0.0, 0.0, 0.0],
            [0.97, 0.0, 0.01, 0.01, 0.01, 0.0, 0.0],
            [0.02, 0.0, 0.5, 0.3, 0.1, 0.04, 0.04],
        ]
    )
    logits = chances.log()[None]
    for drawn, first in ((False, 2), (True, 1)):
        page = page_of([[5, MASK, MASK, MASK, MASK]])
        choice = torch.tensor([[2, 2, 2, NULL, 2]])
        page.settle_classes(choice, chances.gather(1, choice[0, :, None]).T, logits, 0.5, coarse, drawn=drawn)
        assert page.tokens.tolist() == [[5, 2, 2, NULL, 2]], "drafts"
        assert page.shown.tolist() == [[5, none, 2, none, v + 1]], "the surer of two classes, a word that is sure"
        assert page.settled.tolist() == [[5, MASK, 2, MASK, MASK]], "classes are no words"
        page.settle_classes(choice, chances.gather(1, choice[0, :, None]).T, logits, 0.0, coarse, drawn=drawn)
        assert page.shown.tolist() == [[5, v + first, 2, none, v + 1]], "an end settles no class"
        page.settle(choice, torch.tensor([[1.0, 0.2, 0.95, 0.97, 0.8]]), left=1 / 3)
        assert page.shown.tolist() == [[5, v + first, 2, none, 2]], "the least certain word keeps its class"
        page.forget_classes()
        assert page.shown.tolist() == [[5, none, 2, none, 2]]


@pytest.mark.parametrize("style", ["consensus", "diverse"])
def test_classes_come_before_words_and_words_are_of_their_class(lm, style, monkeypatch):
    """Of eight calls one reads the prompt; of the seven others the first three settle classes."""
    seen, v = seen_by(lm, monkeypatch), lm.model.config.vocab_size
    monkeypatch.setattr(Coarse, "__init__", _patient(Coarse.__init__))
    options = GenerateOptions(num_steps=8, style=style, temperature=1.0 if style == "diverse" else 0.0)
    (written,) = finished(lm.generate([Request(prompt="the cat", seed=3)], options))
    assert len(seen) == 7 and written.nfe == 8
    counts = [int((canvas >= v).sum()) for canvas in seen]
    assert counts[0] == 0 < counts[1] <= counts[2] <= counts[3] > counts[1], "classes settle in the first three"
    assert all(set(canvas[canvas < v].tolist()) <= {MASK, NULL} for canvas in seen[:4]), "and words do not"
    told = seen[3][0]
    places = (told >= v).nonzero()[:, 0]
    words = torch.tensor(written.tokens)
    inside = places[places < len(words)]
    assert len(inside) > 1 and torch.equal(lm.model.class_of[words[inside]], told[inside] - v)
    assert all(token < v and token != MASK for token in written.tokens)


def _patient(init: Any) -> Any:
    """A threshold that no word reaches, so that all wait for their classes."""

    def built(self: Coarse, *given: Any, **more: Any) -> None:
        init(self, *given, **more)
        self.threshold = 2.0

    return built


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("budget", [1, 2, 3, 8])
def test_every_budget_is_kept_and_every_word_written(lm, share, budget, monkeypatch):
    monkeypatch.setattr(scales, "COARSE_SHARE", share)
    seen, v = seen_by(lm, monkeypatch), lm.model.config.vocab_size
    (written,) = finished(lm.generate([Request(prompt="the cat", seed=1)], GenerateOptions(num_steps=budget)))
    assert written.nfe == budget and MASK not in written.tokens and max(written.tokens) < v
    told = any(bool((canvas >= v).any()) for canvas in seen)
    assert told == (int(share * len(seen)) > 0 and len(seen) > 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_text_is_the_same_alone_and_in_any_batch_and_keeps_what_is_given(lm, temperature, solver):
    requests = [Request(prompt=p, seed=i) for i, p in enumerate(PROMPTS)]
    requests.append(Request(prompt="the cat", infill="the cat ___{4} river", seed=7))
    if temperature == 0:
        requests.append(Request(prompt="the cat", infill="the cat sat on [[a mat near]] some river", seed=8))
    options = GenerateOptions(num_steps=10, rounds=1, temperature=temperature, solver=solver)
    together = {e.index: e for e in finished(lm.generate(requests, options))}
    for index, request in enumerate(requests):
        *drafts, alone = lm.generate([request], options)
        assert alone.tokens == together[index].tokens and alone.nfe <= 10
        assert all(token < lm.model.config.vocab_size for event in (*drafts, alone) for token in event.tokens)
    assert together[3].text.startswith("the cat") and together[3].text.endswith("river")


def test_rounds_let_words_be_of_any_class_again(monkeypatch):
    lm = make("latent")
    seen, v = seen_by(lm, monkeypatch), lm.model.config.vocab_size
    lm.splits = {13: Split(flow=6, rounds=1)}
    (written,) = finished(lm.generate([Request(prompt="the cat")], GenerateOptions(num_steps=13, style="consensus")))
    assert written.nfe == 13 and len(seen) == 11
    assert any(bool((canvas >= v).any()) for canvas in seen[:-2])
    assert all(bool((canvas < v).all()) for canvas in seen[-2:])


def test_counts_and_traces_go_with_classes(lm, monkeypatch):
    """Counts choose among the words of a class; a trace settles words at once, as observers compare words."""
    lm._count([[5, 6, 7, 8, 9, 10] * 4] * 30)
    seen, v = seen_by(lm, monkeypatch), lm.model.config.vocab_size
    for style in ("consensus", "diverse"):
        options = GenerateOptions(num_steps=8, style=style, fluency=0.5)
        (written,) = finished(lm.generate([Request(prompt="the cat", seed=2)], options))
        assert MASK not in written.tokens and max(written.tokens) < v
    assert any(bool((canvas >= v).any()) for canvas in seen)
    seen.clear()
    beginning = lm.begin([Request(prompt="the cat")], GenerateOptions())
    found = trace_flow(lm, beginning, 5)
    assert len(seen) == 5 and all(bool((canvas < v).all()) for canvas in seen)
    assert found.settled.max() < v


@pytest.mark.parametrize("stage", ["policy", "own", "embedding"])
def test_a_step_shows_classes_of_hidden_words(stage, monkeypatch):
    lm = make("embedding" if stage == "embedding" else "latent")
    config = ObjectiveConfig(blank_share=0.0, own_share=1.0, extra_cell=0.0)
    objective: Any = EmbeddingMatching(config, lm.density)
    if stage != "embedding":
        objective = PolicyMatching(config, lm.density, RateController(5.0))
    if stage == "own":
        objective = OwnStates(config, objective)
    seen, v = seen_by(lm, monkeypatch), lm.model.config.vocab_size
    batch = make_batch([9, 6, 12, 4] * 20, vocab=90)
    loss = objective(lm.model, batch, make_generator(0))
    loss.total.backward()
    assert loss.total.isfinite() and lm.model.coarse.weight.grad.abs().sum() > 0
    shown = seen[-1]
    text = torch.nn.functional.pad(batch.text, (0, shown.shape[1] - batch.text.shape[1]), value=NULL)
    classed = shown >= v
    assert 0.25 < classed.any(1).float().mean() < 0.6 and (shown == MASK).any()
    assert torch.equal(lm.model.class_of[text[classed]], shown[classed] - v)


def test_figures_of_rows_that_see_nothing_leave_classes_out(monkeypatch):
    """Every word is hidden and every class told, so that no row is left."""
    lm = make("latent")
    config = ObjectiveConfig(blank_share=0.0, all_hidden=1.0)
    objective = PolicyMatching(config, lm.density, RateController(5.0))
    batch = make_batch([9, 6, 12, 4] * 20, vocab=90)
    assert {"nats_start", "nats_end"} <= objective(lm.model, batch, make_generator(0)).parts.keys()
    monkeypatch.setattr("manta.families.objectives.by_class", lambda net, tokens, generator: tokens >= 0)
    assert not {"nats_start", "nats_end"} & objective(lm.model, batch, make_generator(0)).parts.keys()


def trained(out: Any, **more: Any) -> Any:
    recipe: dict[str, Any] = {"data": "builtin:weather", "num_examples": 300, "size": "nano", "num_steps": 4}
    recipe |= {"batch_tokens": 200, "consensus": "none", "warm_start": False, **more}
    for _ in TrainingRun(from_dict(Recipe, recipe), out, device="cpu").events():
        pass
    return load(out)


def test_classes_are_learnt_before_the_first_step_and_kept(tmp_path, capsys):
    lm = trained(tmp_path / "run", model={"classes": 12})
    found = lm.model.class_of
    assert found[NULL] == 0 and (found == 0).sum() == 1 and 8 < len(found.unique()) <= 12
    assert not torch.equal(found, torch.arange(len(found)) % 12)
    assert "12 of them, learnt from its training texts" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert main(["doctor", str(tmp_path / "run")]) == 0
    assert "classes of words                 12" in capsys.readouterr().out
    onward = {"data": "builtin:weather", "num_examples": 100, "begin_from": str(tmp_path / "run"), "num_steps": 4}
    for _ in TrainingRun(from_dict(Recipe, {**onward, "batch_tokens": 200}), tmp_path / "on", device="cpu").events():
        pass
    assert torch.equal(cast(Any, load(tmp_path / "on")).model.class_of, found)
    with pytest.raises(ConfigError, match="settles classes of words before words, and a distillation"):
        TrainingRun(from_dict(Recipe, {**onward, "distillation": {"num_steps": 2}}), tmp_path / "few", device="cpu")
    lm.model._class_of[5] = 12
    save_model(tmp_path / "wrong", lm, recipe={}, card="")
    with pytest.raises(ModelError, match="of no class"):
        load(tmp_path / "wrong")


def test_a_number_of_classes_that_cannot_be_is_refused():
    for classes, words in ((2, None), (301, 300), (-1, None)):
        with pytest.raises(ConfigError, match="classes should be 0, or from 3"):
            MantaConfig(classes=classes, vocab_size=words)
