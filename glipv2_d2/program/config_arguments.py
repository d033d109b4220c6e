"""Arguments that several commands share: a config with changed keys, and the processes of a run."""

from __future__ import annotations

import argparse


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-file`` and config keys, which follow all flags, with or without ``--opts`` before them."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="config, a YAML file")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="changed keys of the config, after all flags; glipv2_d2/config.py explains every key",
    )
    parser.add_argument("--opts", dest="more_opts", nargs=argparse.REMAINDER, default=[], help=argparse.SUPPRESS)


def config_keys(arguments: argparse.Namespace) -> list[str]:
    """Return the keys and values of a command line, in their order."""
    return [word for word in (*arguments.opts, *arguments.more_opts) if word != "--opts"]


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
