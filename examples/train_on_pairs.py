"""Train a small model on your own pairs and fill a blank with it.

    ./run python examples/train_on_pairs.py

Twelve seconds of training teach no one to write; give `time_budget="30m"` and a file of your own for that.
"""

import json
import tempfile
from pathlib import Path

import manta

COLOURS = ("red", "green", "blue", "grey", "white")
THINGS = ("door", "boat", "hill", "coat", "lamp", "road")


def main(num_steps: int = 60) -> list[str]:
    """Write a file of pairs, train on it, and generate; returns the texts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        pairs = [
            {"prompt": f"{colour}, {thing}", "text": f"Over there you see a {colour} {thing}."}
            for colour in COLOURS
            for thing in THINGS
        ]
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs * 4))
        lm = manta.train(file, Path(folder) / "run", size="nano", vocab_size=512, num_steps=num_steps)
        texts = lm.write(["blue, boat", "red, lamp"], num_steps=6)
        texts.append(lm.write("grey, hill", infill="Over there you see ___{3} hill.", num_steps=6))
    for text in texts:
        print(text)
    return texts


if __name__ == "__main__":
    main()
