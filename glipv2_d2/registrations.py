"""Importing this module registers models, backbones, datasets and the path prefix ``package://`` with detectron2.

``build_config`` and every public name of ``glipv2_d2`` import it.
"""

from .paths import register_path_handlers

register_path_handlers()

from . import data, modeling  # noqa: E402,F401
