"""A training on one's own images and boxes: what it starts from, the config that is chosen for it, and its end."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..checkpoint.checkpointer import GLIPv2Checkpointer
from ..checkpoint.resume import BASE_WEIGHTS, FINAL_WEIGHTS, LAST_CHECKPOINT, find_result_file
from ..config_files import get_config_file
from ..data.own_sets import MORE_IMAGES, register_configured_sets, training_splits
from ..data_check import check_own_sets, find_reported, report_of_readers
from ..errors import InputError
from ..folders import check_writable, lock_folder
from ..modeling.build import choose_device
from ..plurals import counted
from .command_line import build_config
from .progress import ElapsedTime
from .recipe import (
    BATCH,
    NUM_EVALUATIONS,
    Facts,
    evaluation_period,
    large_model_recipe,
    large_schedule,
    length_within,
    num_updates,
    schedule,
    small_model_recipe,
)
from .run_report import write_report, write_results
from .speed import measure_seconds
from .words_share import chooses_words, evaluate_with_words

CONFIG_NAME = "config.yaml"
RESULTS_NAME = "results.json"
REPORT_FOLDER = "report"
CHECK_FOLDER = "data_check"
# The key of --keep.
KEEP = "MODEL.GLIPV2.TUNING.KEEP.ENABLED"
KEEP_SIZE = "MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST"
# Where `make words`, `make train` and `make demo` leave weights, in the folder that a command is called from. The first
# have learned the most names.
HOME_WEIGHTS = tuple(f"output/{folder}/run/{FINAL_WEIGHTS}" for folder in ("words", "train", "demo"))
SMALL_MODEL, LARGE_MODEL = "models/glipv2_micro", "finetune/custom_swin_t"
# Pixels that are read for the check of the data, some ten seconds; of more, files all over the set.
_MOST_PIXELS = 1e9
# These keys say whether the data can be read at all, and which splits they have.
_READ_BY = ("DATASETS.MAX_FAULTY_SHARE", "DATASETS.DIVIDE")
# What shows that a folder holds a run.
_TRACES = (CONFIG_NAME, LAST_CHECKPOINT, "metrics.json", FINAL_WEIGHTS)


class Start(NamedTuple):
    """The weights that a run starts from, "" for none, the config of their model, and where they were found."""

    weights: str
    config_file: str
    reason: str


class OwnRun(NamedTuple):
    """A run that is ready: the arguments of ``build_config``, and what was chosen, a line each."""

    config_file: str
    options: list[str]
    reasons: list[str]


def check_output(folder: Path, resume: bool, overwrite: bool, weights: str = "") -> None:
    """Check that a run that starts from ``weights`` may write to a folder.

    Raises:
        InputError: It holds another run, or one that is at work, or with ``resume`` none, or with ``overwrite`` the
            weights; or nothing can be written to it.
        NotADirectoryError: It is a file, or lies below one.
    """
    check_writable(folder, "--output")
    traces = [name for name in _TRACES if (folder / name).exists()]
    if resume and CONFIG_NAME not in traces:
        raise InputError(f"--resume: expected a run in --output {folder}, found no {CONFIG_NAME} there")
    if overwrite and weights and Path(weights).resolve().parent == folder.resolve():
        raise InputError(f"--weights: expected a file outside of --output, which is replaced, found {weights}")
    if traces and not resume and not overwrite:
        raise InputError(
            f"--output {folder}: expected a new folder, found a run ({', '.join(traces)}); go on with it by --resume, "
            f"replace it by --overwrite, or name another folder"
        )
    if traces and os.name == "posix":
        with lock_folder(folder, "--output", inherited=False):
            pass


def clear_output(folder: Path) -> None:
    """Remove the weights of an earlier run, and what hooks and evaluations would read or add to."""
    traces = (LAST_CHECKPOINT, "metrics.json", "log.txt*", "events.out.*", RESULTS_NAME, BASE_WEIGHTS)
    for pattern in ("model_*.pth", "tuned*.safetensors", *traces):
        for path in folder.glob(pattern):
            path.unlink()


def find_start(weights: str, config_file: str, folder: Path) -> Start:
    """Choose what a run starts from: weights that are named, else ``HOME_WEIGHTS``, else the encoders alone.

    Args:
        weights: File that was named, or "".
        config_file: Config that was named, or "": the one beside the weights, else that of a GLIP-T for weights that
            were named, and of the small model for all others.
        folder: Where ``HOME_WEIGHTS`` are looked for.

    Raises:
        FileNotFoundError: The weights are not there.
    """
    if weights and not os.path.isfile(weights):
        raise FileNotFoundError(f"--weights: expected a file of weights, found none at {weights}")
    home = next((folder / name for name in HOME_WEIGHTS if (folder / name).is_file()), None)
    if weights:
        reason = f"--weights {weights}"
    elif home is not None and not config_file:
        weights, reason = str(home), f"{home}, which `make {home.parts[-3]}` made"
    else:
        reason = "the pretrained encoders of image and text; the detector itself starts from random weights"
    beside = os.path.join(os.path.dirname(weights), CONFIG_NAME)
    if not config_file and weights:
        config_file = beside if os.path.isfile(beside) else get_config_file(LARGE_MODEL)
    return Start(weights, config_file or get_config_file(SMALL_MODEL), reason)


def plan_run(
    data: str,
    output: Path,
    start: Start,
    *,
    epochs: float | None = None,
    minutes: float | None = None,
    num_processes: int = 1,
    options: Sequence[str] = (),
) -> OwnRun:
    """Choose the config of a run; of its choices, ``options`` replace any.

    Args:
        data: Folder or file of images and boxes, see ``find_own_sets``.
        output: Folder of the run.
        start: What it starts from.
        epochs: Passes over the training images; None: chosen by their number.
        minutes: Time for all updates and evaluations on this machine, measured here; None: no limit.
        num_processes: They share each batch, which has at least an image for each of them.
        options: Config keys and values.

    Raises:
        InputError, FileNotFoundError: Data, weights or a key cannot be used.
    """
    data = os.path.abspath(data)
    fixed: list[Any] = ["DATASETS.REGISTER", (data,), "OUTPUT_DIR", str(output), "MODEL.WEIGHTS", start.weights]
    # The config beside the weights may be that of several datasets, of a tuning that forgot nothing, or of a training
    # without weights, whose names the weights know beside those of this one.
    fixed += ["DATASETS.TRAIN_RATIOS", (), "DATASETS.TRAIN_COPIES", (), "TEST.BEST_METRICS", (), KEEP, False]
    fixed += ["MODEL.GLIPV2.TEST.ONLY_OWN_NAMES", not start.weights, "MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE", -1.0]
    fixed += ["DATASETS.DIVIDE", True]
    given = dict(zip(options[::2], options[1::2], strict=False))
    readable = [*fixed, *(word for key in _READ_BY if key in given for word in (key, given[key]))]
    with report_of_readers():
        cfg = build_config(start.config_file, _words(readable))
    train, val = own_datasets(cfg)
    facts = Facts.of_datasets(cfg, train, val)
    is_small = cfg.MODEL.BACKBONE.NAME == "build_timm_fpn_backbone"
    of_start = _sizes_of_start(cfg)
    fixed += ["DATASETS.TRAIN", (train,), "DATASETS.TEST", (val,), KEEP_SIZE, ()]
    recipe = small_model_recipe(facts) if is_small else large_model_recipe(facts)
    if -BATCH % num_processes:
        more = ["SOLVER.IMS_PER_BATCH", BATCH + -BATCH % num_processes]
        recipe = recipe._replace(options=[*recipe.options, *more])
    cfg = build_config(start.config_file, [*_words([*fixed, *recipe.options]), *options])
    if sizes := _sizes_beside(cfg, *of_start):
        fixed += sizes
        cfg = build_config(start.config_file, [*_words([*fixed, *recipe.options]), *options])
    report = check_data(data, cfg)
    batch = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS
    usual = num_updates(facts.num_images, batch, recipe.base_updates, epochs)
    updates, evaluations, why = _choose_length(cfg, usual, epochs, minutes, num_processes)
    if "SOLVER.MAX_ITER" in options:
        updates, why = cfg.SOLVER.MAX_ITER, "SOLVER.MAX_ITER"
    period = cfg.TEST.EVAL_PERIOD if "TEST.EVAL_PERIOD" in options else evaluation_period(updates, evaluations)
    chosen = [*fixed, *recipe.options, *(schedule if is_small else large_schedule)(updates, evaluations)]
    reasons = [
        *report,
        f"data: {counted(facts.num_images, 'image')} with {counted(facts.num_boxes, 'box')} of "
        f"{counted(facts.num_names, 'name')} ({train}), validated with {val}",
        f"start: {start.reason}",
        *recipe.reasons,
        f"length: {counted(updates, 'update')} of {counted(batch, 'image')} ({why}), an evaluation every {period}",
    ]
    if not is_small and choose_device(cfg.MODEL.DEVICE).type == "cpu":
        reasons.append("note: this model takes about a minute for an update on a CPU; without --weights, a small one")
    if options:
        reasons.append(f"changed by you: {' '.join(options)}")
    return OwnRun(start.config_file, [*_words(chosen), *options], reasons)


def _test_size(cfg: CfgNode) -> tuple[int, int]:
    return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST


def _sizes_of_start(cfg: CfgNode) -> tuple[tuple[int, int], float]:
    """Return the size of test images that the weights of a config are for, and that of the classifier's over it.

    The base of a run that kept other names lies beside the config of this run, whose size is that of the tuned weights.
    """
    keep = cfg.MODEL.GLIPV2.TUNING.KEEP
    if keep.SIZE_TEST and os.path.basename(cfg.MODEL.WEIGHTS) == BASE_WEIGHTS:
        return tuple(keep.SIZE_TEST), keep.IMAGE_SCALE
    return _test_size(cfg), cfg.MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE


def _sizes_beside(cfg: CfgNode, size: tuple[int, int], scale: float) -> list[Any]:
    """Return keys of the sizes of images that something else sees than the network that is tuned.

    The image classifier reads the size that it read before, or the network's where that is larger. What answers for
    other names sees the size that it was trained on.

    Args:
        cfg: The config of the run.
        size: Short side and limit of the long side of test images before.
        scale: CLASS_WORDS.IMAGE_SCALE before.
    """
    words, keep, keys = cfg.MODEL.GLIPV2.CLASS_WORDS, cfg.MODEL.GLIPV2.TUNING.KEEP, []
    if words.ENABLED:
        keys += ["MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", max(1.0, scale * size[0] / cfg.INPUT.MIN_SIZE_TEST)]
    if keep.ENABLED and keep.BY_NAME and size != _test_size(cfg):
        keys += [KEEP_SIZE, size, "MODEL.GLIPV2.TUNING.KEEP.IMAGE_SCALE", scale]
    return keys


def _choose_length(
    cfg: CfgNode, usual: int, epochs: float | None, minutes: float | None, num_processes: int
) -> tuple[int, int, str]:
    """Return the updates and evaluations of a run, and why so many updates.

    They are the usual ones, or those that fit into a time, or of epochs and a time the fewer of both.
    """
    if minutes is not None:
        (val,) = cfg.DATASETS.TEST
        update, image = measure_seconds(cfg, num_processes)
        evaluation = image * len(DatasetCatalog.get(val))
        at_end = 1 + chooses_words(cfg)
        fitting, evaluations = length_within(minutes, update, evaluation, at_end)
        if epochs is None or fitting < usual:
            why = f"{minutes:g} minutes at {update:.2f} s each"
            needed = (fitting * update + (evaluations + at_end) * evaluation) / 60
            return fitting, evaluations, why + f"; the least takes {needed:.1f}" * (needed > minutes)
    return usual, NUM_EVALUATIONS, "by the size of the data" if epochs is None else f"{epochs:g} epochs"


def check_data(data: str, cfg: CfgNode) -> list[str]:
    """Check images, boxes and names for the model of a config, write the report to its folder, and return its warnings.

    Raises:
        InputError: The data cannot be trained on.
    """
    own, left_out = find_reported(data)
    findings = check_own_sets(own, cfg, left_out=left_out, max_pixels=_MOST_PIXELS)
    *_, page = findings.write(os.path.join(cfg.OUTPUT_DIR, CHECK_FOLDER))
    if findings.stops:
        found = "; ".join(" ".join(one.lines()) for one in findings.stops)
        raise InputError(f"--data {data}: expected data that can be trained on, found: {found}; all of it: {page}")
    warnings = [line for one in findings.findings if one.severity == "warning" for line in one.lines()]
    return [*warnings, f"the check of the data: {page}"]


def readers_of_run(output: Path) -> AbstractContextManager[Any]:
    """Return a context in which readers do not warn again of what the check of the data of a run has said."""
    return report_of_readers(output / CHECK_FOLDER)


def own_datasets(cfg: CfgNode) -> tuple[str, str]:
    """Return the names of the training and validation data of the one set of DATASETS.REGISTER.

    Of a set with images for validation and test alone, the first train and the second validate.

    Raises:
        InputError: There are no images to train on, or none to validate with.
    """
    (path, splits), *_ = register_configured_sets(cfg).items()
    train, val = training_splits(splits)
    if train not in splits or val not in splits:
        raise InputError(
            f"--data {path}: expected images for training and for validation, found only {', '.join(splits)}; "
            f"{MORE_IMAGES}"
        )
    return splits[train], splits[val]


def finish_run(cfg: CfgNode, model: torch.nn.Module, elapsed: ElapsedTime) -> list[str]:
    """Evaluate the best weights of a run, write its report and results, and return what to say of them, in lines.

    All processes of the run take part in the evaluation; those but the first have nothing to say.

    Args:
        cfg: Config of the run.
        model: Its model; it gets the best weights.
        elapsed: Knows the time that the run has taken.
    """
    output, (val,) = Path(cfg.OUTPUT_DIR), cfg.DATASETS.TEST
    # The first process has written them.
    comm.synchronize()
    weights = find_result_file(str(output))
    logging.getLogger(__name__).info("evaluating %s and drawing the report", weights)
    checkpointer = GLIPv2Checkpointer.from_config(model, cfg, cfg.OUTPUT_DIR, for_results=True)
    checkpointer.resume_or_load(weights, resume=False)
    results = evaluate_with_words(cfg, model, output / CONFIG_NAME)
    if not comm.is_main_process():
        return []
    metadata = MetadataCatalog.get(val)
    truth = json.loads(Path(metadata.json_file).read_text(encoding="utf-8"))
    found = json.loads((output / "inference" / val / "coco_instances_results.json").read_text(encoding="utf-8"))
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    table, cut_off = write_report(output / REPORT_FOLDER, truth, Path(metadata.image_root), found, limit)
    minutes = elapsed.minutes
    write_results(output / RESULTS_NAME, results, minutes, weights)
    texts = metadata.get("prompt_texts", {})
    names = ["".join(texts.get(name, (name,))) for name in metadata.thing_classes]
    # The folder of an image that has not been trained on.
    images = os.path.relpath(os.path.dirname(os.path.join(metadata.image_root, truth["images"][0]["file_name"])))
    for numbered in output.glob("model_[0-9]*.pth"):
        # FINAL_WEIGHTS are the same.
        numbered.unlink()
    return [
        *table,
        f"precision {cut_off.precision:.2f} and recall {cut_off.recall:.2f} from score {cut_off.score:.2f} on",
        f"{minutes:.1f} minutes; weights: {weights}",
        f"figures: {output / RESULTS_NAME}; curves and drawings: {output / REPORT_FOLDER}",
        f"next: {prediction_command(images, output, cut_off.score, names)}",
    ]


def prediction_command(images: str, output: Path, score: float, names: Sequence[str]) -> str:
    """Return the command that finds these names in a folder of images with the model of a run.

    Names one of which has a comma, or a full stop between spaces, are left out: --names would split it, and without the
    option they are those of the run's data.

    Args:
        images: The folder.
        output: Folder of the run.
        score: Lowest score that is shown, 0 to 1.
        names: As they stand in the prompt.
    """
    is_split = any("," in name or "." in name.split() for name in names)
    listed = "" if is_split else f" --names {shlex.quote(','.join(names))}"
    return f"glipv2 predict {_quoted(images)} --model {_quoted(output)} --threshold {score:.2f}{listed}"


def _quoted(path: str | Path) -> str:
    """Write a path as a shell takes it."""
    return shlex.quote(str(path))


def _words(options: Sequence[Any]) -> list[str]:
    """Write values as a command line has them."""
    return [str(option) for option in options]
