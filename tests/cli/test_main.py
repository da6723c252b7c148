import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from manta import __version__, cli
from manta.cli.writing import VERBS_OF
from manta.errors import DataError, MantaError, UsageError
from manta.families import DRAWING

SOURCE = Path(__file__).parent.parent.parent / "src"


@pytest.fixture
def verb(monkeypatch):
    """Let the verb `try` do what the test says, and return what it received."""

    def install(action):
        received = []

        def run(argv: list[str]) -> int:
            received.append(argv)
            return action()

        monkeypatch.setitem(cli.VERBS, "try", ("a_module_for_this_test", "try"))
        monkeypatch.setitem(sys.modules, "a_module_for_this_test", SimpleNamespace(run=run))
        return received

    return install


def fail(error: BaseException):
    raise error


def run_manta(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run([sys.executable, "-m", "manta", *arguments], env=environment, text=True, **options)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_of_the_table_exists(verb):
    module, line = cli.VERBS[verb]
    assert importlib.util.find_spec(module), f"{verb} names {module}, which is not there"
    assert line and "\n" not in line


def test_every_file_of_a_verb_is_in_the_table():
    files = {path.stem for path in (SOURCE / "manta" / "cli").glob("*.py") if "\ndef run(" in path.read_text()}
    verbs = {module.rpartition(".")[2] for module, _ in cli.VERBS.values()}
    elsewhere = {module.rpartition(".")[2] for own in VERBS_OF.values() for module in own.values()}
    assert files <= verbs | elsewhere, "of models of no texts, verbs go on there"
    assert {*VERBS_OF} == {*DRAWING}, "every model of no texts says which verbs it has"
    assert all(importlib.util.find_spec(module) for own in VERBS_OF.values() for module in own.values())


def test_the_help_lists_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(line)}$", out, re.M) for name, (_, line) in cli.VERBS.items())


def test_no_verb_is_wrong_usage(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr() == ("", cli.help_text())


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"manta {__version__}\n"


def test_an_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "manta: error: no verb 'trian'; did you mean 'train'? (manta --help lists them)\n"


def test_a_verb_receives_the_rest_and_gives_the_exit_code(verb):
    received = verb(lambda: 7)
    assert cli.main(["try", "a", "--b", "--debug", "--", "--debug"]) == 7
    assert received == [["a", "--b", "--", "--debug"]]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("the file 'x' is empty"), 1, "the file 'x' is empty"),
        (UsageError("two\n  lines"), 2, "two lines"),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "No such file or directory: x"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero (--debug shows where)"),
    ],
)
def test_an_error_is_one_line(verb, capsys, error, code, line):
    verb(lambda: fail(error))
    assert cli.main(["try"]) == code
    assert capsys.readouterr() == ("", f"manta: error: {line}\n")


@pytest.mark.parametrize(("error", "code"), [(DataError("empty"), 1), (UsageError("flag"), 2), (KeyError("k"), 1)])
@pytest.mark.parametrize("arguments", [["--debug", "try"], ["try", "--debug"]])
def test_debug_shows_the_traceback(verb, capsys, error, code, arguments):
    verb(lambda: fail(error))
    assert cli.main(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)") and type(error).__name__ in err


def test_an_interrupt_is_130(verb, capsys):
    verb(lambda: fail(KeyboardInterrupt()))
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "manta: interrupted\n"


@pytest.mark.parametrize(("code", "status"), [(0, 0), (None, 0), (3, 3), ("message", 1)])
def test_a_verb_may_leave_by_itself(verb, code, status):
    verb(lambda: fail(SystemExit(code)))
    assert cli.main(["try"]) == status


def test_a_reader_that_left_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = run_manta("--help", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_every_error_has_a_known_exit_code():
    kinds = [MantaError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.exit_code for kind in kinds} == {1, 2}
    assert all(kind.exit_code == 2 for kind in kinds if issubclass(kind, UsageError))
    assert all(kind.exit_code == 1 for kind in kinds if not issubclass(kind, UsageError))


def test_the_help_is_instant():
    """The time of our own imports, so that a slow disk or a busy machine does not count Python's start."""
    code = "import time; start = time.process_time(); from manta.cli import main; main(['--help'])"
    code += "; import sys; print(time.process_time() - start, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stderr) < 0.1
    assert time.perf_counter() - started < 3
