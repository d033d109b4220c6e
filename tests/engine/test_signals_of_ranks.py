"""A signal to all processes of a run of two ranks ends it as it ends one process, and ``--resume`` goes on.

The file is also the program of the run, see ``main``.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_tiny_cfg
from drawn_images import draw_dataset
from training_runs import load

from glipv2_d2 import GLIPv2Trainer, register_coco_grounding
from glipv2_d2.engine.command_line import one_line_errors
from glipv2_d2.engine.launch import launch_run
from glipv2_d2.evaluation.coco_evaluator import COCOInstanceEvaluator
from glipv2_d2.program.config_arguments import parse_train_arguments

# Updates of the resumed run, and seconds that a process of a busy machine may take to come to the point of the signal.
MAX_ITER, PATIENCE = 6, 400


def be_rank(arguments):
    """Train in this process; it says by a file that it has come to the point of the signal, and stays there a while."""
    folder, place = Path(os.environ["RUN_FOLDER"]), os.environ["RUN_PLACE"]
    register_coco_grounding("drawn", folder / "drawn" / "annotations.json", folder / "drawn")
    cfg = make_tiny_cfg()
    tests = ("drawn",) if place == "evaluation" else ()
    cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", ("drawn",), "DATASETS.TEST", tests, "OUTPUT_DIR", str(folder / "output")),
            *("SOLVER.MAX_ITER", MAX_ITER, "SOLVER.CHECKPOINT_PERIOD", 100, "SOLVER.STEPS", ()),
            *("TEST.EVAL_PERIOD", 2, "DATALOADER.NUM_WORKERS", 1),
        ]
    )

    def wait_in(owner, name, is_there):
        original = getattr(owner, name)

        def slow(self, *values):
            if is_there(self) and not arguments.resume:
                (folder / "there").touch()
                time.sleep(PATIENCE if place == "evaluation" else 2)
            return original(self, *values)

        setattr(owner, name, slow)

    if place == "evaluation":
        wait_in(COCOInstanceEvaluator, "process", lambda _: True)
    else:
        wait_in(GLIPv2Trainer, "run_step", lambda trainer: trainer.iter == 2)
    with one_line_errors():
        trainer = GLIPv2Trainer(cfg)
        trainer.resume_or_load(resume=arguments.resume)
        trainer.train()


def main():
    """Be a run of several ranks, which heeds Ctrl-C also where a shell has put the tests into the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with one_line_errors():
        launch_run(be_rank, parse_train_arguments())


def start(folder, place, *options):
    here = Path(__file__).parent
    paths = [str(here.parent), str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "RUN_FOLDER": str(folder), "RUN_PLACE": place}
    program = "import test_signals_of_ranks; test_signals_of_ranks.main()"
    command = [sys.executable, "-c", program, "--num-gpus", "2", *options]
    with (folder / "errors.txt").open("a") as errors:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "signum", "checkpoint", "words"),
    [
        ("training", signal.SIGTERM, "model_0000002.pth", "stopped by SIGTERM after 3 updates"),
        ("evaluation", signal.SIGTERM, "model_0000001.pth", "stopped by SIGTERM in an evaluation"),
        ("evaluation", signal.SIGINT, "model_0000001.pth", "stopped by Ctrl-C in iteration 1"),
    ],
)
def test_a_signal_to_all_processes_ends_a_run_of_two_ranks(tmp_path, place, signum, checkpoint, words):
    (tmp_path / "drawn").mkdir()
    draw_dataset(tmp_path / "drawn")
    process = start(tmp_path, place)
    try:
        limit = time.monotonic() + PATIENCE
        while not (tmp_path / "there").exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(process.pid, signum)
        assert process.wait(timeout=120) == 128 + signum, (tmp_path / "errors.txt").read_text()[-2000:]
        text = (tmp_path / "errors.txt").read_text()
        assert text.count(words) == 1 and "Traceback" not in text, text[-4000:]
        assert [path.name for path in (tmp_path / "output").glob("*.pth")] == [checkpoint]
        assert start(tmp_path, "resumed", "--resume").wait(timeout=PATIENCE) == 0, text
        assert load(tmp_path / "output" / "model_final.pth")["iteration"] == MAX_ITER - 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
