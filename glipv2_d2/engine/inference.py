"""Run a model over a test dataset; an image that cannot be read has no results, and does not end the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from ..data.build import TestLoader
from ..data.datasets.skip_report import DataReport, SkipReport, with_progress
from ..data.datasets.value_checks import AnnotationError, EntryError
from ..data.image_reading import DISK_FAULT
from ..errors import InputError, one_line
from .multi_scale import multi_scale

_KIND = "of unreadable images, which count as images without results"
_KIND_OF_DISK = "of images that the disk did not give, which count as images without results, measure again"


class JudgementError(InputError):
    """The results of a dataset cannot be judged, or too many of its images read; all processes raise it alike."""


def run_on_dataset(
    cfg: CfgNode, model: nn.Module, name: str, loader: TestLoader, evaluator: DatasetEvaluator
) -> dict[str, Any]:
    """Return the results of a model on one dataset.

    Images that could not be read are named in one warning and in ``data_report.json``, and their number is the result
    "data" / "unreadable_images", which is absent without any. The model is not asked about them, and the evaluator gets
    an output in which nothing was found.

    Args:
        cfg: The config.
        model: A model with its weights.
        name: Name of the dataset, for messages.
        loader: Its samples, of all processes together each once.
        evaluator: Judges them.

    Raises:
        JudgementError: More samples have an unreadable image than DATASETS.MAX_FAULTY_SHARE allows, or all have; or the
            evaluator cannot judge the results.
    """
    samples, judge = ReadableSamples(loader, evaluator, f"evaluating {name}"), _Judge(evaluator)
    results = inference_on_dataset(multi_scale(cfg, model), samples, judge)
    if reasons := list(filter(None, comm.all_gather(judge.failure))):
        raise JudgementError(reasons[0]) from judge.error
    unreadable: Counter[str] = sum(comm.all_gather(samples.unreadable), Counter())
    if not unreadable:
        return results
    num_samples, num_readable = (sum(numbers) for numbers in zip(*comm.all_gather(samples.counts), strict=True))
    report = SkipReport(f"test images of dataset {name!r}", name)
    report.count("samples", num_samples)
    for line, number in unreadable.items():
        file, _, reason = line.partition(": ")
        kind = _KIND_OF_DISK if DISK_FAULT in reason else _KIND
        report.skip("samples", file, EntryError(reason, kind), number=number)
    try:
        with DataReport.from_config(cfg):
            report.close(range(num_readable), "images that can be read")
    except AnnotationError as error:
        raise JudgementError(str(error)) from error
    return {**results, "data": {"unreadable_images": float(len(unreadable))}} if comm.is_main_process() else results


class ReadableSamples:
    """The batches of a test loader without the samples whose image could not be read.

    Those go to the evaluator as they come, each with an output in which nothing was found. A bar shows how far it is.

    Attributes:
        counts: The number of samples so far, and of readable ones among them.
        unreadable: A line for each image that could not be read, with the number of its samples.
    """

    def __init__(self, loader: TestLoader, evaluator: DatasetEvaluator, description: str = "evaluating") -> None:
        self.counts = (0, 0)
        self.unreadable: Counter[str] = Counter()
        self._loader = loader
        self._evaluator = evaluator
        self._description = description

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in with_progress(self._loader, self._description):
            readable = [sample for sample in batch if "unreadable" not in sample]
            self.counts = (self.counts[0] + len(batch), self.counts[1] + len(readable))
            for sample in batch:
                if "unreadable" in sample:
                    self.unreadable[sample["unreadable"]] += 1
                    self._evaluator.process([sample], [_nothing(sample)])
            if readable:
                yield readable


class _Judge(DatasetEvaluator):
    """An evaluator whose main process, which judges alone, keeps an error until the others can hear of it.

    Attributes:
        error: The error.
        failure: Its text in one line, "" for none.
    """

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self.error: Exception | None = None
        self.failure = ""
        self._evaluator = evaluator

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any] | None:
        try:
            return self._evaluator.evaluate()
        except (InputError, OSError) as error:
            if not comm.is_main_process():
                raise
            self.error, self.failure = error, one_line(error)
            return None


def _nothing(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return an output, of any task, in which nothing was found; an answer is left out."""
    size = (sample.get("height", 0), sample.get("width", 0))
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_masks=torch.zeros(0, *size, dtype=torch.bool),
    )
    caption = {"caption_ids": torch.zeros(0, dtype=torch.int64), "caption_score": 0.0}
    return {"instances": instances, **caption, "token_boxes": torch.zeros(0, 1, 4), "token_scores": torch.zeros(0, 1)}
