"""Whatever is drawn in training, or before writing begins, is drawn by the generator that is handed in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from manta.aligned import AlignmentConfig
from manta.families.aligned_objective import AlignmentMatching
from manta.families.block import BlockMatching
from manta.families.block_model import BlockCausalConfig, BlockCausalModel
from manta.families.drafters import DraftLoss
from manta.families.image_flow import reconstruction
from manta.families.image_model import ImageConfig, ImageModel
from manta.families.image_objective import ImageMatching, ImageObjectiveConfig
from manta.families.masked_objective import MaskedMatching, bound
from manta.families.objectives import ObjectiveConfig, PolicyMatching
from manta.families.thinking import ThinkingConfig
from manta.flow import TimeDensityConfig
from manta.image import ImageBatch
from manta.masked import MaskedObjectiveConfig
from manta.nets.grid import DicConfig
from manta.runtime import make_generator
from manta.spaces import LatentGridConfig, RateController
from manta.types import Loss

from .conftest import SMALL, make_aligned, make_ar, make_lm, make_masked, random_weights
from .test_objectives import make_batch

Draw = Callable[[torch.Generator], Loss | None]
BATCH = make_batch([5, 9, 12, 3])
OBJECTIVE = ObjectiveConfig(blank_share=0.5, bare_share=0.5)


def masked(**config: Any) -> Draw:
    model, objective = make_masked(**config).model, MaskedMatching(OBJECTIVE, MaskedObjectiveConfig())
    return lambda generator: objective(model, BATCH, generator)


def aligned() -> Draw:
    model = make_aligned().model
    objective = AlignmentMatching(OBJECTIVE, AlignmentConfig(reveal_share=1.0), reveal=True)
    return lambda generator: objective(model, BATCH, generator)


def block() -> Draw:
    model = BlockCausalModel(BlockCausalConfig(vocab_size=300, block_length=4, **SMALL))
    random_weights(model)
    return lambda generator: BlockMatching(MaskedObjectiveConfig())(model, BATCH, generator)


def drafts() -> Draw:
    model = make_ar(draft_horizon=3).model
    return lambda generator: DraftLoss(places=3)(model, BATCH, generator)


def coded() -> Draw:
    lm = make_lm(bits=2)
    objective = PolicyMatching(ObjectiveConfig(code_dropout=0.5), lm.density, RateController(20.0))
    return lambda generator: objective(lm.model, BATCH, generator)


def image(what: str) -> Draw:
    space = LatentGridConfig(factor=2, width=4, channels=2)
    net = DicConfig(width=8, depths=(1, 1, 1, 1, 1))
    model = ImageModel(ImageConfig(height=8, width=8, channels=3, classes=3, net=net, space=space, bits=2))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8))
    batch = ImageBatch(pixels=pixels, label=torch.tensor([0, 1, 2, 0, 1]), index=torch.arange(5))
    config = ImageObjectiveConfig(class_dropout=0.5, code_dropout=0.5)
    matching: Any = ImageMatching(config, TimeDensityConfig(kind="uniform").build())
    objective = matching if what == "matching" else reconstruction(model, {})
    return lambda generator: objective(model, batch, generator)


def likelihood() -> Draw:
    model = make_masked().model

    def drawn(generator: torch.Generator) -> None:
        bound(model, BATCH, [generator, *map(make_generator, range(3))], num_samples=2)

    return drawn


MADE: dict[str, Callable[[], Draw]] = {
    "elastic": lambda: masked(elastic=True),
    "classes": lambda: masked(classes=6),
    "thinking": lambda: masked(thinking=ThinkingConfig(carry=True, slots=2, doubts=True)),
    "aligned": aligned,
    "block": block,
    "drafts": drafts,
    "coded": coded,
    "image": lambda: image("matching"),
    "reconstruction": lambda: image("reconstruction"),
    "likelihood": likelihood,
}


@pytest.mark.parametrize("name", MADE)
def test_all_that_is_drawn_comes_from_the_generator(name, no_global_draws):
    torch.manual_seed(0)
    draw = MADE[name]()
    for seed in range(2):
        with no_global_draws():
            draw(make_generator(seed))
