"""Texts with blanks, filled left to right: what is given stays, and a text depends on nothing but its request."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from manta.errors import RequestError, UsageError
from manta.families import filling
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.batching import to_batch
from manta.families.cached import CachedReader
from manta.families.decoder import DecoderConfig, DecoderLM, DecoderModel
from manta.families.events import Event, GenerateOptions, Request, finished
from manta.families.observer import Observer
from manta.operators import DijiangConfig
from manta.text import EOS, HUMAN, ForeignTokenizer, Tokenizer

from .conftest import SMALL, make_aligned, make_ar, random_weights

TEXTS = [
    "the ___ sat on a ___{3} mat",
    "the cat ___{2} rain fell",
    "___ near some old river",
    "the cat sat ___{6}",
    "the ___{2} river while ___{9}",
    "(___{1}) of it",
    "___{5}",
    "cat ___{2} ___{2} mat",
]
DRAWN = GenerateOptions(temperature=1.0)


def make_decoder() -> DecoderLM:
    tokenizer = make_ar().tokenizer
    shape = {name: value for name, value in SMALL.items() if name not in ("prompt_depth", "max_prompt")}
    torch.manual_seed(0)
    model = DecoderModel(DecoderConfig(vocab_size=tokenizer.vocab_size, **shape))
    random_weights(model)
    return DecoderLM(model, tokenizer)


def reading(**config: Any) -> AutoregressiveLM:
    """Of an aligned model that tells people's texts from answers."""
    lm = make_aligned(causal=True, styles=True, depth=2, **config).left_to_right
    assert lm is not None
    return lm


@pytest.fixture(scope="module", params=["ar", "drafter", "decoder", "aligned"])
def lm(request) -> AutoregressiveLM:
    if request.param == "aligned":
        return reading(draft_horizon=3)
    return {"ar": make_ar, "drafter": lambda: make_ar(draft_horizon=3), "decoder": make_decoder}[request.param]()


def written(lm: AutoregressiveLM, requests: list[Request], options: GenerateOptions, size: int = 64) -> list[Event]:
    events = finished(lm.generate(requests, options, batch_size=size))
    return sorted(events, key=lambda event: event.index)


@pytest.mark.parametrize(
    "options", [GenerateOptions(), DRAWN, replace(DRAWN, top_k=3), replace(DRAWN, temperature=1e-4)]
)
@pytest.mark.parametrize("text", TEXTS)
def test_given_words_stay_and_blanks_hold_no_more_than_they_may(lm, text, options):
    (event,) = written(lm, [Request(infill=text, prompt="the cat", seed=5)], options)
    parts = re.split(r"___(?:\{\d+\})?", text)
    assert re.fullmatch(".*".join(map(re.escape, parts)), event.text, re.DOTALL)
    sizes = [int(size or 8) for size in re.findall(r"___(?:\{(\d+)\})?", text)]
    given = sum(len(lm.tokenizer.encode(part.strip(), start=False)) for part in parts if part.strip())
    assert len(event.tokens) <= given + sum(sizes) + len(parts)
    assert lm.model.end not in event.tokens and len(event.chances) == len(event.tokens)
    assert all(0 <= chance <= 1 for chance in event.chances) and event.nfe > 1 and event.processed > 0


@pytest.mark.parametrize("options", [GenerateOptions(), DRAWN])
def test_a_text_is_the_same_alone_and_in_any_batch(lm, options):
    requests = [
        Request(infill=text, prompt=prompt, seed=k) for k, text in enumerate(TEXTS) for prompt in (None, "a mat")
    ]
    requests.insert(3, Request(prompt="the cat", seed=7))
    together = written(lm, requests, options)
    again = written(lm, requests, options, size=2)
    alone = [written(lm, [request], options)[0] for request in requests]
    assert (
        [event.tokens for event in together] == [event.tokens for event in again] == [event.tokens for event in alone]
    )
    assert [event.text for event in together] == [event.text for event in alone]


def test_a_seed_says_what_is_drawn_and_nothing_of_the_likeliest(lm):
    def some(options):
        return [written(lm, [Request(infill=TEXTS[0], seed=seed)], options)[0].text for seed in range(4)]

    assert len(set(some(GenerateOptions()))) == 1
    assert len(set(some(DRAWN))) > 1 and some(DRAWN) == some(DRAWN)


def test_the_likeliest_filling_is_at_least_as_likely_as_drawn_ones(lm):
    """By the whole text's likelihood, its end included."""

    def nats(event: Event) -> float:
        return lm.likelihoods([lm.tokenizer.encode("a mat")], [list(event.tokens)])[0]

    request = Request(infill="the cat ___{2} mat near", prompt="a mat")
    best = nats(written(lm, [request], GenerateOptions())[0])
    for seed in range(6):
        assert best >= nats(written(lm, [replace(request, seed=seed)], DRAWN)[0]) - 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_last_blank_is_written_on_as_a_text_is(temperature):
    """Behind a beginning that a free text has itself, greedily, the rest of the text comes."""
    lm = make_ar(draft_horizon=3)
    options = GenerateOptions(temperature=temperature)
    drafted = written(lm, [Request(infill="the cat___{9}", seed=3)], replace(options, decoder="verified"))[0]
    plain = written(lm, [Request(infill="the cat___{9}", seed=3)], replace(options, decoder="sequential"))[0]
    assert drafted.tokens == plain.tokens and drafted.nfe <= plain.nfe
    if temperature == 0:
        assert (
            written(lm, [Request(infill="___{24}")], options)[0].tokens == written(lm, [Request()], options)[0].tokens
        )
        given = lm.tokenizer.encode("the cat")
        begun = lm.begin([Request()], options)
        begun.tokens[0, : len(given)] = torch.tensor(given)
        followed = lm.follow(begun, Observer())[0].tolist()
        followed = followed[: followed.index(EOS)] if EOS in followed else followed
        assert list(plain.tokens) == followed[: len(given) + 9]


def test_drafts_of_a_last_blank_stand(lm):
    events = [event for event in lm.generate([Request(infill="the cat ___{8}", seed=2)], DRAWN)]
    assert events[-1].kind == "done" and [event.index for event in events] == [0] * len(events)
    for draft in events[:-1]:
        assert events[-1].text.startswith(draft.committed)
    words = [len(event.tokens) for event in events]
    assert words == sorted(words)


def test_a_blank_after_a_space_begins_with_a_word():
    lm = make_ar()
    for text in ("the cat ___{2} mat", "the cat ___{3}"):
        for options in (GenerateOptions(), DRAWN):
            event = written(lm, [Request(infill=text, seed=1)], options)[0]
            first = event.tokens[len(lm.tokenizer.encode("the cat"))]
            assert lm.tokenizer.bytes_of_tokens[first].startswith(b" ")


def test_texts_to_fill_are_read_as_peoples():
    lm = reading()
    seen, memory = [], lm.model.memory

    def watched(prompt, lengths, kind, **more):
        seen.append(kind.unique().tolist())
        return memory(prompt, lengths, kind, **more)

    lm.model.memory = watched
    written(lm, [Request(infill="the ___{2} cat")], GenerateOptions())
    assert seen == [[HUMAN]]


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        (Request(infill="the [[cat]]"), GenerateOptions(), "words \\[\\[…\\]\\] to change"),
        (Request(infill="the cat"), GenerateOptions(), "no blank"),
        (Request(infill="the ___{20} cat sat on a mat ___{9}"), GenerateOptions(), "writes at most 24"),
        (
            Request(infill="the ___"),
            GenerateOptions(max_tokens=4),
            "max_tokens` is for texts that are written from nothing",
        ),
        (
            Request(infill="the ___"),
            GenerateOptions(pattern="a+"),
            "pattern` is for texts that are written from nothing",
        ),
    ],
)
def test_what_does_not_go_with_blanks_is_refused(request_, options, message):
    (event,) = make_ar().generate([request_], options)
    assert event.kind == "failed" and re.search(message, str(event.error))


def test_blanks_need_attention_and_nobody_watches():
    lm = make_ar(operator=DijiangConfig())
    assert not lm.fills and make_ar().fills
    with pytest.raises(RequestError, match="filled left to right by attention, and this model's operator is dijiang"):
        lm.write(infill="the ___")

    class Watching(Observer):
        """Someone who watches."""

    with pytest.raises(UsageError, match="nobody can watch blanks"):
        list(make_ar().generate([Request(infill="the ___")], observer=Watching()))


def test_fillings_can_be_chosen_among():
    lm = make_ar()
    request = Request(infill="the cat ___{3} mat near", seed=1)
    single = [written(lm, [replace(request, seed=seed)], DRAWN)[0] for seed in range(3)]
    best = written(lm, [request], replace(DRAWN, choose=4, choose_by="likelihood"))[0]
    assert best.text.startswith("the cat ") and best.text.endswith(" mat near")
    assert all(event.text.endswith(" mat near") for event in single) and EOS not in best.tokens


@pytest.mark.parametrize("options", [GenerateOptions(), DRAWN])
@pytest.mark.parametrize("text", ["___{2} near some old river", "___{1} ___{2} cat", "___{2}, the cat"])
def test_a_text_that_begins_with_a_blank_has_the_tokens_that_it_says(text, options):
    lm = make_ar()
    for seed in range(4):
        event = written(lm, [Request(infill=text, seed=seed)], options)[0]
        assert lm.tokenizer.decode(event.tokens) == event.text
        assert lm.tokenizer.bytes_of_tokens[event.tokens[0]].startswith(b" "), "as a text is begun with"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_published_models_fill_with_their_own_tokens(kind):
    """Tables wider than the tokenizer, specials anywhere, and spaces spelled in their own way."""
    words = ["<s>", "!", "▁the", "▁cat", "▁sat", "▁mat", "s", "<0xC3>", "<0xA9>", "</s>", "▁"]
    if kind == "bytes":
        words = [word.replace("▁", "Ġ") for word in words if not word.startswith("<0x")]
    model = {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "!"}
    specials = [{"id": words.index(name), "content": name, "special": True} for name in ("<s>", "</s>")]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    if kind == "bytes":
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": r" ?\w+|\W"}, "behavior": "Isolated", "invert": False}
        parts = {
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "decoder": byte_level,
        }
    else:
        space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        parts = {
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"▁\w+"}, "behavior": "Isolated", "invert": False},
            "decoder": {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        }
    description = {
        "version": "1.0",
        "added_tokens": [{**special, **plain} for special in specials],
        **dict.fromkeys(("normalizer", "truncation", "padding", "post_processor")),
        **parts,
        "model": model,
    }
    tokenizer = ForeignTokenizer(json.dumps(description))
    spelled = tokenizer.bytes_of_tokens
    assert spelled[words.index("<s>")] == spelled[words.index("</s>")] == b""
    assert spelled[2] == b" the" and spelled[words.index("s")] == b"s" and spelled[1] == b"!"
    if kind == "sentencepiece":
        assert spelled[words.index("<0xC3>")] == b"\xc3"
    shape = {name: value for name, value in SMALL.items() if name not in ("prompt_depth", "max_prompt")}
    torch.manual_seed(0)
    net = DecoderModel(DecoderConfig(vocab_size=len(words) + 5, begin=0, end=words.index("</s>"), **shape))
    random_weights(net)
    lm = DecoderLM(net, tokenizer)
    for options in (GenerateOptions(), DRAWN):
        for seed in range(5):
            event = written(lm, [Request(infill=" the ___{3} mat", seed=seed)], options)[0]
            assert event.text.startswith(" the ") and event.text.endswith(" mat")
            fill = event.tokens[1:-1]
            assert 1 <= len(fill) <= 3 and all(token < len(words) and spelled[token] for token in fill)
            assert spelled[fill[0]].startswith(b" ") and b"".join(spelled[token] for token in fill).decode()


def test_symbols_fill_with_symbols():
    tokenizer = Tokenizer.of_symbols("0123456789+=")
    torch.manual_seed(0)
    net = AutoregressiveModel(AutoregressiveConfig(vocab_size=tokenizer.vocab_size, **SMALL))
    random_weights(net)
    lm = AutoregressiveLM(net, tokenizer)
    for seed in range(8):
        text = written(lm, [Request(infill="1+___{2}=3", seed=seed)], DRAWN)[0].text
        assert re.fullmatch(r"1\+[0-9+=]{1,2}=3", text)


def test_calls_are_those_that_were_made():
    lm = make_ar()
    calls: list[int] = []
    hook = lm.model.memory_encoder.register_forward_hook(lambda *_: calls.append(1))
    forward = CachedReader.__call__

    def counted(self, tokens, starts):
        calls.append(1)
        return forward(self, tokens, starts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedReader, "__call__", counted)
        with lm.endless():
            for request, options in (
                (Request(infill="the cat ___{4}"), GenerateOptions()),
                (Request(infill="the ___{2} mat near ___{4}"), DRAWN),
                (Request(infill="the ___{2} mat near"), DRAWN),
                (Request(prompt="a cat"), GenerateOptions(max_tokens=60)),
                (Request(prompt="a cat"), GenerateOptions(max_tokens=20)),
            ):
                calls.clear()
                assert written(lm, [request], options)[0].nfe == len(calls)
    hook.remove()


def test_texts_to_choose_from_share_no_draws():
    lm = make_ar()
    seeds: list[int] = []
    make = filling.make_generator

    def noted(seed):
        seeds.append(seed)
        return make(seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "make_generator", noted)
        written(lm, [Request(infill="the ___{2} mat", seed=3)], replace(DRAWN, choose=4))
    assert len(set(seeds)) == len(seeds) == 4 * (1 + filling.SPANS + 1)


def test_a_long_blank_can_be_stopped_and_is_told_word_by_word():
    events = make_ar().generate([Request(infill="the ___{12} mat")])
    drafts = [event for event in events if event.kind == "draft"]
    assert len(drafts) >= 12 and all(draft.committed == "" for draft in drafts)


def test_what_cannot_be_longer_than_the_window_says_so():
    lm = make_ar()

    class Watching(Observer):
        """Someone who watches."""

    with pytest.raises(UsageError, match="nobody can watch a text longer than 24 tokens"):
        list(finished(lm.generate([Request()], GenerateOptions(max_tokens=60), Watching())))
    with pytest.raises(UsageError, match="as likely as they are read, 24 tokens at once"):
        list(lm.generate([Request()], replace(DRAWN, max_tokens=60, choose=2, choose_by="likelihood")))


@pytest.mark.parametrize("options", [GenerateOptions(), DRAWN])
def test_each_word_has_the_probability_that_the_whole_text_gives_it(options):
    """Rows of a beam take the place of others, and the cache goes with them."""
    lm = make_ar()
    for seed, text in enumerate(("the ___{5} mat near", "the ___{3} mat ___{4} rain", "cat ___{6} mat")):
        for event in lm.generate([Request(infill=text, prompt="a mat", seed=seed)], options):  # spans of every length
            batch = to_batch([lm.tokenizer.encode("a mat")], [event.tokens])
            given, words, _ = lm.model.shifted(batch)
            memory = lm.model.memory(batch.prompt, batch.prompt_lengths, lm.model.kinds(batch.tag))
            told = lm.model(given, memory).softmax(-1).gather(-1, words[..., None])[0, :, 0].tolist()
            own = [at for at, chance in enumerate(event.chances) if chance < 1]
            assert own, "some words are the model's"
            assert [event.chances[at] for at in own] == pytest.approx([told[at] for at in own], rel=1e-3)
