"""How far a draft goes: words of a drafter that stand, by shared noise and by the ordinary acceptance of probability.

    python benchmarks/acceptance.py --models builtin:e2e-aligned MODEL --data e2e:PATH tinystories:PATH \
        --names e2e stories --out benchmarks/results/acceptance.json

At places drawn in a model's own texts (temperature 1) its drafter goes on for seven words, twice. `independent`: each
is drawn from the drafter's chances q and stands with probability min(1, p/q), p those of the model, so that the first
stands with `Σ min(p, q)` in the mean (Leviathan et al., arXiv 2211.17192). `shared`: drafter and model choose with the
same Gumbel noise, as manta writes, and a draft stands where they choose the same word. Rows are added to those in
--out.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from drafts import written

from manta.families.autoregressive import AutoregressiveLM
from manta.families.batching import to_batch
from manta.families.events import Request
from manta.hub import load
from manta.runtime import atomic_write, make_generator
from manta.text import read

WORDS = 7
"""Drafted at a place."""


def gumbel(v: int, generator: torch.Generator) -> torch.Tensor:
    """Standard Gumbel noise of a place."""
    return -torch.log(-torch.log(torch.rand(v, generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16)))


@torch.no_grad()
def drafted(lm: AutoregressiveLM, prompt: list[int], words: list[int], generator: torch.Generator) -> dict[str, float]:
    """What becomes of the drafts behind some words of a text."""
    batch = to_batch([prompt], [words])
    memory = lm.model.memory(batch.prompt, batch.prompt_lengths, lm.model.kinds(batch.tag))
    drafter: Any = lm.model.drafter
    projected = drafter.read(memory)
    begun = [lm.model.begin, *words]
    found: dict[str, float] = {}
    for how in ("independent", "shared"):
        state = lm.model.hidden(torch.tensor([begun]), memory)[:, -2:-1]  # what the last word was read from
        word, drafts, said, noise = words[-1], [], [], []
        for _ in range(WORDS):
            state, logits = drafter.step(state, torch.tensor([[word]]), projected)
            said.append(logits[0, 0].double().log_softmax(-1))
            noise.append(gumbel(len(said[-1]), generator))
            word = int((said[-1] + noise[-1]).argmax())
            drafts.append(word)
        told = lm.model(torch.tensor([[*begun, *drafts]]), memory)[0, len(begun) - 1 :].double().log_softmax(-1)
        if how == "independent":
            found["sum_min"] = float(torch.minimum(told[0].exp(), said[0].exp()).sum())
            chance = [float((told[k, w] - said[k][w]).exp().clamp_max(1)) for k, w in enumerate(drafts)]
            stands = [float(torch.rand((), generator=generator)) < one for one in chance]
        else:
            stands = [int((told[k] + noise[k]).argmax()) == word for k, word in enumerate(drafts)]
            found["first_shared"] = float(stands[0])
        found[how] = float([*stands, False].index(False))
    return found


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="with drafters of their own")
    parser.add_argument("--data", nargs="+", required=True, help="of each model, whose prompts are written")
    parser.add_argument("--names", nargs="+", required=True, help="of the models, in tables")
    parser.add_argument("--num", type=int, default=200, help="texts")
    parser.add_argument("--places", type=int, default=5, help="places a text")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for place, data, name in zip(args.models, args.data, args.names, strict=True):
        lm: Any = load(place, device="cpu").left_to_right
        prompts = list(dict.fromkeys(example.prompt for example in read(data, "test")))
        prompts = [None] * args.num if prompts == [None] else prompts[: args.num]
        requests = [Request(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
        generator = make_generator(0)
        found: dict[str, list[float]] = {}
        for request, event in zip(requests, written(lm, requests, 64, temperature=1.0), strict=True):
            prompt, words = lm.tokenizer.encode(request.prompt or ""), list(event.tokens)
            for _ in range(args.places if len(words) > 1 else 0):
                end = int(torch.randint(1, len(words), (), generator=generator))
                for what, value in drafted(lm, prompt, words[:end], generator).items():
                    found.setdefault(what, []).append(value)
        row: dict[str, Any] = {"model": name, "places": len(found["shared"]), "words": WORDS}
        for what, values in found.items():
            error = statistics.stdev(values) / len(values) ** 0.5
            row[what] = [round(statistics.fmean(values), 3), round(1.96 * error, 3)]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
