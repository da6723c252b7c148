import numpy as np
import pytest

from manta.errors import UsageError
from manta.image import shapes
from manta.image.shapes import Scene, Shape, draw, examples, judge, read


def test_the_oracle_reads_back_what_was_drawn():
    drawn = list(examples("train", 400))
    verdicts = read(np.stack([example.pixels for example in drawn]))
    for verdict, example in zip(verdicts, drawn, strict=True):
        assert verdict.scene is not None and verdict.scene.label == example.label
        assert verdict.scene.caption == example.caption and verdict.error < 1e-6


def test_every_drawing_of_a_cell_is_nearest_to_itself_and_no_two_kinds_are_alike():
    names, drawings = shapes._drawings()
    assert len(names) == 1 + 3 * 4 * 9
    distance = ((drawings[:, None] - drawings[None]) ** 2).mean(-1)
    other = np.array([[a != b for b in names] for a in names])
    assert distance[other].min() > shapes.TOLERANCE


def test_noise_that_an_eye_forgives_is_forgiven_and_more_is_not():
    drawn = list(examples("test", 100))
    images = np.stack([example.pixels for example in drawn]).astype(float)
    noise = np.random.default_rng(0).standard_normal(images.shape)
    for spread, least, most in ((8, 0.99, 1.0), (40, 0.0, 0.01)):
        noisy = np.clip(images + spread * noise, 0, 255).astype(np.uint8)
        told = judge(noisy, [example.label for example in drawn])
        assert least <= told["valid"] <= most and told["faithful"] <= told["valid"]


@pytest.mark.parametrize("number", [0, 4])
def test_a_ground_alone_and_too_many_shapes_are_no_scene(number):
    scene = Scene(tuple(Shape(i // 3, i % 3, "circle", "red") for i in range(number)))
    assert not read(draw(scene)[None])[0].valid


def test_half_a_shape_and_a_shape_of_two_colours_are_no_scene():
    whole = draw(Scene((Shape(1, 1, "square", "blue"),)))
    for change in (slice(8, 12), slice(12, 16)):
        half = whole.copy()
        half[change, 8:16] = shapes.GROUND
        assert not read(half[None])[0].valid
    mixed = whole.copy()
    mixed[8:12] = draw(Scene((Shape(1, 1, "square", "yellow"),)))[8:12]
    assert not read(mixed[None])[0].valid


def test_a_class_says_which_shapes_there_are_and_counts_as_faithful_only_so():
    image = draw(Scene((Shape(0, 0, "triangle", "green"), Shape(2, 1, "circle", "red"))))
    scene = read(image[None])[0].scene
    assert scene is not None and scene.label == "two mixed"
    told = judge(np.stack([image] * 4), ["two mixed", "one circle", "three mixed", None])
    assert told["faithful"] == pytest.approx(1 / 3) and told["valid"] == 1 and told["distinct"] == 0.25


def test_classes_are_drawn_alike_often_and_splits_apart():
    labels = [example.label for example in examples("train", 1100)]
    counts = [labels.count(name) for name in shapes.CLASSES]
    assert len(counts) == 11 and min(counts) > 60 and max(counts) < 150
    first = {split: next(examples(split, 1)).pixels.tobytes() for split in ("train", "dev", "test")}
    assert len(set(first.values())) == 3
    again = next(examples("train", 1, seed=0)).pixels
    assert again.tobytes() == first["train"] and next(examples("train", 1, seed=1)).pixels.tobytes() != first["train"]


def test_a_caption_names_every_shape_with_its_place():
    scene = Scene((Shape(0, 2, "circle", "red"), Shape(1, 1, "square", "blue"), Shape(2, 0, "triangle", "green")))
    assert scene.caption == (
        "a red circle at the top right, a blue square at the middle centre and a green triangle at the bottom left"
    )


def test_other_sizes_and_splits_are_refused():
    with pytest.raises(UsageError, match="24 × 24"):
        read(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(UsageError, match="unknown split"):
        next(examples("all", 1))
