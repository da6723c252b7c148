"""JSON Schemas as regular expressions of their instances, written as `json.dumps` writes them."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from manta.config import shortened
from manta.errors import UsageError

IGNORED = {"$schema", "$id", "title", "description", "default", "examples", "additionalProperties", "format"}
"""Keywords that ask nothing of an instance as it is written here: properties that are not named are never written."""
CHARACTER = r'(?:[^"\\\x00-\x1F\x7F-\x9F]|\\["\\/bfnrt])'
"""Of a JSON string."""
MOST_LENGTH = 50_000
"""Characters of an object's regular expression: a bound on the time that it takes."""
MOST_NESTED = 12
"""Schemas within schemas."""


def pattern_of(schema: str) -> str:
    """The regular expression of a schema's instances.

    Keywords: `type` (also a list of types), `enum`, `const`, `anyOf`, `oneOf` (as `anyOf`), `properties` and `required`
    in the order in which they are written, `items`, `minItems`, `maxItems`, `minLength`, `maxLength`.

    Args:
        schema: JSON text.

    Raises:
        UsageError: it is no JSON, no schema, or has a keyword that is not followed.
    """
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the `schema` is no JSON ({error}); give a JSON Schema") from None
    return _instances(found, 0)


def _instances(schema: Any, depth: int) -> str:
    if not isinstance(schema, dict):
        raise UsageError(f"the `schema` should be a JSON Schema, an object, received {shortened(schema)}")
    if depth > MOST_NESTED:
        raise UsageError(f"the `schema` is nested more than {MOST_NESTED} deep; make it flatter")
    asked = {key: value for key, value in schema.items() if key not in IGNORED}
    for keyword in ("enum", "const"):
        if keyword in asked:
            values = asked.pop(keyword) if keyword == "enum" else [asked.pop(keyword)]
            _all_followed(asked)  # a type beside them may rule some out, and is not followed
            if not isinstance(values, list) or not values:
                raise UsageError(f"enum of the `schema` should be a list of values, received {shortened(values)}")
            return _either(re.escape(_written(value)) for value in values)
    for keyword in ("anyOf", "oneOf"):
        if keyword in asked:
            parts = asked.pop(keyword)
            _all_followed(asked)
            if not isinstance(parts, list) or not parts:
                raise UsageError(f"{keyword} of the `schema` should be a list of schemas, received {shortened(parts)}")
            return _either(_instances(part, depth + 1) for part in parts)
    kinds = asked.pop("type", None)
    kinds = kinds if isinstance(kinds, list) else [kinds]
    known = set().union(*(KINDS[kind][0] for kind in kinds if isinstance(kind, str) and kind in KINDS))
    if not kinds:
        raise UsageError("type of the `schema` is an empty list, which no value has")
    written = []
    for kind in kinds:
        if not isinstance(kind, str) or kind not in KINDS:
            raise UsageError(f"type of the `schema` should be one of {', '.join(KINDS)}, received {shortened(kind)}")
        written.append(KINDS[kind][1](asked, depth))
    _all_followed({key: value for key, value in asked.items() if key not in known})
    return _either(written)


def _written(value: Any) -> str:
    """A value as JSON.

    Raises:
        UsageError: it is a number that JSON does not have.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UsageError(f"the `schema` asks for {shortened(value)}, which is no JSON") from None


def _all_followed(rest: Mapping[str, Any]) -> None:
    if rest:
        raise UsageError(f"the `schema` cannot be followed: the keyword {sorted(rest)[0][:80]} is not known here")


def _either(parts: Any) -> str:
    return f"(?:{'|'.join(parts)})"


def _counts(asked: Mapping[str, Any], least: str, most: str) -> tuple[int, int | None]:
    low, high = asked.get(least, 0), asked.get(most)
    for name, value in ((least, low), (most, high)):
        if (value is not None or name in asked) and (type(value) is not int or value < 0):
            raise UsageError(
                f"{name} of the `schema` should be a whole number of 0 or more, received {shortened(value)}"
            )
    if high is not None and high < low:
        raise UsageError(f"{most} of the `schema` is {high}, below {least}, {low}")
    return low, high


def _string(asked: Mapping[str, Any], depth: int) -> str:
    low, high = _counts(asked, "minLength", "maxLength")
    return f'"{CHARACTER}{{{low},{"" if high is None else high}}}"'


def _array(asked: Mapping[str, Any], depth: int) -> str:
    if "items" not in asked:
        raise UsageError("an array of the `schema` should say its items")
    low, high = _counts(asked, "minItems", "maxItems")
    item = _instances(asked["items"], depth + 1)
    if high == 0:
        return r"\[\]"
    further = f"(?:, {item}){{{max(0, low - 1)},{'' if high is None else high - 1}}}"
    return rf"\[{item}{further}\]" if low else rf"\[(?:{item}{further})?\]"


def _object(asked: Mapping[str, Any], depth: int) -> str:
    members, needed = asked.get("properties", {}), asked.get("required", [])
    if not isinstance(members, dict) or not isinstance(needed, list):
        raise UsageError("properties of the `schema` should be an object, and required a list of their names")
    if missing := [name for name in needed if not isinstance(name, str) or name not in members]:
        raise UsageError(f"the `schema` requires {shortened(missing[0])}, which is none of its properties")
    written = [
        (re.escape(json.dumps(name, ensure_ascii=False)) + ": " + _instances(part, depth + 1), name in needed)
        for name, part in members.items()
    ]
    if len(written) * sum(len(member) for member, _ in written) > MOST_LENGTH:
        raise UsageError("an object of the `schema` has too many or too large properties; make it smaller")
    behind = ["".join(f", {m}" if must else f"(?:, {m})?" for m, must in written[k:]) for k in range(len(written) + 1)]
    begun = ""
    for k in range(len(written) - 1, -1, -1):  # whichever is the first that is written has no comma before it
        member, must = written[k]
        begun = member + behind[k + 1] if must else f"(?:{member}{behind[k + 1]}|{begun})"
    return rf"\{{{begun}\}}"


KINDS: dict[str, tuple[set[str], Callable[[Mapping[str, Any], int], str]]] = {
    "string": ({"minLength", "maxLength"}, _string),
    "integer": (set(), lambda asked, depth: "-?(?:0|[1-9][0-9]{0,15})"),
    "number": (set(), lambda asked, depth: r"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,15})?"),
    "boolean": (set(), lambda asked, depth: "(?:true|false)"),
    "null": (set(), lambda asked, depth: "null"),
    "array": ({"items", "minItems", "maxItems"}, _array),
    "object": ({"properties", "required"}, _object),
}
"""Of each type the keywords that it has, and how its instances are written."""
