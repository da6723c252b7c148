"""Restorers by hand: a slow reference of the tiles, the loss, and what is refused."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manta.errors import ConfigError, ModelError, UsageError
from manta.families import restorer
from manta.families.instructions import TASKS
from manta.families.phrases import FEATURES
from manta.families.restorer import (
    FaultCodec,
    Restoration,
    Restorer,
    RestorerConfig,
    RestorerModel,
    _decibels,
    _starts,
    _tile,
    _window,
    borders,
)
from manta.image import from_pixels
from manta.image.photos import PhotoBatch
from manta.nets.grid import DicConfig
from manta.runtime import make_generator

SIDE = 16
PHOTO = np.random.default_rng(0).integers(0, 256, (37, 23, 3), np.uint8)


def model(**changes: Any) -> RestorerModel:
    torch.manual_seed(0)
    net = RestorerModel(RestorerConfig(tile=SIDE, net=DicConfig(width=8, depths=(1, 1, 1, 1, 1)), **changes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


class Slanted(nn.Module):
    """Adds to a tile what its own middle pixel and each pixel's place in the tile say, times a number."""

    def __init__(self, much: float) -> None:
        super().__init__()
        self.much, self.sizes = much, []

    def forward(self, state: Tensor, t: Tensor, told: Any) -> Tensor:
        assert t.tolist() == [1.0] * len(state) and told.label is None and told.code is None
        self.sizes.append(len(state))
        place = torch.arange(float(state.shape[1]))[None, :, None] / state.shape[1]
        middle = state[:, state.shape[1] // 2, 0]
        return (self.much * (place + middle[:, None, None])).expand(state.shape)


def scripted(*much: float) -> Restorer:
    found = Restorer(model(), torch.zeros(5, FEATURES + 1))
    found._merged = {task: Slanted(each) for task, each in enumerate(much)}
    return found


def reference(photo: Any, much: float) -> Any:
    """Every pixel a mean over the tiles that show it, by how near to their middle it is."""
    height, width = photo.shape[:2]

    def starts(length: int) -> list[int]:
        found = [0]
        while found[-1] + SIDE < length:
            found.append(min(found[-1] + SIDE // 2, length - SIDE))
        return found

    total, shares = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for top in starts(height):
        for left in starts(width):
            tile = np.zeros((SIDE, SIDE, 3))
            for y in range(SIDE):
                for x in range(SIDE):
                    down = top + y if top + y < height else 2 * height - 1 - top - y
                    right = left + x if left + x < width else 2 * width - 1 - left - x
                    tile[y, x] = photo[down, right] / 127.5 - 1
            middle = tile.reshape(-1, 3)[SIDE * SIDE // 2, 0]
            for y in range(min(SIDE, height - top)):
                for x in range(min(SIDE, width - left)):
                    weight = min(y + 1, SIDE - y) * min(x + 1, SIDE - x)
                    added = much * ((y * SIDE + x) / SIDE**2 + middle)
                    total[top + y, left + x] += weight * (tile[y, x] + added)
                    shares[top + y, left + x] += weight
    return ((total / shares).clip(-1, 1) + 1) * 127.5


@pytest.mark.parametrize("size", [(37, 23), (9, 40), (16, 16), (24, 11), (16, 33)])
def test_tiles_are_blended_as_the_slow_reference_says(size, monkeypatch):
    monkeypatch.setattr(restorer, "BATCH", 2)
    photo = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    found = scripted(0.3).restore(photo, task="noise")
    assert np.abs(found - reference(photo, 0.3)).max() <= 0.51, "rounding alone"


def test_who_waits_is_told_of_every_batch_of_tiles(monkeypatch):
    monkeypatch.setattr(restorer, "BATCH", 2)
    told: list[tuple[int, int]] = []
    photo = np.zeros((24, 40, 3), np.uint8)  # two rows of four tiles
    working = scripted(0.1, 0.2)
    working.restore(photo, task=["noise", "blur"], tell=lambda done, total: told.append((done, total)))
    assert told == [(done, 16) for done in range(2, 17, 2)]
    assert cast(Slanted, working._merged[0]).sizes == [2, 2, 2, 2]


def test_faults_go_one_after_the_other_and_grey_stays_grey():
    working = scripted(0.2, -0.3, 0.1, 0.4, -0.1)
    once = working.restore(PHOTO, task="haze")
    assert np.abs(once - reference(PHOTO, 0.4)).max() <= 0.51
    assert np.array_equal(working.restore(once, task="blur"), working.restore(PHOTO, task=["haze", "blur"]))
    grey = PHOTO[..., :1]
    expected = working.restore(grey.repeat(3, 2), task="snow").mean(2, keepdims=True)
    found = working.restore(grey, task="snow")
    assert found.shape == grey.shape and found.dtype == np.uint8 and np.abs(found - expected).max() <= 0.5


def test_words_choose_the_fault_and_what_they_leave_open_is_refused():
    working = scripted(0.2, -0.3, 0.1, 0.4, -0.1)
    working._router = torch.zeros(5, FEATURES + 1)
    working._router[:, -1] = torch.tensor([-3.0, 3.0, -3.0, -3.0, -3.0])
    blur = working.restore(PHOTO, task="blur")
    assert np.array_equal(working.restore(PHOTO, "anything"), blur)
    assert np.array_equal(working.restore(PHOTO, ["anything"]), blur)
    assert np.array_equal(
        working.restore(PHOTO, "anything", task="rain"), working.restore(PHOTO, task=["rain", "blur"])
    )
    working._router[:, -1] = -3.0
    wrongs: tuple[dict[str, Any], ...] = (
        {"instruction": "anything"},
        {"task": "dust"},
        {"task": ["noise", "dust"]},
        {},
    )
    for wrong in wrongs:
        with pytest.raises(UsageError):
            working.restore(PHOTO, **wrong)
    for bad in (PHOTO[:0], PHOTO[..., :2], PHOTO[..., :0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(UsageError, match="photograph"):
            working.restore(bad, task="rain")
    only = Restorer(model(only="rain"), working._router)
    assert only.faults == ("rain",) and working.faults == TASKS
    with pytest.raises(UsageError, match="takes out rain"):
        only.restore(PHOTO, task="noise")
    assert only.restore(PHOTO, task="rain").shape == PHOTO.shape


def test_a_photograph_goes_through_the_net_of_its_fault():
    net = model()
    working = Restorer(net, torch.zeros(5, FEATURES + 1))
    photo = PHOTO[:SIDE, :SIDE]
    for task, name in enumerate(TASKS):
        with torch.no_grad():
            clean = net(from_pixels(torch.from_numpy(photo.copy()))[None], torch.tensor([task]))[0]
        expected = ((clean.clamp(-1, 1) + 1) * 127.5).view(SIDE, SIDE, 3).numpy()
        assert np.abs(working.restore(photo, task=name) - expected).max() <= 1
    assert working._net_of(3) is working._net_of(3) and not working._net_of(3).training


def test_a_tile_is_its_input_and_what_the_net_says_beside():
    net, spoiled = model(), torch.rand(3, SIDE * SIDE, 3) * 2 - 1
    tasks = torch.tensor([0, 4, 2])
    asked = net(spoiled, tasks)
    for row, task in enumerate(tasks.tolist()):
        torch.testing.assert_close(
            asked[row], net(spoiled[row : row + 1], torch.tensor([task]))[0], rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(net(spoiled, torch.tensor([1, 1, 1])), asked, atol=1e-3)
    with torch.no_grad():
        for parameter in cast(nn.Module, net.net.head).parameters():
            parameter.zero_()
    assert torch.equal(net(spoiled, tasks), spoiled)


class Fixed(RestorerModel):
    """Answers with the spoiled tile, a fault's number of hundredths brighter."""

    def forward(self, spoiled: Tensor, task: Tensor) -> Tensor:
        return spoiled + 0.01 * task[:, None, None]


def test_the_loss_is_the_mean_error_softened_at_zero_and_told_by_fault():
    net = model()
    net.__class__ = Fixed
    clean = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (4, SIDE, SIDE, 3), np.uint8))
    task = torch.tensor([0, 3, 3, 4])
    loss = Restoration()(net, PhotoBatch(clean=clean, spoiled=clean + 4, task=task), make_generator(0))
    errors = 4 / 127.5 + 0.01 * task
    assert loss.total == pytest.approx(float((errors**2 + 1e-6).sqrt().mean()), rel=1e-4)
    assert set(loss.parts) == {"psnr", "noise", "haze", "snow"} and loss.count == 4
    for name, rows in {"psnr": [0, 1, 2, 3], "noise": [0], "haze": [1, 2], "snow": [3]}.items():
        expected = 20 * np.log10(2 / float(errors[rows].square().mean().sqrt()))
        assert float(loss.parts[name]) == pytest.approx(expected, abs=1e-3)
    assert [float(_decibels(torch.tensor(each))) for each in (4.0, 0.04, 0.0)] == pytest.approx([0, 20, 126.0206])


def test_where_tiles_are_what_counts_in_them_and_what_is_beyond_the_edge():
    assert _starts(16, 16) == _starts(3, 16) == [0] and _starts(17, 16) == [0, 1] and _starts(24, 16) == [0, 8]
    assert _starts(25, 16) == [0, 8, 9]
    line = [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert _window(8)[..., 0].tolist() == [[a * b for b in line] for a in line]
    photo = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tile = _tile(photo, 0, 0, 4)[..., 0]
    assert tile.tolist() == [[0, 3, 3, 0], [6, 9, 9, 6], [6, 9, 9, 6], [0, 3, 3, 0]]
    assert _tile(PHOTO, 2, 3, 8).tolist() == PHOTO[2:10, 3:11].tolist()


def test_shapes_files_and_what_is_stored():
    for tile in (16, 24, 512):
        assert RestorerConfig(tile=tile).tile == tile
    for tile in (8, 12, 20, 520, 0):
        with pytest.raises(ConfigError):
            RestorerConfig(tile=tile)
    net, router = model(), torch.randn(5, FEATURES + 1)
    read = Restorer.stored(net, FaultCodec(), {}, {"router": router.double()})
    assert torch.equal(read.router, router) and torch.equal(read.parts()["router"], router)
    for wrong in ({}, {"router": router[:4]}, {"router": router[:, 1:]}):
        with pytest.raises(ConfigError):
            Restorer.stored(net, FaultCodec(), {}, wrong)
    assert Restorer(net).codec == FaultCodec() and Restorer.check_codec(net.config, FaultCodec()) is None


def test_the_names_of_the_faults_are_kept_in_a_file(tmp_path):
    codec, file = FaultCodec(), tmp_path / "faults.json"
    codec.save(file)
    assert json.loads(file.read_text()) == {"faults": list(TASKS)} and FaultCodec.load(file) == codec
    assert len(codec.fingerprint()) == 32 and codec.fingerprint() == FaultCodec.load(file).fingerprint()
    assert codec.fingerprint() != FaultCodec(names=TASKS[::-1]).fingerprint()
    for damaged in ("[]", '{"faults": ["noise"]}', "{}", '{"faults": {}}'):
        file.write_text(damaged)
        with pytest.raises(ModelError):
            FaultCodec.load(file)


def test_a_router_that_is_not_given_is_learned_once(monkeypatch):
    calls = []
    monkeypatch.setattr(restorer, "learned_router", lambda: calls.append(1) or torch.ones(5, FEATURES + 1))
    working = Restorer(model())
    assert torch.equal(working.router, working.parts()["router"]) and calls == [1]


def test_borders_are_where_tiles_begin_and_where_they_have_ended():
    assert _starts(60, 16) == [0, 8, 16, 24, 32, 40, 44]
    assert borders(60, 16) == [8, 16, 24, 32, 40, 44, 48, 56]
    assert borders(16, 16) == [] and borders(9, 16) == []
    assert borders(17, 16) == [1, 16]
