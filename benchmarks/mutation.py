"""Do the tests see? Small faults are planted in chosen modules, one at a time, and the tests of the module must fail.

python benchmarks/mutation.py                                      # hand mutations and a sample of all modules
python benchmarks/mutation.py flow/solvers.py --sample 40 --out /tmp/solvers.json

`mutation.toml` names the modules with their tests, mutations made by hand (exact replacements, all of which must be
killed) and equivalent mutants with their reasons. The others are drawn, by a seed, from all that the operators below
make; the score is the share of them that is killed, equivalent ones left out. Defaults of configurations are settings
and not behaviour, and what only forms a message is no behaviour either: neither is mutated. Nor are `device` and
`strict` left out of calls: one device cannot tell, and lists that agree cannot either.

Two libraries were tried. mutmut leaves out every function with a decorator (`torch.no_grad`, `property`), which here
are the loops that write, and draws no sample; cosmic-ray rewrites the source in place and starts an interpreter a
mutant, and importing torch takes longer than most tests. Here a process that has torch is forked for each mutant, and
the mutant exists in the fork's memory only.
"""

import argparse
import ast
import importlib.machinery
import json
import os
import random
import resource
import sys
import time
import tomllib
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


@dataclass(frozen=True)
class Mutant:
    """One fault in one module."""

    file: str
    """Below `src/manta`."""
    line: int
    before: str
    after: str
    source: bytes
    """The whole module with the fault."""
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """What a person reads."""
        return f"{self.file}:{self.line}  {self.before}  →  {self.after}"


def mutants(file: str, source: bytes, tests: tuple[str, ...] = ()) -> Iterator[Mutant]:
    """All mutants of a module, each an expression or a statement replaced."""
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    for node in behaviour(ast.parse(source)):
        start = begins[node.lineno - 1] + node.col_offset
        stop = begins[node.end_lineno - 1] + node.end_col_offset
        for other in variants(node):
            after = "pass" if isinstance(other, ast.Pass) else f"({ast.unparse(other)})"
            if isinstance(other, ast.AugAssign):
                after = after[1:-1]
            before = " ".join(source[start:stop].decode().split())
            planted = source[:start] + after.encode() + source[stop:]
            yield Mutant(file, node.lineno, before, after, planted, tests)


def behaviour(node: ast.AST, inside: ast.AST | None = None) -> Iterator[Any]:
    """Expressions and statements that say what a module does; not annotations, defaults of settings or messages."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.arg | ast.Import | ast.ImportFrom):
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
                if dropped.arg not in (None, "device", "strict"):
                    yield ast.Call(function, arguments, [kept for kept in keywords if kept is not dropped])
            if isinstance(function, ast.Name) and function.id in NAMES:
                yield ast.Call(ast.Name(NAMES[function.id]), arguments, keywords)
            if isinstance(function, ast.Attribute) and function.attr in NAMES:
                yield ast.Call(ast.Attribute(function.value, NAMES[function.attr]), arguments, keywords)
        case ast.Expr(ast.Call()) | ast.Assign([ast.Subscript()]):
            yield ast.Pass()


def fork(mutant: Mutant | None, tests: tuple[str, ...], seconds: float, said: Path | None = None) -> int:
    """Run tests in a process of their own that imports the mutant; its id. It exits with pytest's status."""
    if child := os.fork():
        return child
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    for stream in (1, 2):
        os.dup2(os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if mutant is not None:
        plain, target = importlib.machinery.SourceFileLoader.get_code, str(SOURCE / mutant.file)

        def get_code(loader, fullname):
            same = Path(loader.path).resolve() == Path(target)
            return loader.source_to_code(mutant.source, loader.path) if same else plain(loader, fullname)

        importlib.machinery.SourceFileLoader.get_code = get_code  # pyright: ignore[reportAttributeAccessIssue]
    os.chdir(ROOT)
    status = 3
    try:
        import pytest

        quiet = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=line"]
        status = int(pytest.main([*quiet, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def warm_up() -> None:
    """Import what every test needs, except for what may be mutated."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    sys.path.insert(0, str(ROOT / "src"))
    sys.dont_write_bytecode = False
    for name in ("beartype", "jaxtyping", "numpy", "pytest", "rich", "safetensors.torch", "tokenizers", "torch.optim"):
        __import__(name)
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    settings.register_profile("mutation", derandomize=True, database=None)
    settings.load_profile("mutation")


def baselines(selections: set[tuple[str, ...]], said: Path) -> dict[tuple[str, ...], float]:
    """Processor seconds of each selection of tests without a fault.

    Raises:
        SystemExit: tests fail without a fault.
    """
    found = {}
    for tests in sorted(selections):
        _, status, used = os.wait4(fork(None, tests, 600, said), 0)
        if status:
            raise SystemExit(f"{' '.join(tests)} fails without a fault (status {status}); see {said}")
        found[tests] = used.ru_utime + used.ru_stime
        print(f"{found[tests]:6.1f} s  {' '.join(tests)}", file=sys.stderr)
    return found


def attempt(planted: list[Mutant], costs: dict[tuple[str, ...], float], workers: int, minutes: float) -> dict[int, str]:
    """What became of each mutant: killed, stopped (a loop without end) or survived; those there was time for."""
    running, found, waiting = {}, {}, list(range(len(planted)))[::-1]
    end = time.monotonic() + 60 * minutes
    while running or (waiting and time.monotonic() < end):
        while waiting and len(running) < workers and time.monotonic() < end:
            index = waiting.pop()
            tests = planted[index].tests
            running[fork(planted[index], tests, 10 + 3 * costs[tests])] = index
        child, status = os.wait()
        index = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        if code in (4, 5):
            raise SystemExit(f"pytest found no tests in {planted[index].tests}")
        found[index] = "survived" if code == 0 else "stopped" if code in (-24, -9) else "killed"
        if code == 0:
            print(f"survived: {planted[index].name}", file=sys.stderr, flush=True)
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
        tests = tuple(row.get("tests") or next(m["tests"] for m in table["modules"] if m["file"] == row["file"]))
        line = source[: source.index(row["search"])].count("\n") + 1
        found.append((row["name"], Mutant(row["file"], line, row["search"], row["replace"], planted, tests)))
    return found


def interval(killed: int, tried: int) -> list[float]:
    """Wilson's 95 % interval of a share."""
    share, z = killed / tried, 1.96
    middle, spread = share + z * z / (2 * tried), z * (share * (1 - share) / tried + z * z / (4 * tried**2)) ** 0.5
    return [round((middle + sign * spread) / (1 + z * z / tried), 3) for sign in (-1, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="files below src/manta; all of the table's if none is named")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw from all modules together")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=2, help="mutants tried at once")
    parser.add_argument("--minutes", type=float, default=120, help="no new mutant is tried after them")
    parser.add_argument("--no-hand", action="store_true", help="leave the mutations made by hand out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutation.json")
    args = parser.parse_args()
    table = tomllib.loads((ROOT / "benchmarks" / "mutation.toml").read_text(encoding="utf-8"))
    chosen = [m for m in table["modules"] if not args.modules or m["file"] in args.modules]
    every = [x for m in chosen for x in mutants(m["file"], (SOURCE / m["file"]).read_bytes(), tuple(m["tests"]))]
    alike = {(row["file"], row["before"], row["after"]) for row in table["equivalent"]}
    drawn = random.Random(args.seed).sample(every, min(args.sample, len(every)))
    sample = [mutant for mutant in drawn if (mutant.file, mutant.before, mutant.after) not in alike]
    hand = [] if args.no_hand else [(n, m) for n, m in by_hand(table) if not args.modules or m.file in args.modules]
    planted = [mutant for _, mutant in hand] + sample
    warm_up()
    start, said = time.monotonic(), args.out.with_suffix(".log")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    said.write_text("")
    costs = baselines({mutant.tests for mutant in planted}, said)
    found = attempt(planted, costs, args.workers, args.minutes)
    said.unlink()
    fates = [found[index] for index in range(len(hand), len(planted)) if index in found]
    killed = len(fates) - fates.count("survived")
    modules: dict[str, dict[str, int]] = {m["file"]: {} for m in chosen}
    for index, fate in found.items():
        if index >= len(hand):
            modules[planted[index].file][fate] = modules[planted[index].file].get(fate, 0) + 1
    result = {
        "seed": args.seed, "mutants": len(every), "drawn": len(drawn), "equivalent": len(drawn) - len(sample),
        "tried": len(fates), "killed": killed, "score": round(killed / max(1, len(fates)), 3),
        "interval": interval(killed, len(fates)) if fates else [], "minutes": round((time.monotonic() - start) / 60, 1),
        "hand": {name: found.get(index, "not tried") for index, (name, _) in enumerate(hand)},
        "modules": modules,
        "survivors": sorted(planted[i].name for i, fate in found.items() if fate == "survived" and i >= len(hand)),
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({**result, "survivors": len(result["survivors"]), "modules": len(modules)}))
    if missed := [name for name, fate in result["hand"].items() if fate != "killed"]:
        raise SystemExit(f"mutations made by hand that no test saw: {', '.join(missed)}")


if __name__ == "__main__":
    main()
