"""Read the image of a dataset dict: a file of its own, bytes that came along, or a line of a TSV file."""

from __future__ import annotations

import base64
import errno
import io
import math
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError, one_line
from .datasets.skip_report import DataReport

# What PIL and its decoders raise for missing, truncated and broken files.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)

# Formats that PIL decodes by itself; for others it would start a program with the bytes. Older versions lack some.
_OWN_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
Image.init()
_FORMATS = tuple(name for name in _OWN_FORMATS if name in Image.OPEN)

# File suffixes of these formats, lower case with the dot.
IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS))

# Those of other images: photographs of phones, raw files of cameras, drawings.
_OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".svg")
UNREAD_SUFFIXES = tuple(suffix for suffix in _OTHER_SUFFIXES if suffix not in IMAGE_SUFFIXES)

# Formats whose gray levels PIL gives in its mode "I" have 16 bits; in a TIFF file the same mode has 32.
_FORMATS_OF_16_BITS = ("PNG", "PPM", "JPEG2000")

_TRUNCATED = "truncated images were decoded as far as they go, save them again"
# Truncated images that a warning names.
_MOST_NAMED = 3

# The limits for images without and with a size in their annotation. A small file can claim any size, and the memory for
# it, up to 14 bytes a pixel, is taken before the pixels are read.
_MAX_PIXELS = 2**26
_MAX_ANNOTATED_PIXELS = 2**27


# The end of a JPEG file, as often as the longest of its segments needs it: libjpeg ends the data of a file that was cut
# off in this way.
_JPEG_BEGIN = b"\xff\xd8"
_JPEG_ENDS = b"\xff\xd9" * 2**15
# What libjpeg leaves where it has no data, but for one block of up to 16 x 16 pixels, which may reach a little further.
_NO_DATA_GRAY = 128
_MOST_INVENTED = 2 * 16 * 16


# In the fault of an image whose bytes did not come, as with EIO: the file may be whole.
DISK_FAULT = "an error of the disk or of the way to it, not of the image"
# Not every system has all of them.
_DISK_ERRORS = {
    getattr(errno, name, errno.EIO) for name in ("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN")
}


class UnreadableImageError(InputError):
    """An image file that is missing, broken, or not of the size its annotation says; the message is one line."""


def read_image(
    dataset_dict: dict, image_format: str, truncated: list[str] | None = None, least_side: int | None = None
) -> np.ndarray:
    """Read the image that a dataset dict names, as OpenCV and detectron2 do; everything that reads images calls this.

    The image is turned upright by its EXIF orientation, transparency is left out, the first image of an animation is
    taken, and 16 bits a channel become their upper 8. A JPEG file that was cut off is decoded as far as it goes; the
    rest is gray.

    Args:
        dataset_dict: Holds ``file_name``, and ``image_bytes`` or ``tsv_offset`` where the image is not a file of its
            own (see ``structures``); stays as it is. The file is a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000 or
            AVIF with 8 or 16 bits a channel and at most 67 million pixels, with ``height`` and ``width`` 134 million.
        image_format: "BGR" or "RGB".
        truncated: Gets a line that names the image, if it is cut off. Without a list a process warns of the first such
            image.
        least_side: A JPEG is decoded at a half, a quarter or an eighth of its size where the short side keeps so many
            pixels; None: at its size.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnreadableImageError: The image cannot be read, or its size differs from the ``height`` and ``width`` given.
    """
    name = dataset_dict["file_name"]
    try:
        if "image_bytes" in dataset_dict:
            content = dataset_dict["image_bytes"]
        elif "tsv_offset" in dataset_dict:
            name = f"{name} at byte {dataset_dict['tsv_offset']}"
            content = read_tsv_image(dataset_dict["file_name"], dataset_dict["tsv_offset"])
        else:
            with PathManager.open(name, "rb") as file:
                content = file.read()
        size = dataset_dict.get("height"), dataset_dict.get("width")
        pixels, missing = _decode(content, image_format, *size, least_side)
    except _DECODING_ERRORS as error:
        what = "a readable image of the size in its annotation" if "height" in dataset_dict else "a readable image"
        raise UnreadableImageError(f"{name}: {image_fault(error)}; expected {what}") from error
    if missing is not None:
        line = f"{name}: {missing}"
        if truncated is not None:
            truncated.append(line)
        else:
            level = DataReport.current().level
            log_first_n(level, f"{_TRUNCATED}: {line}; others like it are not named", name=__name__)
    return pixels


def warn_of_truncated_images(lines: Sequence[str]) -> None:
    """Log a warning of images that were cut off, once in a process; ``read_image`` makes the lines."""
    named = "; ".join(lines[:_MOST_NAMED])
    rest = "; ..." if len(lines) > _MOST_NAMED else ""
    level = DataReport.current().level
    log_first_n(level, f"{len(lines)} {_TRUNCATED}: {named}{rest}", name=__name__, key="message")


def read_pil_image(image: Image.Image, image_format: str) -> np.ndarray:
    """Return an image of PIL with the pixels that ``read_image`` gives for its file.

    Raises:
        UnreadableImageError: Its file is broken, which PIL finds only when the pixels are read, or its gray levels have
            an unknown range.
    """
    try:
        return _as_array(ImageOps.exif_transpose(image), image.format, image_format)
    except _DECODING_ERRORS as error:
        raise UnreadableImageError(f"image: {image_fault(error)}; expected a readable image") from error


def _decode(
    content: bytes, image_format: str, height: int | None, width: int | None, least_side: int | None
) -> tuple[np.ndarray, str | None]:
    """Decode bytes, and say in words what is missing of a truncated file, None for a whole one.

    Raises:
        Exception: One of ``_DECODING_ERRORS``: they are not an image, or not one of the size.
    """
    try:
        return _decode_whole(content, image_format, height, width, least_side), None
    except OSError as error:
        if not content.startswith(_JPEG_BEGIN):
            raise
        try:
            pixels = _decode_whole(content + _JPEG_ENDS, image_format, height, width, least_side)
        except OSError:
            raise error from None
        num_known = np.count_nonzero((pixels != _NO_DATA_GRAY).any(axis=2))
        if num_known <= min(_MOST_INVENTED, pixels.shape[0] * pixels.shape[1] // 2):
            raise OSError(f"{error}, and holds no pixels") from error
        return pixels, str(error)


def _decode_whole(
    content: bytes, image_format: str, height: int | None, width: int | None, least_side: int | None
) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        limit = _MAX_PIXELS
        if height is not None and width is not None:
            # First, since a PNG is decoded to find its orientation.
            if image.height * image.width != height * width:
                raise ValueError(f"{image.height} x {image.width} pixels, and {height} x {width} in its annotation")
            limit = _MAX_ANNOTATED_PIXELS
        found = _upright_size(image, limit)
        for side, expected, number in zip(("height", "width"), (height, width), found, strict=True):
            if expected is not None and number != expected:
                raise ValueError(f"{side} is {number}, and {expected} in its annotation")
        if least_side is not None:
            # libjpeg leaves high frequencies of its blocks out; the decoders of other formats ignore it.
            share = least_side / min(image.size)
            image.draft(None, (math.ceil(share * image.width), math.ceil(share * image.height)))
        # In place: a copy of a large image is a gigabyte.
        ImageOps.exif_transpose(image, in_place=True)
        return _as_array(image, image.format, image_format)


def _as_array(upright: Image.Image, file_format: str | None, image_format: str) -> np.ndarray:
    """Return an upright image of PIL as (H, W, 3) uint8."""
    return detection_utils.convert_PIL_to_numpy(_with_8_bits(upright, file_format), image_format)


class ImageShape(NamedTuple):
    """The size of an image file, which its header says.

    Attributes:
        height, width: In pixels, upright, as ``read_image`` returns the image.
        orientation: The EXIF orientation by which it was turned, 1 to 8; 1 for every other value.
    """

    height: int
    width: int
    orientation: int


def read_image_shape(path: str | os.PathLike[str]) -> ImageShape:
    """Read the size of an image file of a local folder; of its pixels only those of a PNG are decoded.

    Raises:
        UnreadableImageError: The file is missing or not an image, or it has more than 67 million pixels.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            height, width = _upright_size(image, _MAX_PIXELS)
            return ImageShape(height, width, _orientation(image.getexif()))
    except _DECODING_ERRORS as error:
        raise UnreadableImageError(f"{os.fspath(path)}: {image_fault(error)}; expected an image") from error


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(0x0112, 1)
    return value if value in range(1, 9) else 1


class ImageKind(NamedTuple):
    """What an image file is besides its pixels.

    Attributes:
        file_format: As PIL names it, such as "JPEG".
        orientation: EXIF orientation, 1 to 8; 1 for every other value, and for a PNG that has it behind its pixels.
        upright_size: Height and width in pixels with this orientation.
        is_gray: It has one channel, besides transparency.
        has_alpha: It has transparency.
        is_animated: It holds more than one image.
    """

    file_format: str
    orientation: int
    upright_size: tuple[int, int]
    is_gray: bool
    has_alpha: bool
    is_animated: bool

    @property
    def num_pixels(self) -> int:
        """Height times width."""
        return self.upright_size[0] * self.upright_size[1]


def image_kind(content: bytes) -> ImageKind:
    """Return what the header of an image file says; no pixel is decoded.

    Raises:
        ValueError: The bytes are not an image.
    """
    try:
        with _open_cut(content) as image:
            # A PNG without it in its header would be decoded.
            exif = Image.Exif() if image.format == "PNG" and "exif" not in image.info else image.getexif()
            orientation = _orientation(exif)
            size = (image.height, image.width)
            return ImageKind(
                # Photographs of phones with a second, small image.
                "JPEG" if image.format == "MPO" else str(image.format),
                orientation,
                # PIL gives the sides of a TIFF upright already.
                size[::-1] if orientation > 4 and image.format != "TIFF" else size,
                image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"),
                image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
                image.format != "MPO" and getattr(image, "is_animated", False),
            )
    except _DECODING_ERRORS as error:
        raise ValueError(image_fault(error)) from error


def _open_cut(content: bytes) -> Image.Image:
    """Open an image file, also one that ends between its header and its pixels."""
    try:
        return Image.open(io.BytesIO(content), formats=_FORMATS)
    except OSError:
        if not content.startswith(_JPEG_BEGIN):
            raise
        return Image.open(io.BytesIO(content + _JPEG_ENDS), formats=_FORMATS)


def format_of_suffix(suffix: str) -> str:
    """Return the format, as PIL names it, of a file suffix with its dot in lower case; "" for one that is not read."""
    name = Image.registered_extensions().get(suffix, "")
    return name if name in _FORMATS else ""


def image_size(content: bytes) -> tuple[int, int]:
    """Return the height and width, upright, of the bytes of an image file.

    Raises:
        ValueError: The bytes are not an image, or it has more than 67 million pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return _upright_size(image, _MAX_PIXELS)
    except _DECODING_ERRORS as error:
        raise ValueError(image_fault(error)) from error


def image_fault(error: Exception) -> str:
    """Return what is wrong with an image in one line, the same at each reading."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify a format of images"  # PIL's own text has the address of an object.
    if isinstance(error, OSError) and error.strerror:
        # Python's own text has the path once more.
        return f"{error.strerror}, {DISK_FAULT}" if error.errno in _DISK_ERRORS else error.strerror
    return one_line(error)


def _upright_size(image: Image.Image, limit: int) -> tuple[int, int]:
    """Return height and width as they are once the EXIF orientation is applied; 5 to 8 exchange the sides."""
    if image.height * image.width > limit:
        raise ValueError(f"{image.height} x {image.width} pixels are more than {limit}")
    # PIL gives the sides of a TIFF upright already.
    turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _with_8_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """Return an image whose gray levels have at most 8 bits; PIL would clip larger ones to white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in _FORMATS_OF_16_BITS):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "floating point" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"pixels are {kind} of unknown range, expected 8 or 16 bits a channel")
    return image


def read_tsv_image(tsv_file: str, offset: int) -> bytes:
    """Return the bytes of the image that stands in base64 in the last column of the line that begins at ``offset``.

    Raises:
        OSError: The file cannot be read.
        ValueError: No line begins there, it has one column only, or the last column is not base64.
    """
    with PathManager.open(tsv_file, "rb") as file:
        file.seek(offset)
        columns = file.readline().rstrip(b"\r\n").split(b"\t")
    if len(columns) < 2:
        raise ValueError(f"the line has {len(columns)} column, expected a key and an image in base64")
    return base64.b64decode(columns[-1], validate=True)
