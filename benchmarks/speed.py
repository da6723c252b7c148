"""Seconds against length: the cached left-to-right model beside `transformers`' GPT-2, and the caches of masked models.

    python benchmarks/speed.py --out benchmarks/results/speed.json

Equal shapes, random weights, float32. Rivals take turns within a round, ratios are taken within a round, and medians
over the rounds count. Outputs are compared where the mathematics says that they are equal: a cached left-to-right text
and the same model without a cache; a masked cache that is refreshed in every call and none.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from manta.autoregressive import Chooser, decode
from manta.bench import generate, gpt2_like, has_transformers, interleaved, machine, randomised
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveModel
from manta.families.cached import CachedReader
from manta.families.decoding import write_canvas
from manta.families.events import GenerateOptions
from manta.families.masked_model import CachedDenoiser, MaskedConfig, MaskedModel
from manta.families.prompted import Memory, PromptedModel
from manta.masked import Canvas, ConfidenceConfig
from manta.runtime import atomic_write, peak_memory_bytes

MASK = 3
BLOCK = 32
"""Words of a block of the masked model, as in Fast-dLLM (arXiv 2505.22618)."""
CACHES: dict[str, dict[str, Any]] = {
    "none": {"cache": "none"},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "prefix, refreshed in every call": {"cache": "prefix", "refresh": 0},
    "dual, refreshed in every call": {"cache": "dual", "refresh": 0},
}


def bare_memory(model: PromptedModel, batch: int) -> Memory:
    """The memory of rows without a prompt."""
    zeros = torch.zeros(batch, dtype=torch.long)
    return model.memory(torch.zeros(batch, 0, dtype=torch.long), zeros, zeros)


@torch.no_grad()
def left_to_right(model: AutoregressiveModel, batch: int, length: int) -> Tensor:
    """Greedy tokens, "b length"; the model has no end."""
    reader = CachedReader(model, bare_memory(model, batch), length + 8)
    rows: list[list[int]] = [[] for _ in range(batch)]
    for step in decode(
        reader,
        Chooser(),
        [()] * batch,
        begin=model.begin,
        end=model.end,
        max_tokens=length,
        multiple=reader.multiple,
    ):
        for row, words in zip(rows, step.words, strict=True):
            row += words
    return torch.tensor(rows)


@torch.no_grad()
def without_cache(model: AutoregressiveModel, batch: int, length: int) -> Tensor:
    """The same, every call over the whole text."""
    memory = bare_memory(model, batch)
    tokens = torch.full((batch, 1), model.begin)
    for _ in range(length):
        tokens = torch.cat([tokens, model(tokens, memory)[:, -1:].argmax(-1)], 1)
    return tokens[:, 1:]


def autoregressive(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours and GPT-2's seconds for texts of the same length."""
    shape = {"dim": args.dim, "depth": args.depth, "heads": args.heads, "vocab_size": args.vocab_size}
    ours = randomised(AutoregressiveModel(AutoregressiveConfig(**shape, max_text=max(args.lengths)))).eval()
    ours.end = -1
    nets = {"ours": ours}
    # Ours has a prompt to read besides, which costs parameters and time: at equal shape GPT-2 is the smaller model, so
    # a deeper one of about equal parameters runs, too.
    for name, depth in {"gpt2": args.depth, "gpt2_of_equal_parameters": args.gpt2_depth}.items():
        nets[name] = gpt2_like(**{**shape, "depth": depth}, max_length=max(args.lengths) + 1)
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    short = min(args.lengths)
    equal = torch.equal(left_to_right(ours, 2, short), without_cache(ours, 2, short))
    rows = []
    for length in args.lengths:
        for batch in args.batches:
            work: dict[str, Callable[[], object]] = {
                name: partial(generate, net, batch=batch, length=length) for name, net in nets.items()
            }
            work["ours"] = partial(left_to_right, ours, batch, length)
            times = interleaved(work, args.repeats)
            row: dict[str, Any] = {"length": length, "batch": batch, "parameters": parameters}
            row |= {f"seconds_{name}": [round(s, 4) for s in seconds] for name, seconds in times.items()}
            for name in [name for name in nets if name != "ours"]:
                ratios = [mine / other for mine, other in zip(times["ours"], times[name], strict=True)]
                row[f"ratio_to_{name}"] = [round(x, 3) for x in (median(ratios), min(ratios), max(ratios))]
            rows.append({**row, f"equal_without_cache_at_{short}": equal})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


@torch.no_grad()
def write_masked(model: MaskedModel, length: int, options: GenerateOptions) -> Canvas:
    """One text of a masked model, block after block, an even share of a block in each call."""
    mask = torch.ones(1, length, dtype=torch.bool)
    denoiser = CachedDenoiser(model, mask, bare_memory(model, 1))
    *_, canvas = write_canvas(
        denoiser,
        torch.full((1, length), MASK),
        ConfidenceConfig(block_length=BLOCK),
        options,
        mask_id=MASK,
        generators=(),
        width=length,
        end_id=None,
        ends_last=False,
        max_calls=options.num_steps,
    )
    return canvas


def masked(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of every cache at every length, and how far its words agree with those without one."""
    shape = {"dim": args.dim, "depth": args.depth, "heads": args.heads, "vocab_size": args.vocab_size}
    longest = max(args.lengths)
    model = randomised(MaskedModel(MaskedConfig(**shape, max_text=longest, absolute_places=True))).eval()
    rows = []
    for length in args.lengths:
        budget = max(1, length // args.words_a_call)
        options = {name: GenerateOptions(num_steps=budget, **given) for name, given in CACHES.items()}
        if length > args.exact_up_to:
            options = {name: given for name, given in options.items() if given.refresh}
        found = {name: write_masked(model, length, given) for name, given in options.items()}
        times = interleaved(
            {name: partial(write_masked, model, length, given) for name, given in options.items()}, args.repeats
        )
        for name, canvas in found.items():
            agreement = (canvas.tokens == found["none"].tokens).float().mean().item()
            ratios = [mine / other for mine, other in zip(times[name], times["none"], strict=True)]
            row: dict[str, Any] = {"length": length, "cache": name, "calls": canvas.calls}
            row |= {"positions": canvas.processed, "seconds": [round(s, 4) for s in times[name]]}
            row |= {"ratio_to_none": round(median(ratios), 3), "agreement_with_none": round(agreement, 4)}
            rows.append({**row, "equal_by_mathematics": options[name].cache == "none" or not options[name].refresh})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--gpt2-depth", type=int, default=10, help="of the GPT-2 whose parameters are as many as ours")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--words-a-call", type=int, default=4, help="of the masked model: its budget is length over it")
    parser.add_argument("--exact-up-to", type=int, default=256, help="longest length at which equality is tested")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"machine": machine(), "arguments": {**vars(args), "out": None}}
    if has_transformers():
        result["autoregressive"] = autoregressive(args)
    result["masked"] = masked(args)
    result["peak_memory_mib"] = round(peak_memory_bytes() / 2**20)
    if args.out:
        atomic_write(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return result


if __name__ == "__main__":
    main()
