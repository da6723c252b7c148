"""The faults that `mutation.py` plants: one expression or statement of a module replaced, or a row made by hand."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "manta"
SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,), ast.Add: (ast.Sub,), ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Div,), ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,), ast.BitXor: (ast.BitAnd,),
}  # fmt: skip
NAMES = {"min": "max", "any": "all", "argmax": "argmin", "amin": "amax", "clamp_min": "clamp_max", "mean": "sum"}
NAMES |= {"floor": "ceil", "cos": "sin", "zeros": "ones", "zeros_like": "ones_like", "minimum": "maximum"}
NAMES |= {other: name for name, other in NAMES.items()}
UNSEEN = ("device", "strict")
"""Arguments of calls that no test can tell: one device, and lists that agree."""


@dataclass(frozen=True)
class Mutant:
    """One fault in one module."""

    file: str
    """Below `src/manta`."""
    line: int
    lines: range
    """Of the statement, where a function holds it; else empty, and an import runs it."""
    text: str
    """The line as it stands, without its margins."""
    before: str
    after: str
    source: bytes
    """The whole module with the fault."""
    tests: tuple[str, ...]
    """Files or folders."""

    @property
    def name(self) -> str:
        """What a person reads."""
        return f"{self.file}:{self.line}  {self.before}  →  {self.after}"


def mutants(file: str, source: bytes, tests: tuple[str, ...] = ()) -> Iterator[Mutant]:
    """All mutants of a module, each an expression or a statement replaced."""
    texts, begins = source.decode().splitlines(), [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    tree = ast.parse(source)
    owners = statements(tree)
    for node in behaviour(tree):
        start = begins[node.lineno - 1] + node.col_offset
        stop = begins[node.end_lineno - 1] + node.end_col_offset
        for other in variants(node):
            after = "pass" if isinstance(other, ast.Pass) else f"({ast.unparse(other)})"
            if isinstance(other, ast.AugAssign):
                after = after[1:-1]
            before = " ".join(source[start:stop].decode().split())
            planted = source[:start] + after.encode() + source[stop:]
            lines, text = owners.get(node.lineno, range(0)), texts[node.lineno - 1].strip()
            yield Mutant(file, node.lineno, lines, text, before, after, planted, tests)


def statements(tree: ast.AST) -> dict[int, range]:
    """Lines of the statement that each line belongs to, without those of a body below it; of functions alone."""
    found = {}
    for function in ast.walk(tree):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if isinstance(node, ast.stmt) and node is not function:
                body = getattr(node, "body", None)
                last = max(node.lineno, body[0].lineno - 1) if body else (node.end_lineno or node.lineno)
                found |= dict.fromkeys(lines := range(node.lineno, last + 1), lines)
    return found


def behaviour(node: ast.AST, inside: ast.AST | None = None) -> Iterator[Any]:
    """Expressions and statements that say what a module does; not annotations, defaults of settings or messages."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.arg | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.keyword) and node.arg in UNSEEN:
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None and not isinstance(inside, ast.ClassDef):
            yield from behaviour(node.value)
        return
    if isinstance(node, ast.FunctionDef):
        for child in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            yield from behaviour(child, node)
        return
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            yield from behaviour(child, node)
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from behaviour(child, node)


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    match node:
        case ast.Compare(left, [operator], right):
            yield from (ast.Compare(left, [other()], right) for other in SWAPS[type(operator)])  # pyright: ignore
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(SWAPS[type(operator)][0](), values)  # pyright: ignore
        case ast.BinOp(left, operator, right):
            yield from (ast.BinOp(left, other(), right) for other in SWAPS.get(type(operator), ()))  # pyright: ignore
        case ast.AugAssign(target, operator, value):
            yield ast.Pass()
            yield from (ast.AugAssign(target, other(), value) for other in SWAPS.get(type(operator), ()))  # pyright: ignore
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)) if value + 1 != value:
            yield ast.Constant(value + 1)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Call(function, arguments, keywords):
            for dropped in keywords:
                if dropped.arg not in (None, *UNSEEN):
                    yield ast.Call(function, arguments, [kept for kept in keywords if kept is not dropped])
            if isinstance(function, ast.Name) and function.id in NAMES:
                yield ast.Call(ast.Name(NAMES[function.id]), arguments, keywords)
            if isinstance(function, ast.Attribute) and function.attr in NAMES:
                yield ast.Call(ast.Attribute(function.value, NAMES[function.attr]), arguments, keywords)
        case ast.Expr(ast.Call()) | ast.Assign([ast.Subscript()]):
            yield ast.Pass()


def modules(table: dict[str, Any], asked: list[str]) -> dict[str, tuple[str, ...]]:
    """The files of the table's packages, with their tests; all of them, or those that are asked for."""
    found = {}
    for package, tests in table["packages"].items():
        for path in sorted((SOURCE / package).glob("*.py")):
            file = f"{package}/{path.name}"
            if not asked or file in asked or package in asked:
                found[file] = tuple(tests)
    return found


def by_hand(table: dict[str, Any]) -> list[tuple[str, Mutant]]:
    """The mutations of the table.

    Raises:
        SystemExit: what one replaces does not stand in its file exactly once.
    """
    found = []
    for row in table["hand"]:
        source = (SOURCE / row["file"]).read_text(encoding="utf-8")
        if source.count(row["search"]) != 1:
            raise SystemExit(f"{row['name']!r}: its search text stands {source.count(row['search'])} times in the file")
        planted = source.replace(row["search"], row["replace"]).encode()
        tests = tuple(row.get("tests") or table["packages"][row["file"].split("/")[0]])
        line = source[: source.index(row["search"].lstrip())].count("\n") + 1
        lines = statements(ast.parse(source)).get(line, range(0))
        mutant = Mutant(row["file"], line, lines, "", row["search"], row["replace"], planted, tests)
        found.append((row["name"], mutant))
    return found
