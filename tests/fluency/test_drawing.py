"""Draws of a whole text: as often as the definition says, enumerated; what stands stands."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

import manta.fluency.drawing as drawing
from manta.fluency import Fluency, NgramModel, drawn_row

from .test_search import BEGIN, BLANK, END, NGRAMS, added, chances_of

DRAWS = 1_500


def draws(told, tokens, open_, fluency, temperature=1.0, seed=0):
    count, places = DRAWS, tokens.shape[1]
    uniform = np.random.default_rng(seed).random((count, places + 1))
    rows = drawn_row(
        told.expand(count, -1, -1),
        tokens.expand(count, -1),
        open_.expand(count, -1),
        [places] * count,
        blank=BLANK,
        fluency=fluency,
        temperature=temperature,
        uniform=list(uniform),
    )
    return Counter(map(tuple, rows.tolist()))


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.5, 1.0), (1.5, 0.7)])
def test_rows_come_as_often_as_the_definition_says(weight, temperature):
    told, fluency = chances_of(1, slots=4), Fluency(NGRAMS, weight)
    tokens, open_ = torch.tensor([[9, 9, 2, 9]]), torch.tensor([[True, True, False, True]])
    scores = {}
    for first, second, last in product((BLANK, 1, 2, 3), repeat=3):
        row = (first, second, 2, last)
        asked = sum(told[0, place, row[place]].item() for place in (0, 1, 3))
        scores[row] = (asked + added([w for w in row if w != BLANK], fluency)) / temperature
    shares = np.exp(np.array(list(scores.values())))
    shares /= shares.sum()
    times = draws(told, tokens, open_, fluency, temperature)
    assert set(times) <= set(scores)
    found = np.array([times[row] for row in scores])
    expected = DRAWS * shares
    often = expected > 5
    chi = ((found - expected)[often] ** 2 / expected[often]).sum()
    assert chi < often.sum() + 4 * (2 * often.sum()) ** 0.5  # a mean of its degrees of freedom, four deviations
    assert found[~often].sum() < expected[~often].sum() + 5 * expected[~often].sum() ** 0.5 + 5


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1e-300), (0.5, 1e-9), (0.5, 1e-3), (100.0, 0.01)])
def test_cold_draws_are_the_likeliest_row_whatever_the_chances(weight, temperature):
    fluency, rows = Fluency(NGRAMS, weight), list(product((BLANK, 1, 2, 3), repeat=3))
    for seed in range(25):
        told = chances_of(seed, slots=3).clone()
        told[0, 1, 1] = -torch.inf

        def score(row, told=told):
            asked = sum(told[0, place, word].item() for place, word in enumerate(row))
            return asked + added([word for word in row if word != BLANK], fluency)

        found = drawn_row(
            told,
            torch.full((1, 3), 9),
            torch.ones(1, 3).bool(),
            [3],
            blank=BLANK,
            fluency=fluency,
            temperature=temperature,
            uniform=[np.random.default_rng(seed).random(4)],
        )
        assert tuple(found[0].tolist()) == max(rows, key=score)


def test_the_last_number_chooses_how_the_text_ends():
    """Of two rows that are alike but for the end, by the number behind those of the places."""
    told = torch.full((1, 1, 6), -1e4)
    told[0, 0, [1, 2]] = 0.5**0.5  # two equally likely words
    how = {"blank": BLANK, "fluency": Fluency(NGRAMS, 0.0), "temperature": 1.0}
    tokens, open_ = torch.full((1, 1), 9), torch.ones(1, 1).bool()
    ends = [drawn_row(told, tokens, open_, [1], uniform=[np.array([0.5, last])], **how).item() for last in (0.1, 0.9)]
    assert ends == [1, 2]


def test_chances_of_many_are_those_of_each():
    for before in ([], [1], [1, 2], [2, 3, 3], [3, 1, 2, 2]):
        last = np.array([NGRAMS.nothing])
        for word in before:
            last = NGRAMS.after(last, np.array([word]))
        told = NGRAMS.log_chances(last, np.arange(6))
        assert told.tolist() == pytest.approx([NGRAMS.log_chance(before, word) for word in range(6)], abs=1e-12)


def test_counts_of_single_words_know_no_others(monkeypatch):
    """A vocabulary so large that pairs have no number."""
    monkeypatch.setattr("manta.fluency.ngrams.lengths", lambda size: [])
    ngrams = NgramModel.count([[1, 2], [1]], vocab_size=6, begin=BEGIN, end=END)
    assert ngrams.nothing == 0 and ngrams.after(np.array([0]), np.array([3])).tolist() == [0]
    told = ngrams.log_chances(np.array([0]), np.arange(6))
    assert told.tolist() == pytest.approx([ngrams.log_chance([2], word) for word in range(6)])


def test_only_likely_tokens_and_beginnings_are_followed(monkeypatch):
    monkeypatch.setattr(drawing, "TRIED", 2)
    told = chances_of(2, slots=3)
    tokens, open_ = torch.full((1, 3), 9), torch.ones(1, 3).bool()
    two = told[0].topk(2, -1).indices.tolist()
    drawn = draws(told, tokens, open_, Fluency(NGRAMS, 0.5))
    assert set(drawn) <= set(product(*two)) and len(drawn) > 2
    monkeypatch.setattr(drawing, "STATES", 1)
    assert len({row[:2] for row in draws(told, tokens, open_, Fluency(NGRAMS, 0.0))}) <= 3


def test_rows_of_fewer_places_leave_the_rest_as_it_is():
    told, tokens = chances_of(3, slots=4, rows=2), torch.full((2, 4), 7)
    uniform = [np.full(5, 0.5)] * 2
    how = {"blank": BLANK, "fluency": Fluency(NGRAMS, 0.5), "temperature": 1.0}
    found = drawn_row(told, tokens, torch.ones(2, 4).bool(), [4, 2], uniform=uniform, **how)
    assert found[1, 2:].tolist() == [7, 7] and not (found[0] == 7).any()
    alone = drawn_row(told[1:, :2], tokens[1:, :2], torch.ones(1, 2).bool(), [2], uniform=[np.full(3, 0.5)], **how)
    assert alone[0].tolist() == found[1, :2].tolist()
