#!/usr/bin/env python3
"""Builds small detection datasets, of names that StampWorld's train never shows, to try few-shot tuning with.

Usage::

    python datasets/prepare_small_sets.py                     # three sets and one of all their names
    python datasets/prepare_small_sets.py --world shapeworld  # nothing is fetched

The novel names are shared out among the sets, like things together, each with scenes of its own names alone. Layout and
file names are those of ODinW: ``small_sets/a/{train,valid,test}/``, images and annotations_without_background.json in
one folder. The set ``all`` has all these names, and its test scenes are those of ``val_novel``.
"""

import argparse
import json
import os
import string
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from checked_files import write_atomically, write_json
from prepare_shapeworld import SOURCE_VERSION, draw_backgrounds, draw_shapes
from prepare_stampworld import load_source
from scenes.composer import Scene, SceneRules, compose_scene
from scenes.curation import CURATION
from scenes.dataset import JPEG_QUALITY, SceneSource, Split, plan_splits
from scenes.debian_packages import PackageError
from scenes.folder import SPLIT_SEEDS, DatasetParameters, plain, sole_writer
from scenes.options import add_cache_option
from tqdm import tqdm

FOLDERS = {"train": "train", "val": "valid", "test": "test"}
ANNOTATIONS = "annotations_without_background.json"
MANIFEST = "manifest.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the sets, or find them built."""
    options = _parse(arguments)
    try:
        with sole_writer(options.output):
            _build(options)
    except PackageError as error:
        sys.exit(f"error: {error}. Without these packages: --world shapeworld")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    parser.add_argument("--output", type=Path, default=root / "small_sets", help="default: $DETECTRON2_DATASETS/...")
    parser.add_argument("--world", choices=["stampworld", "shapeworld"], default="stampworld")
    add_cache_option(parser, "of StampWorld's packages")
    parser.add_argument("--num-novel", type=int, default=32, help="names, as of the world (default: %(default)s)")
    parser.add_argument("--num-sets", type=int, default=3, help="beside the one of all names (default: %(default)s)")
    for split, number in (("train", 80), ("val", 20), ("test", 50)):
        text = f"scenes in {split} of a set; the one of all names has as many as all others (default: %(default)s)"
        parser.add_argument(f"--num-{split}", type=int, default=number, help=text)
    parser.add_argument("--size", type=int, default=320, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="that of the world (default: %(default)s)")
    return parser.parse_args(arguments)


def _build(options: argparse.Namespace) -> None:
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "cache")}
    manifest = options.output / MANIFEST
    if not 1 <= options.num_sets <= min(options.num_novel, len(string.ascii_lowercase)):
        raise ValueError(f"--num-sets: expected 1 to {min(options.num_novel, 26)}, found {options.num_sets}")
    for split in FOLDERS:
        number = settings[f"num_{split}"]
        if number < 1:
            raise ValueError(f"--num-{split}: expected at least 1, found {number}")
    text = plain(_parameters(options)) | {"settings": settings}
    # As json has it, where a pair of numbers is a list.
    if manifest.is_file() and json.loads(manifest.read_text("utf-8")) == json.loads(json.dumps(text)):
        print(f"{options.output}: there already, with these parameters")
        return
    manifest.unlink(missing_ok=True)
    source = _source(options)
    sets = share_names(plan_splits(source, _parameters(options)), options.num_sets)
    for key, splits in sets.items():
        size = options.num_sets if key == "all" else 1
        for name, split in splits.items():
            write_split(options.output, key, name, split, size * settings[f"num_{name}"], options.seed, options.size)
    write_atomically(options.output / "LICENSES.md", source.license_text.encode())
    write_json(manifest, text)
    for key, splits in sets.items():
        print(f"{options.output / key}: {', '.join(sorted(splits['train'].cut_outs))}")


def share_names(world: Sequence[Split], num_sets: int) -> dict[str, dict[str, Split]]:
    """Make train, val and test of each set from the splits of a world.

    Names of one group stay together as far as sets of nearly equal size allow. Training scenes have the backgrounds of
    the world's train, the others those of its validation.

    Args:
        world: Output of ``plan_splits``; the first is train, the last has the novel names.
        num_sets: Sets besides "all".
    """
    train, novel = world[0], world[-1]
    groups = {name: cut_outs[0].category.group for name, cut_outs in novel.cut_outs.items()}
    names = sorted(groups, key=lambda name: (groups[name], name))
    parts = np.array_split(np.array(names, dtype=object), num_sets)
    shares = {letter: list(part) for letter, part in zip(string.ascii_lowercase, parts)} | {"all": list(novel.cut_outs)}
    backgrounds = {"train": train.backgrounds, "val": novel.backgrounds, "test": novel.backgrounds}
    return {
        key: {name: Split(name, 0, {one: novel.cut_outs[one] for one in share}, backgrounds[name]) for name in FOLDERS}
        for key, share in shares.items()
    }


def write_split(output: Path, key: str, name: str, split: Split, num_images: int, seed: int, size: int) -> None:
    """Draw the scenes of a split and write them with their json, which comes last."""
    folder = output / key / FOLDERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {category.name: index for index, category in enumerate(split.categories, start=1)}
    images, annotations = [], []
    # Tests of all names are the scenes of the world's val_novel: same generators, names and backgrounds.
    stream = SPLIT_SEEDS["val_novel"] if (key, name) == ("all", "test") else zlib.crc32(f"{key}/{name}".encode())
    for index in tqdm(range(1, num_images + 1), desc=f"{key}/{name}", unit="scene", delay=1, disable=None):
        rng = np.random.default_rng([seed, stream, index])
        scene = compose_scene(rng, split.cut_outs, split.backgrounds, SceneRules(size=size))
        file_name = f"{index:06d}.jpg"
        encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        write_atomically(folder / file_name, encoded.tobytes())
        images.append({"id": index, "file_name": file_name, "width": size, "height": size})
        annotations += _annotations(scene, index, ids, len(annotations))
    categories = [{"id": ids[one.name], "name": one.name, "supercategory": one.group} for one in split.categories]
    write_json(folder / ANNOTATIONS, {"categories": categories, "images": images, "annotations": annotations})


def _annotations(scene: Scene, image_id: int, ids: dict[str, int], num_before: int) -> list[dict]:
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": ids[one.cut_out.category.name],
            "bbox": list(one.box),
            "area": int(np.count_nonzero(one.mask)),
            "iscrowd": 0,
        }
        for number, one in enumerate(scene.labelled, start=num_before + 1)
    ]


def _parameters(options: argparse.Namespace) -> DatasetParameters:
    version = SOURCE_VERSION if options.world == "shapeworld" else repr(zlib.crc32(repr(CURATION).encode()))
    rules = SceneRules(size=options.size)
    sizes = (None, options.num_novel, options.num_train, options.num_val)
    return DatasetParameters(options.world, version, *sizes, options.seed, rules)


def _source(options: argparse.Namespace) -> SceneSource:
    max_side = round(SceneRules().max_side * options.size)
    if options.world == "stampworld":
        return load_source(options.cache.expanduser(), CURATION, options.size, max_side)
    cut_outs, backgrounds = draw_shapes(max_side), draw_backgrounds(options.size, options.seed)
    text = "# Where the pictures come from\n\nEverything is drawn by prepare_shapeworld.py: Apache-2.0.\n"
    return SceneSource(cut_outs, backgrounds, "drawn shapes on drawn grounds", "Apache-2.0", text)


if __name__ == "__main__":
    main()
