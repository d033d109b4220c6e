"""Write a detector with its names frozen in as a file for torch.export, which runs without glipv2_d2.

OUT.pt2 needs torch and torchvision alone. OUT.json beside it says how an image is resized, what the inputs and outputs
are, and which names the categories have. The file is for one size of images: those of another shape fit into it with
their shape kept. Masks are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from ..folders import check_writable
from .config_arguments import add_config_arguments, add_folder_argument, config_keys, find_config
from .output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 export``."""
    parser.add_argument("--output", type=Path, default=Path("detector.pt2"), metavar="FILE", help="file to write, .pt2")
    parser.add_argument("--names", metavar="A,B,C", help="names to find; default: those of DATASETS.TEST[0]")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size of its images, pixels; default: a photograph of 4:3 in INPUT.MIN_SIZE_TEST",
    )
    add_folder_argument(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export the model of the command line."""
    from ..engine.command_line import build_config
    from ..engine.export import export_detector
    from ..prompts.user_prompts import names_in

    config_file = find_config(arguments)
    if not config_file:
        raise InputError("--config-file, --model: expected the config or the folder of a model, found neither")
    check_writable(arguments.output.parent, "--output")
    names = [] if arguments.names is None else names_in(arguments.names) or [arguments.names]
    if arguments.names is not None and not arguments.names.strip():
        raise InputError("--names: expected at least one name, found none")
    keys = [*config_keys(arguments), "MODEL.DEVICE", "cpu"]
    cfg = build_config(config_file, keys, for_results=True)
    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    exported = export_detector(cfg, arguments.output, names, size)
    write_line(f"wrote {exported.program} and {exported.description.name}: {', '.join(exported.names)}")
