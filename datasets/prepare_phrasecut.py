"""Lay out PhraseCut: its annotations, and links to the images of Visual Genome that they are about.

    python datasets/prepare_phrasecut.py --annotations VGPhraseCut_v0 --images VG_100K VG_100K_2

The folder of the annotations is that of the release, with ``refer_{train,miniv,val,test}.json`` and
``image_data_split.json``. Images are linked, or copied with ``--copy``; images that are there already stay.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from checked_files import write_atomically

from glipv2_d2.plurals import counted

SPLITS = ("train", "miniv", "val", "test")
SIZES = "image_data_split.json"
_MOST_NAMED = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Lay out the files, and report what each split has and which images are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the release")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of Visual Genome's images")
    parser.add_argument("--output", type=Path, default=root / "phrasecut", help="default: %(default)s")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    options = parser.parse_args(arguments)
    try:
        prepare(options.annotations, options.images, options.output, options.copy)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def prepare(annotations: Path, image_folders: Sequence[Path], output: Path, copy: bool) -> None:
    """Make the folder of the dataset.

    Raises:
        OSError: A folder or file is missing or cannot be written.
        ValueError: No split is there, a file is not a list of tasks, or none of its images is there.
    """
    names = [f"refer_{split}.json" for split in SPLITS if (annotations / f"refer_{split}.json").is_file()]
    if not names:
        raise ValueError(f"{annotations}: expected refer_train.json, refer_val.json or refer_test.json, found none")
    for folder in image_folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of images of Visual Genome, found none")
    images_of = {name: _image_ids(annotations / name) for name in names}
    (output / "images").mkdir(parents=True, exist_ok=True)
    for name in [*names, SIZES]:
        content = (annotations / name).read_bytes()
        if not (output / name).is_file() or (output / name).read_bytes() != content:
            write_atomically(output / name, content)
    wanted = sorted({image_id for ids in images_of.values() for image_id in ids})
    missing = {image_id for image_id in wanted if not _place(image_id, image_folders, output / "images", copy)}
    if len(missing) == len(wanted):
        raise ValueError(f"{image_folders[0]}: expected {wanted[0]}.jpg, found none of the {len(wanted)} images")
    for name, ids in images_of.items():
        lacking = sorted(missing.intersection(ids))
        some = ", ".join(f"{image_id}.jpg" for image_id in lacking[:_MOST_NAMED])
        note = f", {len(lacking)} of them missing ({some}{', ...' * (len(lacking) > _MOST_NAMED)})" if lacking else ""
        print(f"{output / name}: {counted(len(ids), 'phrase')} of {counted(len(set(ids)), 'image')}{note}")


def _image_ids(file: Path) -> list[int]:
    """The image of each task; ``register_phrasecut`` reads the rest, and leaves out what is malformed."""
    try:
        tasks = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected json, found none ({error})") from error
    ids = [task.get("image_id") for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    ids = [image_id for image_id in ids if type(image_id) is int]
    if not ids:
        raise ValueError(f"{file}: expected a list of tasks with an image_id, found none")
    return ids


def _place(image_id: int, image_folders: Sequence[Path], images: Path, copy: bool) -> bool:
    """Put an image into the folder of the dataset, if it is not there; returns whether it is there now."""
    target = images / f"{image_id}.jpg"
    if target.is_file():
        return True
    target.unlink(missing_ok=True)  # a link whose end is gone
    for folder in image_folders:
        source = folder / target.name
        if source.is_file():
            if copy:
                write_atomically(target, source.read_bytes())
            else:
                target.symlink_to(source.resolve())
            return True
    return False


if __name__ == "__main__":
    main()
