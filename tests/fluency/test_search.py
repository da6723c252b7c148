"""The search for the likeliest text: equal to trying every text, where the beams are wide enough."""

import math
from itertools import product

import pytest
import torch

import manta.fluency.search as search
from manta.aligned import alignment_nats, collapse
from manta.fluency import Fluency, NgramModel, likeliest_row, likeliest_texts

BLANK, END, BEGIN, WORDS = 0, 4, 5, (1, 2, 3)
TEXTS = [[1, 2, 3], [1, 2], [1, 2, 3, 3], [2, 2]]
NGRAMS = NgramModel.count(TEXTS, vocab_size=6, begin=BEGIN, end=END)


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setattr(search, "BEAMS", 10_000)
    monkeypatch.setattr(search, "CUT", -math.inf)


def chances_of(seed: int, slots: int = 5, rows: int = 1) -> torch.Tensor:
    logits = 2 * torch.randn(rows, slots, 6, generator=torch.Generator().manual_seed(seed))
    logits[..., [END, BEGIN]] = -1e4
    return logits.log_softmax(-1)


def added(words, fluency: Fluency) -> float:
    """By the definition, word by word."""
    told = sum(NGRAMS.log_chance(words[:k], word) + NGRAMS.nats for k, word in enumerate(words))
    return fluency.weight * (told + NGRAMS.log_chance(words, END))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("seed", range(6))
def test_of_all_texts_that_slots_can_say_the_best_is_found(wide, seed, weight):
    told, fluency = chances_of(seed), Fluency(NGRAMS, weight)
    texts = {tuple(collapse(slots, BLANK)) for slots in product((BLANK, *WORDS), repeat=5)}

    def score(words):
        if not words:
            return told[0, :, BLANK].sum().item() + added(words, fluency)
        nats = alignment_nats(told, torch.tensor([5]), torch.tensor([words]), torch.tensor([len(words)]), blank=BLANK)
        return -nats.item() + added(words, fluency)

    best = max(texts, key=score)
    assert tuple(likeliest_texts(told, [5], blank=BLANK, fluency=fluency)[0]) == best


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("seed", range(6))
def test_of_all_rows_of_places_the_best_is_found(wide, seed, weight):
    told, fluency = chances_of(seed), Fluency(NGRAMS, weight)
    tokens, open_ = torch.tensor([[1, 9, 9, 2, 9]]), torch.tensor([[False, True, True, False, True]])

    def score(row):
        words = [word for word in row if word != BLANK]
        asked = sum(told[0, place, row[place]].item() for place in (1, 2, 4))
        return asked + added(words, fluency)

    rows = [(1, a, b, 2, c) for a, b, c in product((BLANK, *WORDS), repeat=3)]
    found = likeliest_row(told, tokens, open_, [5], blank=BLANK, fluency=fluency)[0].tolist()
    assert score(found) == pytest.approx(max(map(score, rows)), abs=1e-9)
    assert found[0] == 1 and found[3] == 2


def test_neighbours_of_two_texts_become_one():
    # Each of two places is torn between "1 2" and "2 3"; the likeliest words of each are of two texts: "1 3".
    told = torch.full((1, 2, 6), -1e4)
    told[0, 0, [1, 2]] = torch.tensor([0.51, 0.49])
    told[0, 1, [2, 3]] = torch.tensor([0.49, 0.51])
    ngrams = NgramModel.count([[1, 2], [2, 3]] * 4, vocab_size=6, begin=BEGIN, end=END)
    tokens, open_ = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
    told = told.log_softmax(-1)
    for weight, right in ((0.0, ([1, 3],)), (0.5, ([1, 2], [2, 3]))):
        fluency = Fluency(ngrams, weight)
        assert likeliest_row(told, tokens, open_, [2], blank=BLANK, fluency=fluency).tolist()[0] in right
        assert likeliest_texts(told, [2], blank=BLANK, fluency=fluency)[0] in right


def test_a_word_twice_needs_a_blank_between():
    told = torch.full((1, 3, 6), -20.0)
    told[0, [0, 2], 2] = 0.0
    for middle, right in ((BLANK, [2, 2]), (2, [2])):
        given = told.clone()
        given[0, 1, middle] = 0.0
        assert likeliest_texts(given.log_softmax(-1), [3], blank=BLANK, fluency=Fluency(NGRAMS, 0.1)) == [right]


def test_alignments_of_one_text_count_together(wide):
    # "1" by "1 –" and "1 2" by itself have 0.6 · 0.5 each; "2" by "2 –" and "2 2" has 2 · 0.4 · 0.5, more than either.
    chances = torch.tensor([[[0.0, 0.6, 0.4, 0, 0, 0], [0.5, 0.0, 0.5, 0, 0, 0]]]).clamp_min(1e-9)
    assert likeliest_texts(chances.log(), [2], blank=BLANK, fluency=Fluency(NGRAMS, 0.0)) == [[2]]


def test_of_two_ways_to_the_same_words_the_likelier_is_taken():
    told = torch.full((1, 3, 6), -1e4)
    told[0, 0, [1]] = 0.0
    told[0, 1, [BLANK, 2]] = torch.tensor([0.3, 0.7]).log()
    told[0, 2, [BLANK, 2]] = torch.tensor([0.6, 0.4]).log()
    tokens, open_ = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)
    for flip, right in ((False, [1, 2, BLANK]), (True, [1, BLANK, 2])):
        given = told[:, [0, 2, 1]] if flip else told
        found = likeliest_row(given, tokens, open_, [3], blank=BLANK, fluency=Fluency(NGRAMS, 0.01))
        assert found.tolist() == [right]


def test_what_is_certain_costs_no_search(monkeypatch):
    """A settled blank leaves nothing to try, however large the vocabulary."""
    tried = []
    monkeypatch.setattr(search, "_text", lambda slots, blanks, fluency: tried.append(slots) or [])
    told = torch.full((1, 2, 500), -30.0)
    told[0, 0, BLANK] = told[0, 1, 7] = 0.0
    likeliest_texts(told, [2], blank=BLANK, fluency=Fluency(NGRAMS, 0.5))
    assert tried == [[[], [(7, 1.0)]]]


def test_rows_do_not_see_each_other():
    told, fluency = chances_of(3, slots=7, rows=4), Fluency(NGRAMS, 0.5)
    counts = [7, 2, 5, 0]
    together = likeliest_texts(told, counts, blank=BLANK, fluency=fluency)
    alone = [likeliest_texts(told[k : k + 1], counts[k : k + 1], blank=BLANK, fluency=fluency)[0] for k in range(4)]
    assert together == alone and together[3] == []
    tokens, open_ = torch.ones(4, 7, dtype=torch.long), torch.rand(4, 7) < 0.6
    rows = likeliest_row(told, tokens, open_, counts, blank=BLANK, fluency=fluency)
    for k, count in enumerate(counts):
        one = likeliest_row(told[k : k + 1], tokens[k : k + 1], open_[k : k + 1], [count], blank=BLANK, fluency=fluency)
        assert torch.equal(rows[k], one[0])
        assert rows[k, count:].eq(1).all(), "places beyond a row's own stay"


def test_the_likeliest_label_is_tried_however_unsure_it_is():
    flat = torch.zeros(1, 1, 200)
    flat[0, 0, 3] = 0.01  # all of them are below the cut
    ngrams = NgramModel.count([], vocab_size=200, begin=BEGIN, end=END)
    assert likeliest_texts(flat.log_softmax(-1), [1], blank=BLANK, fluency=Fluency(ngrams, 0.0)) == [[3]]
    tokens, open_ = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    assert (
        likeliest_row(flat.log_softmax(-1), tokens, open_, [1], blank=BLANK, fluency=Fluency(ngrams, 0.0)).item() == 3
    )
