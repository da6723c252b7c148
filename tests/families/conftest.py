"""A small Manta-LM whose weights are random but nowhere zero, so that every part has a say in what it writes."""

from typing import Any

import pytest
import torch

from manta.families.aligned import AlignedLM
from manta.families.aligned_model import AlignedConfig, AlignedModel
from manta.families.autoregressive import AutoregressiveConfig, AutoregressiveLM, AutoregressiveModel
from manta.families.block import BlockCausalLM
from manta.families.block_model import BlockCausalConfig, BlockCausalModel
from manta.families.manta_lm import MantaLM
from manta.families.masked import MaskedLM
from manta.families.masked_model import MaskedConfig, MaskedModel
from manta.families.model import MantaConfig, MantaModel
from manta.spaces import EmbeddingSpaceConfig, LatentSpaceConfig
from manta.text import Tokenizer

WORDS = ("the cat sat on a mat near some old river while rain fell over quiet hills and nobody spoke of it again",)


def random_weights(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def make_lm(kind: str = "latent", rate: int = 4, **more: Any) -> MantaLM:
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    space = LatentSpaceConfig(rate=rate, channels=6) if kind == "latent" else EmbeddingSpaceConfig(channels=8)
    config = MantaConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        heads=2,
        prompt_depth=1,
        depth=1,
        max_prompt=12,
        max_text=24,
        space=space,
        **more,
    )
    torch.manual_seed(0)
    model = MantaModel(config)
    random_weights(model)
    return MantaLM(model, tokenizer, config.time.build())


SMALL: dict[str, Any] = {"dim": 32, "heads": 2, "prompt_depth": 1, "depth": 1, "max_prompt": 12, "max_text": 24}


def make_masked(**config: Any) -> MaskedLM:
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    torch.manual_seed(0)
    # Hidden words are told apart by their places alone: relative ones leave ties that rounding would decide.
    model = MaskedModel(MaskedConfig(vocab_size=tokenizer.vocab_size, absolute_places=True, **SMALL, **config))
    random_weights(model)
    return MaskedLM(model, tokenizer)


def make_aligned(**config: Any) -> AlignedLM:
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    torch.manual_seed(0)
    shape = {**SMALL, "absolute_places": True, **config}
    model = AlignedModel(AlignedConfig(vocab_size=tokenizer.vocab_size, **shape))
    random_weights(model)
    return AlignedLM(model, tokenizer)


def make_ar(**config: Any) -> AutoregressiveLM:
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    torch.manual_seed(0)
    model = AutoregressiveModel(AutoregressiveConfig(vocab_size=tokenizer.vocab_size, **SMALL, **config))
    random_weights(model)
    return AutoregressiveLM(model, tokenizer)


def make_block(**config: Any) -> BlockCausalLM:
    tokenizer = Tokenizer.train(list(WORDS) * 3, 512)
    torch.manual_seed(0)
    shape = {"block_length": 4, **SMALL, **config}
    model = BlockCausalModel(BlockCausalConfig(vocab_size=tokenizer.vocab_size, **shape))
    random_weights(model)
    return BlockCausalLM(model, tokenizer)


MAKERS: dict[str, Any] = {
    "manta": make_lm,
    "aligned": make_aligned,
    "masked": make_masked,
    "block": make_block,
    "ar": make_ar,
}
"""What makes a small model with random weights, by its family."""


@pytest.fixture(scope="module", params=["latent", "embedding"])
def lm(request) -> MantaLM:
    return make_lm(request.param)


@pytest.fixture(scope="module")
def latent_lm() -> MantaLM:
    return make_lm("latent")
