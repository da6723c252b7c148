"""Texts to fill: what is given comes back as it was given, and what is too long is refused unread."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manta.errors import RequestError
from manta.families.canvas import Piece, check_length, filled, parse_template, pieces_of, prompt_tokens
from manta.families.events import GenerateOptions, Request
from manta.text import MASK, NULL, Tokenizer

from .conftest import make_lm, make_masked

MODELS = {"masked": make_masked(), "latent": make_lm("latent"), "embedding": make_lm("embedding")}
BLANK = re.compile(r"_{3,}(?:\{\d+\})?")

given_text = st.lists(
    st.sampled_from([" ", "  ", "\n", "\t", "\r\n", "the", " cat", "a", ".", "é", "日", "\u00a0"]), max_size=4
).map("".join)
templates = st.lists(st.tuples(given_text, st.sampled_from(["___{1}", "___{2}"])), min_size=1, max_size=2).flatmap(
    lambda pieces: given_text.map(lambda last: "".join(text + blank for text, blank in pieces) + last)
)


def pattern(template: str) -> str:
    """What a filled template has to match: each piece as it stands, anything in the blanks."""
    return ".*".join(re.escape(piece) for piece in BLANK.split(template))


@pytest.mark.parametrize("family", list(MODELS))
@settings(max_examples=25, deadline=None)
@example("    return ___{1}", 0)
@example("a cat\n___{1}\n", 0)
@example("Name:  ___{1}", 0)
@example("x ___{1}   cat  ", 0)
@example(" ___{1} ___{1} ", 0)
@given(templates, st.integers(0, 100))
def test_what_is_given_comes_back_as_it_was_given(family, template, seed):
    lm = MODELS[family]
    try:
        events = list(lm.generate([Request(infill=template, seed=seed)], GenerateOptions(num_steps=4)))
    except RequestError as error:
        assert "at most" in str(error)
        return
    for event in events:
        if event.error is not None:
            assert "at most" in str(event.error)
            return
        assert re.fullmatch(pattern(template), event.text, re.DOTALL), (template, event.text)


def test_a_blank_takes_the_space_before_it_over():
    """The model is given the words without it, as their tokens carry it, and the text has it once."""
    lm = MODELS["masked"]
    template = parse_template("the ___{2} sat", lm.tokenizer, rate=1, max_cells=25)
    spaced, bare = lm.tokenizer.encode("cat"), lm.tokenizer.encode("cat", start=False)
    assert template.tokens[: len(lm.tokenizer.encode("the"))].tolist() == lm.tokenizer.encode("the")
    begin = len(lm.tokenizer.encode("the"))
    for fill in (spaced, bare):
        tokens = [*template.tokens[:begin].tolist(), *fill, *template.tokens[begin + 2 :].tolist()]
        wide = parse_template(f"the ___{{{len(fill)}}} sat", lm.tokenizer, rate=1, max_cells=25)
        assert wide.text(tokens, lm.tokenizer) == "the cat sat"


class Untouched(Tokenizer):
    """A tokenizer that must not be asked."""

    def __init__(self):
        self.longest = 10

    def encode(self, *_, **__):
        raise AssertionError("the text was tokenized")


@pytest.mark.parametrize("text", ["x" * 200, " " * 200, "___ " * 60, "_" * 2 + "x" * 300 + "___", "___" + "x" * 200])
def test_what_is_too_long_for_any_tokens_is_refused_unread(text):
    tokenizer = Untouched()
    if "___" in text:
        with pytest.raises(RequestError, match=r"the text to fill has [\d,]+ characters"):
            parse_template(text, tokenizer, rate=1, max_cells=12)
    else:
        with pytest.raises(RequestError, match=r"the prompt has [\d,]+ characters, the model reads at most 12 tokens"):
            prompt_tokens(Request(prompt=text), tokenizer, 12)


def test_a_prompt_of_white_space_is_none():
    lm = MODELS["latent"]
    empty = [list(lm.generate([Request(prompt=prompt, seed=3)]))[-1].text for prompt in (None, "", "  ", "\n")]
    assert len(set(empty)) == 1


@pytest.mark.parametrize("size", ["9" * 5000, "٣٣٣٣٣٣٣٣٣", "0"])
def test_a_blank_of_an_absurd_size_is_refused(size):
    with pytest.raises(RequestError, match="a blank takes 1 to 25 tokens"):
        parse_template(f"a ___{{{size}}}", MODELS["masked"].tokenizer, rate=1, max_cells=25)


def test_the_words_of_a_blank_begin_the_text_only_where_nothing_stands_before_them():
    def decode(words: list[int], start: bool) -> str:
        return f" {words}{'^' if start else ''}"

    pieces = (Piece("a ", 2), Piece("", 1), Piece("b", 1), Piece("", 0))
    assert filled(pieces, [5, 6, 7, 8], decode) == "a [5, 6] [7]b [8] []"
    assert filled((Piece("", 1), Piece("", 2), Piece("c", 0)), [5, 6, 7], decode) == " [5]^ [6, 7]c []"
    assert filled((Piece(" ", 1), Piece("", 0)), [5], decode) == " [5] []"


def test_a_text_is_cut_at_its_blanks():
    assert pieces_of("a ___ b___{3}", 20, 4) == (Piece("a ", 8), Piece(" b", 3), Piece("", 0))
    assert pieces_of("____{20}", 20, 4) == (Piece("", 20), Piece("", 0))
    for text, message in (("x ___{0}", "1 to 20"), ("x ___{21}", "1 to 20"), ("x", "no blank")):
        with pytest.raises(RequestError, match=message):
            pieces_of(text, 20, 4)
    assert pieces_of("x" * 80 + "___{1}", 20, 4)[0].text == "x" * 80
    assert pieces_of("___{1}" + "x" * 80, 20, 4)[1].text == "x" * 80
    for text in ("x" * 81 + "___{1}", "___{1}" + "x" * 81, "___{1} " * 21):
        with pytest.raises(RequestError, match="characters"):
            pieces_of(text, 20, 4)
    assert len(pieces_of("___{1}" * 2, 2, 4)) == 3


def test_a_message_shows_the_beginning_of_a_long_prompt():
    with pytest.raises(RequestError) as raised:
        check_length("a" * 61 + "b", 3, 4)
    assert str(raised.value).endswith(f"shorten it: {'a' * 60!r}")


def test_a_prompt_may_be_as_long_as_the_model_reads():
    tokenizer = MODELS["masked"].tokenizer
    tokens = tokenizer.encode("the cat sat")
    assert prompt_tokens(Request(prompt="the cat sat"), tokenizer, len(tokens)) == tokens
    with pytest.raises(RequestError, match="reads at most"):
        prompt_tokens(Request(prompt="the cat sat"), tokenizer, len(tokens) - 1)
    check_length("x" * 12, 3, 4)
    with pytest.raises(RequestError, match="has 13 characters, the model reads at most 3 tokens"):
        check_length("x" * 13, 3, 4)


def test_a_canvas_is_whole_latents_with_a_closing_null_and_has_its_room():
    tokenizer = MODELS["masked"].tokenizer
    for blank, rate, cells in ((7, 4, 2), (8, 4, 3), (3, 4, 1), (4, 4, 2), (5, 1, 6)):
        template = parse_template(f"___{{{blank}}}", tokenizer, rate=rate, max_cells=cells)
        assert template.tokens.tolist() == [MASK] * blank + [NULL] * (cells * rate - blank)
        with pytest.raises(RequestError):
            parse_template(f"___{{{blank}}}", tokenizer, rate=rate, max_cells=cells - 1)
