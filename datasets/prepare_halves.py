"""Halve an annotated set: boxes for one half, bare captions for the other, as the generator of pseudo boxes reads them.

    python datasets/prepare_halves.py datasets/stampworld

From ``annotations/train.json`` it writes ``annotations/half.json``, every second image with its boxes, and
``annotations/other_half_captions.jsonl``, the file names and captions of the rest.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from checked_files import write_atomically, write_json

from glipv2_d2.plurals import counted

SPLIT = "train"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files over existing ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the dataset")
    annotations = parser.parse_args(arguments).folder / "annotations"
    try:
        content = json.loads((annotations / f"{SPLIT}.json").read_text("utf-8"))
        half, captions = split_halves(content)
        write_json(annotations / "half.json", half)
        lines = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
        write_atomically(annotations / "other_half_captions.jsonl", lines.encode())
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {annotations / SPLIT}.json: expected COCO json whose images have a caption, found {error!r}")
    print(f"{annotations}: {counted(len(half['images']), 'image')} with boxes, {counted(len(captions), 'caption')}")


def split_halves(content: dict) -> tuple[dict, list[dict]]:
    """Return COCO json with every second image, and ``filename`` and ``caption`` of the others, in their order."""
    images = content["images"]
    kept = {image["id"] for image in images[::2]}
    half = {
        **content,
        "images": images[::2],
        "annotations": [one for one in content["annotations"] if one["image_id"] in kept],
    }
    return half, [{"filename": image["file_name"], "caption": image["caption"]} for image in images[1::2]]


if __name__ == "__main__":
    main()
