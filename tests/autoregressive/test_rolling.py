"""Texts beyond a model's window: what is told of a word is what half a window before it tells."""

from typing import Any

import pytest
import torch

from manta.autoregressive import Behind, Chooser, Later, decode, write_on

from .test_decode import BEGIN, END, VOCAB, Guesses, Table, generators

ROWS = 3


def choosers(temperature: float) -> list[Chooser]:
    return [
        Chooser(temperature=temperature, generators=generators(ROWS)[row : row + 1] if temperature else ())
        for row in range(ROWS)
    ]


def endless(seed: int) -> Table:
    """A table of two words of memory that hardly ever ends, and never begins."""
    table = Table(ROWS, seed)
    table.logits[..., END] -= 3.0
    return table


def rolled(table: Table, temperature: float, drafted: bool, window: int, most: int, **how: Any) -> list[list[int]]:
    words: list[list[int]] = [[] for _ in range(ROWS)]

    def reader_of(rows):
        table.read = [[] for _ in rows]
        return table

    drafts: dict[str, Any] = {"drafter": Guesses(table, 0.5), "num_drafts": 3} if drafted else {}
    for step in write_on(
        reader_of,
        choosers(temperature),
        [()] * ROWS,
        window=window,
        max_tokens=most,
        begin=BEGIN,
        end=END,
        **drafts,
        **how,
    ):
        assert [bool(found) for found in step.words] == [bool(computed) for computed in step.processed]
        for row, found in zip(words, step.words, strict=True):
            row += found
    return words


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("window", [4, 5, 9])
@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_where_half_a_window_tells_all_texts_are_those_of_an_endless_one(temperature, window, drafted, at_once):
    for seed in range(3):
        table = endless(seed)
        whole: list[list[int]] = [[] for _ in range(ROWS)]
        choose = Chooser(temperature=temperature, generators=generators(ROWS) if temperature else ())
        for step in decode(table, choose, [()] * ROWS, begin=BEGIN, end=END, max_tokens=40):
            for row, found in zip(whole, step.words, strict=True):
                row += found
        assert rolled(endless(seed), temperature, drafted, window, 40, at_once=at_once) == whole


@pytest.mark.parametrize("most", [1, 4, 5, 7, 23])
def test_a_text_has_no_more_words_than_asked_for(most):
    table = endless(1)
    table.logits[..., END] = -99.0
    assert [len(row) for row in rolled(table, 1.0, True, 4, most)] == [most] * ROWS


def test_what_is_read_never_outgrows_the_window():
    table = endless(0)
    longest = 0

    class Watched(Table):
        def __call__(self, tokens, starts):
            nonlocal longest
            longest = max(longest, *(start + len(row) for start, row in zip(starts, tokens, strict=True)))
            return super().__call__(tokens, starts)

    watched = Watched(ROWS, 0)
    watched.logits = table.logits
    rolled(watched, 1.0, False, 6, 60)
    assert longest == 6


def test_a_reader_behind_given_words_tells_what_it_tells_of_the_whole_row():
    table, given = Table(2), [[BEGIN, 2, 4, 3], [BEGIN, 3, 3, 2]]
    for at_once, multiple in ((True, 1), (True, 4), (False, 1)):
        behind = Behind(Table(2), given, multiple, at_once=at_once)
        told = behind([[BEGIN, 4], [BEGIN, 2]], [0, 0]).logits
        for row, new in ((0, 4), (1, 2)):
            assert torch.equal(told[row, 0], table.after(given[row][1:]))
            assert torch.equal(told[row, 1], table.after([*given[row][1:], new]))


def test_later_places_have_the_noise_of_their_own():
    one = Chooser(temperature=1.0, generators=generators(1))
    other = Later(Chooser(temperature=1.0, generators=generators(1)), 5)
    logits = torch.randn(1, 2, VOCAB)
    ahead = [one.noise(0, place, VOCAB) for place in range(8)]
    assert torch.equal(other.noise(0, 1, VOCAB), ahead[6])
    assert torch.equal(other.words(logits, [1]), one.words(logits, [6]))
    assert other.among(0, 2, [2, 3], [0.5, 0.5], VOCAB) == one.among(0, 7, [2, 3], [0.5, 0.5], VOCAB)
    other.forget(0, 2)
    assert torch.equal(other.noise(0, 2, VOCAB), ahead[7])
    with pytest.raises(Exception, match="needs 2 generators"):
        other.check(2)
