"""`write`: one text for one prompt and a list for a list, and one typed error for whatever is no request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from manta.errors import UsageError
from manta.families.events import Event, GenerateOptions, Writer, counted, finished

SOURCE = Path(__file__).parent.parent.parent / "src"


class Echo(Writer):
    """Says what it was asked."""

    family = "echo"

    def generate(self, requests, options=None, observer=None, *, batch_size=64):
        self.options = options
        for i, request in reversed(list(enumerate(requests))):
            yield Event("done", i, f"{request.prompt}|{request.infill}|{request.seed}", (1, 2), 1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({}, "None|None|0"),
        ({"prompts": "a", "seed": 3}, "a|None|3"),
        ({"infill": "b ___"}, "None|b ___|0"),
        ({"prompts": "a", "infill": "b ___"}, "a|b ___|0"),
        ({"prompts": ["a"]}, ["a|None|0"]),
        ({"prompts": []}, []),
        ({"prompts": (p for p in ("a", None))}, ["a|None|0", "None|None|1"]),
        ({"prompts": "a", "num_samples": 1}, ["a|None|0"]),
        ({"prompts": ["a", "b"], "num_samples": 2, "seed": 5}, ["a|None|5", "a|None|6", "b|None|7", "b|None|8"]),
        ({"prompts": ["a", "b"], "infill": "c ___"}, ["a|c ___|0", "b|c ___|1"]),
        ({"prompts": "a", "infill": ["c ___", None]}, ["a|c ___|0", "a|None|1"]),
        ({"prompts": ["a", "b"], "infill": ["c ___", "d ___"]}, ["a|c ___|0", "b|d ___|1"]),
    ],
)
def test_one_prompt_gives_a_text_and_a_list_gives_a_list(given, texts):
    assert Echo().write(**given) == texts


def test_options_reach_the_model():
    lm = Echo()
    lm.write("a", num_steps=3, style="consensus")
    assert lm.options == GenerateOptions(num_steps=3, style="consensus")


WRONG: list[tuple[str, str]] = [
    ("write(3)", "prompts should be a text, a list of texts or None, received 3 (int)"),
    ("write(b'x')", "received b'x' (bytes)"),
    ("write({'prompt': 'x'})", "(dict)"),
    ("write(Path('x'))", "Path"),
    ("write(['a', 3])", "prompts[1] should be a text (str) or None, received 3 (int)"),
    ("write(['a', Request(prompt='b')])", "prompts[1] should be a text"),
    ("write('\\ud800')", "half a surrogate pair"),
    ("write('a\\0b')", "NUL"),
    ("write(infill=3)", "infill should be a text"),
    ("write(['a', 'b'], infill=['c'])", "2 prompts and 1 texts to fill"),
    ("write('a', num_samples=0)", "num_samples should be an integer of at least 1"),
    ("write('a', num_samples=True)", "num_samples should be"),
    ("write('a', seed='x')", "seed should be an integer"),
    ("write('a', seed=-1)", "seed should be"),
    ("write('a', seed=1.5)", "seed should be"),
    ("write(prompt='a')", "no option 'prompt'; did you mean 'prompts'?"),
    ("write('a', num_step=3)", "no option 'num_step'; did you mean 'num_steps'?"),
    ("write('a', num_steps='3')", "num_steps"),
    ("write('a', num_steps=2.5)", "num_steps"),
    ("write('a', num_steps=0)", "num_steps"),
    ("write('a', temperature='hot')", "temperature"),
    ("write('a', temperature=-1)", "temperature"),
    ("write('a', style='poetic')", "style should be one of 'consensus', 'diverse', received 'poetic'"),
    ("write('a', solver='rk4')", "solver should be one of"),
    ("write('a', decoder='blok')", "decoder should be one of 'deferred', 'block'"),
    ("write('a', cache=None)", "cache should be one of"),
    ("generate([Request(prompt=3)])", "prompt should be a text (str) or None, received 3 (int)"),
    ("generate([Request(seed='x')])", "seed should be an integer, received 'x' (str)"),
]


@pytest.fixture(scope="module")
def answers() -> list[list[str]]:
    """What each call raises in a process of its own, since these tests check types at run time and users do not."""
    code = f"""
import json, sys
from pathlib import Path
from manta.families.events import Event, Request, Writer
class Echo(Writer):
    family = "echo"
    def generate(self, requests, options=None, observer=None, *, batch_size=64):
        for i, request in enumerate(requests):
            yield Event("done", i, "", (), 1.0, 1.0, 1)
found = []
for call in {[call for call, _ in WRONG]!r}:
    try:
        list(eval("Echo()." + call))
        found.append(["", "nothing"])
    except Exception as error:
        found.append([str(error), " ".join(kind.__name__ for kind in type(error).__mro__)])
print(json.dumps(found))
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("number", "call", "words"), [(i, *row) for i, row in enumerate(WRONG)])
def test_what_is_no_request_is_a_typed_error_in_the_words_of_the_call(answers, number, call, words):
    message, kinds = answers[number]
    assert UsageError.__name__ in kinds.split(), f"{call}: {kinds}: {message}"
    assert words in message
    assert "--" not in message and "\n" not in message


def test_objects_show_what_they_are_in_a_line(latent_lm):
    assert repr(Echo()) == "<Echo: echo model>"
    shown = repr(latent_lm)
    assert shown.startswith("<MantaLM: manta model, ") and "parameters" in shown and "\n" not in shown
    assert repr(Event("done", 0, "a", (1,) * 500, 1.0, 0.5, 4)) == (
        "Event(kind='done', index=0, text='a', t=1.0, confidence=0.5, nfe=4, processed=0, error=None, standing=0)"
    )


def test_a_message_shows_what_it_was_given_up_to_sixty_characters():
    for size, shown in ((58, "'" + "x" * 58 + "' (str)"), (59, "'" + "x" * 56 + "… (str)")):
        with pytest.raises(UsageError, match="an integer of at least 2") as raised:
            counted("x" * size, "number", 2)
        assert str(raised.value).endswith(f"received {shown}")


def test_a_count_is_an_integer_of_at_least_so_much():
    assert counted(2, "number", 2) == 2
    for wrong in (1, 2.0, True, None):
        with pytest.raises(UsageError, match="number should be an integer of at least 2"):
            counted(wrong, "number", 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompts": ["a", 3]}, "prompts[1] should be a text (str) or None, received 3 (int)"),
        ({"prompts": [3]}, "prompts should be a text (str) or None, received 3 (int)"),
        ({"infill": ["a ___", "b\0"]}, "infill[1] holds a NUL character"),
        ({"prompts": "a\ud800"}, "prompts holds half a surrogate pair at character 1"),
        ({"prompts": 3}, "prompts should be a text, a list of texts or None, received 3 (int)"),
        ({"prompts": ["a", "b"], "infill": ["c"]}, "2 prompts and 1 texts to fill"),
        ({"num_samples": 0}, "num_samples should be an integer of at least 1"),
        ({"seed": -1}, "seed should be an integer of at least 0"),
        ({"num_step": 3}, "no option 'num_step'; did you mean 'num_steps'?"),
    ],
)
def test_a_message_names_what_is_wrong_and_where(given, words):
    with pytest.raises(UsageError) as raised:
        Echo().write(**given)
    assert str(raised.value).startswith(words)


def test_only_finished_texts_are_handed_on_and_an_error_is_raised():
    draft, done = (Event(kind, 0, kind, (), 1.0, 1.0, 1) for kind in ("draft", "done"))
    assert list(finished([draft, done, draft])) == [done]
    failed = Event("failed", 1, "", (), 0.0, 0.0, 0, error=UsageError("not so"))
    with pytest.raises(UsageError, match="not so"):
        list(finished([done, failed]))
