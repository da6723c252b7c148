"""What the README and the examples show, runs."""

import re
import runpy
from pathlib import Path

import pytest

from manta.config import load_toml
from manta.hub import shipped
from manta.recipes import Recipe, resolve

ROOT = Path(__file__).parent.parent
needs_model = pytest.mark.skipif(not (shipped() / "config.json").exists(), reason="no model ships with this copy")


@pytest.mark.slow
def test_training_on_pairs_writes_and_fills(capsys):
    example = runpy.run_path(str(ROOT / "examples" / "train_on_pairs.py"))
    texts = example["main"](num_steps=12)
    assert len(texts) == 3
    assert texts[2].startswith("Over there you see")
    assert texts[2].endswith("hill.")


@needs_model
def test_watching_the_flow_stays_in_its_budget(capsys):
    example = runpy.run_path(str(ROOT / "examples" / "watch_the_flow.py"))
    assert example["main"](num_steps=6) <= 6
    assert "t=1.00" in capsys.readouterr().out


@pytest.mark.slow
@needs_model
def test_the_python_block_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(block[1], "README.md", "exec"), {})
    assert "Blue Spice" in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_preset_parses_and_resolves(file):
    recipe = resolve(load_toml(Recipe, file))
    assert resolve(recipe) == recipe


def test_examples_are_short():
    assert all(len(file.read_text().splitlines()) <= 60 for file in (ROOT / "examples").glob("*.py"))


def test_the_tables_of_the_pages_are_those_of_the_recorded_results():
    module = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    shown = set()
    for page in module["PAGES"]:
        for mark in module["MARKS"].finditer(page.read_text(encoding="utf-8")):
            wanted = f"{mark[1]}{module['tables'](mark[2])}{mark[3]}"
            assert mark[0] == wanted, f"{page.name}: a table has drifted; write it: python benchmarks/tables.py"
            shown.add(mark[2])
    assert shown == set(module["TABLES"]), "every recorded result is shown somewhere"
