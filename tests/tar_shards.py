"""Writes small WebDataset shards for tests: drawn images with grounding records beside them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(number: int, width: int = 64, height: int = 48) -> bytes:
    """A noise image that differs from number to number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(number: int, *, width: int = 64, height: int = 48, score: float = 0.9, **edits) -> dict:
    """A record of "a dog on sofa NUMBER" with a box for the dog and one for the sofa."""
    caption = f"a dog on sofa {number}"
    regions = [
        {"bbox": [4, 6, 24, 16], "phrase": "a dog", "tokens_positive": [[0, 5]], "score": score},
        {"bbox": [20, 20, 60, 40], "phrase": "sofa", "tokens_positive": [[9, 13]], "score": score},
    ]
    return {"height": height, "width": width, "grounding": {"caption": caption, "regions": regions}, **edits}


def sample_files(number: int, **options) -> dict[str, bytes]:
    """The files of one sample, as key.suffix to content."""
    image = png(number, options.get("width", 64), options.get("height", 48))
    return {f"{number:04d}.png": image, f"{number:04d}.json": json.dumps(record(number, **options)).encode()}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar file of these files, in their order."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, sizes: list[int], **options) -> str:
    """Write shards of so many samples, numbered through; return their pattern in braces."""
    number = 0
    for shard, size in enumerate(sizes):
        files: dict[str, bytes] = {}
        for _ in range(size):
            files |= sample_files(number, **options)
            number += 1
        write_tar(folder / f"caps-{shard:03d}.tar", files)
    return str(folder / f"caps-{{000..{len(sizes) - 1:03d}}}.tar")


def cut_tar(path: Path, name: str, num_bytes: int) -> None:
    """Cut a tar file off behind so many bytes of the content of one of its files."""
    with tarfile.open(path) as tar:
        end = tar.getmember(name).offset_data + num_bytes
    path.write_bytes(path.read_bytes()[:end])
