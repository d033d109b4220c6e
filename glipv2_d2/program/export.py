"""Write a detector for programs without glipv2_d2: as ONNX for any names and images, or with both fixed for torch.

OUT.onnx takes any names and images of any size; OUT_text.onnx, which encodes the names, OUT_tokenizer.json and OUT.json
lie beside it. examples/onnx_detect.py runs them without torch.

OUT.pt2 is a program of torch.export with its names frozen in, for one size of images; it needs torch and torchvision
alone. OUT.json beside it says how an image is resized, and what the inputs and outputs are. Masks are left out of both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from ..folders import check_writable
from .config_arguments import add_config_arguments, add_folder_argument, config_keys, find_config, split_names
from .output import write_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 export``."""
    parser.add_argument(
        "--output", type=Path, default=Path("detector.pt2"), metavar="FILE", help="file to write, .onnx or .pt2"
    )
    parser.add_argument("--names", metavar="A,B,C", help="names to find; default: those of DATASETS.TEST[0]")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help=".pt2: size of its images, pixels; default: a photograph of 4:3 in INPUT.MIN_SIZE_TEST",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help=".onnx: products with weights in integers, for smaller files; see docs/export.md",
    )
    add_folder_argument(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export the model of the command line."""
    from ..engine.command_line import build_config
    from ..engine.export import export_detector
    from ..engine.onnx_export import export_onnx

    is_onnx = arguments.output.suffix == ".onnx"
    if not is_onnx and arguments.output.suffix != ".pt2":
        raise InputError(f"--output: expected a name that ends in .onnx or .pt2, found {arguments.output}")
    if is_onnx and arguments.size is not None:
        raise InputError("--size: expected none for .onnx, which takes images of any size, found one")
    if arguments.int8 and not is_onnx:
        raise InputError("--int8: expected --output FILE.onnx with it, found .pt2")
    config_file = find_config(arguments)
    if not config_file:
        raise InputError("--config-file, --model: expected the config or the folder of a model, found neither")
    check_writable(arguments.output.parent, "--output")
    names = [] if arguments.names is None else split_names(arguments.names)
    keys = [*config_keys(arguments), "MODEL.DEVICE", "cpu"]
    cfg = build_config(config_file, keys, for_results=True)
    if is_onnx:
        files = export_onnx(cfg, arguments.output, names, int8=arguments.int8)
        write_line(f"wrote {files.detector}, {', '.join(path.name for path in files[1:])}")
        return
    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    exported = export_detector(cfg, arguments.output, names, size)
    write_line(f"wrote {exported.program} and {exported.description.name}: {', '.join(exported.names)}")
