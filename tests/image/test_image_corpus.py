import json
import os
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manta.errors import CheckpointError, DataError, ModelError, UsageError
from manta.image import (
    ImageCodec,
    ImageCorpus,
    ImageExample,
    ImageLoader,
    build_images,
    from_pixels,
    is_images,
    read_images,
    to_pixels,
)
from manta.image.sources import fingerprint


def pictures(number, size=(6, 8), channels=3, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (number, *size, channels), np.uint8)


def folder_of(place, classes=("cat", "dog"), each=12, seed=0):
    images = iter(pictures(len(classes) * each, seed=seed))
    for name in classes:
        (place / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(next(images)).save(place / name / f"{i}.png")
    return place


def packed(place, images, labels=None, size=None, channels=3):
    rows = [ImageExample(pixels=x, label=None if labels is None else labels[i]) for i, x in enumerate(images)]
    report = build_images(rows, place, size=size, channels=channels, source="")
    return ImageCorpus(place), report


def test_folders_are_classes_and_every_image_falls_in_one_split(tmp_path):
    place = folder_of(tmp_path / "data", each=120)
    found = {split: list(read_images(f"images:{place}", split)) for split in ("train", "dev", "test")}
    assert sum(map(len, found.values())) == 240 and len(found["train"]) > 190 and found["dev"] and found["test"]
    contents = [example.pixels.tobytes() for rows in found.values() for example in rows]
    assert len(set(contents)) == 240
    assert {example.label for example in found["train"]} == {"cat", "dog"}
    moved = folder_of(tmp_path / "moved", classes=("z", "a"), each=120)
    again = {example.pixels.tobytes() for example in read_images(f"images:{moved}", "dev")}
    assert again == {example.pixels.tobytes() for example in found["dev"]}  # by content, not by name


def test_folders_named_after_splits_are_the_splits(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        folder_of(tmp_path / split, each=60, seed=seed)
    name = f"images:{tmp_path}"
    assert len(list(read_images(name, "test"))) == 120
    train, dev = list(read_images(name, "train")), list(read_images(name, "dev"))
    assert len(train) + len(dev) == 120 and dev
    folder_of(tmp_path / "val", each=5, seed=2)
    assert len(list(read_images(name, "dev"))) == 10 and len(list(read_images(name, "train"))) == 120


def test_a_table_of_captions_names_files_and_nothing_outside(tmp_path):
    folder_of(tmp_path / "x", classes=("in",), each=30)
    place = tmp_path / "x"
    table = place / "captions.csv"
    table.write_text("file,caption,label\n" + "".join(f"in/{i}.png,number {i},{i % 3}\n" for i in range(30)))
    found = list(read_images(f"images:{place}", "train"))
    assert {example.label for example in found} == {"0", "1", "2"} and (found[0].caption or "").startswith("number")
    for text, words in {
        "file,caption\n../secret.png,x\n": "line 2: ../secret.png lies outside",
        "file,caption\nin/0.png,\n": "line 2: give `file`",
        "name\nx\n": "line 2",
        "file,caption\n": "names no images",
    }.items():
        table.write_text(text)
        with pytest.raises(DataError, match=words):
            list(read_images(f"images:{place}", "train"))
    table.write_bytes(b"file,caption\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="damaged"):
        list(read_images(f"images:{place}", "train"))


def test_files_that_cannot_be_read_are_an_error_or_told(tmp_path):
    place = folder_of(tmp_path / "data")
    (place / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        list(read_images(f"images:{place}", "train"))
    told = []
    list(read_images(f"images:{place}", "train", skipped=told.append))
    assert len(told) == 1 and "broken.png" in told[0]


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images at"):
        list(read_images(f"images:{tmp_path / 'none'}"))
    with pytest.raises(UsageError, match="nothing after the colon"):
        list(read_images("images:"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        list(read_images(f"images:{tmp_path / 'empty'}"))
    place = folder_of(tmp_path / "mixed")
    Image.fromarray(pictures(1)[0]).save(place / "beside.png")
    with pytest.raises(DataError, match="images beside folders"):
        list(read_images(f"images:{place}"))
    with pytest.raises(UsageError, match="unknown split"):
        list(read_images("builtin:shapes", "all"))


def test_arrays_have_official_splits_and_labels(tmp_path):
    place = tmp_path / "a.npz"
    x, y = pictures(60, channels=1)[..., 0], np.arange(60) % 12
    np.savez(place, x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    assert is_images(str(place))
    rows = list(read_images(str(place), "test"))
    found = {example.pixels.tobytes(): example.label for example in rows}
    assert found == {x[i].tobytes(): str(y[i]) for i in range(50, 60)} and rows[0].pixels.shape == (6, 8, 1)
    train, dev = (list(read_images(f"images:{place}", split)) for split in ("train", "dev"))
    assert len(train) + len(dev) == 50
    coloured = next(read_images(str(place), "test", channels=3))
    assert coloured.pixels.shape == (6, 8, 3) and (coloured.pixels[..., 0] == coloured.pixels[..., 2]).all()
    corpus, report = packed(tmp_path / "c", [r.pixels for r in train], [r.label for r in train], channels=1)
    assert corpus.classes == tuple(str(i) for i in range(12)) and report.classes == 12  # numbers as numbers


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"images": np.zeros((2, 4, 4), np.float32)}, "float32"),
        ({"images": np.zeros((2, 4, 4, 5), np.uint8)}, "channels"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "holds no images"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3)}, "labels of shape"),
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "give images"),
        ({"images": np.array([{}, {}], object)}, "no archive of arrays"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words):
        list(read_images(str(tmp_path / "a.npz")))


def test_damaged_archives_are_refused(tmp_path, monkeypatch):
    place = tmp_path / "a.npz"
    place.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"a\.npz"):
        list(read_images(str(place)))
    np.savez_compressed(place, images=np.zeros((4, 40, 40), np.uint8))
    whole = place.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for at in generator.integers(0, len(data), 3):
            data[at] = generator.integers(256)
        place.write_bytes(bytes(data))
        try:
            list(read_images(str(place)))
        except DataError as error:
            assert "a.npz" in str(error)
    place.write_bytes(whole)
    monkeypatch.setattr("manta.image.sources.MAX_ARRAYS", 1000)
    with pytest.raises(DataError, match="unpacks to"):
        list(read_images(str(place)))
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("images.npy", b"short")
    monkeypatch.undo()
    with pytest.raises(DataError):
        list(read_images(str(place)))


def test_packed_images_are_those_that_were_given_once_each_and_of_one_size(tmp_path):
    images = pictures(5)
    rows = [*images, images[0], pictures(1, size=(12, 16), seed=1)[0]]
    corpus, report = packed(tmp_path / "c", rows, ["b", "a", "b", "a", "b", "b", "a"])
    assert (report.read, report.duplicates, report.resized, report.rows) == (7, 1, 1, 6)
    assert np.array_equal(corpus.pixels(np.arange(5)), images) and corpus.shape == (6, 8, 3)
    assert corpus.classes == ("a", "b") and corpus.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert "6 images of 6 × 8 pixels" in str(report) and "1 duplicates" in str(report)
    same = build_images(iter(()), tmp_path / "c", size=None, channels=3, source="")
    assert same == report  # kept, and not read again


def test_what_cannot_be_packed_is_refused_and_leaves_nothing(tmp_path):
    images = pictures(2)
    with pytest.raises(DataError, match="some have none"):
        packed(tmp_path / "c", images, ["a", None])
    with pytest.raises(DataError, match="no image is left"):
        packed(tmp_path / "c", [])
    assert not (tmp_path / "c").exists()


def test_damaged_packed_images_are_known(tmp_path):
    packed(tmp_path / "c", pictures(4), ["a"] * 4)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    for change in ({"version": 9}, {"classes": []}, {"report": {}}, {"bytes": {}}):
        (tmp_path / "c" / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(DataError):
            ImageCorpus(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "c" / "pixels.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="another size"):
        ImageCorpus(tmp_path / "c")


def test_a_fingerprint_changes_with_the_content(tmp_path):
    place = folder_of(tmp_path / "data")
    before = fingerprint(f"images:{place}", "train", None)
    assert before == fingerprint(f"images:{place}", "train", None)
    assert before != fingerprint(f"images:{place}", "train", 5)
    Image.fromarray(pictures(1, seed=9)[0]).save(place / "cat" / "0.png")
    assert before != fingerprint(f"images:{place}", "train", None)
    assert "shapes" in fingerprint("builtin:shapes", "train", None)


def test_a_loader_gives_every_image_once_an_epoch_and_goes_on_where_it_stood(tmp_path):
    corpus, _ = packed(tmp_path / "c", pictures(10), ["a", "b"] * 5)
    loader = ImageLoader(corpus, batch_size=5, seed=3)
    first = [next(loader) for _ in range(2)]
    assert sorted(torch.cat([batch.index for batch in first]).tolist()) == list(range(10))
    second = [next(loader).index.tolist() for _ in range(2)]
    assert sorted([*second[0], *second[1]]) == list(range(10)) and second[0] != first[0].index.tolist()
    assert torch.equal(first[0].label, torch.from_numpy(corpus.labels[first[0].index.numpy()]))
    state = loader.state_dict()
    ahead = [next(loader).index.tolist() for _ in range(3)]
    other = ImageLoader(corpus, batch_size=5, seed=3)
    other.load_state_dict(state)
    assert [next(other).index.tolist() for _ in range(3)] == ahead
    with pytest.raises(CheckpointError):
        ImageLoader(corpus, batch_size=4, seed=3).load_state_dict(state)
    assert len(next(ImageLoader(corpus, batch_size=64, seed=0))) == 10


def test_mirrored_images_are_turned_half_of_the_time_and_the_corpus_stays(tmp_path):
    images = pictures(40)
    corpus, _ = packed(tmp_path / "c", images, ["a"] * 40)
    batch = next(ImageLoader(corpus, batch_size=40, seed=0, mirror=True))
    whole = images[batch.index.numpy()]
    turned = [not np.array_equal(a, b) for a, b in zip(batch.pixels.numpy(), whole, strict=True)]
    assert 8 < sum(turned) < 32
    assert all(np.array_equal(a[:, ::-1], b) for a, b, t in zip(batch.pixels.numpy(), whole, turned, strict=True) if t)
    assert np.array_equal(corpus.pixels(np.arange(40)), images)


def test_pixels_and_states_are_each_others_inverse():
    pixels = torch.from_numpy(pictures(3))
    state = from_pixels(pixels)
    assert state.shape == (3, 48, 3) and state.min() >= -1 and state.max() <= 1
    assert np.array_equal(to_pixels(state, (6, 8, 3)), pixels.numpy())
    assert to_pixels(torch.tensor([[[-3.0]], [[3.0]]]), (1, 1, 1)).ravel().tolist() == [0, 255]


def test_a_codec_is_known_again_and_names_classes(tmp_path):
    codec = ImageCodec(height=4, width=6, channels=3, classes=("ü", "7", "dog"))
    codec.save(tmp_path / "images.json")
    again = ImageCodec.load(tmp_path / "images.json")
    assert again == codec and again.fingerprint() == codec.fingerprint()
    assert [codec.number(name) for name in ("dog", "7", 0, "1")] == [2, 1, 0, 1]
    for wrong in ("cat", 3, -1, "1.5"):
        with pytest.raises(UsageError, match="no class"):
            codec.number(wrong)
    with pytest.raises(UsageError, match="knows no classes"):
        ImageCodec(height=4, width=6, channels=3).number(0)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        '{"height": 0, "width": 4, "channels": 3, "classes": []}',
        '{"height": 1000000000, "width": 4, "channels": 3, "classes": []}',
        '{"height": 4, "width": 4, "channels": 2, "classes": []}',
        '{"height": 4, "width": 4, "channels": 3, "classes": ["a", "a"]}',
        '{"height": 4, "width": 4, "channels": 3, "classes": [1]}',
        '{"height": 4, "width": 4, "channels": 3, "classes": "ab"}',
        '{"height": 4, "width": 4, "channels": 3, "classes": [], "more": 1}',
        '{"height": true, "width": 4, "channels": 3, "classes": []}',
        "no json",
    ],
)
def test_a_damaged_codec_is_refused(tmp_path, content):
    (tmp_path / "images.json").write_text(content)
    with pytest.raises(ModelError):
        ImageCodec.load(tmp_path / "images.json")


@pytest.mark.parametrize("given", [("train",), ("train", "dev"), ("train", "test"), ("train", "val", "test")])
@pytest.mark.parametrize("kind", ["folders", "arrays"])
def test_splits_are_disjoint_and_whole_whichever_are_there(tmp_path, given, kind):
    parts = {name: pictures(150, seed=i) for i, name in enumerate(given)}
    if kind == "arrays":
        name = str(tmp_path / "a.npz")
        arrays: dict[str, Any] = {f"x_{part}": images for part, images in parts.items()}
        np.savez(name, **arrays)
    else:
        name = f"images:{tmp_path}"
        for part, images in parts.items():
            (tmp_path / part / "c").mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(tmp_path / part / "c" / f"{i}.png")
    found = {split: [e.pixels.tobytes() for e in read_images(name, split)] for split in ("train", "dev", "test")}
    assert all(found.values())
    together = [content for contents in found.values() for content in contents]
    assert len(set(together)) == len(together) == 150 * len(given)


def test_the_first_few_images_are_of_all_classes(tmp_path):
    place = folder_of(tmp_path / "data", classes=("a", "b", "c"), each=60)
    labels = {example.label for example in read_images(f"images:{place}", "train", 20)}
    assert labels == {"a", "b", "c"}
    again = [example.label for example in read_images(f"images:{place}", "train", 20)]
    assert again == [example.label for example in read_images(f"images:{place}", "train", 20)]


def test_a_fingerprint_knows_classes_and_links(tmp_path):
    place = folder_of(tmp_path / "data")
    before = fingerprint(f"images:{place}", "train", None)
    (place / "cat").rename(place / "bat")
    renamed = fingerprint(f"images:{place}", "train", None)
    assert renamed != before
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "bat").symlink_to(place / "bat")
    (linked / "again").symlink_to(linked)  # which leads nowhere new
    first = fingerprint(f"images:{linked}", "train", None)
    Image.fromarray(pictures(1, seed=9)[0]).save(place / "bat" / "0.png")
    assert fingerprint(f"images:{linked}", "train", None) != first


def test_names_that_are_no_text_are_refused(tmp_path):
    place = folder_of(tmp_path / "data")

    os.mkdir(os.fsencode(place) + b"/cl\xff")
    with pytest.raises(DataError, match="UTF-8"):
        list(read_images(f"images:{place}"))
    captions = folder_of(tmp_path / "other")
    (captions / "captions.csv").write_bytes(b"file,label\ncat/0\0.png,a\n")
    with pytest.raises(DataError, match="captions"):
        list(read_images(f"images:{captions}"))
    digits = ["7" * 5000, "12", "007"]
    corpus, _ = packed(tmp_path / "c", pictures(3), digits)
    assert corpus.classes == ("007", "12", "7" * 5000)
