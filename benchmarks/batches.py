"""Does a text ever depend on the batch it is written in? Every family and decoder, alone and among others.

    python benchmarks/batches.py --num 2000 --out benchmarks/results/batches.json

Random weights make near-ties, which rounding would decide, far more frequent than trained ones; the model that ships is
measured too. Texts are equal when their tokens and their confidence, to the last bit, and their network calls are.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as PlainTokenizer
from tokenizers import models, pre_tokenizers

from manta.families.aligned import AlignedLM
from manta.families.aligned_model import AlignedConfig, AlignedModel
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.block import BlockCausalLM
from manta.families.block_model import BlockCausalConfig, BlockCausalModel
from manta.families.events import GenerateOptions, Request, Writer
from manta.families.manta_lm import MantaLM
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.model import MantaConfig, MantaModel
from manta.families.thinking import ThinkingConfig
from manta.families.trained import TrainedWriter
from manta.hub import load
from manta.hub.foreign.decoder import DecoderNet, DecoderShape
from manta.hub.foreign.model import ForeignModel
from manta.masked import DECODERS
from manta.masked.learned import LearnedConfig
from manta.spaces import EmbeddingSpaceConfig, LatentSpaceConfig
from manta.text import Tokenizer
from manta.text.foreign import ForeignTokenizer

SIZES = (2, 7, 64)
PLAIN = [name for name in DECODERS if name not in ("doubt", "learned")]
"""Decoders that any masked model follows."""
TEXT = "the cat sat on a mat near some old river while rain fell over quiet hills and nobody spoke of it again"
WORDS = TEXT.split(" ")
NAMES, FOODS = ("Aromi", "The Mill", "Zizzi", "The Phoenix"), ("Italian", "French", "Indian", "English")
SHAPE: dict[str, Any] = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 2, "max_prompt": 24, "max_text": 40}


def with_random_weights(net: torch.nn.Module) -> Any:
    """The same net, no weight of it at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def published(kv_heads: int, dtype: torch.dtype) -> ForeignModel:
    """A model of the layout of LLaDA, or with fewer heads of keys of Dream's."""
    plain = PlainTokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *sorted(set(WORDS))])}, "?"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    size = plain.get_vocab_size()
    widths = {"dim": 32, "depth": 2, "heads": 4, "kv_heads": kv_heads, "hidden": 48}
    shape = DecoderShape(vocab_size=size + 2, **widths, eps=1e-5, rotary_base=1e4, qkv_bias=kv_heads < 4)
    return ForeignModel(
        family="llada" if kv_heads == 4 else "Dream",
        net=with_random_weights(DecoderNet(shape)).to(dtype),
        tokenizer=ForeignTokenizer(plain.to_str()),
        vocab_size=size + 2,
        max_length=64,
        mask_id=size + 1,
        eos_id=size,
        pad_id=None,
        shifted=kv_heads < 4,
    )


def cases() -> Iterator[tuple[str, Writer, dict[str, Any]]]:
    """Every family with every decoder: name, model, options."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([TEXT] * 3, 512)
    shape = {"vocab_size": tokenizer.vocab_size, **SHAPE}
    shipped = load()
    for style in ("consensus", "diverse"):
        yield f"the model that ships, {style}", shipped, {"num_steps": 8, "style": style}
    for name, space in (
        ("latents, 4 tokens each", LatentSpaceConfig(rate=4, channels=6)),
        ("latents, 1 token each", LatentSpaceConfig(rate=1, channels=6)),
        ("embeddings", EmbeddingSpaceConfig(channels=8)),
    ):
        config = MantaConfig(**shape, space=space)
        lm = MantaLM(with_random_weights(MantaModel(config)), tokenizer, config.time.build())
        for solver in ("euler", "heun", "renoise"):
            yield f"manta, {name}, {solver}", lm, {"num_steps": 6, "solver": solver}
        yield f"manta, {name}, guided at temperature 1", lm, {"num_steps": 8, "guidance_scale": 2.0, "temperature": 1.0}
        yield f"manta, {name}, one round", lm, {"num_steps": 8, "rounds": 1, "style": "consensus"}
    masked = MaskedLM(with_random_weights(MaskedModel(MaskedConfig(**shape))), tokenizer)
    for decoder in PLAIN:
        for temperature in (0.0, 1.0):
            options = {"num_steps": 8, "decoder": decoder, "temperature": temperature}
            yield f"masked, {decoder} at temperature {temperature:g}", masked, options
    config = MaskedConfig(**shape, thinking=ThinkingConfig(carry=True, slots=2, doubts=True))
    thinker = MaskedLM(with_random_weights(MaskedModel(config)), tokenizer)
    yield "masked, doubt", thinker, {"num_steps": 8, "decoder": "doubt"}
    yield "masked, thinking", thinker, {"num_steps": 8, "think": 2}
    scheduled = MaskedLM(with_random_weights(MaskedModel(MaskedConfig(**shape))), tokenizer, LearnedConfig())
    yield "masked, learned", scheduled, {}
    growing = MaskedLM(with_random_weights(MaskedModel(MaskedConfig(**shape, elastic=True))), tokenizer)
    yield "masked, elastic", growing, {"num_steps": 8, "decoder": "threshold"}
    ar = AutoregressiveLM(with_random_weights(AutoregressiveModel(AutoregressiveConfig(**shape))), tokenizer)
    yield "autoregressive, greedy", ar, {}
    yield "autoregressive, nucleus of 0.9", ar, {"temperature": 1.0, "top_p": 0.9}
    aligned = AlignedLM(with_random_weights(AlignedModel(AlignedConfig(**shape))), tokenizer)
    both = load("builtin:e2e-aligned")
    for calls in (1, 4):
        yield f"aligned, {calls} calls", aligned, {"num_steps": calls}
        yield f"the aligned model that ships, {calls} calls", both, {"num_steps": calls}
    for decoder in ("verified", "sequential"):
        for temperature in (0.0, 1.0):
            options = {"decoder": decoder, "temperature": temperature}
            yield f"the aligned model that ships, {decoder} at temperature {temperature:g}", both, options
    block = BlockCausalLM(with_random_weights(BlockCausalModel(BlockCausalConfig(**shape, block_length=4))), tokenizer)
    for decoder in PLAIN:
        for temperature in (0.0, 1.0):
            options = {"max_tokens": 24, "decoder": decoder, "temperature": temperature}
            yield f"block, {decoder} at temperature {temperature:g}", block, options
    for kv_heads, dtype in ((4, torch.float32), (4, torch.bfloat16), (2, torch.float32), (2, torch.bfloat16)):
        lm = published(kv_heads, dtype)
        for decoder in ("deferred", "confidence"):
            name = f"published {lm.family}, {str(dtype).removeprefix('torch.')}, {decoder}"
            yield name, lm, {"num_steps": 6, "max_tokens": 21, "decoder": decoder}


def requests_for(lm: Writer, num: int, draw: random.Random) -> list[Request]:
    """Prompts of many lengths, a tenth of them none."""

    def prompt() -> str | None:
        if draw.random() < 0.1:
            return None
        if isinstance(lm, TrainedWriter) and lm.model.config.dim > SHAPE["dim"]:  # a model that ships
            slots = [f"name[{draw.choice(NAMES)}]", f"food[{draw.choice(FOODS)}]", "eatType[pub]", "area[riverside]"]
            return ", ".join(slots[: draw.randint(1, 4)])
        return " ".join(draw.sample(WORDS, draw.randint(1, 6)))

    return [Request(prompt=prompt(), seed=seed) for seed in range(num)]


def written(lm: Writer, requests: list[Request], options: dict[str, Any], size: int) -> list[tuple[Any, ...]]:
    """What has become of each request."""
    events = lm.generate(requests, GenerateOptions(**options), batch_size=size)
    done = sorted((event for event in events if event.kind == "done"), key=lambda event: event.index)
    return [(event.tokens, repr(event.confidence), event.nfe) for event in done]


def measure(lm: Writer, options: dict[str, Any], num: int) -> dict[str, Any]:
    """Texts that differ in batches of each size, in random order, from the same alone."""
    draw = random.Random(0)
    requests = requests_for(lm, num, draw)
    alone = written(lm, requests, options, 1)
    row: dict[str, Any] = {"texts": num, "distinct": len({tokens for tokens, *_ in alone})}
    for size in SIZES:
        order = draw.sample(range(num), num)
        found = written(lm, [requests[i] for i in order], options, size)
        pairs = [(alone[i], text) for i, text in zip(order, found, strict=True)]
        row[f"differ_in_{size}"] = sum(one[0] != other[0] for one, other in pairs)
        row[f"confidence_differs_in_{size}"] = sum(one[1] != other[1] for one, other in pairs)
        row[f"calls_differ_in_{size}"] = sum(one[2] != other[2] for one, other in pairs)
    return row


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2000, help="texts a family and decoder")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out")
    args = parser.parse_args()
    result: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": []}
    result["machine"] = platform.processor() or platform.machine()
    for name, lm, options in cases():
        if args.only not in name:
            continue
        start = time.perf_counter()
        row = {"name": name, "options": options, **measure(lm, options, args.num)}
        result["rows"].append(row)
        print(f"{time.perf_counter() - start:.0f} s", row, flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
