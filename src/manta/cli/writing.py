"""The flags of how to write, made of the families' own options, for every verb that writes."""

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from manta.cli.options import Section, parse_sections
from manta.errors import MantaError, UsageError
from manta.families import DRAWING, FAMILIES, PUBLISHED_AS
from manta.families.asked import followers, listed
from manta.families.options import GenerateOptions, read_options

T = TypeVar("T")

FLAGS = ("--json", "--help", "-h", "--debug")
"""Options that take no value."""

MOST_SCHEMA = 1 << 20
"""Bytes of a file with a schema."""


def parse_writing(
    cls: type[T], argv: Sequence[str], verb: str, *, leave_out: Sequence[str] = ()
) -> tuple[T, GenerateOptions]:
    """Read the arguments of a verb that writes, with the options of all families as flags.

    Its help shows the options of the model that is named, if that is a folder; else all, by the families that follow
    them. What a model does not follow is read none the less, so that whoever writes can say whose it is.

    Args:
        cls: the verb's own options, see `parse_sections`.
        argv: what follows the verb.
        verb: named in the help and in errors.
        leave_out: options that the verb reads by itself.

    Raises:
        UsageError: see `parse_sections`; or a value that an option cannot have.
    """
    options, asked = parse_asked(cls, argv, verb, leave_out=leave_out)
    return options, read_options(asked)


def parse_asked(
    cls: type[T], argv: Sequence[str], verb: str, *, leave_out: Sequence[str] = ()
) -> tuple[T, dict[str, Any]]:
    """The same, with the options of how to write by name: those that were given, their defaults among them."""
    family = family_of(argv) if {"-h", "--help"} & set(argv) else None
    family = None if family in DRAWING else family
    names = [known.name for known in fields(GenerateOptions) if known.name not in leave_out]
    options, given = parse_sections(cls, argv, verb, _sections(names, family))
    if given.get("schema") and not given["schema"].lstrip().startswith(("{", "[")):
        given = {**given, "schema": _read_schema(Path(given["schema"]))}
    return options, given


def _read_schema(file: Path) -> str:
    """The text of a file.

    Raises:
        UsageError: it cannot be read, or is too large for a schema.
    """
    try:
        with file.open("rb") as stream:
            found = stream.read(MOST_SCHEMA + 1)
        if len(found) > MOST_SCHEMA:
            raise UsageError(f"--schema {file} is larger than {MOST_SCHEMA:,} bytes; make it smaller")
        return found.decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"--schema should be JSON, or a file that holds it; {file} cannot be read ({error})") from None


def _sections(names: Sequence[str], family: str | None) -> list[Section]:
    """Options under the families that follow them, those of most families first; or those of one family."""
    if family is not None:
        row = FAMILIES[family]
        mine = tuple(known.name for known in fields(row.options) if known.name in names)
        rest = tuple(name for name in names if name not in mine)
        title = f"options of {row.words}"
        return [Section(title, row.options, mine), Section("others", GenerateOptions, rest, shown=False)]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        alike.setdefault(followers(name), []).append(name)
    return [
        Section(f"options of {_whose(words)}", GenerateOptions, tuple(alike[words]))
        for words in sorted(alike, key=len, reverse=True)
    ]


def _whose(words: Sequence[str]) -> str:
    """Families in a sentence, or those that are not among them where they are fewer."""
    others = [each for each in dict.fromkeys(row.words for row in FAMILIES.values()) if each not in words]
    if not others:
        return "every model"
    return listed(words) if len(words) <= len(others) else f"every model but {listed(others)}"


def family_of(argv: Sequence[str]) -> str | None:
    """The family of the first argument, no value of an option, that is a model folder or a run folder."""
    from manta.runtime import read_json

    for place, argument in enumerate(argv):
        before = argv[place - 1] if place else ""
        takes = before.startswith("--") and "=" not in before and before not in FLAGS and not before.startswith("--no-")
        if argument.startswith("-") or takes:
            continue
        for name in ("model/config.json", "adapter/base.json", "config.json", "base.json", "recipe.json"):
            try:
                found: Any = read_json(file) if (file := Path(argument) / name).is_file() else None
            except (OSError, ValueError, MantaError):  # whoever loads it says what is wrong
                return None
            if isinstance(found, dict):
                family = found.get("family", found.get("model_type"))
                family = PUBLISHED_AS.get(family, family) if isinstance(family, str) else None
                return family if family in FAMILIES or family in DRAWING else None
    return None


VERBS_OF = {
    "image": {
        "generate": "manta.cli.draw",
        "evaluate": "manta.cli.evaluate_images",
        "diagnose": "manta.cli.diagnose_images",
    },
    "joint": {"generate": "manta.cli.imagine", "evaluate": "manta.cli.evaluate_joint"},
    "restorer": {"evaluate": "manta.cli.evaluate_restorer"},
}
"""From a family of images and a verb to what runs it instead."""


def run_elsewhere(argv: Sequence[str], verb: str) -> int | None:
    """Run a verb as it is for a model of images, if the first argument that is a model folder holds one.

    Args:
        argv: what follows the verb.
        verb: as it was given.

    Returns:
        The exit code; None for a model of texts, and for what is no folder.

    Raises:
        UsageError: there is no such verb for the model.
    """
    family = family_of(argv)
    if family not in DRAWING:
        return None
    assert family in VERBS_OF, "a test compares the tables"
    if verb not in VERBS_OF[family]:
        known = ", ".join(
            f"manta {each}" for each in (*(["restore"] if family == "restorer" else []), *VERBS_OF[family])
        )
        raise UsageError(f"manta {verb} means nothing to a model of {DRAWING[family].words}; there is {known}")
    return import_module(VERBS_OF[family][verb]).run(argv)
