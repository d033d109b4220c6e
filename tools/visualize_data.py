#!/usr/bin/env python
"""Draw what training sees: ``python tools/visualize_data.py --source dataloader --config-file FILE --output-dir DIR``.

``--source annotation`` draws the images and boxes of DATASETS.TRAIN as they are stored, and with captions and questions
the phrases, scores and the text below. ``--source dataloader`` draws the samples that the mapper makes for the model:
resized and flipped, each box with its phrase, and below all phrases of the prompt with the tokens that spell them
("traffic light [3-4]"; token 0 is the first special token). With ``MODEL.MASK_ON True`` both draw the masks that can be
used. Small images are enlarged. The flags are those of detectron2's tool of this name.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import tqdm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import ImageFont
from torch import Tensor

from glipv2_d2.colored_text import draw_words, phrase_color, split_words
from glipv2_d2.data import build_train_loader
from glipv2_d2.data.image_reading import UnreadableImageError, read_image
from glipv2_d2.data.loading import load_training_dicts, training_names
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.errors import InputError
from glipv2_d2.folders import check_writable
from glipv2_d2.prompts.questions import ANSWER_PHRASE
from glipv2_d2.visualizer import MIN_LONG_SIDE

FONT_SIZE = 16


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Draw the training data of a config.")
    parser.add_argument("--source", choices=["annotation", "dataloader"], required=True, help="stored or as trained on")
    parser.add_argument("--config-file", metavar="FILE", default="", help="config whose DATASETS.TRAIN is drawn")
    parser.add_argument("--output-dir", metavar="DIR", default="./", help="where the drawings go")
    parser.add_argument("--show", action="store_true", help="show the drawings in a window instead of writing them")
    parser.add_argument("--num", type=int, default=20, metavar="N", help="number of drawings (default: 20)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="config keys: KEY VALUE ...")
    return parser.parse_args(argv)


def annotation_drawings(cfg: CfgNode) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a name and a drawing, (H, W, 3) uint8 RGB, of each stored image."""
    for name in training_names(cfg):
        for record in load_training_dicts(name, filter_empty=False, with_masks=cfg.MODEL.MASK_ON):
            try:
                image = read_image(record, "RGB")
            except UnreadableImageError as error:
                tqdm.tqdm.write(f"skipped {error}")
                continue
            yield Path(record["file_name"]).stem, draw_record(record, image)


def loader_drawings(cfg: CfgNode) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a name and a drawing, (H', W', 3) uint8 RGB, of each sample in the training stream."""
    for sample in itertools.chain.from_iterable(build_train_loader(cfg)):
        # The image id of a streamed sample may hold folders.
        yield Path(str(sample.get("image_id", sample["file_name"]))).stem, draw_sample(sample, cfg)


def stored_masks(record: dict) -> list | None:
    """Return the mask of each box of an image, an empty list for a box without one; None if no box has one."""
    masks = [item.get("segmentation", []) for item in record.get("annotations", ())]
    return masks if any(masks) else None


def draw_record(record: dict, image: np.ndarray) -> np.ndarray:
    """Draw the boxes of a stored image, (H', W', 3) uint8 RGB; for captions and questions, with scores and the text."""
    text = record.get("caption", record.get("question"))
    names, labels, boxes = [], [], []
    for item in record.get("annotations", ()):
        if text is None:
            names.append(MetadataCatalog.get(record["dataset_name"]).thing_classes[item["category_id"]])
        else:
            spans = item.get("tokens_positive", ())
            names.append(" ".join(text[begin:end] for begin, end in spans) or ANSWER_PHRASE)
        score = f" {item['score']:.2f}" if "score" in item else ""
        labels.append(names[-1] + score + ("|crowd" if item.get("iscrowd", 0) else ""))
        boxes.append(BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS))
    drawing = draw_boxes(image, np.array(boxes).reshape(-1, 4), names, labels, stored_masks(record))
    return drawing if text is None else np.concatenate([drawing, text_strip(text, drawing.shape[1])])


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray | Boxes, names: list[str], labels: list[str], masks: Any
) -> np.ndarray:
    """Draw labelled boxes and masks on an image, which is enlarged if it is small; each name has one colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) XYXY in pixels.
        names: Name of each box.
        labels: Label of each box.
        masks: Masks in any form that detectron2 draws, or None.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
    colors = [tuple(part / 255 for part in phrase_color(rows[name])) for name in names]
    drawing = Visualizer(image, scale=readable_scale(image))
    drawing.overlay_instances(boxes=boxes, labels=labels, masks=masks, assigned_colors=colors)
    return drawing.get_output().get_image()


def draw_sample(sample: dict, cfg: CfgNode) -> np.ndarray:
    """Draw a training sample with its prompt below, (H', W', 3) uint8 RGB."""
    image = detection_utils.convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    prompt = sample["prompts"][0]
    # Questions and captions may come without boxes.
    instances = sample.get("instances")
    if instances is None:
        instances = Instances(sample["image"].shape[1:], gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0))
    words = [
        f"{phrase} [{token_ranges(is_token)}]"
        for phrase, is_token in zip(prompt.phrases, prompt.phrase_token_map, strict=True)
    ]
    names = [prompt.phrases[row] for row in instances.gt_classes.tolist()]
    masks = instances.gt_masks if instances.has("gt_masks") else None
    drawing = draw_boxes(image, instances.gt_boxes, names, names, masks)
    prompt_text = f"{len(prompt)} tokens: " + cfg.INPUT.PROMPT.SEPARATOR.join(words)
    return np.concatenate([drawing, text_strip(prompt_text, drawing.shape[1])])


def text_strip(text: str, width: int) -> np.ndarray:
    """Write a text in black on white, (H, width, 3) uint8 RGB; H follows the number of lines."""
    return draw_words(split_words(text, ()), ImageFont.load_default(size=FONT_SIZE), width)


def readable_scale(image: np.ndarray) -> float:
    """Return the factor by which an image (H, W, 3) is enlarged, so that the text on it can be read."""
    return max(1.0, MIN_LONG_SIDE / max(image.shape[:2]))


def token_ranges(is_token: Tensor) -> str:
    """Return the marked ones of T tokens, (T,) bool, as "3-4,7"; both ends of a range are marked."""
    tokens = is_token.nonzero().flatten().tolist()
    # Tokens in a row share the difference between their index and their rank.
    runs = itertools.groupby(enumerate(tokens), key=lambda numbered: numbered[1] - numbered[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def show(drawing: np.ndarray) -> None:
    """Show a drawing, RGB, until a key is pressed."""
    try:
        cv2.imshow("training data", drawing[:, :, ::-1])
        cv2.waitKey()
    except cv2.error:
        raise InputError("--show: expected an OpenCV with windows, found one without; leave the flag out") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(argv)
    with one_line_errors():
        # No model is built, so no GPU is needed.
        opts = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", *arguments.opts]
        if not arguments.config_file:
            opts = ["MODEL.META_ARCHITECTURE", "GLIPv2", *opts]
        cfg = build_config(arguments.config_file, opts)
        folder = Path(arguments.output_dir)
        check_writable(folder, "--output-dir")
        folder.mkdir(parents=True, exist_ok=True)
        drawings = annotation_drawings(cfg) if arguments.source == "annotation" else loader_drawings(cfg)
        progress = tqdm.tqdm(itertools.islice(drawings, arguments.num), total=arguments.num, unit="drawing")
        for number, (name, drawing) in enumerate(progress):
            if arguments.show:
                show(drawing)
            else:
                # The number tells two drawings of the same image apart.
                path = folder / f"{number:04d}_{name}.jpg"
                if not cv2.imwrite(str(path), drawing[:, :, ::-1]):
                    raise InputError(f"--output-dir: expected a folder with space for drawings, found none at {path}")


if __name__ == "__main__":
    main()
