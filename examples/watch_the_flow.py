"""Watch a text emerge: an observer sees the words after every network call, settled or still open.

./run python examples/watch_the_flow.py [--svg FILE] [MODEL]
"""

import sys
from pathlib import Path

import manta
from manta.families.events import GenerateOptions, Request
from manta.families.observer import Observer
from manta.report.emerging import Frame, emerging
from manta.text import MASK, NULL

PROMPT = "name[The Eagle], eatType[pub], food[Italian], priceRange[cheap], area[riverside], familyFriendly[yes]"


class Film(Observer):
    """Keeps what the text is after every call."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.frames = tokenizer, []

    def settled(self, page) -> None:
        """Called by the model's own loop once words have settled; the first request of the batch is kept."""
        words = zip(page.tokens[0].tolist(), page.asked[0].tolist(), strict=True)
        pieces = [(self.tokenizer.decode([t], start=False), not open_) for t, open_ in words if t not in (NULL, MASK)]
        self.frames.append(Frame(page.nfe, pieces))


def main(model: str | None = None, svg: Path | None = None, num_steps: int = 8) -> int:
    """Print every event of one request, or draw them; returns the network calls it took."""
    lm = manta.load(model)
    calls, film = 0, Film(lm.tokenizer)
    options = GenerateOptions(num_steps=num_steps, style="consensus")
    for event in lm.generate([Request(prompt=PROMPT)], options, film):
        calls = event.nfe
        print(f"{event.nfe:>2} calls  t={event.t:.2f}  sure {event.confidence:.2f}  {event.text or '…'}")
    if svg is not None:
        svg.write_text(emerging(film.frames, title=PROMPT), encoding="utf-8")
    return calls


if __name__ == "__main__":
    rest = sys.argv[1:]
    drawn = Path(rest.pop(rest.index("--svg") + 1)) if "--svg" in rest else None
    main(*[word for word in rest if word != "--svg"], svg=drawn)
