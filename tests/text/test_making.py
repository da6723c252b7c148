"""Pairs made of texts: what is missing goes back in its place, and nothing else is changed."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from manta.cli import main
from manta.text import Example, read
from manta.text.making import BLANK, make

WORDS = st.lists(st.text(st.characters(whitelist_categories=["Ll"]), min_size=1, max_size=5), min_size=3, max_size=25)


def distinct(words: list[str]) -> bool:
    return len(set(words)) > 1


def one(kind, words, seed=0, prompt=None, longest=8) -> Example:
    (made,) = make(kind, [Example(text=" ".join(words), prompt=prompt)], seed, longest=longest)
    return made


@settings(max_examples=200, deadline=None)
@given(words=WORDS, kind=st.sampled_from(["infill", "holes"]), seed=st.integers(0, 99), longest=st.integers(1, 9))
def test_spans_put_back_make_the_text(words, kind, seed, longest):
    assume(distinct(words))
    made = one(kind, words, seed, longest=longest)
    assert made.prompt is not None
    shown, spans = made.prompt.split(), made.text.split(f" {BLANK} ")
    assert shown.count(BLANK) == len(spans) and (len(spans) == 1 or kind == "holes")
    assert all(1 <= len(span.split()) <= longest for span in spans)
    assert any(word != BLANK for word in shown) and f"{BLANK} {BLANK}" not in made.prompt
    rest = iter(spans)
    assert " ".join(next(rest) if word == BLANK else word for word in shown) == " ".join(words)


@settings(max_examples=100, deadline=None)
@given(words=WORDS, seed=st.integers(0, 99))
def test_words_out_of_order_are_the_same_words(words, seed):
    assume(distinct(words))
    made = one("reorder", words, seed)
    assert made.prompt is not None and made.text == " ".join(words)
    assert sorted(made.prompt.split()) == sorted(words)
    assert made.prompt != made.text or len(words) < 4


def test_prompts_stay_in_front_and_short_texts_are_left_out():
    assert one("reorder", ["b", "a", "c"], prompt="p q").prompt[:6] == "p q | "  # pyright: ignore
    assert " | " not in one("infill", ["b", "a", "c"], prompt=" ").prompt  # pyright: ignore
    left_out = ["two words", "", "a a a a", "has a ___ of its own"]
    assert not list(make("infill", [Example(text=text) for text in left_out], 0))
    texts = [Example(text=f"{i} b c d e f g h") for i in range(50)]
    assert list(make("holes", texts, 1)) == list(make("holes", texts, 1)) != list(make("holes", texts, 2))
    spans = {len(made.text.split()) for made in make("infill", texts, 1, longest=3)}
    assert spans == {1, 2, 3}


def test_the_verb_writes_a_file_that_can_be_trained_on(tmp_path, capsys):
    out = tmp_path / "made.jsonl"
    assert main(["data", "make", "holes", "builtin:weather", "--num", "20", "--out", str(out)]) == 0
    assert "20 pairs" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 20 and all(BLANK in row["prompt"] and " | " in row["prompt"] for row in rows)
    assert len([e for split in ("train", "dev", "test") for e in read(str(out), split)]) == 20
    assert main(["data", "make", "infill", "builtin:weather", "--num", "2"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert len(first) == 2 and json.loads(first[0])["text"]
    unreadable = (
        ["shuffle", "builtin:weather"],
        ["infill", "no-such-file.txt"],
        ["infill", "builtin:paths", "--num", "90"],
    )
    for wrong in (*unreadable, ["infill", "builtin:weather", "--longest", "0"]):
        assert main(["data", "make", *wrong]) in (1, 2)
        assert len(capsys.readouterr().err.splitlines()) <= 2


def test_four_tasks_are_made_side_by_side():
    long, short = "zizzi is a cheap pub near the river", "zizzi is cheap"
    examples = [Example(long, "name[Zizzi]"), Example(short, "name[Zizzi]"), Example("one two three four")]
    made = list(make("tasks", [*examples, Example("two words")], 3))
    by_task = {
        task: [(e.prompt, e.text) for e in made if e.task == task] for task in dict.fromkeys(e.task for e in made)
    }
    assert list(by_task) == ["describe", "continue", "fill", "shorten"]
    assert by_task["describe"] == [("name[Zizzi]", long), ("name[Zizzi]", short)]
    assert by_task["shorten"] == [(long, short)]
    texts = [example.text for example in examples]
    assert [f"{prompt} {text}" for prompt, text in by_task["continue"]] == texts
    assert [str(prompt).replace(BLANK, text) for prompt, text in by_task["fill"]] == texts
    assert made == list(make("tasks", examples, 3)) != list(make("tasks", examples, 4))


def test_the_verb_writes_tasks_and_data_are_exported_with_them(tmp_path, capsys):
    out = tmp_path / "tasks.jsonl"
    assert main(["data", "make", "tasks", "builtin:weather", "--num", "30", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["task"] for row in rows} >= {"describe", "continue", "fill"}
    capsys.readouterr()
    assert main(["data", "export", str(out)]) == 0
    assert set(map(str, map(json.loads, capsys.readouterr().out.splitlines()))) < set(map(str, rows))


@pytest.mark.parametrize("kind", ["infill", "holes", "reorder", "tasks"])
def test_help_names_the_kinds(kind, capsys):
    assert main(["data", "make", "--help"]) == 0
    assert kind in capsys.readouterr().out


def test_all_pairs_of_a_record_are_of_one_split(tmp_path):
    out = tmp_path / "tasks.jsonl"
    assert main(["data", "make", "tasks", "builtin:weather", "--num", "200", "--out", str(out)]) == 0
    found = {split: list(read(str(out), split)) for split in ("train", "dev", "test")}
    assert all(found.values()) and all(example.split_by for rows in found.values() for example in rows)
    whole = {split: {e.text for e in rows if e.task == "describe"} for split, rows in found.items()}
    begun = {split: {f"{e.prompt} {e.text}" for e in rows if e.task == "continue"} for split, rows in found.items()}
    for split, texts in whole.items():
        assert texts == begun[split], "every text is told and continued in the same split"
        assert not any(texts & begun[other] for other in found if other != split)
