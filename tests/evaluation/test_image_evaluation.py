import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from manta.cli import main
from manta.config import from_dict
from manta.errors import DataError, UsageError
from manta.evaluation import images as evaluation
from manta.evaluation.image_features import trained_features
from manta.evaluation.images import ImageEvaluator, flow_error
from manta.families.image_flow import Drawn, DrawOptions, ImageFlow
from manta.families.image_model import ImageConfig, ImageModel
from manta.image import ImageCodec
from manta.image.shapes import CLASSES, examples
from manta.nets.grid import DicConfig
from manta.recipes import TrainingRun
from manta.recipes.image_recipe import ImageRecipe

CODEC = ImageCodec(height=24, width=24, channels=3, classes=CLASSES)


class Copies(ImageFlow):
    """Draws scenes of the class that is asked for, as they are drawn for the training split."""

    def __init__(self, wrong: bool = False, spread: float = 0.0) -> None:
        config = ImageConfig(
            height=24, width=24, channels=3, classes=11, net=DicConfig(width=4, depths=(1, 1, 1, 1, 1))
        )
        torch.manual_seed(0)
        super().__init__(ImageModel(config), CODEC)
        self.wrong, self.spread = wrong, spread

    def generate(self, requests, options, *, batch_size=64):
        pools: dict[int, list[np.ndarray]] = {}
        for example in examples("train", 1500):
            pools.setdefault(CLASSES.index(example.label or ""), []).append(example.pixels)
        generator = np.random.default_rng(0)
        for index, request in enumerate(requests):
            pool = pools[((request.label or 0) + self.wrong) % 11]
            noisy = pool[index % len(pool)] + self.spread * generator.standard_normal((24, 24, 3))
            yield Drawn(index=index, pixels=np.clip(noisy, 0, 255).astype(np.uint8), nfe=3)


@pytest.fixture(scope="module", autouse=True)
def _short():
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluation, "MOST_TRAIN", 1500)
    whole = trained_features
    patch.setattr(evaluation, "trained_features", lambda *a, **k: whole(*a, **{**k, "num_steps": 60}))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def evaluator():
    return ImageEvaluator("builtin:shapes", Copies(), num=200)


@pytest.mark.slow
def test_the_figures_tell_a_perfect_model_from_a_wrong_and_a_noisy_one(evaluator):
    perfect = evaluator.measure(Copies(), DrawOptions(num_steps=3))
    wrong = evaluator.measure(Copies(wrong=True), DrawOptions(num_steps=3))
    noisy = evaluator.measure(Copies(spread=60.0), DrawOptions(num_steps=3))
    assert perfect.figures["valid"] == perfect.figures["faithful"] == 1 and perfect.figures["nfe"] == 3
    assert wrong.figures["valid"] == 1 and wrong.figures["faithful"] == 0 and noisy.figures["valid"] == 0
    assert noisy.figures["frechet"] > 3 * perfect.figures["frechet"] > 0
    assert perfect.figures["precision"] > 0.7
    assert perfect.figures["class_accuracy"] > wrong.figures["class_accuracy"]
    low, high = perfect.intervals["valid"]
    assert low < 1 and high == 1
    assert perfect.figures["copies"] > 0.5 and noisy.figures["copies"] == 0  # it copies training images
    nearly = evaluator.measure(Copies(spread=0.6), DrawOptions(num_steps=3))
    assert nearly.figures["copies"] == perfect.figures["copies"] and 0 < perfect.corpus["copies"] < 0.5


def test_the_error_of_a_flow_is_that_of_its_velocity_and_the_same_each_time(evaluator):
    flow = Copies()
    first = flow_error(flow, evaluator.held_out, num=64)
    assert first == flow_error(flow, evaluator.held_out, num=64)
    clean = 2 * evaluator.held_out.pixels[:64].astype(float) / 255 - 1
    assert first == pytest.approx((clean**2).mean() + 1, rel=0.05)  # a fresh net says that nothing moves


def test_a_classifier_is_kept_and_refused_for_other_images(tmp_path, evaluator):
    train, held_out = evaluator.train, evaluator.held_out
    file, cpu = tmp_path / "c.safetensors", torch.device("cpu")
    given: dict[str, Any] = {"file": file, "num_steps": 20}
    first = trained_features(train, held_out, 11, cpu, key="a", **given)
    again = trained_features(train, held_out, 11, cpu, key="a", **given)
    assert torch.equal(first.of(held_out.pixels)[0], again.of(held_out.pixels)[0]) and first.accuracy == again.accuracy
    with pytest.raises(UsageError, match="no classifier of these images"):
        trained_features(train, held_out, 11, cpu, key="b", **given)
    file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="damaged"):
        trained_features(train, held_out, 11, cpu, key="a", **given)
    with pytest.raises(DataError, match="two classes"):
        trained_features(train, held_out, 1, cpu)


def test_images_of_classes_that_a_model_does_not_know_are_refused(tmp_path):
    flow = Copies()
    flow.images = replace(CODEC, classes=CLASSES[:-1])
    with pytest.raises(DataError, match="does not know"):
        ImageEvaluator("builtin:shapes", flow, num=100)
    with pytest.raises(DataError, match="least"):
        ImageEvaluator("builtin:shapes", Copies(), num=20)


def test_models_of_other_images_are_not_compared(evaluator):
    flow = Copies()
    flow.images = replace(CODEC, height=12)
    with pytest.raises(UsageError, match="cannot be compared"):
        evaluator.measure(flow, DrawOptions())


@pytest.mark.slow
def test_the_command_line_measures_a_model(tmp_path, capsys):
    given = {"num_examples": 150, "batch_size": 4, "num_steps": 4, "train": {"precision": "float32"}}
    given["model"] = {"net": {"kind": "dic", "width": 4, "depths": [1] * 5}}
    for _ in TrainingRun(from_dict(ImageRecipe, given), tmp_path / "run").events():
        pass
    capsys.readouterr()
    command = [
        "evaluate",
        str(tmp_path / "run"),
        "--num",
        "60",
        "--num-steps",
        "2,3",
        "--out",
        str(tmp_path / "e.json"),
    ]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "2 calls" in told and "frechet" in told and "flow_error" in told
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["report"] == "manta evaluate" and [row["figures"]["nfe"] for row in report["rows"]] == [2, 3]
    assert main(["evaluate", str(tmp_path / "run"), "--num", "0"]) == 2
