"""Importing this module registers models, backbones, datasets and the path prefix ``package://`` with detectron2.

``build_config`` and every public name of ``glipv2_d2`` import it.
"""

import warnings

with warnings.catch_warnings():
    # detectron2 and fvcore compile parts of them when they are imported; newer versions of torch warn of the way.
    warnings.filterwarnings("ignore", ".*torch.jit.script.*")
    from . import data, modeling  # noqa: F401
    from .paths import register_path_handlers

# detectron2's anchors and its Swin call it without a word on the order of its axes; so does no line of this package.
warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
# detectron2's Swin imports a layer by its older name.
warnings.filterwarnings("ignore", "Importing from timm.models.layers", FutureWarning)
register_path_handlers()
