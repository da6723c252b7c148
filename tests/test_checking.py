"""What the tests check of annotations is what `jaxtyping` does."""

import importlib
import sys

import jaxtyping
import pytest
import torch
from beartype import beartype

from .checking import checked, shapes_of

SOURCE = '''
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from jaxtyping import Float, Int64

def add(a: Float[Tensor, "b c"], b: Float[Tensor, "b c"] | None = None) -> Float[Tensor, "b c"]:
    return a if b is None else a + b[:1]

def turned(a: Float[Tensor, "b c"]) -> Float[Tensor, "c b"]:
    return a

def first(a: Float[Tensor, "b c"]) -> tuple[Float[Tensor, " b"], int]:
    def column(b: Float[Tensor, "c b"]) -> Float[Tensor, " c"]:
        return b[:, 0]
    return column(a), a.shape[1]

def line(size: int) -> Int64[Tensor, "{size}"]:
    return Int64 and __import__("torch").arange(3)

def rows(a: Float[Tensor, "b c"], num: int) -> Iterator[int]:
    yield from range(num)

def plain(a: int, *rest: str, key: float = 1.0, **more: Any) -> int:
    return a if a else "none"

def times(by: Any) -> Any:
    def product(a: int) -> int:
        return a * by
    return product

def bare(a):
    return a

@dataclass(frozen=True, kw_only=True)
class Two:
    """Two."""
    a: Float[Tensor, "b c"]
    b: Float[Tensor, " c"]

    @property
    def both(self) -> Float[Tensor, " c"]:
        return self.a

    @classmethod
    def of(cls, a: Float[Tensor, "b c"]) -> "Two":
        return cls(a=a, b=a[0])

    @staticmethod
    def width(a: Float[Tensor, "b c"]) -> int:
        return a.shape[1]

class Old:
    def __init__(self, a: int) -> None:
        self.a = a
'''
A = torch.zeros(2, 3)
CALLS = {
    "add(A)": True,
    "add(A, A)": True,
    "add(A, None)": True,
    "add(A, b=A[:, :2])": False,
    "add(A, torch.zeros(3, 3))": False,
    "add(A, A.long())": False,
    "add(A[0])": False,
    "turned(A)": False,
    "turned(torch.zeros(2, 2))": True,
    "first(A)": True,
    "line(3)": True,
    "line(2)": False,
    "list(rows(A, 2))": True,
    "rows(A[0], 2)": False,
    "plain(1)": True,
    "plain(0)": False,
    "plain(1, 'a', 'b', key=2.0, other=3)": True,
    "plain(1, 2)": False,
    "plain(1, key='a')": False,
    "1 / ([times(by)(2) for by in (1, 2, 3)] == [2, 4, 6])": True,
    "[times(by)(2) for by in (1, 2.5)]": False,
    "[times(by)(a) for by, a in ((1, 2), (2, 'a'))]": False,
    "bare('anything')": True,
    "Two(a=A, b=A[0])": True,
    "Two(a=A, b=A[:, 0])": False,
    "Two(a=A, b=A[0]).both": False,
    "Two.of(A)": True,
    "Two.of(A[0])": False,
    "Two.width(A)": True,
    "Two.width(A[0])": False,
    "Old(1)": True,
    "Old('a')": False,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A module that the hook has read, with the checks of the tests and with those of `jaxtyping`."""
    found = {}
    folder = tmp_path_factory.mktemp("packages")
    for name, decorator in (("quick", checked), ("thorough", checked.__globals__["_thorough"])):
        (folder / f"{name}_of_two.py").write_text(SOURCE)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            patch.setattr(jaxtyping, "jaxtyped", decorator)
            with jaxtyping.install_import_hook(f"{name}_of_two", "beartype.beartype"):
                found[name] = importlib.import_module(f"{name}_of_two")
        del sys.modules[f"{name}_of_two"]
    return found


@pytest.mark.parametrize("kind", ["quick", "thorough"])
@pytest.mark.parametrize(("call", "right"), CALLS.items())
def test_what_fits_passes_and_what_does_not_is_refused(package, kind, call, right):
    names = {**vars(package[kind]), "A": A, "torch": torch}
    if right:
        eval(call, names)
        return
    with pytest.raises(Exception, match=r"(?i)type|violates"):
        eval(call, names)


def test_what_is_said_is_named(package):
    with pytest.raises(Exception, match=r"add\(\).*parameter b="):
        package["quick"].add(A, A[:, :2])


def test_shapes_are_found_however_deep():
    shape = jaxtyping.Float[torch.Tensor, "b c"]
    assert list(shapes_of(dict[str, tuple[int, list[shape] | None]])) == [shape]
    assert list(shapes_of(dict[str, int])) == []
    assert beartype(lambda a: a)(1) == 1
