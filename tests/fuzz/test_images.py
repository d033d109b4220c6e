"""Damaged images, through the one reader of images: an image, or one line that says why not."""

import io
import struct
import zlib

import numpy as np
import pytest
from fuzzing import assert_holds_for_random_input, changed_bytes
from hypothesis import strategies as st
from PIL import Image

from glipv2_d2.data.image_reading import image_size, read_image

SIZES = (0, 1, 2, 255, 256, 4096, 8192, 8193, 13_000, 32_767, 40_000, 65_535, 2**16, 2**20, 2**31 - 1, 2**32 - 1)


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def valid_images() -> dict[str, bytes]:
    """Small images of every format, of several modes and layouts."""
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    gray, palette, alpha = color.convert("L"), color.quantize(8), color.convert("RGBA")
    deep = Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) * 273)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [gray.convert("RGB")]}
    return {
        "jpeg": encoded(color, "JPEG", exif=exif),
        "gray jpeg": encoded(gray, "JPEG", progressive=True),
        "ink jpeg": encoded(color.convert("CMYK"), "JPEG"),
        "png": encoded(color, "PNG", exif=exif),
        "palette png": encoded(palette, "PNG", transparency=3),
        "deep png": encoded(deep, "PNG"),
        "alpha png": encoded(alpha, "PNG"),
        "animated png": encoded(color, "PNG", **frames),
        "tiff": encoded(color, "TIFF", exif=exif),
        "lzw tiff": encoded(alpha, "TIFF", compression="tiff_lzw"),
        "deflated tiff": encoded(gray, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg tiff": encoded(color, "TIFF", compression="jpeg"),
        "deep tiff": encoded(deep, "TIFF"),
        "gif": encoded(palette, "GIF"),
        "animated gif": encoded(color, "GIF", **frames),
        "webp": encoded(color, "WEBP", exif=exif),
        "lossless webp": encoded(alpha, "WEBP", lossless=True),
        "jpeg 2000": encoded(color, "JPEG2000"),
        "jpeg 2000 stream": encoded(gray, "JPEG2000", no_jp2=True),
        "bmp": encoded(color, "BMP"),
        "palette bmp": encoded(palette, "BMP"),
        "ppm": encoded(color, "PPM"),
        "deep pgm": encoded(deep, "PPM"),
    }


IMAGES = valid_images()


def with_other_size(data: st.DataObject, content: bytes) -> bytes:
    """The same file with another width and height wherever its own stand, and checksums of PNG that fit."""
    width, height = (data.draw(st.sampled_from(SIZES)) for _ in range(2))
    for pack, old in (("<H", (20, 12)), (">H", (12, 20)), (">H", (20, 12)), ("<I", (20, 12)), (">I", (20, 12))):
        new = (height, width) if old == (12, 20) else (width, height)
        most = 2 ** (8 * struct.calcsize(pack)) - 1
        pairs = [b"".join(struct.pack(pack, min(one, most)) for one in pair) for pair in (old, new)]
        content = content.replace(*pairs)
    content = content.replace(b"20 12\n", b"%d %d\n" % (width, height))
    if content.startswith(b"\x89PNG"):
        content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
    return content


@pytest.mark.slow
def test_damaged_images_are_read_or_refused_in_one_line():
    def check(data: st.DataObject) -> None:
        content = IMAGES[data.draw(st.sampled_from(sorted(IMAGES)))]
        if data.draw(st.booleans()):
            content = with_other_size(data, content)
        if data.draw(st.integers(0, 3)):
            content = changed_bytes(data, content)
        expected = {}
        try:
            height, width = image_size(content)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
        else:
            expected = {"height": height, "width": width} if data.draw(st.booleans()) else {}
        image = read_image({"file_name": "a.img", "image_bytes": content, **expected}, "BGR")
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
        assert not expected or image.shape == (height, width, 3)

    assert_holds_for_random_input(check)


@pytest.mark.slow
def test_sizes_of_files_and_annotations_that_agree_are_bounded_too():
    def check(data: st.DataObject) -> None:
        content = with_other_size(data, IMAGES[data.draw(st.sampled_from(sorted(IMAGES)))])
        try:
            with Image.open(io.BytesIO(content)) as opened:
                sizes = {"height": opened.height, "width": opened.width}
        except Exception:
            sizes = {"height": 12, "width": 20}
        read_image({"file_name": "a.img", "image_bytes": content, **sizes}, "BGR")

    assert_holds_for_random_input(check)
