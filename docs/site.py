"""The documents as one static site that needs no network, and the pages that are made from the code.

./run python docs/site.py                 # write docs/commands.md and docs/reference.md anew
./run python docs/site.py --check         # say whether they have drifted
./run python docs/site.py --out site      # build the site; takes the package markdown (the extra docs)
"""

import argparse
import contextlib
import importlib
import inspect
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

NAVIGATION: dict[str, tuple[str, ...]] = {
    "Begin": ("README.md", "docs/getting-started.md", "docs/your-data.md", "docs/choosing.md"),
    "Use": (
        "docs/training.md", "docs/finetuning.md", "docs/serving.md", "docs/measuring.md", "docs/lm-eval.md",
        "docs/diagnostics.md", "docs/images.md", "docs/restoring.md", "docs/tasks.md", "docs/stories.md",
        "docs/huggingface.md",
        "docs/many-machines.md", "docs/many-texts.md",
    ),
    "Make it smaller": ("docs/smaller.md", "docs/quantising.md"),
    "Understand": ("docs/how-it-works.md", "docs/challenges.md", "docs/results.md", "docs/limits.md", "PAPERS.md"),
    "Look up": ("docs/commands.md", "docs/reference.md", "docs/extending.md", "CONTRIBUTING.md"),
}  # fmt: skip
"""Every page of the site, by part."""

REFERENCE: dict[str, tuple[str, ...]] = {
    "Models": ("manta.hub:load", "manta.recipes:train", "manta.hub:save_pretrained", "manta.hub:push_to_hub"),
    "Writing": (
        "manta.families.events:Writer.write", "manta.families.events:Writer.generate", "manta.families.events:Request",
        "manta.families.events:Event", "manta.families.options:GenerateOptions", "manta.families.options:read_options",
        "manta.families.observer:Observer",
    ),
    "Images": (
        "manta.families.image_flow:ImageFlow.draw", "manta.families.joint_flow:JointFlow.draw",
        "manta.families.restorer:Restorer.restore",
    ),
    "Measuring": (
        "manta.evaluation:Evaluator", "manta.evaluation:likelihood", "manta.evaluation:choose",
        "manta.diagnosis:diagnose",
    ),
    "Serving": ("manta.server:create_app", "manta.server:ServeSettings"),
    "Many texts": ("manta.cluster:write_many", "manta.cluster:ManyTexts", "manta.cluster:Outcome"),
    "Errors": (
        "manta.errors:MantaError", "manta.errors:UsageError", "manta.errors:ConfigError", "manta.errors:DataError",
        "manta.errors:ModelError", "manta.errors:CheckpointError", "manta.errors:TrainingError",
        "manta.errors:RequestError",
    ),
}  # fmt: skip
"""What the reference tells of, as `module:name`."""


def commands() -> str:
    """docs/commands.md: the help of every verb, as the command line prints it."""
    from manta.cli import VERBS, help_text, main

    os.environ["COLUMNS"] = "100"
    parts = ["# Every command\n", "Made from the code by `docs/site.py`; a test says when it has drifted.\n"]
    parts.append(f"```text\n{help_text()}```\n")
    for verb in [*VERBS, "data export", "data check"]:
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            status = main([*verb.split(), "--help"])
        assert status == 0, verb
        parts.append(f"## manta {verb}\n\n```text\n{told.getvalue().rstrip()}\n```\n")
    return "\n".join(parts)


def reference() -> str:
    """docs/reference.md: signatures and docstrings of what programs use."""
    parts = ["# Python reference\n", "Made from the docstrings by `docs/site.py`; a test says when it has drifted.\n"]
    for title, names in REFERENCE.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name) for name in names]
    return "\n".join(parts)


def _entry(name: str) -> str:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    shown = f"{module}.{path}"
    text = _docstring(inspect.getdoc(found) or "")
    if not inspect.isclass(found):
        return f"### {shown}\n\n```python\n{path.split('.')[-1]}{_signature(found)}\n```\n\n{text}\n"
    fields = _fields(found)
    return f"### {shown}\n\n{text}\n" + (f"\n{fields}\n" if fields else "")


def _signature(function: Any) -> str:
    parameters = []
    for known in inspect.signature(function).parameters.values():
        value = "…" if callable(known.default) else repr(known.default)
        default = "" if known.default is known.empty else f"={value}"
        star = {known.VAR_POSITIONAL: "*", known.VAR_KEYWORD: "**"}.get(known.kind, "")
        if known.kind is known.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        parameters.append(f"{star}{known.name}{default}")
    return f"({', '.join(parameters)})"


def _fields(owner: Any) -> str:
    """The fields of a dataclass with their docstrings, as a table."""
    import dataclasses

    from manta.config import field_docs

    if not dataclasses.is_dataclass(owner):
        return ""
    docs, rows = field_docs(owner), []
    for known in dataclasses.fields(owner):
        default = "" if known.default is dataclasses.MISSING else f"`{known.default!r}`"
        said = " ".join(docs.get(known.name, "").split()).replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{known.name}` | {default} | {said} |")
    return "\n".join(["| field | default | |", "|---|---|---|", *rows])


def _docstring(text: str) -> str:
    """A docstring as Markdown: its sections become lists, its indented blocks stay as they are."""
    lines, section = [], ""
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Source):.*", line):
            head, _, rest = line.partition(":")
            lines += ["", f"**{head}.** {rest.strip()}".rstrip(), ""]
            section = head
        elif section in ("Args", "Raises") and (entry := re.match(r"    ([\w, `*]+): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            section = "" if line else section
            lines.append(line)
    return "\n".join(lines).replace("<", "&lt;") if "```" not in text else "\n".join(lines)


GENERATED = {"commands.md": commands, "reference.md": reference}


def drifted() -> Iterator[str]:
    """Names of made pages that differ from what the code says."""
    for name, make in GENERATED.items():
        if not (DOCS / name).exists() or (DOCS / name).read_text(encoding="utf-8") != make():
            yield name


STYLE = """
:root { --ground:#fff; --ink:#1b1f24; --soft:#57606a; --line:#d0d7de; --panel:#f6f8fa; --accent:#0b5c8a; }
@media (prefers-color-scheme: dark) {
  :root { --ground:#0f1419; --ink:#e8edf2; --soft:#9fb0c0; --line:#38434f; --panel:#171e26; --accent:#6cc0f0; }
}
* { box-sizing: border-box } html { background: var(--ground); color: var(--ink); font: 16px/1.6 system-ui, sans-serif }
body { margin: 0; display: grid; grid-template-columns: 15rem minmax(0, 1fr) }
nav { padding: 1.2rem; border-right: 1px solid var(--line); font-size: .93rem; min-height: 100vh }
nav b { display: block; margin: 1rem 0 .2rem; color: var(--soft) } nav a { display: block; padding: .1rem 0 }
nav a[aria-current] { font-weight: 700; color: var(--ink) } main { padding: 1.2rem 2rem 4rem; max-width: 62rem }
a { color: var(--accent) } img, svg { max-width: 100%; height: auto; background: #fff }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; overflow-x: auto }
code { background: var(--panel); padding: .05em .25em; border-radius: .2rem } pre code { padding: 0 }
table { border-collapse: collapse; display: block; overflow-x: auto } td, th { border: 1px solid var(--line);
padding: .25rem .5rem; text-align: left; vertical-align: top } h1 { line-height: 1.2 }
@media (max-width: 45rem) {
  body { grid-template-columns: 1fr } nav { min-height: 0; border: 0 } main { padding: 1rem }
}
"""


def build(out: Path) -> list[Path]:
    """Write the site.

    Args:
        out: its folder; one that is there has to be an earlier site, which is replaced.

    Returns:
        The pages.
    """
    import markdown

    mark = out / ".manta-site"
    if out.exists() and any(out.iterdir()) and not mark.exists():
        sys.exit(f"{out} is not empty, and no earlier site; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark.touch()
    pages = [page for part in NAVIGATION.values() for page in part]
    titles = {page: _title(page) for page in pages}
    made = []
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        body = markdown.markdown(text, extensions=["tables", "fenced_code", "toc", "sane_lists"])
        link = partial(_link, page=page, titles=titles)
        body = re.sub(r'(href|src)="([^"]+)"', link, body)
        file = out / _file(page)
        file.write_text(_page(titles[page], _navigation(page, titles), body), encoding="utf-8")
        made.append(file)
    for picture in [*DOCS.glob("*.svg"), *DOCS.glob("*.png")]:
        shutil.copy(picture, out / picture.name)
    return made


def _title(page: str) -> str:
    heading = re.search(r"^# (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
    return heading[1] if heading else page


def _file(page: str) -> str:
    return "index.html" if page == "README.md" else f"{Path(page).stem.lower()}.html"


def _link(found: re.Match[str], page: str, titles: Mapping[str, str]) -> str:
    """A link as the site has it: to its own pages and pictures; to what it leaves out, none."""
    kind, target = found[1], found[2]
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return f'{kind}="{target}"'
    there = os.path.relpath((ROOT / page).parent / path, ROOT)
    if there in titles:
        return f'{kind}="{_file(there)}{hash_}{anchor}"'
    if Path(there).suffix in (".svg", ".png"):
        return f'{kind}="{Path(there).name}"'
    return f'title="{escape(there)}"'


def _navigation(current: str, titles: Mapping[str, str]) -> str:
    parts = []
    for part, pages in NAVIGATION.items():
        links = [
            f'<a href="{_file(page)}"{" aria-current=page" if page == current else ""}>{escape(titles[page])}</a>'
            for page in pages
        ]
        parts.append(f"<b>{part}</b>{''.join(links)}")
    return "".join(parts)


def _page(title: str, navigation: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<nav>{navigation}</nav>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.check:
        sys.exit(f"drifted: {', '.join(names)}; run docs/site.py" if (names := list(drifted())) else 0)
    if given.out is None:
        for name, make in GENERATED.items():
            (DOCS / name).write_text(make(), encoding="utf-8")
        return
    print(f"{len(build(given.out))} pages in {given.out}")


if __name__ == "__main__":
    main()
