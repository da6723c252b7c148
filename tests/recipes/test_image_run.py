import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import manta
from manta.cli import main
from manta.cli.writing import family_of
from manta.config import from_dict
from manta.errors import CheckpointError, ConfigError, DataError, ModelError, UsageError
from manta.hub import load, load_writer, model_config
from manta.recipes import TrainingRun
from manta.recipes.image_recipe import IMAGE_SIZES, ImageRecipe, portable_images, resolve_images
from manta.recipes.run import Note
from manta.training import Progress

TINY = {
    "data": "builtin:shapes",
    "num_examples": 40,
    "batch_size": 4,
    "num_steps": 6,
    "checkpoint_minutes": 0.0,
    "model": {"net": {"kind": "dic", "width": 8, "depths": [1, 1, 1, 1, 1]}},
    "train": {"precision": "float32"},
}


def recipe(**changes):
    return from_dict(ImageRecipe, {**TINY, **changes})


def finish(run):
    return [event for event in run.events() if isinstance(event, Progress)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("images") / "run"
    run = TrainingRun(recipe(model={**TINY["model"], "bits": 2}), place)
    assert [event.step for event in finish(run)] == list(range(1, 7))
    return place


def test_a_run_leaves_a_model_that_draws(trained):
    flow = load(trained)
    images = flow.draw("one circle", num_samples=3, num_steps=2)
    assert images.shape == (3, 24, 24, 3) and images.dtype == np.uint8
    config = model_config(trained)
    assert config["family"] == "image" and config["recipe"]["state"] == "image" and config["prompted"]
    card = (trained / "model" / "README.md").read_text()
    assert "40 images of 24 × 24 pixels" in card or "images of 24 × 24" in card
    assert "`two mixed`" in card and "undertrained" in card
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and rows[0]["images"] == 4 and {"velocity", "clean_error"} <= set(rows[0])
    assert list((trained / "samples").glob("step-*.png"))


def test_the_codes_of_a_model_are_stored_with_it(trained, tmp_path):
    flow = load(trained)
    assert flow.codes.shape == (len(flow.images.classes), 4) and float(flow.codes.sum()) >= 40
    shutil.copytree(trained / "model", tmp_path / "m")
    (tmp_path / "m" / "parts.safetensors").unlink()
    with pytest.raises(ModelError, match="codes"):
        load(tmp_path / "m")


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, stop):
    changes = {"mirror": True, "model": {**TINY["model"], "bits": 2}}
    whole = TrainingRun(recipe(**changes), tmp_path / "whole")
    finish(whole)
    run = TrainingRun(recipe(**changes), tmp_path / "cut")
    with closing(run.events()) as events:
        for event in events:
            if isinstance(event, Progress) and event.step == stop:
                break
    again = TrainingRun(None, tmp_path / "cut", resume=True)
    assert [event.step for event in finish(again)] == list(range(stop + 1, 7))
    for name in ("model.safetensors", "parts.safetensors", "images.json"):
        files = [tmp_path / place / "model" / name for place in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_images_that_have_changed_are_noticed(tmp_path):
    place = tmp_path / "data" / "a"
    place.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(generator.integers(0, 256, (12, 10, 3), np.uint8)).save(place / f"{i}.png")
    given = {"data": f"images:{tmp_path / 'data'}"}
    run = TrainingRun(recipe(**given), tmp_path / "run")
    with closing(run.events()) as events:
        for event in events:
            if isinstance(event, Progress) and event.step == 2:
                break
    (place / "0.png").write_bytes((place / "1.png").read_bytes())
    with pytest.raises(CheckpointError, match="changed"):
        finish(TrainingRun(None, tmp_path / "run", resume=True))


@pytest.mark.parametrize("kind", ["udit", "dit"])
def test_every_net_trains_on_an_archive_of_grey_images(tmp_path, kind):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", images=generator.integers(0, 256, (40, 9, 7), np.uint8), labels=np.arange(40) % 3)
    net = {"kind": kind, "width": 8, "heads": 2, **({"depth": 1} if kind == "dit" else {"depths": [1] * 5})}
    flow = manta.train(
        tmp_path / "a.npz", tmp_path / "run", num_steps=4, batch_size=4, model={"net": net}, progress=False
    )
    assert flow.images.shape == (9, 7, 1) and flow.images.classes == ("0", "1", "2")
    assert flow.draw(1, num_steps=2).shape == (1, 9, 7, 1)


@pytest.mark.slow
def test_photographs_become_small_squares_unless_a_size_is_asked_for(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    for i in range(25):
        Image.fromarray(np.full((90, 120, 3), 9 * i, np.uint8)).save(place / f"{i}.png")
    net = {"net": {"kind": "dic", "width": 4, "depths": [1] * 5}}
    for changes, shape in (
        ({}, (64, 64, 3)),
        ({"height": 8, "channels": 1}, (8, 8, 1)),
        ({"width": 20, "height": 10}, (10, 20, 3)),
    ):
        given = {"data": f"images:{place}", "num_steps": 4, "model": net, **changes}
        out = tmp_path / f"run{shape[0]}"
        run = TrainingRun(recipe(**given), out)
        finish(run)
        assert run.model.images.shape == shape and not run.model.images.classes
        with pytest.raises(UsageError, match="knows no classes"):
            run.model.draw("a")


def test_nothing_is_left_of_a_run_whose_images_cannot_be_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no images to train on"):
        finish(TrainingRun(recipe(data=f"images:{tmp_path / 'data'}"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_dials_say_the_rest():
    for size, row in IMAGE_SIZES.items():
        found = resolve_images(from_dict(ImageRecipe, {"size": size, "num_steps": 10}))
        net: Any = found.model.net
        assert (net.width, net.depths) == row.dic and found.batch_size == row.batch_size
    assert resolve_images(ImageRecipe(time_budget="3m")).size == "nano"
    assert resolve_images(ImageRecipe()).time_budget == "30m"
    kept = resolve_images(recipe(train={"learning_rate": 0.1}, size="base"))
    assert kept.train.learning_rate == 0.1 and kept.batch_size == 4 and kept.model.net.width == 8


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"height": 2}, "height"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_examples": 0}, "num_examples"),
        ({"train": {"rounds": 2}}, "rounds"),
        ({"time_budget": "3m"}, "not both"),
        ({"channels": 2}, "channels"),
        ({"objective": {"class_dropout": 2.0}}, "class_dropout"),
        ({"state": "text"}, "state"),
        ({"vocab_size": 512}, "vocab_size"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        recipe(**changes)


def test_the_command_line_trains_resumes_and_draws(tmp_path, capsys):
    out = tmp_path / "run"
    given = ["num_examples=40", "batch_size=4", "model.net.width=8", "model.net.depths=1,1,1,1,1"]
    assert main(["train", "builtin:shapes", *given, "--num-steps", "5", "--out", str(out), "--net", "dic"]) == 0
    told = capsys.readouterr().err
    assert "images/s" in told and "net dic" in told and "--out grid.png" in told
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert "finished" in capsys.readouterr().err
    grid, folder = tmp_path / "grid.png", tmp_path / "many"
    draw = ["generate", str(out), "--num-steps", "2", "--seed", "5"]
    assert main([*draw, "--class", "one circle", "--class", "3", "--num-samples", "2", "--out", str(grid)]) == 0
    image = Image.open(grid)
    assert image.info["manta:seed"] == "5" and image.info["manta:class"] == "one circle,3" and image.width > 100
    assert image.info["manta:model"] == "run" and image.info["manta:steps"] == "2"
    assert main([*draw, "--num-samples", "3", "--out", str(folder), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["seed"] for row in rows] == [5, 6, 7] and all(Path(row["file"]).is_file() for row in rows)
    single = np.asarray(Image.open(rows[0]["file"]))
    assert np.array_equal(single, load(out).draw(seed=5, num_steps=2)[0])
    edited = tmp_path / "edited.png"
    assert main([*draw, "--edit", rows[0]["file"], "--strength", "0.1", "--out", str(edited)]) == 0


@pytest.mark.parametrize(
    "command, words",
    [
        ("generate {run}", "--out grid.png"),
        ("generate {run} --out {tmp}/a.jpg", "no .png file"),
        ("generate {run} --out {tmp}/full", "not a new or empty folder"),
        ("generate {run} --out {tmp}/full/x.png", "already"),
        ("generate {run} --out {tmp}/a.png --class hexagon", "no class 'hexagon'"),
        ("generate {run} --out {tmp}/a.png --num-samples 0", "at least 1"),
        ("generate {run} --out {tmp}/a.png --num-samples 5000", "too many"),
        ("generate {run} --out {tmp}/a.png --prompt x", "no option '--prompt'"),
        ("generate {run} --out {tmp}/a.png --strength 0.2", "--edit"),
        ("generate {run} --out {tmp}/new --columns 2", "--columns is for a grid"),
        ("generate {run} --out {tmp}/r --guidance-scale 2", "name a class"),
        ("generate {run} --out {tmp}/r --seed -1", "seed"),
        ("generate {run} --out {tmp}/a.png --edit {tmp}/none.png", "missing"),
        ("evaluate {run} --data builtin:weather", "no images at"),
        ("compare {run} --data builtin:weather --out {tmp}/c", "a model of images"),
        ("train builtin:shapes --out {tmp}/r --family ar", "--family is for models of texts"),
        ("train builtin:weather --out {tmp}/r --net dic", "--net is for models of images"),
        ("train images:{tmp}/none --out {tmp}/r --num-steps 4", "no images at"),
        ("train builtin:shapes --out {tmp}/r --num-steps 4 max_text=3", "unknown key 'max_text'"),
    ],
)
def test_wrong_commands_are_refused_in_a_line(trained, tmp_path, capsys, command, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.png").write_bytes(b"mine")
    assert main(command.format(run=trained, tmp=tmp_path).split()) in (1, 2)
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told
    assert (tmp_path / "full" / "x.png").read_bytes() == b"mine" and not (tmp_path / "r").exists()


def test_a_prompt_is_no_model_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run1")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    for argv, family in (
        (["model", "--prompt", "run1"], None),
        (["model", "--prompt", "word " * 600], None),
        (["--prompt", "x" * 300], None),
        (["bad"], None),
        (["run1"], "image"),
        (["--json", "run1"], "image"),
        (["--num-steps", "4", "run1"], "image"),
        (["--num-steps=4", "run1"], "image"),
    ):
        assert family_of(argv) == family, argv


def test_a_run_that_has_not_finished_is_known_by_its_recipe(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    assert main(["generate", str(tmp_path / "run"), "--out", str(tmp_path / "a.png")]) == 1
    assert "has not finished" in capsys.readouterr().err


def test_a_recipe_of_another_state_cannot_go_on(trained, tmp_path, capsys):
    (tmp_path / "r.toml").write_text('data = "builtin:weather"\nnum_steps = 6\n')
    assert main(["train", str(tmp_path / "r.toml"), "--out", str(trained), "--resume"]) == 2
    assert "another state" in capsys.readouterr().err
    (tmp_path / "i.toml").write_text('data = "builtin:shapes"\nnum_steps = 6\n')  # the data say what it is
    assert main(["train", str(tmp_path / "i.toml"), "--out", str(tmp_path / "new"), "num_examples=0"]) != 0
    assert "num_examples" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "i.toml")]) == 0


def test_a_refused_run_keeps_its_packed_images(tmp_path):
    place = tmp_path / "data" / "a"
    place.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(generator.integers(0, 256, (12, 10, 3), np.uint8)).save(place / f"{i}.png")
    run = TrainingRun(recipe(data=f"images:{tmp_path / 'data'}"), tmp_path / "run")
    with closing(run.events()) as events:
        next(event for event in events if isinstance(event, Progress))
    kept = (tmp_path / "run" / "corpus" / "pixels.bin").read_bytes()
    (place / "3.png").unlink()
    with pytest.raises(CheckpointError, match="source of this run has changed"):
        finish(TrainingRun(None, tmp_path / "run", resume=True))
    assert (tmp_path / "run" / "corpus" / "pixels.bin").read_bytes() == kept


@pytest.mark.parametrize(
    "name, left",
    [("images:/home/x:y/photos", "images:photos"), ("/a:b/c.npz", "c.npz"), ("builtin:shapes", "builtin:shapes")],
)
def test_a_model_carries_no_folder_of_its_data_away(name, left):
    assert portable_images(ImageRecipe(data=name, num_steps=4)).data == left


def test_verbs_of_texts_say_that_it_is_a_model_of_images(trained):
    with pytest.raises(ModelError, match="a model of images"):
        load_writer(trained)


def test_damaged_folders_are_refused(trained, tmp_path):
    for name, change in {
        "images.json": lambda text: text.replace('"height": 24', '"height": 25'),
        "config.json": lambda text: text.replace('"width": 8', '"width": 12'),
    }.items():
        place = tmp_path / name
        shutil.copytree(trained / "model", place)
        changed = change((place / name).read_text())
        (place / name).write_text(changed)
        with pytest.raises(ModelError):
            load(place)


def test_nothing_is_drawn_from_the_global_generator(trained, no_global_draws):
    flow = load(trained)
    with no_global_draws():
        flow.draw(2, num_samples=2, num_steps=3, solver="renoise")
    assert torch.is_grad_enabled()


def test_a_run_in_latents_trains_the_space_first_and_resumes_bit_for_bit(tmp_path):
    space = {"kind": "latent", "width": 8, "factor": 4}
    changes = {"model": {**TINY["model"], "space": space, "bits": 2}, "num_steps": 12, "space_share": 0.5}
    whole = TrainingRun(recipe(**changes), tmp_path / "whole")
    notes = [event.text for event in whole.events() if isinstance(event, Note)]
    assert whole.plan == {"space": 6, "flow": 6}
    assert any("come back from their latents with" in note for note in notes)
    log = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"reconstruction", "rate", "beta"} <= set(log[0]) and "velocity" in log[-1]
    for stop in (3, 9):
        run = TrainingRun(recipe(**changes), tmp_path / f"cut{stop}")
        with closing(run.events()) as events:
            for event in events:
                if isinstance(event, Progress) and event.step == stop % 6 and (stop < 6 or event.stage == "flow"):
                    break
        again = TrainingRun(None, tmp_path / f"cut{stop}", resume=True)
        finish(again)
        ours, theirs = whole.model.model.state_dict(), again.model.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    flow = load(tmp_path / "whole")
    images = flow.draw(num_samples=3, num_steps=2)
    assert (
        images.shape == (3, *flow.codec.shape)
        and "come back from latents" in (tmp_path / "whole" / "model" / "README.md").read_text()
    )
    changed = flow.draw(num_samples=1, num_steps=2, edit=images[0], strength=1e-6)
    back = flow.given_back(images[:1])
    assert np.abs(changed.astype(int) - back).max() <= 2, "hardly any noise: as its latents give it back"
