"""The program of a process that ``test_launch`` starts: ``python launched.py [--num-gpus N] [--num-machines N] ...``.

Each says who it is, and imports the launcher alone: models and all of detectron2's engine take each process seconds.
"""

import atexit
import contextlib
import importlib
import os
import sys
import time
import types
from pathlib import Path

import torch
from detectron2.utils import comm
from torch import distributed


def import_launcher():
    """Import ``launch_run`` without models; of detectron2's engine only the modules of the names that it reads."""
    sys.modules["glipv2_d2.registrations"] = types.ModuleType("glipv2_d2.registrations")
    name = "detectron2.engine"
    package = types.ModuleType(name)
    package.__path__ = [str(Path(comm.__file__).parents[1] / "engine")]
    sys.modules[name] = package
    package.launch = importlib.import_module(f"{name}.launch").launch
    package.HookBase = importlib.import_module(f"{name}.train_loop").HookBase
    return importlib.import_module("glipv2_d2.engine.launch").launch_run


def say(line):
    """Print a line whole: ``print`` may write its end apart, behind what the other process says."""
    os.write(1, f"{line}\n".encode())


def report(arguments):
    """Say who this process is, and the sum of all ranks."""
    total = torch.tensor([float(comm.get_rank())])
    if comm.get_world_size() > 1:
        distributed.all_reduce(total)
        comm.all_gather(0)
    rank, world_size, local_rank = comm.get_rank(), comm.get_world_size(), comm.get_local_rank()
    say(f"rank {rank} of {world_size}, local {local_rank}, sum {int(total)}")
    say(f"threads {torch.get_num_threads()}")
    if comm.get_world_size() > 1:
        assert gloo_threads()
    atexit.register(report_threads)


def gloo_threads():
    """Names of the threads of process groups in this process."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # It has just ended.
            names.append(path.read_text().strip())
    return sorted(name for name in names if "gloo" in name)


def report_threads():
    """Say which threads of process groups are left: what waits in one when the interpreter ends can abort it."""
    limit = time.monotonic() + 10
    while gloo_threads() and time.monotonic() < limit:  # A thread that was joined is listed for a moment longer.
        time.sleep(0.1)
    say(f"left: {gloo_threads()}")


# A process that is spawned runs this file too, to have ``report``.
launch_run = import_launcher()

if __name__ == "__main__":
    parse = importlib.import_module("glipv2_d2.program.config_arguments").parse_train_arguments
    launch_run(report, parse())
