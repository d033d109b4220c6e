"""What becomes of detectron2's own config keys: honoured by this package, by detectron2 code that it calls, or refused.

A key that nothing reads would change a config and not the run. ``check_config`` refuses it as soon as it differs from
detectron2's default; ``tests/test_detectron2_keys.py`` holds that every key of detectron2 has its place here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .errors import InputError

# Keys, or the beginnings of keys. Where several fit, the longest counts.
HONOURED_HERE = (
    *("MODEL.DEVICE", "MODEL.MASK_ON", "MODEL.WEIGHTS", "MODEL.PIXEL_", "MODEL.BACKBONE.FREEZE_AT", "MODEL.FPN."),
    *("INPUT.MIN_SIZE_T", "INPUT.MAX_SIZE_T", "INPUT.RANDOM_FLIP", "INPUT.CROP.", "INPUT.FORMAT"),
    *("DATASETS.TRAIN", "DATASETS.TEST", "DATALOADER.NUM_WORKERS", "DATALOADER.ASPECT_RATIO_GROUPING"),
    *("DATALOADER.SAMPLER_TRAIN", "DATALOADER.FILTER_EMPTY_ANNOTATIONS"),
    *("SOLVER.MAX_ITER", "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.BIAS_LR_FACTOR", "SOLVER.CLIP_GRADIENTS."),
    *("SOLVER.AMP.", "SOLVER.IMS_PER_BATCH", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.WARMUP_"),
    *("TEST.AUG.", "TEST.EVAL_PERIOD", "TEST.DETECTIONS_PER_IMAGE", "OUTPUT_DIR", "SEED"),
)
HONOURED_BY_DETECTRON2 = (
    # Reading of config files and building of models.
    *("VERSION", "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.ANCHOR_GENERATOR."),
    # build_lr_scheduler, and DefaultTrainer.auto_scale_workers.
    *("SOLVER.LR_SCHEDULER_NAME", "SOLVER.BASE_LR_END", "SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.NUM_DECAYS"),
    *("SOLVER.RESCALE_INTERVAL", "SOLVER.REFERENCE_WORLD_SIZE"),
    # default_setup, and DefaultTrainer.train.
    *("CUDNN_BENCHMARK", "TEST.EXPECTED_RESULTS"),
)
# Keys that nothing reads, and what to do instead.
_NO_PROPOSALS = "boxes come from the dense detector of MODEL.GLIPV2, which reads no proposals"
_OTHER_MODEL = "it belongs to another model of detectron2; the detector is set by MODEL.GLIPV2"
REFUSED = {
    "MODEL.LOAD_PROPOSALS": _NO_PROPOSALS,
    "MODEL.PROPOSAL_GENERATOR.": _NO_PROPOSALS,
    "DATASETS.PROPOSAL_FILES_T": _NO_PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_T": _NO_PROPOSALS,
    "MODEL.KEYPOINT_ON": "there are boxes and masks (MODEL.MASK_ON), but no keypoints",
    "MODEL.RPN.": _OTHER_MODEL,
    "MODEL.ROI_": _OTHER_MODEL,
    "MODEL.ROI_HEADS.NUM_CLASSES": "classes are the names of the data; of a DyHead MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES",
    "MODEL.ROI_MASK_HEAD.": "the mask head is set by MODEL.GLIPV2.MASK_HEAD",
    "MODEL.SEM_SEG_HEAD.": _OTHER_MODEL,
    "MODEL.PANOPTIC_FPN.": _OTHER_MODEL,
    "MODEL.RETINANET.": _OTHER_MODEL,
    "MODEL.RETINANET.NUM_CLASSES": "classes are the names of the data; of a DyHead MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES",
    "MODEL.RESNETS.": "a ResNet needs a MODEL.BACKBONE.NAME that builds one; MODEL.SWIN and MODEL.TIMM set the others",
    "MODEL.ANCHOR_GENERATOR.ANGLES": "boxes are upright",
    "INPUT.MASK_FORMAT": "polygons and run lengths are told apart by themselves",
    "DATALOADER.REPEAT_": "DATASETS.TRAIN_RATIOS weights datasets; the images of one are drawn alike",
    "SOLVER.MOMENTUM": "the optimizer is AdamW",
    "SOLVER.NESTEROV": "the optimizer is AdamW",
    "TEST.KEYPOINT_OKS_SIGMAS": "there are boxes and masks, but no keypoints",
    "TEST.PRECISE_BN.": "no batch normalization trains but that of timm models with MODEL.TIMM.FREEZE_NORM False",
    "VIS_PERIOD": "tools/visualize_data.py draws what the model is given, glipv2 predict what it finds",
    "GLOBAL.": "nothing reads it",
}
# The models of detectron2 read images alone; this package's data is not for them.
_MODELS_WITHOUT_PROMPTS = (
    "FCOS",
    "GeneralizedRCNN",
    "PanopticFPN",
    "ProposalNetwork",
    "RetinaNet",
    "SemanticSegmentor",
)


def check_config(cfg: CfgNode) -> None:
    """Refuse a config in which a key of detectron2 is changed that nothing would read.

    Raises:
        InputError: There is such a key, or ``MODEL.META_ARCHITECTURE`` is a model of detectron2; the message says what
            to do instead.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name in _MODELS_WITHOUT_PROMPTS:
        raise InputError(
            f"MODEL.META_ARCHITECTURE: expected 'GLIPv2' or 'DyHead', found {name!r}; take a file of configs/"
        )
    own = dict(config_leaves(cfg))
    for key, default in config_leaves(get_cfg()):
        way_out = way_out_of(key)
        if way_out is None or _plain(own[key]) == _plain(default):
            continue
        if key.startswith("MODEL.RESNETS.") and "resnet" in cfg.MODEL.BACKBONE.NAME:
            continue
        raise InputError(f"{key}: expected detectron2's default {default!r}, found {own[key]!r}; {way_out}")


def way_out_of(key: str) -> str | None:
    """Return what to do instead of changing a key of detectron2, None where the key is honoured.

    Raises:
        KeyError: The key is in none of the tables.
    """
    known = [one for one in (*HONOURED_HERE, *HONOURED_BY_DETECTRON2, *REFUSED) if key.startswith(one)]
    if not known:
        raise KeyError(key)
    return REFUSED.get(max(known, key=len))


def is_honoured(key: str) -> bool:
    """Tell whether a key of detectron2 or of this package has an effect."""
    return not any(key.startswith(one) for one in REFUSED) or way_out_of(key) is None


def config_leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a config that has a value, with dots, and its value."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from config_leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples: a file writes both alike."""
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
