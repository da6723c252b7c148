"""Follow a text along t: solve the flow step by step and read the plan at every step.

./run python examples/watch_the_flow.py [MODEL]
"""

import sys

import manta
from manta.families.events import GenerateOptions, Request

PROMPT = "name[The Eagle], eatType[pub], food[Italian], priceRange[cheap], area[riverside], familyFriendly[yes]"


def main(model: str | None = None, prompt: str = PROMPT, num_steps: int = 8) -> int:
    """Print every event of one request; returns the network calls it took."""
    lm = manta.load(model)
    calls = 0
    options = GenerateOptions(num_steps=num_steps, style="consensus")
    for event in lm.generate([Request(prompt=prompt)], options):
        calls = event.nfe
        print(f"{event.nfe:>2} calls  t={event.t:.2f}  sure {event.confidence:.2f}  {event.text or '…'}")
    return calls


if __name__ == "__main__":
    main(*sys.argv[1:2])
