"""The faults that are planted are the ones meant, and the table of those made by hand fits the sources."""

import ast
import json
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    TOOL = runpy.run_path(str(ROOT / "benchmarks" / "mutation.py"))
TABLE = tomllib.loads((ROOT / "benchmarks" / "mutation.toml").read_text(encoding="utf-8"))

MODULE = '''"""Words 1 + 1."""
class Settings:
    share: float = 0.5

def step(x: int = 3, *, scale: bool = True) -> float:
    """Not 2 < 3."""
    if x < 3:
        raise ValueError(f"{x + 1} is below {3 + 4}")
    x += 1
    return max(x, -scale) if scale else call(x, key=x, strict=True)
'''


def test_behaviour_is_mutated_and_neither_messages_nor_annotations_nor_settings():
    found = [(m.before, m.after) for m in TOOL["mutants"]("a.py", MODULE.encode())]
    assert sorted(found) == sorted(
        [
            ("3", "(4)"), ("True", "(False)"), ("x < 3", "(x <= 3)"), ("x < 3", "(x >= 3)"), ("3", "(4)"),
            ("x += 1", "pass"), ("x += 1", "x -= 1"), ("1", "(2)"),
            ("max(x, -scale) if scale else call(x, key=x, strict=True)",
             "(call(x, key=x, strict=True) if scale else max(x, -scale))"),
            ("max(x, -scale)", "(min(x, -scale))"), ("-scale", "(scale)"),
            ("call(x, key=x, strict=True)", "(call(x, strict=True))"),
        ]
    )  # fmt: skip


FILES = TOOL["modules"](TABLE, [])


def test_every_module_of_a_package_is_mutated_and_one_can_be_asked_for():
    packages = [path for package in TABLE["packages"] for path in (ROOT / "src" / "manta" / package).glob("*.py")]
    assert len(packages) == len(FILES) > 30
    assert list(TOOL["modules"](TABLE, ["flow/path.py"])) == ["flow/path.py"]
    assert {file.split("/")[0] for file in TOOL["modules"](TABLE, ["flow", "masked"])} == {"flow", "masked"}
    assert all((ROOT / test).exists() for tests in FILES.values() for test in tests)


@pytest.mark.parametrize("file", FILES)
def test_mutants_compile(file):
    source = (ROOT / "src" / "manta" / file).read_bytes()
    for mutant in list(TOOL["mutants"](file, source))[::7]:
        ast.parse(mutant.source)
        assert mutant.source != source


LINES = """LIMIT = 1 + 2
def step(x, scale=3):
    total = call(
        x + 1,
        2)
    if (x <
            3):
        return total
    def inner(y=4):
        return y + 5
    return inner
class Settings:
    def share(self):
        return 6
"""


def test_a_mutant_belongs_to_the_whole_statement_and_outside_of_functions_to_an_import():
    lines = {(m.before, m.line): list(m.lines) for m in TOOL["mutants"]("a.py", LINES.encode())}
    assert lines == {
        ("1 + 2", 1): [], ("1", 1): [], ("2", 1): [], ("3", 2): [], ("x + 1", 4): [3, 4, 5], ("1", 4): [3, 4, 5],
        ("2", 5): [3, 4, 5], ("x < 3", 6): [6, 7], ("3", 7): [6, 7], ("4", 9): [9], ("y + 5", 10): [10],
        ("5", 10): [10], ("6", 14): [14],
    }  # fmt: skip


def test_a_mutant_meets_the_tests_that_run_its_statement_the_quickest_first():
    seconds = {"tests/a.py::middling": 1.4, "tests/a.py::quick": 1.0, "tests/a.py::slow": 1.6}
    seconds |= {"tests/b.py::quickest": 0.5, "other/c.py::x": 0.1}
    ran = {"4": ["tests/a.py::slow", "tests/a.py::middling"], "5": ["tests/a.py::quick", "other/c.py::x"]}
    ran["10"] = ["tests/b.py::quickest"]
    found = {(m.before, m.line): m for m in TOOL["mutants"]("a.py", LINES.encode(), ("tests/a.py", "tests/b.py"))}

    def chosen(before, line, ran):
        return TOOL["choose"](found[before, line], seconds, ran, 1.5)

    own = ["tests/b.py::quickest", "tests/a.py::quick", "tests/a.py::middling"]
    assert chosen("x + 1", 4, ran) == ["tests/a.py::quick", "tests/a.py::middling"]
    assert chosen("5", 10, ran) == ["tests/b.py::quickest"]
    assert chosen("6", 14, ran) == []
    assert chosen("1", 1, ran) == chosen("6", 14, {"14": [""]}) == own


PLANTED = """
def made():
    return 1

def used(x):
    return x + 1

def late(x):
    return x * 2

def idle():
    return True
"""
TESTS = """
import pytest, planted

@pytest.fixture(scope="module")
def one():
    return planted.made()

def test_first(one):
    assert one == 1

def test_second(one):
    assert planted.used(one) == 2

def test_third():
    assert planted.used(2) > 1
"""
RUN = """
import argparse, json, pathlib, runpy, sys
tool, folder = runpy.run_path(sys.argv[1]), pathlib.Path(sys.argv[2])
tool["fork"].__globals__.update(ROOT=folder, SOURCE=folder)
tests = ("test_planted.py", "test_later.py")
planted = list(tool["mutants"]("planted.py", (folder / "planted.py").read_bytes(), tests))
args = argparse.Namespace(ran=folder / "ran.json", longest=4.0, minutes=5.0, workers=1)
seconds, ran = tool["baseline"](planted, folder / "said.log", args.ran)
(folder / "test_later.py").write_text("import planted\\ndef test_later():\\n    assert planted.late(1) == 2\\n")
found = tool["attempt"](planted, planted, folder / "said.log", args)
later, _ = tool["baseline"](planted, folder / "said.log", args.ran)
print(json.dumps([seconds, ran, later, {planted[index].name: fate for index, fate in found.items()}]))
"""


def test_faults_meet_the_tests_that_run_them_and_all_that_share_a_fixture(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "test_planted.py").write_text(TESTS)
    (tmp_path / "test_later.py").touch()
    command = [sys.executable, "-c", RUN, str(ROOT / "benchmarks" / "mutation.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'benchmarks'}:{tmp_path}", "COVERAGE_CORE": "ctrace"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they would import torch
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, ran, later, fates = json.loads(done.stdout.splitlines()[-1])
    first, second, third = (f"test_planted.py::test_{name}" for name in ("first", "second", "third"))
    assert set(seconds) == {first, second, third} == set(later) - {"test_later.py::test_later"}
    assert all(later[test] == seconds[test] for test in seconds), "what is known is not run again"
    assert (set(ran["planted.py"]["3"]), set(ran["planted.py"]["6"])) == ({first, second}, {second, third})
    assert fates == {
        "planted.py:3  1  →  (2)": "killed",
        "planted.py:6  x + 1  →  (x - 1)": "killed",
        "planted.py:6  1  →  (2)": "killed",
        "planted.py:9  x * 2  →  (x / 2)": "killed",
        "planted.py:9  2  →  (3)": "killed",
        "planted.py:12  True  →  (False)": "not run",
    }


def test_the_mutations_made_by_hand_fit_their_files():
    found = TOOL["by_hand"](TABLE)
    assert len({name for name, _ in found}) == len(found)
    for name, mutant in found:
        assert all((ROOT / file).exists() for file in mutant.tests), name
        ast.parse(mutant.source)


def test_equivalent_mutants_have_their_reasons():
    for row in TABLE["equivalent"]:
        source = (ROOT / "src" / "manta" / row["file"]).read_bytes()
        found = {(mutant.text, mutant.before, mutant.after) for mutant in TOOL["mutants"](row["file"], source)}
        assert (row["line"], row["before"], row["after"]) in found and row["reason"], row


def test_an_interval_is_wilsons():
    assert TOOL["interval"](90, 100) == [0.826, 0.945]
