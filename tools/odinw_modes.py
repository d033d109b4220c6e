"""The modes of tools/run_odinw.py: what trains, with which options, and which weights are tested."""

from __future__ import annotations

from glipv2_d2.checkpoint.resume import BEST_WEIGHTS, KEPT_WEIGHTS
from glipv2_d2.modeling.tuning import TUNING_MODES

# What stands behind a mode and "+", with its options beside KEEP.ENABLED.
_KEEP = "MODEL.GLIPV2.TUNING.KEEP"
_ONE_SET = (f"{_KEEP}.BY_NAME", "False")
_KEEPING = {
    "names": (f"{_KEEP}.BY_NAME", "True"),
    "keep": _ONE_SET,
    "replay": (*_ONE_SET, f"{_KEEP}.LEAST_OWN", "0.0"),
    "between": (*_ONE_SET, f"{_KEEP}.NAMES_WEIGHT", "0.0", f"{_KEEP}.BOXES_WEIGHT", "0.0"),
}
_PLAIN = tuple(mode for mode in TUNING_MODES if mode != "mask_head")
# A tuned prompt has nothing to forget.
MODES = (*_PLAIN, *(f"{mode}+{keeping}" for mode in _PLAIN if mode != "prompt" for keeping in _KEEPING))

# The official settings. The prompt is the same for every image, as prompt tuning needs it, and as at test time no word
# of it is masked: a config of a pre-training is tuned without the losses that only a pre-training has.
RECIPE = (
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.WEIGHT_DECAY", "0.05", "SOLVER.EMA_DECAY", "0.0"),
    *("INPUT.PROMPT.NUM_NEGATIVES", "-1", "INPUT.PROMPT.SHUFFLE", "False", "SOLVER.AUTO_STEP.ENABLED", "True"),
    # A detector without text has the classes of each set.
    *("MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", "0"),
    *("MODEL.GLIPV2.MLM.ENABLED", "False", "MODEL.GLIPV2.CONTRASTIVE.ENABLED", "False"),
)
_OF_MODE = {"prompt": ("SOLVER.BASE_LR", "0.05", "SOLVER.WEIGHT_DECAY", "0.25")}
# Evaluations without gain until the learning rate drops and until the training ends.
_PATIENCE, _PATIENCE_OF_ALL_DATA = ("3", "8"), ("2", "4")


def plain_mode(mode: str) -> str:
    """Return a mode without what stands behind "+"."""
    return mode.partition("+")[0]


def recipe(mode: str, has_all_data: bool, metric: str) -> list[str]:
    """Return the options of a mode.

    Args:
        mode: One of ``MODES``.
        has_all_data: The training is not on few shots.
        metric: Decides on rates, best weights, and the end.
    """
    plain, _, keeping = mode.partition("+")
    step, stop = _PATIENCE_OF_ALL_DATA if has_all_data else _PATIENCE
    options = [*RECIPE, "SOLVER.AUTO_STEP.PATIENCE", step, "SOLVER.EARLY_STOP_PATIENCE", stop]
    options += ["SOLVER.AUTO_STEP.METRIC", metric, "MODEL.GLIPV2.TUNING.MODE", plain, *_OF_MODE.get(plain, ())]
    return [*options, f"{_KEEP}.ENABLED", "True", *_KEEPING[keeping]] if keeping else options


def result_file(mode: str) -> str:
    """Return the name of the weights that a run of a mode is tested with."""
    return KEPT_WEIGHTS if mode.endswith(("+names", "+keep", "+between")) else BEST_WEIGHTS
