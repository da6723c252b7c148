"""The model of n-grams: probabilities by hand, that sum to 1, from a table that is checked when it is read."""

import math

import pytest
import torch

from manta.autoregressive import count_ngrams
from manta.errors import ConfigError
from manta.fluency import NgramModel, checked_words
from manta.fluency.ngrams import UNIT, count_words, lengths

BEGIN, END = 0, 1
TEXTS = [[2, 3, 4], [2, 3, 5], [2, 3, 4], [3, 2, 3, 4, 4, 5]]


def model(texts=TEXTS, vocab_size: int = 7, **more) -> NgramModel:
    table = count_words(texts, vocab_size=vocab_size, begin=BEGIN, end=END, **more)
    return NgramModel(table, vocab_size, BEGIN, END)


def test_single_words_are_smoothed_by_hand():
    told = model()
    # 19 tokens behind the beginnings, of 5 kinds (2, 3, 4, 5 and the end); 6 never came.
    assert told.table["chances.1"][6].item() / UNIT == pytest.approx(math.log((0 + 5 / 7) / (19 + 5)), abs=1 / UNIT)
    assert told.table["chances.1"][3].item() / UNIT == pytest.approx(math.log((5 + 5 / 7) / 24), abs=1 / UNIT)


def test_words_after_contexts_are_smoothed_by_hand():
    told = model()
    single = {w: math.exp(told.table["chances.1"][w].item() / UNIT) for w in range(7)}
    # 3 follows 2 in all four places, and is all that does.
    after_2 = (4 + 1 * single[3]) / (4 + 1)
    # 4 follows "2 3" in three of four places, 4 or 5 do.
    after_3 = (3 + 3 * single[4]) / (5 + 3)  # after 3: 4 three times, 5 once, 2 once
    after_23 = (3 + 2 * after_3) / (4 + 2)
    after_begin_2 = (3 + 1 * after_2) / (3 + 1)  # a text that begins with 2 goes on with 3, three times
    assert told.log_chance([2], 3) == pytest.approx(math.log(after_begin_2), abs=3 / UNIT)
    assert told.log_chance([3, 2, 3], 4) == pytest.approx(math.log(after_23), abs=3 / UNIT)


def test_what_was_not_kept_backs_off():
    told = model()
    # "2 3 5" came once and is not kept: the backoff of "2 3", and 5 after 3, which came once, too: that of 3.
    single = told.table["chances.1"][5].item() / UNIT
    backoffs = told._backoffs[2][2 * 7 + 3] + told._backoffs[1][3]
    assert told.log_chance([2, 3], 5) == pytest.approx(backoffs + single, abs=1e-12)


def test_the_edges_of_windows_are_no_beginnings_and_ends():
    """Windows tell of all n-grams of their text but those across a cut, and of none that the text does not hold."""
    text, cut = [2, 3, 4, 5, 6, 2, 5, 3, 6, 4], 4
    whole = count_words([text] * 2, vocab_size=7, begin=BEGIN, end=END)
    windows = count_words(
        [text[:cut], text[cut:]] * 2,
        vocab_size=7,
        begin=BEGIN,
        end=END,
        edges=[(True, False), (False, True)] * 2,
    )
    assert windows["tokens"] == whole["tokens"], "every word counts once, the first of a window too"
    assert torch.equal(windows["chances.1"], whole["chances.1"])
    for n in (2, 3):
        row = [BEGIN, *text, END]
        across = {
            sum(word * 7 ** (n - 1 - place) for place, word in enumerate(row[at : at + n]))
            for at in range(cut + 2 - n, cut + 1)
        }
        assert set(windows[f"grams.{n}"].tolist()) == set(whole[f"grams.{n}"].tolist()) - across
    drafts = count_ngrams([[2, 3]] * 2, vocab_size=7, begin=BEGIN, end=END, edges=[(False, False)] * 2)
    assert drafts["contexts.1"].tolist() == [2] and drafts["words.1"][0].tolist() == [3, -1, -1]


@pytest.mark.parametrize("most", [1, 3, 2_500])
@pytest.mark.parametrize("context", [[], [2], [3], [2, 3], [3, 4], [4, 4], [6, 6], [5, 2, 3]])
def test_probabilities_after_any_context_sum_to_1(context, most):
    told = model(most=most)
    total = sum(math.exp(told.log_chance(context, word)) for word in range(7))
    assert total == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("seed", range(12))
def test_small_vocabularies_sum_to_1_too(seed):
    """All words but the rarest have n-grams behind most contexts: there is hardly anything to share out."""
    draw = torch.Generator().manual_seed(seed)
    texts = (2 + torch.randint(0, 2, (400, 12), generator=draw)).tolist()
    for row in texts[:2]:
        row[5] = 4
    told = model(texts, vocab_size=8)
    for context in ([], [2], [3], [4], [2, 3], [3, 3], [2, 4], [4, 2], [6, 2]):
        chances = [told.log_chance(context, word) for word in range(8)]
        assert max(chances) <= 0 and sum(map(math.exp, chances)) == pytest.approx(1, abs=0.02)


def test_tokens_are_those_that_were_counted():
    assert model().tokens == sum(len(text) + 1 for text in TEXTS)


def test_the_beginning_of_a_text_is_a_context():
    told = model([[2, 3], [2, 4], [2, 5], [3, 2], [3, 2]])
    assert told.log_chance([], 2) > told.log_chance([4], 2)
    assert told.log_chance([], 2) == told.log_chance((), 2)


def test_only_the_last_words_of_a_context_count():
    told = model()
    assert told.log_chance([5, 5, 2, 3], 4) == told.log_chance([2, 3], 4)
    assert told.log_chance([5, 2, 3], 4) != told.log_chance([5, 4, 3], 4)


def test_nats_are_those_of_the_texts():
    told = model()
    rows = [[*text, END] for text in TEXTS]
    # Contexts of a first word are the beginning alone: it is not among the n-grams of three that nats are the mean of.
    each = [-told.log_chance(row[:k], row[k]) for row in rows for k in range(1, len(row))]
    assert told.nats == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_the_most_frequent_are_kept():
    told = model([[2, 3]] * 5 + [[4, 5]] * 3 + [[5, 6]] * 2, most=2)
    assert told.table["grams.2"].tolist() == sorted([2 * 7 + 3, 0 * 7 + 2])  # of equally frequent ones the first


def test_a_longer_run_needs_its_context():
    told = model(most=1)
    kept = set(told.table["grams.2"].tolist())
    assert {gram // 7 for gram in told.table["grams.3"].tolist()} <= kept


def test_large_vocabularies_count_shorter_runs():
    assert lengths(2_000_000) == [2, 3] and lengths(3_000_000) == [2]
    told = model([[2, 3, 4]] * 3, vocab_size=3_000_000)
    assert told.log_chance([2], 3) > -0.5 and "grams.3" not in told.table
    assert told.log_chance([4, 2], 3) == told.log_chance([2], 3)


def test_no_texts_make_a_model_too():
    told = model([])
    assert told.log_chance([2, 3], 4) == pytest.approx(math.log(1 / 7), abs=2 / UNIT)


def test_a_table_is_what_is_read():
    table = model().table
    assert all(torch.equal(value, table[name]) for name, value in checked_words(table, 7).items())


def damaged(name, change):
    table = dict(model().table)
    table[name] = change(table[name])
    return table


@pytest.mark.parametrize(
    "table",
    [
        {},
        {name: value for name, value in model().table.items() if name != "backoffs.2"},
        {**model().table, "grams.4": torch.zeros(1, dtype=torch.int64)},
        damaged("chances.1", lambda value: value[:-1]),
        damaged("chances.1", lambda value: value.float()),
        damaged("chances.2", lambda value: value.abs() + 1),
        damaged("chances.3", lambda value: value[:-1]),
        damaged("grams.2", lambda value: value.flip(0)),
        damaged("grams.2", lambda value: value - 1_000),
        damaged("grams.3", lambda value: value + 7**3),
        damaged("grams.3", lambda value: value[None]),
        damaged("backoffs.1", lambda value: value.long()),
        damaged("nats", lambda value: value * torch.nan),
        damaged("nats", lambda value: value.expand(2)),
        damaged("nats", lambda value: -1 - value),
        damaged("tokens", lambda value: -1 - value),
        damaged("tokens", lambda value: value.double()),
        damaged("grams.2", lambda value: value[0]),
        damaged("backoffs.2", lambda value: value + 6 * UNIT),
    ],
)
def test_a_table_that_no_counting_makes_is_refused(table):
    with pytest.raises(ConfigError, match="n-grams"):
        checked_words(table, 7)
