"""Processes of a run, started by torchrun's variables or by several machines; ``launched.py`` is their program."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch import distributed

from glipv2_d2.engine.launch import launch_run
from glipv2_d2.errors import InputError
from glipv2_d2.program.config_arguments import parse_train_arguments

PROGRAM = str(Path(__file__).parents[1] / "launched.py")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(options, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, PROGRAM, *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(processes):
    results = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), results
    left = [line for out, _ in results for line in out.splitlines() if line.startswith("left")]
    assert left == ["left: []"] * len(processes), results
    return sorted(line for out, _ in results for line in out.splitlines() if line.startswith("rank"))


def test_processes_of_torchrun_on_two_machines_join_one_run():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    found = outputs([start([], RANK=str(rank), LOCAL_RANK="0", **address) for rank in range(2)])
    assert found == ["rank 0 of 2, local 0, sum 1", "rank 1 of 2, local 0, sum 1"]


def test_machines_meet_at_the_address_of_the_first():
    options = ["--num-gpus", "1", "--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    found = outputs([start([*options, "--machine-rank", str(rank)]) for rank in range(2)])
    assert found == ["rank 0 of 2, local 0, sum 1", "rank 1 of 2, local 0, sum 1"]


@pytest.mark.parametrize("threads", ["", pytest.param("3", marks=pytest.mark.slow)])
def test_processes_on_cpus_share_the_cores_unless_they_are_told_their_threads(threads):
    command = [sys.executable, PROGRAM, "--num-gpus", "2", "--dist-url", "auto"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} | ({"OMP_NUM_THREADS": threads} if threads else {})
    alone = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    found, all_cores = (
        subprocess.run(one, env=environment, capture_output=True, text=True, timeout=240) for one in (command, alone)
    )
    expected = max(1, int(all_cores.stdout) // (1 if threads else 2))
    assert found.returncode == all_cores.returncode == 0, (found, all_cores)
    assert [line for line in found.stdout.splitlines() if line.startswith("threads")] == [f"threads {expected}"] * 2, (
        found
    )


def test_one_process_of_torchrun_needs_no_group(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    seen = []
    launch_run(lambda arguments: seen.append(comm.get_world_size()), parse_train_arguments([]))
    assert seen == [1] and not distributed.is_initialized()


def test_flag_that_contradicts_torchrun_is_an_error(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="--num-gpus: expected the 4 processes that torchrun has started .* found 2"):
        launch_run(print, parse_train_arguments(["--num-gpus", "2"]))


@pytest.mark.parametrize("url", [[], ["--dist-url", "auto"]])
def test_several_machines_without_an_address_are_an_error(url):
    with pytest.raises(ValueError, match="--dist-url: expected for 2 machines the address"):
        launch_run(print, parse_train_arguments(["--num-machines", "2", *url]))


@pytest.mark.parametrize(
    ("gpus", "cores", "asked", "message"),
    [
        (0, 4, 5, "--num-gpus: expected 0 to 4, the number of this machine's CPU cores, since it has no GPU; found 5"),
        (0, 1, 3, "--num-gpus: expected 0 to 2, .* found 3"),
        (8, 64, 9, "--num-gpus: expected 0 to 8, the number of this machine's GPUs; found 9"),
        (8, 64, -1, "--num-gpus: expected 0 to 8, .* found -1"),
    ],
)
def test_more_processes_than_the_machine_has_are_an_error(monkeypatch, gpus, cores, asked, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with pytest.raises(InputError, match=message):
        launch_run(print, parse_train_arguments(["--num-gpus", str(asked)]))
