"""The table of what came next: counts by hand, lookups by the longest context, hostile tables refused."""

import pytest
import torch

from manta.autoregressive import Chooser, Drafting, NgramDrafter, checked_ngrams, count_ngrams
from manta.errors import ConfigError

BEGIN, END, VOCAB = 1, 2, 10
TEXTS = [[3, 4, 5], [3, 4, 5], [3, 4, 6], [7, 4, 6], [7, 4, 6], [7, 4, 6]]


def table(**settings) -> dict[str, torch.Tensor]:
    return count_ngrams(TEXTS, vocab_size=VOCAB, begin=BEGIN, end=END, **settings)


def drafts(written: list[int], count: int = 5, choose: Chooser | None = None) -> list[int]:
    drafter = NgramDrafter(table(), VOCAB, BEGIN)
    [found] = drafter.draft(Drafting([()], [written], None, [count], choose or Chooser()))
    return found


def test_counts_are_those_of_the_texts():
    made = table()
    contexts = made["contexts.1"].tolist()
    assert contexts == [BEGIN, 3, 4, 5, 6, 7]
    assert made["words.1"][contexts.index(4)].tolist() == [6, 5, -1]
    assert made["chances.1"][contexts.index(4)].tolist() == pytest.approx([4 / 6, 2 / 6, 0])
    at = made["contexts.2"].tolist().index(3 * VOCAB + 4)
    assert made["words.2"][at].tolist() == [5, 6, -1]
    assert made["chances.2"][at].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert made["contexts.4"].tolist() == sorted(made["contexts.4"].tolist())


def test_contexts_that_came_once_are_left_out_and_the_most_frequent_ones_kept():
    assert 3 * VOCAB**2 + 4 * VOCAB + 6 not in table()["contexts.3"].tolist(), "3 4 6 came once"
    assert table(most=2)["contexts.1"].tolist() == [BEGIN, 4]


def test_drafts_follow_the_longest_known_context_until_the_text_ends():
    assert drafts([3, 4]) == [5, END]
    assert drafts([7, 4]) == [6, END]
    assert drafts([9, 4]) == [6, END], "the pair is unknown, so the word alone tells"
    assert drafts([9]) == []
    assert drafts([3], count=2) == [4, 5]
    assert drafts([], count=1) in ([3], [7])


def test_drafts_are_drawn_with_the_noise_of_their_place():
    counts: dict[int, int] = {5: 0, 6: 0}
    for seed in range(400):
        choose = Chooser(temperature=1.0, generators=[torch.Generator().manual_seed(seed)])
        [word] = drafts([3, 4], 1, choose)
        counts[word] += 1
        logits = torch.full((1, 1, VOCAB), -torch.inf)
        logits[0, 0, 5], logits[0, 0, 6] = torch.tensor([2 / 3, 1 / 3]).log()
        assert word == int(choose.words(logits, [2])), "as the model would choose, were it of the table's mind"
    assert 0.57 < counts[5] / 400 < 0.77


@pytest.mark.parametrize("fault", ["name", "order", "shape", "share", "type", "word"])
def test_a_table_that_is_none_is_refused(fault):
    made = table()
    assert checked_ngrams(made, VOCAB).keys() == made.keys()
    if fault == "name":
        made["weight"] = torch.zeros(3)
    elif fault == "order":
        made["contexts.1"] = made["contexts.1"].flip(0)
    elif fault == "shape":
        made["words.1"] = made["words.1"][:-1]
    elif fault == "share":
        made["chances.1"] = made["chances.1"] * 0
    elif fault == "word":
        made["words.1"][0, 0] = VOCAB
    else:
        made["contexts.2"] = made["contexts.2"].float()
    with pytest.raises(ConfigError, match=r"n-grams|contexts|words"):
        checked_ngrams(made, VOCAB)


def test_texts_shorter_than_a_context_are_counted_in_the_shorter_ones():
    made = count_ngrams([[], [5], [], [5], [6, 7]], vocab_size=VOCAB, begin=BEGIN, end=END)
    contexts = made["contexts.1"].tolist()
    assert contexts == [BEGIN, 5]
    assert made["words.1"][contexts.index(BEGIN)].tolist() == [END, 5, 6]
    assert made["contexts.2"].tolist() == [BEGIN * VOCAB + 5] and not len(made["contexts.4"])


def test_no_texts_make_an_empty_table():
    empty = count_ngrams([], vocab_size=VOCAB, begin=BEGIN, end=END)
    [found] = NgramDrafter(checked_ngrams(empty, VOCAB), VOCAB, BEGIN).draft(
        Drafting([()], [[3]], None, [4], Chooser())
    )
    assert found == []


def test_the_first_word_of_a_vocabulary_is_a_word():
    made = count_ngrams([[0, 3, 0], [0, 3, 0]], vocab_size=VOCAB, begin=BEGIN, end=END)
    drafter = NgramDrafter(made, VOCAB, BEGIN)
    assert drafter.draft(Drafting([()], [[0, 3]], None, [2], Chooser())) == [[0, END]]
    assert drafter.draft(Drafting([()], [[]], None, [4], Chooser())) == [[0, 3, 0, END]]


def test_ten_thousand_contexts_of_a_length_are_kept_where_no_number_is_said():
    row = list(range(4, 10_060))
    made = count_ngrams([row, row, row[:60]], vocab_size=11_000, begin=BEGIN, end=END, order=2)
    assert [len(made[f"contexts.{n}"]) for n in (1, 2)] == [10_000] * 2
    assert made["contexts.1"][:3].tolist() == [BEGIN, 4, 5], "the most frequent, and of equals the first"
