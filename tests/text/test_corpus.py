import json
import random
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manta.errors import ConfigError, DataError
from manta.text import Corpus, Example, Tokenizer, build, tokenizers
from manta.text import corpus as corpus_module
from manta.text.loader import collate

LIMITS: dict[str, Any] = {"max_prompt": 12, "max_text": 16}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat", "a dog ran to the cat"] * 20, 512)


def pairs(number):
    return [Example(f"the cat sat on mat {i}", f"cat {i % 7}", i % 2) for i in range(number)]


def test_what_goes_in_comes_out(tokenizer, tmp_path):
    examples = [
        Example("a dog ran", "who ran?"),
        Example("the cat"),
        Example("a cat ran", "who ran?", 1),
        Example("x", ""),
    ]
    report = build(examples, tokenizer, tmp_path / "c", **LIMITS)
    corpus = Corpus.open(tmp_path / "c", tokenizer=tokenizer)
    assert len(corpus) == report.rows == 4
    assert [tokenizer.decode(corpus.text(i)) for i in range(4)] == [e.text for e in examples]
    assert [tokenizer.decode(corpus.prompt(i)) for i in range(4)] == ["who ran?", "", "who ran?", ""]
    assert corpus.tags.tolist() == [0, 0, 1, 0]
    assert corpus.prompt_group(0) == corpus.prompt_group(2) != corpus.prompt_group(3)
    assert corpus.prompt_group(1) == -1
    assert corpus.prompt_groups.tolist() == [corpus.prompt_group(i) for i in range(4)]
    assert corpus.text_lengths.tolist() == [len(corpus.text(i)) for i in range(4)]
    rows = [3, 1, 2, 0, 2]
    texts, prompts = corpus.lengths(np.array(rows))
    assert texts.tolist() == [len(corpus.text(i)) for i in rows]
    assert prompts.tolist() == [len(corpus.prompt(i)) for i in rows]
    with pytest.raises(IndexError):
        corpus.text(4)


def test_a_prompt_is_stored_once(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_CHUNK_EXAMPLES", 5)
    report = build(pairs(70), tokenizer, tmp_path / "c", **LIMITS)
    corpus = Corpus.open(tmp_path / "c")
    assert report.prompts == 7
    assert report.prompt_tokens == sum(len(tokenizer.encode(f"cat {i}")) for i in range(7))
    assert [tokenizer.decode(corpus.prompt(i)) for i in range(70)] == [f"cat {i % 7}" for i in range(70)]


def test_chunks_do_not_matter(tokenizer, tmp_path, monkeypatch):
    examples = [
        *pairs(40),
        *pairs(20),
        Example("w " * 99),
        Example("", "p"),
        Example("t", "p " * 50),
        Example("u", "p " * 50),
    ]
    build(examples, tokenizer, tmp_path / "a", **LIMITS)
    monkeypatch.setattr(corpus_module, "_CHUNK_EXAMPLES", 3)
    build(examples, tokenizer, tmp_path / "b", **LIMITS)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_duplicates_are_dropped_but_tags_and_prompts_tell_apart(tokenizer, tmp_path):
    one = Example("a dog ran", "p")
    examples = [one, one, replace(one, tag=1), replace(one, prompt=None), replace(one, prompt="q"), one]
    report = build(examples, tokenizer, tmp_path / "c", **LIMITS)
    assert (report.read, report.duplicates, report.rows, report.consensus) == (6, 2, 4, 1)


def test_long_prose_becomes_windows(tokenizer, tmp_path):
    prose = "the cat sat on the mat. " * 30
    report = build([Example(prose), Example("a cat")], tokenizer, tmp_path / "c", **LIMITS)
    corpus = Corpus.open(tmp_path / "c")
    assert report.windowed == 1
    assert corpus.text_lengths[:-2].tolist() == [16] * (len(corpus) - 2)
    assert 0 < corpus.text_lengths[-2] <= 16
    joined = [int(i) for row in range(len(corpus) - 1) for i in corpus.text(row)]
    assert tokenizer.decode(joined) == prose


def test_windows_know_which_of_their_sides_lie_within_a_text(tokenizer, tmp_path):
    folder = tmp_path / "c"
    examples = [Example("the cat sat on the mat. " * 8), Example("a cat"), Example("a dog", "who?")]
    build(examples, tokenizer, folder, **LIMITS, source="s")
    corpus = Corpus.open(folder)
    windows = len(corpus) - 2
    assert windows > 2
    edges = [(True, False), *[(False, False)] * (windows - 2), (False, True), (True, True), (True, True)]
    assert [corpus.edges(row) for row in range(len(corpus))] == edges
    whole = folder.joinpath("edges.bin").read_bytes()
    folder.joinpath("edges.bin").write_bytes(bytes(len(whole)))
    build(examples, tokenizer, folder, **LIMITS, source="s")
    assert folder.joinpath("edges.bin").read_bytes() == whole, "one that was damaged is built again"


def test_a_corpus_of_before_windows_were_told_apart_is_read_and_kept(tokenizer, tmp_path):
    folder = tmp_path / "c"
    examples = [Example("the cat sat on the mat. " * 8)]
    build(examples, tokenizer, folder, **LIMITS, source="s")
    digest = Corpus.open(folder).digest
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["edges"], manifest["bytes"]["edges.bin"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "edges.bin").unlink()
    build(iter(()), tokenizer, folder, **LIMITS, source="s")  # kept as it is: the examples are not read
    corpus = Corpus.open(folder)
    assert {corpus.edges(row) for row in range(len(corpus))} == {(True, True)}
    assert corpus.digest == digest, "so that a run that was begun with it goes on"


def test_pairs_that_do_not_fit_are_dropped_and_counted(tokenizer, tmp_path):
    examples = [
        Example("fits", "p"),
        Example("x", "long " * 20),
        Example("long " * 20, "p"),
        Example(" \n", "p"),
        Example("long " * 20),
    ]
    report = build(examples, tokenizer, tmp_path / "c", **LIMITS)
    assert (report.read, report.empty, report.long_prompts, report.long_texts, report.windowed) == (5, 1, 1, 1, 1)
    assert report.truncation_share == 3 / 4
    assert "1 with too long a prompt" in str(report)
    assert Corpus.open(tmp_path / "c").report == report


def test_nothing_left_is_an_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no example is left to train on"):
        build([Example("x", "long " * 20)], tokenizer, tmp_path / "c", **LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_corpus(tokenizer, tmp_path):
    build(pairs(5), tokenizer, tmp_path / "c", **LIMITS)

    def breaking():
        yield from pairs(9)
        raise DataError("line 10 is broken")

    with pytest.raises(DataError, match="line 10"):
        build(breaking(), tokenizer, tmp_path / "c", **LIMITS)
    assert len(Corpus.open(tmp_path / "c")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_same_source_is_not_read_again(tokenizer, tmp_path):
    def unread():
        raise AssertionError("read again")
        yield

    report = build(pairs(5), tokenizer, tmp_path / "c", source="s", **LIMITS)
    assert build(unread(), tokenizer, tmp_path / "c", source="s", **LIMITS) == report
    other = Tokenizer.train(["quite another text"] * 9, 512)
    for changed in ({"source": "t"}, {"max_text": 32}, {"multiple": 4}, {"tokenizer": other}, {"source": ""}):
        arguments = {"tokenizer": tokenizer, "source": "s", **LIMITS, **changed}
        with pytest.raises(AssertionError, match="read again"):
            build(unread(), folder=tmp_path / "c", **arguments)
    (tmp_path / "c" / "text.bin").write_bytes(b"")
    with pytest.raises(AssertionError, match="read again"):
        build(unread(), tokenizer, tmp_path / "c", source="s", **LIMITS)


def test_opening_what_is_not_whole(tokenizer, tmp_path):
    with pytest.raises(DataError, match="is not a whole corpus"):
        Corpus.open(tmp_path / "none")
    folder = tmp_path / "c"
    build(pairs(5), tokenizer, folder, **LIMITS)
    with pytest.raises(DataError, match="another tokenizer"):
        Corpus.open(folder, tokenizer=Tokenizer.train(["quite another text"] * 9, 512))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(DataError, match="version 99"):
        Corpus.open(folder)
    for broken in ("{", "[]", "{}"):
        (folder / "manifest.json").write_text(broken)
        with pytest.raises(DataError, match="is damaged"):
            Corpus.open(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "tags.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"tags\.bin has another size"):
        Corpus.open(folder)


def test_lengths_out_of_range(tokenizer, tmp_path):
    for changed in ({"max_text": 0}, {"max_prompt": -1}, {"multiple": 0}, {"max_text": 10, "multiple": 4}):
        with pytest.raises(ConfigError, match="give max_prompt"):
            build(pairs(1), tokenizer, tmp_path / "c", **{**LIMITS, **changed})


def test_memory_does_not_grow_with_the_corpus(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_CHUNK_EXAMPLES", 200)

    def peak(number):
        tracemalloc.start()
        build(
            (Example(f"the cat sat on the mat number {i}") for i in range(number)), tokenizer, tmp_path / "c", **LIMITS
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(200)
    grown = peak(4000) - peak(400)
    assert grown < 3600 * 12 * 4


def test_a_long_text_is_encoded_in_pieces_with_the_tokens_of_the_whole(tokenizer, monkeypatch):
    """Memory for 16 MiB at once would be gigabytes; the pieces are cut where a word ends in any case."""
    rng = random.Random(0)
    words = (
        "cat",
        " ",
        "  ",
        "\n",
        "it's",
        " don't",
        "12",
        "é",
        "。",
        "日本",
        "\t",
        "!",
        ", ",
        " 3",
        "\u3000",
        "\x1c",
        " on ",
    )
    text = "".join(rng.choice(words) for _ in range(4000))
    whole = tokenizer.encode(text)
    monkeypatch.setattr(tokenizers, "PIECE", 500)
    assert max(map(len, tokenizers.pieces_of(text))) <= 500
    assert tokenizer.encode(text) == whole
    assert tokenizer.decode(tokenizer.encode("x" * 1700)) == "x" * 1700, "a word without end is cut anywhere"
    assert len(text.encode()) <= tokenizer.longest * len(whole)


def of_tasks(*tasks: str | None) -> list[Example]:
    return [Example(f"the cat sat {i}", "cat", task=task) for i, task in enumerate(tasks)]


def test_tasks_are_kept_by_name_where_they_are_asked_for(tokenizer, tmp_path):
    examples = [*of_tasks("write", "cut", "write"), Example("the cat sat 0", "cat", task="cut")]
    build(examples, tokenizer, tmp_path / "with", tasks=True, source="one", **LIMITS)
    corpus = Corpus.open(tmp_path / "with")
    assert corpus.tasks == ("cut", "write") and len(corpus) == 4  # one pair of two tasks is two rows
    task = corpus.task(np.array([3, 0, 1, 2]))
    assert task is not None and task.tolist() == [0, 1, 0, 1]
    batch = collate(corpus, np.array([1, 2]), 1)
    assert batch.task is not None and batch.to("cpu").task.tolist() == [0, 1]  # pyright: ignore[reportOptionalMemberAccess]
    build(examples, tokenizer, tmp_path / "without", source="one", **LIMITS)
    plain = Corpus.open(tmp_path / "without")
    assert plain.tasks == () and plain.task(np.array([0])) is None and len(plain) == 3
    assert collate(plain, np.array([1, 2]), 1).to("cpu").task is None
    untold = [Example(e.text, e.prompt) for e in examples]
    build(untold, tokenizer, tmp_path / "never", source="one", **LIMITS)
    assert Corpus.open(tmp_path / "never").digest == plain.digest != corpus.digest
    swapped = [*of_tasks("cut", "write", "cut"), Example("the cat sat 0", "cat", task="write")]
    build(swapped, tokenizer, tmp_path / "swapped", tasks=True, **LIMITS)
    assert Corpus.open(tmp_path / "swapped").digest != corpus.digest


def test_a_corpus_of_tasks_is_reused_as_one_and_made_anew_as_another(tokenizer, tmp_path):
    def forbidden():
        raise AssertionError("the corpus is there already")
        yield

    build(of_tasks("a", "b"), tokenizer, tmp_path / "c", tasks=True, source="one", **LIMITS)
    assert build(forbidden(), tokenizer, tmp_path / "c", tasks=True, source="one", **LIMITS).rows == 2
    build(of_tasks("a", "b"), tokenizer, tmp_path / "c", source="one", **LIMITS)
    assert Corpus.open(tmp_path / "c").tasks == ()
    build(of_tasks("a", "b"), tokenizer, tmp_path / "c", tasks=True, source="one", **LIMITS)
    file = tmp_path / "c" / "tasks.bin"
    assert Corpus.open(tmp_path / "c").tasks == ("a", "b")
    file.write_bytes(bytes([0, 7]))
    with pytest.raises(DataError, match="no name"):
        Corpus.open(tmp_path / "c")
    file.unlink()
    with pytest.raises(DataError):
        Corpus.open(tmp_path / "c")


def test_rows_that_name_no_task_are_refused_where_tasks_are_told_apart(tokenizer, tmp_path):
    for none in (None, " "):
        with pytest.raises(DataError, match=r"names no task.*`task`"):
            build(of_tasks("a", none), tokenizer, tmp_path / "c", tasks=True, **LIMITS)
    with pytest.raises(DataError, match="more than 64 tasks"):
        build(of_tasks(*map(str, range(65))), tokenizer, tmp_path / "c", tasks=True, **LIMITS)


@pytest.mark.parametrize(
    "gone", [Example("the cat " * 200, "cat"), Example("cat", "the cat " * 200), Example(" ", "x")]
)
def test_a_task_of_which_no_row_is_left_is_refused_by_name(gone, tokenizer, tmp_path):
    examples = [*of_tasks("write", "write"), replace(gone, task="cut")]
    with pytest.raises(DataError, match=r"no row of the task 'cut' is left .*max_text"):
        build(examples, tokenizer, tmp_path / "c", tasks=True, **LIMITS)
    assert not (tmp_path / "c").exists()
    assert build(examples, tokenizer, tmp_path / "c", **LIMITS).rows == 2
    build([*examples, *of_tasks("cut")], tokenizer, tmp_path / "d", tasks=True, **LIMITS)
    assert Corpus.open(tmp_path / "d").tasks == ("cut", "write") and len(Corpus.open(tmp_path / "d")) == 3
