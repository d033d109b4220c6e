"""Check images, boxes and names before training, and write data_check.html, a page to look at, and data_check.json.

Exit status 1 says that the data cannot be trained on; with warnings alone it is 0.
"""

from __future__ import annotations

import argparse

from ..errors import InputError
from ..folders import check_writable
from .config_arguments import add_config_arguments, config_keys
from .output import write_line

# The model that a machine without a GPU trains.
_SMALL_MODEL = "models/glipv2_micro"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 check-data``."""
    parser.add_argument(
        "--data", metavar="PATH", help="own images and boxes, a folder or file; default: the datasets of the config"
    )
    parser.add_argument(
        "--output", default="data_check", metavar="DIR", help="folder of the report (default: data_check)"
    )
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the data; return 1 if they cannot be trained on."""
    from ..data_check import check_own_sets, configured_sets, find_reported
    from ..engine.command_line import build_config

    opts = ["MODEL.DEVICE", "cpu", *config_keys(arguments)]
    if not arguments.data and not arguments.config_file:
        raise InputError("check-data: expected --data PATH, or --config-file FILE with datasets, found neither")
    check_writable(arguments.output, "--output")
    cfg = build_config(arguments.config_file or _SMALL_MODEL, opts)
    own, left_out = find_reported(arguments.data) if arguments.data else configured_sets(cfg)
    findings = check_own_sets(own, cfg, left_out=left_out)
    for line in (*findings.lines(), f"written: {', '.join(findings.write(arguments.output))}"):
        write_line(line)
    return 1 if findings.stops else 0
