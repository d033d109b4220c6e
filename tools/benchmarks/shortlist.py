"""Measure what a shortlist of a large vocabulary costs in precision and saves in time.

    python tools/benchmark.py shortlist --config-file CONFIG --shortlist 10 20 40 80 --opts MODEL.WEIGHTS FILE
    python tools/benchmark.py shortlist --config-file CONFIG --num-names 10000 --num-images 5 --opts MODEL.WEIGHTS FILE

The images of DATASETS.TEST[0] are asked for its names, all of them ("exact") and those of shortlists
(MODEL.GLIPV2.TEST.SHORTLIST) of several sizes, in turn, image after image; the vocabulary is read before. With
--num-names the vocabulary has that many names: those of the dataset, of LVIS, and words of the packaged vocabulary of
BERT. Detections of other names than the dataset's are left out of AP.

AP, AP50  of boxes, by the evaluator of the dataset, over the images that were asked.
recall    share of the names in an image, as its annotations say, that are on its shortlist.
s         seconds an image, in single precision; on a machine that others use as well, --clock cpu counts the processor
          time of this process instead.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from rich.table import Table
from torch import nn
from tqdm import tqdm

from glipv2_d2.data.build import build_test_loader
from glipv2_d2.data.datasets.coco import truth_of_images
from glipv2_d2.data.loading import LoadedDataset, load_test_dataset
from glipv2_d2.errors import InputError
from glipv2_d2.evaluation.build import build_evaluator
from glipv2_d2.modeling.build import choose_device
from glipv2_d2.modeling.tasks.shortlist import Shortlist
from glipv2_d2.prompts.builder import clean_name
from glipv2_d2.prompts.protocols import chunk_size_of
from glipv2_d2.prompts.tokenizer import VOCABULARY_FILE, PromptTokenizer
from glipv2_d2.prompts.vocabulary import dataset_names
from glipv2_d2.structures import TokenizedPrompt

from .measurement import clock, load_model, make_table, positive

CONFIG_KEYS = ("MODEL.GLIPV2.CONTRASTIVE.ENABLED", "True")
_WORD = re.compile("[a-z]{3,}")

Rows = dict[str, dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this subcommand."""
    parser.add_argument(
        "--shortlist", nargs="+", type=positive, default=[10, 20, 40, 80], metavar="K", help="default: 10 20 40 80"
    )
    parser.add_argument("--num-names", type=positive, metavar="N", help="default: those of the dataset")
    parser.add_argument("--num-images", type=positive, metavar="N", help="the first ones (default: all)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="(default: wall)")


class NotedShortlist(Shortlist):
    """A shortlist that keeps the ids of the names that it chose last, for a batch of one image."""

    chosen: frozenset[int] = frozenset()

    def choose(self, *arguments: Any) -> list[list[TokenizedPrompt]]:
        """See ``Shortlist``."""
        (prompts,) = super().choose(*arguments)
        self.chosen = frozenset(row for prompt in prompts for row in prompt.category_ids.tolist())
        return [prompts]


def with_other_names(names: Sequence[str], count: int) -> list[str]:
    """Add names of LVIS and words until there are ``count`` names that read differently.

    Raises:
        InputError: There are not so many.
    """
    words = [word for word in VOCABULARY_FILE.read_text(encoding="utf-8").split() if _WORD.fullmatch(word)]
    found: dict[str, str] = {}
    for name in (*names, *MetadataCatalog.get("lvis_v1_val").thing_classes, *words):
        found.setdefault(" ".join(clean_name(name).lower().split()), name)
    if not len(names) <= count <= len(found):
        raise InputError(f"--num-names: expected {len(names)} to {len(found)}, found {count}")
    return [*names, *(name for name in found.values() if name not in set(names))][:count]


def first_images(dataset: LoadedDataset, count: int | None) -> LoadedDataset:
    """Leave out all images of a dataset, and what is known of them, but the first ones; None keeps all."""
    dicts = dataset.dicts[:count]
    if dataset.truth is None:
        return dataset._replace(dicts=dicts)
    return dataset._replace(dicts=dicts, truth=truth_of_images(dataset.truth, {record["image_id"] for record in dicts}))


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Sequence[list[dict[str, Any]]],
    lists: dict[str, NotedShortlist | None],
    evaluators: dict[str, DatasetEvaluator],
    present: dict[Any, set[int]],
    num_names: int,
    read: Callable[[], float],
) -> Rows:
    """Ask each image for each list in turn; return AP, recall and seconds of each.

    Args:
        model: The model.
        batches: One image each, with its prompts.
        lists: By name; None for all names.
        evaluators: For each list.
        present: For each image id the ids of the names in it.
        num_names: Names of the dataset; larger ids are those of other names.
        read: Reads the clock.
    """
    task = model.tasks["detection"]
    seconds, found = dict.fromkeys(lists, 0.0), dict.fromkeys(lists, 0)
    for number, batch in enumerate(tqdm([batches[0], *batches], unit="image", leave=False)):
        for name, shortlist in lists.items():
            task.shortlist = shortlist
            begin = read()
            (output,) = model(batch)
            if number == 0:  # It reads the vocabulary.
                continue
            seconds[name] += read() - begin
            kept = output["instances"].pred_classes < num_names
            evaluators[name].process(batch, [{"instances": output["instances"][kept]}])
            names = present[batch[0]["image_id"]]
            found[name] += len(names if shortlist is None else names & shortlist.chosen)
    total = sum(len(present[batch[0]["image_id"]]) for batch in batches)
    rows: Rows = {}
    for name in lists:
        precision = evaluators[name].evaluate()["bbox"]
        rows[name] = {
            "AP": precision["AP"],
            "AP50": precision["AP50"],
            "recall": found[name] / max(1, total),
            "seconds": seconds[name] / len(batches),
        }
    return rows


def run(arguments: argparse.Namespace, cfg: CfgNode) -> tuple[dict[str, Any], Rows, list[Table]]:
    """Measure all lists on the images of DATASETS.TEST[0]."""
    dataset = first_images(load_test_dataset(cfg, cfg.DATASETS.TEST[0]), arguments.num_images)
    names = dataset_names(dataset.name)
    tokenizer = PromptTokenizer.from_config(cfg)
    prompts = tokenizer.tokenize_names(
        with_other_names(names, arguments.num_names or len(names)),
        separator=cfg.INPUT.PROMPT.SEPARATOR,
        chunk_size=chunk_size_of(cfg, dataset.name),
        with_blank=True,
    )
    batches = [[{**one, "prompts": prompts} for one in batch] for batch in build_test_loader(cfg, dataset)]
    present = {
        image["image_id"]: {annotation["category_id"] for annotation in image["annotations"]} for image in dataset.dicts
    }
    lists: dict[str, NotedShortlist | None] = {"exact": None}
    lists |= {str(size): NotedShortlist(size, tokenizer.max_tokens) for size in arguments.shortlist}
    count = time.process_time if arguments.clock == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        evaluators = {name: build_evaluator(cfg, dataset, folder) for name in lists}
        for evaluator in evaluators.values():
            evaluator.reset()
        read = clock(choose_device(cfg.MODEL.DEVICE), count)
        rows = measure(load_model(cfg).eval(), batches, lists, evaluators, present, len(names), read)
    facts = {
        "dataset": dataset.name,
        "images": len(batches),
        "names": sum(len(prompt.phrases) for prompt in prompts),
        "prompts": len(prompts),
        "clock": arguments.clock,
    }
    table = make_table("", "names asked for", ["AP", "AP50", "recall of names", "s an image", "of exact"])
    for name, row in rows.items():
        share = f"{row['seconds'] / rows['exact']['seconds']:.2f}"
        numbers = [f"{row['AP']:.1f}", f"{row['AP50']:.1f}", f"{100 * row['recall']:.1f}", f"{row['seconds']:.3f}"]
        table.add_row("all (exact)" if name == "exact" else name, *numbers, share)
    return facts, rows, [table]
