"""An outside reference: `transformers`' GPT-2 of the same shape, with random weights, left to right with its cache."""

from collections.abc import Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch

from manta.bench.timing import Row, interleaved
from manta.errors import ModelError


def has_transformers() -> bool:
    """Whether the package is installed."""
    return find_spec("transformers") is not None


def gpt2_like(*, dim: int, depth: int, heads: int, vocab_size: int, max_length: int, device: str = "cpu") -> Any:
    """A GPT-2 of `transformers` with random weights, ready to generate.

    Args:
        dim: width.
        depth: blocks.
        heads: attention heads.
        vocab_size: tokens.
        max_length: most tokens of a row.
        device: where to put it.

    Raises:
        ModelError: `transformers` is not installed.
    """
    if not has_transformers():
        raise ModelError("the outside reference needs transformers: pip install 'manta[hf]'")
    from transformers import GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    shape = {"n_embd": dim, "n_layer": depth, "n_head": heads, "vocab_size": vocab_size, "n_positions": max_length}
    config = GPT2Config(**shape, bos_token_id=0, eos_token_id=None, pad_token_id=1)  # pyright: ignore
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval().to(device)  # pyright: ignore


@torch.no_grad()
def generate(net: Any, *, batch: int, length: int) -> torch.Tensor:
    """Write `length` tokens after one given token, greedily, with the cache.

    Args:
        net: of `gpt2_like`.
        batch: rows.
        length: tokens of each.
    """
    given = torch.zeros(batch, 1, dtype=torch.long, device=net.device)
    lengths = {"min_new_tokens": length, "max_new_tokens": length}
    return net.generate(given, attention_mask=torch.ones_like(given), do_sample=False, use_cache=True, **lengths)


def outside_rates(
    config: Any, lengths: Sequence[int], batches: Sequence[int], *, repeats: int = 3, device: str = "cpu"
) -> list[Row]:
    """Texts and tokens a second of a GPT-2 with the shape of a model.

    Args:
        config: of any family: `dim`, `depth`, `heads` and `vocab_size`.
        lengths: tokens of a text.
        batches: texts written at once.
        repeats: runs of each; medians count.
        device: where to compute.
    """
    shape = {name: getattr(config, name) for name in ("dim", "depth", "heads", "vocab_size")}
    net = gpt2_like(**shape, max_length=max(lengths) + 1, device=device)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    rows = []
    for length in lengths:
        for batch in batches:
            work = {"gpt2": lambda length=length, batch=batch: generate(net, batch=batch, length=length)}
            times = interleaved(work, repeats)["gpt2"]
            row: Row = {"family": "transformers' GPT-2", **shape, "parameters": parameters}
            row |= {"length": length, "batch": batch, "seconds": median(times)}
            row |= {"texts_per_second": batch / median(times), "tokens_per_second": batch * length / median(times)}
            rows.append(row)
    return rows
