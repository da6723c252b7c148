"""What attention between words and patches favours by places alone, in a trained model of captions and images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from manta.errors import UsageError
from manta.evaluation.joint import captioned_images
from manta.families.joint_flow import JointFlow
from manta.families.joint_model import Joint, JointModel
from manta.image import from_pixels
from manta.image.files import Fit
from manta.operators import SelfAttention
from manta.operators.favouring import Favouring, favouring, scores_among
from manta.runtime import make_generator

Looking = Literal["words", "patches"]
Apart = Literal["turn", "places", "content"]
MIDDLE = 0.5
"""Time of the elements that look, which are being made."""


@dataclass(frozen=True, kw_only=True)
class AttentionBias:
    """How uneven the attention of one block is among the elements of the other kind."""

    looking: Looking
    """Who looks at all of the other kind."""
    apart: Apart
    """What tells those apart that are looked at."""
    block: int
    """Counted from 0."""
    spread: float
    """Standard deviation of the scores."""
    deficit: float
    """Nats that the entropy lacks to that of even attention."""
    variation: float
    """Total variation from even attention, [0, 1)."""


def attention_bias(
    flow: JointFlow, data: str, *, num: int = 32, split: str = "test", seed: int = 0, fit: Fit = "crop"
) -> list[AttentionBias]:
    """How unevenly words attend to patches, and patches to words, and how much of it places alone make.

    Words look at the patches of an image that is given, and are half made, as when it is described; patches look at the
    words of a caption that is given, and are half made, as when it is drawn. Attention is that among the elements that
    are looked at, and three things may tell these apart:

    | `apart` | what differs among those that are looked at |
    |---|---|
    | `turn` | in each block the rotary turn alone: every key is that of their mean state |
    | `places` | all places, absolute ones too, and what blocks make of them: each enters with the mean content |
    | `content` | everything |

    Args:
        flow: the model.
        data: images with captions.
        num: how many at most.
        split: of the data.
        seed: of the noise.
        fit: how images of another size are fitted.

    Returns:
        Of each who looks, what tells apart, and block, the mean over rows, heads and those who look.

    Raises:
        UsageError: a block has another operator, see `attends_everywhere`.
        DataError: there are no images with captions that the model has words for.
    """
    if not attends_everywhere(flow.model):
        raise UsageError("what attention favours is told of models whose blocks are all model.operator.kind=attention")
    images, captions = captioned_images(flow, data, num, split, fit)
    model, generator = flow.model, make_generator(seed)
    numbers = torch.tensor([flow.codec.numbers(caption) for caption in captions], device=flow.device)
    pixels = torch.from_numpy(np.stack(images)).to(flow.device)
    clean = Joint(model.words.clean(numbers), model.patches_of(from_pixels(pixels)))
    noise = Joint(*(torch.randn(each.shape, generator=generator).to(each) for each in clean))
    found = []
    for looking, apart in product(get_args(Looking), get_args(Apart)):
        blocks = looked_at(model, clean, noise, looking, apart)
        for block, each in enumerate(blocks):
            figures = {name: float(value.mean()) for name, value in each._asdict().items()}
            found.append(AttentionBias(looking=looking, apart=apart, block=block, **figures))
    return found


@torch.no_grad()
def looked_at(model: JointModel, clean: Joint, noise: Joint, looking: Looking, apart: Apart) -> list[Favouring]:
    """Of each block, how uneven the attention of all words to patches is, or of all patches to words.

    Args:
        model: whose blocks are attention.
        clean: captions and images.
        noise: of the same shape.
        looking: who looks, half made; the others are given.
        apart: what tells those apart that are looked at, see `attention_bias`.

    Returns:
        Figures "b h q" of each block.
    """
    words = slice(0, clean.words.shape[1])
    patches = slice(words.stop, None)
    queries, keys = (words, patches) if looking == "words" else (patches, words)
    given = {"words": looking == "patches", "patches": looking == "words"}
    state, times = {}, {}
    for name, full, start in zip(Joint._fields, clean, noise, strict=True):
        even = full.mean(1, keepdim=True).expand_as(full) if apart == "places" else full
        state[name] = even if given[name] else torch.lerp(start, full, MIDDLE)
        times[name] = full.new_full(full.shape[:2], 1.0 if given[name] else MIDDLE)
    found: list[Favouring] = []

    def look(attention: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(attention, SelfAttention)
        scores = scores_among(attention, args[0], args[1], queries, keys, alike=apart == "turn")
        found.append(favouring(scores))

    hooks = [block.get_submodule("operator").register_forward_pre_hook(look) for block in model.trunk.blocks]
    try:
        model(Joint(**state), Joint(**times))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def attends_everywhere(model: JointModel) -> bool:
    """Whether every block is attention of each element to all others."""
    return all(type(block.get_submodule("operator")) is SelfAttention for block in model.trunk.blocks)


def in_words(bias: Sequence[AttentionBias]) -> list[str]:
    """Lines for a person: of each block, the share of attention that would have to move to be even.

    Args:
        bias: from `attention_bias`; of none there are no lines.
    """
    groups: dict[str, list[str]] = {}
    for each in bias:
        other = "patches" if each.looking == "words" else "words"
        name = f"{each.looking} at {other}, block {each.block}"
        groups.setdefault(name, []).append(f"{each.apart} {each.variation:.1%}")
    lines = [f"{name}: {', '.join(told)}" for name, told in groups.items()]
    title = "share of attention that would have to move to be even, by what tells apart what is looked at"
    return [title, *lines] if lines else []
