"""Convert weights of any accepted kind to this package's names and to safetensors, and report on every name.

Accepted are the official GLIP files, GLIP as mmdetection converts it, ImageNet weights of a Swin Transformer,
image-text models (CLIP, UniCL) and the checkpoints of this package. The names in the file tell the kind.

With --config-file, nothing is written unless the model of that config has a parameter for every tensor in the file and,
for the file of a detector, a tensor for every parameter. OUT may then be a new folder. It gets the whole model, with
config and tokenizer, for GLIPv2Predictor.from_pretrained and for --config-file OUT/config.yaml.
"""

from __future__ import annotations

import argparse

from ..plurals import counted
from .config_arguments import add_config_arguments, config_keys
from .output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 convert-weights``."""
    parser.add_argument("input", metavar="FILE", help="weights (.pth, .pt, .bin, .safetensors)")
    parser.add_argument("output", metavar="OUT", help="file to write, .safetensors; or a new folder")
    parser.add_argument("--ema", action="store_true", help="take the moving average kept under 'model_ema'")
    add_config_arguments(parser, has_positionals=True)


def run(arguments: argparse.Namespace) -> None:
    """Convert ``arguments.input`` to ``arguments.output``, and print a report on the names."""
    from ..checkpoint.file_conversion import convert_file
    from ..engine.command_line import build_config

    cfg, device = None, "auto"
    if arguments.config_file:
        keys = config_keys(arguments)
        device = configured_device(arguments.config_file, keys)
        cfg = build_config(arguments.config_file, [*keys, "MODEL.DEVICE", "cpu"])
    count = convert_file(*(arguments.input, arguments.output, cfg), ema=arguments.ema, device=device, report=write_line)
    write_line(f"wrote {counted(count, 'tensor')} to {arguments.output}")


def configured_device(config_file: str, keys: list[str]) -> str:
    """Return the MODEL.DEVICE of a config and changed keys, which need not exist on this machine."""
    from detectron2.config import CfgNode

    from ..config_files import find_config_file

    changed = dict(zip(keys[::2], keys[1::2], strict=False))
    model = CfgNode.load_yaml_with_base(find_config_file(config_file)).get("MODEL", {})
    return changed.get("MODEL.DEVICE", model.get("DEVICE", "auto"))
