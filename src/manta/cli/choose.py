"""`manta choose MODEL --prompt P --among A,B,…`: which of some answers a model holds likeliest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manta.cli.options import argument, parse_options
from manta.errors import UsageError

MOST_SCORES = 101
"""Most numbers of a range."""


@dataclass(frozen=True, kw_only=True)
class ChooseOptions:
    """Answer prompts by the likeliest of given texts, with the probability of each: a choice, yes or no, a score."""

    model: str = argument("")
    """A model folder, a run folder, a hub name, or builtin:NAME, of a family with a likelihood; builtin:e2e-aligned
    without it."""
    prompt: str | None = None
    """What is to be answered."""
    input: Path | None = None
    """Instead of it, a file of JSON lines with `prompt`, or - for standard input."""
    among: str | None = None
    """The answers, with commas between, or as a JSON list of texts; 1..5 for whole numbers, whose mean is told, too."""
    samples: int = 32
    """Draws a text, of models whose likelihood is a bound."""
    seed: int = 0
    """Of those draws."""
    json: bool = False
    """One JSON object a prompt on stdout."""
    device: str | None = None
    """cpu, cuda or cuda:N."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(ChooseOptions, argv, "choose")
    if options.among is None:
        raise UsageError("say among what to choose: manta choose MODEL --prompt P --among yes,no")
    if (options.prompt is None) == (options.input is None):
        raise UsageError("give --prompt, or --input with a file of prompts")
    among = answers(options.among)
    from manta.cli.generate import read_lines
    from manta.evaluation import choose
    from manta.hub import load_writer

    prompts = [options.prompt] if options.input is None else [row.get("prompt") for row in read_lines(options.input)]
    lm = load_writer(options.model or "builtin:e2e-aligned", device=options.device)
    for prompt, found in zip(
        prompts, choose(lm, prompts, among, samples=options.samples, seed=options.seed), strict=True
    ):
        if options.json:
            row = {"prompt": prompt, "choice": found.text, "chances": found.chances, "likelihood": found.kind}
            print(json.dumps(row if found.expected is None else {**row, "expected": found.expected}))
            continue
        told = ", ".join(f"{text} {chance:.1%}" for text, chance in found.chances.items())
        mean = "" if found.expected is None else f"; mean {found.expected:.2f}"
        print(f"{found.text}    ({told}{mean})")
    return 0


def answers(among: str) -> list[str]:
    """The answers that --among names.

    Raises:
        UsageError: none can be read from it.
    """
    first, dots, last = among.partition("..")
    if dots and first.strip().lstrip("-").isdecimal() and last.strip().lstrip("-").isdecimal():
        low, high = int(first), int(last)
        if not low < high < low + MOST_SCORES:
            raise UsageError(f"--among {among}: a range goes up, and holds at most {MOST_SCORES} numbers")
        return [str(number) for number in range(low, high + 1)]
    if among.lstrip().startswith("["):
        try:
            listed = json.loads(among)
        except ValueError as error:
            raise UsageError(f"--among should be a JSON list of texts: {error}") from error
        if not all(isinstance(text, str) for text in listed):
            raise UsageError("--among should be a JSON list of texts; put numbers in quotes, too")
        return listed
    return [text.strip() for text in among.split(",")]
