"""The door of the program: ``glipv2 COMMAND ...``, also ``python -m glipv2_d2 COMMAND ...``.

A command is a module of this room with ``add_arguments(parser)`` and ``run(arguments)``, which returns an exit status,
or None for 0. Its module imports little, so that ``--help`` is quick; ``run`` imports the rest.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ..likeness import did_you_mean
from .output import write_line

# The sign of the home folder, at the beginning of a word or of the value of a flag.
_HOME = re.compile(r"^((?:--[\w-]+=)?)~(?=/|$)")


class Command(NamedTuple):
    """A command: its module in this room, what it does in a few words, and lines to copy."""

    module: str
    summary: str
    examples: tuple[str, ...]


# In the order in which a person meets them.
COMMANDS = {
    "check-data": Command(
        "check_data",
        "say what is wrong with own images, boxes and names",
        (
            "glipv2 check-data --data my_photos",
            "glipv2 check-data --data my_photos/train.json --output report INPUT.MIN_SIZE_TEST 384",
            "glipv2 check-data --config-file finetune/coco_swin_t",
        ),
    ),
    "train": Command(
        "train",
        "train a detector on your own images and boxes",
        (
            "glipv2 train --data photos --output output/mine",
            "glipv2 train --data photos --output output/mine --weights glip_tiny_model_o365_goldg.pth",
            "glipv2 train --data photos --output output/mine --minutes 30 --overwrite SOLVER.BASE_LR 0.0005",
            "glipv2 train --output output/mine --resume",
        ),
    ),
    "predict": Command(
        "predict",
        "find, segment, answer or describe in images and videos",
        (
            "glipv2 predict photos/ --model output/mine --names raccoon,dog",
            "glipv2 predict a.jpg b.mp4 --config-file FILE --caption 'a man on a board' --opts MODEL.WEIGHTS FILE",
            "glipv2 predict 'photos/*.jpg' --model output/mine --threshold 0.3 --max-boxes 50 --save images,coco,yolo",
            "glipv2 predict a.jpg --model FOLDER --task vqa --question 'What is it?'",
            "glipv2 predict 0 --model output/mine --names person     # a webcam, until Ctrl-C",
        ),
    ),
    "eval": Command(
        "evaluate",
        "measure a model on datasets",
        ("glipv2 eval --model output/mine", "glipv2 eval --model output/mine --data other_photos"),
    ),
    "convert-weights": Command(
        "convert_weights",
        "convert weights of GLIP and of other models",
        (
            "glipv2 convert-weights glip_tiny_model_o365_goldg.pth glip_t_c.safetensors --config-file glip_swin_t_c",
            "glipv2 convert-weights output/mine/model_final.pth mine --config-file output/mine/config.yaml",
        ),
    ),
    "convert-data": Command(
        "convert_data",
        "turn images and boxes of any tool into COCO json",
        (
            "glipv2 convert-data --data photos --output output/coco",
            "glipv2 convert-data --data photos/data.yaml --output output/coco --copy-images",
        ),
    ),
    "export": Command(
        "export",
        "write a detector for programs without this package",
        (
            "glipv2 export --model output/mine --output mine.onnx",
            "glipv2 export --model output/mine --output mine.pt2",
            "glipv2 export --names raccoon,dog --size 800 1088 --config-file FILE --output pets.pt2 MODEL.WEIGHTS FILE",
        ),
    ),
    "serve": Command(
        "serve",
        "show a page in the browser",
        (
            "glipv2 serve --model output/mine",
            "glipv2 serve --port 8000 --config-file glip_swin_t_c --opts MODEL.WEIGHTS glip_tiny_model_o365_goldg.pth",
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status; errors of its input leave as ``SystemExit`` with one line.

    Args:
        argv: Words after the name of the program; None for those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        write_line(overview())
        return 0
    if words[0] == "--version":
        write_line(f"glipv2_d2 {importlib.import_module('glipv2_d2').__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise SystemExit(_unknown_command(words[0]))
    return run_command(words[0], words[1:])


def run_command(name: str, words: Sequence[str], program: str | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        name: Key of ``COMMANDS``.
        words: Its arguments.
        program: What its help calls it; None for ``glipv2 NAME``.
    """
    module = importlib.import_module(f".{COMMANDS[name].module}", __package__)
    arguments = command_parser(name, program).parse_args([_with_home(word) for word in words])
    if sys.stderr.isatty():
        sys.stderr.write(f"glipv2 {name}: loading libraries, some seconds\n")
    try:
        from ..engine.command_line import one_line_errors
    except KeyboardInterrupt:
        if arguments.traceback:
            raise
        sys.stderr.write("stopped by Ctrl-C\n")
        return 128 + signal.SIGINT

    # At its end Python would search all that torch and others have made for cycles, more than a second long.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    with one_line_errors(arguments.traceback):
        return module.run(arguments) or 0


def command_parser(name: str, program: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a command; see ``run_command``."""
    command = COMMANDS[name]
    module = importlib.import_module(f".{command.module}", __package__)
    parser = argparse.ArgumentParser(
        prog=program or f"glipv2 {name}",
        description=(module.__doc__ or "").strip(),
        epilog="\n  ".join(["examples:", *command.examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def overview() -> str:
    """Return the text of ``glipv2 --help``."""
    width = max(map(len, COMMANDS))
    lines = ["usage: glipv2 COMMAND [arguments]", "", "commands:"]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "examples:", *(f"  {command.examples[0]}" for command in COMMANDS.values())]
    lines += ["", "glipv2 COMMAND --help lists the arguments of a command; glipv2 --version tells the version."]
    return "\n".join(lines)


def _with_home(word: str) -> str:
    """Put the home folder in place of its sign, which shells leave in ``--output=~/run``."""
    return _HOME.sub(lambda found: found[1] + os.path.expanduser("~"), word)


def _unknown_command(found: str) -> str:
    known = ", ".join(COMMANDS)
    return f"error: COMMAND: expected one of {known}, found {found!r}{did_you_mean(found, COMMANDS)}"
