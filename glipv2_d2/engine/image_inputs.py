"""Images in the forms that people have them: paths, addresses, bytes, PIL images, arrays and tensors."""

from __future__ import annotations

import http.client
import os
import time
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.image_reading import UnreadableImageError, read_image, read_pil_image
from ..errors import InputError, one_line
from ..paths import is_remote

Value = TypeVar("Value")
ImageInput: TypeAlias = np.ndarray | Tensor | Image.Image | str | os.PathLike | bytes

CHANNEL_ORDERS = ("BGR", "RGB")

# Bounds of a download: bytes, and seconds as a whole.
_MAX_BYTES = 2**26
_MAX_SECONDS = 30.0
_READ_AT_ONCE = 2**18


def as_bgr(
    image: ImageInput,
    *,
    channel_order: str = "BGR",
    allow_downloads: bool = False,
    truncated: list[str] | None = None,
) -> np.ndarray:
    """Return an image in any form as an array in BGR order; files give the pixels that reading a dataset gives.

    Args:
        image: Path of a file; http or https address of one; bytes of one; PIL image, turned upright by its EXIF
            orientation; numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or tensor, which may also have its
            channels first, as (C, H, W) with C 1, 3 or 4, and is read so if both are possible. Arrays and tensors are
            uint8 or floating point in 0..255. Gray levels become three equal channels, transparency is left out.
        channel_order: Order of the channels in arrays and tensors, "BGR" or "RGB". Files and PIL images know theirs.
        allow_downloads: Fetch addresses: at most 64 MiB in 30 seconds.
        truncated: For files, see ``read_image``.

    Returns:
        (H, W, 3), an array of this shape in BGR order as it is.

    Raises:
        TypeError: It is something else.
        InputError: An array is not as above, a file or an address cannot be read, or downloads are not allowed.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise InputError(f"channel_order: expected 'BGR' or 'RGB', found {channel_order!r:.100}")
    if isinstance(image, (str, os.PathLike)):
        return _read_named(os.fspath(image), allow_downloads, truncated)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return read_image({"file_name": "image", "image_bytes": bytes(image)}, "BGR", truncated)
    if isinstance(image, Image.Image):
        return read_pil_image(image, "BGR")
    array = _with_three_channels(_as_array(image))
    _check_image(array)
    return array if channel_order == "BGR" else array[:, :, ::-1]


def is_address(text: Any) -> bool:
    """Tell whether an image is the http or https address of one."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


def source_of(image: Any) -> str | None:
    """Return the path or address of an image; None if it has neither."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def in_batches(items: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Yield lists of ``size`` items, the last one shorter; if an error ends the items, those before it come first."""
    batch: list[Value] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                full, batch = batch, []
                yield full
    except (Exception, KeyboardInterrupt):
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _check_image(image: np.ndarray) -> None:
    """Check that an image (H, W, 3) is not empty, and of numbers in 0..255.

    Raises:
        InputError: It is not; the message says what was found.
    """
    if 0 in image.shape:
        raise InputError(f"image: expected shape (H, W, 3), found {image.shape}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"image: expected uint8 or floating point in 0..255, found {image.dtype}")
    if not np.isfinite(image).all():
        raise InputError("image: expected finite numbers in 0..255, found NaN or infinity")
    low, high = image.min(), image.max()
    if low < 0 or high > 255:
        raise InputError(f"image: expected numbers in 0..255, found {low:g} to {high:g}; scale or clip it")
    if 0 < high <= 1 and image.dtype != np.uint8:
        raise InputError(
            f"image: expected numbers in 0..255, found none above {high:g}; multiply an image in 0..1 by 255"
        )


def _as_array(image: Any) -> np.ndarray:
    """Return an array as it is, and a tensor as an array with its channels last."""
    if isinstance(image, np.ndarray):
        return image
    if not isinstance(image, Tensor):
        raise TypeError(
            "image: expected a path, an address, bytes, a PIL image, a numpy array (H, W, 3) or a tensor, found "
            f"{type(image).__name__}"
        )
    tensor = image.detach().cpu()
    # numpy has no bfloat16.
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def _with_three_channels(image: np.ndarray) -> np.ndarray:
    """Return gray images with three equal channels, and images with a fourth channel without it."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise InputError(f"image: expected shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), found {image.shape}")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3] if image.shape[2] == 4 else image


def _read_named(name: str, allow_downloads: bool, truncated: list[str] | None) -> np.ndarray:
    if not is_address(name):
        # Other addresses that detectron2 knows would be fetched.
        if is_remote(name):
            raise InputError(f"image: expected a path, or an address with http or https, found {name!r:.200}")
        if os.path.isdir(name):
            raise InputError(f"image: expected an image, found the folder {name!r:.200}; give a list of its files")
        return read_image({"file_name": name}, "BGR", truncated)
    if not allow_downloads:
        raise InputError(f"image: expected a file, found the address {name!r:.200}; allow_downloads=True fetches it")
    return read_image({"file_name": name, "image_bytes": download(name)}, "BGR", truncated)


def download(address: str) -> bytes:
    """Fetch what an http or https address holds, within bounds.

    Raises:
        UnreadableImageError: There is no answer, it takes too long, or it is too large; the message is one line.
    """
    # Without handlers for other kinds of addresses a redirection cannot lead to a file of this machine.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(address, headers={"User-Agent": "glipv2_d2"})
    limit, content = time.monotonic() + _MAX_SECONDS, bytearray()
    try:
        with opener.open(request, timeout=_MAX_SECONDS) as answer:
            while block := answer.read1(_READ_AT_ONCE):
                content += block
                if len(content) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES} bytes")
                if time.monotonic() > limit:
                    raise TimeoutError(f"not complete after {_MAX_SECONDS:g} seconds")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreadableImageError(f"{address}: {one_line(error)}; expected an image at this address") from error
    return bytes(content)
