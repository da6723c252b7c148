"""`manta data`: write a data set as JSON lines, or let the oracle of a built-in corpus judge generated texts."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from manta.cli.options import argument, parse_options
from manta.cli.outputs import claim_file
from manta.errors import DataError, UsageError

if TYPE_CHECKING:
    from manta.text import Example

Kind = Literal["infill", "holes", "reorder", "tasks"]

_HELP = """usage: manta data export SOURCE [--num N] [--split train|dev|test] [--seed K] [--out F.jsonl]
       manta data make infill|holes|reorder|tasks SOURCE [--num N] [--seed K] [--out F.jsonl]
       manta data check builtin:weather|sudoku4|sudoku9|countdown|paths F.jsonl [--seed K]
       manta data shrink-vocab MODEL --data DATA --out DIR [--coverage X]

  export  write examples of a data set as JSON lines, on stdout or to a file
  make    pairs made of texts: spans to fill in, words to put in order, or four tasks side by side
  check   let the oracle of a built-in corpus judge texts: lines with `prompt` and `text`
  shrink-vocab  leave out of a model the tokens that its data do without

manta data export --help tells more, and so do those of make, check and shrink-vocab.
"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write examples of a data set as JSON lines with `prompt` (where there is one) and `text`."""

    source: str = argument()
    """builtin:NAME, a .txt, .jsonl or .csv file, hf:NAME, or KIND:PATH: e2e, tinystories, d1-sudoku, d1-countdown,
    sudoku17."""
    num: int | None = None
    """Examples to write; left out, the whole split."""
    split: Literal["train", "dev", "test"] = "train"
    """Part of the data."""
    seed: int = 0
    """Seed of a built-in corpus."""
    out: Path | None = None
    """File to write; left out, stdout."""


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """Make training pairs of texts, as JSON lines: for models that answer prompts, such as left-to-right ones."""

    kind: Kind = argument()
    """infill: a blank, and the span that is missing; holes: several blanks, and the spans with ___ between; reorder:
    words in another order, and in theirs; tasks: to describe, continue, fill and shorten, each row with its `task`."""
    source: str = argument()
    """As for manta data export; a text that answers a prompt keeps it in front, but for tasks."""
    num: int | None = None
    """Texts to read; left out, the whole split. Those of fewer than three words are left out."""
    split: Literal["train", "dev", "test"] = "train"
    """Part of the data."""
    longest: int = 8
    """Most words of a blank."""
    seed: int = 0
    """Of all draws, a built-in corpus's among them."""
    out: Path | None = None
    """File to write; left out, stdout."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Judge generated texts by the oracle of a built-in corpus; prints one JSON object, shares in [0, 1], nats."""

    corpus: str = argument()
    """builtin:weather, builtin:sudoku4, builtin:sudoku9, builtin:countdown or builtin:paths."""
    file: Path = argument()
    """A .jsonl or .csv file whose records have `prompt` and `text`."""
    seed: int = 0
    """Seed of the corpus texts that the share of distinct texts is compared with; builtin:weather only."""


@dataclass(frozen=True, kw_only=True)
class ShrinkOptions:
    """Write a model whose vocabulary holds what its data need and no more; nothing is trained."""

    model: str = argument()
    """A model folder, a run folder, or builtin:NAME; of any family that manta trains."""
    data: str | None = None
    """What it was trained on, or what it is for; see `manta train --help`."""
    out: Path | None = None
    """The new model's folder, new or empty."""
    coverage: float = 0.98
    """Share of the old tokens of the data that are to be one token still, in (0, 1], measured by encoding anew."""
    device: str | None = None
    """cpu, cuda or cuda:N; the first GPU if there is one."""


def run(argv: Sequence[str]) -> int:
    """Runs `manta data`.

    Args:
        argv: what follows the verb.

    Returns:
        0.

    Raises:
        UsageError: wrong options.
        DataError: the data is missing or broken.
    """
    action, rest = (argv[0], argv[1:]) if argv else ("", ())
    if action in ("-h", "--help"):
        print(_HELP, end="")
    elif action == "export":
        _export(parse_options(ExportOptions, rest, verb="data export"))
    elif action == "make":
        _make(parse_options(MakeOptions, rest, verb="data make"))
    elif action == "check":
        _check(parse_options(CheckOptions, rest, verb="data check"))
    elif action == "shrink-vocab":
        _shrink(parse_options(ShrinkOptions, rest, verb="data shrink-vocab"))
    else:
        received = f"not {action!r}" if action else "but nothing was given"
        raise UsageError(f"data: say `export`, `make`, `check` or `shrink-vocab`, {received} (manta data --help)")
    return 0


def _export(options: ExportOptions) -> None:
    _claim(options.out)
    if options.seed and not options.source.startswith("builtin:"):
        raise UsageError(f"data export: --seed is of built-in corpora, and {options.source} is none; leave it out")
    from manta.text.sources import read

    examples = read(options.source, options.split, options.num, seed=options.seed)
    _write(examples, options.out, f"examples of {options.source} ({options.split})")


def _make(options: MakeOptions) -> None:
    _claim(options.out)
    if options.longest < 1:
        raise UsageError(f"--longest should be 1 or more, received {options.longest}")
    from manta.text.making import make
    from manta.text.sources import read

    seed = options.seed if options.source.startswith("builtin:") else 0
    examples = read(options.source, options.split, options.num, seed=seed)
    pairs = make(options.kind, examples, options.seed, longest=options.longest)
    first = next(pairs, None)
    if first is None:
        raise DataError(f"{options.source} ({options.split}) has no text of three words or more to make a pair of")
    _write(chain([first], pairs), options.out, f"pairs ({options.kind}) of {options.source} ({options.split})")


def _claim(out: Path | None) -> None:
    claim_file(out)
    if out is not None and out.suffix.lower() in (".csv", ".zip", ".gz", ".xz", ".bz2"):
        raise UsageError(f"{out} would hold plain JSON lines, whatever its name; name it .jsonl")


def _write(examples: "Iterable[Example]", out: Path | None, told: str) -> None:
    """Write examples as JSON lines, to a file whole or not at all."""
    from manta.runtime import atomic_write

    lines = map(_line, examples)
    if out is None:
        sys.stdout.writelines(lines)
        return
    written = 0

    def write(path: Path) -> None:
        nonlocal written
        with path.open("w", encoding="utf-8") as stream:
            for line in lines:
                written += 1
                stream.write(line)

    atomic_write(out, write)
    print(f"{written} {told} in {out}", file=sys.stderr)


def _line(example: "Example") -> str:
    record = {"task": example.task, "split_by": example.split_by, "prompt": example.prompt, "text": example.text}
    return json.dumps({name: value for name, value in record.items() if value is not None}, ensure_ascii=False) + "\n"


def _check(options: CheckOptions) -> None:
    parse, judge = _oracle(options.corpus, options.seed)
    pairs = list(_pairs(options.file, parse))
    if not pairs:
        raise DataError(f"{options.file} holds no records; it needs lines with `prompt` and `text`")
    print(json.dumps(judge(pairs)))


def _shrink(options: ShrinkOptions) -> None:
    if options.data is None or options.out is None:
        raise UsageError("say manta data shrink-vocab MODEL --data DATA --out DIR")
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise UsageError(f"{options.out} is there already; give --out a new folder")
    from manta.hub import model_config, save_model
    from manta.recipes.origins import trained_model
    from manta.recipes.shrinking import shrink_vocabulary, shrinking_card

    if not 0 < options.coverage <= 1:
        raise UsageError(f"--coverage should be above 0 and at most 1, received {options.coverage}")
    lm = trained_model(options.model, options.device)
    found = shrink_vocabulary(lm, options.data, options.coverage, lambda text: print(text, file=sys.stderr))
    source, data = (Path(place.rpartition(":")[2]).name for place in (options.model, options.data))
    card = shrinking_card(source, data, found)
    save_model(options.out, found.model, recipe=model_config(options.model).get("recipe", {}), card=card)
    print(card.partition("\n\n")[2], end="")
    print(
        f"written to {options.out}; train on with manta train {options.data} --inherit {options.out}", file=sys.stderr
    )


Pairs = Sequence[tuple[str, str]]


def _oracle(corpus: str, seed: int) -> tuple[Callable[[str], object], Callable[[Pairs], dict[str, Any]]]:
    """What reads a prompt of a corpus, and what judges pairs of prompt and text."""
    from manta.text import task_of

    if corpus == "builtin:weather":
        from manta.text.weather import judge, parse_prompt

        return parse_prompt, partial(judge, seed=seed)
    task = task_of(corpus)
    if task is None:
        raise UsageError(
            f"data check: {corpus!r} has no oracle; "
            "builtin:weather, builtin:sudoku4, builtin:sudoku9, builtin:countdown and builtin:paths have one"
        )
    return task.parse, task.judge


def _pairs(path: Path, parse: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    from manta.text.files import read_records, to_example

    for where, record in read_records(path):
        example = to_example(record, where)
        if example.prompt is None:
            raise DataError(f"{where} has no field `prompt`; the oracle needs what the text answers")
        try:
            parse(example.prompt)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        yield example.prompt, example.text
