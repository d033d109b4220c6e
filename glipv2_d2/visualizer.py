"""Draw results: masks, boxes with phrases and scores, and the caption with its phrases in the same colours.

detectron2's ``Visualizer`` writes in the colour of the box on black. Here the text stands on the colour of its phrase,
and has the same size on the image and below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from .colored_text import Color, Word, draw_words, phrase_color, split_caption, split_words, text_color
from .errors import InputError
from .fonts import legible
from .prompts.questions import ANSWER_PHRASE
from .structures import CharSpan

Rectangle = tuple[float, float, float, float]

# Length in pixels. Smaller images are enlarged, so that the text on them can be read.
MIN_LONG_SIDE = 800
# Share of the phrase's colour inside a mask. The image below stays visible.
_MASK_OPACITY = 0.45
STYLES = ("auto", "full", "thin")
# Share of an image that labels may cover before the style "auto" is thin, and that thin labels may cover at all.
_MOST_COVERED = 0.2


class _Look(NamedTuple):
    """Font of labels, width of lines and margin beside a label in pixels, and its height in sizes of the font."""

    font: ImageFont.FreeTypeFont
    line_width: int
    margin: float
    height: float

    def label_size(self, text: str, face: ImageFont.FreeTypeFont) -> tuple[float, float]:
        """Return width and height of a label in pixels."""
        return face.getlength(text) + 2 * self.margin, self.height * self.font.size


class GroundingVisualizer:
    """Draw detections on an image.

    Args:
        image: (H, W, 3) uint8 in RGB order, as for detectron2's ``Visualizer``.
        min_long_side: Length in pixels that the longer side of an image is enlarged to, if it is shorter.
        max_long_side: Length that it is shrunk to, if it is longer; None: it is never shrunk.
        style: "full"; "thin", with fine lines and small labels, of which those without room are left out, the ones of
            the highest scores last; or "auto", thin where full labels would cover more than a fifth of the image.

    Raises:
        InputError: There is no such style.
    """

    def __init__(
        self,
        image: np.ndarray,
        min_long_side: int = MIN_LONG_SIDE,
        style: str = "auto",
        *,
        max_long_side: int | None = None,
    ) -> None:
        if style not in STYLES:
            raise InputError(f"style: expected one of {', '.join(STYLES)}, found {style!r:.100}")
        self._style = style
        height, width = image.shape[:2]
        long_side = max(height, width)
        self._scale = max(long_side, min_long_side) / long_side
        if max_long_side is not None:
            self._scale = min(self._scale, max_long_side / long_side)
        self._shape = (height, width)
        shown = Image.fromarray(np.ascontiguousarray(image))
        if self._scale != 1:
            size = (max(1, round(width * self._scale)), max(1, round(height * self._scale)))
            shown = shown.resize(size, Image.Resampling.BICUBIC)
        self._image = shown

    def draw_predictions(self, instances: Instances, phrases: Sequence[str], caption: str | None = None) -> np.ndarray:
        """Draw the detections of one image.

        Args:
            instances: ``pred_boxes`` XYXY in pixels of the image, ``pred_classes``, rows of ``phrases``, ``scores`` in
                [0, 1], unless the boxes were drawn by a person, and ``pred_masks`` (K, H, W) bool, if there are masks.
                K may be 0.
            phrases: P strings.
            caption: Text below the image, if there is one.

        Returns:
            (H', W', 3) uint8 in RGB order. The size depends on the image, the caption and the phrases alone.

        Raises:
            InputError: The masks do not have the size of the image.
        """
        drawing = self._with_detections(instances, phrases)
        if caption is None:
            return np.asarray(drawing)
        return self._with_text(drawing, split_caption(caption, phrases))

    def draw_answer(
        self, instances: Instances, phrases: Sequence[str], question: str, answer: str, score: float
    ) -> np.ndarray:
        """Draw the boxes of a question's phrases and of its answer, and write question and answer below.

        Args:
            instances: As for ``draw_predictions``; empty if the model does not ground its answers.
            phrases: P strings, parts of the question, and "[answer]" for the boxes of the answer. The label of these
                boxes is the answer itself.
            question: Text below the image, each phrase on its colour.
            answer: Text below the question, on the colour of its boxes, if there are any.
            score: Score of the answer, in [0, 1].

        Returns:
            (H', W', 3) uint8 in RGB order.

        Raises:
            InputError: The masks do not have the size of the image.
        """
        labels = [answer if phrase == ANSWER_PHRASE else phrase for phrase in phrases]
        boxed = sorted({row for row in instances.pred_classes.tolist() if phrases[row] == ANSWER_PHRASE})
        row = boxed[0] if boxed else None
        drawing = self._with_detections(instances, labels)
        answered = [(f"{word} ", row) for word in answer.split()] + [(f"{score:.0%}", None)]
        return self._with_text(drawing, split_caption(question, phrases), answered)

    def draw_generated(
        self,
        instances: Instances,
        phrases: Sequence[str],
        caption: str,
        phrase_spans: Sequence[Sequence[CharSpan]],
    ) -> np.ndarray:
        """Draw a generated caption: its words below, those of a phrase in the colour of the phrase's boxes.

        Args:
            instances: As for ``draw_predictions``; empty if the model does not ground its words.
            phrases: P strings.
            caption: Text below the image. Phrases without a box stand on white.
            phrase_spans: For each phrase its half-open character ranges of the caption. They tell two equal phrases
                apart, so that each has the colour of its own boxes.

        Returns:
            (H', W', 3) uint8 in RGB order.

        Raises:
            InputError: The masks do not have the size of the image.
        """
        boxed = set(instances.pred_classes.tolist())
        spans = [spans if row in boxed else () for row, spans in enumerate(phrase_spans)]
        return self._with_text(self._with_detections(instances, phrases), split_words(caption, spans))

    def draw_referred(self, mask: np.ndarray, phrase: str) -> np.ndarray:
        """Draw the mask of a referring phrase, and write the phrase below the image.

        Args:
            mask: (H, W) bool. If it is empty, the phrase is written without its colour.
            phrase: The whole text is one phrase.

        Returns:
            (H', W', 3) uint8 in RGB order. The size depends on the image and the phrase alone.

        Raises:
            InputError: The mask does not have the size of the image.
        """
        drawing = self._with_masks(mask[None], [0], "mask")
        marked = [phrase] if mask.any() else []
        return self._with_text(drawing, split_caption(phrase, marked))

    def _with_detections(self, instances: Instances, labels: Sequence[str]) -> Image.Image:
        """Return the image with masks and boxes, and on each box a label with phrase and score."""
        drawing = self._image.copy()
        if instances.has("pred_masks"):
            masks = instances.pred_masks.cpu().numpy()
            drawing = self._with_masks(masks, instances.pred_classes.tolist(), "pred_masks")
        pen = ImageDraw.Draw(drawing)
        boxes = instances.pred_boxes.tensor.cpu() * self._scale
        rows = instances.pred_classes.tolist()
        texts, order = [labels[row] for row in rows], list(range(len(rows)))
        if instances.has("scores"):
            texts = [f"{text} {score:.0%}" for text, score in zip(texts, instances.scores.tolist(), strict=True)]
            # The best detections choose the position of their label first.
            order = instances.scores.argsort(descending=True, stable=True).tolist()
        look, is_thin = self._choose_look(texts)
        for row, box in zip(rows, boxes.tolist(), strict=True):
            pen.rectangle(_drawable(box), outline=phrase_color(row), width=look.line_width)
        taken: list[Rectangle] = []
        for k in order:
            text, face = legible(texts[k], look.font)
            chip = place_label(boxes[k].tolist(), look.label_size(text, face), drawing.size, taken)
            if is_thin and not self._has_room(chip, boxes[k].tolist(), taken):
                continue
            taken.append(chip)
            pen.rectangle(chip, fill=phrase_color(rows[k]))
            pen.text((chip[0] + look.margin, chip[1] + 0.1 * look.font.size), text, text_color(rows[k]), face)
        return drawing

    def _choose_look(self, texts: Sequence[str]) -> tuple[_Look, bool]:
        """Return how boxes and labels look, and whether that is thin."""
        size = self._image.size
        font = text_font(size)
        full = _Look(font, max(2, int(font.size) // 5), font.size / 2, 1.4)
        labels = [full.label_size(*legible(text, font)) for text in texts] if self._style == "auto" else []
        covered = sum(width * height for width, height in labels)
        if self._style != "thin" and covered <= _MOST_COVERED * size[0] * size[1]:
            return full, False
        small = text_font(size, least=10, share=80)
        return _Look(small, max(1, int(small.size) // 10), small.size / 5, 1.2), True

    def _has_room(self, chip: Rectangle, box: Sequence[float], taken: Sequence[Rectangle]) -> bool:
        """Tell whether a thin label lies at its box and on no other label, and labels do not cover too much yet."""
        covered = sum((right - left) * (bottom - top) for left, top, right, bottom in [*taken, chip])
        is_near = chip[1] <= box[3]
        is_free = not any(_overlap(chip, other) for other in taken)
        return is_near and is_free and covered <= _MOST_COVERED * self._image.size[0] * self._image.size[1]

    def _with_text(self, drawing: Image.Image, *texts: Sequence[Word]) -> np.ndarray:
        """Return a drawing with texts below it, one under the other."""
        strips = [draw_words(words, text_font(drawing.size), drawing.width) for words in texts]
        return np.concatenate([np.asarray(drawing), *strips])

    def _with_masks(self, masks: np.ndarray, rows: Sequence[int], name: str) -> Image.Image:
        """Return the image with masks (K, H, W) in the colours of their phrases."""
        if masks.shape[1:] != self._shape:
            raise InputError(f"{name}: expected masks of the image's size {self._shape}, found {masks.shape[1:]}")
        # Small masks lie on large ones, so that no mask hides another.
        order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist()
        size = self._image.size
        enlarged = ((rows[k], masks[k] if self._scale == 1 else enlarge_mask(masks[k], size)) for k in order)
        line_width = max(2, int(text_font(size).size) // 8)
        return Image.fromarray(paint_masks(np.asarray(self._image), enlarged, line_width))


def enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a mask (H, W) bool to a width and a height, with a smooth edge."""
    gray = Image.fromarray(255 * mask.astype(np.uint8))
    return np.asarray(gray.resize(size, Image.Resampling.BILINEAR)) >= 128


def paint_masks(image: np.ndarray, masks: Iterable[tuple[int, np.ndarray]], line_width: int) -> np.ndarray:
    """Tint masks in the colours of their phrases, and draw the edge of each mask, with a white line around it.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: Row of the phrase and (H, W) bool of each mask. Later masks lie above earlier ones. A pixel is tinted
            once, so that the image can be seen through any number of masks. Neither tint nor white covers an edge.
        line_width: Width of the edges in pixels. They lie inside the masks; the white line beside them is one pixel
            wide.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    tinted = image.copy()
    rims: list[tuple[np.ndarray, np.ndarray]] = []
    lines: list[tuple[Color, np.ndarray, np.ndarray]] = []
    for row, mask in masks:
        ys, xs = np.nonzero(mask)
        color = phrase_color(row)
        tinted[ys, xs] = np.rint(_MASK_OPACITY * np.array(color) + (1 - _MASK_OPACITY) * image[ys, xs])
        if len(ys):
            # The mask and one pixel around it.
            top, left = max(0, ys.min() - 1), max(0, xs.min() - 1)
            window = mask[top : ys.max() + 2, left : xs.max() + 2]
            ys, xs = np.nonzero(_rim(window))
            rims.append((ys + top, xs + left))
            ys, xs = np.nonzero(_edge(window, line_width))
            lines.append((color, ys + top, xs + left))
    # White shows the edge if the phrase has the colour of the image.
    for ys, xs in rims:
        tinted[ys, xs] = 255
    for color, ys, xs in lines:
        tinted[ys, xs] = color
    return tinted


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """Mark, (H, W) bool, the pixels of a mask (H, W) that are at most ``width`` steps away from its outside."""
    inner = np.pad(mask, 1)
    for _ in range(width):
        sides = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        inner[1:-1, 1:-1] &= sides
    return mask & ~inner[1:-1, 1:-1]


def _rim(mask: np.ndarray) -> np.ndarray:
    """Mark, (H, W) bool, the pixels that lie beside a mask (H, W)."""
    near = np.pad(mask, 1)
    return (near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:]) & ~mask


def place_label(
    box: Sequence[float], size: tuple[float, float], image_size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Find the position of the label of a box.

    Args:
        box: XYXY in pixels.
        size: Width and height of the label in pixels.
        image_size: Width and height of the image in pixels. The label lies inside it, if it fits.
        taken: Rectangles of the labels that have their position, XYXY.

    Returns:
        XYXY: above the box, else inside its upper edge, else the first free position further down. If no position is
        free, the first of them.
    """
    width, height = size
    left = max(0.0, min(box[0], image_size[0] - width))
    tops = [box[1] - height, box[1]]
    tops += [box[1] + step * height for step in range(1, int(image_size[1] / height) + 1)]
    positions = [(left, top, left + width, top + height) for top in tops if 0 <= top <= image_size[1] - height]
    free = (position for position in positions if not any(_overlap(position, other) for other in taken))
    bottom = max(0.0, image_size[1] - height)
    return next(free, positions[0] if positions else (left, bottom, left + width, bottom + height))


def text_font(image_size: tuple[int, int], *, least: int = 14, share: int = 50) -> ImageFont.FreeTypeFont:
    """Return the font for drawings of a size: its own is this share of the long side, but at least ``least`` pixels."""
    # This font comes with matplotlib.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), max(least, max(image_size) // share))


def _drawable(box: Sequence[float]) -> Rectangle:
    """Return the corner pixels of a half-open box; a box without area is drawn as a point."""
    left, top, right, bottom = box
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
