#!/usr/bin/env python3
"""Builds StampWorld: scenes of photographic cut-outs on photographs, with boxes, masks, captions and questions.

Usage::

    python datasets/prepare_stampworld.py
    python datasets/prepare_stampworld.py --num-names 24 --num-novel 8 --num-train 1500 --num-val 60

The pictures are composites of real photographs, not real scenes. They are made from two Debian packages, which the
system's package client fetches (about 200 MB, once) into a cache; nothing is installed.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dataset_folder import write_atomically, write_json
from dataset_options import add_dataset_options, parameters_from
from debian_packages import PackageError, fetch_packages, package_version
from scene_dataset import SceneSource, close_dataset, encode_jpeg, found_finished, write_dataset
from stamp_collection import (
    CURATED_VERSIONS,
    CURATION_FILE,
    PHOTOS_PACKAGE,
    STAMPS_PACKAGE,
    Curation,
    load_attributions,
    load_backgrounds,
    load_curation,
    load_real_photographs,
    load_stamps,
)

DESCRIPTION = "StampWorld: composites of real photographs, not real scenes"
REAL_MAX_SIDE = 800


def load_source(cache: Path, curation: Curation, size: int, max_side: int) -> tuple[SceneSource, Path]:
    """Fetch the packages if need be and read cut-outs and backgrounds; also the folder of the photographs."""
    folders = fetch_packages([STAMPS_PACKAGE, PHOTOS_PACKAGE], cache)
    versions = {name: package_version(folder) for name, folder in folders.items()}
    for name, version in versions.items():
        if version != CURATED_VERSIONS[name]:
            print(f"note: {name} is version {version}; the list of drawings was made for {CURATED_VERSIONS[name]}")
    stamps = folders[STAMPS_PACKAGE] / "usr/share/tuxpaint/stamps"
    resources = folders[PHOTOS_PACKAGE] / "usr/share/gcompris-qt/rcc"
    for folder in (stamps, resources):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder in the package")
    cut_outs = load_stamps(stamps, curation, max_side)
    backgrounds = load_backgrounds(resources, curation, size)
    activities = sorted({*curation.backgrounds, *curation.real})
    attributions = load_attributions(resources, activities)
    photographs = [background.identity for background in backgrounds]
    photographs += [f"{activity}/{file}" for activity, files in curation.real.items() for file in files]
    text = _license_text(versions, [cut_out.identity for cut_out in cut_outs], photographs, attributions)
    license_name = "stamps: GPL-2; photographs: see LICENSES.md"
    return SceneSource(cut_outs, backgrounds, DESCRIPTION, license_name, text), resources


def write_real(output: Path, resources: Path, curation: Curation) -> int:
    """Copy the photographs of one named animal each, with a json of their names; returns how many there are."""
    (output / "real").mkdir(exist_ok=True)
    photographs = load_real_photographs(resources, curation, REAL_MAX_SIDE)
    names = sorted({name for _, name, _ in photographs})
    images = []
    for index, (identity, name, pixels) in enumerate(photographs, start=1):
        file_name = f"{name.replace(' ', '_')}.jpg"
        write_atomically(output / "real" / file_name, encode_jpeg(pixels))
        height, width = pixels.shape[:2]
        size = {"width": width, "height": height}
        images.append({"id": index, "file_name": file_name, **size, "names": [name], "background": identity})
    content = {
        "info": {"description": "Real photographs, without boxes; names: what each shows"},
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, start=1)],
        "images": images,
        "annotations": [],
    }
    write_json(output / "annotations" / "real.json", content)
    return len(images)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the data set, or find it built."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_dataset_options(parser, "stampworld", num_names=None, num_novel=32)
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("GLIPV2_D2_CACHE", "~/.cache/glipv2_d2")) / "stampworld",
        help="folder of the packages (default: %(default)s; variable GLIPV2_D2_CACHE)",
    )
    options = parser.parse_args(arguments)
    try:
        _build(options)
    except PackageError as error:
        sys.exit(f"error: {error}. Without these packages, use datasets/prepare_shapeworld.py")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on from here")


def _build(options: argparse.Namespace) -> None:
    source_version = hashlib.sha256(CURATION_FILE.read_bytes()).hexdigest()[:16]
    parameters = parameters_from(options, "stampworld", source_version)
    if found_finished(options.output, parameters):
        return
    curation = load_curation()
    rules = parameters.rules
    max_side = round(rules.max_side * rules.size)
    source, resources = load_source(options.cache.expanduser(), curation, rules.size, max_side)
    splits = write_dataset(options.output, source, parameters, options.workers)
    num_real = write_real(options.output, resources, curation)
    close_dataset(options.output, parameters, splits, num_real)
    for split in splits:
        print(f"{options.output / split.name}: {split.num_images} scenes, {len(split.categories)} names")


def _license_text(
    versions: dict[str, str], stamps: list[str], photographs: list[str], attributions: dict[str, str]
) -> str:
    lines = [
        "# Where the pictures come from",
        "",
        "The scenes are composites of the pictures listed here.",
        "",
        f"## Cut-outs: Debian package {STAMPS_PACKAGE} {versions[STAMPS_PACKAGE]}".rstrip(),
        "",
        "Licence: GPL-2, for the whole package. Copyright 2002-2022 by Bill Kendrick and contributors.",
        "",
        *(f"- {identity}" for identity in stamps),
        "",
        f"## Photographs: Debian package {PHOTOS_PACKAGE} {versions[PHOTOS_PACKAGE]}".rstrip(),
        "",
        *(f"- {one}: {attributions.get(one, 'not listed in the README of the package')}" for one in photographs),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
