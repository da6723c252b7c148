"""What attention favours by places alone: closed forms, exact zeros, and what it must not depend on."""

from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from manta.errors import UsageError
from manta.evaluation.joint_bias import attends_everywhere, attention_bias, in_words, looked_at
from manta.families.joint_flow import JointFlow, joint_shaped
from manta.families.joint_model import Joint, JointConfig, JointModel
from manta.image.captioned import CaptionedCodec
from manta.operators import AttentionConfig, WindowedConfig
from manta.operators.positions import PositionsConfig, Row, places, score_spread

WORDS, PATCHES = 5, 6
CODEC = CaptionedCodec(height=8, width=12, channels=3, places=WORDS, words=("a", "blue", "circle", "red", "square"))
ROW = Row(WORDS, 2, 3)


def model(kind: Any = "axial", **changes: Any) -> JointModel:
    """A net with random weights everywhere."""
    torch.manual_seed(0)
    shape = {"dim": 24, "depth": 2, "heads": 2, "patch": 4, "word_channels": 6, **changes}
    net = JointModel(joint_shaped(JointConfig(positions=PositionsConfig(kind=kind), **shape), CODEC))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return net


def state(rows: int = 4) -> tuple[Joint, Joint]:
    """Captions and images of random content, and noise."""
    torch.manual_seed(1)
    clean, noise = (Joint(torch.randn(rows, WORDS, 6), torch.randn(rows, PATCHES, 48)) for _ in range(2))
    return clean, noise


def figures(net: JointModel, looking: Any, apart: Any, clean: Joint | None = None) -> Tensor:
    """Spread, deficit and variation of each block, the means: "blocks 3"."""
    own, noise = state()
    found = looked_at(net, clean or own, noise, looking, apart)
    return torch.stack([torch.stack([value.mean() for value in block]) for block in found])


def test_one_block_of_equal_content_gives_the_spread_of_its_places():
    """Keys and queries of ones, a head of one pair of channels an axis: scores are those of `scores_of_places`."""
    net = model("axial", dim=4, heads=1, depth=1, operator=AttentionConfig(bias=True, rotary_base=50.0))
    operator: Any = net.trunk.blocks[0].get_submodule("operator")
    with torch.no_grad():
        operator.qkv.weight.zero_()
        operator.qkv.bias.fill_(1.0)
        operator.gain.fill_(operator.head_dim**-0.5)  # scores are then the mean over channels, not their sum
    where = places(PositionsConfig(kind="axial"), ROW)
    words, patches = where[:WORDS], where[WORDS:]
    for looking, lookers, aims in (("words", words, patches), ("patches", patches, words)):
        expected = mean(score_spread(place, aims, (1, 1), 50.0) for place in lookers)
        assert expected > 0.05
        for apart in ("turn", "places", "content"):
            assert float(figures(net, looking, apart)[0, 0]) == pytest.approx(expected, abs=1e-5)


def test_by_places_that_are_one_nothing_is_favoured_to_the_last_bit():
    net = model("unordered")
    assert (figures(net, "words", "turn") == 0).all()
    assert (figures(net, "patches", "turn")[:, 0] > 5e-3).all(), "words of a caption have an order"
    assert (figures(net, "words", "places")[:, 0] > 5e-3).all(), "absolute places tell patches apart"
    bare = model("unordered", absolute_places=False)
    assert figures(bare, "words", "places").abs().max() < 1e-4
    assert (figures(bare, "words", "content")[:, 0] > 5e-3).all()
    for kind in ("line", "axial", "mrope", "circle"):
        assert (figures(model(kind), "words", "turn")[:, 0] > 5e-3).all(), kind


def test_what_places_make_of_attention_does_not_depend_on_what_stands_where():
    net, (clean, _) = model("circle", depth=3), state()
    order, back = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    shuffled = Joint(clean.words, clean.patches[:, order])
    torch.testing.assert_close(
        figures(net, "words", "places", shuffled), figures(net, "words", "places"), rtol=1e-4, atol=1e-5
    )
    bare = model("circle", absolute_places=False)
    first = slice(0, 1)  # later blocks have seen what stands where
    torch.testing.assert_close(
        figures(bare, "words", "turn", shuffled)[first], figures(bare, "words", "turn")[first], rtol=1e-4, atol=1e-5
    )
    moved = (figures(net, "words", "content", shuffled) - figures(net, "words", "content")).abs()
    assert moved.max() > 1e-2
    spelt = Joint(clean.words[:, back], clean.patches)
    torch.testing.assert_close(
        figures(net, "patches", "places", spelt), figures(net, "patches", "places"), rtol=1e-4, atol=1e-5
    )


def test_who_looks_is_half_made_and_the_others_are_given():
    net, (clean, noise) = model(), state()
    seen: list[tuple[Joint, Joint]] = []
    hook = net.register_forward_pre_hook(lambda module, args: seen.append(args))
    looked_at(net, clean, noise, "words", "content")
    looked_at(net, clean, noise, "patches", "places")
    hook.remove()
    (told, times), (other, other_times) = seen
    torch.testing.assert_close(told.words, (clean.words + noise.words) / 2)
    assert torch.equal(told.patches, clean.patches)
    assert (times.words == 0.5).all() and (times.patches == 1).all()
    torch.testing.assert_close(other.patches, (clean.patches + noise.patches) / 2)
    torch.testing.assert_close(other.words, clean.words.mean(1, keepdim=True).expand_as(clean.words))
    assert (other_times.words == 1).all() and (other_times.patches == 0.5).all()
    operator: Any = net.trunk.blocks[0].get_submodule("operator")
    assert not operator._forward_pre_hooks, "the net is left as it was"


def test_a_whole_model_is_told_block_by_block():
    words = ("a", "and", "at", "blue", "bottom", "circle", "cyan", "green", "in", "left", "magenta", "middle", "on")
    words += ("orange", "purple", "red", "right", "square", "the", "top", "triangle", "with", "white", "yellow", ",")
    codec = CaptionedCodec(height=8, width=12, channels=3, places=40, words=tuple(sorted(words)))
    shape = JointConfig(dim=24, depth=2, heads=2, positions=PositionsConfig(kind="mrope"))
    torch.manual_seed(0)
    flow = JointFlow(JointModel(joint_shaped(shape, codec)), codec)
    found = attention_bias(flow, "builtin:shapes", num=3)
    assert [(each.looking, each.apart, each.block) for each in found[:3]] == [
        ("words", "turn", 0),
        ("words", "turn", 1),
        ("words", "places", 0),
    ]
    assert len(found) == 12 and all(each.deficit > 0 and 0 < each.variation < 1 for each in found)
    again = attention_bias(flow, "builtin:shapes", num=3)
    assert again == found
    lines = in_words(found)
    assert len(lines) == 5 and lines[1].startswith("words at patches, block 0: turn ") and in_words([]) == []


def test_other_operators_are_refused():
    net = model(operator=WindowedConfig())
    assert attends_everywhere(model()) and not attends_everywhere(net)
    with pytest.raises(UsageError, match="attention"):
        attention_bias(JointFlow(net, CODEC), "builtin:shapes")
