"""`manta demo`: the models of texts that ship write a few sentences; then how to train your own."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manta.cli.options import parse_options

PROMPTS = (
    "name[Blue Spice], eatType[coffee shop], area[city centre]",
    "name[The Eagle], eatType[pub], food[Italian], priceRange[cheap], area[riverside], familyFriendly[yes]",
    "name[Green Man], eatType[restaurant], food[Japanese], customer rating[5 out of 5], near[Café Sicilia]",
    "name[The Mill], eatType[pub], food[English], priceRange[more than £30], customer rating[high], area[riverside], "
    "near[Raja Indian Cuisine]",
    "name[Cocum], eatType[coffee shop], food[Indian], priceRange[£20-25], familyFriendly[no]",
    "name[Aromi], eatType[pub], customer rating[low], area[city centre], familyFriendly[yes]",
)
BUDGET = 8
ROADS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("all words at once", {"num_steps": 1}),
    ("a quarter of them a call", {"num_steps": 4}),
    ("left to right, drafted and checked", {"decoder": "verified"}),
    ("left to right, a word a call", {"decoder": "sequential"}),
)
"""How the second model writes."""
STORIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("once upon a time, there was a little dog named max.___{60}", "goes on", {"temperature": 0.7}),
    ("tom wanted to ___, but his mom said no. tom was very ___{3}.", "fills blanks", {}),
)
"""What the third model is asked for."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Watch the models that ship describe restaurants in a few network calls, and go on with a story."""

    num_steps: int = BUDGET
    """Budget of network calls for a text of the first model."""
    seed: int = 0
    """Seed of the first text."""


def run(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parse_options(DemoOptions, argv, "demo")
    from manta.cli.generate import emerge
    from manta.families.events import GenerateOptions, Request
    from manta.hub import load_writer

    settings = GenerateOptions(num_steps=options.num_steps, style="consensus")
    requests = [Request(prompt=prompt, seed=options.seed + i) for i, prompt in enumerate(PROMPTS)]
    lm = load_writer()
    live = sys.stdout.isatty()
    print(f"Each text takes at most {options.num_steps} network calls, however long it is.\n")
    start = time.perf_counter()
    for request in requests:
        print(request.prompt)
        for event in lm.generate([request], settings):
            if live:
                emerge(event.text or "·" * len(event.tokens), event.nfe, event.kind == "done")
            elif event.kind == "done":
                print(f"  {event.text}  ({event.nfe} calls)")
        print()
    seconds = time.perf_counter() - start
    print(f"{len(PROMPTS)} texts in {seconds:.1f} s.\n")
    _roads(PROMPTS[3], options.seed)
    _stories(options.seed)
    print(
        "Train the same kind of model on your own file, one text a line or JSON lines with prompt and text:\n\n"
        "  ./run manta train FILE --out my-model --time-budget 30m\n"
        "  ./run manta generate my-model --prompt '…'\n\n"
        "No file at hand? Three minutes on a built-in corpus, then its oracle judges the texts:\n\n"
        "  ./run manta train builtin:weather --out weather --time-budget 3m\n"
    )
    return 0


def _roads(prompt: str, seed: int) -> None:
    """One prompt by every road of the model that has two, with calls and seconds."""
    from manta.families.events import GenerateOptions, Request, finished
    from manta.hub import load_writer

    lm = load_writer("builtin:e2e-aligned")
    print("A second model tells all words at once, through alignments, and writes left to right as well:\n" + prompt)
    for name, options in ROADS:
        settings = GenerateOptions(**options)
        list(lm.generate([Request(prompt=prompt, seed=seed)], settings))  # the first text pays for what is set up once
        begun = time.perf_counter()
        (event,) = finished(lm.generate([Request(prompt=prompt, seed=seed)], settings))
        spent = 1000 * (time.perf_counter() - begun)
        print(f"  {event.text}  ({name}: {event.nfe} call{'s' * (event.nfe > 1)}, {spent:.0f} ms)")
    print()


def _stories(seed: int) -> None:
    """A beginning gone on with, and blanks filled, left to right, with calls and seconds."""
    from manta.families.events import GenerateOptions, Request, finished
    from manta.hub import load_writer

    lm = load_writer("builtin:stories")
    print("A third has read four megabytes of children's stories, without prompts:")
    for text, what, options in STORIES:
        request, settings = Request(infill=text, seed=seed), GenerateOptions(**options)
        begun = time.perf_counter()
        (event,) = finished(lm.generate([request], settings))
        spent = time.perf_counter() - begun
        told = " ".join(event.text.split())
        print(f"  {text}\n    {told}  ({what}: {event.nfe} calls, {len(event.tokens)} tokens, {spent:.1f} s)")
    print()
