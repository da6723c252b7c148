"""Twenty texts of the stories model that ships, unpicked, as docs/stories.md has them.

    python benchmarks/twenty.py > texts.md

Seeds 0 to 19 at temperature 0.6, from nothing; then five beginnings and five texts with blanks, each with seed 0.
"""

from typing import Any

from manta.hub import load

BEGINNINGS = (
    "once upon a time, there was a little dog named max.",
    "one day, a girl named sue found a red box in the garden.",
    "tom and mia were at the park.",
    "the old cat was sleeping by the window when",
    '"can i have a cookie?" asked ben.',
)
BLANKS = (
    "tom wanted to ___, but his mom said no. tom was very ___{3}.",
    "lily found a ___ in the garden. she took it home and showed it to her ___{4}.",
    "the bird could not fly because ___{12}. so the kind girl helped it.",
    "once upon a time, there was a ___ who lived in a ___{6}. he was very happy.",
    "ben fell off his bike. ___{12} and he felt better.",
)


def main() -> None:
    """Write all of them."""
    lm: Any = load("builtin:stories", device="cpu")
    print("## From nothing\n")
    for seed in range(20):
        print(f"{seed + 1}. " + " ".join(lm.write(seed=seed, temperature=0.6).split()) + "\n")
    print("## Beginnings gone on with\n")
    for text in BEGINNINGS:
        told = " ".join(lm.write(infill=text + "___{80}", temperature=0.6).split())
        print(f"- **{text}**{told.removeprefix(text)}\n")
    print("## Blanks filled\n")
    for text in BLANKS:
        for how in ({}, {"temperature": 1.0}):
            print(f"- {text}  \n  {lm.write(infill=text, **how)}{' (drawn)' if how else ''}\n")


if __name__ == "__main__":
    main()
