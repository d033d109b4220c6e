#!/usr/bin/env python
"""Draw what training sees: ``python tools/visualize_data.py --source dataloader --config-file FILE --output-dir DIR``.

``--source annotation`` draws the images and boxes of DATASETS.TRAIN as they are stored, ``--source dataloader`` the
samples that the mapper hands to the model: resized and flipped, each box with its phrase and the tokens that spell it,
and the caption below. The flags are those of detectron2's tool of this name.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import tqdm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from glipv2_d2.data import build_train_loader
from glipv2_d2.data.build import load_training_dicts
from glipv2_d2.engine.defaults import build_config, one_line_errors
from glipv2_d2.prompts.builder import clean_name
from glipv2_d2.visualizer import draw_caption, phrase_color


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Draw the training data of a config.")
    parser.add_argument("--source", choices=["annotation", "dataloader"], required=True, help="stored or as trained on")
    parser.add_argument("--config-file", metavar="FILE", default="", help="config whose DATASETS.TRAIN is drawn")
    parser.add_argument("--output-dir", metavar="DIR", default="./", help="where the pictures go")
    parser.add_argument("--show", action="store_true", help="show the pictures in a window instead of writing them")
    parser.add_argument("--num", type=int, default=20, metavar="N", help="number of pictures (default: 20)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="config keys: KEY VALUE ...")
    return parser.parse_args(argv)


def annotation_pictures(cfg: CfgNode) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a name and a picture, (H, W, 3) uint8 RGB, of each stored image."""
    for record in load_training_dicts(cfg.DATASETS.TRAIN, filter_empty=False):
        image = detection_utils.read_image(record["file_name"], "RGB")
        drawing = Visualizer(image, MetadataCatalog.get(record["dataset_name"]))
        yield Path(record["file_name"]).stem, drawing.draw_dataset_dict(record).get_image()


def loader_pictures(cfg: CfgNode) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a name and a picture, (H', W', 3) uint8 RGB, of each sample in the training stream."""
    for sample in itertools.chain.from_iterable(build_train_loader(cfg)):
        yield str(sample.get("image_id", Path(sample["file_name"]).stem)), draw_sample(sample, cfg)


def draw_sample(sample: dict, cfg: CfgNode) -> np.ndarray:
    """Draw a training sample with its caption below, (H', W', 3) uint8 RGB."""
    image = detection_utils.convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    prompt, instances = sample["prompts"][0], sample["instances"]
    rows = instances.gt_classes.tolist()
    drawn = Visualizer(image).overlay_instances(
        boxes=instances.gt_boxes,
        labels=[f"{prompt.phrases[row]} [{token_ranges(prompt.phrase_token_map[row])}]" for row in rows],
        assigned_colors=[phrase_color(row) for row in rows],
    )
    picture = drawn.get_image()
    names = [clean_name(phrase) for phrase in prompt.phrases]
    caption = draw_caption(cfg.INPUT.PROMPT.SEPARATOR.join(names), names, picture.shape[1])
    return np.concatenate([picture, caption])


def token_ranges(is_token: Tensor) -> str:
    """Write which of T tokens are marked, as "3-4,7"; both ends of a range are marked."""
    tokens = is_token.nonzero().flatten().tolist()
    # Tokens in a row share the difference between their number and their place in the list.
    runs = [list(run) for _, run in itertools.groupby(tokens, key=lambda token, place=itertools.count(): token - next(place))]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def show(picture: np.ndarray) -> None:
    """Show a picture, RGB, until a key is pressed."""
    try:
        cv2.imshow("training data", picture[:, :, ::-1])
        cv2.waitKey()
    except cv2.error:
        raise ValueError("--show: this OpenCV has no windows, expected none; leave it out to write files") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(argv)
    with one_line_errors():
        cfg = build_config(arguments.config_file, ["DATALOADER.NUM_WORKERS", "0", *arguments.opts])
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = annotation_pictures(cfg) if arguments.source == "annotation" else loader_pictures(cfg)
        progress = tqdm.tqdm(itertools.islice(pictures, arguments.num), total=arguments.num, unit="picture")
        for number, (name, picture) in enumerate(progress):
            if arguments.show:
                show(picture)
            else:
                # The number keeps apart the same image drawn twice.
                cv2.imwrite(str(folder / f"{number:04d}_{name}.jpg"), picture[:, :, ::-1])


if __name__ == "__main__":
    main()
