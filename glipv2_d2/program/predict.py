"""Find what a prompt names in images, videos or a webcam; segment what a phrase refers to, answer a question, or write
captions. Drawings and results are saved as each image is done; an image that cannot be read is named and left out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..folders import check_writable
from ..plurals import counted
from .config_arguments import add_model_arguments, build_predictor, split_names
from .output import write_line

if TYPE_CHECKING:
    from .predict_sources import Source
    from .predict_tasks import Prompt

TASKS = ("detect", "refer", "vqa", "caption")
# What is saved, and of which tasks.
KINDS = ("images", "json", "jsonl", "coco", "yolo", "crops", "similarity")
_KINDS_OF_NAMES = ("coco", "yolo", "crops", "similarity")
_DEFAULT_KINDS = "images,json"

# Lowest score of a detection that is kept, unless the command line names another.
DEFAULT_THRESHOLD = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 predict``."""
    source = parser.add_argument_group("what to look at")
    source.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="image, folder, quoted glob, video, webcam number, or address"
    )
    source.add_argument("--input", nargs="+", default=[], metavar="INPUT", dest="more_inputs", help="the same")
    source.add_argument("--video-input", metavar="FILE", help="a video, whatever its name ends with")
    source.add_argument("--allow-downloads", action="store_true", help="fetch images and models at addresses")
    add_model_arguments(parser)
    asked = parser.add_argument_group("what to find")
    asked.add_argument("--task", choices=TASKS, default=TASKS[0], help=f"default: {TASKS[0]}")
    prompt = asked.add_mutually_exclusive_group()
    prompt.add_argument(
        *("--names", "--vocabulary"), metavar="A,B,C", help="names to find; default: those of DATASETS.TEST[0]"
    )
    prompt.add_argument("--names-file", metavar="FILE", help="file with a name on each line")
    prompt.add_argument(
        *("--caption", "--prompt"), metavar="TEXT", help="text with noun phrases to find; one phrase for refer"
    )
    prompt.add_argument("--question", metavar="TEXT", help="question for --task vqa")
    score_help = f"lowest score kept; default: {DEFAULT_THRESHOLD}, for refer MODEL.GLIPV2.TEST.REFERRING_THRESH"
    asked.add_argument("--threshold", "--confidence-threshold", type=float, metavar="SCORE", help=score_help)
    asked.add_argument("--max-boxes", type=int, metavar="N", help="keep the best N of an image")
    saved = parser.add_argument_group("what to save")
    saved.add_argument("--output", default="output/predictions", metavar="FOLDER", help="default: output/predictions")
    save_help = f"of {', '.join(KINDS)}; default: {_DEFAULT_KINDS}"
    saved.add_argument("--save", default=_DEFAULT_KINDS, metavar="A,B", help=save_help)
    saved.add_argument("--style", choices=("auto", "full", "thin"), default="auto", help="thin: for crowded images")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once, for detect; default: 1")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; last")


def run(arguments: argparse.Namespace) -> None:
    """Run the task of the command line on all inputs, and say at the end what was found and where it lies."""
    kinds = check_arguments(arguments)
    prompt = read_prompt(arguments)
    from .predict_files import ResultFolder
    from .predict_run import predict_sources
    from .predict_sources import find_sources
    from .predict_tasks import make_task

    inputs = [*arguments.inputs, *arguments.more_inputs]
    sources, num_missing = find_sources(inputs, arguments.video_input, arguments.allow_downloads)
    check_sources(arguments.task, sources, kinds)
    check_results(Path(arguments.output), sources, kinds)
    predictor = build_predictor(arguments, _keys(arguments), needs_masks=arguments.task == "refer")
    threshold = DEFAULT_THRESHOLD if arguments.threshold is None else arguments.threshold
    limits = {"threshold": threshold, "max_boxes": arguments.max_boxes, "batch_size": arguments.batch_size}
    task = make_task(arguments.task, predictor, prompt, style=arguments.style, **limits)
    asked = {} if arguments.task == "caption" else {"question" if arguments.task == "vqa" else "prompt": prompt}
    folder = ResultFolder(Path(arguments.output), kinds, asked)
    counts = predict_sources(task, sources, folder, arguments.allow_downloads)
    left_out = counts.skipped_words() + [f"{counted(num_missing, 'input')} not found"] * bool(num_missing)
    if left_out:
        sys.stderr.write(f"{', '.join(left_out)}, see above\n")
    found = f", {counted(counts.num_detections, 'detection')}" if arguments.task in ("detect", "vqa") else ""
    if found and not counts.num_detections and any(task.best_scores):
        found += lower_threshold(task.best_scores, threshold)
    write_line(f"wrote {arguments.output}: {counts.done_words()}{found}")


def lower_threshold(best_scores: Sequence[float], threshold: float) -> str:
    """Say that nothing passed a threshold, and which one would show something in half of the images with detections.

    Names that training has not seen have low scores.

    Args:
        best_scores: The best score of each image, some above 0.
        threshold: What no score has reached.
    """
    # Rounded down, so that the score itself passes.
    lower = math.floor(statistics.median_low(filter(None, best_scores)) * 100) / 100
    many = f"something in {sum(score >= lower for score in best_scores if score)} of {len(best_scores)}"
    shown = "the best one" if len(best_scores) == 1 else many
    return f": all scores are below {threshold:g}, --threshold {lower:g} shows {shown}"


def check_arguments(arguments: argparse.Namespace) -> list[str]:
    """Refuse flags whose values cannot be used or do not fit the task; return the kinds of results to save."""
    threshold = arguments.threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold: expected a number from 0 to 1, found {threshold}")
    for flag, value in (("--batch-size", arguments.batch_size), ("--max-boxes", arguments.max_boxes)):
        if value is not None and value < 1:
            raise InputError(f"{flag}: expected a number from 1, found {value}")
    check_writable(arguments.output, "--output")
    _check_task(arguments)
    kinds = [kind.strip() for kind in arguments.save.split(",")]
    allowed = [kind for kind in KINDS if arguments.task == "detect" or kind not in _KINDS_OF_NAMES]
    unknown = [kind for kind in kinds if kind not in allowed]
    if unknown:
        raise InputError(
            f"--save: expected some of {', '.join(allowed)} with --task {arguments.task}, found {unknown[0]!r}"
        )
    return kinds


def check_sources(task: str, sources: Sequence[Source], kinds: Sequence[str]) -> None:
    """Refuse drawings that no video is made of: with texts, whose height is not the same for all, and heat maps."""
    videos = [source.name for source in sources if source.kind != "image"]
    if videos and "similarity" in kinds:
        raise InputError(f"--save: expected similarity with images alone, found the video {videos[0]}")
    if task in ("vqa", "caption") and videos and "images" in kinds:
        raise InputError(
            f"--save: expected json or jsonl with --task {task} and the video {videos[0]}, found images; --save json"
        )


def check_results(folder: Path, sources: Sequence[Source], kinds: Sequence[str]) -> None:
    """Refuse a folder of results where drawings would replace the images, or files of folders in it those in them."""
    target = folder.resolve()
    for source in sources:
        above = list(Path(source.name).resolve().parents) if Path(source.name).is_file() else []
        if target in above[:1] * ("images" in kinds) + above * bool({"yolo", "similarity"}.intersection(kinds)):
            raise InputError(f"--output: expected another folder than that of the images, found {folder}")


def _check_task(arguments: argparse.Namespace) -> None:
    """Refuse a prompt, a question or an input that does not fit the task."""
    task, has_names = arguments.task, arguments.names is not None or arguments.names_file is not None
    if (task == "vqa") != (arguments.question is not None):
        found = "no question" if arguments.question is None else f"--task {task}"
        raise InputError(f"--question: expected a question with --task vqa and none with other tasks, found {found}")
    if task == "refer" and arguments.caption is None:
        found = "--names" if has_names else "no prompt"
        raise InputError(f"--caption: expected a phrase with --task refer, found {found}")
    if task in ("detect", "refer"):
        return
    if arguments.caption is not None or has_names:
        raise InputError(f"--caption, --names: expected --task detect or refer, found --task {task}")


def read_prompt(arguments: argparse.Namespace) -> Prompt:
    """Return the question, the caption, the names, or None for those of the config.

    Raises:
        InputError, OSError: The file of names has none, or cannot be read as text.
    """
    if arguments.names_file is not None:
        try:
            text = Path(arguments.names_file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"--names-file: expected text in UTF-8, found {arguments.names_file}: {error}") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if not names:
            raise InputError(f"--names-file: expected a name on each line, found none in {arguments.names_file}")
        return names
    if arguments.names is None:
        return arguments.caption if arguments.question is None else arguments.question
    return split_names(arguments.names)


def _keys(arguments: argparse.Namespace) -> list[str]:
    """Return the config keys of the command line; for ``--task refer`` the model applies the threshold, a key too."""
    if arguments.task != "refer" or arguments.threshold is None:
        return list(arguments.opts)
    return ["MODEL.GLIPV2.TEST.REFERRING_THRESH", str(arguments.threshold), *arguments.opts]
