import base64
import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image  # noqa: F401

from glipv2_d2.data.image_reading import UnreadableImageError, decode_image, image_size, read_image, read_tsv_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(image_format="PNG", pixels=PIXELS, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    """A JPEG of 20 x 12 pixels that is shown turned by a quarter."""
    exif = Image.Exif()
    exif[274] = 6
    return encoded("JPEG", exif=exif)


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


@pytest.mark.parametrize("pixels", [PIXELS[:, :, 0], np.dstack([PIXELS, PIXELS[:, :, :1]])])
def test_grey_and_transparent_images_have_three_channels(pixels):
    assert decode_image(encoded(pixels=pixels), "BGR").shape == (12, 20, 3)


def test_the_orientation_is_applied_wherever_the_image_stands(tmp_path):
    (tmp_path / "a.jpg").write_bytes(rotated())
    from_file = read_image({"file_name": str(tmp_path / "a.jpg")}, "RGB")
    assert from_file.shape == (20, 12, 3) and image_size(rotated()) == (20, 12)
    assert np.array_equal(decode_image(rotated(), "RGB"), from_file)


@pytest.mark.parametrize("content", [b"", b"text", encoded()[:-40], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"])
def test_bytes_that_are_no_image_are_named(content):
    with pytest.raises(UnreadableImageError, match="shard.tar/a.png: .*expected a readable image") as raised:
        read_image({"file_name": "shard.tar/a.png", "image_bytes": content}, "BGR")
    assert "\n" not in str(raised.value)


def test_formats_that_would_start_a_program_are_not_opened():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "EPS")
    with pytest.raises(OSError, match="cannot identify"):
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


def test_a_missing_tsv_file_is_named():
    with pytest.raises(UnreadableImageError, match="gone.tsv"):
        read_image({"file_name": "gone.tsv", "tsv_offset": 0}, "BGR")


def test_the_last_column_of_a_line_is_its_image(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"key\t7\t" + base64.b64encode(b"pixels") + b"\r\nnext\tx")
    assert read_tsv_image(str(tmp_path / "a.tsv"), 0) == b"pixels"
    with pytest.raises(ValueError):
        read_tsv_image(str(tmp_path / "a.tsv"), 4 + 2 + 8 + 2)


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


def test_annotated_image_may_be_larger_than_one_of_unknown_size(monkeypatch):
    monkeypatch.setattr("glipv2_d2.data.image_reading._MAX_PIXELS", 1)
    assert decode_image(encoded(), "RGB", 12, 20).shape == (12, 20, 3)


def test_file_that_pil_would_hand_to_another_program_is_unreadable(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **_: started.append(arguments))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
        read_image({"file_name": str(tmp_path / "a.jpg")}, "RGB")
    assert started == []
