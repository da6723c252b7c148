"""The faults that are planted are the ones meant, and the table of those made by hand fits the sources."""

import ast
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
            ("call(x, key=x, strict=True)", "(call(x, strict=True))"), ("True", "(False)"),
        ]
    )  # fmt: skip


@pytest.mark.parametrize("row", TABLE["modules"], ids=lambda row: row["file"])
def test_every_module_has_tests_and_mutants_that_compile(row):
    assert all((ROOT / file).exists() for file in row["tests"])
    source = (ROOT / "src" / "manta" / row["file"]).read_bytes()
    found = list(TOOL["mutants"](row["file"], source))
    assert found
    for mutant in found[::7]:
        ast.parse(mutant.source)
        assert mutant.source != source


def test_the_mutations_made_by_hand_fit_their_files():
    found = TOOL["by_hand"](TABLE)
    assert len({name for name, _ in found}) == len(found)
    for name, mutant in found:
        assert all((ROOT / file).exists() for file in mutant.tests), name
        ast.parse(mutant.source)


def test_equivalent_mutants_have_their_reasons():
    for row in TABLE["equivalent"]:
        source = (ROOT / "src" / "manta" / row["file"]).read_bytes()
        found = {(mutant.before, mutant.after) for mutant in TOOL["mutants"](row["file"], source)}
        assert (row["before"], row["after"]) in found and row["reason"], row


def test_an_interval_is_wilsons():
    assert TOOL["interval"](90, 100) == [0.826, 0.945]
