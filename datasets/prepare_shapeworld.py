#!/usr/bin/env python3
"""Builds ShapeWorld: scenes of coloured, textured shapes in the format of StampWorld, without any download.

Usage::

    python datasets/prepare_shapeworld.py
    python datasets/prepare_shapeworld.py --num-names 24 --num-train 1000 --num-val 50 --size 256

A name is a colour, a texture and a shape: "red striped star". Novel names are combinations that train never shows,
of parts that it does.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from scenes.composer import MIN_CROP, Background, Category, CutOut, SceneRules, make_cut_out
from scenes.dataset import SceneSource, found_finished, write_dataset
from scenes.folder import DatasetParameters
from scenes.options import add_dataset_options, parameters_from
from scenes.text import article_of, plural_of

NUM_NAMES = 48
NUM_NOVEL = 16
NUM_BACKGROUNDS = 20

# Raised when the drawings change, so that older datasets are built again.
SOURCE_VERSION = "1"

# Blue, green, red of the darker of the two tones of a texture.
COLOURS = {
    "red": (40, 40, 215),
    "orange": (30, 130, 245),
    "yellow": (40, 215, 245),
    "green": (60, 160, 50),
    "blue": (210, 95, 40),
    "purple": (150, 45, 125),
    "pink": (180, 120, 245),
    "brown": (40, 75, 125),
}
TEXTURES = ("striped", "dotted", "checked", "ringed")

# Corners in a square from -1 to 1, y downwards. "circle" and "ring" are drawn by radius.
POLYGONS = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "cross": [
        *((-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)),
        *((0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)),
    ],
    "arrow": [(-1, -0.35), (0.1, -0.35), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.35), (-1, 0.35)],
    "star": [
        (radius * np.sin(np.pi * corner / 5), -radius * np.cos(np.pi * corner / 5))
        for corner, radius in enumerate([1, 0.42] * 5)
    ],
}
SHAPES = ("circle", "ring", *POLYGONS)


def prepare_shapeworld(
    output: Path,
    *,
    num_train: int = 4000,
    num_val: int = 150,
    num_names: int | None = NUM_NAMES,
    num_novel: int = NUM_NOVEL,
    size: int = 320,
    objects: tuple[int, int] = (2, 4),
    seed: int = 0,
    workers: int = 1,
) -> Path:
    """Write a dataset of drawn scenes, unless it is there already with the same parameters.

    Args:
        output: Folder to write to. Its splits and json files are those of StampWorld.
        num_train: Scenes in train.
        num_val: Scenes in each of the val splits.
        num_names: Names in train and val; None for all that are not novel.
        num_novel: Names in val_novel.
        size: Side of a scene, in pixels.
        objects: Fewest and most objects in a scene.
        seed: Decides everything that is drawn.
        workers: Processes; they change nothing in the result.

    Returns:
        ``output``.

    Raises:
        ValueError: A number is out of range, or ``output`` holds something else.
    """
    rules = SceneRules(size=size, min_objects=objects[0], max_objects=objects[1])
    _build(
        Path(output),
        DatasetParameters("shapeworld", SOURCE_VERSION, num_names, num_novel, num_train, num_val, seed, rules),
        workers,
    )
    return Path(output)


def draw_shapes(max_side: int) -> list[CutOut]:
    """All combinations of colour, texture and shape, each ``max_side`` pixels large."""
    outlines = {shape: _outline(shape, max_side) for shape in SHAPES}
    patterns = _patterns(max_side)
    cut_outs = []
    for colour, texture, shape in itertools.product(COLOURS, TEXTURES, SHAPES):
        name = f"{colour} {texture} {shape}"
        # The second kind keeps "what colour is the striped star?" for images that have one such star.
        kinds = frozenset({name, f"{texture} {shape}"})
        category = Category(name, shape, plural_of(shape), article_of(name), plural_of(name), kinds, colour)
        pixels = np.dstack([_two_tones(patterns[texture], COLOURS[colour]), outlines[shape]])
        cut_outs.append(make_cut_out(name.replace(" ", "-"), category, pixels, max_side))
    return cut_outs


def draw_backgrounds(size: int, seed: int) -> list[Background]:
    """Smooth, pale grounds of one hue each, from three scales of noise."""
    side = round(size / MIN_CROP)
    backgrounds = []
    for index in range(NUM_BACKGROUNDS):
        rng = np.random.default_rng([seed, index])
        height = sum(
            cv2.resize(rng.normal(0, 1 / cells, (cells, cells)), (side, side), interpolation=cv2.INTER_CUBIC)
            for cells in (3, 9, 27)
        )
        tone, tint = rng.uniform(120, 190), rng.uniform(-18, 18, size=3)
        pixels = np.clip(tone + tint + 90 * height[:, :, None], 0, 255).astype(np.uint8)
        backgrounds.append(Background(f"noise_{index:02d}", "on a cloudy ground", pixels))
    return backgrounds


def _outline(shape: str, side: int) -> np.ndarray:
    """Alpha of a shape that fills a square; (side, side) uint8. Drawn four times as large, for smooth edges."""
    large = 4 * side
    alpha = np.zeros((large, large), np.uint8)
    centre, radius = (large // 2, large // 2), large // 2 - 1
    if shape in POLYGONS:
        corners = np.array(POLYGONS[shape]) * radius + large / 2
        cv2.fillPoly(alpha, [np.rint(corners).astype(np.int32)], 255)
    else:
        cv2.circle(alpha, centre, radius, 255, cv2.FILLED)
        if shape == "ring":
            cv2.circle(alpha, centre, radius // 2, 0, cv2.FILLED)
    return cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA)


def _patterns(side: int) -> dict[str, np.ndarray]:
    """Where each texture is light; (side, side) bool."""
    y, x = np.mgrid[0:side, 0:side] / side  # 0..1
    return {
        "striped": np.sin(2 * np.pi * 5 * (x + y)) > 0,
        "dotted": np.hypot((6 * x) % 1 - 0.5, (6 * y) % 1 - 0.5) < 0.3,
        "checked": (np.floor(6 * x) + np.floor(6 * y)) % 2 > 0,
        "ringed": np.sin(2 * np.pi * 7 * np.hypot(x - 0.5, y - 0.5)) > 0,
    }


def _two_tones(light: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A colour, and a lighter tone of it where ``light`` is True; (side, side, 3) uint8."""
    dark = np.array(colour, np.float64)
    tones = np.array([dark, dark + 0.62 * (255 - dark)]).astype(np.uint8)
    return tones[light.astype(np.intp)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the dataset, or find it built."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_dataset_options(parser, "shapeworld", num_names=NUM_NAMES, num_novel=NUM_NOVEL)
    options = parser.parse_args(arguments)
    try:
        _build(options.output, parameters_from(options, "shapeworld", SOURCE_VERSION), options.workers)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on from here")


def _build(output: Path, parameters: DatasetParameters, workers: int) -> None:
    if found_finished(output, parameters):
        return
    rules = parameters.rules
    source = SceneSource(
        cut_outs=draw_shapes(round(rules.max_side * rules.size)),
        backgrounds=draw_backgrounds(rules.size, parameters.seed),
        description="ShapeWorld: drawn shapes on drawn grounds",
        license_name="Apache-2.0",
        license_text="# Where the pictures come from\n\nEverything is drawn by prepare_shapeworld.py: Apache-2.0.\n",
    )
    write_dataset(output, source, parameters, workers)


if __name__ == "__main__":
    main()
