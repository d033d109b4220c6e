"""Composes one scene: cut-outs pasted on a background, with the exact mask of what stays visible.

Both demo datasets share it. They differ only in where cut-outs and backgrounds come from. Images are BGR, uint8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

# From this alpha on (of 255) a pixel belongs to an object's mask. Low enough to keep thin parts, such as a string
# or an antenna, that shrinking makes half transparent.
SOLID_ALPHA = 64

# A cut-out is never enlarged by more than this: beyond it a small photograph is only a blur.
MAX_ENLARGEMENT = 2.0

# The smallest part of a background that is shown, as a fraction of its shorter side.
MIN_CROP = 0.6

# Positions tried for each object before the one that covers least is taken.
PLACEMENT_TRIALS = 24

# Share of the scenes whose names are of one parent, where the parents are known.
KIN_PROBABILITY = 0.5


@dataclass(frozen=True)
class Category:
    """A name and the grammar that captions and questions need.

    Attributes:
        name: Lower case, without an article: "red kangaroo".
        group: The coarse kind, as COCO's ``supercategory``: "animal".
        group_plural: "animals"; empty for a group that is never counted, because its limits are a matter of taste.
        determiner: What comes before the name the first time: "a", "an", "some", "a pair of".
        plural: "red kangaroos"; empty for a name that cannot be counted.
        kinds: Everything that such an object may be called. Two categories whose kinds meet are never told apart
            by a question: a little penguin is a penguin, so "is there a penguin?" is not asked.
        colour: The colour that the name states, or empty.
    """

    name: str
    group: str
    group_plural: str
    determiner: str
    plural: str
    kinds: frozenset[str]
    colour: str = ""


@dataclass(frozen=True)
class CutOut:
    """An object on a transparent ground.

    Attributes:
        identity: Its source, unique in a dataset.
        category: Its name and grammar.
        pixels: (h, w, 4) uint8, blue, green, red multiplied by alpha, then alpha; trimmed to what is solid.
        longest_side: Longest side of the original in pixels, before it was shrunk to the largest size ever pasted.
    """

    identity: str
    category: Category
    pixels: np.ndarray = field(repr=False)
    longest_side: int


@dataclass(frozen=True)
class Background:
    """An image to paste on. ``setting`` ends a caption: "on a photo of a castle"."""

    identity: str
    setting: str
    pixels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class SceneRules:
    """How scenes are laid out. Sides are fractions of the image's side; ``size`` is that side in pixels."""

    size: int = 320
    min_objects: int = 2
    max_objects: int = 4
    min_side: float = 0.16
    max_side: float = 0.55
    max_overlap: float = 0.3
    min_visible: float = 0.2  # above 0
    repeat_probability: float = 0.12


@dataclass(frozen=True)
class PlacedObject:
    """An object in a scene.

    Attributes:
        cut_out: The cut-out that was pasted.
        mask: (size, size) bool, the pixels where it is seen.
        box: x, y, width, height in pixels, the exact extent of ``mask``; all 0 if nothing is seen.
        visible: The share of its pixels that is seen, 0..1.
    """

    cut_out: CutOut
    mask: np.ndarray = field(repr=False)
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class Scene:
    """An image, its background, and the objects in it.

    The ``labelled`` objects have a box. The ``hidden`` ones are pasted too, but covered so far that nobody has to find
    them, and no caption or answer may be wrong because of them.
    """

    image: np.ndarray = field(repr=False)
    background: Background
    labelled: tuple[PlacedObject, ...]
    hidden: tuple[PlacedObject, ...]


def make_cut_out(identity: str, category: Category, bgra: np.ndarray, max_side: int) -> CutOut:
    """Trim, soften and shrink an image with alpha so that pasting it is quick.

    Args:
        bgra: (h, w, 4) uint8, colours not multiplied by alpha.
        max_side: The largest longest side that a scene will ask for, in pixels.

    Raises:
        ValueError: No pixel of the image is solid.
    """
    alpha = _without_specks(bgra[:, :, 3])
    rows, columns = _extent(alpha >= SOLID_ALPHA)
    if rows is None:
        raise ValueError(f"{identity}: expected an object, found only transparent pixels")
    alpha = alpha[rows, columns]
    longest_side = max(alpha.shape)

    premultiplied = np.dstack([bgra[rows, columns, :3], alpha]).astype(np.float32)
    premultiplied[:, :, :3] *= premultiplied[:, :, 3:] / 255
    if longest_side > max_side:
        premultiplied = _resized(premultiplied, max_side / longest_side)
    return CutOut(identity, category, _soft_edged(premultiplied), longest_side)


def compose_scene(
    rng: np.random.Generator,
    cut_outs: Mapping[str, Sequence[CutOut]],
    backgrounds: Sequence[Background],
    rules: SceneRules,
    kin: Mapping[str, Sequence[str]] | None = None,
) -> Scene:
    """Draw one scene.

    Args:
        rng: The only source of chance: equal generators give equal scenes, bit for bit.
        cut_outs: The cut-outs of each name. Names are drawn evenly, then a cut-out of the name.
        backgrounds: One is drawn, cropped and mirrored at random.
        kin: Other names of the same parent, of each name. They fill half of the scenes, so that names of like things
            have to be told apart. None: names are drawn from all.
    """
    background = backgrounds[rng.integers(len(backgrounds))]
    image = _crop_background(rng, background.pixels, rules.size)
    # Which object owns each pixel: pasting over an object takes its pixels away, so masks come out exact.
    owner = np.full((rules.size, rules.size), -1, np.int16)
    pasted: list[tuple[CutOut, int]] = []
    boxes: list[tuple[int, int, int, int]] = []
    for name in _draw_names(rng, sorted(cut_outs), rules, kin):
        cut_out = cut_outs[name][rng.integers(len(cut_outs[name]))]
        patch = _render(rng, cut_out, rules)
        if patch[:, :, 3].max() < SOLID_ALPHA:
            continue  # so thin that at this size nothing is left of it
        box = _place(rng, patch.shape[1], patch.shape[0], boxes, rules)
        solid = _paste(image, owner, patch, box, index=len(pasted))
        pasted.append((cut_out, solid))
        boxes.append(box)

    placed = [_look(owner, index, cut_out, solid) for index, (cut_out, solid) in enumerate(pasted)]
    return Scene(
        image,
        background,
        labelled=tuple(one for one in placed if one.visible >= rules.min_visible),
        hidden=tuple(one for one in placed if one.visible < rules.min_visible),
    )


def _draw_names(
    rng: np.random.Generator, names: list[str], rules: SceneRules, kin: Mapping[str, Sequence[str]] | None
) -> list[str]:
    """Names of a scene, each once, but now and then one again: otherwise nothing could be counted past one."""
    count = int(rng.integers(rules.min_objects, rules.max_objects + 1))
    chosen = [names[index] for index in rng.permutation(len(names))[:count]]
    while len(chosen) < count:
        chosen.append(chosen[rng.integers(len(chosen))])
    if kin is not None and rng.random() < KIN_PROBABILITY:
        others = kin[chosen[0]]
        for index, other in enumerate(rng.permutation(len(others))[: count - 1], start=1):
            chosen[index] = others[other]
    for index in range(1, count):
        if rng.random() < rules.repeat_probability:
            chosen[index] = chosen[rng.integers(index)]
    return chosen


def _crop_background(rng: np.random.Generator, pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = int(min(height, width) * rng.uniform(MIN_CROP, 1.0))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    crop = pixels[top : top + side, left : left + side]
    # Backgrounds come in at most 1 / MIN_CROP times too large, for which linear interpolation is fine enough.
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        crop = cv2.flip(crop, 1)
    gains = rng.uniform(0.8, 1.15) * rng.uniform(0.96, 1.04, size=3)
    return cv2.LUT(crop, _gain_table(gains))


def _gain_table(gains: np.ndarray) -> np.ndarray:
    """Look-up table that multiplies each of C channels by its gain; (1, 256, C) uint8."""
    return np.clip(np.arange(256)[:, None] * gains, 0, 255).astype(np.uint8)[None]


def _render(rng: np.random.Generator, cut_out: CutOut, rules: SceneRules) -> np.ndarray:
    """The cut-out at a random size, mirrored half of the time, a little lighter or darker; (h, w, 4) uint8."""
    longest = rng.uniform(rules.min_side, rules.max_side) * rules.size
    longest = min(longest, MAX_ENLARGEMENT * cut_out.longest_side)
    patch = _resized(cut_out.pixels, longest / max(cut_out.pixels.shape[:2]))
    if rng.random() < 0.5:
        patch = cv2.flip(patch, 1)
    gains = np.append(rng.uniform(0.85, 1.12) * rng.uniform(0.97, 1.03, size=3), 1.0)  # alpha stays
    patch = cv2.LUT(patch, _gain_table(gains))
    # A colour that was multiplied by alpha can not exceed it.
    return np.minimum(patch, patch[:, :, 3:])


def _place(
    rng: np.random.Generator, width: int, height: int, boxes: list[tuple[int, int, int, int]], rules: SceneRules
) -> tuple[int, int, int, int]:
    """A position inside the image that overlaps no earlier box by more than ``max_overlap``, where there is one."""
    best, least = None, np.inf
    for _ in range(PLACEMENT_TRIALS):
        x = int(rng.integers(rules.size - width + 1))
        y = int(rng.integers(rules.size - height + 1))
        box = (x, y, width, height)
        overlap = max((_overlap(box, other) for other in boxes), default=0.0)
        if overlap < least:
            best, least = box, overlap
        if least <= rules.max_overlap:
            break
    return best


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Area that two boxes share, as a fraction of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(a[2] * a[3], b[2] * b[3])


def _paste(image: np.ndarray, owner: np.ndarray, patch: np.ndarray, box: tuple[int, int, int, int], index: int) -> int:
    """Blend ``patch`` into ``image`` and take its solid pixels in ``owner``; returns how many those are."""
    x, y, width, height = box
    region = image[y : y + height, x : x + width]
    behind = cv2.cvtColor(255 - patch[:, :, 3], cv2.COLOR_GRAY2BGR)
    # Saturating: rounding may reach 256.
    region[:] = cv2.add(patch[:, :, :3], cv2.multiply(region, behind, scale=1 / 255))
    solid = patch[:, :, 3] >= SOLID_ALPHA
    owner[y : y + height, x : x + width][solid] = index
    return int(np.count_nonzero(solid))


def _look(owner: np.ndarray, index: int, cut_out: CutOut, solid: int) -> PlacedObject:
    mask = owner == index
    rows, columns = _extent(mask)
    if rows is None:
        return PlacedObject(cut_out, mask, (0, 0, 0, 0), 0.0)
    box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
    return PlacedObject(cut_out, mask, box, np.count_nonzero(mask) / solid)


def _extent(mask: np.ndarray) -> tuple[slice, slice] | tuple[None, None]:
    """Rows and columns that hold all True pixels; None, None if no pixel is True."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None, None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _without_specks(alpha: np.ndarray) -> np.ndarray:
    """Alpha without stray pixels far from the object, which would widen its box."""
    solid = (alpha >= SOLID_ALPHA).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    specks = [label for label in range(1, count) if areas[label] < 0.003 * areas[1:].sum()]
    return np.where(np.isin(labels, specks), 0, alpha).astype(np.uint8) if specks else alpha


def _soft_edged(premultiplied: np.ndarray) -> np.ndarray:
    """Blur the outline by a pixel, and nothing inside: many cut-outs have hard, stepped edges."""
    # Nothing is solid beyond the image: its border may be outline too.
    edges = {"borderType": cv2.BORDER_CONSTANT}
    opaque = (premultiplied[:, :, 3] >= 250).astype(np.uint8)
    inside = cv2.erode(opaque, np.ones((3, 3), np.uint8), borderValue=0, **edges)
    blurred = cv2.GaussianBlur(premultiplied, (3, 3), 0, **edges)
    soft = np.where(inside[:, :, None] > 0, premultiplied, blurred)
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def _resized(pixels: np.ndarray, scale: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
