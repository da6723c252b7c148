"""Both ends of every number that a shape, an option or an objective of a family may have."""

from collections.abc import Callable
from typing import Any

import pytest

from manta.aligned import AlignmentConfig
from manta.errors import ConfigError, UsageError
from manta.families.aligned_model import AlignedConfig
from manta.families.autoregressive import AutoregressiveConfig
from manta.families.block_model import BlockCausalConfig
from manta.families.decoder import DecoderConfig
from manta.families.events import GenerateOptions
from manta.families.image_flow import DrawOptions
from manta.families.image_model import ImageConfig
from manta.families.image_objective import ImageObjectiveConfig
from manta.families.joint_model import JointConfig, JointObjectiveConfig
from manta.families.manta_lm import Split
from manta.families.masked_model import MaskedConfig
from manta.families.model import MantaConfig
from manta.families.objectives import ObjectiveConfig
from manta.families.options import MOST
from manta.families.restorer import RestorerConfig
from manta.families.thinking import MOST_SLOTS, ThinkingConfig
from manta.operators import AttentionConfig

SHARES = ("prompt_drop", "blank_share", "extra_cell", "all_hidden", "known_share", "bare_share", "own_share")
SHAPES = (MantaConfig, AlignedConfig, MaskedConfig, BlockCausalConfig, AutoregressiveConfig, DecoderConfig)
Rows = tuple[tuple[Callable[..., Any], str, tuple[Any, ...], tuple[Any, ...]], ...]
ENDS: Rows = (
    (AlignmentConfig, "reveal_share", (0.0, 1.0), (-1e-9, 1.001)),
    (AlignmentConfig, "glance", (0.0, 1.0), (-1e-9, 1.001)),
    (AlignmentConfig, "least_room", (1e-9, 1.2), (0.0, 1.3)),
    (AlignmentConfig, "most_room", (0.7, 9.0), (0.69,)),
    (AlignedConfig, "slots_per_word", (2, 16), (1, 17)),
    (AutoregressiveConfig, "draft_horizon", (0, 1), (-1,)),
    (BlockCausalConfig, "block_length", (1, 2), (0,)),
    (DrawOptions, "num_steps", (1, MOST), (0, MOST + 1)),
    (DrawOptions, "guidance_scale", (0.0, 100.0), (-1e-9, 100.1)),
    (DrawOptions, "strength", (1e-9, 1.0), (0.0, 1.001)),
    (ImageConfig, "height", (0, 1), (-1,)),
    (ImageConfig, "width", (0, 1), (-1,)),
    (ImageConfig, "channels", (0, 1), (-1,)),
    (ImageConfig, "classes", (0, 1), (-1,)),
    (ImageConfig, "bits", (0, 16), (-1, 17)),
    (ImageObjectiveConfig, "class_dropout", (0.0, 1.0), (-1e-9, 1.001)),
    (ImageObjectiveConfig, "code_dropout", (0.0, 1.0), (-1e-9, 1.001)),
    (ImageObjectiveConfig, "weight_cap", (1.0,), (0.999,)),
    (JointConfig, "patch", (1, 2), (0,)),
    (JointConfig, "word_channels", (1, 2), (0,)),
    *((JointConfig, size, (0, 1), (-1,)) for size in ("vocab_size", "places", "height", "width", "channels")),
    (JointObjectiveConfig, "drawing", (0.0, 0.65), (-1e-9, 0.651)),
    (JointObjectiveConfig, "describing", (0.0, 0.45), (-1e-9, 0.451)),
    (JointObjectiveConfig, "completing", (0.0, 0.4), (-1e-9, 0.401)),
    (JointObjectiveConfig, "words", (1e-9, 9.0), (0.0,)),
    (MantaConfig, "bits", (0, 1), (-1,)),
    (MaskedConfig, "classes", (0, 3, 50), (2, -1, 51)),
    *((ObjectiveConfig, share, (0.0, 1.0), (-1e-9, 1.001)) for share in (*SHARES, "code_dropout")),
    (ObjectiveConfig, "levels", (1,), (0,)),
    (ObjectiveConfig, "max_blank", (0,), (-1,)),
    (ObjectiveConfig, "velocity_weight", (0.0,), (-1e-9,)),
    (RestorerConfig, "tile", (16, 64, 512), (8, 15, 20, 520)),
    (ThinkingConfig, "slots", (0, MOST_SLOTS), (-1, MOST_SLOTS + 1)),
    *((MaskedConfig, name, (1, 2), (0,)) for name in ("vocab_size", "heads", "prompt_depth", "depth", "max_text")),
    *((shape, "dim", (8, 16), (7,)) for shape in SHAPES),
    (MaskedConfig, "max_prompt", (0, 1), (-1,)),
    (MaskedConfig, "hidden", (0, 1), (-1,)),
    (GenerateOptions, "top_p", (1e-9, 1.0), (0.0, 1.001)),
    (GenerateOptions, "strength", (0.001, 1.0), (0.0009, 1.001)),
)
BESIDE: dict[Any, dict[str, Any]] = {MaskedConfig: {"vocab_size": 50}, DrawOptions: {}}


@pytest.mark.parametrize(("made", "name", "right", "wrong"), ENDS, ids=lambda value: getattr(value, "__name__", ""))
def test_both_ends_of_what_may_be_said(made, name, right, wrong):
    beside = {} if name == "vocab_size" else BESIDE.get(made, {})
    for value in right:
        assert getattr(made(**beside, **{name: value}), name) == value
    for value in wrong:
        with pytest.raises((ConfigError, UsageError), match=name):
            made(**beside, **{name: value})


def test_a_split_counts_calls():
    assert Split(flow=0, silent=0, rounds=0, refine=1).refine == 1
    wrongs: tuple[dict[str, Any], ...] = ({"flow": -1}, {"silent": -1}, {"rounds": -1}, {"refine": 0})
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="counts calls"):
            Split(**{"flow": 0, **wrong})


def test_sizes_of_a_shape_fit_each_other():
    assert MaskedConfig(dim=24, heads=3).dim == 24
    for dim in (20, 27):
        with pytest.raises(ConfigError, match="multiple of 2·heads = 6"):
            MaskedConfig(dim=dim, heads=3)
    kinds = (AttentionConfig(), AttentionConfig())
    assert MaskedConfig(depth=2, operators=kinds).mix == kinds and MaskedConfig(operators=kinds).depth is None
    with pytest.raises(ConfigError, match="holds 2, and there are 1"):
        MaskedConfig(depth=1, operators=kinds)
    for beside in ({"elastic": True}, {"thinking": ThinkingConfig(slots=1)}, {"thinking": ThinkingConfig(doubts=True)}):
        with pytest.raises(ConfigError, match="classes are for"):
            MaskedConfig(classes=4, vocab_size=50, **beside)  # pyright: ignore[reportArgumentType]
    for thinking in (ThinkingConfig(carry=True), ThinkingConfig(slots=1), ThinkingConfig(doubts=True)):
        with pytest.raises(ConfigError, match="elastic canvas move"):
            MaskedConfig(elastic=True, thinking=thinking)
    assert ThinkingConfig(carry=True).carries and ThinkingConfig(slots=1).carries
    assert not ThinkingConfig(doubts=True).carries


def test_guidance_of_images_takes_two_calls():
    for scale in (0.5, 2.0):
        assert DrawOptions(num_steps=2, guidance_scale=scale).num_steps == 2
        with pytest.raises(UsageError, match="two calls"):
            DrawOptions(num_steps=1, guidance_scale=scale)
    assert DrawOptions(num_steps=1, guidance_scale=1.0).num_steps == 1
