"""Loaders of images that leave batches out stand where as many read batches would."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from manta.image import ImageCorpus, ImageExample, ImageLoader, build_images
from manta.image.captioned import CaptionedCorpus, CaptionedLoader, build_captioned
from manta.image.photos import PhotoCorpus, PhotoLoader, build_photos

WORDS = ("red", "blue", "round", "square")


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """How to begin each kind of loader anew."""
    place = tmp_path_factory.mktemp("packed")
    generator = np.random.default_rng(0)
    examples = [
        ImageExample(
            pixels=generator.integers(0, 256, (20, 24, 3), np.uint8), caption=f"{WORDS[i % 4]} {WORDS[i // 4]}"
        )
        for i in range(11)
    ]
    build_images(examples, place / "images", size=None, channels=3, source="")
    build_captioned(examples, place / "captions", size=(8, 8), channels=3, source="", fit="crop", skipped=[])
    build_photos(examples, place / "photos", side=16, source="", skipped=[])
    images, captions = ImageCorpus(place / "images"), CaptionedCorpus(place / "captions")
    photos = PhotoCorpus(place / "photos")
    return {
        "images": lambda: ImageLoader(images, batch_size=3, seed=1, mirror=True),
        "captions": lambda: CaptionedLoader(captions, batch_size=3, seed=1),
        "photos": lambda: PhotoLoader(photos, side=16, batch_size=2, seed=1),
    }


@pytest.mark.parametrize("kind", ["images", "captions", "photos"])
@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 9])
def test_skipping_stands_where_as_many_batches_would(loaders, kind, first, count):
    read, skipped = loaders[kind](), loaders[kind]()
    for loader in (read, skipped):
        for _ in range(first):
            next(loader)
    for _ in range(count):
        next(read)
    skipped.skip(count)
    assert skipped.state_dict() == read.state_dict()
    for _ in range(4):
        ours, theirs = next(skipped), next(read)
        assert all(torch.equal(getattr(ours, field.name), getattr(theirs, field.name)) for field in fields(theirs))
