#!/usr/bin/env python
"""Measure the time, the memory and the arithmetic of a model and of its parts.

    python tools/benchmark.py model --config-file CONFIG --size 800 1333 --num-names 80
    python tools/benchmark.py compare --config-file CONFIG --page BENCHMARKS.md
    python tools/benchmark.py vocabulary --config-file CONFIG --size 320 320
    python tools/benchmark.py shortlist --config-file CONFIG --shortlist 20 40 --opts MODEL.WEIGHTS FILE
    python tools/benchmark.py losses --config-file configs/pretrain/glipv2_micro.yaml
    python tools/benchmark.py contrastive
    python tools/benchmark.py masks
    python tools/benchmark.py encoding
    python tools/benchmark.py evaluation
    python tools/benchmark.py loading --config-file configs/demo/glipv2_micro.yaml

``python tools/benchmark.py SUBCOMMAND --help`` says what its columns mean. ``--json FILE`` also writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks import compare, contrastive, encoding, evaluation, loading, losses, masks, model, shortlist, vocabulary
from rich.console import Console

from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.modeling.build import choose_device

MIN_WIDTH = 110  # of the tables, also where the output is not a terminal
# Each has ``add_arguments(parser)``; ``CONFIG_KEYS``, what it sets in the config before --opts, None where it reads no
# config; and ``run``, which takes the parsed arguments (and the config) and gives facts about the run, the numbers by
# row and column, and the tables that show them.
SUBCOMMANDS = {
    "model": model,
    "compare": compare,
    "vocabulary": vocabulary,
    "shortlist": shortlist,
    "losses": losses,
    "contrastive": contrastive,
    "masks": masks,
    "encoding": encoding,
    "evaluation": evaluation,
    "loading": loading,
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    for name, module in SUBCOMMANDS.items():
        text = module.__doc__ or ""
        command = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=raw)
        module.add_arguments(command)
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="DEVICE")
        command.add_argument("--json", metavar="FILE", help="also write the numbers there")
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
        if module.CONFIG_KEYS is not None:
            command.add_argument("--config-file", required=True, metavar="FILE")
            command.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="last")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_arguments(argv)
    # The library under the profiler reports on itself unless it is told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    benchmark = SUBCOMMANDS[arguments.command]
    with one_line_errors(arguments.traceback):
        arguments.device = str(choose_device(arguments.device))
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": arguments.device}
        if torch.device(arguments.device).type == "cuda" and torch.cuda.is_available():
            facts["device"] = torch.cuda.get_device_name(arguments.device)
        if benchmark.CONFIG_KEYS is not None:
            facts["config"] = arguments.config_file
            keys = ["MODEL.DEVICE", arguments.device, *benchmark.CONFIG_KEYS, *arguments.opts]
            cfg = build_config(arguments.config_file, keys)
            own_facts, results, tables = benchmark.run(arguments, cfg)
        else:
            own_facts, results, tables = benchmark.run(arguments)
        facts |= own_facts
        console = Console(highlight=False, width=max(MIN_WIDTH, Console().width))
        console.print("  ".join(f"{key}: {value}" for key, value in facts.items()), markup=False, soft_wrap=True)
        for table in tables:
            console.print(table)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps({**facts, "results": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
