"""Texts held to a pattern or a schema: every one matches, in every family that can, and nothing else is lost."""

import json
import re
from typing import Any

import pytest
import torch

from manta.cli import main
from manta.errors import RequestError, UsageError
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.events import GenerateOptions, Request
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.hub import load
from manta.text import Tokenizer
from manta.text.automaton import automaton_of, num_parts

SHAPE: dict[str, Any] = {"dim": 16, "heads": 2, "depth": 1, "prompt_depth": 1, "max_prompt": 12, "max_text": 40}
WORDS = 'yes no maybe: the sun is warm, 12 stars "and" rain {"name": "sun", "stars": 4} über 世界'
PATTERNS = (
    "yes|no",
    "[0-9]{1,3} stars",
    "(sun|rain)( and (sun|rain)){0,3}",
    "[a-z ]{3,20}\\.",
    "  (a|b)  ",
    "(über|世界)+",
    ".{0,30}",
)
SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"stars": {"type": "integer", "description": "how many"}}, "required": ["stars"]},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "required": ["a", "b"]},
    {"enum": ["sun", "rain", 3]},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    {"type": "string", "maxLength": 8},
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 3, 512)


@pytest.fixture(scope="module", params=["masked", "ar"])
def lm(request, tokenizer):
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size, **SHAPE}
    net: Any = MaskedModel(MaskedConfig(**shape)) if request.param == "masked" else None
    net = net or AutoregressiveModel(AutoregressiveConfig(**shape))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made: Any = MaskedLM if request.param == "masked" else AutoregressiveLM
    lm = made(net, tokenizer)
    if request.param == "ar":
        lm._count([tokenizer.encode(WORDS)])  # a table to draft from
    return lm


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_matches(pattern, temperature, lm):
    for seed in range(3):
        text = lm.write("sun", pattern=pattern, temperature=temperature, seed=seed)
        assert re.fullmatch(pattern, text), text


def schema_holds(schema: dict[str, Any], text: str) -> bool:
    value = json.loads(text)
    if "enum" in schema:
        return value in schema["enum"]
    if schema["type"] == "array":
        return isinstance(value, list) and len(value) <= 3 and all(isinstance(v, bool) for v in value)
    if schema["type"] == "string":
        return isinstance(value, str) and len(value) <= 8
    kinds = {"integer": int, "boolean": bool, "null": type(None)}
    wanted = {name: kinds[part["type"]] for name, part in schema["properties"].items()}
    return value.keys() == wanted.keys() and all(type(value[name]) is kind for name, kind in wanted.items())


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_every_text_is_an_instance_of_the_schema(schema, lm):
    for seed in range(4):
        text = lm.write("sun", schema=json.dumps(schema), temperature=1.0, seed=seed)
        assert schema_holds(schema, text), text


def test_drafted_and_checked_texts_are_the_same(lm):
    if lm.family != "ar":
        return
    for pattern in PATTERNS:
        for seed, temperature in enumerate([0.0, 0.0, 1.0, 1.0]):
            how = {"pattern": pattern, "temperature": temperature, "seed": seed}
            assert lm.write("sun", decoder="verified", **how) == lm.write("sun", decoder="sequential", **how)


def test_a_text_is_the_same_alone_and_in_a_batch(lm):
    requests = [Request(prompt=p, seed=i) for i, p in enumerate(["sun", "rain and", "the", "12"])]
    options = GenerateOptions(pattern="(sun|rain)( and (sun|rain)){0,3}", temperature=1.0)
    done = [
        {e.index: e.tokens for e in lm.generate(requests, options, batch_size=s) if e.kind == "done"} for s in (4, 1)
    ]
    assert done[0] == done[1]


def test_given_words_are_kept(lm):
    if lm.family != "masked":
        return
    text = lm.write(infill="the ___{6} is ___{4}", pattern="the (sun|rain) is (warm|12)")
    assert re.fullmatch("the (sun|rain) is (warm|12)", text)
    for infill, pattern in (("the ___ x", "the(se|m) x"), ("the ___{3}", "the"), ("___{3} sun", "sun")):
        for seed in range(3):
            assert re.fullmatch(pattern, lm.write(infill=infill, pattern=pattern, temperature=1.0, seed=seed))
    edited = lm.write(infill="the sun is [[warm and the rain]]", pattern="the sun is (12|no)")
    assert edited in ("the sun is 12", "the sun is no")
    [event] = lm.generate([Request(infill="the ___ was ___")], GenerateOptions(pattern="the sun is warm"))
    assert event.kind == "failed" and isinstance(event.error, RequestError)
    assert "keeps the given words" in str(event.error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": "("}, "none that can be followed"),
        ({"pattern": ""}, "is empty"),
        ({"pattern": "(a)\\1"}, "none that can be followed"),
        ({"pattern": "(?=a)b"}, "which cannot be followed"),
        ({"pattern": "a*+a"}, "which cannot be followed"),
        ({"pattern": "[^]a]"}, "spell its characters out"),
        ({"pattern": "\\W"}, "which cannot be followed"),
        ({"pattern": "a{,5000}"}, "has 5,000 characters"),
        ({"schema": '{"type": ["integer", "null"], "minimum": 3}'}, "minimum is not known"),
        ({"schema": '{"type": []}'}, "an empty list"),
        ({"schema": '{"enum": [NaN]}'}, "which is no JSON"),
        ({"schema": '{"type": "string", "minLength": null}'}, "whole number"),
        ({"pattern": "a", "schema": "{}"}, "give one of them"),
        ({"schema": "{"}, "is no JSON"),
        ({"schema": "[]"}, "should be a JSON Schema"),
        ({"schema": '{"type": "nothing"}'}, "type of the `schema` should be one of string"),
        ({"schema": '{"type": "integer", "minimum": 3}'}, "the keyword minimum is not known here"),
        ({"pattern": "a$b"}, "anchors stand at its ends alone"),
        ({"schema": '{"type": "object", "required": [["a"]]}'}, "none of its properties"),
        ({"schema": '{"type": "array"}'}, "should say its items"),
        ({"schema": '{"type": "object", "required": ["a"]}'}, "none of its properties"),
        ({"schema": '{"type": "string", "minLength": 3, "maxLength": 2}'}, "below minLength"),
        ({"pattern": "a{90}"}, "takes 9[01] tokens"),
        ({"pattern": "([a-z]{5000}){50}"}, "has 250,000 characters"),
    ],
)
def test_what_cannot_be_is_refused(options, said, lm):
    with pytest.raises(UsageError, match=said):
        lm.write("sun", **options)


def test_other_ways_to_write_refuse_it(lm, tokenizer):
    if lm.family == "masked":
        with pytest.raises(UsageError, match="leave `cache` out"):
            lm.write("sun", pattern="a", cache="dual")
    with pytest.raises(UsageError, match="means nothing to Manta-LM"):
        load("builtin:e2e").write("name[The Mill]", pattern="a")
    with pytest.raises(UsageError, match="means nothing to aligned models but"):
        load("builtin:e2e-aligned").write("name[The Mill]", pattern="a")


def test_the_automaton_accepts_what_the_pattern_matches(tokenizer):
    automaton = automaton_of(tokenizer, "(sun|rain)( and (sun|rain)){0,3}", None)
    for text in ("sun", "rain and sun", "sun and sun and rain and rain"):
        assert automaton.accepts(tokenizer.encode(text))
    for text in ("", "sun and", "and sun", "sun sun", "sun " * 9):
        assert not automaton.accepts(tokenizer.encode(text))
    assert automaton_of(tokenizer, "^sun$", None).accepts(tokenizer.encode("sun"))
    assert automaton_of(tokenizer, r"sun\$", None).accepts(tokenizer.encode("sun$"))
    assert automaton_of(tokenizer, r"sun\\$", None).accepts(tokenizer.encode("sun\\"))
    symbols = Tokenizer.of_symbols("0123456789+= ")
    assert automaton_of(symbols, "[0-9]+=[0-9]", None).accepts(symbols.encode("12=3"))


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [("abc", 3), ("a{3}b", 4), ("(ab){2,5}", 10), ("[a-z\\]]{4,}x", 6), ("((a{2}b){3}){4}", 36), (r"\{9\}\p{L}{2}", 5)],
)
def test_a_pattern_is_measured_with_its_counts(pattern, parts):
    assert num_parts(pattern) == parts


def test_the_command_line_reads_a_schema_from_a_file(tmp_path, capsys):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"enum": ["The Mill is cheap.", "It is not."]}))
    prompt = ["--prompt", "name[The Mill], priceRange[cheap]"]
    model = ["generate", "builtin:e2e-aligned", "--decoder", "sequential", *prompt]
    assert main([*model, "--schema", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) in ("The Mill is cheap.", "It is not.")
    assert main([*model, "--pattern", "The Mill is (cheap|expensive)\\."]) == 0
    assert capsys.readouterr().out == "The Mill is cheap.\n"
    assert main([*model, "--schema", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_text_that_just_fits_is_written(lm):
    """The room of a text left to right is its words: one that takes all of it is not ruled out."""
    words = lm.tokenizer.encode("the sun is warm")
    if lm.family == "ar":
        assert lm.write("sun", pattern="the sun is warm", max_tokens=len(words)) == "the sun is warm"
        with pytest.raises((RequestError, UsageError)):
            lm.write("sun", pattern="the sun is warm", max_tokens=len(words) - 1)


def test_words_to_keep_that_no_text_of_the_pattern_has_are_refused_before_anything_is_written(tokenizer):
    torch.manual_seed(0)
    lm = MaskedLM(MaskedModel(MaskedConfig(vocab_size=tokenizer.vocab_size, **SHAPE)), tokenizer)
    options = GenerateOptions(pattern="yes( and no)*[.]")
    for fits in ("___{8}.", "yes___{9}.", "___{3} and no.", "yes and no___{1}"):
        prompt, template, seed = lm.read(Request(infill=fits, seed=3), options)
        assert (prompt, seed) == ([], 3) and template is not None, fits
    for wrong in ("___{8}!", "maybe ___{6}", "no and no___{1}"):
        with pytest.raises(RequestError, match="keeps the given words"):
            lm.read(Request(infill=wrong), options)
    assert lm.read(Request(infill="maybe ___{6}"), GenerateOptions())[1] is not None
