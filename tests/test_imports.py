"""Imports go one way, and importing costs little.

A package may import the packages of lower rungs. Packages of one rung may import one another too, as long as no two of
them depend on each other. The solvers, decoders, objectives and diagnostics take callables, so they import no nets, and
nothing that could serve images knows of text.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "manta"
FILES = sorted(ROOT.rglob("*.py"))

READERS = {"text", "image"}
"""Packages that read data of a kind of state."""
LADDER = (
    {"errors", "config", "runtime", "signals", "step", "types"},
    {"operators", *READERS},
    {"nets", "spaces"},
    {"flow", "masked", "autoregressive", "aligned", "fluency"},
    {"families"},
    {"hub", "training", "control", "metrics", "report", "quantisation"},
    {"recipes", "evaluation", "bench", "diagnosis"},
    {"server", "cluster"},
    {"cli"},
    {"__main__"},
)
"""From the lowest rung to the highest. `manta/__init__.py` belongs to the lowest: it imports when asked."""
RUNG = {package: rung for rung, packages in enumerate(LADDER) for package in packages} | {"__init__": 0}

TAKES_CALLABLES = {"flow", "masked", "autoregressive", "aligned", "fluency", "control"}
KNOWS_NO_TEXT = {"operators", "nets", "flow", "control", "training", "quantisation"}

ONLY_IN = {
    "PIL": {"image"},
    "datasets": {"text"},
    "fastapi": {"server"},
    "filelock": {"cluster", "recipes"},
    "fsspec": {"text"},
    "huggingface_hub": {"hub", "text"},
    "jinja2": {"report"},
    "lm_eval": {"evaluation"},
    "matplotlib": {"report"},
    "interegular": {"text"},
    "peft": {"hub"},
    "prometheus_client": {"server"},
    "pyarrow": {"text"},
    "pydantic": {"server"},
    "ray": {"cluster"},
    "rich": {"cli", "training"},
    "rouge_score": {"metrics"},
    "sacrebleu": {"metrics"},
    "scipy": {"metrics"},
    "sklearn": {"metrics"},
    "starlette": {"server"},
    "tensorboard": {"training"},
    "tokenizers": {"text"},
    "transformers": {"hub", "bench"},
    "uvicorn": {"server"},
}
NOWHERE = {"cloudpickle", "dill", "flow_matching", "gradio", "joblib", "mauve", "pickle", "streaming", "torchcfm"}
"""Licences that do not fit, weights that do not fit, and whatever unpickles a file that a user may have downloaded."""


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports anywhere, except for type checkers alone."""
    package = ("manta", *path.relative_to(ROOT).parent.parts)
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def owner(name: str) -> str:
    """Package of manta that an imported name belongs to: `manta.flow.path.linear` is of `flow`."""
    part = name.split(".")[1] if "." in name else "__init__"
    return part if part in RUNG or (ROOT / part).exists() or (ROOT / f"{part}.py").exists() else "__init__"


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def ours(path: Path) -> set[str]:
    return {owner(name) for name in imports(path) if name.split(".")[0] == "manta"} - {package_of(path)}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_file_imports_from_lower_rungs(path):
    package = package_of(path)
    assert package in RUNG, f"{package} has no place on the ladder"
    above = {other for other in ours(path) if RUNG.get(other, len(LADDER)) > RUNG[package]}
    assert not above, f"{label(path)} imports from above: {', '.join(sorted(above))}"
    if package in TAKES_CALLABLES:
        assert "nets" not in ours(path), f"{label(path)} imports nets; take a callable instead"
    if package in KNOWS_NO_TEXT:
        known = READERS & ours(path)
        assert not known, f"{label(path)} imports {', '.join(known)}; it should not know what its state is"


TEXT_WORDS = re.compile(r"(?:^|_)(?:tokens?|words?|prompts?|pixels?|texts?|vocab\w*|sentences?)(?:_|$)")


def named(path: Path) -> Iterator[str]:
    """Names of functions, of their arguments, of classes and of their fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node.name
            yield from (given.arg for given in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
        if isinstance(node, ast.ClassDef):
            yield node.name
            yield from (
                part.target.id
                for part in node.body
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
            )


@pytest.mark.parametrize("path", [path for path in FILES if package_of(path) in KNOWS_NO_TEXT], ids=label)
def test_what_could_serve_images_names_nothing_after_text(path):
    found = [name for name in named(path) if TEXT_WORDS.search(name.lower())]
    assert not found, f"{label(path)} names {', '.join(found)}; its state need not be text"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_outside_libraries_stay_in_their_place(path):
    outside = {name.split(".")[0] for name in imports(path)}
    misplaced = {library for library in outside & set(ONLY_IN) if package_of(path) not in ONLY_IN[library]}
    assert not misplaced, f"{label(path)} imports {', '.join(sorted(misplaced))}"
    assert not outside & NOWHERE, f"{label(path)} imports {', '.join(sorted(outside & NOWHERE))}"


def test_no_two_packages_depend_on_each_other():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(package_of(path), set()).update(ours(path) - {"__init__"})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"packages import one another in a circle: {' → '.join(error.args[1])}")


def test_relative_and_hidden_imports_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "flow" / "deep" / "file.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from . import near\n"
        "from ..path import linear\n"
        "from ... import nets\n"
        "if TYPE_CHECKING:\n    from manta.cli import main\n"
        "else:\n    import manta.hub\n"
        "def late():\n    import matplotlib.pyplot\n"
    )
    assert set(imports(path)) == {
        "typing.TYPE_CHECKING",
        "manta.flow.deep.near",
        "manta.flow.path.linear",
        "manta.nets",
        "manta.hub",
        "matplotlib.pyplot",
    }
    assert ours(path) == {"nets", "hub"}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a clean process has loaded after running `code`."""
    code = f"import sys\n{code}\nprint('LOADED', *{{name.split('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "code",
    ["import manta", "from manta.cli import main; main(['--help'])", "from manta.cli import main; main(['nonsense'])"],
)
def test_the_front_door_loads_no_torch(code):
    assert not loaded_after(code) & {"torch", "numpy", "jaxtyping", "rich", *ONLY_IN}


def test_configuration_loads_no_torch():
    assert not loaded_after("import manta.config, manta.errors, manta.cli.options") & {"torch", "numpy"}


def test_a_public_name_is_found_when_asked_for():
    import manta

    assert {"load", "train", "__version__"} <= set(dir(manta))
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        manta.lode  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_everything_loads_nothing_that_is_optional():
    packages = sorted({package_of(path) for path in FILES} - {"__init__", "__main__"})
    loaded = loaded_after("\n".join(f"import manta.{package}" for package in packages))
    optional = {
        "datasets",
        "fsspec",
        "matplotlib",
        "pyarrow",
        "ray",
        "rouge_score",
        "sacrebleu",
        "scipy",
        "sklearn",
        "tensorboard",
        "transformers",
    }
    assert not loaded & optional
