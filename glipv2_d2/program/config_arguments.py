"""Arguments that several commands share: a config with changed keys, and the processes of a run."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..engine.predictor import GLIPv2Predictor

_TRAIN_EXAMPLES = """examples:
  python train_net.py --config-file configs/finetune/custom_swin_t.yaml --num-gpus 8 MODEL.WEIGHTS FILE
  python train_net.py --config-file configs/finetune/custom_swin_t.yaml --num-gpus 8 --resume
  python train_net.py --config-file configs/zero_shot/coco.yaml --num-gpus 8 --eval-only MODEL.WEIGHTS FILE

torchrun may start the processes instead of --num-gpus."""


def add_config_arguments(parser: argparse.ArgumentParser, *, has_positionals: bool = False) -> None:
    """Add ``--config-file`` and config keys, which follow all flags, with or without ``--opts`` before them.

    Args:
        parser: The parser of a command.
        has_positionals: The command has other words without a flag: before keys it needs ``--opts``.
    """
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="config, a YAML file or a name such as glip_swin_t_c"
    )
    keys = "changed keys of the config, after all flags; docs/config_keys.md and glipv2_d2/config.py explain every key"
    if not has_positionals:
        parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=keys)
    parser.add_argument(
        "--opts",
        dest="more_opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help=keys if has_positionals else argparse.SUPPRESS,
    )


def config_keys(arguments: argparse.Namespace) -> list[str]:
    """Return the keys and values of a command line, in their order.

    Raises:
        InputError: They begin with a path, whose flag was forgotten, or with a flag.
    """
    given = [word for word in [*vars(arguments).get("opts", []), *arguments.more_opts] if word != "--opts"]
    if given and os.path.exists(given[0]) and "data" in arguments:
        raise InputError(f"--data: expected the flag before the path of the data, found {given[0]!r} without it")
    if given and "=" in given[0]:
        name, _, value = given[0].partition("=")
        way = f"keys are {name} {value}" if name.isupper() else f"flags are --{name} {value}"
        raise InputError(f"config keys: expected pairs of KEY VALUE, found {given[0]!r}; {way}")
    if len(given) % 2:
        raise InputError(f"config keys: expected pairs of KEY VALUE, after all flags, found {' '.join(given)!r}")
    return given


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of detectron2's training programs that say how many processes run, and where they meet."""
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes on this machine, a GPU for each; 0: CPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines of the run")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url", default="auto", metavar="URL", help="where several machines meet: tcp://HOST:PORT of the first"
    )


def parse_train_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of ``train_net.py``, the flags of detectron2's training programs.

    Returns:
        Its flags; ``opts`` are the changed keys and their values.
    """
    parser = argparse.ArgumentParser(
        prog="train_net.py",
        description="Train or evaluate the model of a config.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUTPUT_DIR")
    add_process_arguments(parser)
    add_config_arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    arguments = parser.parse_args(argv)
    arguments.opts = config_keys(arguments)
    return arguments


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-file`` and ``--model``, of which one is needed: a model with weights, for ``build_predictor``."""
    model = parser.add_argument_group("the model").add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="config; that of a run is used with the run's weights")
    model.add_argument(
        "--model", metavar="FOLDER", help="folder of a run or of save_pretrained; USER/NAME with --allow-downloads"
    )


def split_names(text: str) -> list[str]:
    """Return the names of ``--names A,B,C``, or of "A . B . C", as prompts of GLIP are written.

    Raises:
        InputError: There is none.
    """
    names = [name.strip() for name in re.split(r",|(?<=\s)\.(?=\s|$)", text) if name.strip()]
    if not names:
        raise InputError(f"--names: expected names with commas between them, found {text!r}")
    return names


def add_folder_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, which a command takes in place of ``--config-file``; see ``find_config``."""
    parser.add_argument("--model", metavar="FOLDER", help="folder of a run or of save_pretrained, with its weights")


def find_config(arguments: argparse.Namespace) -> str:
    """Return the config of ``--model`` or ``--config-file``, "" if neither is given.

    Raises:
        InputError, OSError: Both are given, or the folder holds no model.
    """
    if arguments.model is None:
        return arguments.config_file
    if arguments.config_file:
        raise InputError("--model: expected it or --config-file, found both")
    from ..checkpoint.pretrained_folder import find_pretrained_config

    return find_pretrained_config(arguments.model)


def build_predictor(arguments: argparse.Namespace, keys: Sequence[str], needs_masks: bool = False) -> GLIPv2Predictor:
    """Build the predictor of a folder or of a config, with changed keys.

    Raises:
        InputError, OSError: There are no weights, a config has no masks though they are needed, or a file, a key or a
            value is wrong.
    """
    from ..engine.command_line import build_config
    from ..engine.predictor import GLIPv2Predictor

    if arguments.model is not None:
        return GLIPv2Predictor.from_pretrained(arguments.model, keys, download=arguments.allow_downloads)
    cfg = build_config(arguments.config_file, keys, for_results=True)
    if needs_masks and not cfg.MODEL.MASK_ON:
        raise InputError(f"MODEL.MASK_ON: expected True with --task refer, found False in {arguments.config_file}")
    return GLIPv2Predictor(cfg)
