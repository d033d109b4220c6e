"""List the captions of Karpathy's file as the generator of pseudo boxes reads them, one caption a line.

    python datasets/prepare_captions.py                      # COCO's, in $DETECTRON2_DATASETS/karpathy
    python datasets/prepare_captions.py FILE --output captions.jsonl --splits train

A line is ``{"filename": "train2014/COCO_train2014_000000000009.jpg", "caption": ...}``.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checked_files import check, write_atomically

from glipv2_d2.errors import one_line
from glipv2_d2.plurals import counted


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the lines; an existing file is replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "karpathy"
    parser.add_argument("file", type=Path, nargs="?", default=folder / "dataset_coco.json", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=folder / "captions_coco.jsonl", help="default: %(default)s")
    parser.add_argument("--splits", nargs="+", default=["train", "restval"], help="default: train restval")
    options = parser.parse_args(arguments)
    try:
        content = json.loads(options.file.read_text("utf-8"))
        captions = list_captions(content, str(options.file), options.splits)
        lines = "".join(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
        write_atomically(options.output, lines.encode())
    except (OSError, ValueError, RecursionError) as error:
        sys.exit(f"error: {options.file}: expected a json file of Karpathy's splits, found another ({one_line(error)})")
    print(f"{options.output}: {counted(len(captions), 'caption')}")


def list_captions(content: Any, source: str, splits: Sequence[str]) -> list[dict[str, str]]:
    """Return ``filename`` and ``caption`` of each caption of some splits, in the order of the file.

    Raises:
        ValueError: The content is not that of Karpathy's file, or has no caption of these splits.
    """
    images = content.get("images") if isinstance(content, dict) else None
    check(isinstance(images, list), "images", images, "a list")
    captions = []
    for index, image in enumerate(images):
        check(isinstance(image, dict), f"images[{index}]", image, "an object")
        if image.get("split") not in splits:
            continue
        path = "/".join(filter(None, [_text(image, "filepath", index, default=""), _text(image, "filename", index)]))
        sentences = image.get("sentences")
        check(isinstance(sentences, list), f"images[{index}].sentences", sentences, "a list")
        for sentence in sentences:
            check(isinstance(sentence, dict), f"images[{index}].sentences", sentence, "objects with raw")
            captions.append({"filename": path, "caption": _text(sentence, "raw", index).strip()})
    if not captions:
        raise ValueError(f"{source}: found no caption of the splits {', '.join(splits)}")
    return captions


def _text(entry: dict, field: str, index: int, default: Any = None) -> str:
    value = entry.get(field, default)
    check(isinstance(value, str), f"images[{index}]: {field}", value, "a string")
    return value


if __name__ == "__main__":
    main()
