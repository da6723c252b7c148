"""Checks of annotations while tests run: what `jaxtyping`'s import hook checks, in less than half of its time.

Its decorator binds the arguments of every call by the signature and checks them twice, which takes longer than a small
net. Where no size of an axis is computed from an argument, `beartype` alone checks the same, within one scope of axes.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import update_wrapper, wraps
from types import FunctionType
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

_thorough = jaxtyping.jaxtyped
_checker: Any = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_INNER = "__beartype_func"
"""Keyword by which what `beartype` makes of a function holds that function."""
_kept: dict[Any, FunctionType] = {}
"""What `beartype` has made of functions within functions, without the function."""


def check_annotations(package: str) -> None:
    """Have all functions and dataclasses of a package check their annotations, once it is imported."""
    jaxtyping.jaxtyped = checked  # which the hook writes above each of them
    install_import_hook(package, "beartype.beartype")


def checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """As `jaxtyping.jaxtyped`: a decorator of functions and dataclasses."""

    def decorate(what: Any) -> Any:
        if inspect.isclass(what):
            if dataclasses.is_dataclass(what) and "__init__" in vars(what):
                begin: Any = what.__init__
                if not hasattr(begin, "__wrapped__"):  # else it was written by hand, and is checked
                    what.__init__ = decorate(begin)
            return what
        if inspect.isfunction(what) and not inspect.isgeneratorfunction(what):
            hints = what.__annotations__.values()
            if not hints or getattr(what, "__no_type_check__", False):
                return what
            if not any(isinstance(hint, str) for hint in hints):
                shapes = [shape for hint in hints for shape in shapes_of(hint)]
                if not shapes:
                    return _checking(what)
                if not any("{" in shape.dim_str for shape in shapes):
                    return _in_own_scope(what)
        return _thorough(what, typechecker=typechecker)

    return decorate


def shapes_of(hint: Any) -> Iterator[type[AbstractArray]]:
    """Annotations of arrays within an annotation."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        yield hint
    for part in hint if isinstance(hint, list | tuple) else get_args(hint):
        yield from shapes_of(part)


def _in_own_scope(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose names of axes stand for one size each, in its arguments and what it returns."""
    inner = _checking(function)

    @wraps(function)
    def outer(*arguments: Any, **options: Any) -> Any:
        with _thorough("context"):
            return inner(*arguments, **options)

    return outer


def _checking(function: Any) -> Any:
    """What `beartype` makes of a function, made once of one that is defined again and again within another one."""
    if "<locals>" not in function.__qualname__:
        return _checker(function)
    key = (function.__code__, tuple(function.__annotations__.items()))
    try:
        made = _kept.get(key)
    except TypeError:  # a part of a hint has no hash
        return _checker(function)
    if made is None:
        found = _checker(function)
        if _INNER in (getattr(found, "__kwdefaults__", None) or {}):
            _kept[key] = _copy(found, None)
        return found
    return update_wrapper(_copy(made, function), function)


def _copy(made: FunctionType, function: Any) -> FunctionType:
    """The same checks of another function."""
    copy = FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, made.__closure__)
    copy.__kwdefaults__ = {**(made.__kwdefaults__ or {}), _INNER: function}
    return copy
