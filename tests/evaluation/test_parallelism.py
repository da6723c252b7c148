"""The area under quality over words a call, against values worked out by hand."""

import math

import pytest

from manta.evaluation.comparison import parallelism
from manta.evaluation.parallelism import accuracy_under_parallelism

from .test_comparison import row


def test_one_setting_counts_its_words_a_call():
    assert accuracy_under_parallelism([1.0], [70.0], best=80.0) == 70.0
    assert accuracy_under_parallelism([2.5], [70.0], best=70.0) == 175.0


def test_the_area_of_three_settings_in_any_order():
    kept = [80.0, 79.0 * math.exp(-3 / 80), 76.0 * math.exp(-12 / 80)]
    area = 80.0 + 1.0 * (kept[0] + kept[1]) / 2 + 4.0 * (kept[1] + kept[2]) / 2
    assert accuracy_under_parallelism([6.0, 1.0, 2.0], [76.0, 80.0, 79.0], best=80.0) == pytest.approx(area)


def test_what_falls_more_than_five_below_the_slowest_setting_does_not_count():
    slow = accuracy_under_parallelism([1.0, 2.0], [60.0, 58.0], best=60.0)
    assert accuracy_under_parallelism([1.0, 2.0, 9.0], [60.0, 58.0, 54.9], best=60.0) == slow
    assert accuracy_under_parallelism([1.0, 2.0, 9.0], [60.0, 58.0, 55.0], best=60.0) > slow


def test_quality_above_the_best_of_others_is_not_worth_more_than_itself():
    assert accuracy_under_parallelism([1.0, 2.0], [90.0, 90.0], best=80.0) == 180.0


def test_a_setting_that_writes_fewer_and_worse_words_takes_nothing_away():
    good = row("a", nfe=20, mean_words=40, bleu=60)
    assert parallelism([good], "bleu") == {"a": pytest.approx(120)}
    assert parallelism([good, row("a", nfe=10, mean_words=12, bleu=30)], "bleu") == {"a": pytest.approx(120)}
    assert parallelism([good, row("a", nfe=20, mean_words=40, bleu=50)], "bleu") == {"a": pytest.approx(120)}


def test_models_of_a_comparison_by_the_settings_that_none_of_their_own_beats():
    rows = [
        row("a", nfe=20, mean_words=20, oracle_faithful=0.8),
        row("a", nfe=20, mean_words=20, oracle_faithful=0.7),  # as slow and worse
        row("a", nfe=10, mean_words=20, oracle_faithful=0.8),
        row("b", nfe=20, mean_words=20, oracle_faithful=0.4),
    ]
    found = parallelism(rows, "oracle_faithful")
    assert found == {"a": pytest.approx(160.0), "b": pytest.approx(40.0)}
    assert parallelism([row("a", nfe=2, mean_words=2, slot_error_rate=0.1)], "slot_error_rate") == {}
    assert parallelism([row("a", nfe=2, bleu=10)], "bleu") == {}, "nobody has counted words"
    assert parallelism([row("a", nfe=2, mean_words=2, bleu=0)], "bleu") == {}, "nothing is written"
