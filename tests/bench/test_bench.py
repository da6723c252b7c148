"""What the benchmarks measure is what they say: rivals take turns, texts have their length, growth is recovered."""

import json
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manta.autoregressive import NgramDrafter, count_ngrams
from manta.bench import (
    Setting,
    cold_start,
    crossings,
    growth,
    interleaved,
    machine,
    operator_costs,
    operators_page,
    rows_as_table,
    settings_of,
    training_rates,
    writing_rates,
)
from manta.bench.operators import ONE_BY_ONE, STEPS, Behind, peak_mebibytes, randomised
from manta.cli import main
from manta.errors import ModelError, UsageError
from manta.families import FAMILIES
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.hub import save_model
from manta.masked import DECODERS
from manta.operators import KINDS, Cache
from manta.recipes import Recipe
from manta.text import BOS, EOS, Tokenizer

from ..families.conftest import make_aligned, make_ar, make_lm
from ..report.test_page import check_self_contained

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPE: dict[str, Any] = {"dim": 16, "heads": 2, "prompt_depth": 1, "depth": 1, "max_prompt": 8, "max_text": 24}


def make(family: str) -> MaskedLM | AutoregressiveLM:
    tokenizer = Tokenizer.train(["the cat sat on a mat while rain fell"] * 3, 512)
    shape = {**SHAPE, "vocab_size": tokenizer.vocab_size}
    if family == "ar":
        return AutoregressiveLM(AutoregressiveModel(AutoregressiveConfig(**shape)), tokenizer)
    return MaskedLM(MaskedModel(MaskedConfig(**shape, absolute_places=True)), tokenizer)


def test_a_length_is_asked_of_those_alone_who_can_be_told_one():
    lm = make("masked")
    assert list(writing_rates(lm, [4], [1], settings_of(lm, ["block"]), num_steps=2, repeats=1))
    lm.fills = False
    with pytest.raises(UsageError, match="of the family masked neither bounds a text nor fills a blank"):
        list(writing_rates(lm, [4], [1], settings_of(lm, ["block"]), num_steps=2, repeats=1))


def test_rivals_take_turns():
    order: list[str] = []
    rivals = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(rivals, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abc", 3)
    slow = interleaved({"fast": lambda: None, "slow": lambda: time.sleep(0.02)}, 2)
    assert min(slow["slow"]) > 0.019 > max(slow["fast"])
    with pytest.raises(UsageError, match="repeats"):
        interleaved(rivals, 0)


def test_a_table_has_a_column_for_every_name():
    lines = rows_as_table([{"what": "a", "seconds": 0.12345}, {"what": "bb", "tokens_per_second": 1234.5}]).splitlines()
    assert lines[0].split("  ") == ["what", "seconds", "tokens per second"]
    assert lines[1].split() == ["a", "0.123"]
    assert lines[2].split() == ["bb", "1,234"] or lines[2].split() == ["bb", "1,235"]


def test_operators_are_measured_beside_their_operations():
    rows = operator_costs((8, 4), dim=16, batch=2, repeats=1)
    passes = [(row["operator"], row["pass"], row["length"]) for row in rows]
    told = {"forward": KINDS, "with gradient": KINDS, "one element more": ONE_BY_ONE}
    assert passes == [(kind, name, n) for n in (4, 8) for name, kinds in told.items() for kind in kinds]
    attention = KINDS["attention"]().build(16)
    found = [row for row in rows if row["operator"] == "attention" and row["pass"] == "forward"]
    assert [row["mflop"] for row in found] == pytest.approx([2 * attention.flops(n, 16) / 1e6 for n in (4, 8)])
    assert all(row["milliseconds"] > 0 and row.get("mebibytes", 0) >= 0 for row in rows)


def test_an_operator_that_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr("manta.bench.operators.KINDS", {"attention": KINDS["attention"], "linear": KINDS["linear"]})
    takes = {("attention", 4): 0.01, ("attention", 8): 0.1, ("linear", 4): 0.01, ("linear", 8): 0.02}

    def timed(calls, repeats):
        call = next(iter(calls.values()))
        length = call.length if isinstance(call, Behind) else call.args[1].shape[1]
        return {kind: [takes[kind, length]] * repeats for kind in calls}

    monkeypatch.setattr("manta.bench.operators.interleaved", timed)
    takes |= {("linear", 16): 0.04}
    rows = operator_costs((4, 8, 16), dim=8, batch=1, repeats=1, most_seconds=0.2)
    assert {row["operator"] for row in rows if row["length"] == 16} == {"linear"}, "0.1 s times 4 and patience is above"
    assert {row["operator"] for row in rows if row["length"] == 8} == {"attention", "linear"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process its highest mark")
def test_the_most_memory_of_a_call_is_what_it_holds_at_once():
    def holds(parts: int) -> None:
        kept = [torch.ones(8 << 20) for _ in range(parts)]  # 32 MiB each
        del kept

    peaks = [peak_mebibytes(lambda n=n: holds(n), torch.device("cpu")) for n in (1, 4)]
    if None in peaks:
        pytest.skip("the system does not let a process begin its highest mark anew")
    assert peaks[1] == pytest.approx(128, abs=8) and peaks[0] == pytest.approx(32, abs=8)


def test_what_is_measured_stays_where_every_operator_takes_too_long(monkeypatch):
    monkeypatch.setattr("manta.bench.operators.KINDS", {"linear": KINDS["linear"]})
    rows = operator_costs((4, 64), dim=8, batch=1, repeats=1, most_seconds=1e-9)
    assert {row["length"] for row in rows} == {4}


@torch.no_grad()
def test_elements_behind_a_row_are_those_of_the_whole_row():
    """Three calls read so many elements one by one; what is kept of them is what a whole row would have."""
    torch.manual_seed(0)
    operator, state = randomised(KINDS["linear"]().build(8, causal=True)), torch.randn(2, 100, 8)
    behind = Behind(operator, state)
    assert behind.mebibytes > 0
    for _ in range(3):
        behind()
    whole = torch.cat([state, state[:, :1].expand(-1, 3 * STEPS, -1)], 1)
    cache = Cache()
    operator(whole, behind.row.span(0, whole.shape[1]), cache)
    after = behind.row.span(behind.at, behind.at + 1)
    for one, other in zip(behind.cache.carried(after), cache.carried(after), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    longer = Behind(operator, torch.randn(2, 1000, 8))
    assert longer.mebibytes == behind.mebibytes, "a state does not grow with the row"
    attention = KINDS["attention"]().build(8, causal=True)
    assert Behind(attention, torch.randn(2, 1000, 8)).mebibytes > Behind(attention, state).mebibytes


def measured(kind: str, name: str, *milliseconds: float) -> list[dict[str, Any]]:
    return [
        {"operator": kind, "pass": name, "length": 2**n, "milliseconds": spent, "mebibytes": 1.0 + n, "mflop": 1.0}
        for n, spent in enumerate(milliseconds)
    ]


def test_an_operator_is_ahead_from_the_length_behind_which_it_is_never_slower():
    rows = measured("attention", "forward", 1, 4, 16, 64) + measured("linear", "forward", 0.5, 6, 12, 24)
    rows += measured("windowed", "forward", 2, 8, 32) + measured("linear", "with gradient", 1)
    found = {(row["operator"], row["pass"]): row for row in crossings(rows)}
    assert found["linear", "forward"]["faster_from"] == 4
    assert (
        found["linear", "forward"]["times_faster"] == pytest.approx(64 / 24) and found["linear", "forward"]["at"] == 8
    )
    assert found["windowed", "forward"] == {
        "operator": "windowed",
        "pass": "forward",
        "faster_from": None,
        "at": 4,
        "times_faster": 0.5,
    }
    assert "at" not in found["linear", "with gradient"], "attention has no such row"


def test_growth_is_told_of_every_pass_and_the_page_draws_it():
    pytest.importorskip("matplotlib")
    rows = measured("attention", "forward", 1, 4, 16) + measured("attention", "with gradient", 3, 6, 12)
    rows += measured("linear", "forward", 2, 4, 8) + measured("linear", "with gradient", 3)
    found = {(row["operator"], row["pass"]): row["exponent_of_seconds"] for row in growth(rows)}
    assert found == {
        ("attention", "forward"): pytest.approx(2),
        ("attention", "with gradient"): pytest.approx(1),
        ("linear", "forward"): pytest.approx(1),
    }
    reader = check_self_contained(operators_page(rows, {"processor": "<a> & b"}))
    assert sum(tag == "svg" for tag, _ in reader.seen) == 4
    assert "processor <a> & b" in reader.words and "less time than attention from" in reader.words


def test_an_exponent_of_growth_is_recovered():
    rows = [
        {"operator": "x", "pass": "forward", "length": n, "milliseconds": 3 * n**1.5, "mflop": n**2}
        for n in (8, 32, 16)
    ]
    [found] = growth(rows)
    assert (found["from"], found["to"]) == (8, 32)
    assert found["exponent_of_seconds"] == pytest.approx(1.5)
    assert found["exponent_of_operations"] == pytest.approx(2)


def test_every_text_has_the_length_that_is_asked_for():
    lm = make("ar")
    assert isinstance(lm, AutoregressiveLM)
    rows = list(writing_rates(lm, (5, 24), (1, 3), settings_of(lm), repeats=1))
    assert [(row["length"], row["batch"]) for row in rows] == [(5, 1), (5, 3), (24, 1), (24, 3)]
    assert [row["calls"] for row in rows] == [6, 6, 25, 25]  # a call a token, and the prompt's
    assert all(row["tokens_per_second"] == pytest.approx(row["length"] * row["texts_per_second"]) for row in rows)
    assert lm.model.end == EOS


def test_both_readings_of_an_aligned_model_are_measured():
    aligned = make_aligned()
    assert settings_of(aligned) == [Setting(decoder="aligned")]
    assert settings_of(make_lm()) == [Setting()], "a Manta-LM has no decoder to choose"
    (row,) = writing_rates(aligned, (20,), (2,), settings_of(aligned), num_steps=3, repeats=1)
    assert (row["calls"], row["length"]) == (1, 20), "a text to fill takes one call"
    teacher = make_ar()
    aligned.causal = AutoregressiveLM(teacher.model, aligned.tokenizer, some_table(teacher))
    settings = settings_of(aligned)
    assert [setting.decoder for setting in settings] == ["aligned", "sequential", "verified"]
    rows = list(writing_rates(aligned, (20,), (1,), settings, num_steps=3, repeats=1))
    assert [row["calls"] for row in rows][:2] == [1, 21] and rows[2]["calls"] <= 21
    with pytest.raises(UsageError, match="of masked models"):
        settings_of(aligned, ("deferred",))


def some_table(lm: AutoregressiveLM) -> NgramDrafter:
    size = lm.model.config.vocab_size
    return NgramDrafter(count_ngrams([[5, 6, 7]], vocab_size=size, begin=BOS, end=EOS), size, BOS)


def test_decoders_and_caches_are_compared():
    lm = make("masked")
    assert [setting.decoder for setting in settings_of(lm)] == list(DECODERS)
    settings = settings_of(lm, ("deferred", "block", "confidence"), ("none", "dual"))
    rows = list(writing_rates(lm, (16,), (1, 2), settings, num_steps=5, repeats=1))
    assert [(row["decoder"], row["cache"], row["batch"]) for row in rows] == [
        ("deferred", "none", 1),
        ("deferred", "dual", 1),
        ("block", "none", 1),
        ("block", "dual", 1),
        ("confidence", "none", 1),
        ("deferred", "none", 2),
        ("block", "none", 2),
        ("confidence", "none", 2),
    ]
    assert all(row["calls"] <= 5 for row in rows)
    for asked in ((("deferred",), ("none",)), ((), ("dual",))):
        with pytest.raises(UsageError, match="of masked models"):
            settings_of(make("ar"), *asked)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="at most 24 tokens"):
        list(writing_rates(lm, (25,), (1,), settings, repeats=1))
    with pytest.raises(UsageError, match="unknown decoder"):
        settings_of(lm, ("blocks",))
    assert settings_of(make("ar")) == [Setting()]


def test_a_machine_is_named():
    found = machine()
    assert found["threads"] == torch.get_num_threads() and found["torch"] == torch.__version__
    assert found["processor"]


@pytest.mark.slow
def test_a_fresh_process_is_measured(tmp_path):
    save_model(tmp_path, make("masked"), recipe={}, card="")
    rows = cold_start([str(tmp_path)], repeats=1, device="cpu")
    assert [row["what"] for row in rows] == ["manta --help", str(tmp_path)]
    assert rows[1]["seconds"] > rows[0]["seconds"] > 0
    assert rows[1]["peak_memory_mib"] > 50
    with pytest.raises(ModelError, match="nowhere"):
        cold_start([str(tmp_path / "nowhere")], repeats=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["manta", "masked", "ar"])
def test_training_is_measured_stage_by_stage(family):
    small = {"dim": 32, "heads": 2, "depth": 1, "prompt_depth": 1}
    recipe = Recipe(family=family, num_examples=120, size="nano", vocab_size=512, batch_tokens=256)
    shapes = {FAMILIES[family].shape, "teacher"}
    recipe = replace(recipe, **{name: replace(getattr(recipe, name), **small) for name in shapes})
    rows = list(training_rates(recipe, pairs=1))
    assert [row["stage"] for row in rows] == {"manta": ["policy", "own"], "masked": ["masked"], "ar": ["teacher"]}[
        family
    ]
    for row in rows:
        assert 0 < row["share_of_matrix_rate"] < 1
        seconds = row["milliseconds_per_step"] / 1000
        share = row["gflop_per_step"] / seconds / row["matrix_gflop_per_second"]
        assert row["share_of_matrix_rate"] == pytest.approx(share, rel=0.1)  # the factors are rounded


def test_the_verb_prints_tables_or_json(tmp_path, capsys):
    save_model(tmp_path / "model", make("masked"), recipe={}, card="")
    arguments = ["bench", str(tmp_path / "model"), "--parts", "writing", "--parts", "operators", "--quick"]
    arguments += ["--operator-lengths", "4,8", "--lengths", "8", "--decoders", "deferred", "--device", "cpu"]
    assert main([*arguments, "--json", "--out", str(tmp_path / "bench.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "bench.json").read_text())
    operators = {"operators", "growth_of_operators", "operators_beside_attention"}
    assert set(found) == {"report", "machine", "writing", "outside"} | operators
    assert [row["batch"] for row in found["writing"]] == [1, 4] and found["writing"][0]["family"] == "masked"
    page = tmp_path / "operators.html"
    assert main([*arguments, "--page", str(page)]) == 0
    assert "texts per second" in capsys.readouterr().out and "dijiang" in page.read_text()
    assert main([*arguments, "--page", str(page)]) == 2, "a page that is there already is not written over"
    assert "operators.html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "everything"], "'start', 'writing', 'outside'"),
        (["--caches", "suffix"], "'prefix', 'dual'"),
        (["--batches", "0"], "at least 1"),
        (["--operator-lengths", "64"], "two --operator-lengths"),
        (["--operator-batch", "0"], "--operator-batch should be at least 1"),
        (["--most-seconds", "0"], "--most-seconds above 0"),
        (["--parts", "writing", "--page", "here.html"], "--page draws the operators"),
    ],
)
def test_a_wrong_question_is_refused(capsys, arguments, words):
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_speed_benchmark_finds_equal_outputs_equal(capsys):
    pytest.importorskip("transformers")
    script = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "speed.py")))
    small = ["--dim", "16", "--depth", "1", "--heads", "2", "--vocab-size", "32", "--repeats", "1"]
    result = script.main(["--lengths", "8", "40", "--batches", "1", *small])
    assert all(row["equal_without_cache_at_8"] for row in result["autoregressive"])
    exact = [row for row in result["masked"] if row["equal_by_mathematics"]]
    assert len(exact) == 6
    assert all(row["agreement_with_none"] == 1 for row in exact)
    processed = {row["cache"]: row["positions"] for row in result["masked"] if row["length"] == 40}
    assert processed["dual"] < processed["prefix"] < processed["none"]


@pytest.mark.slow
def test_the_benchmark_of_masking_measures_what_is_supervised(tmp_path, capsys):
    script = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "masking.py")))
    small = [
        "--num-steps",
        "4",
        "--seeds",
        "1",
        "--num-examples",
        "200",
        "--num-texts",
        "4",
        "--num-samples",
        "2",
        "--batch-tokens",
        "400",
    ]
    rows = script.main([*small, "--out", str(tmp_path / "rows.json")])["rows"]
    found = {row["arm"]: row["supervised_share"] for row in rows}
    assert found["a mask and its complement"] == 1.0
    assert found["one mask"] < found["two independent masks"] < 1
    assert script.main([*small, "--out", str(tmp_path / "rows.json")])["rows"] == rows
