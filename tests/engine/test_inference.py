"""A test goes on where an image cannot be read, and ends in one line where a data worker dies."""

import errno
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_one_line
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager
from drawn_images import register_drawn
from torch.multiprocessing import ProcessExitedException
from tqdm import tqdm

from glipv2_d2.data.build import (
    TestLoader,
    _QuietDataLoader,
    _start_worker,
    _test_samples,
    build_test_loader,
)
from glipv2_d2.data.dataset_mappers import base
from glipv2_d2.data.loading import load_test_dataset
from glipv2_d2.engine import trainer
from glipv2_d2.engine.command_line import one_line_errors
from glipv2_d2.engine.inference import JudgementError, ReadableSamples, run_on_dataset
from glipv2_d2.engine.trainer import GLIPv2Trainer
from glipv2_d2.errors import InputError
from glipv2_d2.evaluation.build import build_evaluator
from glipv2_d2.evaluation.captioning import CaptioningEvaluator
from glipv2_d2.evaluation.flickr30k import Flickr30kEvaluator
from glipv2_d2.evaluation.grounded_captioning import GroundedCaptioningEvaluator
from glipv2_d2.evaluation.referring import ReferringEvaluator
from glipv2_d2.evaluation.result_tables import write_result_table
from glipv2_d2.evaluation.vqa import VQAEvaluator
from glipv2_d2.prompts.decoding import DecodedText

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FORK = multiprocessing.get_context("fork")


class Annotations(torch.nn.Module):
    """Finds every annotation; asked about an image without pixels it fails."""

    def __init__(self, name):
        super().__init__()
        self.boxes = {record["image_id"]: record["annotations"] for record in DatasetCatalog.get(name)}

    def forward(self, inputs):
        assert all("image" in one for one in inputs)
        return [{"instances": self.found(one)} for one in inputs]

    def found(self, sample):
        annotations = self.boxes[sample["image_id"]]
        corners = [BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS) for one in annotations]
        boxes = torch.tensor(corners).float().reshape(-1, 4)
        classes = torch.tensor([annotation["category_id"] for annotation in annotations], dtype=torch.int64)
        ones = torch.ones(len(boxes))
        size = (sample["height"], sample["width"])
        return Instances(size, pred_boxes=Boxes(boxes), scores=ones, pred_classes=classes)


@pytest.mark.parametrize(("silent", "is_terminal"), [(5, True), (0, True), (0, False)])
def test_an_evaluation_shows_how_far_it_is_once_it_takes_seconds(monkeypatch, capsys, silent, is_terminal):
    monkeypatch.setattr("glipv2_d2.data.datasets.skip_report._SILENT_SECONDS", silent)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    batches = [[{"image_id": number}] for number in range(3)]
    assert list(ReadableSamples(batches, None, "evaluating pets_val")) == batches
    shown = capsys.readouterr().err
    assert ("evaluating pets_val: 100%" in shown and " 3/3 " in shown) is not bool(silent)
    assert bool(shown) is not bool(silent)


def test_the_bar_of_an_evaluation_goes_from_below_that_of_the_training(monkeypatch, capsys):
    monkeypatch.setattr("glipv2_d2.data.datasets.skip_report._SILENT_SECONDS", 0)
    with tqdm(total=10, desc="training") as bar:
        list(ReadableSamples([[{}], [{}]], None, "evaluating pets_val"))
        assert not bar.disable
    shown = capsys.readouterr().err
    # The bar below is drawn over with blanks.
    assert "evaluating pets_val" in shown and shown.split("\r")[-1].startswith("training")
    assert "evaluating" not in shown.split("\r")[-2] + shown.split("\r")[-1]


def break_image(name, number):
    path = Path(DatasetCatalog.get(name)[number]["file_name"])
    path.write_text("no image")
    return path


def fail_disk(monkeypatch, name, number):
    path = Path(DatasetCatalog.get(name)[number]["file_name"])
    whole = PathManager.open

    def open_file(file, *options, **more):
        if Path(file) == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return whole(file, *options, **more)

    monkeypatch.setattr(PathManager, "open", open_file)
    return path


@pytest.mark.parametrize("cause", ["unreadable images", "images that the disk did not give"])
def test_an_unreadable_image_counts_as_one_without_detections(train_cfg, drawn_dataset, caplog, monkeypatch, cause):
    # The image has two of the six boxes: one of the three red ones, one of the two green ones.
    is_disk = "disk" in cause
    broken = fail_disk(monkeypatch, drawn_dataset, 1) if is_disk else break_image(drawn_dataset, 1)
    dataset = load_test_dataset(train_cfg, drawn_dataset)
    evaluator = build_evaluator(train_cfg, dataset)
    loader = build_test_loader(train_cfg, dataset)
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        results = run_on_dataset(train_cfg, Annotations(drawn_dataset), drawn_dataset, loader, evaluator)
    # AP with a recall of 2/3, 1/2 and 1: the share of COCO's 101 points of recall that are reached.
    assert results["bbox"]["AP"] == pytest.approx(100 * (67 + 51 + 101) / 3 / 101, abs=0.01)
    assert results["data"] == {"unreadable_images": 1.0}
    (message,) = [text for text in caplog.messages if "test images of dataset" in text]
    assert "\n" not in message and str(broken) in message
    advice = ", measure again" * is_disk
    assert f"samples (of {cause}, which count as images without results{advice}: 1)" in message
    assert ("Input/output error, an error of the disk" in message) == is_disk
    report = json.loads(Path(train_cfg.OUTPUT_DIR, "data_report.json").read_text())
    assert str(broken) in json.dumps(report)
    write_result_table(train_cfg, {drawn_dataset: results}, train_cfg.OUTPUT_DIR)
    table = Path(train_cfg.OUTPUT_DIR, "result_table.md").read_text()
    assert f"| dataset | unreadable_images |\n| --- | --- |\n| {drawn_dataset} | 1.00 |" in table


@pytest.mark.parametrize(("share", "numbers"), [(0.0, [2]), (0.02, [0, 1, 2, 3])])
def test_too_many_unreadable_images_are_an_error(train_cfg, drawn_dataset, share, numbers):
    broken = [break_image(drawn_dataset, number) for number in numbers]
    train_cfg.DATASETS.MAX_FAULTY_SHARE = share
    dataset = load_test_dataset(train_cfg, drawn_dataset)
    evaluator = build_evaluator(train_cfg, dataset)
    loader = build_test_loader(train_cfg, dataset)
    with pytest.raises(ValueError) as caught:
        run_on_dataset(train_cfg, Annotations(drawn_dataset), drawn_dataset, loader, evaluator)
    assert_one_line(caught, "test images of dataset", "expected", "found", broken[0])


def test_the_share_is_that_of_samples_of_which_an_image_may_have_many(train_cfg):
    # 20 of 600 questions are about one image that cannot be read: 3.3 %.
    batches = [[{"image_id": number}] for number in range(580)] + [[{"unreadable": "a.png: broken"}]] * 20

    def run(share):
        train_cfg.DATASETS.MAX_FAULTY_SHARE = share
        return run_on_dataset(train_cfg, torch.nn.Identity(), "asked", batches, DatasetEvaluator())

    assert run(0.04) == {"data": {"unreadable_images": 1.0}}
    with pytest.raises(JudgementError, match="expected at most 2.0% faulty samples, found 20 of 600"):
        run(0.02)


@pytest.mark.parametrize("fault", ["images", "judge"])
def test_a_set_that_fails_alike_in_all_processes_does_not_end_the_others(
    train_cfg, drawn_dataset, tmp_path, monkeypatch, fault
):
    """Of two processes the first runs; the other one would have the same."""
    judged, other = (
        build_evaluator.__globals__["COCOInstanceEvaluator"],
        register_drawn(tmp_path / f"{tmp_path.name}_other" / "drawn"),
    )
    if fault == "images":
        for number in range(4):
            break_image(drawn_dataset, number)
    else:
        original = judged.evaluate

        def evaluate(self):
            if self._name == drawn_dataset:
                raise OSError(28, "no space left")
            return original(self)

        monkeypatch.setattr(judged, "evaluate", evaluate)
    train_cfg.DATASETS.TEST = (drawn_dataset, other)
    monkeypatch.setattr(trainer.comm, "get_world_size", lambda: 2)
    for name in ("all_gather", "gather"):
        monkeypatch.setattr(trainer.comm, name, lambda value, **_: [value])
    monkeypatch.setattr(trainer.comm, "synchronize", lambda: None)
    seen = []
    with pytest.raises(InputError, match="found 1 that failed") as caught:
        GLIPv2Trainer.test(
            train_cfg,
            Annotations(drawn_dataset),
            report=lambda found, failed: seen.append((list(found), failed)),
        )
    assert ("no space left" if fault == "judge" else "test images of dataset") in str(caught.value)
    assert seen[-1][0] == [other] and list(seen[-1][1]) == [drawn_dataset]


RECORD = {
    **{"file_name": "1.png", "image_id": 1, "height": 20, "width": 30, "question_id": 7, "question": "is it?"},
    **{"caption": "a dog", "captions": ["a dog"], "answers": ["yes"] * 10},
    "annotations": [{"bbox": [1, 2, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": [[0, 5]]}],
}


def decode(token_ids):
    assert token_ids == []
    return DecodedText("", [])


@pytest.mark.parametrize(
    ("make", "task", "metric"),
    [
        (lambda: VQAEvaluator("x", [RECORD], ["yes"], distributed=False), "vqa", "accuracy"),
        (lambda: Flickr30kEvaluator("x", [RECORD], distributed=False), "any_box", "R@1"),
        (
            lambda: ReferringEvaluator("x", [RECORD], "refcoco", with_masks=False, distributed=False),
            *("referring", "acc@0.5"),
        ),
        (lambda: CaptioningEvaluator("x", [RECORD], decode, distributed=False), "captioning", "CIDEr"),
        (lambda: GroundedCaptioningEvaluator("x", [RECORD], decode, distributed=False), "captioning", "CIDEr"),
    ],
)
def test_nothing_was_found_in_an_unreadable_image_of_any_task(make, task, metric):
    evaluator = make()
    evaluator.reset()
    sample = {key: RECORD[key] for key in ("file_name", "image_id", "height", "width", "question_id")}
    samples = ReadableSamples([[{**sample, "unreadable": "1.png: broken"}]] * 2, evaluator)
    assert list(samples) == [] and samples.counts == (2, 0) and samples.unreadable == {"1.png: broken": 2}
    results = evaluator.evaluate()
    assert results[task][metric] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_data_worker_that_dies_ends_a_run_in_one_line(train_cfg, drawn_dataset, monkeypatch, number):
    main_process = os.getpid()

    def die(*arguments):
        assert os.getpid() != main_process
        os.kill(os.getpid(), number)

    monkeypatch.setattr(base, "read_image", die)
    train_cfg.DATALOADER.NUM_WORKERS = 1
    loader = build_test_loader(train_cfg, load_test_dataset(train_cfg, drawn_dataset))
    with pytest.raises(SystemExit) as caught, one_line_errors():
        list(loader)
    assert_one_line(caught, "error: DATALOADER.NUM_WORKERS: expected data workers that live", "DataLoader worker (pid")


def test_a_worker_with_samples_that_nobody_takes_ends_with_a_killed_main_process():
    receiver, sender = FORK.Pipe(duplex=False)
    main_process = FORK.Process(target=start_and_wait, args=(sender,))
    main_process.start()
    sender.close()
    assert receiver.poll(60) and receiver.recv() == "ready"
    main_process.kill()
    main_process.join()
    # The worker has the other end of the pipe as long as it lives.
    assert receiver.poll(20)
    with pytest.raises(EOFError):
        receiver.recv()


def start_and_wait(sender):
    FORK.Process(target=fill_pipe, args=(sender,)).start()
    time.sleep(600)


def fill_pipe(sender):
    _start_worker(0)
    FORK.Queue().put(bytes(2**20))
    sender.send("ready")


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2_000, reason="no more files are permitted")
def test_a_batch_may_have_more_tensors_than_a_process_may_usually_open_files():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        loader = _test_samples([{"image_id": image_id} for image_id in range(2)], many_tensors, num_workers=1)
        assert [len(sample["tensors"]) for (sample,) in loader] == [600, 600]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def many_tensors(dataset_dict):
    return {**dataset_dict, "tensors": [torch.zeros(1) for _ in range(600)]}


def pass_on_a_lock():
    _start_worker(0)
    FORK.Queue().put(threading.Lock())
    time.sleep(60)


def fail_in_thread():
    _start_worker(0)
    # As the thread of multiprocessing does that hands over the files of tensors.
    sys.excepthook(ConnectionResetError, ConnectionResetError("nobody takes it"), None)
    sys.excepthook(OSError, OSError(errno.EMFILE, "none left"), None)
    time.sleep(60)


@pytest.mark.parametrize(
    ("work", "found"), [(pass_on_a_lock, "cannot pickle"), (fail_in_thread, "[Errno 24] none left")]
)
def test_a_worker_that_cannot_pass_on_a_sample_ends_and_says_why(capfd, work, found):
    worker = FORK.Process(target=work, daemon=True)
    worker.start()
    worker.join(20)
    worker.kill()
    worker.join()
    assert worker.exitcode == 1
    assert f"data worker: expected to pass on a sample, found {found}" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_outlives_a_signal_to_its_group_and_ends_quietly_at_the_next(number):
    ready = FORK.Event()
    worker = FORK.Process(target=work, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60)
    os.kill(worker.pid, number)
    worker.join(0.5)
    assert worker.is_alive()
    os.kill(worker.pid, number)
    worker.join(60)
    assert worker.exitcode == 0


def with_its_mask(sample):
    return {**sample, "waits": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


@pytest.mark.parametrize("is_training", [False, True])
def test_a_worker_has_no_ctrl_c_while_it_is_started(is_training):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if is_training:
        loader = _QuietDataLoader([{}], num_workers=1, collate_fn=lambda samples: [with_its_mask(samples[0])])
    else:
        loader = TestLoader(_test_samples([{}], with_its_mask, num_workers=1))
    assert [sample["waits"] for (sample,) in loader] == [True]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def work(ready):
    _start_worker(0)
    ready.set()
    while True:
        time.sleep(0.05)


@pytest.mark.parametrize(("code", "status"), [(-signal.SIGTERM, 143), (-signal.SIGKILL, 137), (130, 130), (1, 1)])
def test_a_process_that_a_signal_has_ended_gives_its_status_to_the_run(code, status):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise ProcessExitedException("process 0", error_index=0, error_pid=1, exit_code=code)
    assert caught.value.code == status
