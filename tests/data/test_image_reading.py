import base64
import errno
import io
import logging
import runpy
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image  # noqa: F401

from glipv2_d2.data.image_reading import (
    IMAGE_SUFFIXES,
    UnreadableImageError,
    format_of_suffix,
    image_kind,
    image_size,
    read_image,
    read_tsv_image,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(image_format="PNG", pixels=PIXELS, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def rotated(orientation=6, image_format="JPEG") -> bytes:
    """An image of 20 x 12 pixels that is shown turned, by default by a quarter."""
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(image_format, exif=exif)


def decode_image(content, image_format, height=None, width=None):
    sizes = {"height": height, "width": width} if height else {}
    return read_image({"file_name": "a", "image_bytes": content, **sizes}, image_format, [])


@pytest.fixture
def tsv(tmp_path):
    """A TSV file whose second line holds the image, and the offset of that line."""
    lines = [b"a\tnothing\n", b"b\t" + base64.b64encode(encoded()) + b"\n"]
    (tmp_path / "images.tsv").write_bytes(b"".join(lines))
    return str(tmp_path / "images.tsv"), len(lines[0])


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_three_places_of_an_image_give_the_same_pixels(tmp_path, tsv, image_format):
    (tmp_path / "a.png").write_bytes(encoded())
    expected = PIXELS if image_format == "RGB" else PIXELS[:, :, ::-1]
    sizes = {"height": 12, "width": 20}
    for place in (
        {"file_name": str(tmp_path / "a.png")},
        {"file_name": "shard.tar/a.png", "image_bytes": encoded()},
        {"file_name": tsv[0], "tsv_offset": tsv[1]},
    ):
        assert np.array_equal(read_image({**place, **sizes}, image_format), expected)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_common_formats_are_decoded_and_measured(image_format):
    assert decode_image(encoded(image_format), "RGB").shape == (12, 20, 3)
    assert image_size(encoded(image_format)) == (12, 20)


def test_images_of_four_inks_have_three_channels():
    buffer = io.BytesIO()
    Image.new("CMYK", (20, 12)).save(buffer, "JPEG")
    assert decode_image(buffer.getvalue(), "BGR").shape == (12, 20, 3)


def test_the_orientation_is_applied_wherever_the_image_stands(tmp_path):
    (tmp_path / "a.jpg").write_bytes(rotated())
    from_file = read_image({"file_name": str(tmp_path / "a.jpg")}, "RGB")
    assert from_file.shape == (20, 12, 3) and image_size(rotated()) == (20, 12)
    assert np.array_equal(decode_image(rotated(), "RGB"), from_file)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_format_is_measured_as_it_is_shown(image_format, orientation):
    content = rotated(orientation, image_format)
    expected = (20, 12) if orientation in (6, 8) else (12, 20)
    assert image_size(content) == expected
    assert decode_image(content, "RGB", *expected).shape == (*expected, 3)


@pytest.mark.parametrize("content", [b"", b"text", encoded()[:-40], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"])
def test_bytes_that_are_no_image_are_named(content):
    with pytest.raises(UnreadableImageError, match="shard.tar/a.png: .*expected a readable image") as raised:
        read_image({"file_name": "shard.tar/a.png", "image_bytes": content}, "BGR")
    assert "\n" not in str(raised.value)


def test_formats_that_would_start_a_program_are_not_opened():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "EPS")
    with pytest.raises(UnreadableImageError, match="cannot identify"):
        decode_image(buffer.getvalue(), "RGB")
    with pytest.raises(ValueError, match="cannot identify"):
        image_size(buffer.getvalue())


@pytest.mark.parametrize("place", ["image_bytes", "tsv_offset"])
def test_another_size_than_annotated_is_named(tsv, place):
    content = {"image_bytes": encoded(), "tsv_offset": tsv[1]}[place]
    with pytest.raises(UnreadableImageError, match="images.tsv.*expected a readable image of the size"):
        read_image({"file_name": tsv[0], place: content, "height": 13, "width": 20}, "BGR")


@pytest.mark.parametrize("offset", [0, 5, 10**6])
def test_lines_that_hold_no_image_are_named_with_their_offset(tsv, offset):
    with pytest.raises(UnreadableImageError, match=f"images.tsv at byte {offset}: "):
        read_image({"file_name": tsv[0], "tsv_offset": offset}, "BGR")


@pytest.mark.parametrize("place", [{}, {"tsv_offset": 0}])
def test_a_missing_file_is_named(place):
    with pytest.raises(UnreadableImageError, match="gone.tsv"):
        read_image({"file_name": "gone.tsv", **place}, "BGR")


def test_the_last_column_of_a_line_is_its_image(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"key\t7\t" + base64.b64encode(b"pixels") + b"\r\nnext\tx")
    assert read_tsv_image(str(tmp_path / "a.tsv"), 0) == b"pixels"
    with pytest.raises(ValueError):
        read_tsv_image(str(tmp_path / "a.tsv"), 4 + 2 + 8 + 2)


def test_base64_with_foreign_characters_is_no_image(tmp_path):
    (tmp_path / "a.tsv").write_bytes(
        b"key\t" + base64.b64encode(b"pixels")[:4] + b"!*" + base64.b64encode(b"pixels")[4:]
    )
    with pytest.raises(ValueError):
        read_tsv_image(str(tmp_path / "a.tsv"), 0)


def test_size_is_checked_before_any_pixel_is_decoded(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: decoded.append(1))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: decoded.append(1))
    (tmp_path / "a.png").write_bytes(encoded())
    with pytest.raises(UnreadableImageError, match="12 x 20 pixels, and 48 x 20 in its annotation"):
        read_image({"file_name": str(tmp_path / "a.png"), "height": 48, "width": 20}, "RGB")
    monkeypatch.setattr("glipv2_d2.data.image_reading._MAX_PIXELS", 12 * 20 - 1)
    with pytest.raises(ValueError, match="12 x 20 pixels are more than 239"):
        decode_image(encoded(), "RGB")
    with pytest.raises(ValueError, match="12 x 20 pixels are more than 239"):
        image_size(encoded())
    assert decoded == []


def test_annotated_image_may_be_larger_than_one_of_unknown_size_but_is_bounded_too(monkeypatch):
    monkeypatch.setattr("glipv2_d2.data.image_reading._MAX_PIXELS", 1)
    assert decode_image(encoded(), "RGB", 12, 20).shape == (12, 20, 3)
    # An annotation file can claim the size that a damaged image claims.
    large = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(large, "PNG")
    with pytest.raises(UnreadableImageError, match="13000 x 13000 pixels are more than 134217728"):
        read_image({"file_name": "a.png", "image_bytes": large.getvalue(), "height": 13_000, "width": 13_000}, "BGR")


def test_file_that_pil_would_hand_to_another_program_is_unreadable(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **_: started.append(arguments))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
        read_image({"file_name": str(tmp_path / "a.jpg")}, "RGB")
    assert started == []


# --- the same pixels as OpenCV's reader

# A photograph's smooth colours; noise would make the file of a truncated image mostly one block.
SMOOTH = cv2.resize(PIXELS, (160, 120), interpolation=cv2.INTER_CUBIC)
CUT_FILES = {
    "quarter colours": encoded("JPEG", SMOOTH),
    "full colours": encoded("JPEG", SMOOTH, subsampling=0, quality=95),
    "progressive": encoded("JPEG", SMOOTH, progressive=True),
    "gray": encoded("JPEG", SMOOTH[:, :, 0]),
    "restart markers": encoded("JPEG", SMOOTH, restart_marker_rows=1),
}


@pytest.mark.parametrize("kind", CUT_FILES)
def test_truncated_jpegs_are_decoded_as_far_as_opencv_does(tmp_path, kind):
    content = CUT_FILES[kind]
    num_decoded = 0
    for length in [*range(2, len(content), len(content) // 60), len(content) - 2, len(content) - 1]:
        (tmp_path / "a.jpg").write_bytes(content[:length])
        expected = cv2.imread(str(tmp_path / "a.jpg"))
        truncated: list[str] = []
        # Nothing, or one block.
        if expected is None or (expected != 128).any(axis=2).sum() <= 512:
            with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
                read_image({"file_name": str(tmp_path / "a.jpg")}, "BGR", truncated)
            assert truncated == []
            continue
        pixels = read_image({"file_name": str(tmp_path / "a.jpg"), "height": 120, "width": 160}, "BGR", truncated)
        assert np.array_equal(pixels, expected), length
        assert len(truncated) <= 1 and all(line.startswith(str(tmp_path / "a.jpg")) for line in truncated)
        num_decoded += len(truncated)
    assert num_decoded > 40


def test_a_truncated_jpeg_is_turned_and_measured_as_a_whole_one(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    content = encoded("JPEG", SMOOTH, exif=exif)
    cut = content[: len(content) * 3 // 4]
    assert image_size(cut) == (160, 120)
    pixels = decode_image(cut, "BGR", 160, 120)
    (tmp_path / "a.jpg").write_bytes(cut)
    assert np.array_equal(pixels, cv2.imread(str(tmp_path / "a.jpg")))
    whole = decode_image(content, "BGR", 160, 120)
    # Turned by a quarter the file's upper rows are the right columns.
    assert np.array_equal(pixels[:, 100:], whole[:, 100:]) and (pixels[:, :8] == 128).all()
    with pytest.raises(ValueError, match="height is 160, and 120 in its annotation"):
        decode_image(cut, "BGR", 120, 160)


@pytest.mark.parametrize("kind", CUT_FILES)
def test_a_jpeg_without_any_pixels_is_unreadable(kind):
    content = CUT_FILES[kind]
    # Where files end with the header of its first pixels OpenCV invents a block, and spreads it in progressive ones.
    begin = content.index(b"\xff\xda") + (10 if kind == "gray" else 14)
    end = begin + (kind != "progressive")
    # Every length where a part of the header begins and before the first pixels, and some of those between.
    parts = {place + more for place in range(begin) if content[place] == 0xFF for more in range(-1, 5)}
    for length in sorted({*range(0, end, 7), *range(begin - 14, end)} | parts & {*range(end)}):
        with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
            read_image({"file_name": "a.jpg", "image_bytes": content[:length]}, "RGB")
    read_image({"file_name": "a.jpg", "image_bytes": content[: begin + (len(content) - begin) // 4]}, "RGB", [])


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_other_truncated_files_are_unreadable(image_format):
    content = encoded(image_format, SMOOTH)
    with pytest.raises(UnreadableImageError, match="a: "):
        read_image({"file_name": "a", "image_bytes": content[: len(content) // 2]}, "RGB")


def test_a_process_warns_once_of_truncated_images(caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    content = CUT_FILES["gray"][:-40]
    with caplog.at_level(logging.WARNING):
        for name in ("a.jpg", "b.jpg", "a.jpg"):
            read_image({"file_name": name, "image_bytes": content}, "RGB")
    (message,) = caplog.messages
    assert message.startswith("truncated images were decoded as far as they go, save them again: a.jpg: ")


GRAY16 = np.random.default_rng(1).integers(0, 2**16, (12, 20), dtype=np.uint16)


def by_opencv(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def by_cv2(suffix, pixels) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def palette(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).quantize(40).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded(pixels=GRAY16), id="gray of 16 bits, PNG"),
        pytest.param(encoded("TIFF", GRAY16), id="gray of 16 bits, TIFF"),
        pytest.param(by_cv2(".tiff", GRAY16), id="gray of 16 bits, packed TIFF"),
        pytest.param(encoded("JPEG2000", GRAY16), id="gray of 16 bits, JPEG 2000"),
        pytest.param(by_cv2(".pgm", GRAY16), id="gray of 16 bits, PGM"),
        pytest.param(encoded(pixels=GRAY16 // 16), id="12 of 16 bits"),
        pytest.param(by_cv2(".png", np.dstack([GRAY16] * 3)), id="colour of 16 bits, PNG"),
        pytest.param(encoded(pixels=PIXELS[:, :, 0] > 99), id="1 bit"),
        pytest.param(encoded(pixels=PIXELS[:, :, :2]), id="gray with alpha"),
        pytest.param(encoded(pixels=np.dstack([PIXELS, PIXELS[:, :, :1]])), id="colour with alpha"),
        pytest.param(palette(), id="palette"),
        pytest.param(palette(transparency=3), id="palette with a transparent entry"),
        pytest.param(encoded(pixels=PIXELS[:, :, 0], transparency=3), id="a transparent gray level"),
        pytest.param(encoded("GIF", save_all=True, append_images=[Image.new("RGB", (20, 12))]), id="animation"),
        pytest.param(encoded("TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), id="pages"),
        *(pytest.param(rotated(turn), id=f"orientation {turn}") for turn in range(10)),
    ],
)
def test_pixels_are_those_of_opencv(content):
    assert np.array_equal(decode_image(content, "BGR"), by_opencv(content))


@pytest.mark.parametrize("suffix", [".ppm", ".tiff"])
def test_colours_of_16_bits_differ_by_rounding_alone(suffix):
    content = by_cv2(suffix, np.dstack([GRAY16] * 3))
    np.testing.assert_allclose(decode_image(content, "BGR").astype(int), by_opencv(content), atol=1)


# In TIFF files OpenCV multiplies colours by their alpha, and turns some by their orientation but not others; there the
# reader does as detectron2's.
LOSSLESS = {"L": ("PNG", "TIFF", "BMP"), "RGB": ("PNG", "TIFF", "BMP"), "RGBA": ("PNG",), "I;16": ("PNG", "TIFF")}


@given(st.data())
def test_any_lossless_image_has_the_pixels_of_opencv(data):
    mode = data.draw(st.sampled_from(sorted(LOSSLESS)))
    file_format, turn = data.draw(st.sampled_from(LOSSLESS[mode])), data.draw(st.integers(0, 9))
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    size = width * height * {"L": 1, "RGB": 3, "RGBA": 4, "I;16": 2}[mode]
    image = Image.frombytes(mode, (width, height), data.draw(st.binary(min_size=size, max_size=size)))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[274] = turn
    image.save(buffer, file_format, **({"exif": exif} if file_format == "PNG" else {}))
    content = buffer.getvalue()
    pixels = decode_image(content, "RGB")
    assert np.array_equal(pixels[:, :, ::-1], by_opencv(content)) and pixels.shape[:2] == image_size(content)


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [(GRAY16.astype(np.int32), "integers of 32 bits"), (GRAY16 / np.float32(65535), "floating point")],
)
def test_pixels_of_unknown_range_are_refused_as_by_opencv(pixels, kind):
    content = encoded("TIFF", pixels)
    assert by_opencv(content) is None
    with pytest.raises(UnreadableImageError, match=f"a.tif: pixels are {kind}.*expected 8 or 16 bits"):
        read_image({"file_name": "a.tif", "image_bytes": content}, "RGB")


@given(
    st.one_of(st.binary(max_size=200), st.tuples(st.sampled_from(["PNG", "GIF", "TIFF"]), st.integers(0), st.binary()))
)
def test_any_bytes_are_an_image_or_an_unreadable_one(content):
    if isinstance(content, tuple):
        file_format, place, other = content
        good = encoded(file_format)
        place %= len(good)
        content = good[:place] + other + good[place + len(other) :]
    try:
        assert read_image({"file_name": "a", "image_bytes": content}, "RGB").dtype == np.uint8
    except UnreadableImageError as error:
        assert "\n" not in str(error)


def test_formats_and_suffixes_belong_together():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm", ".jp2"} <= set(IMAGE_SUFFIXES)
    assert not {".eps", ".pdf", ".svg", ".mp4", ".txt"} & set(IMAGE_SUFFIXES)


# --- what a header says


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9])
def test_the_size_of_a_header_is_that_of_the_pixels(image_format, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(image_format, exif=exif)
    kind = image_kind(content)
    assert kind.upright_size == image_size(content) == decode_image(content, "RGB").shape[:2]
    assert kind.file_format == image_format and kind.orientation == (orientation if orientation in (3, 6, 8) else 1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded("JPEG", PIXELS[:, :, 0]), (True, False, False)),
        (encoded(pixels=PIXELS[:, :, :2]), (True, True, False)),
        (encoded(pixels=np.dstack([PIXELS, PIXELS[:, :, :1]])), (False, True, False)),
        (palette(), (False, False, False)),
        (palette(transparency=3), (False, True, False)),
        (encoded(pixels=GRAY16), (True, False, False)),
        (encoded("GIF", save_all=True, append_images=[Image.new("RGB", (20, 12))]), (False, False, True)),
        (encoded("TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), (False, False, True)),
        (CUT_FILES["gray"][:-300], (True, False, False)),
    ],
)
def test_a_header_says_gray_transparent_and_several_images(content, expected):
    kind = image_kind(content)
    assert (kind.is_gray, kind.has_alpha, kind.is_animated) == expected


@pytest.mark.parametrize("content", [b"", b"text", encoded()[:20], encoded("JPEG")[:20]])
def test_a_header_of_no_image_is_an_error_in_one_line(content):
    with pytest.raises(ValueError, match=".") as raised:
        image_kind(content)
    assert "\n" not in str(raised.value) and "0x" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_systems_without_some_numbers_of_disk_errors_read_images_too(monkeypatch):
    # macOS and Windows have no EREMOTEIO.
    monkeypatch.delattr(errno, "EREMOTEIO")
    module = runpy.run_module("glipv2_d2.data.image_reading")
    assert module["image_fault"](OSError(errno.EIO, "cut", "a.jpg")) == f"cut, {module['DISK_FAULT']}"
    assert module["image_fault"](OSError(errno.EACCES, "refused", "a.jpg")) == "refused"


@pytest.mark.parametrize(
    ("suffix", "expected"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), (".tif", "TIFF"), (".eps", ""), ("", "")]
)
def test_suffixes_have_their_format(suffix, expected):
    assert format_of_suffix(suffix) == expected
