"""The flags of how to write, made of the families' own options, for every verb that writes."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from manta.cli.options import Section, parse_sections
from manta.families import FAMILIES, PUBLISHED_AS
from manta.families.asked import followers, listed
from manta.families.options import GenerateOptions, read_options

T = TypeVar("T")


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
    family = _family_of(argv) if {"-h", "--help"} & set(argv) else None
    names = [known.name for known in fields(GenerateOptions) if known.name not in leave_out]
    options, given = parse_sections(cls, argv, verb, _sections(names, family))
    return options, read_options(given)


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
    everyone = len({row.words for row in FAMILIES.values()})
    return [
        Section(
            "options of every model" if len(words) == everyone else f"options of {listed(words)}",
            GenerateOptions,
            tuple(alike[words]),
        )
        for words in sorted(alike, key=len, reverse=True)
    ]


def _family_of(argv: Sequence[str]) -> str | None:
    """The family of the first argument that is a model folder or a run folder, as its config.json says."""
    from manta.runtime import read_json

    for argument in argv:
        for file in (Path(argument) / "model" / "config.json", Path(argument) / "config.json"):
            if not argument.startswith("-") and file.is_file():
                config: Any = read_json(file)
                family = config.get("family", config.get("model_type")) if isinstance(config, dict) else None
                family = PUBLISHED_AS.get(family, family) if isinstance(family, str) else None
                return family if family in FAMILIES else None
    return None
