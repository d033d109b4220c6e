"""Start the processes of a run: spawned here, or started already by torchrun."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from detectron2.engine import launch as spawn_processes
from detectron2.utils import comm
from torch import distributed

from ..errors import InputError
from .stopping import SIGNALS

_OF_TORCH = "ignore:`torch.jit.script` is deprecated:FutureWarning"
# torchrun sets them in every process that it starts.
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def launch_run(run: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace) -> None:
    """Call ``run(arguments)`` in every process of a run.

    Under torchrun this process is one of them: it joins the others. Otherwise detectron2's ``launch`` starts
    ``--num-gpus`` processes on each of ``--num-machines`` machines; without a GPU they talk through gloo and, unless
    ``OMP_NUM_THREADS`` is set, share the cores of their machine.

    Args:
        run: Function of a process; it has to be picklable where processes are spawned.
        arguments: Those of ``add_process_arguments``.

    Raises:
        InputError: ``--num-gpus`` contradicts torchrun or is more than the machine has, or several machines have no
            address to meet at.
    """
    check_processes(arguments)
    if _is_of_torchrun():
        _join_torchrun(run, arguments)
        return
    several = arguments.num_machines * arguments.num_gpus > 1
    # Spawned processes import torch's parts before this package can hide the warning.
    sys.warnoptions += {_OF_TORCH} - {*sys.warnoptions}
    with _forwarded_signals() if several else contextlib.nullcontext():
        spawn_processes(
            _run_and_leave,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(run, arguments),
        )


def check_processes(arguments: argparse.Namespace) -> int:
    """Return how many processes a run has on all machines.

    Raises:
        InputError: See ``launch_run``.
    """
    if _is_of_torchrun():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if arguments.num_gpus not in (1, here):
            raise InputError(
                f"--num-gpus: expected the {here} processes that torchrun has started on this machine, "
                f"found {arguments.num_gpus}; leave the flag out"
            )
        return int(os.environ["WORLD_SIZE"])
    _check_num_processes(arguments.num_gpus)
    if arguments.num_machines > 1 and arguments.dist_url == "auto":
        raise InputError(
            f"--dist-url: expected for {arguments.num_machines} machines the address of the first of them, the same on "
            f"all: tcp://HOST:PORT; found {arguments.dist_url!r}"
        )
    if not 0 <= arguments.machine_rank < arguments.num_machines:
        expected = f"expected 0 to {arguments.num_machines - 1}, the number of this machine of --num-machines"
        raise InputError(f"--machine-rank: {expected}, found {arguments.machine_rank}")
    return max(1, arguments.num_gpus) * arguments.num_machines


def is_first_process(arguments: argparse.Namespace) -> bool:
    """Tell whether this process, before ``launch_run``, becomes or starts the first one of a run."""
    return os.environ["RANK"] == "0" if _is_of_torchrun() else arguments.machine_rank == 0


def _is_of_torchrun() -> bool:
    return all(name in os.environ for name in _TORCHRUN_VARIABLES)


@contextlib.contextmanager
def _forwarded_signals() -> Iterator[None]:
    """Within the context the processes that this one has spawned get the signals that end a run."""

    def forward(signum: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_num_processes(num_processes: int) -> None:
    """Refuse more processes than there are GPUs, or without one than there are cores: each of them holds the model."""
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    # Two processes are allowed on a single core, to try a run of several.
    limit, what = (gpus, "GPUs") if gpus else (max(2, cores), "CPU cores, since it has no GPU")
    if not 0 <= num_processes <= limit:
        raise InputError(
            f"--num-gpus: expected 0 to {limit}, the number of this machine's {what}; found {num_processes}"
        )


def _run_and_leave(run: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace) -> None:
    several = comm.get_world_size() > 1
    if several and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        # One thread per core in every process would make the processes compete for the cores.
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    try:
        run(arguments)
    except BaseException:
        _end_workers()
        raise
    if several:
        _leave_group()


def _end_workers() -> None:
    """End the data workers of a process that an error or a signal ends.

    They leave the first SIGTERM to this process, and multiprocessing, which would send them one at its end, waits.
    """
    if threading.current_thread() is threading.main_thread():
        # torch would report them as killed, and the exit status would be lost.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _leave_group() -> None:
    """End the process group, after a run without errors; a process with one ends at once, for the others to notice."""
    # No process closes a connection that another one still reads from.
    comm.synchronize()
    distributed.destroy_process_group()
    # detectron2 keeps references to groups. The threads of a group live as long as it does and can abort an interpreter
    # that is shutting down.
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    comm.create_local_process_group.cache_clear()


def _join_torchrun(run: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace) -> None:
    local_rank, processes_per_machine = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if os.environ["WORLD_SIZE"] == "1":
        run(arguments)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    # gloo for tensors on the CPU and, where there are GPUs, nccl for those on them.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(processes_per_machine)
    _run_and_leave(run, arguments)
