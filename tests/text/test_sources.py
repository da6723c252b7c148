import bz2
import gzip
import io
import json
import lzma
import os
import sys
import weakref
import zipfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from manta.errors import DataError, UsageError
from manta.recipes import Recipe
from manta.recipes.prepare import examples
from manta.text import Example, Tokenizer, fingerprint, packed, read, sources, tokenizer_for
from manta.text import files as data_files
from manta.text.files import has_paragraphs
from manta.text.hashing import split_of

SPLITS = ("train", "dev", "test")


def texts(path, content, split=None):
    """The texts of a file written with `content`: of all splits, or of one."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return sorted(example.text for s in ([split] if split else SPLITS) for example in read(str(path), s))


def many(number):
    return "".join(f"line {i}\n" for i in range(number))


# Text files


def test_a_line_each(tmp_path):
    assert texts(tmp_path / "a.txt", "\ufeffone\r\n\n  two \nthree") == ["one", "three", "two"]


def test_a_paragraph_each(tmp_path):
    content = "a rose\nis a rose\n\n\nthe end\nof it\n\nlast\nlines"
    assert texts(tmp_path / "a.txt", content) == ["a rose\nis a rose", "last\nlines", "the end\nof it"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (many(300), False),
        (many(150) + "\n" + many(150), False),
        ("one\n\ntwo\n\nthree\n", False),
        ("one\ntwo\n\nthree\nfour\n", True),
        ("", False),
    ],
)
def test_layout_is_read_from_the_head(head, expected):
    assert has_paragraphs(head) is expected


def test_splits_are_disjoint_complete_and_stable(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(many(2000))
    parts = [[e.text for e in read(str(path), split)] for split in SPLITS]
    assert Counter(t for part in parts for t in part) == Counter(many(2000).splitlines())
    assert [len(part) for part in parts] == pytest.approx([1800, 100, 100], abs=40)
    path.write_text("".join(reversed(many(2000).splitlines(keepends=True))))
    assert sorted(e.text for e in read(str(path), "dev")) == sorted(parts[1])


def test_a_prompt_lies_in_one_split(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i % 50}", "text": f"t{i}"}) + "\n" for i in range(500)))
    owners = {}
    for split in SPLITS:
        for example in read(str(path), split):
            assert owners.setdefault(example.prompt, split) == split
    assert len(owners) == 50
    assert len(set(owners.values())) == 3


def test_num_and_streaming(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(many(100).encode() + b"\0")
    assert len(list(read(str(path), num=5))) == 5
    assert list(read(str(path), num=0)) == []


# Records


def test_records_pass_other_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "prompt": "p", "id": 7, "tag": "mine"}\n\n{"text": "u", "prompt": null}\n')
    found = sorted((e for s in SPLITS for e in read(str(path), s)), key=lambda e: e.text)
    assert found == [Example("t", "p", 0, {"id": 7, "tag": "mine"}), Example("u", None)]


def test_csv_with_quotes_and_line_ends(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffprompt, text,n\r\n"a, b","say ""hi""\r\nagain",1\r\n\r\nc,d,2\r\n'.encode())
    found = sorted((e for s in SPLITS for e in read(str(path), s)), key=lambda e: e.text)
    assert found == [Example("d", "c", 0, {"n": "2"}), Example('say "hi"\nagain', "a, b", 0, {"n": "1"})]


# Mistakes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n \n", "holds no examples"),
        ("a.txt", b"good\nb\0d\n", r"line 2 holds a NUL byte at offset 6"),
        ("a.txt", b"caf\xc3\xa9\ncaf\xe9\n", r"line 2 is not UTF-8 at byte offset 9 \(0xe9\)"),
        ("a.txt", "text".encode("utf-16"), "is UTF-16"),
        ("a.pdf", b"x", "unknown kind of file '.pdf'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1 is a JSON list"),
        ("a.jsonl", b'{"input": "x", "output": "y"}\n', "line 1 has no field `text`; its fields are `input`, `output`"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: `text` is a number"),
        ("a.jsonl", b'{"text": null}\n', "line 1: `text` is a null"),
        ("a.jsonl", b'{"text": "x", "prompt": ["p"]}\n', "line 1: `prompt` is a list"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "half a surrogate pair at character 0"),
        ("a.jsonl", b'{"text": "x\\u0000"}\n', "`text` holds a NUL at character 1"),
        ("a.jsonl", b'{"text": "x", "text": "y"}\n', "line 1 is not JSON: the key 'text' stands there twice"),
        ("a.jsonl", b'{"text": "x"}\n{"promt": "p", "text": "y"}', "line 2 has no field `prompt` but `promt`"),
        ("a.jsonl", b'{"Prompt": "p", "text": "y"}', "line 1 has no field `prompt` but `Prompt`"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": NaN}\n', "`text` is a number"),
        ("a.jsonl.zst", b"x", "unknown kind of file '.zst'"),
        ("a.jsonl.xz", b"not packed", r"a\.jsonl\.xz line 1 cannot be read"),
        (
            "a.txt.gz",
            gzip.compress(b"one\ntwo\n", mtime=0)[:-4],
            r"line 1 cannot be read: it ends in the middle; the file is",
        ),
        ("a.txt.xz", lzma.compress(b"one\n" * 9)[:-9], r"line 1 cannot be read: it ends in the middle"),
        ("a.txt.bz2", bz2.compress(b"one\n")[:-2], r"line 1 cannot be read: it ends in the middle"),
        ("a.txt.xz", lzma.compress(b"one\n") + lzma.compress(b"two\n")[5:], "line 1 cannot be read"),
        ("a.txt.bz2", bz2.compress(b"one\n") + b"more", "line 1 cannot be read"),
        ("a.txt.gz", gzip.compress(b"one\n", mtime=0) + b"more", "line 1 cannot be read"),
        ("a.csv", b"hello,world\nx,y\n", "line 1 is no header with a column `text`; it reads: hello, world"),
        ("a.csv", b"text,text\nx,y\n", "names a column twice"),
        ("a.csv", b"prompt,text\nx,y\nx,y,z\n", "line 3 has 3 fields where the header has 2"),
        ("a.csv", b'prompt,text\nx,"y\n', "line 2 is not valid CSV"),
        ("a.csv", b"text\n", "holds no examples"),
    ],
)
def test_mistakes_in_a_file_name_it_and_the_place(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        texts(tmp_path / name, content)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end(tmp_path, monkeypatch, ends):
    for chunk in (data_files.CHUNK, 7):
        monkeypatch.setattr(data_files, "CHUNK", chunk)
        assert texts(tmp_path / "a.txt", ends.join(["one two", "three", "four"])) == ["four", "one two", "three"]
        assert texts(tmp_path / "b.txt", ends.join(["a", "b", "", "c", "d"])) == ["a\nb", "c\nd"]
        assert texts(tmp_path / "a.csv", ends.join(["prompt,text", "p,one", "q,two", ""])) == ["one", "two"]
        assert texts(tmp_path / "a.jsonl", ends.join(['{"text": "one"}', '{"text": "two"}'])) == ["one", "two"]


@pytest.mark.parametrize(("ending", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), (".BZ2", bz2.compress)])
def test_packed_files_of_one_stream_or_several(tmp_path, ending, pack):
    assert texts(tmp_path / f"a.txt{ending}", pack(b"one\ntwo\n")) == ["one", "two"]
    assert texts(tmp_path / f"a.JSONL{ending}", pack(b'{"text": "one"}\n') + pack(b'{"text": "two"}')) == ["one", "two"]
    assert texts(tmp_path / f"b.txt{ending}", pack(b"one\n") + b"\0\0\0\0" + pack(b"two") + b"\0" * 8) == ["one", "two"]


@pytest.mark.parametrize(("ending", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch, ending, pack):
    monkeypatch.setattr(packed, "BOMB_SIZE", 1 << 16)
    with pytest.raises(DataError, match="unpacks to more than 500 times its size"):
        texts(tmp_path / f"a.txt{ending}", pack(b"\n" * (1 << 22)))


def test_a_packed_file_that_asks_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "MEMORY", 1 << 20)
    with pytest.raises(DataError, match=r"line 1 cannot be read: Memory usage limit"):
        texts(tmp_path / "a.txt.xz", lzma.compress(b"one\n"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_of_csv(tmp_path, separator):
    rows = [["prompt", "text"], ["p", "one, two; three"], ["q", "four"]]
    content = "\n".join(separator.join(f'"{field}"' for field in row) for row in rows)
    assert texts(tmp_path / "a.csv", content) == ["four", "one, two; three"]


def test_a_csv_field_is_bounded_by_its_row(tmp_path, monkeypatch):
    long = "word " * 30_000
    assert texts(tmp_path / "a.csv", f'text\n"{long}"\nshort\n') == ["short", long]
    monkeypatch.setattr(data_files, "MAX_LINE", 1000)
    with pytest.raises(DataError, match="line 3: a row is longer than"):
        texts(tmp_path / "a.csv", 'text\nx\n"open\n' + "more\n" * 300)


def test_an_empty_prompt_is_none(tmp_path):
    rows = [{"prompt": prompt, "text": f"t{i}"} for i, prompt in enumerate(("", " ", "\n", None, "p"))]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {example.text: (split, example.prompt) for split in SPLITS for example in read(str(path), split)}
    assert [found[f"t{i}"][1] for i in range(5)] == [None] * 4 + ["p"]
    assert [found[f"t{i}"][0] for i in range(4)] == [split_of(f"t{i}") for i in range(4)], "the text decides"


def test_what_cannot_be_read_twice_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    for path in (tmp_path / "a.jsonl", "/dev/zero", "/dev/stdin" if not os.path.isfile("/dev/stdin") else "/dev/null"):
        with pytest.raises(DataError, match="is a pipe or a device"):
            read(str(path))
    with pytest.raises(DataError, match="home"):
        read("~nobody-of-this-name/a.txt")
    for name in ("a\0b.txt", "x" * 5000 + ".txt"):
        with pytest.raises(DataError, match=r"cannot be read|does not exist"):
            read(name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        read(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="is a folder"):
        read(str(tmp_path))


def test_a_line_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "MAX_LINE", 1000)
    with pytest.raises(DataError, match="line 2 is longer than"):
        texts(tmp_path / "a.txt", "x\n" + "y" * 2000)
    with pytest.raises(DataError, match=r"line \d+: a paragraph is longer than"):
        texts(tmp_path / "a.txt", "x\ny\n\n" * 3 + "yyyy\n" * 300)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("a.txt", {"split": "valid"}, UsageError, "unknown split 'valid'; choose one of train, dev, test"),
        ("a.txt", {"num": -1}, UsageError, "give 0 or more"),
        ("e2e:", {}, UsageError, "write e2e:PATH"),
        ("builtin:novel", {}, DataError, "there is builtin:weather"),
    ],
)
def test_wrong_names(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        read(name, **kwargs)


def test_the_built_in_corpus_is_named_split_and_seeded():
    first = list(read("builtin:weather", "dev", 5, seed=3))
    assert len(first) == 5
    assert all(example.prompt and example.text for example in first)
    assert first == list(read("builtin:weather", "dev", 5, seed=3)) != list(read("builtin:weather", "dev", 5, seed=4))
    assert first != list(read("builtin:weather", "train", 5, seed=3))


# E2E


@pytest.fixture
def e2e_folder(tmp_path):
    folder = tmp_path / "e2e-dataset"
    folder.mkdir()
    (folder / "trainset.csv").write_bytes(b'mr,ref\r\n"name[A], food[B]","A  serves\nB. "\r\n')
    (folder / "devset.csv").write_text("mr,ref\nname[C],C is.\n")
    (folder / "testset_w_refs.csv").write_text('"mr","ref"\n"name[D]","D £30."\n')
    return folder


def test_e2e_from_a_folder_and_a_zip(e2e_folder, tmp_path):
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in e2e_folder.iterdir():
            out.write(path, f"inside/{path.name}")
    for place in (e2e_folder, e2e_folder.parent, archive):
        assert list(read(f"e2e:{place}")) == [Example("A serves B.", "name[A], food[B]")]
        assert list(read(f"e2e:{place}", "dev")) == [Example("C is.", "name[C]")]
        assert list(read(f"e2e:{place}", "test")) == [Example("D £30.", "name[D]")]


@pytest.mark.parametrize("scheme", ["e2e", "d1-sudoku", "d1-countdown"])
def test_a_folder_named_by_mistake_is_not_searched_without_end(tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(data_files, "MAX_FILES", 10)
    for number in range(11):
        (tmp_path / f"{number}.csv").write_text("x")
    with pytest.raises(DataError, match="holds more than 10 files; name the folder"):
        list(read(f"{scheme}:{tmp_path}", "test"))
    with pytest.raises(DataError, match="File name too long"):
        list(read(f"{scheme}:{'x' * 5000}", "test"))


def test_broken_e2e(e2e_folder, tmp_path):
    (e2e_folder / "devset.csv").unlink()
    (e2e_folder / "trainset.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"holds no devset\.csv"):
        list(read(f"e2e:{e2e_folder}", "dev"))
    with pytest.raises(DataError, match=r"trainset\.csv line 2: no columns `mr` and `ref` but a, b"):
        list(read(f"e2e:{e2e_folder}"))
    archive = tmp_path / "x.zip"
    archive.write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"x\.zip is not a zip file"):
        list(read(f"e2e:{archive}"))
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("readme", "x")
    with pytest.raises(DataError, match=r"x\.zip holds no trainset\.csv"):
        list(read(f"e2e:{archive}"))


def test_damaged_e2e_zip(e2e_folder, tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.write(e2e_folder / "trainset.csv", "trainset.csv")
    archive.write_bytes(archive.read_bytes().replace(b"serves", b"Serves"))
    with pytest.raises(DataError, match=r"x\.zip!trainset\.csv line 1 cannot be read: Bad CRC-32"):
        list(read(f"e2e:{archive}"))


def zipped(folder, **changes):
    """A zip of the training file whose headers are changed: bytes by their offset in a header of the directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        out.write(folder / "trainset.csv", "trainset.csv")
    content = bytearray(buffer.getvalue())
    for begin, shift in ((content.index(b"PK\3\4"), 0), (content.index(b"PK\1\2"), 2)):
        for at, value in changes.items():
            content[begin + int(at[1:]) + shift] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_6": 1}, "encrypted"),
        ({"_8": 77}, "compression"),
        ({"_4": 255}, "version"),
        ({"_8": 14}, "cannot be read"),
        ({"_16": 200}, "cannot be read"),
    ],
)
def test_a_zip_that_is_encrypted_or_unknown_is_refused(e2e_folder, tmp_path, changes, message):
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped(e2e_folder, **changes))
    with pytest.raises(DataError, match=message) as caught:
        list(read(f"e2e:{archive}"))
    assert "x.zip" in str(caught.value)


def test_a_zip_bomb_is_refused(e2e_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BOMB_SIZE", 1 << 16)
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("trainset.csv", b"\n" * (1 << 22))
    with pytest.raises(DataError, match="unpacks to more than 500 times"):
        list(read(f"e2e:{archive}"))


def test_real_e2e(data_dir):
    path = data_dir / "e2e-dataset.zip"
    if not path.exists():
        pytest.skip(f"no {path}")
    prompts = {}
    for split, pairs, groups in (("train", 42061, 4862), ("dev", 4672, 547), ("test", 4693, 630)):
        found = list(read(f"e2e:{path}", split))
        prompts[split] = {example.prompt for example in found}
        assert (len(found), len(prompts[split])) == (pairs, groups)
        assert all(example.text == " ".join(example.text.split()) for example in found)
    assert "name[Blue Spice], eatType[coffee shop], area[city centre]" in prompts["test"]
    assert not prompts["train"] & prompts["test"]


# TinyStories

STORIES = (
    "one day, a cat ran.\n\nit ran far.\nonce there was a dog. \nit had a bone.\n\n\nthe end.\n"
    "it said, â€œhiâ€.\nlily liked tea.\nonce upon a time the cut"
)


@pytest.mark.parametrize("suffix", [".txt", ".txt.xz"])
def test_stories_end_at_single_newlines(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(STORIES.encode() if suffix == ".txt" else lzma.compress(STORIES.encode()))
    found = [e.text for split in SPLITS for e in read(f"tinystories:{path}", split)]
    assert sorted(found) == [
        "lily liked tea.",
        "once there was a dog.\n\nit had a bone.\n\nthe end.",
        "one day, a cat ran.\n\nit ran far.",
    ]


def test_stories_end_at_markers(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One.\nTwo.\n<|endoftext|>\n\nThree.\n\nFour.\n<|endoftext|>\n")
    found = [e.text for split in SPLITS for e in read(f"tinystories:{path}", split)]
    assert sorted(found) == ["One.\n\nTwo.", "Three.\n\nFour."]


def test_damaged_stories(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress((STORIES * 2000).encode())[:-20])
    with pytest.raises(DataError, match=r"a\.txt\.xz line \d+ cannot be read"):
        list(read(f"tinystories:{path}"))
    with pytest.raises(DataError, match="does not exist"):
        read(f"tinystories:{tmp_path / 'none.xz'}")


def test_real_tinystories(data_dir):
    path = data_dir / "tinystories_4MiB.txt.xz"
    if not path.exists():
        pytest.skip(f"no {path}")
    found = [e.text for split in SPLITS for e in read(f"tinystories:{path}", split)]
    assert 4600 < len(found) < 5000
    assert all(text.isascii() and "\n\n\n" not in text for text in found)
    assert sum(text.startswith(("once upon", "one day", "once there")) for text in found) > 0.65 * len(found)
    assert not any("\n\nonce upon a time" in text for text in found)


# The hub


class Row(dict):
    """A row that can be counted while it lives."""


class FakeHub:
    """A data set of many rows, and how many of them were made and how many live."""

    def __init__(self, splits=("train",), count=50, columns=("text", "n"), name="parquet"):
        self.splits, self.count, self.columns, self.name = splits, count, columns, name
        self.made = self.most = 0
        self.alive = weakref.WeakSet()

    def get_dataset_split_names(self, source, config):
        return list(self.splits)

    def load_dataset_builder(self, source, config):
        return self

    def as_streaming_dataset(self, split):
        for i in range(self.count):
            row = Row(zip(self.columns, (f"{split} {i}", i), strict=True))
            self.made += 1
            self.alive.add(Kept(row))
            self.most = max(self.most, len(self.alive))
            yield row


class Kept:
    """Lives as long as a row does."""

    def __init__(self, row):
        row.kept = self


def fake_datasets(monkeypatch, *args, **how):
    found = FakeHub(*args, **how)
    monkeypatch.setitem(sys.modules, "datasets", found)
    return found


def test_hub_splits(monkeypatch):
    fake_datasets(monkeypatch, ("train", "validation", "test"))
    assert [e.text for e in read("hf:a/b", "dev", 2)] == ["validation 0", "validation 1"]
    fake_datasets(monkeypatch, ("train", "validation"))
    assert all(e.text.startswith("train") for e in read("hf:a/b", "dev"))
    assert sum(len(list(read("hf:a/b", split))) for split in SPLITS) == 50
    fake_datasets(monkeypatch, ("other",))
    with pytest.raises(DataError, match="no split `train` but other"):
        list(read("hf:a/b"))


def test_hub_rows_are_held_one_at_a_time(monkeypatch):
    hub = fake_datasets(monkeypatch, ("train", "validation", "test"), 5000)
    assert sum(1 for _ in read("hf:a/b")) == hub.made == 5000
    assert hub.most <= 2
    by_hash = fake_datasets(monkeypatch, ("train",), 5000)
    assert sum(1 for _ in read("hf:a/b", "dev")) > 100
    assert by_hash.most <= 2


def test_reading_the_hub_stops_early(monkeypatch):
    hub = fake_datasets(monkeypatch, ("train", "validation", "test"), 5000)
    assert len(list(read("hf:a/b", num=7))) == hub.made == 7
    recipe = Recipe(data="hf:a/b", num_examples=9)
    assert len(list(examples(recipe))) == 9 and hub.made == 16


def test_hub_columns(monkeypatch):
    fake_datasets(monkeypatch, ("train", "validation", "test"), 3, ("answer", "n"))
    [first, *_] = read("hf:a/b:part?text=answer")
    assert (first.text, first.prompt, first.extra) == ("train 0", None, {"n": 0})
    with pytest.raises(DataError, match=r"no column 'text'; its columns are answer, n; .*hf:a/b\?text=COLUMN"):
        list(read("hf:a/b"))
    with pytest.raises(DataError, match="no column 'question'"):
        list(read("hf:a/b?text=answer&prompt=question"))
    with pytest.raises(DataError, match=r"row 1.*`prompt`"):
        list(read("hf:a/b?text=answer&prompt=n"))  # a number is no prompt
    for name in ("hf:a/b?txt=answer", "hf:a/b?text="):
        with pytest.raises(UsageError, match="which column holds"):
            list(read(name))
    with pytest.raises(UsageError, match="and not the text"):
        list(read("hf:a/b?prompt=answer"))


def test_hub_mistakes(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "manta\[hf\]"'):
        list(read("hf:a/b"))

    def missing(repo, config):
        raise FileNotFoundError("Dataset 'a/b' doesn't exist\nlong story")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(get_dataset_split_names=missing))
    with pytest.raises(DataError, match=r"hf:a/b cannot be read: Dataset 'a/b' doesn't exist; check"):
        list(read("hf:a/b"))
    fake_datasets(monkeypatch, name="pandas")
    with pytest.raises(DataError, match="files of the kind pandas"):
        list(read("hf:a/b"))


@pytest.mark.slow
def test_a_folder_in_the_layout_of_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import pyarrow  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet  # pyright: ignore[reportMissingImports]

    rows = {"q": [f"question {i}" for i in range(60)], "text": [f"answer {i}" for i in range(60)]}
    (tmp_path / "one").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "one" / "rows.parquet", row_group_size=10)
    found = [e for split in SPLITS for e in read(f"hf:{tmp_path / 'one'}?text=text&prompt=q", split)]
    assert sorted((e.prompt, e.text) for e in found) == sorted(zip(rows["q"], rows["text"], strict=True))
    (tmp_path / "three").mkdir()
    for name in ("train", "validation", "test"):
        lines = [json.dumps({"text": f"{name} {i}"}) for i in range(5)]
        (tmp_path / "three" / f"{name}.jsonl").write_text("\n".join(lines))
    name = f"hf:{tmp_path / 'three'}"
    assert [e.text for e in read(name, "dev")] == [f"validation {i}" for i in range(5)]
    before = fingerprint(name)
    assert fingerprint(name) == before
    (tmp_path / "three" / "train.jsonl").write_text(json.dumps({"text": "other"}))
    assert fingerprint(name) != before
    (tmp_path / "three" / "train.jsonl").write_text('{"text": ')
    with pytest.raises(DataError, match=r"hf:.*three cannot be read"):
        list(read(name))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="doesn't contain any data files"):
        list(read(f"hf:{tmp_path / 'none'}"))


# Fingerprints


def test_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    first = fingerprint(str(path))
    assert first == fingerprint(str(path)) != fingerprint(str(path), "dev")
    path.write_text("one\ntwo\n")
    assert fingerprint(str(path)) != first
    assert fingerprint("builtin:weather", seed=1) != fingerprint("builtin:weather", seed=2)
    assert fingerprint("builtin:weather") == fingerprint("builtin:weather") != fingerprint("builtin:weather", num=9)
    with pytest.raises(DataError, match="cannot be read"):
        fingerprint(str(tmp_path / "none.txt"))


def test_fingerprint_changes_with_the_generator(monkeypatch):
    """What is drawn counts, not the name: a corpus kept on disk from an older grammar has another fingerprint."""
    from manta.text.tasks import TASKS

    task = TASKS["sudoku4"]
    first = fingerprint("builtin:sudoku4")

    def draw(rng, split):
        return (Example(e.text, (e.prompt or "")[::-1]) for e in task.draw(rng, split))

    monkeypatch.setitem(TASKS, "sudoku4", replace(task, draw=draw))
    assert fingerprint("builtin:sudoku4") != first


# Tokenizers


def test_a_named_data_set_has_its_tokenizer(tmp_path):
    assert tokenizer_for("builtin:sudoku4", 512).symbols == "01234"
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"colour {i}", "text": f"the paint is number {i}"} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = [text for e in read(str(path), "train", 30) for text in (e.prompt or "", e.text)]
    assert tokenizer_for(str(path), 512, 30).fingerprint() == Tokenizer.train(train, 512).fingerprint()


def test_parts_of_a_split_are_disjoint_and_make_it_whole():
    whole = list(read("builtin:weather", "train", None))
    parts = [list(read("builtin:weather", f"train:{k}/3")) for k in (1, 2, 3)]
    assert sorted(e.text for part in parts for e in part) == sorted(e.text for e in whole)
    assert all(len(part) > 0.25 * len(whole) for part in parts)
    prompts = [{e.prompt for e in part} for part in parts]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]
    assert [e.text for e in read("builtin:weather", "train:2/3", 5)] == [e.text for e in parts[1][:5]]
    assert fingerprint("builtin:weather", "train:1/3") != fingerprint("builtin:weather", "train:2/3")


@pytest.mark.parametrize("split", ["train:0/2", "train:3/2", "train:1", "valid:1/2", "train:1/" + "9" * 5000])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(UsageError, match=r"split|part"):
        read("builtin:weather", split)


def test_an_empty_part_says_so(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("".join(f"line {i} of a short file\n" for i in range(4)))
    with pytest.raises(DataError, match=r"part \d of 50"):
        for k in range(1, 10):
            list(read(str(path), f"train:{k}/50"))
