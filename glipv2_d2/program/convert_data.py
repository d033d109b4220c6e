"""Turn images and boxes of annotation tools into COCO json, one file for each split.

PATH is a folder or file in any form that ``glipv2 train --data`` takes: COCO json, Pascal VOC xml, YOLO text files,
LabelMe json, a data.yaml, or a yaml that names several of them. OUT/set.yaml names what was written, so that
``glipv2 train --data OUT/set.yaml`` takes it. What was left out is told, and listed in OUT/data_report.json.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import InputError
from ..folders import check_writable
from ..plurals import counted
from .output import write_line

if TYPE_CHECKING:
    from ..data.datasets.skip_report import SkipReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 convert-data``."""
    parser.add_argument("paths", nargs="*", metavar="PATH OUT", help="the same as --data PATH --output OUT")
    parser.add_argument("--data", metavar="PATH", help="folder or file of images and boxes")
    parser.add_argument("--output", metavar="OUT", help="folder of the results; made if it is not there")
    parser.add_argument("--copy-images", action="store_true", help="copy the images to OUT/images/SPLIT")
    parser.add_argument(
        "--seed", type=int, default=0, help="chooses the validation images of a set without any (default: 0)"
    )
    parser.add_argument(
        "--max-faulty-share",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="share of the entries of a file that may be faulty (default: 0.02)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Convert a set, and say what became of it."""
    path, output = _paths(arguments)
    from ..data.datasets.skip_report import DataReport
    from ..data.own_sets import find_own_sets, write_own_sets
    from ..data.own_sets.writing import check_target

    share = arguments.max_faulty_share
    if not 0 <= share <= 1:
        raise InputError(f"--max-faulty-share: expected a number in [0, 1], found {share}")
    check_writable(output, "--output")
    # The report would be the first file in the folder.
    check_target(path, output)
    with DataReport(share, output) as report:
        own = find_own_sets(path, seed=arguments.seed)
        written = write_own_sets(own, output, copy_images=arguments.copy_images)
    for split, json_file in written.items():
        content = own.splits[split].content
        numbers = f"{counted(len(content['images']), 'image')}, {counted(len(content['annotations']), 'box')}"
        write_line(f"{split}: {numbers} in {json_file}")
    write_line(f"classes: {', '.join(own.names)}")
    if own.unused_names:
        write_line(f"classes without boxes, left out: {', '.join(own.unused_names)}")
    if own.seed is not None:
        write_line(f"validation images chosen by seed {own.seed}: the set names none")
    for one in report.files.values():
        _tell_left_out(one)


def _paths(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the paths of the set and of the results, which may come with their flags or without them."""
    words = iter(arguments.paths)
    path = arguments.data if arguments.data is not None else next(words, None)
    output = arguments.output if arguments.output is not None else next(words, None)
    unused = next(words, None)
    if path is None or output is None or unused is not None:
        found = "fewer" if unused is None else repr(unused)
        raise InputError(f"convert-data: expected --data PATH and --output OUT, found {found}")
    return path, output


def _tell_left_out(report: SkipReport) -> None:
    for (unit, kind), number in report.counts.items():
        cases = (f"; {case.where}: {case.reason}" for case in report.cases if (case.unit, case.kind) == (unit, kind))
        write_line(f"left out: {unit} ({kind}: {number:,}){next(cases, '')}")
    for kind, number in report.changed.items():
        write_line(f"changed: {kind}: {number:,}")
