"""Imitation compares two nets on the same batch and draws, and leaves what was drawn and measured as the task does."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from manta.families import FAMILIES
from manta.families.batching import to_batch
from manta.families.imitation import WordImitation, watched
from manta.families.trained import StageShares, Teaching
from manta.operators import LinearConfig
from manta.runtime import make_generator

SHAPE: dict[str, Any] = {"vocab_size": 64, "dim": 16, "heads": 2, "depth": 3, "prompt_depth": 1}
SHAPE |= {"max_prompt": 8, "max_text": 16}
TEACHING = Teaching(shares=StageShares(policy=1.0, own=0.0))
BATCH = to_batch([[10, 11], [], [12]], [[20, 21, 22, 23], [24, 25], [30] * 9])
BLOCKS = (0, 2)


def nets(family: str) -> tuple[Any, Any, Any]:
    """What writes, a net with weights everywhere, and another of its shape."""
    writer = FAMILIES[family].load()
    torch.manual_seed(0)
    shape = writer.config_class(**SHAPE, absolute_places=family in ("masked", "aligned"))
    source, model = writer.net_class(shape), writer.net_class(shape)
    with torch.no_grad():
        for net in (source, model):
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return writer, source, model


def objective(writer, source, net, **weights: float) -> tuple[Any, WordImitation, dict[str, Any]]:
    measured: dict[str, Any] = {}
    task = writer.stages(net, TEACHING, measured)[0].objective
    return (
        task,
        WordImitation(task, source, writer.trunk_of, BLOCKS, **{"outputs": 1.0, "states": 1.0, **weights}),
        measured,
    )


@pytest.mark.parametrize("family", ["ar", "masked", "aligned", "manta"])
def test_a_net_that_is_its_source_pays_for_its_task_alone(family):
    writer, source, net = nets(family)
    net.load_state_dict(source.state_dict())
    if family == "manta":  # its scale would follow the states that it sees
        net.space.requires_grad_(False)
    _, imitation, _ = objective(writer, source, net)
    task, _, _ = objective(writer, source, net)  # with measurements of its own, which steer it
    found, net = imitation(copy.deepcopy(net), BATCH, make_generator(0)), copy.deepcopy(net)
    assert float(found.parts["outputs"]) == pytest.approx(0, abs=1e-6)
    assert float(found.parts["states"]) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(found.total, task(net, BATCH, make_generator(0)).total)


def test_words_and_states_by_hand():
    writer, source, net = nets("ar")
    task, imitation, _ = objective(writer, source, net, outputs=0.5, states=3.0)
    found = imitation(net, BATCH, make_generator(0))
    given, _, _ = net.shifted(BATCH)
    told, states = [], []
    for each in (source, net):
        memory = each.memory(BATCH.prompt, BATCH.prompt_lengths, torch.zeros_like(BATCH.tag))
        with watched(each.trunk, BLOCKS) as calls:
            told.append(each(given, memory).log_softmax(-1))
        states.append(calls[0].states)
        assert not each.trunk._forward_hooks and not each.trunk.blocks[0].exchanged._forward_hooks
    real = torch.arange(given.shape[1]) <= BATCH.text_lengths[:, None]
    outputs = (told[0].exp() * (told[0] - told[1])).sum(-1)[real].mean()
    errors = [F.mse_loss(b[real], a[real]) / a[real].square().mean() for a, b in zip(*states, strict=True)]
    torch.testing.assert_close(found.parts["outputs"], outputs.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.parts["states"], torch.stack(errors).mean().detach(), atol=1e-5, rtol=1e-4)
    expected = task(net, BATCH, make_generator(0)).total + 0.5 * outputs + 3.0 * torch.stack(errors).mean()
    torch.testing.assert_close(found.total, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["masked", "manta"])
def test_the_source_leaves_no_trace(family):
    """Draws and measurements are those of the task alone; only the net has a gradient."""
    writer, source, fresh = nets(family)
    source.requires_grad_(False)
    net, results = fresh, []
    for imitates in (False, True):
        net = copy.deepcopy(fresh)  # a space follows the states that it sees
        task, imitation, measured = objective(writer, source, net)
        generator = make_generator(5)
        loss = (imitation if imitates else task)(net, BATCH, generator)
        loss.total.backward()
        kept = {name: part.state_dict() for name, part in measured.items()}
        parts = {name: value for name, value in loss.parts.items() if name not in ("outputs", "states")}
        results.append((str(kept), generator.get_state(), parts))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2].keys() == results[1][2].keys()
    torch.testing.assert_close(dict(results[0][2]), dict(results[1][2]))
    assert all(parameter.grad is None for parameter in source.parameters())
    assert any(parameter.grad is not None for parameter in writer.trunk_of(net).parameters())


def test_padding_is_not_compared():
    writer, source, _ = nets("masked")
    torch.manual_seed(1)
    shape = writer.config_class(**SHAPE, absolute_places=True, operators=(LinearConfig(),))
    net = writer.net_class(shape)
    _, imitation, _ = objective(writer, source, net)
    wide = to_batch([[10, 11], [], [12]], [[20, 21, 22, 23], [24, 25], [30] * 16])
    assert wide.text.shape[1] >= BATCH.text.shape[1]
    with watched(net.trunk, BLOCKS) as calls:
        found = imitation(net, wide, make_generator(0))
    mask = calls[-1].mask
    assert mask is not None and not bool(mask.all())
    assert float(found.parts["outputs"]) > 0
