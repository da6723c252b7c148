"""Restorers from photographs to a clean file: runs, tiles, instructions, what stays as it is."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manta.cli import main
from manta.config import from_dict
from manta.errors import ConfigError, UsageError
from manta.evaluation.restoration import measure_restoration
from manta.families.restorer import Restorer, _starts
from manta.hub import load
from manta.image.keeping import open_photo
from manta.image.photos import PhotoCorpus, PhotoLoader, build_photos
from manta.image.sources import read_images
from manta.recipes import TrainingRun
from manta.recipes.restore_recipe import RestoreRecipe
from manta.training import Progress

NET = {"kind": "dic", "width": 8, "depths": [1, 1, 1, 1, 1]}


def photograph(seed, height=48, width=56):
    """Smooth colours with an edge."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 48
    planes = [np.sin(generator.uniform(1, 5) * x + generator.uniform(1, 5) * y + i) for i in range(3)]
    image = np.stack(planes, 2) * 80 + 128 + 40 * (x > generator.uniform(0.2, 0.8))[..., None]
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    for split, seeds in (("train", range(6)), ("test", range(10, 12))):
        (place / split).mkdir()
        for seed in seeds:
            Image.fromarray(photograph(seed)).save(place / split / f"{seed}.png")
    return place


def recipe(photos, **changes: Any) -> RestoreRecipe:
    model = {"tile": 16, "net": NET, "modulation": {"kind": "low_rank", "rank": 2}}
    given: dict[str, Any] = {"data": f"restore:{photos}", "num_steps": 6, "batch_size": 5, "model": model}
    return from_dict(RestoreRecipe, {**given, "train": {"precision": "float32"}, **changes})


def finished(run):
    return [event for event in run.events() if isinstance(event, Progress)]


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    place = tmp_path_factory.mktemp("restorer") / "run"
    finished(TrainingRun(recipe(photos), place))
    return place


def test_a_run_learns_all_faults_and_says_how_well(photos, tmp_path):
    run = TrainingRun(recipe(photos, num_steps=60), tmp_path / "run")
    events = finished(run)
    assert {"psnr", "noise", "blur", "rain", "haze", "snow"} <= set(events[0].parts)
    first, last = (np.mean([event.loss for event in part]) for part in (events[:10], events[-10:]))
    assert last < first
    restorer = load(tmp_path / "run")
    assert isinstance(restorer, Restorer)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "noise, blur, rain, haze, snow" in card and str(photos) not in card


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_goes_on_bit_for_bit(photos, trained, tmp_path, stop):
    run = TrainingRun(recipe(photos), tmp_path / "cut")
    with closing(run.events()) as events:
        for event in events:
            if isinstance(event, Progress) and event.step == stop:
                break
    finished(TrainingRun(None, tmp_path / "cut", resume=True))
    ours, theirs = load(trained).model.state_dict(), load(tmp_path / "cut").model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_batch_holds_every_fault_and_is_that_of_its_number(photos, tmp_path):
    examples = read_images(f"images:{photos}", "train", channels=3)
    build_photos(examples, tmp_path / "packed", side=16, source="s", skipped=[])
    corpus = PhotoCorpus(tmp_path / "packed")
    loader = PhotoLoader(corpus, side=16, batch_size=7, seed=3)
    batches = [next(loader) for _ in range(3)]
    assert batches[0].task.tolist() == [0, 1, 2, 3, 4, 0, 1] and batches[1].task.tolist() == [2, 3, 4, 0, 1, 2, 3]
    again = PhotoLoader(corpus, side=16, batch_size=7, seed=3)
    again.load_state_dict({**again.state_dict(), "position": 2})
    assert torch.equal(next(again).spoiled, batches[2].spoiled)
    assert all(batch.clean.shape == (7, 16, 16, 3) for batch in batches)
    only = next(PhotoLoader(corpus, side=16, batch_size=4, seed=0, only=3))
    assert only.task.tolist() == [3] * 4 and not torch.equal(only.clean, only.spoiled)


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (7, 5), (50, 33), (1, 1)])
def test_any_size_is_restored_and_a_net_that_changes_nothing_leaves_it(trained, size):
    restorer = load(trained)
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert restorer.restore(photo, task="noise").shape == photo.shape
    with torch.no_grad():
        for parameter in restorer.model.net.head.parameters():
            parameter.zero_()
    same = Restorer(restorer.model, restorer.router)
    assert np.array_equal(same.restore(photo, task=["rain", "snow"]), photo)


def test_tiles_cover_every_pixel_and_leave_no_seams(trained):
    assert _starts(16, 16) == [0] and _starts(5, 16) == [0] and _starts(40, 16) == [0, 8, 16, 24]
    assert _starts(37, 16) == [0, 8, 16, 21]
    restorer = load(trained)
    with torch.no_grad():  # a net that answers strongly, and by what its tile shows
        for parameter in restorer.model.net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    y, x = np.mgrid[:96, :128]
    photo = np.stack([x, y, (x + y) // 2], 2).astype(np.uint8)
    found = Restorer(restorer.model, restorer.router).restore(photo, task="haze").astype(float)
    steps = np.abs(np.diff(found, axis=1)).mean((0, 2))
    borders = [left - 1 for left in _starts(128, 16)[1:]]
    inside = [i for i in range(len(steps)) if i not in borders and i + 1 not in borders and i - 1 not in borders]
    assert steps[borders].max() <= 1.5 * steps[inside].max()


def test_instructions_choose_the_fault_and_others_are_refused(trained):
    restorer = load(trained)
    photo = photograph(3)
    by_words = restorer.restore(photo, "please take the fog away")
    assert np.array_equal(by_words, restorer.restore(photo, task="haze"))
    both = restorer.restore(photo, ["remove the rain", "remove the noise"])
    one_by_one = restorer.restore(restorer.restore(photo, task="rain"), task="noise")
    assert np.array_equal(both, one_by_one)
    grey = restorer.restore(photo[..., :1], task="blur")
    assert grey.shape == (*photo.shape[:2], 1)
    for wrong in ({"instruction": "make it pretty"}, {"task": "dust"}, {}):
        with pytest.raises(UsageError):
            restorer.restore(photo, **wrong)
    for bad in (np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(UsageError):
            restorer.restore(bad, task="rain")


def test_the_verb_keeps_orientation_profile_alpha_and_grey(trained, tmp_path, capsys):
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    Image.fromarray(photograph(1)).save(tmp_path / "turned.jpg", exif=exif, icc_profile=b"a profile")
    out = tmp_path / "clean.jpg"
    argv = ["restore", str(trained), str(tmp_path / "turned.jpg"), "--out", str(out)]
    assert main([*argv, "--instruction", "take the rain away", "--instruction", "remove the noise"]) == 0
    told = capsys.readouterr().err
    assert "understood: take out the rain" in told and "rain, then noise" in told
    with Image.open(out) as image:
        assert image.size == (48, 56) and image.getexif().get(274) is None and image.getexif()[271] == "a camera"
        assert image.info["icc_profile"] == b"a profile"
    pixels = np.dstack([photograph(2), np.arange(48 * 56).reshape(48, 56) % 256]).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    assert (
        main(["restore", str(trained), str(tmp_path / "clear.png"), "--task", "haze", "--out", str(tmp_path / "o.png")])
        == 0
    )
    with Image.open(tmp_path / "o.png") as image:
        assert image.mode == "RGBA" and np.array_equal(np.asarray(image)[..., 3], pixels[..., 3])
    Image.fromarray(photograph(2)).convert("CMYK").save(tmp_path / "print.tif")
    argv = ["restore", str(trained), str(tmp_path / "print.tif"), "--task", "haze", "--out", str(tmp_path / "o.tif")]
    assert main(argv) == 0
    with Image.open(tmp_path / "o.tif") as image:
        assert image.mode == "RGB" and image.size == (56, 48)
    Image.fromarray(photograph(2)).convert("RGBA").save(tmp_path / "opaque.png")
    argv = ["restore", str(trained), str(tmp_path / "opaque.png"), "--task", "haze", "--out", str(tmp_path / "o.jpg")]
    assert main(argv) == 0
    argv = ["restore", str(trained), str(tmp_path / "clear.png"), "--task", "haze", "--out", str(tmp_path / "p.jpg")]
    assert main(argv) == 2 and not (tmp_path / "p.jpg").exists()
    Image.fromarray(photograph(2)[..., 0]).save(tmp_path / "grey.png")
    assert open_photo(tmp_path / "grey.png").pixels.shape == (48, 56, 1)


def test_the_verb_refuses_in_one_line_and_writes_nothing(trained, tmp_path, capsys):
    source, out = tmp_path / "photo.png", tmp_path / "clean.png"
    Image.fromarray(photograph(1)).save(source)
    (tmp_path / "broken.png").write_bytes(source.read_bytes()[:60])
    for argv, told in (
        ([str(trained), str(source), "--out", str(out)], "say what should go"),
        ([str(trained), str(source), "--out", str(out), "--instruction", "make it pretty"], "say what should go"),
        ([str(trained), str(source), "--out", str(out), "--task", "dust"], "no fault 'dust'"),
        ([str(trained), str(source), "--task", "rain"], "--out clean.png"),
        (
            [str(trained), str(source), "--task", "rain", "--out", str(tmp_path / "a.txt")],
            "no file that can be written",
        ),
        ([str(trained), str(source), "--task", "rain", "--out", str(source)], "the photograph itself"),
        ([str(trained), str(tmp_path / "broken.png"), "--task", "rain", "--out", str(out)], "damaged"),
        ([str(trained), str(tmp_path / "none.png"), "--task", "rain", "--out", str(out)], "missing"),
        (["builtin:e2e", str(source), "--task", "rain", "--out", str(out)], "no restorer"),
    ):
        assert main(["restore", *argv]) != 0
        error = capsys.readouterr().err
        assert told in error and error.strip().count("manta: error") == 1, error
        assert not out.exists()
    for verb in ("generate", "diagnose"):
        assert main([verb, str(trained), "--out", str(tmp_path / "x.png")]) == 2
        assert "manta restore" in capsys.readouterr().err


def test_evaluation_compares_with_what_was_spoiled(trained, photos, tmp_path, capsys):
    out = tmp_path / "found.json"
    argv = ["evaluate", str(trained), "--data", f"restore:{photos}", "--out", str(out)]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "2 photographs" in told and out.exists()
    rows = measure_restoration([photograph(20), photograph(21)], lambda photo, task: photo)
    assert all(row.psnr[0] == pytest.approx(row.psnr_before) for row in rows), "nothing done is nothing gained"
    noise = next(row for row in rows if row.task == "noise")
    assert 13 < noise.psnr_before < 26 and noise.photos == 2


def test_another_model_begins_with_shared_weights_and_learns_changes_alone(photos, trained, tmp_path):
    modulation = {"kind": "full", "frozen": True, "maps": ["conv1"]}
    model = {"tile": 16, "net": NET, "modulation": modulation}
    run = TrainingRun(recipe(photos, begin_from=str(trained), model=model, only="rain"), tmp_path / "run")
    finished(run)
    old = {name.replace(".base.", "."): value for name, value in load(trained).model.state_dict().items()}
    new = {name.replace(".base.", "."): value for name, value in run.model.model.state_dict().items()}
    shared = [name for name in new if not name.endswith(".change")]
    assert all(torch.equal(new[name].float(), old[name].float()) for name in shared)
    changes = [value for name, value in new.items() if name.endswith(".change")]
    assert any(value[2].abs().sum() > 0 for value in changes) and not any(
        value[[0, 1, 3, 4]].any() for value in changes
    )
    with pytest.raises(UsageError, match="takes out rain"):
        load(tmp_path / "run").restore(photograph(1), task="noise")
    assert "Takes out: rain." in (tmp_path / "run" / "model" / "README.md").read_text()
    higher = {"tile": 16, "net": NET, "modulation": {"kind": "low_rank", "rank": 3}}
    finished(TrainingRun(recipe(photos, begin_from=str(trained), model=higher), tmp_path / "higher"))
    with pytest.raises(ConfigError, match="begin_from"):
        recipe(photos, model={**higher, "modulation": {"kind": "film", "frozen": True}})
    other = recipe(photos, begin_from=str(trained), model={"tile": 24, "net": {**NET, "width": 16}})
    with pytest.raises(ConfigError, match="another shape"):
        finished(TrainingRun(other, tmp_path / "other"))


def test_doctor_reads_photographs_runs_and_restorers(photos, trained, capsys):
    assert main(["doctor", f"restore:{photos}"]) == 0
    assert "6" in capsys.readouterr().out
    assert main(["doctor", str(trained)]) == 0
    assert "tiles seen" in capsys.readouterr().out
    assert main(["doctor", str(trained / "model")]) == 0
    assert "takes out" in capsys.readouterr().out
