"""Files of folders, URLs and tables, in an order that is the same everywhere; a folder that is another job's."""

import datetime
import gzip
import json
import sys
from typing import Any

import pytest

from manta.cli import main
from manta.cluster.folder import COLUMNS, JobFolder
from manta.cluster.rows import KINDS, lines_of, stage
from manta.errors import DataError, UsageError
from manta.text.places import find_places, records_of
from manta.text.tables import read_table, write_table
from tests.cluster.conftest import some_lines, write_lines


def ids(source: Any) -> list[int]:
    return [json.loads(line.text)["id"] for place in find_places(source, KINDS) for line in lines_of(place)]


def test_the_files_of_a_folder_come_by_their_paths_and_no_others(tmp_path):
    for at, name in enumerate(["a/z.jsonl", "a.jsonl", "b.jsonl.gz", "c/d/e.jsonl"]):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps({"id": at}) + "\n").encode()
        file.write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    for name in ("_job.json", "_failures/part-0.jsonl", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"id": 99}\n')
    assert ids(tmp_path) == [0, 1, 2, 3]
    assert ids(f"file://{tmp_path}") == [0, 1, 2, 3]
    assert ids(tmp_path / "a.jsonl") == [1]


def test_a_place_in_memory_is_read_as_a_file_is(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name, rows in (("b", some_lines(5)[2:]), ("a", some_lines(2))):
        system.pipe(f"/many/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert ids("memory://many") == [0, 1, 2, 3, 4]
    digest = stage(find_places("memory://many", KINDS), tmp_path / "one", 2, set()).digest
    file = write_lines(tmp_path / "in.jsonl", some_lines(5))
    assert digest == stage(find_places(file, KINDS), tmp_path / "two", 2, set()).digest, (
        "of the lines, not of the files"
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "does not exist"),
        ("memory://nowhere", "does not exist"),
        ("strange://bucket/x", "cannot be read"),
        (".", r"holds no .jsonl or .parquet file"),
        ("text.txt", r"is no .jsonl or .parquet file"),
    ],
)
def test_what_is_no_place_is_named(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(DataError, match=words):
        find_places(source, KINDS)


def test_rows_of_a_table_are_those_that_were_written(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"prompt": f"p{i}", "nfe": i, "extra": None, "text": "Ä"} for i in range(3000)]
    write_table(rows, {name: COLUMNS[name] for name in ("prompt", "nfe", "extra", "text")}, tmp_path / "t.parquet")
    with (tmp_path / "t.parquet").open("rb") as stream:
        assert list(read_table(stream, "t")) == rows
    [place] = find_places(tmp_path, KINDS)
    assert [at for at, _ in records_of(place)][2999].endswith("t.parquet row 3000")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is no Parquet file, or damaged"):
        list(lines_of(place))


def test_a_row_of_a_table_asks_what_its_line_would_and_a_null_option_nothing(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    options = [{"num_steps": 3, "temperature": None}, {"num_steps": None, "temperature": 0.5}]
    table = pyarrow.table({"prompt": ["a", "b"], "seed": [None, 3], "options": options})
    parquet.write_table(table, tmp_path / "in.parquet")
    [place] = find_places(tmp_path / "in.parquet", KINDS)
    assert [json.loads(line.text) for line in lines_of(place)] == [
        {"prompt": "a", "seed": None, "options": {"num_steps": 3}},
        {"prompt": "b", "seed": 3, "options": {"temperature": 0.5}},
    ]
    parquet.write_table(pyarrow.table({"day": [datetime.date(2026, 1, 1)]}), tmp_path / "in.parquet")
    [line] = lines_of(place)
    assert "row 1 holds what is no JSON" in (line.fault or "")


def test_a_folder_belongs_to_one_job_and_one_process(tmp_path):
    folder = JobFolder(tmp_path / "out", ".jsonl")
    folder.claim()
    with pytest.raises(UsageError, match="another process is writing"):
        JobFolder(tmp_path / "out", ".jsonl").claim()
    folder.begin({"model": "a", "seed": 3, "options": {"num_steps": 8}})
    folder.refuse_other({"model": "moved elsewhere", "seed": 3})
    with pytest.raises(UsageError, match="another job: its seed was 3 and is now 4"):
        folder.refuse_other({"model": "a", "seed": 4})
    folder.release()
    (folder.path / ".manta-0123456789ab-1-1.tmp").touch()
    folder.claim()
    assert not list(folder.path.glob("*.tmp")), "what a killed process left is gone"
    folder.release()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").touch()
    for name, words in (("letters", "holds mine.txt and no job"), ("letters/mine.txt", "is a file")):
        with pytest.raises(UsageError, match=words):
            JobFolder(tmp_path / name, ".jsonl").claim()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "ray", "--out", "x"], "give --input FOLDER|FILE|URL and --out DIR"),
        (["--engine", "ray", "--input", "x"], "give --input FOLDER|FILE|URL and --out DIR"),
        (["--workers", "2"], "--workers is for --engine ray"),
        (["--engine", "ray", "--input", "x", "--out", "y", "--device", "cuda:1"], "it is cpu or cuda"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_loaded(monkeypatch, capsys, flags, words):
    monkeypatch.setattr("manta.hub.load_writer", None)
    assert main(["generate", *flags]) == 2
    assert words in capsys.readouterr().err


def test_without_ray_it_is_said_what_brings_it(monkeypatch, capsys, model, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    file = write_lines(tmp_path / "in.jsonl", some_lines(1))
    assert main(["generate", model, "--engine", "ray", "--input", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'manta[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
