"""The next token held to an automaton, place by place: what may come in the room that is left, behind drafts too."""

import pytest
import torch

from manta.errors import UsageError
from manta.families.events import GenerateOptions
from manta.families.structured import NextHeld, automaton_for, check_room
from manta.text import Tokenizer
from manta.text.automaton import TokenAutomaton

A, B, C, D, END, SIZE = 2, 3, 4, 5, 0, 6
INF = -torch.inf


def automaton() -> TokenAutomaton:
    """a (b a)* c, or c alone, either with or without d behind it."""
    rows = torch.tensor([[0, A, 1], [0, C, 3], [1, B, 2], [1, C, 3], [2, A, 1], [3, D, 4]])
    accepting = torch.tensor([False, False, False, True, True])
    return TokenAutomaton(0, accepting, rows[:, 0], rows[:, 1], rows[:, 2])


def allowed(written: list[list[int]], drafts: list[list[int]], room: int, hold: NextHeld | None = None) -> list:
    """Tokens that are left at each place of each row; None where all are."""
    places = 1 + max(map(len, drafts))
    logits = torch.randn(len(written), places, SIZE, generator=torch.Generator().manual_seed(0))
    told = (hold or NextHeld(automaton(), END, room, len(written)))(logits, written, drafts)
    kept = told > INF
    assert torch.equal(told[kept], logits[kept]), "what is left is as it was"
    return [[None if place.all() else place.nonzero()[:, 0].tolist() for place in row] for row in kept]


def reached(words: list[int]) -> int | None:
    state: int | None = 0
    for word in words:
        state = None if state is None else automaton().onward(state).get(word)
    return state


@pytest.mark.parametrize("room", range(1, 7))
def test_a_token_stays_if_some_text_that_matches_goes_on_with_it_within_the_room(room):
    """Against all texts there are, without a draft."""
    texts: list[list[int]] = [[C], [C, D]]
    texts += [[*[A, B] * n, A, C, *rest] for n in range(4) for rest in ([], [D])]
    texts = [text for text in texts if len(text) <= room]
    for text in texts:
        for count in range(len(text) + 1):
            begun = text[:count]
            after = {t[count] for t in texts if len(t) > count and t[:count] == begun}
            after |= {END} if begun in texts else set()
            assert allowed([begun], [[]], room) == [[sorted(after)]], begun


def test_drafts_are_followed_as_long_as_they_match():
    assert allowed([[]], [[A, B, A]], 9) == [[[A, C], [B, C], [A], [B, C]]]
    assert allowed([[]], [[A, A, B]], 9) == [[[A, C], [B, C], None, None]], "behind a draft that cannot be, all is left"
    assert allowed([[A]], [[C, D, END]], 9) == [[[B, C], [END, D], [END], None]]
    # In a room of three b is no way on from a: it would take two more.
    assert allowed([[]], [[A, B]], 3) == [[[A, C], [C], None]]
    assert allowed([[]], [[A, C, D]], 3) == [[[A, C], [C], [END, D], [END]]]


def test_rows_go_on_apart_from_each_other_and_from_where_they_were():
    hold = NextHeld(automaton(), END, 9, 3)
    assert allowed([[], [A], [C, END]], [[], [B], []], 9, hold) == [[[A, C], None], [[B, C], [A]], [None, None]]
    assert allowed([[A], [A, B], [C, END]], [[], [], []], 9, hold) == [[[B, C]], [[A]], [None]]
    assert allowed([[A, C], [A, B, A], [C, END]], [[], [], []], 9, hold) == [[[END, D]], [[B, C]], [None]]
    assert hold._reached == [(2, 3), (3, 1), (0, 0)]


def test_a_pattern_needs_the_room_of_its_shortest_text():
    held = automaton()
    check_room(held, 1)
    with pytest.raises(UsageError, match="takes 1 tokens, and there is room for 0"):
        check_room(held, 0)


def test_an_automaton_is_made_where_a_pattern_or_a_schema_is_asked_for():
    tokenizer = Tokenizer.train(["yes no 12"], 512)
    assert automaton_for(GenerateOptions(), tokenizer) is None
    for options, text in ((GenerateOptions(pattern="yes"), "yes"), (GenerateOptions(schema='{"enum": [12]}'), "12")):
        made = automaton_for(options, tokenizer)
        assert made is not None and made.accepts(tokenizer.encode(text)) and not made.accepts(tokenizer.encode("no"))
