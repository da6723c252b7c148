"""Blanks filled left to right: what a beam finds and what is drawn, against every span enumerated."""

from collections.abc import Iterable
from itertools import product

import pytest
import torch

from manta.autoregressive import filling, truncate
from manta.autoregressive.filling import Counted, Filling, Gap, Stage, Vocabulary, drawn, likeliest
from manta.errors import ModelError

from .test_decode import BEGIN, END, VOCAB, Table, generators

GIVEN = [3, 2]
BARRED = torch.tensor([word in (BEGIN, END) for word in range(VOCAB)])
SPACED = torch.tensor([word in (2, 4) for word in range(VOCAB)])
WORDS = Vocabulary(BEGIN, BARRED, SPACED)
GAPS = [Gap(3, False, [4, 3]), Gap(2, True, [2, END])]


def final(stages: Iterable[Stage]) -> list[Filling]:
    return list(stages)[-1].texts


def likelihood(table: Table, text: list[int], begin: int) -> float:
    """Of the words from a place on, given those before."""
    chances = [table.after(text[:at]).double().log_softmax(-1)[text[at]] for at in range(begin, len(text))]
    return float(sum(chances))


def spans(gap: Gap) -> list[tuple[int, ...]]:
    free = [word for word in range(VOCAB) if not BARRED[word]]
    found = [span for n in range(1, gap.most + 1) for span in product(free, repeat=n)]
    return [span for span in found if not gap.spaced or SPACED[span[0]]]


def fillings(gaps: list[Gap]) -> list[tuple[tuple[int, ...], ...]]:
    return list(product(*map(spans, gaps)))


def whole(gaps: list[Gap], fills: tuple[tuple[int, ...], ...]) -> list[int]:
    text = list(GIVEN)
    for gap, span in zip(gaps, fills, strict=True):
        text += [*span, *gap.behind]
    return text


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gaps", [GAPS, GAPS[:1], [Gap(2, False, []), GAPS[0]], [Gap(1, True, [END])]])
def test_a_wide_beam_finds_the_likeliest_text(gaps, seed):
    table = Table(2000, seed)
    texts = {fills: likelihood(table, whole(gaps, fills), len(GIVEN)) for fills in fillings(gaps)}
    best = final(likeliest(table, GIVEN, gaps, WORDS, 2000))[0]
    assert best.score == pytest.approx(max(texts.values()))
    assert texts[best.fills] == pytest.approx(best.score)
    assert list(best.words) == whole(gaps, best.fills)


def test_a_narrow_beam_tells_the_likelihood_of_what_it_finds_and_of_each_word():
    table = Table(4)
    last = final(likeliest(table, GIVEN, GAPS, WORDS, 4))
    assert [text.score for text in last] == sorted((text.score for text in last), reverse=True)
    for text in last:
        assert text.score == pytest.approx(likelihood(table, list(text.words), len(GIVEN)))
        own = [at for at, chance in enumerate(text.chances) if chance < 1]
        assert [text.words[at] for at in own] == [word for fill in text.fills for word in fill]
        for at in own:
            assert text.chances[at] == pytest.approx(
                float(table.after(text.words[:at]).double().softmax(-1)[text.words[at]])
            )


def test_what_is_drawn_is_distributed_as_texts_with_these_words_given():
    num, gaps = 6000, [Gap(2, False, [4, 3])]
    table = Table(num, 1)
    texts = {fills: likelihood(table, whole(gaps, fills), len(GIVEN)) for fills in fillings(gaps)}
    exact = torch.tensor(list(texts.values())).softmax(0)
    lengths = {fills: likelihood(table, [*GIVEN, *fills[0]], len(GIVEN)) for fills in texts}
    unseeing = torch.tensor(list(lengths.values())).softmax(0)
    rows = final(drawn(table, GIVEN, gaps, WORDS, generators(num + 1)))
    counts = torch.tensor([sum(row.fills == fills for row in rows) for fills in texts]) / num
    assert (counts - exact).abs().sum() / 2 < 0.04
    assert (unseeing - exact).abs().sum() / 2 > 0.15, "what is given behind has a say"


def test_several_blanks_are_drawn_one_after_the_other():
    num = 6000
    table = Table(num, 2)
    gaps = [Gap(1, False, [4]), Gap(1, True, [3, END])]
    texts = {fills: likelihood(table, whole(gaps, fills), len(GIVEN)) for fills in fillings(gaps)}
    exact = torch.tensor(list(texts.values())).softmax(0)
    rows = final(drawn(table, GIVEN, gaps, WORDS, generators(num + 1)))
    counts = torch.tensor([sum(row.fills == fills for row in rows) for fills in texts]) / num
    assert (counts - exact).abs().sum() / 2 < 0.05


def test_words_are_cut_before_they_are_drawn_and_never_to_nothing():
    table = Table(8)
    for top_k in (1, 2):
        rows = final(drawn(table, GIVEN, GAPS[1:], WORDS, generators(9), top_k=top_k))
        assert all(SPACED[row.fills[0][0]] and not BARRED[list(row.fills[0])].any() for row in rows)
    table.logits[..., END] = 9.0  # the one word that top_k leaves is barred
    rows = final(drawn(table, GIVEN, GAPS[:1], WORDS, generators(9), top_k=1))
    assert all(END not in row.fills[0] for row in rows)


def test_a_blank_takes_a_call_more_than_its_words():
    for gap in (Gap(1, False, [4]), Gap(3, False, [4, 3, END])):
        counted = Counted(Table(4))
        list(likeliest(counted, GIVEN, [gap], WORDS, 4))
        assert counted.calls == gap.most + 1
        begun = len(GIVEN) + 1
        assert counted.places == 4 * (begun + gap.most * len(gap.behind))
        counted = Counted(Table(4))
        list(drawn(counted, GIVEN, [gap], WORDS, generators(5)))
        assert counted.calls == gap.most + 1
        assert counted.places == 4 * (begun + gap.most * len(gap.behind))


def test_long_given_texts_are_read_in_parts(monkeypatch):
    gaps = [Gap(2, False, [4, 3, 2, 2, 3]), Gap(2, True, [3, 4, END])]
    whole = final(likeliest(Table(8), GIVEN, gaps, WORDS, 8))
    draws = final(drawn(Table(8), GIVEN, gaps, WORDS, generators(9)))
    monkeypatch.setattr(filling, "AT_ONCE", 2)
    table = Table(8)
    parts = final(likeliest(table, GIVEN, gaps, WORDS, 8))
    assert [text.fills for text in parts] == [text.fills for text in whole]
    assert [text.score for text in parts] == pytest.approx([text.score for text in whole])
    assert max(table.widths) == 2
    assert [text.fills for text in final(drawn(Table(8), GIVEN, gaps, WORDS, generators(9)))] == [
        text.fills for text in draws
    ]


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 0.6}])
def test_words_that_are_cut_away_come_only_where_no_others_fit(how):
    """Spans of words that top_k and top_p leave, weighed by what is given behind them, are what is drawn from."""
    num, gap, mixed = 4000, Gap(2, False, [4, 3]), 0
    for seed in range(4):
        table = Table(num, seed)
        mass: dict[tuple[int, ...], float] = {}
        for span in spans(gap):
            text = [*GIVEN, *span]
            chances = []
            for at in range(len(GIVEN), len(text)):
                logits = truncate(table.after(text[:at]).double(), **how)
                chances.append(float(logits.log_softmax(-1)[text[at]]))
            if sum(chances) > -torch.inf:
                mass[span] = sum(chances) + likelihood(table, [*text, *gap.behind], len(text))
        if not mass:
            continue
        mixed += 1
        exact = torch.tensor(list(mass.values())).softmax(0)
        rows = final(drawn(table, GIVEN, [gap], WORDS, generators(num + 1), **how))
        counts = torch.tensor([sum(row.fills[0] == span for row in rows) for span in mass]) / num
        assert (counts - exact).abs().sum() / 2 < 0.05, seed
    assert mixed > 1


def test_blanks_begin_and_end_with_whole_characters():
    """Of words that are halves of characters only pairs that go together fill a blank."""
    spelled = [b"", b"", b"a", b"\xc3", b"\xa9"]
    halves = Vocabulary(BEGIN, BARRED, SPACED, spelled)
    gap = Gap(3, False, [2, END])
    for seed in range(4):
        for texts in (
            final(likeliest(Table(64, seed), GIVEN, [gap], halves, 64)),
            final(drawn(Table(64, seed), GIVEN, [gap], halves, generators(65))),
        ):
            for text in texts:
                assert b"".join(spelled[word] for word in text.fills[0]).decode()


def test_damaged_logits_are_refused():
    table = Table(4)
    table.logits[:] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        list(likeliest(table, GIVEN, GAPS, WORDS, 4))
    with pytest.raises(ModelError, match="not finite"):
        list(drawn(table, GIVEN, GAPS, WORDS, generators(5)))


def test_a_text_grows_by_a_span_and_what_is_given_behind_it():
    text = Filling((3,), chances=(1.0,)).grown([2, 4], [0.5, 0.25], [3], -2.0)
    assert text == Filling((3, 2, 4, 3), ((2, 4),), (1.0, 0.5, 0.25, 1.0), -2.0)
