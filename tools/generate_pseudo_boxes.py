#!/usr/bin/env python
"""Let a trained model find the boxes that captions or questions lack, and write grounding data with these pseudo boxes.

python tools/generate_pseudo_boxes.py --config-file CONFIG --weights FILE --captions captions.jsonl --image-root DIR \\
    --format shards --output datasets/cap4m/shards
torchrun --nproc-per-node 8 tools/generate_pseudo_boxes.py --config-file CONFIG --weights FILE \\
    --captions "captions-{000..009}.tar" --output datasets/cc/shards
python tools/generate_pseudo_boxes.py --source vqa --config-file CONFIG --weights FILE --image-root DIR \\
    --questions v2_OpenEnded_mscoco_train2014_questions.json --annotations v2_mscoco_train2014_annotations.json \\
    --output datasets/vqav2_pseudo

The model looks for the noun phrases of each caption in its image. A record holds the boxes that it found, each with the
phrase, the character range of the phrase in the caption, and a score. Captions are jsonl, one {"filename": ...,
"caption": ...} per line, or WebDataset tar shards with KEY.jpg and KEY.txt (or KEY.json with "caption").

With --source vqa the text is a question followed by its answer, and a record is {"question_id", "filename", "height",
"width", "question", "answer", "regions"}. A region has "bbox", "score" and the "tokens_positive" of its phrase in the
question, or "answer_box" true if the answer names it, or both. Questions are the two files of VQAv2, whose answer is
the most frequent one, or jsonl, one {"filename": ..., "question": ..., "answer": ...} per line.

Output: pseudo-000000.jsonl, ... (or .tar), settings.json, counts/ for each shard, and at the end report.json. Each
shard is written whole or not at all. A run that was stopped goes on with the same command, with any number of
processes. Each process takes every N-th shard; all need the same --output. Skipped texts are counted by reason.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from pseudo_box_folder import PseudoBoxFolder, format_report
from tqdm import tqdm

from glipv2_d2.data.datasets.caption_files import JsonlCaptions, TarCaptions, open_captions
from glipv2_d2.data.datasets.question_files import JsonlQuestions, VQAQuestions, open_questions
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.engine.pseudo_boxes import (
    CAPTIONS,
    MISSING_IMAGE,
    PseudoBoxCounts,
    PseudoBoxLabeller,
    PseudoBoxTeacher,
    teacher_id,
)
from glipv2_d2.engine.pseudo_questions import QUESTIONS
from glipv2_d2.engine.shard_writer import SHARD_SUFFIXES, open_shard
from glipv2_d2.errors import InputError
from glipv2_d2.prompts.phrase_finders import METHODS, build_phrase_finder

DEFAULT_SHARD_SIZE = 1000
TASKS = {"caption": CAPTIONS, "vqa": QUESTIONS}
# Flags that name the input of each source. The first is required.
INPUT_FLAGS = {"caption": ("captions",), "vqa": ("questions", "annotations", "images_file")}

Texts = JsonlCaptions | TarCaptions | JsonlQuestions | VQAQuestions


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the teacher")
    parser.add_argument("--weights", required=True, metavar="FILE", help="weights of the teacher")
    parser.add_argument("--source", choices=list(TASKS), default="caption", help="default: caption")
    parser.add_argument("--captions", metavar="FILE", help='jsonl file, or tars: "caps-{000..009}.tar"')
    parser.add_argument("--questions", metavar="FILE", help="jsonl file, or json of VQAv2 with --annotations")
    parser.add_argument("--annotations", metavar="FILE", help="answers of VQAv2")
    parser.add_argument("--images-file", metavar="FILE", help="images of VQAv2 in COCO's json, if renamed")
    parser.add_argument("--image-root", default=".", metavar="DIR", help="folder that the names of images start from")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--format", choices=list(SHARD_SUFFIXES), help="default: that of the input")
    parser.add_argument("--shard-size", type=int, metavar="N", help="lines of jsonl in one shard (default: 1000)")
    parser.add_argument("--score-thresh", type=float, default=0.5, metavar="SCORE", help="lowest score (default: 0.5)")
    parser.add_argument("--noun-phrases", choices=METHODS, default="auto", help="auto: spaCy if installed, else rules")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="config keys: KEY VALUE ...")
    return parser.parse_args(argv)


def open_texts(arguments: argparse.Namespace) -> Texts:
    """Open the captions or questions."""
    given = [name for names in INPUT_FLAGS.values() for name in names if getattr(arguments, name) is not None]
    expected = INPUT_FLAGS[arguments.source]
    if expected[0] not in given or not set(given) <= set(expected):
        flags = " ".join(f"--{name.replace('_', '-')}" for name in given) or "none"
        raise InputError(
            f"--source {arguments.source}: expected --{expected[0]} and no input of another source, found {flags}"
        )
    if arguments.shard_size is not None and arguments.shard_size < 1:
        raise InputError(f"--shard-size: expected at least 1, found {arguments.shard_size}")
    piece_size = arguments.shard_size or DEFAULT_SHARD_SIZE
    if arguments.source == "caption":
        return open_captions(arguments.captions, piece_size)
    return open_questions(arguments.questions, arguments.annotations, arguments.images_file, piece_size)


def check_arguments(arguments: argparse.Namespace, texts: Texts) -> None:
    """Refuse values that the types of the arguments allow, but no run can use."""
    if not 0.0 <= arguments.score_thresh <= 1.0:
        raise InputError(f"--score-thresh: expected a number from 0 to 1, found {arguments.score_thresh}")
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size: expected at least 1, found {arguments.batch_size}")
    if texts.holds_images and arguments.shard_size is not None:
        raise InputError("--shard-size: expected none, since each tar shard becomes one shard, found one; leave it out")
    if texts.holds_images and arguments.format == "jsonl":
        raise InputError(
            "--format: expected shards, since images in tar shards have no files of their own, found jsonl"
        )
    if arguments.source == "vqa" and arguments.format == "shards":
        raise InputError("--format: expected jsonl, since questions are read from jsonl only, found shards")


def make_settings(arguments: argparse.Namespace, cfg: CfgNode, texts: Texts, noun_phrases: str) -> dict[str, Any]:
    """Collect what decides on the content of the shards, so that a folder is not continued with something else."""
    # Neither the path of the weights nor the device changes the predictions.
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    parts = "".join(part.dump() for part in (cfg.MODEL, cfg.INPUT, cfg.TEST))
    return {
        "source": arguments.source,
        "input": [os.path.basename(texts.files[0]), len(texts.files)],
        "input_bytes": sum(os.path.getsize(file) for file in texts.files),
        "format": arguments.format,
        "shard_size": None if texts.holds_images else texts.piece_size,
        "score_thresh": arguments.score_thresh,
        "noun_phrases": noun_phrases,
        "teacher": teacher_id(arguments.config_file, arguments.weights),
        "config": hashlib.sha256(parts.encode()).hexdigest()[:12],
    }


def label(
    arguments: argparse.Namespace,
    labeller: PseudoBoxLabeller,
    texts: Texts,
    folder: PseudoBoxFolder,
    numbers: Sequence[int],
) -> None:
    """Write the shards of these numbers."""
    total = None if texts.holds_images else min(len(numbers) * texts.piece_size, texts.num_lines)
    with tqdm(total=total, unit=labeller.task.text, disable=folder.rank > 0) as bar:
        for index, number in enumerate(numbers):
            bar.set_description(f"shard {index + 1} of {len(numbers)}")
            with open_shard(folder.shard(number)) as writer:
                counts = labeller.label_shard(texts.read(number), writer, bar.update)
                if index == 0 and not texts.holds_images:
                    check_images(counts, arguments.image_root)
            folder.finish(number, counts)
            if counts.skipped:
                reasons = ", ".join(f"{reason} ({names[0]}): {len(names)}" for reason, names in counts.skipped.items())
                tqdm.write(f"{folder.shard(number).name}: skipped {reasons}")


def check_images(counts: PseudoBoxCounts, image_root: str) -> None:
    """Stop at the first shard if no image is there and most are missing, which means that the folder is wrong."""
    missing = counts.skipped.get(MISSING_IMAGE, [])
    if not counts.images and 2 * len(missing) > counts.samples:
        raise FileNotFoundError(
            f"--image-root: expected the images of the input in {image_root}, found none of the first "
            f"{len(missing)}, such as {missing[0]}"
        )


def run(arguments: argparse.Namespace, rank: int, world_size: int) -> dict[str, Any] | None:
    """Do the part of process ``rank`` of ``world_size``; the first returns the report of all processes."""
    cfg = build_config(arguments.config_file, [*arguments.opts, "MODEL.WEIGHTS", arguments.weights])
    texts = open_texts(arguments)
    check_arguments(arguments, texts)
    arguments.format = arguments.format or ("shards" if texts.holds_images else "jsonl")
    finder = build_phrase_finder(arguments.noun_phrases)
    settings = make_settings(arguments, cfg, texts, finder.name)
    folder = PseudoBoxFolder(arguments.output, arguments.format, len(texts), rank, world_size)
    folder.check_settings(settings)
    numbers = folder.unfinished()
    if numbers:
        labeller = PseudoBoxLabeller(
            PseudoBoxTeacher(cfg, finder, arguments.score_thresh),
            settings["teacher"],
            TASKS[arguments.source],
            image_root=arguments.image_root,
            batch_size=arguments.batch_size,
            num_threads=cfg.DATALOADER.NUM_WORKERS,
        )
        label(arguments, labeller, texts, folder, numbers)
    if rank > 0:
        return None
    with tqdm(total=len(texts), unit="shard", desc="shards of all processes", disable=world_size == 1) as bar:
        folder.wait(bar.update)
    return folder.write_report(settings)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, alone or as one of the processes that torchrun starts."""
    arguments = parse_arguments(argv)
    # The processes share the output folder only, so they need no process group.
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        # Each task of SLURM may see its own GPU alone.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    setup_logger(distributed_rank=rank, name="glipv2_d2")
    with one_line_errors(arguments.traceback):
        report = run(arguments, rank, world_size)
    if report is not None:
        print("\n".join(format_report(report)))
        print(f"wrote {os.path.join(arguments.output, 'report.json')}")


if __name__ == "__main__":
    main()
