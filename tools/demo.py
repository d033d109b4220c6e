#!/usr/bin/env python
"""Detect what a prompt names in images or a video, segment what a phrase refers to, answer a question or write
captions; save drawings and JSON.

python tools/demo.py --config-file CONFIG --input *.jpg --prompt "a man on a skateboard" --opts MODEL.WEIGHTS FILE
python tools/demo.py --config-file CONFIG --video-input in.mp4 --vocabulary "person,traffic light"
python tools/demo.py --config-file CONFIG --input *.jpg --task refer --prompt "the man on the left"
python tools/demo.py --config-file CONFIG --input *.jpg --task vqa --question "What is the man riding?"
python tools/demo.py --config-file CONFIG --input *.jpg --task caption
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tqdm import tqdm

from glipv2_d2 import GLIPv2Predictor
from glipv2_d2.data.image_reading import IMAGE_SUFFIXES, UnreadableImageError, read_image
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.errors import InputError
from glipv2_d2.evaluation.ap_inputs import encode_masks
from glipv2_d2.visualizer import GroundingVisualizer

TASKS = ("detect", "refer", "vqa", "caption")

# Lowest score of a detection that is kept, unless the command line names another.
DEFAULT_THRESHOLD = 0.5

# From an image in BGR order to its drawing and its record in the JSON file.
Drawer = Callable[[np.ndarray], tuple[np.ndarray, dict[str, Any]]]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, folders of images, or quoted globs")
    source.add_argument("--video-input", metavar="FILE")
    parser.add_argument("--output", default="output/predictions", metavar="FOLDER")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0], help=f"default: {TASKS[0]}")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="CAPTION", help="text with noun phrases to find; one phrase for refer")
    prompt.add_argument("--vocabulary", metavar="A,B,C", help="names to find; default: those of DATASETS.TEST[0]")
    prompt.add_argument("--question", metavar="TEXT", help="question for --task vqa")
    score_help = f"lowest score kept; default: {DEFAULT_THRESHOLD}, for refer MODEL.GLIPV2.TEST.REFERRING_THRESH"
    parser.add_argument("--confidence-threshold", type=float, metavar="SCORE", help=score_help)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; last")
    return parser.parse_args(argv)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse flags whose values cannot be used or do not fit the task."""
    threshold, folder = arguments.confidence_threshold, Path(arguments.output)
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--confidence-threshold: expected a number from 0 to 1, found {threshold}")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"--output: expected a folder, found a file at {existing}")
    if (arguments.task == "vqa") != (arguments.question is not None):
        found = "no question" if arguments.question is None else f"--task {arguments.task}"
        raise InputError(f"--question: expected a question with --task vqa and none with other tasks, found {found}")
    if arguments.task == "refer" and arguments.prompt is None:
        found = "no prompt" if arguments.vocabulary is None else "--vocabulary"
        raise InputError(f"--prompt: expected a phrase with --task refer, found {found}")
    if arguments.task in ("detect", "refer"):
        return
    if arguments.prompt is not None or arguments.vocabulary is not None:
        raise InputError(f"--prompt, --vocabulary: expected --task detect or refer, found --task {arguments.task}")
    # The height of these drawings follows the text, but all frames of a video have one height.
    if arguments.video_input is not None:
        raise InputError(f"--video-input: expected --task detect or refer, found --task {arguments.task}")


def find_images(paths: Sequence[str]) -> list[str]:
    """List the image files of ``--input``, sorted within a folder or glob."""
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            found = sorted(str(file) for file in Path(path).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found = [path] if os.path.isfile(path) else sorted(glob.glob(os.path.expanduser(path), recursive=True))
        if not found:
            raise FileNotFoundError(f"--input: expected image files at {path}, found none")
        files += found
    return list(dict.fromkeys(files))


def as_prompt(arguments: argparse.Namespace) -> str | list[str] | None:
    """Return the caption, the names, or None for those of the config."""
    if arguments.vocabulary is None:
        return arguments.prompt
    return [name.strip() for name in arguments.vocabulary.split(",")]


class Detector:
    """Detect in one image after the other, and draw."""

    def __init__(self, predictor: GLIPv2Predictor, prompt: str | list[str] | None, threshold: float) -> None:
        self.predictor, self.prompt, self.threshold = predictor, prompt, threshold

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Detect in an image in BGR order; return the drawing and its record in the JSON file."""
        output = self.predictor(image, self.prompt)
        instances = kept_instances(output, self.threshold)
        caption = self.prompt if isinstance(self.prompt, str) else None
        drawn = GroundingVisualizer(image[:, :, ::-1]).draw_predictions(instances, output["phrases"], caption)
        return drawn[:, :, ::-1], {"detections": list_detections(instances, output["phrases"])}


class Referrer:
    """Segment a referring phrase in one image after the other, and draw."""

    def __init__(self, predictor: GLIPv2Predictor, phrase: str) -> None:
        self.predictor, self.phrase = predictor, phrase

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Segment in an image in BGR order; return the drawing and its record in the JSON file."""
        mask = self.predictor.refer(image, self.phrase)["mask"]
        drawn = GroundingVisualizer(image[:, :, ::-1]).draw_referred(mask, self.phrase)
        return drawn[:, :, ::-1], {"segmentation": list_masks(torch.from_numpy(mask)[None])[0]}


class Answerer:
    """Answer one question about one image after the other, and draw."""

    def __init__(self, predictor: GLIPv2Predictor, question: str, threshold: float) -> None:
        self.predictor, self.question, self.threshold = predictor, question, threshold

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Answer for an image in BGR order; return the drawing and its record in the JSON file."""
        output = self.predictor.answer(image, self.question)
        instances, answer, score = kept_instances(output, self.threshold), output["answer"], output["score"]
        drawn = GroundingVisualizer(image[:, :, ::-1]).draw_answer(
            instances, output["phrases"], self.question, answer, score
        )
        record = {"answer": answer, "score": round(score, 4)}
        record["answers"] = [[other, round(its_score, 4)] for other, its_score in output["answers"]]
        return drawn[:, :, ::-1], {**record, "detections": list_detections(instances, output["phrases"])}


class Captioner:
    """Write captions of one image after the other, and draw."""

    def __init__(self, predictor: GLIPv2Predictor, threshold: float) -> None:
        self.predictor, self.threshold = predictor, threshold

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Caption an image in BGR order; return the drawing and its record in the JSON file.

        The record has the best box of every word, and the boxes of phrases from the threshold on.
        """
        output = self.predictor.caption(image)
        instances, phrases, caption = kept_instances(output, self.threshold), output["phrases"], output["caption"]
        drawn = GroundingVisualizer(image[:, :, ::-1]).draw_generated(
            instances, phrases, caption, output["phrase_spans"]
        )
        record = {"caption": caption, "score": round(output["score"], 4)}
        record["words"] = [{**word, **rounded_box(word["score"], word["box"])} for word in output["words"]]
        return drawn[:, :, ::-1], {**record, "detections": list_detections(instances, phrases)}


def kept_instances(output: dict[str, Any], threshold: float) -> Instances:
    """Return the detections with at least this score."""
    instances = output["instances"].to("cpu")
    return instances[instances.scores >= threshold]


def list_detections(instances: Instances, phrases: Sequence[str]) -> list[dict[str, Any]]:
    """Return phrase, score, box and, if the model has masks, mask of each detection in plain types."""
    columns = (instances.pred_classes, instances.scores, instances.pred_boxes.tensor)
    fields = zip(*(column.tolist() for column in columns), strict=True)
    detections = [{"phrase": phrases[row], **rounded_box(score, box)} for row, score, box in fields]
    if not instances.has("pred_masks"):
        return detections
    masks = list_masks(instances.pred_masks)
    return [{**detection, "segmentation": mask} for detection, mask in zip(detections, masks, strict=True)]


def rounded_box(score: float, box: Sequence[float] | None) -> dict[str, Any]:
    """Return score and box, rounded for the JSON file; a word may have no box."""
    return {"score": round(score, 4), "box": None if box is None else [round(edge, 2) for edge in box]}


def list_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """Return masks (K, H, W) bool as COCO's compressed run lengths."""
    size = list(masks.shape[1:])
    return [{"size": size, "counts": counts.decode("ascii")} for counts in encode_masks(masks)]


class RecordFile:
    """A JSON file that grows by one record at a time; after each of them it is whole.

    Args:
        path: The file is made with the first record, in place of an older one.
        asked: Fields of the file beside ``predictions``, the list of records.
    """

    _END = b"\n]}\n"

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path = path
        self.count = 0
        self._asked = asked

    def add(self, record: dict[str, Any]) -> None:
        """Write a record behind the last one."""
        text = json.dumps(record).encode()
        if not self.count:
            start = json.dumps({**self._asked, "predictions": []})[: -len("]}")].encode()
            self.path.unlink(missing_ok=True)
            self.path.write_bytes(start + b"\n" + text + self._END)
        else:
            with open(self.path, "r+b") as file:
                file.seek(-len(self._END), os.SEEK_END)
                file.write(b",\n" + text + self._END)
        self.count += 1


def draw_images(drawer: Drawer, files: Sequence[str], folder: Path, records: RecordFile) -> None:
    """Write one drawing per image, but report and leave out images that cannot be read or need too much memory."""
    taken: set[str] = set()
    for file in tqdm(files, unit="image"):
        try:
            drawn, record = drawer(read_image({"file_name": file}, "BGR"))
        except (UnreadableImageError, MemoryError, torch.cuda.OutOfMemoryError) as error:
            tqdm.write(f"skipped {file}: {' '.join(str(error).split()) or 'out of memory'}")
            continue
        name = free_name(Path(file).stem, taken)
        save_drawing(folder / f"{name}.png", drawn)
        records.add({"file_name": file, "drawing": f"{name}.png", **record})
    if not records.count:
        raise InputError(f"--input: expected readable images, found none among {len(files)} files")
    if records.count < len(files):
        print(f"{len(files) - records.count} of {len(files)} images were skipped, see above")


def free_name(stem: str, taken: set[str]) -> str:
    """Return a name that no drawing has yet, also where upper and lower case are one, and add it to ``taken``."""
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name


def draw_video(drawer: Drawer, file: str, folder: Path, records: RecordFile) -> None:
    """Write one drawn video."""
    with contextlib.closing(VideoSink(folder / f"{Path(file).stem}.mp4")) as sink:
        for number, (frame, rate) in enumerate(read_video(file)):
            drawn, record = drawer(frame)
            sink.write(drawn, rate)
            records.add({"file_name": file, "frame": number, **record})
    if not records.count:
        raise InputError(f"--video-input: expected a readable video, found no frame in {file}")


def read_video(file: str) -> Iterator[tuple[np.ndarray, float]]:
    """Yield frames in BGR order with the frame rate."""
    if not os.path.isfile(file):
        raise FileNotFoundError(f"--video-input: expected a file, found none at {file}")
    video = cv2.VideoCapture(file)
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        with tqdm(total=int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None, unit="frame") as bar:
            while True:
                success, frame = video.read()
                if not success:
                    break
                yield frame, rate
                bar.update()
    finally:
        video.release()


class VideoSink:
    """A video file. The first frame opens it and gives it its size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray, rate: float) -> None:
        if self.writer is None:
            size = (frame.shape[1], frame.shape[0])
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
            if not self.writer.isOpened():
                raise OSError(f"--output: no video can be written to {self.path}")
        self.writer.write(frame)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()


def save_drawing(path: Path, drawing: np.ndarray) -> None:
    # A link of that name is replaced, not followed.
    path.unlink(missing_ok=True)
    if not cv2.imwrite(str(path), drawing):
        raise OSError(f"--output: no drawing can be written to {path}")


def make_drawer(arguments: argparse.Namespace, predictor: GLIPv2Predictor) -> tuple[Drawer, dict[str, Any]]:
    """Return the drawer of a task, and the fields of the JSON file that all images share."""
    threshold = DEFAULT_THRESHOLD if arguments.confidence_threshold is None else arguments.confidence_threshold
    if arguments.task == "vqa":
        return Answerer(predictor, arguments.question, threshold), {"question": arguments.question}
    if arguments.task == "caption":
        return Captioner(predictor, threshold), {}
    prompt = as_prompt(arguments)
    if arguments.task == "refer":
        return Referrer(predictor, arguments.prompt), {"prompt": prompt}
    return Detector(predictor, prompt, threshold), {"prompt": prompt}


def read_config(arguments: argparse.Namespace) -> CfgNode:
    """Build the config; for ``--task refer`` the model applies the threshold, which is a key of the config."""
    if arguments.task != "refer":
        return build_config(arguments.config_file, arguments.opts)
    threshold = arguments.confidence_threshold
    keys = [] if threshold is None else ["MODEL.GLIPV2.TEST.REFERRING_THRESH", str(threshold)]
    cfg = build_config(arguments.config_file, [*keys, *arguments.opts])
    if not cfg.MODEL.MASK_ON:
        raise InputError(f"MODEL.MASK_ON: expected True with --task refer, found False in {arguments.config_file}")
    return cfg


def run(arguments: argparse.Namespace) -> Path:
    """Run the task of the command line; return the path of the JSON file."""
    check_arguments(arguments)
    files = find_images(arguments.input) if arguments.input else []
    predictor = GLIPv2Predictor(read_config(arguments))
    drawer, asked = make_drawer(arguments, predictor)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    records = RecordFile(folder / "predictions.json", asked)
    if files:
        draw_images(drawer, files, folder, records)
    else:
        draw_video(drawer, arguments.video_input, folder, records)
    return records.path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(argv)
    with one_line_errors(arguments.traceback):
        print(f"wrote {run(arguments)}")


if __name__ == "__main__":
    main()
