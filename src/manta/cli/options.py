"""A verb's options as one frozen dataclass: fields are flags, their docstrings are the help.

    @dataclass(frozen=True, kw_only=True)
    class DataOptions:
        \"\"\"Export a built-in corpus.\"\"\"

        source: str = argument()
        \"\"\"Where the texts come from: `builtin:NAME` or a file.\"\"\"
        num: int = 100
        \"\"\"Texts to write.\"\"\"

    options = parse_options(DataOptions, ["builtin:weather", "--num", "3"], verb="data")

`num_steps: int` is `--num-steps N`; `json: bool = False` is `--json`, and `--no-json` too where it is on by default; a
`Literal` shows its choices, or those of the metadata `among`; a `tuple[str, ...]` is a flag that may be repeated;
`argument()` marks a field that is written without a flag, a `tuple` among them taking all that are left. `sections`
adds flags of another dataclass under headings of their own. It stands on argparse and not on tyro, whose import alone
takes ten times as long, and whose own errors and help would have to be replaced to keep one line with the nearest flag.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from manta.config import field_docs, nearest, parse_value
from manta.errors import ConfigError, UsageError

T = TypeVar("T")

_VERBATIM = "\0"
"""Put before what follows a lone `--`, so that it is never taken for a flag; no process can be given this character."""


LONGEST_CHOICES = 72
"""Characters of choices that are shown beside their flag; more are for its text to tell."""


def argument(default: Any = dataclasses.MISSING, shown: str = "") -> Any:
    """Mark a field of an options class as written without a flag, in the order of the fields.

    Args:
        default: value when it is left out; without one it must be given.
        shown: what stands for it in the help; empty: the field's name.
    """
    metadata = {"argument": True, "shown": shown}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """Some fields of another dataclass, as flags under a heading of the help."""

    title: str
    """The heading."""
    owner: type
    """The dataclass, whose docstrings are the help."""
    names: tuple[str, ...]
    """Its fields."""
    shown: bool = True
    """False: its flags are read, and left out of the help."""


def parse_options(cls: type[T], argv: Sequence[str], verb: str) -> T:
    """Read the arguments of a verb that has no sections; see `parse_sections`."""
    return parse_sections(cls, argv, verb)[0]


def parse_sections(
    cls: type[T], argv: Sequence[str], verb: str, sections: Sequence[Section] = ()
) -> tuple[T, dict[str, Any]]:
    """Read the arguments of a verb.

    Args:
        cls: a dataclass whose docstring heads the help and whose fields are of the kinds of `manta.config`.
        argv: what follows the verb.
        verb: named in the help and in errors.
        sections: flags of other dataclasses.

    Returns:
        An instance of `cls`, and of the sections what was given.

    Raises:
        UsageError: for an unknown flag (the nearest one is named), a missing or superfluous argument, or a value that
            cannot be read as its field's type.
        SystemExit: 0, after `--help` has been printed.
    """
    parser = _parser(cls, verb, sections)
    flags_end = argv.index("--") if "--" in argv else len(argv)
    verbatim = [_VERBATIM + text for text in argv[flags_end + 1 :]]
    given, unknown = parser.parse_known_intermixed_args([*argv[:flags_end], *verbatim])
    if unknown:
        flag = unknown[0].partition("=")[0]
        if unknown[0].startswith("-"):
            parser.error(f"no option {flag!r}{nearest(flag, parser.flags)}")
        parser.error(f"one argument too many: {unknown[0].removeprefix(_VERBATIM)!r}")
    annotations = get_type_hints(cls)
    for section in sections:
        annotations |= {name: get_type_hints(section.owner)[name] for name in section.names}
    values: dict[str, Any] = {}
    for name, text in vars(given).items():
        label = parser.labels[name]
        values[name] = text if isinstance(text, bool) else _read(annotations[name], text, label, parser)
    missing = [parser.labels[f.name] for f in _fields(cls) if f.name not in values and not _has_default(f)]
    if missing:
        parser.error(f"{missing[0]} is missing")
    others = {name: values.pop(name) for section in sections for name in section.names if name in values}
    try:
        return cls(**values), others
    except ConfigError as error:
        parser.error(str(error))


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a `UsageError` instead of a usage block and an exit."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"manta {verb}",
            description=description,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            add_help=False,
            formatter_class=lambda prog: _Help(prog, max_help_position=28, width=100),
        )
        self.verb = verb
        self.labels: dict[str, str] = {}
        self.flags: list[str] = ["--help"]

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.verb}: {message.removeprefix('argument ')} (manta {self.verb} --help)")


class _Help(argparse.HelpFormatter):
    """Help whose usage has brackets around what may be left out, and nowhere else."""

    def _format_args(self, action: argparse.Action, default_metavar: Any) -> str:
        must = action.nargs == argparse.OPTIONAL and action.required
        return str(action.metavar) if must else super()._format_args(action, default_metavar)


def _parser(cls: type, verb: str, sections: Sequence[Section]) -> _Parser:
    parser = _Parser(verb, (cls.__doc__ or "").strip())
    _add_fields(parser, parser, cls, [field.name for field in _fields(cls)])
    parser.add_argument("-h", "--help", action="help", help="Show this.")
    for section in sections:
        _add_fields(parser, parser.add_argument_group(section.title), section.owner, section.names, section.shown)
    return parser


def _add_fields(parser: _Parser, group: Any, cls: type, names: Sequence[str], shown: bool = True) -> None:
    """Add fields of a dataclass to a parser, or to a group of it."""
    docs, annotations = field_docs(cls), get_type_hints(cls)
    for field in (field for field in _fields(cls) if field.name in names):
        text = docs.get(field.name, "").replace("%", "%%") + _default_text(field) if shown else argparse.SUPPRESS
        annotation, metavar = annotations[field.name], field.metadata.get("shown") or field.name.upper()
        many = get_origin(annotation) is tuple
        if field.metadata.get("argument"):
            parser.labels[field.name] = metavar
            # Whether one may be left out is decided from the dataclass: argparse cannot say which one is missing.
            given = group.add_argument(field.name, nargs="*" if many else "?", metavar=metavar, help=text)
            given.required = not _has_default(field)
            continue
        flag = "--" + field.name.removesuffix("_").replace("_", "-")  # a keyword of Python has one at its end
        parser.labels[field.name] = flag
        parser.flags.append(flag)
        if annotation is bool and field.default is False:
            group.add_argument(flag, dest=field.name, action="store_true", help=text)
        elif annotation is bool:
            parser.flags.append("--no-" + flag[2:])
            group.add_argument(flag, dest=field.name, action=argparse.BooleanOptionalAction, help=text)
        else:
            action, among = "append" if many else "store", field.metadata.get("among")
            values = _metavar(annotation if among is None else Literal[among])
            group.add_argument(flag, dest=field.name, action=action, metavar=values, help=text)


def _read(annotation: Any, text: str | list[str], label: str, parser: _Parser) -> Any:
    """Read one value; of a repeated flag, members of text are taken whole and numbers may also be split by commas."""
    try:
        if isinstance(text, str):
            return parse_value(annotation, text.removeprefix(_VERBATIM), label)
        text = [part.removeprefix(_VERBATIM) for part in text]
        if get_args(annotation) in ((str, ...), (Path, ...)):
            return tuple(parse_value(get_args(annotation)[0], part, label) for part in text)
        return parse_value(annotation, ",".join(text), label)
    except ConfigError as error:
        parser.error(str(error))


def _metavar(annotation: Any) -> str:
    members = [member for member in get_args(annotation) if member not in (type(None), ...)]
    if get_origin(annotation) is Literal:
        choices = "|".join(str(member) for member in members if member != "")
        return choices if len(choices) <= LONGEST_CHOICES else "NAME"
    if get_origin(annotation) is tuple and members[0] not in (str, Path):
        return f"{_metavar(members[0])},…"
    if members:
        return _metavar(members[0])
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")


def _default_text(field: dataclasses.Field) -> str:
    shown = field.default if _has_default(field) and field.default_factory is dataclasses.MISSING else None
    if shown is None or shown is False or shown in ((), ""):
        return ""
    if isinstance(shown, tuple):
        shown = ",".join(map(str, shown))
    return f" [default: {'on' if shown is True else str(shown).replace('%', '%%')}]"


def _fields(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cls)


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def refuse_beside_resume(options: Any, names: Sequence[str]) -> None:
    """A run that goes on has a recipe; nothing that it says can be said anew.

    Args:
        options: of a verb that makes a model of another, with `model` and `overrides`.
        names: options that its recipe answers.

    Raises:
        UsageError: one of them was said.
    """
    said = [name for name in names if getattr(options, name) is not None]
    said = [*(["model"] if options.model else []), *said, *options.overrides]
    if said:
        raise UsageError(f"--resume goes on by the run's own recipe; leave {', '.join(said)} out")
