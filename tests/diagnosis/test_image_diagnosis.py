import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manta.cli import main
from manta.config import from_dict
from manta.diagnosis.images import MEANING, TIMES, diagnose_images
from manta.families.image_flow import ImageFlow
from manta.families.image_model import ImageConfig, ImageModel
from manta.image import ImageCodec
from manta.nets.grid import DicConfig
from manta.recipes import TrainingRun
from manta.recipes.image_recipe import ImageRecipe
from manta.types import Estimate

CODEC = ImageCodec(height=6, width=8, channels=1, classes=("a", "b"))


def flow(act=None, by=0.1) -> Any:
    torch.manual_seed(0)
    net = DicConfig(width=4, depths=(1, 1, 1, 1, 1))
    model = ImageModel(ImageConfig(height=6, width=8, channels=1, classes=2, net=net))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    found = ImageFlow(model, CODEC)
    if act is not None:
        found.model.act = act  # pyright: ignore[reportAttributeAccessIssue]
    return found


def target(state, t, *, cond, self_cond=None):
    """All images go straight to one of two: black and white, by their class."""
    return Estimate(0 * state + (2.0 * cond.label[:, None, None] - 1).to(state))


def stay(state, t, *, cond, self_cond=None):
    """No image moves, and nothing is corrected."""
    return Estimate(state + 0.0)


def means(found):
    return {name: figure[0] for name, figure in found.figures.items()}


def test_a_field_that_leads_straight_to_the_image_has_nothing_to_be_blamed_for():
    found = means(diagnose_images(flow(target), num=4))
    for name in ("bend", "crookedness", "vorticity_share", "adjoint_start", "recovery"):
        assert found[name] == pytest.approx(0, abs=1e-4), name
    assert found["curvature"] == pytest.approx(0, abs=0.05)
    assert found["peak_strain"] == pytest.approx(-1 / (1 - TIMES[0]), rel=1e-3)


def test_a_field_that_corrects_nothing_keeps_a_push_whole():
    found = means(diagnose_images(flow(stay), num=4))
    assert found["recovery"] == pytest.approx(1, abs=1e-4) and found["adjoint_start"] == pytest.approx(1, abs=1e-4)
    assert found["path_length"] == pytest.approx(0, abs=1e-5) and found["peak_strain"] == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
def test_a_net_is_measured_and_its_way_is_shown():
    found = diagnose_images(flow(), num=3, num_steps=5)
    assert set(found.figures) == set(MEANING)
    assert all(
        low <= mean <= high and np.isfinite([low, mean, high]).all() for mean, low, high in found.figures.values()
    )
    assert found.trajectories.shape == (3, 5, 6, 8, 1)
    assert [t for t, _ in found.profiles["strain"]] == list(TIMES) and len(found.profiles["adjoint"]) == 6
    again = diagnose_images(flow(), num=3, num_steps=5)
    assert again.figures == found.figures


@pytest.mark.slow
def test_the_command_line_writes_a_report_and_a_picture(tmp_path, capsys):
    given = {"num_examples": 30, "batch_size": 4, "num_steps": 4, "train": {"precision": "float32"}}
    given["model"] = {"net": {"kind": "dic", "width": 4, "depths": [1] * 5}}
    for _ in TrainingRun(from_dict(ImageRecipe, given), tmp_path / "run").events():
        pass
    capsys.readouterr()
    out = tmp_path / "report"
    command = ["diagnose", str(tmp_path / "run"), "--num", "2", "--num-steps", "3", "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in MEANING)
    report = json.loads((out / "diagnose.json").read_text())
    assert report["report"] == "manta diagnose" and len(report["models"]) == 1
    assert Image.open(out / "trajectories.png").width > 3 * 24
    assert main(command) == 0  # its own report is replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "trajectories.png").write_bytes(b"mine")
    assert main([*command[:-1], str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "trajectories.png").read_bytes() == b"mine"
    assert main(["diagnose", str(tmp_path / "run"), "--num", "1"]) == 2
