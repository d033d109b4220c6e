"""Images and boxes as people have them: exports of annotation tools, found by content, become COCO json."""

from .find import find_own_sets
from .register import register_configured_sets, register_own_sets, register_test_sets
from .sets import MORE_IMAGES, CocoSet, OwnSets, training_splits
from .writing import write_own_sets

__all__ = [
    "MORE_IMAGES",
    "CocoSet",
    "OwnSets",
    "find_own_sets",
    "register_configured_sets",
    "register_own_sets",
    "register_test_sets",
    "training_splits",
    "write_own_sets",
]
