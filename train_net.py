#!/usr/bin/env python
"""Train or evaluate a model: ``python train_net.py --config-file FILE [--eval-only] [--resume] [KEY VALUE ...]``.

The flags are those of detectron2's training scripts; ``torchrun`` may start the processes instead of ``--num-gpus``.
"""

from __future__ import annotations

from collections.abc import Sequence

from glipv2_d2.program.config_arguments import parse_train_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = parse_train_arguments(argv)
    # It takes seconds, which nobody waits for who asks for help.
    from glipv2_d2.engine.command_line import one_line_errors
    from glipv2_d2.engine.launch import launch_run
    from glipv2_d2.engine.runs import evaluate, train

    with one_line_errors(arguments.traceback):
        launch_run(evaluate if arguments.eval_only else train, arguments)


if __name__ == "__main__":
    main()
