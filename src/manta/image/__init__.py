"""Images as data: readers, a built-in corpus of shapes with its oracle, and the loader."""

from manta.image.codec import ImageCodec, from_pixels, to_pixels
from manta.image.corpus import ImageCorpus, ImageReport, build_images
from manta.image.example import ImageExample
from manta.image.files import read_image, resized
from manta.image.loader import ImageBatch, ImageLoader
from manta.image.sources import IMAGES, is_images, read_images

__all__ = [
    "IMAGES",
    "ImageBatch",
    "ImageCodec",
    "ImageCorpus",
    "ImageExample",
    "ImageLoader",
    "ImageReport",
    "build_images",
    "from_pixels",
    "is_images",
    "read_image",
    "read_images",
    "resized",
    "to_pixels",
]
