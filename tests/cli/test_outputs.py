"""A verb that writes takes nobody's file, and says so before the work begins."""

import json
from pathlib import Path

import pytest

from manta.cli import main
from manta.cli.outputs import claim_file, claim_folder, marked
from manta.errors import UsageError

MINE = {"mine": 1}


@pytest.mark.parametrize(
    "argv",
    [
        ["data", "export", "builtin:weather", "--num", "2"],
        ["evaluate", "--data", "builtin:weather"],
        ["bench", "--parts", "operators"],
    ],
)
def test_a_file_that_is_there_is_not_written_over(tmp_path, capsys, argv):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(MINE))
    assert main([*argv, "--out", str(file)]) == 2
    error = capsys.readouterr().err
    assert "would be overwritten" in error and error.count("\n") == 1
    assert json.loads(file.read_text()) == MINE


@pytest.mark.parametrize("verb", ["compare", "diagnose"])
@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_report_s_folder_keeps_what_another_wrote(tmp_path, capsys, verb, kind):
    (tmp_path / f"{verb}.{kind}").write_text(json.dumps(MINE))
    assert main([verb, "--out", str(tmp_path)]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert json.loads((tmp_path / f"{verb}.{kind}").read_text()) == MINE


def test_an_earlier_report_of_the_same_verb_is_replaced(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(marked("evaluate", {"figures": {}})))
    claim_file(tmp_path / "old.json", "evaluate")
    (tmp_path / "compare.json").write_text(json.dumps(marked("compare", {"rows": []})))
    (tmp_path / "compare.html").write_text("<html>")
    claim_folder(tmp_path, "compare")
    claim_file(Path("/dev/null"))


@pytest.mark.parametrize(
    ("verb", "keys"), [("bench", "machine"), ("diagnose", "verdicts"), ("evaluate", "command figures")]
)
def test_a_file_with_keys_like_a_report_s_is_no_report(tmp_path, verb, keys):
    (tmp_path / "mine.json").write_text(json.dumps(dict.fromkeys(keys.split(), "mine")))
    with pytest.raises(UsageError, match="would be overwritten"):
        claim_file(tmp_path / "mine.json", verb)


def test_a_page_that_is_a_folder_and_a_link_into_nowhere_are_said_at_once(tmp_path):
    (tmp_path / "compare.json").write_text(json.dumps(marked("compare", {})))
    (tmp_path / "compare.html").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        claim_folder(tmp_path, "compare")
    (tmp_path / "link.json").symlink_to(tmp_path / "none" / "x.json")
    with pytest.raises(UsageError, match="there is no folder"):
        claim_file(tmp_path / "link.json", "bench")


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl.gz"])
def test_lines_are_not_exported_under_the_name_of_something_else(tmp_path, capsys, name):
    assert main(["data", "export", "builtin:weather", "--num", "2", "--out", str(tmp_path / name)]) == 2
    assert "name it .jsonl" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["", "none/x.json", "x" * 300])
def test_what_cannot_be_written_is_said_at_once(tmp_path, path):
    with pytest.raises(UsageError):
        claim_file(tmp_path / path, "bench")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        claim_folder(tmp_path / "file", "compare")


def test_data_are_not_exported_over_themselves(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("one line\n" * 3)
    assert main(["data", "export", str(file), "--out", str(file)]) == 2
    assert file.read_text() == "one line\n" * 3
