"""Which blocks and neurons of a larger model to begin with: every way, judged before anything is trained.

    python benchmarks/inheritance.py runs/tiny/larger/ar-larger-base-* --data e2e:PATH \
        --out benchmarks/results/inheritance.json

Of each model half the blocks, and of its pointwise networks half the neurons, are kept in each way; figures are the
loss on held-out texts, in nats a word.
"""

import argparse
import json
from pathlib import Path
from typing import Any, cast, get_args

import torch

from manta.families.inheritance import Layers, Neurons, Score, choose_blocks, choose_neurons, thinned
from manta.hub import load
from manta.recipes.conversion import mean_parts
from manta.recipes.recipe import Recipe
from manta.recipes.text_conversion import held_out, task_of_model
from manta.runtime import atomic_write, make_generator
from manta.text import Loader, build, read
from manta.text.corpus import Corpus

BATCH_TOKENS, BATCHES, MASK_STEPS = 1_500, 8, 100


def judged(folder: Path, data: str, corpora: Path) -> list[dict[str, Any]]:
    """Every way of one model."""
    lm = cast(Any, load(folder, device="cpu"))
    recipe, net = Recipe(data=data), lm.model.requires_grad_(False)
    task, batches = task_of_model(lm, recipe), held_out(recipe, lm, 256)
    place, shape = corpora / folder.name, net.config
    lengths = {"max_prompt": shape.max_prompt, "max_text": shape.max_text}
    build(read(data, "train", 4_000), lm.tokenizer, place, source=data, **lengths)
    corpus, trunk = Corpus.open(place), lm.trunk_of(net)

    def scores() -> Score:
        loader = Loader(corpus, batch_tokens=BATCH_TOKENS, multiple=lm.rate_of(net))
        generator = make_generator(0)
        return lambda judged: task(judged, next(loader), generator).total

    def nats(small: Any) -> float:
        return mean_parts(small, task, batches)["nats"]

    rows = [{"model": folder.name, "what": "whole", "how": "", "nats": nats(net)}]
    for how in get_args(Layers):
        blocks = choose_blocks(net, trunk, len(trunk.blocks) // 2, how, scores, BATCHES, make_generator(1))
        small = thinned(net, lm.trunk_of, blocks, None)
        rows.append({"model": folder.name, "what": "blocks", "how": how, "kept": blocks, "nats": nats(small)})
    for how in get_args(Neurons):
        hidden = trunk.networks[0].hidden // 2
        kept = choose_neurons(net, trunk, hidden, how, scores, MASK_STEPS, make_generator(1))
        small = thinned(net, lm.trunk_of, range(len(trunk.blocks)), kept)
        rows.append({"model": folder.name, "what": "neurons", "how": how, "nats": nats(small)})
    return rows


def main() -> None:
    """Read the command line and judge every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", required=True, help="as manta train takes it")
    parser.add_argument("--corpora", type=Path, default=Path("runs/inheritance"), help="folder for encoded texts")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for folder in args.models for row in judged(folder, args.data, args.corpora)]
    atomic_write(args.out, (json.dumps(rows, indent=1) + "\n").encode())
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
