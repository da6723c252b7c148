"""From models to figures, verdicts and a page."""

import json
import math

import pytest
import torch

from manta.diagnosis import Diagnosis, Figure, Measured, ModelDiagnosis, Settings, diagnose, render, verdicts
from manta.diagnosis.judging import oracle_of
from manta.diagnosis.page import _shown
from manta.diagnosis.results import on_common_times, thirds
from manta.diagnosis.steering import choose_keyword
from manta.errors import UsageError

from ..families.conftest import make_aligned, make_ar, make_block, make_lm, make_masked

PROMPTS = ["the cat", "some old river", "rain fell over"]
QUICK = Settings(num_steps=3, probes=1, strengths=(4.0,))


def test_a_figure_leaves_out_what_is_absent():
    figure = Figure((1.0, math.nan, 3.0))
    assert figure.mean == 2.0
    assert figure.spread == pytest.approx(math.sqrt(2))
    assert figure.row() == {"mean": 2.0, "spread": pytest.approx(math.sqrt(2)), "n": 2, "values": [1.0, None, 3.0]}
    assert Figure((math.nan, math.nan)).row()["mean"] is None


def test_the_page_tells_a_mean_with_its_interval_over_prompts():
    assert _shown(Figure((1.0, 1.0, 1.0))) == "1 [1, 1]"
    assert _shown(Figure((2.0, math.nan))) == "2 (1 absent)"
    assert _shown(Figure((math.nan,))) == "absent"
    low, high = _shown(Figure(tuple(map(float, range(11))))).removeprefix("5 [").removesuffix("]").split(", ")
    assert 2.5 < float(low) < 4 and 6 < float(high) < 7.5


def test_rows_of_different_lengths_are_read_at_common_times():
    values = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, math.nan], [3.0, 7.0]])
    found = on_common_times(values, [3, 1], (0.0, 0.5, 1.0))
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 1.5, 3.0], dtype=torch.float64))
    torch.testing.assert_close(found[:, 1], torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_lm, make_masked, make_block, make_aligned, make_ar])
def test_figures_do_not_depend_on_the_batch(make):
    lm = make()
    rows = []
    for size in (1, 3):
        settings = Settings(num_steps=3, probes=1, strengths=(4.0,), batch_size=size)
        rows.append(diagnose({"m": lm}, PROMPTS, settings, keyword="hills").models[0])
    alone, together = (row.measured for row in rows)
    assert set(alone.figures) == set(together.figures) and len(alone.figures) > 15
    for name, figure in alone.figures.items():
        other = torch.tensor(together.figures[name].values)
        wanted = torch.tensor(figure.values)
        torch.testing.assert_close(
            other, wanted, rtol=2e-2, atol=2e-3, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, profile in alone.profiles.items():
        other = together.profiles[name].values
        torch.testing.assert_close(other, profile.values, rtol=2e-2, atol=2e-3, equal_nan=True)
    for one, other in zip(rows[0].steered, rows[1].steered, strict=True):
        assert one.figures["met"] == other.figures["met"]


@pytest.mark.slow
def test_a_page_of_all_families_is_whole_and_its_numbers_are_plain_json():
    pytest.importorskip("matplotlib")
    told = []
    found = diagnose(
        {"flow": make_lm(), "mask": make_masked(), "left": make_ar(), "slots": make_aligned(), "blocks": make_block()},
        PROMPTS,
        QUICK,
        progress=told.append,
    )
    assert found.judge == "left" and found.keyword
    page = render(found)
    for words in ("What was found", "Singularity", "irreversibility", "Strain", "Adjoint", "absent", "peak strain"):
        assert words in page
    assert page.count("<svg") >= 12
    assert 'href="http' not in page and 'src="http' not in page
    assert json.loads(json.dumps(found.row(), allow_nan=False))["models"][2]["figures"]["adjoint_least"]["mean"] is None
    assert any("left: the adjoint" in line for line in told)


def model(name, family, values, **about):
    measured = Measured()
    for key, numbers in values.items():
        measured.figures[key] = Figure(tuple(numbers))
    return ModelDiagnosis(name, family, about, measured)


def diagnosis(flow, other=None):
    base = {"simplex_concentration": [0.5] * 4, "adjoint_least": [0.5] * 4, "adjoint_largest": [2.0] * 4}
    base |= {f"recovered@{t}": [0.6, 0.7, 0.8, 0.7] for t in (0.2, 0.5, 0.8)} | {"peak_strain": [5.0, 6.0, 7.0, 6.0]}
    absent = {
        "adjoint_least": [math.nan] * 4,
        "adjoint_largest": [math.nan] * 4,
        "controls_without_gradient": [1.0] * 4,
    }
    surrogate = {f"adjoint_early_over_late_{way}": [0.5] * 4 for way in ("straight_through", "relaxed")}
    left = {"simplex_concentration": [1.0] * 4, **{f"recovered@{t}": [0.0] * 4 for t in (0.2, 0.5, 0.8)}}
    models = [model("flow", "manta", base | flow, noise_floor=0.2, space="latents")]
    models.append(model("left", "ar", left | absent | surrogate | (other or {})))
    return Diagnosis(models, ["a"] * 4, Settings(), None, None, None)


def status(found, claim, subject):
    return next(v.status for v in verdicts(found) if v.claim == claim and v.subject.startswith(subject))


def test_claims_that_hold_are_reported_as_holding():
    found = diagnosis({})
    assert status(found, "singularity", "flow against left") == "holds"
    assert status(found, "adjoint", "flow") == "holds"
    assert status(found, "irreversibility", "flow against left") == "holds"
    assert status(found, "adjoint", "left") == "holds"


def test_claims_that_fail_are_reported_as_failing():
    worse = {"simplex_concentration": [1.0, 1.0, 1.0, 1.0], "adjoint_least": [0.01] * 4}
    found = diagnosis(worse | {f"recovered@{t}": [0.0] * 4 for t in (0.2, 0.5, 0.8)})
    assert status(found, "singularity", "flow against left") == "fails"
    assert status(found, "adjoint", "flow") == "fails"
    assert status(found, "irreversibility", "flow against left") == "fails"
    costly = {"faithfulness": [1.0] * 4, **{f"faithfulness_lost@{t}": [0.5, 0.6, 0.5, 0.6] for t in (0.2, 0.5, 0.8)}}
    cheap = {"faithfulness": [1.0] * 4, **{f"faithfulness_lost@{t}": [0.1, 0.2, 0.1, 0.2] for t in (0.2, 0.5, 0.8)}}
    assert status(diagnosis(costly, cheap), "irreversibility", "flow against left") == "fails"
    assert status(diagnosis(costly, cheap | {"faithfulness": [0.0] * 4}), "irreversibility", "flow") == "holds"
    assert status(diagnosis({}, {"controls_without_gradient": [0.4] * 4}), "adjoint", "left") == "fails"


def test_a_surrogate_that_brings_the_gradient_back_is_told():
    evidence = [v.evidence for v in verdicts(diagnosis({})) if v.subject.startswith("left")]
    assert "no vanishing with straight-through or relaxed" in evidence[0]
    lost = {f"adjoint_early_over_late_{way}": [0.001] * 4 for way in ("straight_through", "relaxed")}
    evidence = [v.evidence for v in verdicts(diagnosis({}, lost)) if v.subject.startswith("left")]
    assert "it vanishes" in evidence[0]


def test_thirds_leave_out_what_is_absent_and_what_comes_after():
    steps = torch.tensor([[3.0, 2.0], [math.nan, 9.0], [9.0, 9.0], [9.0, 4.0], [9.0, 9.0], [1.0, 9.0]])
    early, late = thirds(steps, [6, 4])
    torch.testing.assert_close(early, torch.tensor([3.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(late, torch.tensor([math.sqrt(41.0), 4.0], dtype=torch.float64))


def test_what_chance_leaves_open_is_undecided():
    mixed = {f"recovered@{t}": [0.6, -0.7, 0.8, -0.6] for t in (0.2, 0.5, 0.8)}
    assert status(diagnosis(mixed), "irreversibility", "flow against left") == "undecided"


def test_stiffness_is_compared_between_noise_floors():
    found = diagnosis({})
    stiff = model("hard", "manta", {"peak_strain": [50.0, 61.0, 70.0, 60.0]}, noise_floor=0.0, space="latents")
    stiff.measured.figures = found.models[0].measured.figures | stiff.measured.figures
    wild = model("wild", "manta", {"peak_strain": [900.0, 800.0, 990.0, 850.0]}, space="embeddings")
    wild.measured.figures = stiff.measured.figures | wild.measured.figures
    found.models += [stiff, wild]
    assert status(found, "singularity", "noise floors: flow against hard") == "holds"
    assert status(found, "singularity", "spaces: flow against wild") == "holds"
    assert status(found, "singularity", "spaces: hard against wild") == "holds"
    assert not [verdict for verdict in verdicts(found) if verdict.subject.startswith("noise floors: wild")]


def test_the_oracle_is_told_by_the_prompts():
    slots = oracle_of(["name[Aromi], eatType[pub]"])
    assert slots is not None and slots("name[Aromi], eatType[pub]", "Aromi is a pub.") == 1.0
    assert slots("name[Aromi], eatType[pub]", "Aromi.") == 0.5
    assert oracle_of(["tell me a story"]) is None


def test_a_goal_is_a_word_of_some_texts_and_no_prompt():
    texts = ["a cosy place in town", "a place in town", "some place", "the place cosy"]
    assert choose_keyword(texts, ["town"]) == "some"
    assert choose_keyword(["ab", "cd"], [None]) is None


def test_nothing_to_measure_is_an_error():
    with pytest.raises(UsageError, match="models and prompts"):
        diagnose({}, PROMPTS)
    with pytest.raises(UsageError, match="num_steps"):
        Settings(num_steps=1)
