"""A set groups the references of a prompt, knows which figures it allows, and says what is wrong with bad data."""

import json

import pytest

from manta.errors import DataError, UsageError
from manta.evaluation import evaluation_set
from manta.text.hashing import split_of


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def in_split(split: str, count: int) -> list[str]:
    return [key for key in (f"prompt {i}" for i in range(10_000)) if split_of(key) == split][:count]


def test_references_of_a_prompt_are_one_group_wherever_they_stand(tmp_path):
    first, second = in_split("test", 2)
    rows = [(first, "a"), (second, "b"), (first, "c"), (in_split("train", 1)[0], "d")]
    name = write(tmp_path / "x.jsonl", [{"prompt": p, "text": t} for p, t in rows])
    found = evaluation_set(name)
    assert found.prompts == (first, second)
    assert found.references == (("a", "c"), ("b",))
    assert found.humans == ["a", "b"]
    assert list(found.training()) == list(found.training()) == ["d"]


def test_fewer_groups_are_drawn_from_all_of_them_and_keep_their_order(tmp_path):
    prompts = in_split("test", 40)
    name = write(tmp_path / "x.jsonl", [{"prompt": p, "text": p} for p in prompts])
    found = evaluation_set(name, num=10)
    places = [prompts.index(prompt or "") for prompt in found.prompts]
    assert len(places) == 10
    assert places == sorted(places)
    assert max(places) >= 10
    assert evaluation_set(name, num=10) == found
    assert evaluation_set(name, num=10, seed=1).prompts != found.prompts


def test_texts_without_prompts_are_a_group_each_and_have_no_overlap(tmp_path):
    texts = in_split("test", 5)
    found = evaluation_set(write(tmp_path / "x.jsonl", [{"text": text} for text in [*texts, texts[0]]]))
    assert not found.conditional
    assert found.references == tuple((text,) for text in [*texts, texts[0]])
    assert "has no prompts" in (found.why_not("overlap") or "")
    assert "meaning representations" in (found.why_not("slots") or "")
    assert "oracle" in (found.why_not("oracle") or "")
    assert found.why_not("mauve") is None


def test_passages_are_whole_consecutive_pieces_as_they_stand(tmp_path):
    texts = [t for t in (f"a{i} b  c\nd e" for i in range(200)) if split_of(t) == "test"][:3]
    name = write(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    found = evaluation_set(name, words=2)
    assert found.humans == [piece for t in texts for piece in (f"{t.split()[0]} b", "c\nd")]
    assert found.words == 2 and found.cut("x  y z") == "x  y" and found.cut("x") == "x"
    assert len(evaluation_set(name, words=2, num=4).humans) == 4
    assert evaluation_set(name).cut("x  y z") == "x  y z"
    with pytest.raises(DataError, match="has 9 words"):
        evaluation_set(name, words=9)
    with pytest.raises(UsageError, match="at least one word"):
        evaluation_set(name, words=0)
    with pytest.raises(UsageError, match="has prompts"):
        evaluation_set("builtin:weather", num=3, words=5)


def test_meaning_representations_are_told_by_their_form(tmp_path):
    mrs = [mr for mr in (f"name[Place {i}], food[French]" for i in range(200)) if split_of(mr) == "test"]
    rows = [{"prompt": mr, "text": "x"} for mr in mrs]
    assert evaluation_set(write(tmp_path / "a.jsonl", rows)).slots
    rows.append({"prompt": in_split("test", 1)[0], "text": "x"})
    assert not evaluation_set(write(tmp_path / "b.jsonl", rows)).slots


def test_built_in_corpora_have_an_oracle_that_finds_their_own_texts_right():
    for name, word in (("builtin:weather", "faithful"), ("builtin:sudoku4", "solved")):
        found = evaluation_set(name, "test", 5)
        assert found.oracle is not None
        assert found.oracle.name == word
        assert all(found.oracle.right(p or "", text) for p, text in zip(found.prompts, found.humans, strict=True))
        assert not found.oracle.right(found.prompts[0] or "", "nothing")


def test_a_file_is_used_whole_where_that_is_asked_for(tmp_path):
    rows = [(prompt, "x") for split in ("train", "dev", "test") for prompt in in_split(split, 3)]
    name = write(tmp_path / "x.jsonl", [{"prompt": p, "text": t} for p, t in rows])
    found = evaluation_set(name, "all")
    assert found.prompts == tuple(prompt for prompt, _ in rows) and found.split == "all"
    assert "no training texts" in (found.why_not("copying") or "")
    with pytest.raises(UsageError, match="splits of its own"):
        evaluation_set("builtin:weather", "all")


def test_an_empty_prompt_is_no_prompt(tmp_path):
    rows = [{"prompt": prompt, "text": f"text {at}"} for at, prompt in enumerate(("", " ", "\n", ""))]
    found = evaluation_set(write(tmp_path / "x.jsonl", rows), "all")
    assert found.prompts == (None,) * 4 and not found.conditional


def test_passages_of_text_without_spaces_are_of_characters(tmp_path):
    found = evaluation_set(write(tmp_path / "x.jsonl", [{"text": "北京的春天公园很漂亮。"}]), "all", words=4)
    assert found.humans == ["北京的春", "天公园很"]
    assert found.cut("上海很大很大") == "上海很大"


def test_bad_data_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match="no examples in its test split"):
        evaluation_set(write(tmp_path / "a.jsonl", [{"text": text} for text in in_split("train", 3)]))
    rows = [{"prompt": in_split("test", 1)[0], "text": "x"}, {"text": in_split("test", 1)[0]}]
    with pytest.raises(DataError, match=r"1 examples .* have no prompt and others have one"):
        evaluation_set(write(tmp_path / "b.jsonl", rows))
    with pytest.raises(UsageError, match="at least one text, received 0"):
        evaluation_set("builtin:weather", num=0)
    with pytest.raises(DataError):
        evaluation_set(str(tmp_path / "missing.jsonl"))
