"""Do the tests see? Small faults are planted in chosen modules, one at a time, and the tests of the module must fail.

python benchmarks/mutation.py                                      # hand mutations and a sample of all modules
python benchmarks/mutation.py flow/solvers.py masked --sample 40 --out /tmp/some.json

`mutation.toml` names the packages with their tests, mutations made by hand (exact replacements, all of which must be
killed) and equivalent mutants with their reasons. The others are drawn, by a seed, from all that the operators below
make; the score is the share of them that is killed, equivalent ones left out. Defaults of configurations are settings
and not behaviour, and what only forms a message is no behaviour either: neither is mutated. Nor are `device` and
`strict` changed in calls or left out of them: one device cannot tell, and lists that agree cannot either.

All tests run once without a fault, and it is noted which of them run which line and how long each takes. A mutant meets
only the tests that run its statement, the quickest first, until one fails. One that no test runs has survived. Tests
that take longer than `--longest` are left out. With `--ran FILE` the notes, then of the whole table, are kept; a later
run adds those of tests that are new, and begins anew if a source has changed.

Two libraries were tried. mutmut leaves out every function with a decorator, which here are the loops that write, and
draws no sample; cosmic-ray rewrites the source in place and starts an interpreter a mutant, and importing torch takes
longer than most tests. Here a process that has torch is forked for each mutant, which exists in the fork's memory only.
"""

import argparse
import importlib.machinery
import json
import os
import random
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest
from faults import ROOT, SOURCE, Mutant, by_hand, modules, mutants


class Recorder:
    """A plugin of pytest that notes how long each test takes and which lines it runs."""

    def __init__(self, files: set[str], out: Path) -> None:
        self.files, self.out = files, out
        self.seconds: dict[str, float] = {}
        self.users: dict[str, list[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        include = [str(SOURCE / file) for file in self.files]
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=include)
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start = time.process_time()
        for name in getattr(item, "fixturenames", ()):
            self.users.setdefault(f"fixture {name}", []).append(item.nodeid)
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        self.seconds[item.nodeid] = time.process_time() - start
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        # The first test that asks for it runs its lines, but all that use it depend on them.
        self.coverage.switch_context(f"fixture {fixturedef.argname}")
        result = yield
        self.coverage.switch_context(request._pyfuncitem.nodeid)
        return result

    def pytest_unconfigure(self) -> None:
        self.coverage.stop()
        data, ran = self.coverage.get_data(), {}
        for file in self.files:
            lines = data.contexts_by_lineno(str(SOURCE / file)).items()
            ran[file] = {line: [test for who in tests for test in self.users.get(who, [who])] for line, tests in lines}
        self.out.write_text(json.dumps({"seconds": self.seconds, "ran": ran}), encoding="utf-8")


class Chosen:
    """A plugin of pytest that runs tests in the order of a list; those that the baseline did not know come last."""

    def __init__(self, tests: list[str], known: set[str]) -> None:
        self.places, self.known = {test: place for place, test in enumerate(tests)}, known

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if item.nodeid in self.places or item.nodeid not in self.known]
        items[:] = sorted(kept, key=lambda item: self.places.get(item.nodeid, len(self.places)))


def fork(
    files: Iterable[str], plugins: list[object], seconds: float, mutant: Mutant | None = None, said: str = ""
) -> int:
    """Run tests in a process of their own that imports the mutant; its id. It exits with pytest's status."""
    if child := os.fork():
        return child
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    signal.alarm(int(60 + 10 * seconds))  # one that waits without end uses no processor
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
        quiet = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=line"]
        status = int(pytest.main([*quiet, *files], plugins=plugins))
    finally:
        sys.stdout.flush()
        os._exit(status)


def warm_up(mutated: set[str]) -> None:
    """Import what every test needs, except for what may be mutated."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    os.environ["COVERAGE_CORE"] = "ctrace"  # the core that can tell tests apart
    sys.path.insert(0, str(ROOT / "src"))
    sys.dont_write_bytecode = False
    for name in ("beartype", "numpy", "rich", "safetensors.torch", "tokenizers", "torch.optim"):
        __import__(name)
    import torch
    from hypothesis import settings
    from jaxtyping import install_import_hook

    torch.set_num_threads(1)
    settings.register_profile("mutation", derandomize=True, database=None)
    settings.load_profile("mutation")
    with install_import_hook("manta", "beartype.beartype"):  # as tests/conftest.py does
        for name in ("manta.nets", "manta.spaces", "manta.text"):
            __import__(name)
    loaded = {str(getattr(module, "__file__", "")) for module in sys.modules.values()}
    assert not loaded & {str(SOURCE / file) for file in mutated}


def baseline(noted: list[Mutant], said: Path, kept: Path | None) -> tuple[dict[str, float], dict[str, Any]]:
    """Processor seconds of each test without a fault; the tests that run a line of a file ("" is an import).

    Args:
        noted: their files are watched while their tests run.
        said: file of what pytest says.
        kept: file of notes.

    Raises:
        SystemExit: tests fail without a fault.
    """
    found, since, files = {"seconds": {}, "ran": {}}, 0.0, {mutant.file for mutant in noted}
    if kept is not None and kept.exists() and all((SOURCE / x).stat().st_mtime < kept.stat().st_mtime for x in files):
        found, since = json.loads(kept.read_text(encoding="utf-8")), kept.stat().st_mtime
    asked = [ROOT / test for test in sorted({test for mutant in noted for test in mutant.tests})]
    paths = [path for test in asked for path in ([test] if test.is_file() else sorted(test.rglob("test_*.py")))]
    if changed := [str(path.relative_to(ROOT)) for path in paths if path.stat().st_mtime > since]:
        out, begun = said.with_suffix(".ran"), time.time()
        plugins = [Recorder(files, out), Chosen([], set(found["seconds"]))]
        _, status = os.waitpid(fork(changed, plugins, 7200, said=str(said)), 0)
        if os.waitstatus_to_exitcode(status) not in (0, 5):
            raise SystemExit(f"tests fail without a fault (status {status}); see {said}")
        added = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
        found["seconds"] |= added["seconds"]
        for file, lines in added["ran"].items():
            for line, tests in lines.items():
                found["ran"].setdefault(file, {}).setdefault(line, []).extend(tests)
        if kept is not None:
            kept.write_text(json.dumps(found), encoding="utf-8")
            os.utime(kept, (begun, begun))  # tests that are changed meanwhile are newer
    print(f"{len(found['seconds'])} tests take {sum(found['seconds'].values()):.0f} s", file=sys.stderr, flush=True)
    return found["seconds"], found["ran"]


def choose(mutant: Mutant, seconds: dict[str, float], ran: dict[str, list[str]], longest: float) -> list[str]:
    """The tests of a mutant that run its statement, the quickest file first, and in it the quickest test."""
    runs = {test for line in mutant.lines for test in ran.get(str(line), ())}
    every = not mutant.lines or "" in runs
    own = (test for test in seconds if test.startswith(mutant.tests) and seconds[test] <= longest)
    chosen = [test for test in own if every or test in runs]
    files = Counter[str]()
    for test in chosen:
        files[test.split("::")[0]] += seconds[test]  # pyright: ignore[reportArgumentType]
    return sorted(chosen, key=lambda test: (files[test.split("::")[0]], test.split("::")[0], seconds[test]))


def attempt(planted: list[Mutant], noted: list[Mutant], said: Path, args: argparse.Namespace) -> dict[int, str]:
    """What became of each mutant there was time for: killed, stopped (it went on without end), survived or not run."""
    seconds, ran = baseline(noted, said, args.ran)
    chosen = [choose(mutant, seconds, ran[mutant.file], args.longest) for mutant in planted]
    found = {index: "not run" for index, tests in enumerate(chosen) if not tests}
    for index in found:
        print(f"not run: {planted[index].name}", file=sys.stderr, flush=True)
    running, waiting = {}, [index for index in range(len(planted)) if index not in found][::-1]
    endless, end = (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM), time.monotonic() + 60 * args.minutes
    while running or (waiting and time.monotonic() < end):
        while waiting and len(running) < args.workers and time.monotonic() < end:
            tests = chosen[index := waiting.pop()]
            # What a process computes once and keeps was another test's time when the tests were timed.
            files, limit = {test.split("::")[0] for test in tests}, 60 + 3 * sum(seconds[test] for test in tests)
            running[fork(files, [Chosen(tests, set(seconds))], limit, planted[index])] = index
        child, status = os.wait()
        index, code = running.pop(child), os.waitstatus_to_exitcode(status)
        found[index] = "survived" if code in (0, 5) else "stopped" if code in endless else "killed"
        if code in (0, 5):
            print(f"{len(found)}/{len(planted)} survived: {planted[index].name}", file=sys.stderr, flush=True)
    return found


def interval(killed: int, tried: int) -> list[float]:
    """Wilson's 95 % interval of a share."""
    share, z = killed / tried, 1.96
    middle, spread = share + z * z / (2 * tried), z * (share * (1 - share) / tried + z * z / (4 * tried**2)) ** 0.5
    return [round((middle + sign * spread) / (1 + z * z / tried), 3) for sign in (-1, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "modules", nargs="*", help="packages or files below src/manta; all of the table's if none is named"
    )
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw from all modules together")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=2, help="mutants tried at once")
    parser.add_argument("--minutes", type=float, default=120, help="no new mutant is tried after them")
    parser.add_argument("--longest", type=float, default=4, help="seconds of the slowest test that is run")
    parser.add_argument("--ran", type=Path, help="file of which tests run what: read if it exists, else written")
    parser.add_argument("--no-hand", action="store_true", help="leave the mutations made by hand out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutation.json")
    args = parser.parse_args()
    table = tomllib.loads((ROOT / "benchmarks" / "mutation.toml").read_text(encoding="utf-8"))
    files, made = modules(table, args.modules), by_hand(table)
    whole = [x for f, tests in modules(table, []).items() for x in mutants(f, (SOURCE / f).read_bytes(), tests)]
    every = [mutant for mutant in whole if mutant.file in files]
    alike = {(row["file"], row["line"], row["before"], row["after"]) for row in table["equivalent"]}
    drawn = random.Random(args.seed).sample(every, min(args.sample, len(every)))
    sample = [mutant for mutant in drawn if (mutant.file, mutant.text, mutant.before, mutant.after) not in alike]
    hand = [] if args.no_hand else [(n, m) for n, m in made if not args.modules or m.file in files]
    planted = [mutant for _, mutant in hand] + sample
    noted = [*whole, *(mutant for _, mutant in made)] if args.ran else planted
    warm_up({mutant.file for mutant in noted})
    start, said = time.monotonic(), args.out.with_suffix(".log")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    said.write_text("")
    found = attempt(planted, noted, said, args)
    said.unlink()
    fates = {planted[index]: fate for index, fate in found.items() if index >= len(hand)}
    alive = sorted(mutant.name for mutant, fate in fates.items() if fate in ("survived", "not run"))
    killed = len(fates) - len(alive)
    counts = {file: Counter(fate for mutant, fate in fates.items() if mutant.file == file) for file in files}
    result = {
        "seed": args.seed, "mutants": len(every), "drawn": len(drawn), "equivalent": len(drawn) - len(sample),
        "tried": len(fates), "killed": killed, "score": round(killed / max(1, len(fates)), 3),
        "interval": interval(killed, len(fates)) if fates else [], "minutes": round((time.monotonic() - start) / 60, 1),
        "hand": {name: found.get(index, "not tried") for index, (name, _) in enumerate(hand)},
        "modules": {file: dict(sorted(count.items())) for file, count in counts.items() if count},
        "survivors": alive,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({**result, "survivors": len(alive), "modules": len(counts)}))
    if missed := [name for name, fate in result["hand"].items() if fate != "killed"]:
        raise SystemExit(f"mutations made by hand that no test saw: {', '.join(missed)}")


if __name__ == "__main__":
    main()
