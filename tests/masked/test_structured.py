"""A canvas that is held to an automaton: the likeliest accepted text, exact draws, exact posteriors."""

import itertools
import math
from functools import cache

import pytest
import torch

from manta.errors import ModelError, UsageError
from manta.masked import (
    DECODERS,
    Held,
    StructuredSampler,
    completes,
    decode,
)
from manta.masked.structured import LEAST, _path
from manta.runtime import make_generator
from manta.text.automaton import TokenAutomaton

MASK, END, A, B, C = 1, 0, 2, 3, 4
TOKENS = 5


def automaton() -> TokenAutomaton:
    """a (b a)* c, or c alone."""
    rows = torch.tensor([[0, A, 1], [0, C, 3], [1, B, 2], [1, C, 3], [2, A, 1]])
    accepting = torch.tensor([False, False, False, True])
    return TokenAutomaton(0, accepting, rows[:, 0], rows[:, 1], rows[:, 2])


@cache
def texts(n: int, *, gaps: bool) -> list[tuple[int, ...]]:
    """Every canvas of n free places that is accepted: its ends stand behind its words."""
    found = []
    for row in itertools.product(range(TOKENS), repeat=n):
        words = [token for token in row if token != END]
        ends = row[len(words) :] == (END,) * (n - len(words))
        if MASK not in row and automaton().accepts(words) and ends:
            found.append(row)
    return found


def logits_of(n: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(1, n, TOKENS, generator=make_generator(seed), dtype=torch.float64)


def sampler_of(n: int, *, gaps: bool = False, **how) -> StructuredSampler:
    mask = torch.ones(1, n, dtype=torch.bool)
    return StructuredSampler([Held(automaton(), END, gaps=gaps)], mask, MASK, **how)


def chances(logits: torch.Tensor, rows: list[tuple[int, ...]]) -> torch.Tensor:
    told = logits[0].log_softmax(-1)
    return torch.tensor([sum(float(told[i, token]) for i, token in enumerate(row)) for row in rows]).exp()


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_likeliest_accepted_text_and_the_posterior_of_its_words(gaps, seed):
    rows, logits = texts(5, gaps=gaps), logits_of(5, seed)
    weights = chances(logits, rows)
    best = rows[int(weights.argmax())]
    words, sure = sampler_of(5, gaps=gaps)(logits, 0, torch.full((1, 5), MASK))
    assert tuple(words[0].tolist()) == best
    for place, word in enumerate(best):
        share = sum(float(w) for row, w in zip(rows, weights, strict=True) if row[place] == word) / float(weights.sum())
        assert float(sure[0, place]) == pytest.approx(share, rel=1e-6)


def test_words_that_stand_are_kept_and_count():
    logits, given = logits_of(5, 3), torch.tensor([[MASK, B, MASK, MASK, MASK]])
    rows = [row for row in texts(5, gaps=False) if row[1] == B]
    weights = chances(logits, rows)
    words, _ = sampler_of(5)(logits, 0, given)
    assert tuple(words[0].tolist()) == rows[int(weights.argmax())]
    with pytest.raises(UsageError, match="keeps the words that stand"):
        sampler_of(5)(logits, 0, torch.tensor([[B, MASK, MASK, MASK, MASK]]))


def test_draws_follow_the_distribution_of_accepted_texts():
    rows, logits = texts(4, gaps=False), logits_of(4, 1)
    weights = chances(logits / 1.5, rows)
    counts = dict.fromkeys(rows, 0)
    sampler = sampler_of(4, temperature=1.5, generators=[make_generator(0)], width=4)
    given = torch.full((1, 4), MASK)
    for _ in range(4000):
        counts[tuple(sampler(logits, 0, given)[0][0].tolist())] += 1
    expected = weights / weights.sum() * 4000
    chi = sum((counts[row] - float(e)) ** 2 / float(e) for row, e in zip(rows, expected, strict=True))
    assert chi < 3 * len(rows)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ends_last", [False, True])
def test_every_decoder_ends_in_an_accepted_text(kind, temperature, ends_last):
    for seed in range(5):
        n = 6
        noise = make_generator(seed)
        *_, canvas = decode(
            lambda tokens, start, stop: torch.randn(1, n, TOKENS, generator=noise)[:, start:stop],  # noqa: B023
            torch.full((1, n), MASK),
            DECODERS[kind]().build(),
            mask_id=MASK,
            sampler=sampler_of(n, temperature=temperature, generators=[make_generator(seed)], width=n),
            end_id=END,
            ends_last=ends_last,
            max_calls=3,
            judge=lambda: torch.rand(1, n, generator=noise),  # noqa: B023
        )
        assert tuple(canvas.tokens[0].tolist()) in texts(n, gaps=False)


def test_what_can_be_completed_is_known_before():
    held = Held(automaton(), END)
    for given in ([MASK] * 3, [A, MASK, MASK], [MASK, C, MASK], [C, END, END], [MASK, END, END]):
        assert completes(held, torch.tensor(given), MASK)
    for given in ([B, MASK, MASK], [MASK, MASK, C], [MASK, A, MASK], [A, MASK, A], [END, MASK, MASK], [A, B, END]):
        assert not completes(held, torch.tensor(given), MASK)
    filled = Held(automaton(), END, gaps=True)
    for given in ([END, A, END, C], [MASK, MASK, C], [MASK, END, C], [A, MASK, MASK, A, C]):
        assert completes(filled, torch.tensor(given), MASK)
    assert not completes(filled, torch.tensor([END, MASK]), MASK)  # behind an end a blank has no words


def test_a_blank_has_its_words_before_its_ends():
    """A blank before the last word, and one behind the first: of both, what is accepted."""
    given = torch.tensor([[MASK, MASK, MASK, C, MASK]])
    for seed in range(20):
        noise = make_generator(seed)
        *_, canvas = decode(
            lambda tokens, start, stop: torch.randn(1, 5, TOKENS, generator=noise)[:, start:stop],  # noqa: B023
            given,
            DECODERS["deferred"]().build(),
            mask_id=MASK,
            sampler=sampler_of(5, gaps=True, temperature=1.0, generators=[make_generator(seed)], width=5),
            end_id=END,
        )
        row = canvas.tokens[0].tolist()
        assert automaton().accepts([token for token in row if token != END])
        blank = row[:3]
        assert END not in blank or all(token == END for token in blank[blank.index(END) :])


def test_a_part_of_a_canvas_is_refused():
    with pytest.raises(UsageError, match="looked at as a whole"):
        sampler_of(5)(logits_of(3), 0, torch.full((1, 5), MASK))


def test_distances_are_the_fewest_tokens():
    assert automaton().distance.tolist() == [1, 1, 2, 0]
    assert math.isfinite(float(sampler_of(2)(logits_of(2), 0, torch.full((1, 2), MASK))[1].sum()))


def test_logits_that_are_not_finite_are_an_error():
    logits = torch.zeros(1, 4, TOKENS)
    logits[0, 2, A] = torch.nan
    with pytest.raises(ModelError):
        sampler_of(4, width=4)(logits, 0, torch.full((1, 4), MASK))


@pytest.mark.parametrize("kind", ["probability", "margin", "entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_confidences_are_those_of_the_posterior_over_all_texts(kind, seed):
    rows, logits = texts(4, gaps=False), logits_of(4, seed)
    weights = chances(logits, rows)
    words, sure = sampler_of(4, confidence=kind)(logits, 0, torch.full((1, 4), MASK))
    for place in range(4):
        shares = [0.0] * TOKENS
        for row, weight in zip(rows, (weights / weights.sum()).tolist(), strict=True):
            shares[row[place]] += weight
        first, second = sorted(shares, reverse=True)[:2]
        expected = {
            "probability": shares[int(words[0, place])],
            "margin": first - second,
            "entropy": sum(share * math.log(share) for share in shares if share > 0),
        }[kind]
        assert float(sure[0, place]) == pytest.approx(expected, abs=1e-6)


def test_rows_of_different_widths_are_held_apart():
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    logits = torch.cat([logits_of(5, 1), logits_of(5, 2)])
    both = StructuredSampler([Held(automaton(), END)] * 2, mask, MASK)
    words, sure = both(logits, 0, torch.full((2, 5), MASK))
    for row, n in ((0, 5), (1, 3)):
        alone, own = sampler_of(n)(logits[row : row + 1, :n], 0, torch.full((1, n), MASK))
        assert torch.equal(words[row, :n], alone[0])
        torch.testing.assert_close(sure[row, :n], own[0])
    assert not words[1, 3:].any() and not sure[1, 3:].any()


def test_what_stands_from_the_first_call_on_is_given_and_words_written_later_are_not():
    """With gaps, behind an end only a word given from the start may follow; a canvas of one call is told by itself."""
    given = torch.tensor([[A, END, C]])
    words, sure = sampler_of(3, gaps=True)(logits_of(3), 0, given)
    assert words.tolist() == given.tolist() and sure.tolist() == [[1.0] * 3]
    sampler = sampler_of(3, gaps=True)
    sampler(logits_of(3), 0, torch.full((1, 3), MASK))
    with pytest.raises(UsageError, match="keeps the words that stand"):
        sampler(logits_of(3), 0, given)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_a_draw_is_the_word_at_which_the_shares_of_the_texts_exceed_it(share):
    """Place by place: the words in the order of the edges, each by the texts that go on with it."""
    for seed in range(4):
        rows, logits = texts(4, gaps=False), logits_of(4, seed)
        weights = dict(zip(rows, chances(logits, rows).tolist(), strict=True))
        edges = Held(automaton(), END).edges
        told = logits[0].log_softmax(-1)
        told[:, MASK] = LEAST
        given = torch.zeros(4, dtype=torch.bool)
        words, _ = _path(told, edges, given, 0, torch.full((4,), share, dtype=torch.float64), "probability")
        begun: list[int] = []
        state = 0
        for place in range(4):
            after = {row: weight for row, weight in weights.items() if list(row[:place]) == begun}
            left = share * sum(after.values())
            leaving = [edge for edge, source in enumerate(edges.sources.tolist()) if source == state]
            for edge in leaving:
                left -= sum(weight for row, weight in after.items() if row[place] == int(edges.tokens[edge]))
                if left < 0:
                    begun.append(int(edges.tokens[edge]))
                    state = int(edges.targets[edge])
                    break
        assert words.tolist() == begun
