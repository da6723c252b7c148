import io
import zlib

import numpy as np
import pytest
from PIL import Image

from manta.errors import DataError
from manta.image import files as image_files
from manta.image import read_image, resized

RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 200
RED[0, 0] = (10, 20, 30)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp"])
def test_what_keeps_every_value_is_read_as_it_was_written(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(RED), **options)
    assert np.array_equal(read_image(path), RED)


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RED).save(path, format="PNG")
    assert np.array_equal(read_image(path), RED)


def test_an_image_is_turned_as_it_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", Image.fromarray(RED), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(RED, -1))


def test_palettes_are_colours(tmp_path):
    image = Image.fromarray(RED).quantize(4)
    assert image.mode == "P"
    assert np.abs(read_image(saved(tmp_path / "a.png", image)).astype(int) - RED).max() <= 2


def test_what_is_transparent_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert read_image(saved(tmp_path / "a.png", image)).tolist() == [[[200, 0, 0], [255, 255, 255]]]
    palette = image.convert("P")
    found = read_image(saved(tmp_path / "p.png", palette, transparency=palette.getpixel((1, 0))))
    assert found[0, 1].tolist() == [255, 255, 255]
    grey = Image.new("LA", (1, 1), (0, 128))
    assert abs(int(read_image(saved(tmp_path / "g.png", grey), channels=1)[0, 0, 0]) - 127) <= 1


def test_sixteen_bits_become_eight(tmp_path):
    deep = np.array([[0, 257, 65535, 40000]], np.uint16)
    path = saved(tmp_path / "a.png", Image.fromarray(deep))
    assert read_image(path, channels=1)[0, :, 0].tolist() == [0, 1, 255, round(40000 / 257)]
    assert read_image(path)[0, 2].tolist() == [255, 255, 255]


def test_cmyk_becomes_red_green_and_blue(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    red = read_image(path)[4, 4]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


def test_grey_and_colours_become_each_other(tmp_path):
    colours = saved(tmp_path / "a.png", Image.fromarray(RED))
    assert read_image(colours, channels=1).shape == (4, 6, 1)
    grey = saved(tmp_path / "g.png", Image.new("L", (3, 2), 77))
    assert read_image(grey).tolist() == np.full((2, 3, 3), 77).tolist()
    bits = saved(tmp_path / "1.png", Image.new("1", (3, 2), 1))
    assert read_image(bits, channels=1).max() == 255


def test_animations_are_refused_by_name(tmp_path):
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (4, 4), (80 * i, 0, 0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"a\.gif is an animation"):
        read_image(path)


def test_images_that_unpack_to_too_much_are_refused_before_they_are(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    head = (50_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        body += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    path.write_bytes(body)
    with pytest.raises(DataError, match="more than 100,000,000 pixels"):
        read_image(path)
    wide = saved(tmp_path / "wide.png", Image.new("1", (11_000, 10_000)))
    with pytest.raises(DataError, match="11000 × 10000 pixels"):
        read_image(wide)
    small = saved(tmp_path / "s.png", Image.fromarray(RED))
    monkeypatch.setattr(image_files, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="MiB"):
        read_image(small)


def test_damaged_files_are_refused_by_name(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(whole, "PNG")
    data = whole.getvalue()
    cut = tmp_path / "cut.png"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(cut)
    for name, content in {"empty.png": b"", "text.png": b"hello " * 50, "svg.png": b"<svg/>"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="missing"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="no file"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_damaged_image_is_read_or_refused_and_never_crashes(tmp_path, kind):
    whole = io.BytesIO()
    generator = np.random.default_rng(3)
    Image.fromarray(generator.integers(0, 255, (12, 12, 3), np.uint8)).save(whole, kind)
    path = tmp_path / "a"
    for _ in range(80):
        data = bytearray(whole.getvalue())
        for at in generator.integers(0, len(data), 1 + generator.integers(6)):
            data[at] = generator.integers(256)
        path.write_bytes(bytes(data[: generator.integers(8, len(data) + 1)]))
        try:
            assert read_image(path).dtype == np.uint8
        except DataError as error:
            assert str(path) in str(error)


def test_another_size_keeps_proportions_or_the_whole_image():
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :5] = 255
    cropped, stretched = resized(image, (5, 5)), resized(image, (5, 5), "stretch")
    assert cropped.shape == stretched.shape == (5, 5, 3)
    assert cropped[:, 1:].max() < 30 and stretched[:, 0].min() > 200
    assert resized(image, (10, 20)) is image
    assert resized(image[..., :1], (5, 10)).shape == (5, 10, 1)
