"""A comparison sweeps what a family knows, keeps what nothing beats, and is sure only of what its intervals show."""

import json
import math
from typing import Any

import pytest
import torch

from manta.errors import RequestError, UsageError
from manta.evaluation import Contestant, Evaluation, EvaluationSet, Evaluator, EvaluatorConfig, Figure, JudgeModel
from manta.evaluation.comparison import Row, Sweep, _nearest, best, compare, frontier, shown
from manta.evaluation.comparison_page import comparison_page
from manta.families.events import Event, GenerateOptions
from manta.fluency import NgramModel
from manta.text import BOS, EOS

from ..families.conftest import make_aligned
from ..report.test_page import check_self_contained
from .conftest import Scripted, scripted


def row(name: str, **figures: float) -> Row:
    spreads = {figure: Figure((float(value),)) for figure, value in figures.items()}
    evaluation = Evaluation(
        model=name, family="x", figures=spreads, likelihood=None, judged=(), warnings=(), texts=(), items={}
    )
    return Row({"num_steps": 1}, evaluation)


def half_right(data, wrong: int):
    """Writes the reference, but for the first `wrong` prompts something else."""
    return lambda index, request: "none <b>" if index < wrong else data.humans[index]


@pytest.fixture(scope="module")
def comparison(data):
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity", "oracle", "likelihood"), num_seeds=2))
    models = [scripted(half_right(data, 60), "half"), scripted(half_right(data, 0), "whole")]
    return evaluator, compare(evaluator, models, Sweep(num_steps=(2, 4)), GenerateOptions())


def test_the_frontier_keeps_what_nothing_beats_in_both():
    rows = [row("a", nfe=2, bleu=10), row("a", nfe=4, bleu=30), row("b", nfe=4, bleu=20), row("b", nfe=1, bleu=10)]
    assert frontier(rows, "bleu") == [3, 1]
    rows = [row("a", nfe=2, slot_error_rate=0.1), row("b", nfe=2, slot_error_rate=0.2)]
    assert frontier(rows, "slot_error_rate") == [0]
    assert frontier([row("a", nfe=1, bleu=1), row("b", nfe=1, bleu=1)], "bleu") == [0, 1]


def test_the_best_row_of_a_model_is_the_highest_or_the_lowest():
    rows = [row("a", perplexity=5), row("a", perplexity=3), row("b", perplexity=9)]
    assert best(rows, "perplexity") == {"a": 1, "b": 2}
    assert best([row("a", bleu=5), row("a", bleu=3)], "bleu") == {"a": 0}


def test_one_text_again_and_again_is_not_nearest_in_entropy():
    """Greedy texts without prompts are all alike; how varied one of them is says nothing."""
    human = {"entropy": 2.0, "distinct": 1.0}
    rows = [row("a", entropy=2.0, distinct=0.1), row("a", entropy=9, distinct=1.0)]
    assert _nearest(rows, human) == {"a": 1}
    assert _nearest(rows[:1], human) == {"a": 0}


def test_every_combination_is_tried_and_a_left_to_right_model_has_no_budget():
    sweep = Sweep(num_steps=(2, 4), temperature=(0.0, 1.0), guidance_scale=(1.0,))
    assert len(sweep.settings("manta")) == len(sweep.settings("masked")) == 4
    assert sweep.settings("ar") == [{"temperature": 0.0}, {"temperature": 1.0}]
    with pytest.raises(UsageError, match="--num-steps takes different values"):
        Sweep(num_steps=(2, 2))


def test_the_swept_settings_reach_the_models(data):
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity",), num_seeds=1))
    model = scripted(half_right(data, 0))
    compare(evaluator, [model], Sweep(num_steps=(3,), guidance_scale=(1.0, 2.0)), GenerateOptions(style="consensus"))
    assert isinstance(model.lm, Scripted)
    asked = [(options.num_steps, options.guidance_scale, options.style) for options in model.lm.asked]
    assert asked == [(3, 1.0, "consensus"), (3, 2.0, "consensus")]


def test_paired_differences_are_those_of_the_prompts(comparison):
    _, found = comparison
    faithful = [d for d in found.differences if d.figure == "faithful"]
    assert [(d.first, d.second, d.why) for d in faithful] == [(0, 2, "best of each"), (1, 3, "same setting")]
    for difference in faithful:
        assert difference.interval.value == pytest.approx(-60 / difference.prompts)
        assert difference.interval.low < difference.interval.value < difference.interval.high < 0
    whole = [d for d in found.differences if d.figure == "oracle_faithful"]
    assert [d.interval.value for d in whole] == pytest.approx([d.interval.value for d in faithful])
    assert all(d.interval.high < 0 for d in whole), "figures of all texts are compared on the same resamples"
    assert not [d for d in found.differences if found.rows[d.first].name == found.rows[d.second].name]


def test_the_frontier_and_the_entropy_point_to_rows(comparison, data):
    evaluator, found = comparison
    assert found.quality == "oracle_faithful"
    assert [found.rows[at].name for at in found.frontier] == ["whole"]
    assert found.rows[found.frontier[0]].mean("nfe") == 2
    assert found.nearest == {"half": 0, "whole": 2}
    assert found.rows[2].mean("entropy") == evaluator.corpus["entropy"]


def test_a_setting_that_a_model_refuses_is_left_out_and_said(data):
    class Picky(Scripted):
        def generate(self, requests, options=None, observer=None, *, batch_size=64):
            if options is not None and options.num_steps < 4:
                raise UsageError("too few calls")
            return super().generate(requests, options)

    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity",), num_seeds=1))
    model = scripted(half_right(data, 0))
    picky = type(model)("picky", Picky(half_right(data, 0)), {})
    found = compare(evaluator, [picky], Sweep(num_steps=(2, 4)), GenerateOptions())
    assert [row.setting["num_steps"] for row in found.rows] == [4]
    assert "too few calls" in found.left_out[0]
    with pytest.raises(UsageError, match="allows none of the settings"):
        compare(evaluator, [picky], Sweep(num_steps=(2, 3)), GenerateOptions())
    with pytest.raises(UsageError, match="each once"):
        compare(evaluator, [model, model], Sweep(num_steps=(2,)), GenerateOptions())


def test_a_model_without_counts_is_compared_without_them_and_that_is_said(data):
    """One model cannot fail the others of a comparison: what it cannot follow is left out of its rows."""
    evaluator = Evaluator(data, EvaluatorConfig(metrics=("diversity",), num_seeds=1))
    asked: dict[str, list[float | None]] = {"counted": [], "plain": []}
    models = []
    for name, of in asked.items():
        lm: Any = make_aligned()
        if name == "counted":
            size = lm.model.config.vocab_size
            lm.ngrams = NgramModel.count([[5, 6]], vocab_size=size, begin=BOS, end=EOS)

        def generate(requests, options, *, batch_size=64, of=of, lm=lm):
            lm.check(options)
            of.append(options.fluency)
            return (Event("done", i, "none <b>", (), 1.0, 1.0, 2) for i in range(len(requests)))

        lm.generate = generate
        models.append(Contestant(name, lm, {}))
    found = compare(evaluator, models, Sweep(num_steps=(2, 4)), GenerateOptions(fluency=0.3))
    assert [row.name for row in found.rows] == ["counted", "counted", "plain", "plain"]
    assert asked == {"counted": [0.3, 0.3], "plain": [None, None]}
    assert found.left_out == ("plain: fluency, since the model holds no counts of its training texts",)


def test_json_holds_rows_frontier_texts_and_intervals(comparison, data):
    evaluator, found = comparison
    report = json.loads(json.dumps(found.row(evaluator, "manta compare x"), allow_nan=False))
    assert [r["setting"]["num_steps"] for r in report["rows"]] == [2, 4, 2, 4]
    assert report["rows"][0]["figures"]["entropy"]["values"]
    assert {"first", "second", "why", "figure", "value", "low", "high", "level", "prompts"} == set(
        report["differences"][0]
    )
    assert len(report["texts"]) == len(shown(len(data.prompts))) == 8
    assert report["texts"][0]["texts"]["half, 2 calls"] == "none <b>"
    assert report["models"][0]["likelihood"]["kind"] == "none"
    areas = report["accuracy_under_parallelism"]
    assert set(areas) == {"half", "whole"} and areas["whole"] > areas["half"] > 0


def test_the_page_is_self_contained_and_shows_everything(comparison, data):
    pytest.importorskip("matplotlib")
    evaluator, found = comparison
    page = comparison_page(found, evaluator, "manta compare 'a b' --data <x>")
    reader = check_self_contained(page)
    assert sum(tag == "svg" for tag, _ in reader.seen) >= 2
    for words in (
        "manta compare 'a b' --data <x>",
        "none <b>",
        "half, 2 calls",
        "frontier",
        data.humans[0],
        "differ",
        "AUP",
    ):
        assert words in reader.words
    assert "all seeds wrote the same texts" in reader.words


def test_quality_against_length_is_the_mean_of_each_quarter(comparison, data):
    _, found = comparison
    assert {found.rows[profile.row].name for profile in found.lengths} == {"half", "whole"}
    human = torch.tensor([len(text.split()) for text in data.humans], dtype=torch.float64)
    order = human.argsort(stable=True).tensor_split(4)
    for profile in found.lengths:
        faithful = found.rows[profile.row].evaluation.items["faithful"].mean(0)
        assert profile.figure == "faithful" and list(profile.words) == sorted(profile.words)
        for quarter, words, interval in zip(order, profile.words, profile.intervals, strict=True):
            assert words == pytest.approx(float(human[quarter].mean()))
            assert interval.value == pytest.approx(float(faithful[quarter].mean()))


def positional_judge(window: int = 99) -> JudgeModel:
    """The n-th word of a text costs n nats, one of a model's `bad` words ten times as many; an end costs its length."""

    def beginnings(texts):
        if any(len(text.split()) > window for text in texts):
            raise RequestError("too long")
        costs = [sum(n * (10.0 if word == "bad" else 1) for n, word in enumerate(t.split(), 1)) for t in texts]
        return torch.tensor(costs), torch.tensor([len(text.split()) for text in texts])

    def nats(texts):
        costs, tokens = beginnings(texts)
        return costs + tokens, tokens + 1

    return JudgeModel("positional", nats, beginnings, lambda texts: torch.ones(len(texts), 2), {})


def prose(words: int | None, *lengths: int) -> EvaluationSet:
    texts = tuple((" ".join(["word"] * length),) for length in lengths)
    return EvaluationSet("x", "test", (None,) * len(texts), texts, lambda: iter(["another text"]), words=words)


def test_texts_without_prompts_are_followed_part_by_part_beside_human_ones():
    bare = prose(None, *[8] * 12, *[6] * 8)
    evaluator = Evaluator(bare, EvaluatorConfig(metrics=("diversity", "judge"), num_seeds=1), judge=positional_judge())
    late = ("word " * 6 + "bad bad").strip()
    model = scripted(lambda index, request: "bad" if index % 5 == 0 else late, "late")
    human, found = compare(evaluator, [model], Sweep(num_steps=(2,)), GenerateOptions()).lengths
    assert (human.row, found.row) == (None, 0) and human.figure == found.figure == "judge_nats"
    assert human.words == found.words == (2.0, 4.0, 6.0, 8.0)
    # The texts that end before the last part are in no part: the model's single `bad` words would cost 10 nats.
    assert [part.value for part in human.intervals] == pytest.approx([1.5, 3.5, 5.5, 7.5])
    assert [part.value for part in found.intervals] == pytest.approx([1.5, 3.5, 5.5, 75.0])


@pytest.mark.parametrize(
    ("metrics", "window", "text", "followed"),
    [
        (("diversity", "judge"), 99, "a b", [None]),  # the model's texts end before the human ones do
        (("diversity", "judge"), 99, "", [None]),
        ((), 6, "a b c d e f g h", []),  # the judge cannot read the human texts
        (("likelihood",), 99, "a b c d e f g h", []),  # no entropy, so no setting is nearest to the corpus
    ],
)
def test_texts_that_cannot_be_followed_have_no_profile(metrics, window, text, followed):
    config = EvaluatorConfig(metrics=metrics, num_seeds=1)
    evaluator = Evaluator(prose(None, *[8] * 8), config, judge=positional_judge(window))
    model = scripted(lambda index, request: text or ("a b" if index < 4 else ""), "short")
    found = compare(evaluator, [model], Sweep(num_steps=(2,)), GenerateOptions())
    assert [profile.row for profile in found.lengths] == followed


def test_passages_are_compared_at_one_length():
    """A model's texts are cut, and the end of a passage, which is none of the text's, is not judged."""
    config = EvaluatorConfig(metrics=("diversity", "judge"), num_seeds=1)
    evaluator = Evaluator(prose(4, *[4] * 8), config, judge=positional_judge())
    measured = evaluator.measure(scripted(lambda index, request: "word " * 6), GenerateOptions())
    assert measured.texts == ("word word word word",) * 8
    assert measured.figures["perplexity"].mean == pytest.approx(math.exp(2.5))
    assert measured.figures["mean_words"].mean == evaluator.corpus["mean_words"] == 4
    assert measured.items["judge_nats"].flatten().tolist() == pytest.approx([2.5] * 8)
    assert evaluator.corpus["perplexity"] == pytest.approx(math.exp(2.5))


def test_a_text_that_the_judge_cannot_read_is_a_warning(data):
    def refuses(texts):
        raise RequestError("too long")

    judge = JudgeModel("short", refuses, refuses, lambda texts: torch.ones(len(texts), 2), {})
    evaluator = Evaluator(data, EvaluatorConfig(num_seeds=1), judge=judge)
    found = compare(evaluator, [scripted(half_right(data, 0), "whole")], Sweep(num_steps=(2,)), GenerateOptions())
    assert any("no judge: the judge judged tokens of 0 of" in warning for warning in found.rows[0].evaluation.warnings)
    assert "judge_nats" not in found.rows[0].evaluation.items


def test_one_prompt_gives_no_interval(data):
    from dataclasses import replace

    one = replace(data, prompts=data.prompts[:1], references=data.references[:1])
    evaluator = Evaluator(one, EvaluatorConfig(metrics=("diversity",), num_seeds=1))
    models = [scripted(half_right(data, 0), name) for name in ("a", "b")]
    found = compare(evaluator, models, Sweep(num_steps=(2,)), GenerateOptions())
    assert found.differences == ()
    assert torch.equal(found.rows[0].evaluation.items["words"], found.rows[1].evaluation.items["words"])
