"""The end of a training on own data with CLASS_WORDS: is their evidence worth anything for its own names?"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..folders import write_text_once
from .command_line import build_config
from .plateau import result_of
from .trainer import GLIPv2Trainer

_KEY = "MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE"


def chooses_words(cfg: CfgNode) -> bool:
    """Return whether the run finds out at its end what the evidence of CLASS_WORDS is worth for its names."""
    words = cfg.MODEL.GLIPV2.CLASS_WORDS
    return words.ENABLED and words.TAUGHT_WEIGHT > 0 and cfg.MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE < 0


def evaluate_with_words(cfg: CfgNode, model: Any, config_file: Path) -> Mapping[str, Any]:
    """Evaluate a model, and without the evidence of CLASS_WORDS too; of both the better counts and goes to the config.

    What a classifier says of "with mask" and "without mask" tells them not apart, and what it says of animals does.

    Raises:
        InputError: SOLVER.AUTO_STEP.METRIC, by which the better one is found, is no result of the evaluation.
    """
    results, words = GLIPv2Trainer.test(cfg, model), getattr(model, "class_words_head", None)
    if words is None or not chooses_words(cfg):
        return results
    metric = cfg.SOLVER.AUTO_STEP.METRIC
    found, output, without_cfg, words.share = result_of(results, metric), Path(cfg.OUTPUT_DIR), cfg.clone(), 0.0
    without_cfg.defrost()
    without_cfg.OUTPUT_DIR = str(output / "without_class_words")
    without = GLIPv2Trainer.test(without_cfg, model)
    found_without = result_of(without, metric)
    words.share = float(found > found_without)
    logging.getLogger(__name__).info(
        "%s of the own names: %.2f with the classes of an image classifier, %.2f without; %s %g",
        *(metric, found, found_without, _KEY, words.share),
    )
    if comm.is_main_process():
        if not words.share:
            shutil.rmtree(output / "inference")
            os.replace(Path(without_cfg.OUTPUT_DIR) / "inference", output / "inference")
        shutil.rmtree(without_cfg.OUTPUT_DIR)
        # Not that of this process, which says the device, too.
        config = build_config(str(config_file), [_KEY, str(words.share)])
        write_text_once(str(config_file), config.dump())
    comm.synchronize()
    return results if words.share else without
