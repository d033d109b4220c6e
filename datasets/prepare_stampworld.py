#!/usr/bin/env python3
"""Builds StampWorld: scenes of photographic cut-outs on photographs, with boxes, masks, captions and questions.

Usage::

    python datasets/prepare_stampworld.py
    python datasets/prepare_stampworld.py --num-names 24 --num-novel 8 --num-train 1500 --num-val 60

The images are composites of real photographs, not real scenes. They are made from two Debian packages, which the
system's package client fetches (about 200 MB, once) into a cache; nothing is installed.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from scenes.composer import Background, CutOut
from scenes.curation import CURATED_VERSIONS, CURATION, PHOTOS_PACKAGE, STAMPS_PACKAGE, Curation
from scenes.dataset import Photograph, SceneSource, found_finished, write_dataset
from scenes.debian_packages import PackageError, fetch_packages, package_version
from scenes.options import add_cache_option, add_dataset_options, parameters_from
from scenes.stamps import load_attributions, load_backgrounds, load_photographs, load_stamps

# Larger than any image that the demo's model sees.
REAL_MAX_SIDE = 800


def load_source(cache: Path, curation: Curation, size: int, max_side: int) -> SceneSource:
    """Fetch the packages if need be, and read cut-outs and photographs.

    Args:
        size: Side of a scene, in pixels.
        max_side: Longest side of an object in a scene, in pixels.

    Raises:
        PackageError: A package cannot be fetched.
        ValueError: A folder or an image of a package is missing or broken.
    """
    folders = fetch_packages([STAMPS_PACKAGE, PHOTOS_PACKAGE], cache)
    versions = {name: package_version(folder) for name, folder in folders.items()}
    for name, version in versions.items():
        if version != CURATED_VERSIONS[name]:
            print(f"note: {name} is version {version}; the list of drawings was made for {CURATED_VERSIONS[name]}")
    stamps = folders[STAMPS_PACKAGE] / "usr/share/tuxpaint/stamps"
    resources = folders[PHOTOS_PACKAGE] / "usr/share/gcompris-qt/rcc"
    for folder in (stamps, resources):
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected this folder in the package, found none")
    cut_outs = load_stamps(stamps, curation, max_side)
    backgrounds = load_backgrounds(resources, curation, size)
    photographs = load_photographs(resources, curation, REAL_MAX_SIDE)
    attributions = load_attributions(resources, sorted({*curation.backgrounds, *curation.real}))
    return SceneSource(
        cut_outs,
        backgrounds,
        description="StampWorld: composites of real photographs, not real scenes",
        license_name="stamps: GPL-2; photographs: see LICENSES.md",
        license_text=_license_text(versions, cut_outs, [*backgrounds, *photographs], attributions),
        photographs=photographs,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the dataset, or find it built."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_dataset_options(parser, "stampworld", num_names=None, num_novel=32)
    add_cache_option(parser)
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
    source_version = hashlib.sha256(repr(CURATION).encode()).hexdigest()[:16]
    parameters = parameters_from(options, "stampworld", source_version)
    if found_finished(options.output, parameters):
        return
    rules = parameters.rules
    max_side = round(rules.max_side * rules.size)
    source = load_source(options.cache.expanduser(), CURATION, rules.size, max_side)
    write_dataset(options.output, source, parameters, options.workers)


def _license_text(
    versions: dict[str, str],
    cut_outs: Sequence[CutOut],
    photographs: Sequence[Background | Photograph],
    attributions: dict[str, str],
) -> str:
    unknown = "not listed in the README of the package"
    lines = [
        "# Where the pictures come from",
        "",
        "The scenes are composites of the pictures listed here.",
        "",
        f"## Cut-outs: Debian package {STAMPS_PACKAGE} {versions[STAMPS_PACKAGE]}".rstrip(),
        "",
        "Licence: GPL-2, for the whole package. Copyright 2002-2022 by Bill Kendrick and contributors.",
        "",
        *(f"- {one.identity}" for one in cut_outs),
        "",
        f"## Photographs: Debian package {PHOTOS_PACKAGE} {versions[PHOTOS_PACKAGE]}".rstrip(),
        "",
        *(f"- {one.identity}: {attributions.get(one.identity, unknown)}" for one in photographs),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
