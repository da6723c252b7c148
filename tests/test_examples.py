"""What the README and the examples show, runs."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from manta.cli import VERBS, main
from manta.config import load_toml, read_toml
from manta.hub import shipped
from manta.recipes import resolve
from manta.recipes.image_recipe import resolve_images
from manta.recipes.states import recipe_class

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
def test_the_python_block_of_the_readme_runs(tmp_path):
    """In a process of its own, as a reader would have it: without checks of annotations."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert block is not None
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", block[1]]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=500)
    assert found.returncode == 0 and "Blue Spice" in found.stdout, found.stderr


GUIDED = (
    *("getting-started", "your-data", "training", "finetuning", "choosing", "measuring", "smaller", "quantising"),
    *("serving", "many-texts", "huggingface", "lm-eval", "tasks"),
)
GUIDES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in GUIDED),
]
README = "\n".join(page.read_text(encoding="utf-8") for page in GUIDES)
COMMANDS = [
    *re.findall(r"^(\./run .*?)(?: *#.*)?$", README, re.M),
    *(f"./run {words}" for words in re.findall(r"`(manta [a-z]+ .*?)`", README)),
    *re.findall(r"`(\./run .*?)`", README),
]
"""Every command that the README and the guides show, in a block or in a line."""


def words_of(command: str) -> list[str]:
    """A command's words after `./run`, without where its output goes."""
    return shlex.split(command.split(" > ")[0].replace("'pip", "pip"))[1:]


def test_the_readme_shows_commands():
    assert len(COMMANDS) > 12
    assert {"demo", "manta", "python", "help"} <= {words_of(command)[0] for command in COMMANDS}


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_of_the_readme_is_one_that_there_is(command, monkeypatch, capsys):
    """Its verb and its options are read as they would be; what it does is tested with the verb."""
    first, *rest = words_of(command)
    assert re.search(rf"^    {first}[ )|]", (ROOT / "run").read_text(encoding="utf-8"), re.M), f"./run has no {first}"
    if first == "python":
        assert (ROOT / rest[0]).is_file()
    if first != "manta":
        return
    module = import_module(VERBS[rest[0]][0])
    name = "parse_writing" if hasattr(module, "parse_writing") else "parse_options"
    read, options = getattr(module, name), []
    monkeypatch.setattr(module, name, lambda *given, **named: options.append(read(*given, **named)) or stop())
    assert main(rest) == 0, capsys.readouterr().err
    assert len(options) == 1


OWN_VERBS: dict[str, dict[str, str]] = {
    "images.md": {"generate": "draw", "evaluate": "evaluate_images", "diagnose": "diagnose_images"},
    "restoring.md": {"evaluate": "evaluate_restorer"},
}
"""Pages whose models have verbs of their own, and the files of those."""
SHOWN = [
    (page, command)
    for page in OWN_VERBS
    for command in re.findall(r"^(\./run .*?)(?: *#.*)?$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M)
]


@pytest.mark.parametrize(("page", "command"), SHOWN)
def test_a_command_of_a_page_on_images_is_one_that_there_is(page, command, monkeypatch, capsys):
    _, verb, *rest = words_of(command)
    module = import_module(f"manta.cli.{OWN_VERBS[page].get(verb, verb)}")
    read, options = module.parse_options, []
    monkeypatch.setattr(module, "parse_options", lambda *given: options.append(read(*given)) or stop())
    with pytest.raises(SystemExit):
        module.run(rest)
    assert len(options) == 1


@pytest.mark.parametrize("page", OWN_VERBS)
def test_the_options_that_a_page_on_images_names_exist(page, capsys):
    text = re.sub(r"`benchmarks/[^`]*`", "", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    shown = set(re.findall(r"--[a-z][a-z-]+", text))
    known = set()
    for module in ("train", "doctor", "convert", "restore", "imagine", *OWN_VERBS[page].values()):
        with pytest.raises(SystemExit):
            import_module(f"manta.cli.{module}").run(["--help"])
        known |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert sum(each == page for each, _ in SHOWN) > 3 and shown <= known


def stop() -> None:
    raise SystemExit(0)


def test_the_options_that_the_readme_names_exist(capsys):
    shown = " ".join(re.findall(r"`((?!\./run python)[^`\n]*)`", README))
    known = set()
    for verb in (*VERBS, "data export", "data check"):
        assert main([*verb.split(), "--help"]) == 0
        known |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]+", shown)) - known == set()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_every_preset_parses_and_resolves(file):
    state = read_toml(file).get("state", "text")
    again = {"text": resolve, "image": resolve_images}[state]
    recipe = again(load_toml(recipe_class(state), file))
    assert again(recipe) == recipe


def test_examples_are_short():
    assert all(len(file.read_text().splitlines()) <= 60 for file in (ROOT / "examples").glob("*.py"))


def test_the_tables_of_the_pages_are_those_of_the_recorded_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    shown = set()
    for page in module["PAGES"]:
        for mark in module["MARKS"].finditer(page.read_text(encoding="utf-8")):
            wanted = f"{mark[1]}{module['tables'](mark[2])}{mark[3]}"
            assert mark[0] == wanted, f"{page.name}: a table has drifted; write it: python benchmarks/tables.py"
            shown.add(mark[2])
    assert shown == set(module["TABLES"]), "every recorded result is shown somewhere"


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "PAPERS.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    heads = re.findall(r"^#+ +(.*?) *$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_blocks_on_adding_a_part_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 3
    exec(compile("\n".join(blocks), "extending.md", "exec"), {"__name__": "extending"})


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "site.py"))


def test_the_pages_made_from_the_code_have_not_drifted():
    """In a process of its own: here, docstrings belong to functions whose shapes are checked."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "docs" / "site.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert found.returncode == 0, found.stderr


def test_the_site_builds_and_its_links_lead_somewhere(site, tmp_path):
    pytest.importorskip("markdown")
    pages = site["build"](tmp_path / "site")
    listed = {ROOT / page for part in site["NAVIGATION"].values() for page in part}
    assert listed == set(PAGES), "every page is in the navigation"
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text
        for kind, target in re.findall(r'(href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:", target):
                assert kind == "href", "nothing is loaded from elsewhere"
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name} links to {target}"
            assert not anchor or f'id="{anchor}"' in file.read_text(encoding="utf-8"), f"{page.name} links to {target}"
    assert len(site["build"](tmp_path / "site")) == len(pages), "an earlier site is replaced"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not empty"):
        site["build"](tmp_path / "other")
    assert (tmp_path / "other" / "letter.txt").read_text() == "mine"


@pytest.mark.slow
@needs_model
def test_the_blocks_on_hugging_face_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), "huggingface.md", "exec"), {"__name__": "huggingface"})
    assert "What is" in capsys.readouterr().out
