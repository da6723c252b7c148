"""Recipes: frozen keyword-only dataclasses, to and from plain dictionaries and TOML.

One reading of annotations serves every source of a value. TOML and JSON hand over typed values (`from_dict`), the
command line hands over text (`parse_value`, `apply_overrides`). Understood annotations are `bool`, `int`, `float`,
`str`, `Path`, `Literal`, `X | None` and other unions, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]` and nested
dataclasses. In a union of dataclasses the key `kind`, a `Literal` in each, says which one is meant; text that is a kind
stands for one with all its defaults.
"""

import ast
import dataclasses
import difflib
import inspect
import reprlib
import sys
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from manta.errors import ConfigError

T = TypeVar("T")


@cache
def annotations_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name; looked up once, since options are checked at every request."""
    return get_type_hints(cls)


def to_dict(cfg: Any) -> dict[str, Any]:
    """Turn a dataclass into plain dictionaries, lists and scalars, ready for JSON.

    Args:
        cfg: an instance of a dataclass; nested dataclasses become nested dictionaries, tuples become lists and paths
            become strings.

    Returns:
        A dictionary in the order of the fields, which `from_dict` turns back into an equal instance.
    """
    return {field.name: _plain(getattr(cfg, field.name)) for field in dataclasses.fields(cfg) if field.init}


def leaves(mapping: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of the values of nested dictionaries, with the values.

    Args:
        mapping: of a recipe, as `to_dict` or TOML has it.
        where: dotted place of `mapping` in the whole recipe; empty at the top.
    """
    for key, value in mapping.items():
        place = _join(where, key)
        if isinstance(value, Mapping):
            yield from leaves(value, place)
        else:
            yield place, value


def from_dict(cls: type[T], mapping: Any, where: str = "") -> T:
    """Build a dataclass from a dictionary, checking every key and every type.

    Args:
        cls: the dataclass to build.
        mapping: a mapping whose keys are fields of `cls`; fields with a default may be left out.
        where: dotted place of `mapping` in the whole recipe, named in errors; empty at the top.

    Returns:
        An instance of `cls`, validated by its own `__post_init__`.

    Raises:
        ConfigError: for an unknown key (the nearest one is named), a missing key, or a value of the wrong type.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or cls.__name__} should be a group of keys, received {shortened(mapping)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"unknown key {_join(where, str(key)[:80])!r}{nearest(str(key)[:80], fields)}")
    annotations = annotations_of(cls)
    missing = [name for name, field in fields.items() if name not in mapping and not _has_default(field)]
    if missing:
        name = missing[0]
        raise ConfigError(f"missing key {_join(where, name)!r}: give it as {describe(annotations[name])}")
    values = {key: convert(annotations[key], value, _join(where, key)) for key, value in mapping.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def filled(cfg: T, derived: Mapping[str, Any]) -> T:
    """Return a copy in which what no one has set has a value.

    Args:
        cfg: an instance of a dataclass, where None is what was not set.
        derived: value by field; what was set stays, whatever its value.
    """
    values = {name: value for name, value in derived.items() if getattr(cfg, name) is None}
    return dataclasses.replace(cfg, **values)  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file as it is.

    Args:
        path: the file.

    Raises:
        ConfigError: when it cannot be read or is not TOML; it is named.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not a TOML file: {error}") from None


def load_toml(cls: type[T], path: str | Path) -> T:
    """Read a dataclass from a TOML file.

    Args:
        cls: the dataclass to build.
        path: a TOML file whose tables and keys are the fields of `cls`.

    Returns:
        An instance of `cls`.

    Raises:
        ConfigError: when the file cannot be read, is not TOML, or does not fit `cls`; the file is named.
    """
    mapping = read_toml(path)
    try:
        return from_dict(cls, mapping)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def apply_overrides(cfg: T, overrides: Iterable[str]) -> T:
    """Return a copy of a recipe with some values replaced.

    Args:
        cfg: an instance of a dataclass.
        overrides: entries such as `train.lr=3e-4`; the value is read by the annotation of the field that it sets, and
            a later entry wins. All are applied before the copy is validated.

    Returns:
        A new instance of the same class.

    Raises:
        ConfigError: for an entry without `=`, an unknown key (the nearest one is named), or a value that cannot be
            read as the field's type.
    """
    mapping = to_dict(cfg)
    entries: list[tuple[list[str], str]] = []
    for entry in overrides:
        key, equals, text = entry.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"an override is written key=value, received {entry!r}")
        entries.append((key.strip().split("."), text))
    for path, text in sorted(entries, key=lambda entry: entry[0][-1] != "kind"):  # a kind says which keys there are
        _override(mapping, cfg, path, text, "")
    return from_dict(type(cfg), mapping)


@cache
def field_docs(cls: type) -> Mapping[str, str]:
    """Collect the docstrings written under the fields of a dataclass.

    Args:
        cls: a dataclass; fields inherited from a base keep the base's docstring unless they have their own.

    Returns:
        From field name to its docstring, on one line. Fields without a docstring are left out, and so are classes
        whose source is not at hand.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            (body,) = ast.parse(dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
                text = doc.value.value if isinstance(doc.value, ast.Constant) else None
                if isinstance(text, str):
                    docs[field.target.id] = " ".join(text.split())
    return types.MappingProxyType(docs)


def parse_value(annotation: Any, text: str, where: str) -> Any:
    """Read the text of a command line by the annotation of the field that it sets.

    Args:
        annotation: an annotation of the kinds named at the top of this file, except dataclasses and dictionaries.
        text: what the user wrote; `none` is None where the annotation allows it, and a tuple is separated by commas.
        where: the key or flag, named in errors.

    Returns:
        The value, of the annotated type.

    Raises:
        ConfigError: when the text cannot be read as that type.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if type(None) in args and text.lower() == "none":
            return None
        kinds = _by_kind([group for group in args if dataclasses.is_dataclass(group)])
        if text in kinds:
            return kinds[text]()
        if kinds:
            raise _mismatch(Literal[tuple(kinds)], text, where)
        return _first_reading(annotation, text, where)
    if origin is Literal:
        for choice in args:
            if str(choice) == text:
                return choice
        raise _mismatch(annotation, text, where)
    if origin is tuple:
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        members = _members(annotation, parts, where)
        return tuple(parse_value(member, part, where) for member, part in zip(members, parts, strict=True))
    if annotation is bool:
        if text.lower() not in ("true", "false"):
            raise _mismatch(annotation, text, where)
        return text.lower() == "true"
    if annotation in (int, float):
        try:
            value = annotation(text)
        except ValueError:
            raise _mismatch(annotation, text, where) from None
        return convert(annotation, value, where)
    if annotation in (str, Path):
        return annotation(text)
    raise ConfigError(f"{where} is a group and cannot be set as a whole: set its keys one by one, as in {where}.KEY=…")


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant.

    Args:
        word: what the user wrote.
        known: the words that exist.

    Returns:
        `; did you mean 'WORD'?` for a near one, else `; known: …`, to be put behind an error's first half.
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def shortened(value: Any) -> str:
    """A value as an error shows it: a line, however large or deeply nested the value is."""
    return repr(value[:80]) if isinstance(value, str) else reprlib.repr(value)


def describe(annotation: Any) -> str:
    """Name an annotation in a user's words, such as `integer or none` or `one of 'small', 'base'`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in args if choice != "")
    if origin is tuple:
        if args[-1:] == (Ellipsis,):
            return f"list of {describe(args[0])}"
        return f"list of {len(args)} ({', '.join(describe(a) for a in args)})"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path", type(None): "none"}
    return names.get(annotation) or ("group of keys" if dataclasses.is_dataclass(annotation) else str(annotation))


def convert(annotation: Any, value: Any, where: str) -> Any:
    """Check a typed value, as TOML or JSON gives it, against an annotation, and build what it describes.

    Args:
        annotation: of the kinds named at the top of this file.
        value: what was given.
        where: the key, named in errors.

    Returns:
        The value; a number for an integer where a number is asked for, a dataclass for a group of keys.

    Raises:
        ConfigError: the value is of another type, or a number that is not finite.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(annotation, value, where)
    if dataclasses.is_dataclass(annotation):
        already = isinstance(value, annotation)  # pyright: ignore[reportArgumentType]
        return value if already else from_dict(annotation, value, where)  # pyright: ignore[reportArgumentType]
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in args):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        members = _members(annotation, value, where)
        return tuple(convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(members, value, strict=True)))
    if origin is dict and isinstance(value, Mapping):
        return {key: convert(args[1], member, _join(where, key)) for key, member in value.items()}
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ConfigError(f"{where} should be a finite number, received {shortened(value)}")
        return float(value)
    if annotation is Path and isinstance(value, str | Path):
        return Path(value)
    if annotation is Any or (annotation in (bool, int, str, type(None)) and type(value) is annotation):
        return value
    raise _mismatch(annotation, value, where)


def _convert_union(annotation: Any, value: Any, where: str) -> Any:
    """Pick the member of a union that a typed value fits; of dataclasses the one of its key `kind`, else the first."""
    members = get_args(annotation)
    groups = [member for member in members if dataclasses.is_dataclass(member)]
    if isinstance(value, Mapping) and len(groups) > 1:
        by_kind = _by_kind(groups)
        kind = value.get("kind", next(iter(by_kind)))
        if not isinstance(kind, str) or kind not in by_kind:
            raise _mismatch(Literal[tuple(by_kind)], kind, _join(where, "kind"))
        return from_dict(by_kind[kind], value, where)  # pyright: ignore[reportArgumentType]
    if isinstance(value, list | tuple | Mapping) and len(_without_none(annotation)) == 1:
        return convert(_without_none(annotation)[0], value, where)
    for member in members:
        try:
            return convert(member, value, where)
        except ConfigError:
            continue
    raise _mismatch(annotation, value, where)


def _by_kind(groups: Sequence[Any]) -> dict[str, Any]:
    """The dataclasses of a union by their `kind`, in its order."""
    return {kind: group for group in groups for kind in get_args(annotations_of(group).get("kind"))}


def _override(mapping: dict[str, Any], cfg: Any, path: Sequence[str], text: str, where: str) -> None:
    """Put the value that `text` stands for at `path` into `mapping`, guided by the types of `cfg`."""
    key, rest = path[0], path[1:]
    cls = cfg if isinstance(cfg, type) else type(cfg)
    annotations = annotations_of(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    place = _join(where, key)
    if key not in names:
        raise ConfigError(f"unknown key {place!r}{nearest(key, names)}")
    if not rest:
        mapping[key] = _plain(parse_value(annotations[key], text, place))
        return
    groups = [a for a in (annotations[key], *get_args(annotations[key])) if dataclasses.is_dataclass(a)]
    if not groups:
        raise ConfigError(f"{place!r} has no keys of its own, received {_join(place, '.'.join(rest))!r}")
    if not isinstance(mapping.get(key), dict):
        mapping[key] = {}
    value = getattr(cfg, key, None)
    inner = value if dataclasses.is_dataclass(value) else groups[0]
    if len(groups) > 1:
        by_kind = _by_kind(groups)
        if rest == ["kind"]:
            chosen = parse_value(Literal[tuple(by_kind)], text, _join(place, "kind"))
            if mapping[key].get("kind") != chosen:  # the keys of another kind mean nothing to this one
                mapping[key] = {"kind": chosen}
            return
        inner = by_kind[mapping[key].get("kind", next(iter(by_kind)))]
    _override(mapping[key], inner, rest, text, place)


def _first_reading(annotation: Any, text: str, where: str) -> Any:
    members = _without_none(annotation)
    if len(members) == 1 and members[0] not in (bool, int):  # its error says more than that it is none of the union
        return parse_value(members[0], text, where)
    for member in members:
        try:
            return parse_value(member, text, where)
        except ConfigError:
            continue
    raise _mismatch(annotation, text, where)


def _members(annotation: Any, parts: Sequence[Any], where: str) -> list[Any]:
    """Annotations of the members of a tuple that received `parts`."""
    args = get_args(annotation)
    if args[-1:] == (Ellipsis,):
        return [args[0]] * len(parts)
    if len(args) != len(parts):
        raise ConfigError(
            f"{where} should be a {describe(annotation)}, received {len(parts)}: {shortened(list(parts))}"
        )
    return list(args)


def _without_none(annotation: Any) -> list[Any]:
    return [member for member in get_args(annotation) if member is not type(None)]


def _mismatch(annotation: Any, value: Any, where: str) -> ConfigError:
    choices = [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []
    near = difflib.get_close_matches(value[:80], choices, n=1) if choices and isinstance(value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{where} should be {_article(describe(annotation))}, received {shortened(value)}{hint}")


def _article(words: str) -> str:
    plain = words.startswith(("one of", "true", "text", "none"))
    return words if plain else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return str(value) if isinstance(value, Path) else value


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
