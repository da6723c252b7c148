"""Streams only ever add: what was sent stands, whatever drafts, stops and bounds come."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.errors import ModelError, RequestError
from manta.families.events import Event as E
from manta.families.events import GenerateOptions, Request
from manta.server.asking import Asked
from manta.server.telling import FORMS, Choice, Telling

LETTERS = SimpleNamespace(
    encode=lambda text, start=True: [ord(letter) for letter in text],
    decode=lambda ids, start=True: "".join(map(chr, ids)),
    whole=len,
)
LM = SimpleNamespace(tokenizer=LETTERS, family="manta", frame=None)


def choice_of(stops: tuple[str, ...] = (), most: int | None = None, before: str = "") -> Choice:
    request = Request(options=GenerateOptions(num_steps=5))
    return Choice(LM, Asked((request,), stops, most, most, (before,)), 0)


def draft(text: str, standing: int) -> E:
    return E("draft", 0, text, (), 0.5, 0.5, 1, standing=standing)


def done(text: str) -> E:
    return E("done", 0, text, tuple(map(ord, text)), 1.0, 0.9, 2)


def sent(choice: Choice, text: str, cuts: list[int]) -> str:
    told = ""
    for cut in sorted(cuts):
        told += choice.more(draft(text + " and a draft", min(cut, len(text))))
    return told + choice.rest(choice.ended(done(text))[0])


@given(
    st.text("abc\ufffd", max_size=12),
    st.lists(st.integers(0, 12), max_size=6),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from(["", "p"]),
)
def test_what_is_streamed_is_the_text_that_is_told_whole(text, cuts, stops, most, before):
    choice = choice_of(tuple(stops), most, before)
    expected = choice.ended(done(text))[0]
    assert sent(choice, text, cuts) == expected
    own = expected.removeprefix(before)
    assert text.startswith(own)
    assert not any(stop in own for stop in stops)
    assert most is None or len(own) <= most


def test_a_stop_is_held_back_until_it_is_none():
    choice = choice_of(("stop",))
    assert choice.more(draft("go st", 5)) == "go "
    assert choice.more(draft("go stay", 7)) == "stay"
    assert choice.more(draft("go stay sto", 11)) == " "
    assert choice.ended(done("go stay stop now"))[:2] == ("go stay ", "stop")
    assert choice.rest("go stay ") == ""


def test_half_a_character_is_held_back():
    choice = choice_of()
    assert choice.more(draft("caf\ufffd", 4)) == "caf"
    assert choice.more(draft("café", 4)) == "é"


@pytest.mark.parametrize(
    ("text", "most", "told"), [("abcdef", 3, ("abc", "length", 3)), ("abc", 3, ("abc", "stop", 3))]
)
def test_a_bound_that_the_model_does_not_follow_cuts(text, most, told):
    assert choice_of(most=most).ended(done(text)) == told


def test_a_bound_that_is_followed_is_told_by_the_tokens_written():
    """Not by those of the text, read anew: what was written in three tokens may be read as two."""
    joined = SimpleNamespace(**{**vars(LETTERS), "encode": lambda text, start=True: [1] * (len(text) // 2)})
    request = Request(options=GenerateOptions(max_tokens=3))
    lm = SimpleNamespace(tokenizer=joined, family="ar", frame=None)
    assert Choice(lm, Asked((request,), (), None, 3, ("",)), 0).ended(done("abc")) == ("abc", "length", 3)
    assert Choice(lm, Asked((request,), (), None, 4, ("",)), 0).ended(done("abc")) == ("abc", "stop", 3)
    assert Choice(lm, Asked((request,), ("c",), None, 3, ("",)), 0).ended(done("abc")) == ("ab", "stop", 1)


def test_a_published_models_end_is_no_word_of_the_text():
    request = Request(options=GenerateOptions(max_tokens=4))
    lm = SimpleNamespace(tokenizer=LETTERS, family="llada", frame=None, eos_id=ord("$"))
    ended = E("done", 0, "ab", tuple(map(ord, "ab$$")), 1.0, 0.9, 2)
    assert Choice(lm, Asked((request,), (), None, 4, ("",)), 0).ended(ended) == ("ab", "stop", 2)
    full = E("done", 0, "abcd", tuple(map(ord, "abcd")), 1.0, 0.9, 2)
    assert Choice(lm, Asked((request,), (), None, 4, ("",)), 0).ended(full) == ("abcd", "length", 4)


def test_a_long_stop_costs_no_more_than_the_text_is_long():
    choice = choice_of(("x" * 1_000_000,))
    assert [choice.more(draft("axxx", k)) for k in range(5)] == ["", "a", "", "", ""]


def test_a_frame_tells_each_token_and_how_sure_it_is():
    choice = choice_of()
    event = E("draft", 0, "ab", (97, 98), 0.25, 0.75, 3, chances=(0.9, 0.6))
    assert choice.frame(event) == {
        "type": "diffusion_frame",
        "index": 0,
        "step": 3,
        "total": 5,
        "text": "ab",
        "t": 0.25,
        "confidence": 0.75,
        "words": [["a", 0.9], ["b", 0.6]],
    }


def test_a_frame_makes_no_number_up():
    """A model that tells no word's confidence, and a road without a time or a budget."""
    request = Request(options=GenerateOptions(decoder="sequential"))
    lm = SimpleNamespace(tokenizer=LETTERS, family="aligned", frame=None)
    frame = Choice(lm, Asked((request,), (), None, None, ("",)), 0).frame(E("draft", 0, "a", (97,), 1.0, 0.5, 3))
    assert (frame["words"], frame["t"], frame["total"], frame["step"]) == ([["a", None]], None, None, 3)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ModelError("writing failed"), "server_error"), (RequestError("too long"), "invalid_request_error")],
)
def test_a_stream_that_breaks_off_says_whose_fault_it_was(error, kind):
    """No `[DONE]`, and no word of a wrong request where the model is what failed."""

    class Breaking:
        async def events(self):
            yield 0, draft("ab", 2)
            yield 0, E("failed", 0, "", (), 0.0, 0.0, 0, error=error)

    async def told() -> list[bytes]:
        asked = Asked((Request(options=GenerateOptions(num_steps=5)),), (), None, None, ("",))
        telling = Telling(FORMS["completion"], "one", LM, asked, 0.0, lambda event, tokens: None)
        stream = telling.stream(Breaking(), drafts=False, usage=True)  # pyright: ignore[reportArgumentType]
        return [chunk async for chunk in stream]

    first, last = (json.loads(chunk.removeprefix(b"data: ")) for chunk in asyncio.run(told()))
    assert first["choices"][0]["text"] == "ab"
    assert last["error"]["type"] == kind and last["error"]["message"] == str(error)
