import base64
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from glipv2_d2.data.image_reading import UnreadableImageError, read_image
from glipv2_d2.engine import image_inputs
from glipv2_d2.engine.image_inputs import as_bgr, download

BGR = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
RGB = BGR[:, :, ::-1]
GRAY = BGR[:, :, 0]


def encoded(pixels=RGB, image_format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_an_array_in_bgr_order_is_taken_as_it_is(dtype):
    image = BGR.astype(dtype)
    assert as_bgr(image) is image


def chw(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


@pytest.mark.parametrize(
    "image, order, expected",
    [
        (RGB, "RGB", BGR),
        (GRAY, "BGR", np.stack([GRAY] * 3, axis=2)),
        (GRAY[:, :, None], "RGB", np.stack([GRAY] * 3, axis=2)),
        (np.dstack([BGR, GRAY]), "BGR", BGR),
        (np.dstack([RGB, GRAY]), "RGB", BGR),
        (chw(BGR), "BGR", BGR),
        (chw(RGB), "RGB", BGR),
        (chw(np.dstack([RGB, GRAY])), "RGB", BGR),
        (torch.from_numpy(BGR), "BGR", BGR),
        (torch.from_numpy(GRAY.copy()), "BGR", np.stack([GRAY] * 3, axis=2)),
        (torch.from_numpy(GRAY.copy())[None], "BGR", np.stack([GRAY] * 3, axis=2)),
        (chw(BGR).bfloat16(), "BGR", chw(BGR).bfloat16().float().numpy().transpose(1, 2, 0)),
        (chw(BGR).float().requires_grad_(), "BGR", BGR),
        # Both are possible: the channels are first.
        (torch.arange(36).reshape(3, 4, 3).byte(), "BGR", np.arange(36).reshape(3, 4, 3).transpose(1, 2, 0)),
        (Image.fromarray(RGB), "BGR", BGR),
        (Image.fromarray(RGB), "RGB", BGR),
        (Image.fromarray(GRAY), "BGR", np.stack([GRAY] * 3, axis=2)),
        (Image.fromarray(np.dstack([RGB, GRAY])), "BGR", BGR),
        (Image.fromarray(GRAY.astype(np.uint16) * 256 + 7), "BGR", np.stack([GRAY] * 3, axis=2)),
        (encoded(), "RGB", BGR),
        (bytearray(encoded()), "BGR", BGR),
    ],
)
def test_every_form_gives_the_same_pixels(image, order, expected):
    found = as_bgr(image, channel_order=order)
    assert found.shape == expected.shape and (found == expected).all()


@pytest.mark.parametrize("content", [encoded(), encoded(image_format="JPEG"), encoded(GRAY, "JPEG")])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_path_and_an_opened_image_give_what_reading_a_dataset_gives(tmp_path, content, orientation):
    path = tmp_path / "a photo.jpg"
    exif = Image.Exif()
    exif[274] = orientation
    Image.open(io.BytesIO(content)).save(path, "PNG", exif=exif)
    expected = read_image({"file_name": str(path)}, "BGR")
    assert expected.shape == ((20, 12, 3) if orientation == 6 else (12, 20, 3))
    for form in (path, str(path), path.read_bytes(), Image.open(path)):
        assert (as_bgr(form) == expected).all()


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "image: expected a path, an address, bytes, a PIL image, .* found NoneType"),
        ([BGR], "found list"),
        (np.zeros((4, 4, 2), np.uint8), r"image: expected shape \(H, W\), .* found \(4, 4, 2\)"),
        (np.zeros((3, 4, 5), np.uint8), r"found \(3, 4, 5\)"),
        (torch.zeros(2, 5, 5), r"found \(2, 5, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"image: expected shape \(H, W, 3\), found \(0, 4, 3\)"),
        (np.zeros(5, np.uint8), r"found \(5,\)"),
        (np.zeros((4, 4), np.int64), "found int64"),
        (np.zeros((4, 4), bool), "found bool"),
        (torch.rand(3, 4, 4), "multiply an image in 0..1 by 255"),
        (np.full((4, 4, 3), np.inf), "NaN or infinity"),
        (np.full((4, 4, 3), 256.0), "found 256 to 256"),
        ("/", "image: expected an image, found the folder '/'; give a list of its files"),
        ("missing.jpg", "missing.jpg: .*expected a readable image$"),
        (b"no image", "image: .*expected a readable image$"),
        ("http://somewhere/a.jpg", "found the address 'http://somewhere/a.jpg'; allow_downloads=True fetches it"),
        ("HTTPS://somewhere/a.jpg", "allow_downloads=True"),
        ("ftp://somewhere/a.jpg", "expected a path, or an address with http or https, found 'ftp:"),
        ("detectron2://a.jpg", "expected a path, or an address with http or https"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises((TypeError, ValueError), match=message):
        as_bgr(image)


def test_a_broken_file_that_pil_has_opened_is_named(tmp_path):
    image = Image.open(io.BytesIO(encoded()[:60]))
    with pytest.raises(UnreadableImageError, match="image: .*expected a readable image"):
        as_bgr(image)


def test_an_unknown_channel_order_is_named():
    with pytest.raises(ValueError, match="channel_order: expected 'BGR' or 'RGB', found 'rgb'"):
        as_bgr(BGR, channel_order="rgb")


@pytest.fixture
def server():
    """A server of this machine with an image, a large file, a page, and redirections."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/to"):
                self.send_response(302)
                self.send_header("Location", {"/to-image": "/a.png", "/to-file": "file:///etc/passwd"}[self.path])
                self.end_headers()
                return
            pages = {"/a.png": encoded(), "/large": b"0" * 5000, "/page": b"<html>"}
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b"not here"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("page", ["/a.png", "/to-image"])
def test_an_address_is_fetched_if_that_is_allowed(server, page):
    assert (as_bgr(server + page, allow_downloads=True) == BGR).all()


@pytest.mark.parametrize(
    "page, message",
    [
        ("/page", "cannot identify a format of images"),
        ("/none", "HTTP Error 404"),
        ("/to-file", "file:///etc/passwd"),
        ("/large", "more than 4096 bytes"),
    ],
)
def test_an_address_without_an_image_is_named(server, page, message, monkeypatch):
    monkeypatch.setattr(image_inputs, "_MAX_BYTES", 4096)
    with pytest.raises(UnreadableImageError, match=message) as caught:
        as_bgr(server + page, allow_downloads=True)
    assert str(caught.value).startswith(f"{server}{page}: ")


def test_a_download_ends_in_time(server, monkeypatch):
    seconds = iter([0.0, 31.0])
    monkeypatch.setattr(image_inputs.time, "monotonic", lambda: next(seconds))
    with pytest.raises(UnreadableImageError, match="not complete after 30 seconds"):
        download(f"{server}/a.png")


def test_bytes_of_text_forms_are_not_guessed():
    with pytest.raises(UnreadableImageError):
        as_bgr(base64.b64encode(encoded()))
