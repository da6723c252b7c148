"""Captions and images in one state: training, drawing, describing, completing."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, DataError, UsageError
from manta.families.joint_flow import JointFlow, JointRequest, joint_matching, joint_shaped
from manta.families.joint_model import Joint, JointConfig, JointModel, JointObjectiveConfig
from manta.hub import load
from manta.image.captioned import NOTHING, CaptionedBatch, CaptionedCodec, words_of
from manta.operators.positions import PositionsConfig
from manta.recipes import TrainingRun
from manta.recipes.joint_recipe import JointRecipe
from manta.runtime import make_generator
from manta.training import Progress

CODEC = CaptionedCodec(height=8, width=12, channels=3, places=6, words=(",", "a", "blue", "circle", "red", "square"))


def model(**changes: Any) -> JointModel:
    torch.manual_seed(0)
    shape = {"dim": 32, "depth": 2, "heads": 2, "patch": 4, "word_channels": 6, **changes}
    net = JointModel(joint_shaped(JointConfig(**shape), CODEC))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


def pairs(count=6) -> CaptionedBatch:
    generator = np.random.default_rng(0)
    words = np.full((count, 6), NOTHING)
    words[:, :3] = generator.integers(2, 8, (count, 3))
    pixels = generator.integers(0, 256, (count, 8, 12, 3), np.uint8)
    return CaptionedBatch(pixels=torch.from_numpy(pixels), words=torch.from_numpy(words))


def test_captions_become_numbers_and_come_back():
    assert words_of("A red circle, and it's “blue”!") == [
        "a",
        "red",
        "circle",
        ",",
        "and",
        "it's",
        "“",
        "blue",
        "”",
        "!",
    ]
    numbers = CODEC.numbers("A red circle, blue")
    assert numbers == [3, 6, 5, 2, 4, 0] and CODEC.caption(numbers) == "a red circle, blue"
    assert CODEC.numbers("a ___ circle", blanks=True) == [3, -1, 5, 0, 0, 0]
    assert CODEC.numbers("a red ___", blanks=True) == [3, 6, -1, -1, -1, -1], "a blank at the end may be any length"
    for wrong in ("", "a green circle", "a a a a a a", "a ___"):
        with pytest.raises(UsageError):
            CODEC.numbers(wrong)


def test_patches_are_an_image_again():
    net = model()
    image = torch.randn(2, 8 * 12, 3)
    assert net.patches_of(image).shape == (2, 6, 48)
    assert torch.equal(net.image_of(net.patches_of(image)), image)
    odd = JointModel(joint_shaped(JointConfig(dim=32, depth=1, heads=2, patch=5), CODEC))
    assert torch.equal(odd.image_of(odd.patches_of(image)), image)


@torch.no_grad()
def test_words_and_patches_see_each_other_and_places_matter_by_block():
    net = model()
    state = Joint(torch.randn(1, 6, 6), torch.randn(1, 6, 48))
    times = Joint(torch.full((1, 6), 0.5), torch.full((1, 6), 0.5))
    logits, velocity = net(state, times)
    assert logits.shape == (1, 6, CODEC.vocab_size) and velocity.shape == (1, 6, 48)
    moved = Joint(state.words, state.patches + 1)
    assert not torch.allclose(net(moved, times)[0], logits, atol=1e-3)
    other = Joint(state.words + 1, state.patches)
    assert not torch.allclose(net(other, times)[1], velocity, atol=1e-3)
    found = []
    for positions in (
        PositionsConfig(kind="axial"),
        PositionsConfig(kind="mrope"),
        PositionsConfig(kind="circle"),
        PositionsConfig(kind="circle", layers="alternating"),
        PositionsConfig(kind="unordered"),
    ):
        found.append(model(positions=positions)(state, times)[1])
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(found) for b in found[:i])


def test_what_is_given_costs_nothing_and_each_share_comes():
    net, measured = model(), {}
    for shares, zero in (({"drawing": 1.0}, "nats"), ({"describing": 1.0}, "velocity")):
        config = JointObjectiveConfig(**{"drawing": 0.0, "describing": 0.0, "completing": 0.0, **shares})
        loss = joint_matching(net.config, config, measured)(net, pairs(), make_generator(0))
        assert loss.parts[zero] == 0 and loss.parts[{"nats": "velocity", "velocity": "nats"}[zero]] > 0
    matching = joint_matching(net.config, JointObjectiveConfig(), measured)
    given = matching._given(pairs(400).words, torch.zeros(400, 6, 48), make_generator(1))
    all_words, all_patches = given.words.all(1), given.patches.all(1)
    assert all_words.float().mean() == pytest.approx(0.4, abs=0.1)
    assert all_patches.float().mean() == pytest.approx(0.2, abs=0.1)
    some = given.words.any(1) & ~all_words
    assert 0.05 < some.float().mean() < 0.25
    first, again = (matching(net, pairs(), make_generator(2)).total for _ in range(2))
    assert torch.equal(first, again)


def test_a_net_learns_which_word_goes_with_which_image():
    torch.manual_seed(0)
    net = JointModel(joint_shaped(JointConfig(dim=48, depth=2, heads=2, patch=4), CODEC))
    words = torch.tensor([[3, 6, 5, 0, 0, 0], [3, 4, 5, 0, 0, 0]])
    colours = torch.tensor([[200, 30, 30], [30, 30, 200]], dtype=torch.uint8)
    pixels = colours[:, None, None].expand(-1, 8, 12, -1).contiguous()
    objective = joint_matching(net.config, JointObjectiveConfig(), {})
    optimizer, generator = torch.optim.AdamW(net.parameters(), 3e-3), make_generator(0)
    for _ in range(700):
        rows = torch.randint(2, (16,), generator=generator)
        loss = objective(net, CaptionedBatch(pixels=pixels[rows], words=words[rows]), generator)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    flow = JointFlow(net, CODEC)
    assert flow.describe(pixels.numpy()) == ["a red circle", "a blue circle"]
    for caption, colour in (("a red circle", colours[0]), ("a blue circle", colours[1])):
        drawn = flow.draw(caption, num_samples=3, num_steps=16).reshape(-1, 3).mean(0)
        assert np.abs(drawn - colour.numpy()).max() < 40
    half = pixels[0].numpy().copy()
    hidden = np.zeros((8, 12), bool)
    hidden[:, 4:] = True
    half[hidden] = 0
    (made,) = flow.generate([JointRequest(image=half, hidden=hidden, caption="a ___ circle")])
    assert made.caption == "a red circle"
    assert np.array_equal(made.pixels[:, :4], pixels[0].numpy()[:, :4]), "what is given stays"
    assert np.abs(made.pixels[:, 4:].reshape(-1, 3).mean(0) - colours[0].numpy()).max() < 40
    both = list(flow.generate([JointRequest(seed=seed) for seed in range(8)]))
    whole = [made for made in both if made.caption in ("a red circle", "a blue circle")]
    assert len(whole) >= 5, [made.caption for made in both]
    shown = [made.pixels.reshape(-1, 3).mean(0) for made in whole]
    agree = [(colour[0] > colour[2]) == ("red" in made.caption) for colour, made in zip(shown, whole, strict=True)]
    assert sum(agree) >= len(agree) - 1, "image and caption are made for each other"


def test_a_row_is_that_of_its_seed_in_any_batch_up_to_rounding():
    flow = JointFlow(model(), CODEC)
    requests = [JointRequest(caption="a red circle" if i % 2 else None, seed=i) for i in range(5)]
    together = list(flow.generate(requests, num_steps=3))
    alone = [next(iter(flow.generate([request], num_steps=3))) for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one.caption == other.caption and np.abs(one.pixels.astype(int) - other.pixels).max() <= 1


TINY: dict[str, Any] = {
    "num_examples": 64,
    "batch_size": 8,
    "num_steps": 6,
    "model": {"dim": 32, "depth": 2, "heads": 2},
    "train": {"precision": "float32"},
}


def finished(run):
    return [event for event in run.events() if isinstance(event, Progress)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("joint") / "run"
    finished(TrainingRun(from_dict(JointRecipe, TINY), place))
    return place


def test_an_interrupted_run_goes_on_bit_for_bit(trained, tmp_path):
    run = TrainingRun(from_dict(JointRecipe, TINY), tmp_path / "cut")
    with closing(run.events()) as events:
        for event in events:
            if isinstance(event, Progress) and event.step == 3:
                break
    finished(TrainingRun(None, tmp_path / "cut", resume=True))
    ours, theirs = load(trained).model.state_dict(), load(tmp_path / "cut").model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_verbs_train_draw_describe_and_measure(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["train", "builtin:shapes", "--family", "joint", "--out", str(out), "--num-steps", "4", "num_examples=40"]
    assert main([*argv, "batch_size=8", "model.dim=32", "model.depth=1", "model.heads=2"]) == 0
    assert "--describe photo.png" in capsys.readouterr().err
    grid = tmp_path / "grid.png"
    caption = "a red circle at the top left"
    assert (
        main(["generate", str(out), "--caption", caption, "--num-samples", "3", "--num-steps", "2", "--out", str(grid)])
        == 0
    )
    with Image.open(grid) as image:
        assert image.info["manta:steps"] == "2"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    capsys.readouterr()
    argv = ["generate", str(out), "--describe", str(tmp_path / "photo.png"), "--num-steps", "2", "--json"]
    assert main(argv) == 0
    assert '"caption"' in capsys.readouterr().out
    assert main(["evaluate", str(out), "--num", "6", "--num-steps", "2", "--describe-steps", "1"]) == 0
    told = capsys.readouterr().out
    assert "described" in told and "drawn" in told and "6 held-out images" in told
    assert "words at patches, block 0: turn " in told and "patches at words, block 0: turn " in told
    assert main(["doctor", str(out)]) == 0
    other = str(tmp_path / "other.png")
    for argv, words in (
        (["--caption", "a purple circle", "--out", other], "no word 'purple'"),
        (["--caption", caption], "--out grid.png"),
        (["--caption", caption, "--out", "x.jpg"], "no .png file"),
        (["--describe", str(tmp_path / "none.png")], "missing"),
        (["--describe", str(tmp_path / "photo.png"), "--out", other], "leave --out"),
        (["--describe", str(tmp_path / "photo.png"), "--caption", caption], "write ___"),
    ):
        assert main(["generate", str(out), *argv]) != 0
        assert words in capsys.readouterr().err
    assert main(["diagnose", str(out), "--out", str(tmp_path / "d")]) == 2


def test_data_without_captions_are_refused_and_nothing_is_left_to_block_the_next_try(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
    recipe = from_dict(JointRecipe, {**TINY, "data": str(tmp_path / "a.npz")})
    with pytest.raises(DataError, match=r"captions\.csv"):
        finished(TrainingRun(recipe, tmp_path / "run"))
    finished(TrainingRun(from_dict(JointRecipe, TINY), tmp_path / "run"))
    with pytest.raises(ConfigError):
        JointObjectiveConfig(drawing=0.8, describing=0.5)


def test_a_folder_with_captions_is_learned_from(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    rows = ["file,caption"]
    for i in range(40):
        colour = (220, 20, 20) if i % 2 else (20, 20, 220)
        Image.new("RGB", (20 + i, 16), colour).save(place / f"{i}.png")
        rows.append(f'{i}.png,"A {"red" if i % 2 else "blue"} square, number {i}."')
    (place / "captions.csv").write_text("\n".join(rows) + "\n")
    recipe = from_dict(JointRecipe, {**TINY, "data": f"images:{place}", "height": 16})
    run = TrainingRun(recipe, tmp_path / "run")
    finished(run)
    flow = load(tmp_path / "run")
    assert {"red", "blue", "square", ",", "."} <= set(flow.codec.words) and flow.codec.shape == (16, 16, 3)
    assert str(place) not in (tmp_path / "run" / "model" / "README.md").read_text()
    assert len(flow.describe(flow.draw("a red square", num_samples=2, num_steps=2), num_steps=1)) == 2


def test_what_is_hidden_of_an_image_is_drawn_and_the_rest_stays():
    flow, image = JointFlow(model(), CODEC), np.full((8, 12, 3), 90, np.uint8)
    hidden = np.zeros((8, 12), bool)
    hidden[:3, :3] = True  # a part of the first patch, all of which is drawn
    (drawn,) = flow.generate([JointRequest(caption="a red circle", image=image, hidden=hidden)], num_steps=3)
    assert np.array_equal(drawn.pixels[4:], image[4:]) and np.array_equal(drawn.pixels[:4, 4:], image[:4, 4:])
    assert not np.array_equal(drawn.pixels[:4, :4], image[:4, :4])


def test_a_word_may_have_one_channel():
    assert JointConfig(word_channels=1, patch=1).word_channels == 1
    wrongs: tuple[dict[str, Any], ...] = ({"word_channels": 0}, {"patch": 0})
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            JointConfig(**wrong)
