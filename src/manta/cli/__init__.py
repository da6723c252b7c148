"""The command `manta`: find the verb, run it, and turn whatever goes wrong into one line and an exit code.

Exit codes: 0 done, 1 a failure, 2 wrong usage, 130, 143 or 129 interrupted by INT, TERM or HUP, 141 the reader of our
output has gone.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from manta import __version__
from manta.errors import MantaError, UsageError
from manta.signals import interrupt, on_signals

VERBS = {
    "train": ("manta.cli.train", "train a model on a file, a built-in corpus or a recipe"),
    "plan": ("manta.cli.plan", "say what a training run needs on one GPU or many: memory, hours, cost"),
    "convert": ("manta.cli.convert", "make a trained model's attention a cheaper operator, and measure what it costs"),
    "distill": ("manta.cli.distill", "teach a Manta-LM to write in a few network calls what it writes in many"),
    "quantize": ("manta.cli.quantize", "make a trained model smaller and faster: maps of integers, by groups of times"),
    "schedule": ("manta.cli.schedule", "teach a masked model which words to write when, against a price per call"),
    "export": ("manta.cli.export", "write a left-to-right model as a folder that loads without manta"),
    "generate": ("manta.cli.generate", "write texts with a model"),
    "restore": ("manta.cli.restore", "take noise, blur, rain, haze or snow out of a photograph"),
    "serve": ("manta.cli.serve", "serve models over HTTP, as OpenAI's clients speak it, with a page to try them"),
    "choose": ("manta.cli.choose", "let a model choose among answers, and say how likely each is"),
    "evaluate": ("manta.cli.evaluate", "measure a model's texts beside those of its corpus"),
    "compare": ("manta.cli.compare", "measure several models and settings side by side, in one HTML page"),
    "diagnose": ("manta.cli.diagnose", "see on one page why models fail and what to change"),
    "bench": ("manta.cli.bench", "measure speed, start, memory and training rate on this machine"),
    "data": ("manta.cli.data", "export a built-in corpus, or judge texts by its oracle"),
    "doctor": ("manta.cli.doctor", "look for trouble in a data file or a run before it costs time"),
    "demo": ("manta.cli.demo", "see the model that ships write a few sentences"),
}
"""From verb to the module that runs it and its line in the help; a table, so that the help imports no verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `manta` once.

    Args:
        argv: arguments without the program's name; None takes those of this process. `--debug`, anywhere before a
            lone `--`, shows tracebacks.

    Returns:
        The exit code, see the top of this file. Nothing is raised.
    """
    arguments, debug = _split_debug(list(sys.argv[1:] if argv is None else argv))
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # Python has none where it was started with the stream closed
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    try:
        # Ended by a signal, a verb still removes the files it was writing. INT raises in Python by itself.
        with on_signals(interrupt, ("SIGTERM", "SIGHUP")):
            status = _dispatch(arguments)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Python flushes stdout once more as it leaves, and would complain of the same broken pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as error:
        with suppress(OSError):  # a terminal that has hung up
            print("manta: interrupted", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception as error:
        if not (isinstance(error, MantaError) and error.told):
            _report(error, debug)
        return error.exit_code if isinstance(error, MantaError) else 1


def help_text() -> str:
    """Return the text of `manta --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: manta VERB [OPTIONS]\n\n"
        "Generate text in parallel: a model writes a whole passage in a few network calls.\n\n"
        f"verbs:\n{verbs}\n\n"
        "options:\n"
        "  --help     show this, or the options of a verb: manta VERB --help\n"
        "  --version  show the version\n"
        "  --debug    show the traceback of a failure\n"
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(help_text(), end="", file=sys.stderr)
        return UsageError.exit_code
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if verb == "--version":
        print(f"manta {__version__}")
        return 0
    if verb not in VERBS:
        from manta.config import nearest

        raise UsageError(f"no verb {verb!r}{nearest(verb, VERBS)} (manta --help lists them)")
    return import_module(VERBS[verb][0]).run(rest)


def _split_debug(arguments: list[str]) -> tuple[list[str], bool]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [argument for argument in arguments[:end] if argument != "--debug"]
    return ours + arguments[end:], len(ours) < end


def with_flags(text: str) -> str:
    """A message of the library in the words of the command line: `num_steps` is --num-steps."""
    import re
    from dataclasses import fields

    from manta.families.options import GenerateOptions

    names = {*(field.name for field in fields(GenerateOptions)), "batch_size", "num_samples", "words", "tune"}

    def flag(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return f"--{name.replace('_', '-')}" if name in names else found[0]

    return re.sub(r"`(\w+)`|^(\w+)(?= should be )", flag, text)


def _report(error: Exception, debug: bool) -> None:
    """Say on stderr, in one line or as a traceback, what went wrong."""
    if debug:
        import traceback

        traceback.print_exception(error)
        return
    if isinstance(error, MantaError):
        text = with_flags(str(error))
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error} (--debug shows where)"
    print(f"manta: error: {' '.join(text.split())}", file=sys.stderr)
