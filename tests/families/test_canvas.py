"""Texts to fill: what is given comes back as it was given, and what is too long is refused unread."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manta.errors import RequestError, UsageError
from manta.families.batching import padded_prompts
from manta.families.canvas import (
    Piece,
    Prompts,
    by_blank,
    check_length,
    filled,
    parse_template,
    partly_hidden,
    prompt_tokens,
)
from manta.families.canvas import pieces_of as cut
from manta.families.events import GenerateOptions, Request
from manta.families.observer import Observer
from manta.families.page import Page
from manta.runtime import make_generator
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


def pieces_of(text: str, most: int, longest: int) -> tuple[Piece, ...]:
    """Pieces, where a character is a token, and its code is less where it begins the text."""
    return cut(text, most, longest, lambda words, start: [ord(letter) - 1000 * start for letter in words])


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
    assert filled(pieces, [[5, 6], [7], [8], []], decode) == "a [5, 6] [7]b [8] []"
    assert filled((Piece("", 1), Piece("", 2), Piece("c", 0)), [[5], [6, 7], []], decode) == " [5]^ [6, 7]c []"
    assert by_blank(pieces, [5, 6, 7, 8]) == [[5, 6], [7], [8], []]
    assert filled((Piece(" ", 1), Piece("", 0)), [[5], []], decode) == " [5] []"


def test_a_text_is_cut_at_its_blanks():
    assert pieces_of("a ___ b___{3}", 20, 4) == (Piece("a ", 8), Piece(" b", 3, stated=True), Piece("", 0))
    assert pieces_of("____{20}", 20, 4) == (Piece("", 20, stated=True), Piece("", 0))
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


def test_words_to_change_stand_in_their_blanks_with_room_to_grow():
    cat, mats = tuple(map(ord, " cat")), tuple(map(ord, "matsmatsmats"))
    assert pieces_of("the [[cat]] sat", 20, 4) == (Piece("the ", 6, cat), Piece(" sat", 0))
    assert pieces_of("on[[matsmatsmats]]", 20, 4) == (Piece("on", 15, mats), Piece("", 0))
    assert pieces_of("[[ab]]", 20, 4) == (Piece("", 4, (97 - 1000, 98 - 1000)), Piece("", 0))
    assert pieces_of("a[[b]]\n[[c\nd]]", 20, 4)[1] == Piece("\n", 5, tuple(map(ord, "c\nd")))
    assert pieces_of("[[a]] [[ [b] ]] [[c", 20, 4)[-1] == Piece(" [[c", 0)
    for text, message in (
        ("[[a]] ___", "ask for one after the other"),
        ("[[]]", "no blank; write ___ .* around words that may change"),
        ("[[" + "x" * 81 + "]]", "has 85 characters"),
        ("[[" * 50_000, "no blank"),
    ):
        with pytest.raises(RequestError, match=message):
            pieces_of(text, 20, 4)


def test_a_text_to_change_is_a_canvas_with_what_stands_on_it():
    lm = MODELS["latent"]
    template = parse_template("the [[cat]] sat", lm.tokenizer, rate=4, max_cells=6)
    the, cat, sat = (lm.tokenizer.encode(word, start=True) for word in ("the", "cat", "sat"))
    blank = len(cat) + 2
    end = [NULL] * (-(len(the) + blank + len(sat)) % 4 or 4)
    assert template.old is not None
    assert template.tokens.tolist() == the + [MASK] * blank + sat + end
    assert template.old.tolist() == the + cat + [NULL] * 2 + sat + end
    assert template.text(template.old.tolist(), lm.tokenizer) == "the cat sat"


def test_a_share_of_the_words_is_hidden_and_all_at_full_strength():
    tokens, old = [7, *[MASK] * 7, 8], [7, 11, 12, 13, 14, 15, NULL, NULL, 8]
    seen = set()
    for seed in range(40):
        shown = partly_hidden(tokens, old, MASK, NULL, 0.41, make_generator(seed))
        assert shown[1:6].count(MASK) == 3 and all(a in (b, MASK) for a, b in zip(shown, old, strict=True))
        assert shown[6:8] == [MASK] * 2, "there is room to grow whatever the strength"
        seen |= {place for place, token in enumerate(shown[:6]) if token == MASK}
    assert seen == {1, 2, 3, 4, 5}
    assert partly_hidden(tokens, old, MASK, NULL, 1.0, make_generator(0)) == tokens
    assert partly_hidden(tokens, old, MASK, NULL, 0.01, make_generator(0))[1:6].count(MASK) == 1
    hundred = partly_hidden([MASK] * 100, list(range(10, 110)), MASK, NULL, 0.07, make_generator(0))
    assert hundred.count(MASK) == 7, "0.07 times 100 is a little above 7 in floating point"


@pytest.mark.parametrize("family", list(MODELS))
def test_changing_keeps_what_is_not_marked_alone_as_in_a_batch_within_the_budget(family):
    lm = MODELS[family]
    requests = [
        Request(prompt="rain", infill="the [[cat]] sat", seed=1),
        Request(prompt="rain", seed=2),
        Request(infill="[[the cat sat]]", seed=3),
        Request(infill="the ___ sat", seed=4),
    ]
    for options in (GenerateOptions(num_steps=4), GenerateOptions(num_steps=9, style="consensus", temperature=0.7)):
        for batch_size in (1, 2, 64):
            events = [e for e in lm.generate(requests, options, batch_size=batch_size) if e.kind == "done"]
            texts = {event.index: event.text for event in events}
            alone = [list(lm.generate([request], options))[-1].text for request in requests]
            assert [texts[i] for i in range(4)] == alone
            assert re.fullmatch("the.*sat", texts[0], re.DOTALL)
            assert max(event.nfe for event in events) <= options.num_steps


@pytest.mark.parametrize("family", list(MODELS))
def test_a_strength_needs_words_to_change_and_lies_between_0_and_1(family):
    lm = MODELS[family]
    for request in (Request(), Request(infill="the ___ sat")):
        (event,) = lm.generate([request], GenerateOptions(strength=0.3))
        assert event.error is not None and "words [[…]] to change, and the request has none" in str(event.error)
    for strength in (0.0, 1e-17, 1.1, float("nan")):
        with pytest.raises(UsageError, match=r"`strength` should (lie between 0\.001 and 1|be a finite number)"):
            GenerateOptions(strength=strength)


def test_full_strength_forgets_the_words_and_little_keeps_them():
    """Of an untrained masked model: at full strength a text is that of the blank, at little it is nearly as it was."""
    lm = MODELS["masked"]

    def written(infill: str, **options: float) -> str:
        return lm.write(infill=infill, num_steps=9, seed=5, **options)

    blank = parse_template("[[the cat sat]]", lm.tokenizer, rate=1, max_cells=25).pieces[0].blank
    assert written("[[the cat sat]]", strength=1.0) == written(f"___{{{blank}}}")
    old = parse_template("[[the cat sat]]", lm.tokenizer, rate=1, max_cells=25).old
    *_, done = lm.generate([Request(infill="[[the cat sat]]", seed=5)], GenerateOptions(strength=0.01))
    assert old is not None
    words = [(a, b) for a, b in zip(done.tokens, old.tolist(), strict=False) if b != NULL]
    assert sum(a != b for a, b in words) <= 1


def test_a_flow_begins_where_strength_puts_it_on_the_path():
    lm = MODELS["latent"]
    template = parse_template("[[the cat sat on]]", lm.tokenizer, rate=4, max_cells=6)
    for strength, batch in ((0.3, 2), (1.0, 1)):
        options = GenerateOptions(strength=strength, style="consensus")
        tokens, lengths = padded_prompts([[]] * batch, "cpu")
        prompts = Prompts(tokens, lengths, tuple(make_generator(seed) for seed in range(batch)))
        begun = lm._beginning(prompts, [template] * batch, options, encode=True)
        fresh = Prompts(tokens, lengths, tuple(make_generator(seed) for seed in range(batch)))
        noise = lm._noise(fresh, Page(begun.tokens, begun.mask, 4), options)
        assert template.old is not None
        clean = lm.model.encode(
            F.pad(template.old, (0, begun.mask.shape[1] - len(template.old)), value=NULL).expand(batch, -1),
            begun.mask,
            begun.memory,
        )
        t = float(lm.density.quantile(torch.tensor(1 - strength, dtype=torch.float64)))
        assert begun.t == t and (t == 0) == (strength == 1.0)
        assert begun.state is not None
        cells = begun.mask[:, ::4]
        assert torch.allclose(begun.state[cells], ((1 - t) * noise + t * clean)[cells], atol=1e-5)


def test_without_a_plan_the_policy_acts_at_the_time_of_the_text():
    lm, times = MODELS["latent"], []

    class Watching(Observer):
        def field(self, field, page, cond):
            def watched(state, t, **given):
                times.append(float(t.flatten()[0]))
                return field(state, t, **given)

            return watched

    for infill, strength in (("[[the cat sat]]", 0.1), ("the ___ sat", None)):
        times.clear()
        how = GenerateOptions(num_steps=6, flow_steps=0)
        how = how if strength is None else replace(how, strength=strength)
        list(lm.generate([Request(infill=infill)], how, observer=Watching()))
        begun = 0.0 if strength is None else float(lm.density.quantile(torch.tensor(0.9, dtype=torch.float64)))
        assert times == pytest.approx([begun] * len(times)) and times


def test_a_bracket_at_the_end_of_a_marked_text_belongs_to_it():
    assert pieces_of("[[ab]]]", 20, 4)[0].old == (97 - 1000, 98 - 1000, ord("]") - 1000)
    assert pieces_of("[[a]] b]", 20, 4) == (Piece("", 3, (97 - 1000,)), Piece(" b]", 0))


def test_a_budget_without_a_call_to_write_with_is_refused_by_the_flow():
    (event,) = MODELS["latent"].generate([Request(infill="[[the cat]]")], GenerateOptions(num_steps=1))
    assert event.error is not None and "raise `num_steps`" in str(event.error)
