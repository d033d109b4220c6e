"""The settings of a training on one's own boxes, chosen from the data, the time and the weights at hand.

Figures behind the numbers: docs/experiments/own_photographs.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..prompts.vocabulary import names_fit_one_prompt

# The sides of a test image that the small model sees: lengths of the short side, and the long side over the short one.
INPUT_SIDES = (192, 256, 320, 384, 448, 512)
ASPECT = 1.5
# The median of a box's side in pixels of the model's input is at least this, as far as the sides above allow.
READABLE_SIDE = 40
# Training shows windows of at most this short side: an update of them costs less than twice one of 192 pixels, whatever
# the size of test images.
WINDOW_SIDE = 256
# Images of an update, as in the trainings of the micro model on scenes.
BATCH = 4
# A run without --epochs and --minutes has this many updates, more where the data are many. An update takes 0.3 CPU
# seconds where objects are large, 0.5 where they are small; two idle cores do the first in 0.2 s. 600 are enough for
# 160 photographs of one class.
BASE_UPDATES = 1200
# The same for a GLIP-T, as configs/finetune/custom_swin_t.yaml has it.
LARGE_MODEL_UPDATES = 2000
MIN_EPOCHS = 3
# A run has this many evaluations, each with a checkpoint; fewer where its time is too short for them.
NUM_EVALUATIONS = 10
# Beyond this many names a prompt holds some of them only.
MAX_PROMPT_NAMES = 80
# Number of names beyond those of an image where a prompt can't hold all; of long ones it holds as many as fit.
NUM_NEGATIVES = 40
# Detections of an image that a config keeps, and that COCO counts. Where an image has more boxes, twice as many as in
# the fullest one are kept: false ones among them take the place of none.
USUAL_DETECTIONS = 100
# Images with a longer short side are decoded at a part of their size: of 4000 x 3000 pixels that takes 18 ms of a core
# instead of 142, where an update of the small model takes 50 for each image. Smaller ones keep their exact pixels.
LARGE_SIDE = 1000


@dataclass(frozen=True)
class Facts:
    """What a recipe has to know of the training data.

    Attributes:
        num_images: Images, those without boxes included.
        num_boxes: Boxes that train, crowd regions left out.
        num_names: Names of the classes.
        box_side: Median over the boxes of the square root of their area, when their images are resized to a short side
            of 1 and a long side of at most ``ASPECT``; 0 without boxes.
        image_side: Median of the short sides of the images, in pixels.
        fit_prompt: A prompt holds all names, however long they are.
        most_boxes: Boxes of the fullest image, those of validation among them.
    """

    num_images: int
    num_boxes: int
    num_names: int
    box_side: float
    image_side: float = 0.0
    fit_prompt: bool = True
    most_boxes: int = 0

    @classmethod
    def of_datasets(cls, cfg: CfgNode, train: str, val: str) -> Facts:
        """Gather them from registered datasets of detection, which the prompts of a config ask for their names."""
        num_names = len(MetadataCatalog.get(train).thing_classes)
        facts = cls.of(DatasetCatalog.get(train), num_names, names_fit_one_prompt(cfg, train))
        return replace(facts, most_boxes=max(facts.most_boxes, cls.of(DatasetCatalog.get(val), num_names).most_boxes))

    @classmethod
    def of(cls, dicts: Iterable[Mapping[str, Any]], num_names: int, fit_prompt: bool = True) -> Facts:
        """Gather them from dataset dicts with ``height`` and ``width``."""
        short_sides, sides, counts = [], [], [0]
        for item in dicts:
            short, long = sorted((item["height"], item["width"]))
            short_sides.append(short)
            scale = min(1 / short, ASPECT / long)
            objects = [one for one in item.get("annotations", ()) if not one.get("iscrowd", 0)]
            counts.append(len(objects))
            for one in objects:
                box = BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYWH_ABS)
                sides.append(math.sqrt(max(0.0, box[2] * box[3])) * scale)
        box_side, image_side = (statistics.median(values) if values else 0.0 for values in (sides, short_sides))
        return cls(len(short_sides), len(sides), num_names, box_side, image_side, fit_prompt, max(counts))


class Recipe(NamedTuple):
    """Config keys with their values, the reasons in words, a line each, and the updates that a run has at least."""

    options: list[Any]
    reasons: list[str]
    base_updates: int


def input_side(box_side: float) -> int:
    """Return the short side of test images, in pixels, at which half of the boxes have ``READABLE_SIDE`` pixels.

    Args:
        box_side: See ``Facts``.
    """
    return next((side for side in INPUT_SIDES if side * box_side >= READABLE_SIDE), INPUT_SIDES[-1])


def num_updates(num_images: int, batch: int, base: int, epochs: float | None = None) -> int:
    """Return the updates of a run, a multiple of ``NUM_EVALUATIONS``.

    Args:
        num_images: Training images.
        batch: Images of an update.
        base: Updates without ``epochs``, unless they are fewer than ``MIN_EPOCHS`` passes.
        epochs: Passes over the images.
    """
    wanted = (MIN_EPOCHS if epochs is None else epochs) * num_images / batch
    wanted = wanted if epochs is not None else max(base, wanted)
    return max(1, math.ceil(wanted / NUM_EVALUATIONS)) * NUM_EVALUATIONS


def length_within(
    minutes: float, seconds_per_update: float, seconds_per_evaluation: float, at_end: int = 1
) -> tuple[int, int]:
    """Return the updates and the evaluations that fit into a time.

    Evaluations, and ``at_end`` of the best weights behind them, take at most half of it, unless one is too long for
    that.
    """
    most = int(30 * minutes / seconds_per_evaluation) - at_end if seconds_per_evaluation else NUM_EVALUATIONS
    evaluations = min(NUM_EVALUATIONS, max(1, most))
    left = 60 * minutes - (evaluations + at_end) * seconds_per_evaluation
    updates = max(NUM_EVALUATIONS, int(left / seconds_per_update))
    return updates // evaluations * evaluations, evaluations


def evaluation_period(updates: int, evaluations: int = NUM_EVALUATIONS) -> int:
    """Return the updates from one evaluation to the next."""
    return max(1, updates // evaluations)


def schedule(updates: int, evaluations: int = NUM_EVALUATIONS) -> list[Any]:
    """Return the keys that follow from the number of updates: warm-up, average, evaluations and checkpoints."""
    period = evaluation_period(updates, evaluations)
    return [
        *("SOLVER.MAX_ITER", updates),
        *("SOLVER.WARMUP_ITERS", min(100, max(1, updates // 20))),
        # An average over about a twentieth of the run.
        *("SOLVER.EMA_DECAY", round(1 - min(0.5, max(0.001, 20 / updates)), 4), "SOLVER.EMA_WARMUP", True),
        *("TEST.EVAL_PERIOD", period, "SOLVER.CHECKPOINT_PERIOD", period, "SOLVER.MAX_CHECKPOINTS", 1),
        # With as many evaluations as the run has it never ends early, but keeps the best weights.
        *("SOLVER.EARLY_STOP_PATIENCE", NUM_EVALUATIONS),
    ]


def names_in_prompt(facts: Facts) -> int:
    """Return INPUT.PROMPT.NUM_NEGATIVES: -1, all names of the data, as long as a prompt holds them."""
    return -1 if facts.num_names <= MAX_PROMPT_NAMES and facts.fit_prompt else NUM_NEGATIVES


def small_model_recipe(facts: Facts) -> Recipe:
    """Choose the settings of the micro model that hang on the data, but the length of the run."""
    side = input_side(facts.box_side)
    long_side = round(side * ASPECT)
    window = min(side, WINDOW_SIDE)
    options: list[Any] = [
        *("INPUT.MIN_SIZE_TEST", side, "INPUT.MAX_SIZE_TEST", long_side),
        # The sizes of the weights that the run starts from are not those of these images.
        *("TEST.AUG.ENABLED", False),
        *("INPUT.MIN_SIZE_TRAIN", (window,), "INPUT.MAX_SIZE_TRAIN", min(long_side, round(window * ASPECT))),
        *("INPUT.ZOOM", (0.6, 1.5), "INPUT.COLOR_JITTER", 0.3),
        *("SOLVER.IMS_PER_BATCH", BATCH, "INPUT.PROMPT.NUM_NEGATIVES", names_in_prompt(facts)),
    ]
    reasons = [
        f"input: images of {side} x {long_side} pixels, where half of the boxes have a side of "
        f"{side * facts.box_side:.0f} pixels or more"
    ]
    return _with_detections(facts, Recipe(options, reasons, BASE_UPDATES))


def large_model_recipe(facts: Facts) -> Recipe:
    """Choose the settings of a GLIP-T, or another model that is not the micro one, that hang on the data."""
    options = ["SOLVER.IMS_PER_BATCH", BATCH, "INPUT.PROMPT.NUM_NEGATIVES", names_in_prompt(facts)]
    reasons = ["input: as the config of the model says"]
    return _with_detections(facts, Recipe(options, reasons, LARGE_MODEL_UPDATES))


def _with_detections(facts: Facts, recipe: Recipe) -> Recipe:
    """Add what finds all objects of images that have many, then what ``_with_loading`` adds."""
    if facts.most_boxes > USUAL_DETECTIONS:
        kept = 2 * facts.most_boxes
        reason = f"detections: the best {kept} of an image, since one has {facts.most_boxes} boxes; AP counts them all"
        recipe = recipe._replace(
            options=[*recipe.options, "TEST.DETECTIONS_PER_IMAGE", kept], reasons=[*recipe.reasons, reason]
        )
    return _with_loading(facts, recipe)


def _with_loading(facts: Facts, recipe: Recipe) -> Recipe:
    """Add what makes large photographs fast to load."""
    if facts.image_side < LARGE_SIDE:
        return recipe
    reason = (
        "loading: JPEG files are decoded at a part of their size, since half of the images have "
        f"{facts.image_side:,.0f} pixels or more on their short side"
    )
    options = [*recipe.options, "INPUT.REDUCED_DECODING", True]
    return recipe._replace(options=options, reasons=[*recipe.reasons, reason])


def large_schedule(updates: int, evaluations: int = NUM_EVALUATIONS) -> list[Any]:
    """Return ``schedule`` with the drops of the rate after 67 % and 89 % of the run, as the official code has them."""
    return [*schedule(updates, evaluations), "SOLVER.STEPS", (updates * 67 // 100, updates * 89 // 100)]
