"""The table of ways to train on own sets: which commands it runs, how it goes on after a stop, and what it writes."""

import json
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from drawn_images import draw_dataset

from glipv2_d2.engine.command_line import build_config
from glipv2_d2.engine.own_run import find_start, plan_run


@pytest.fixture
def tool(load_tool):
    return load_tool("compare_own_sets")


def result(folder, ap, minutes=2.0):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"val": {"bbox": {"AP": ap, "AP50": 2 * ap}}, "minutes": minutes, "weights": "model_best.pth"}
    (folder / "results.json").write_text(json.dumps(content))


def words(command):
    return shlex.join(command).removeprefix(shlex.quote(sys.executable)).strip()


def test_cells_are_sets_times_shots_times_methods_and_zero_shot_once(tool):
    arguments = tool.parse_arguments(
        [
            *("--data", "/x/cats", "/x/dogs", "--shots", "1", "all"),
            *("--methods", "fcos", "full", "zero_shot", "--weights", "w.pth"),
        ]
    )
    cells = [(cell.name, cell.shots, cell.method) for cell in tool.cells_of(arguments)]
    assert cells[:5] == [
        ("cats", "1", "zero_shot"),
        ("cats", "1", "full"),
        ("cats", "1", "fcos"),
        ("cats", "all", "full"),
        ("cats", "all", "fcos"),
    ]
    assert [name for name, _, _ in cells] == ["cats"] * 5 + ["dogs"] * 5


def test_few_shots_have_methods_and_updates_of_their_own(tool):
    arguments = tool.parse_arguments(
        [
            *("--data", "/x/cats", "--shots", "all", "1", "--methods", "zero_shot", "full", "fcos"),
            *("--few-shot-methods", "lora", "full", "--updates", "40", "--few-shot-updates", "10"),
            *("--weights", "w.pth", "--opts", "SEED", "2"),
        ]
    )
    cells = tool.cells_of(arguments)
    assert [(cell.shots, cell.method) for cell in cells] == [
        *(("all", method) for method in ("zero_shot", "full", "fcos")),
        *(("1", method) for method in ("lora", "full")),
    ]
    assert tool.keys_of(cells[1], arguments) == (
        "SOLVER.MAX_ITER 40 TEST.EVAL_PERIOD 40 SOLVER.CHECKPOINT_PERIOD 40 SEED 2".split()
    )
    assert tool.keys_of(cells[3], arguments)[:2] == ["SOLVER.MAX_ITER", "10"]
    plain = tool.parse_arguments(["--data", "/x/cats", "--methods", "full"])
    assert tool.keys_of(cells[1], plain) == []


def test_jobs_share_the_cores_and_a_baseline_waits_for_its_run(tool, tmp_path, monkeypatch):
    """Of two sets at a time, whose first cells wait for each other, each writes its times and its number of threads."""
    script = (
        "import json, os, sys, time, pathlib; begin = time.time(); folder = pathlib.Path(sys.argv[1])\n"
        "(folder / 'begun').touch()\n"
        "both = [folder.parents[2] / name / 'all' / 'full' / 'begun' for name in ('cats', 'dogs')]\n"
        "while not all(one.exists() for one in both): time.sleep(0.01) if time.time() < begin + 60 else sys.exit(9)\n"
        "box = {'AP': 1.0, 'AP50': 2.0}; times = [begin, time.time(), os.environ['OMP_NUM_THREADS']]\n"
        "(folder / 'times.json').write_text(json.dumps(times))\n"
        "(folder / 'results.json').write_text(json.dumps({'val': {'bbox': box}, 'minutes': 1.0}))"
    )
    monkeypatch.setattr(
        tool, "command_of", lambda cell, output, *_: [sys.executable, "-c", script, str(cell.folder(output))]
    )
    monkeypatch.setattr(tool.os, "sched_getaffinity", lambda process: {3, 5, 6, 7}, raising=False)
    data = [str(tmp_path / name) for name in ("cats", "dogs")]
    words = ["--data", *data, "--methods", "full", "fcos", "--jobs", "2", "--output", str(tmp_path / "out")]
    assert tool.main(words) == 0
    times = {
        (name, method): json.loads((tmp_path / "out" / name / "all" / method / "times.json").read_text())
        for name in ("cats", "dogs")
        for method in ("full", "fcos")
    }
    assert {one[2] for one in times.values()} == {"2"}
    for name in ("cats", "dogs"):
        assert times[name, "full"][1] <= times[name, "fcos"][0]
    assert (tmp_path / "out" / "table.md").read_text().count("1.0 / 2.0 (1.0 min)") == 4


def test_after_ctrl_c_nothing_more_is_started(tool, tmp_path, monkeypatch, capsys):
    """The first run is interrupted, as it is by a terminal, and so is the program that waits for it."""
    started = []

    def interrupted(cell, *_):
        started.append(cell)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        return "exit status 130: stopped"

    monkeypatch.setattr(tool, "run_cell", interrupted)
    words = ["--data", str(tmp_path / "cats"), str(tmp_path / "dogs"), "--output", str(tmp_path / "out")]
    # A shell lets what it starts in the background ignore SIGINT.
    known = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert tool.main(words) == 130
    finally:
        signal.signal(signal.SIGINT, known)
    assert len(started) == 1
    assert capsys.readouterr().err == "stopped: the same command goes on from here\n"


def test_commands_are_those_of_the_program(tool, tmp_path):
    cell = tool.Cell(tmp_path / "cats", "full", "all")
    folder = tmp_path / "out" / "cats" / "all" / "full"
    assert words(tool.command_of(cell, tmp_path / "out", "")) == (
        f"-m glipv2_d2 train --data {tmp_path}/cats --output {folder} --overwrite"
    )
    few = words(tool.command_of(cell._replace(shots="3", method="prompt"), tmp_path / "out", "/w.pth", ["SEED", "2"]))
    assert "--weights /w.pth DATASETS.FEW_SHOT.SHOTS 3" in few and "MODEL.GLIPV2.TUNING.MODE prompt" in few
    assert few.endswith("INPUT.PROMPT.SHUFFLE False SOLVER.BASE_LR 0.05 SOLVER.WEIGHT_DECAY 0.25 SEED 2")
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("")
    assert words(tool.command_of(cell, tmp_path / "out", "")) == f"-m glipv2_d2 train --output {folder} --resume"
    baseline = words(tool.command_of(cell._replace(method="fcos"), tmp_path / "out", ""))
    assert f"closed_vocabulary.py --detector fcos --run {folder} --output" in baseline


def test_done_cells_are_skipped_and_failed_ones_are_named(tool, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out" / "cats" / "all" / "full"
    result(folder, 30.0)
    (folder / "model_best.pth").write_text("")
    monkeypatch.setattr(tool, "command_of", lambda *_: [sys.executable, "-c", "print('no way'); raise SystemExit(3)"])
    done = tool.main(["--data", str(tmp_path / "cats"), "--methods", "full", "fcos", "--output", str(tmp_path / "out")])
    assert done == 1
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[0] == "| set | shots | full | fcos |"
    assert lines[2] == "| cats | all | 30.0 / 60.0 (2.0 min) | failed |"
    assert lines[4] == "cats all fcos: exit status 3: no way"
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == [
        {"set": "cats", "shots": "all", "method": "full", "AP": 30.0, "AP50": 60.0, "minutes": 2.0},
        {"set": "cats", "shots": "all", "method": "fcos", "failed": "exit status 3: no way"},
    ]
    assert capsys.readouterr().out.count("$ ") == 1
    assert (folder / "model_best.pth").is_file()
    tool.main(
        ["--data", str(tmp_path / "cats"), "--methods", "full", "--output", str(tmp_path / "out"), "--remove-weights"]
    )
    assert not (folder / "model_best.pth").exists() and (folder / "results.json").is_file()


def test_results_with_other_settings_are_none_of_this_command(tool, tmp_path, monkeypatch):
    script = (
        "import pathlib, sys; folder = pathlib.Path(sys.argv[1])\n"
        "if (folder / 'last_checkpoint').exists(): sys.exit(3)\n"
        '(folder / \'results.json\').write_text(\'{"val": {"bbox": {"AP": 1.0, "AP50": 2.0}}, "minutes": 1.0}\')'
    )
    monkeypatch.setattr(
        tool, "command_of", lambda cell, output, *_: [sys.executable, "-c", script, str(cell.folder(output))]
    )
    words = ["--data", str(tmp_path / "cats"), "--methods", "full", "--output", str(tmp_path / "out")]
    folder = tmp_path / "out" / "cats" / "all" / "full"
    assert tool.main([*words, "--updates", "7"]) == 0
    assert tool.main([*words, "--updates", "8"]) == 1
    assert "cats all full: " in (tmp_path / "out" / "table.md").read_text()
    assert "expected the options of this run" in (tmp_path / "out" / "table.md").read_text()
    (folder / "results.json").unlink()
    (folder / "last_checkpoint").write_text("")
    assert tool.main([*words, "--updates", "8"]) == 0
    assert "1.0 / 2.0 (1.0 min)" in (tmp_path / "out" / "table.md").read_text()


def test_a_set_that_cannot_be_read_fails_in_its_own_cells_alone(tool, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    words = ["--methods", "zero_shot", "--weights", str(tmp_path / "w.pth"), "--output", str(tmp_path / "out")]
    assert tool.main(["--data", str(tmp_path / "cats"), str(tmp_path / "dogs"), *words]) == 1
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[2:4] == ["| cats | all | failed |", "| dogs | all | failed |"] and str(tmp_path / "dogs") in lines[-1]


def test_table_counts_the_sets_on_which_the_whole_model_is_ahead_of_both_baselines(tool):
    def cells(name, full, retinanet, fcos):
        scores = {"full": full, "retinanet": retinanet, "fcos": fcos}
        place = {"set": name, "shots": "all", "minutes": 1.0}
        return [{**place, "method": method, "AP": ap, "AP50": 50.0} for method, ap in scores.items() if ap is not None]

    records = [*cells("a", 9.0, 8.0, 7.0), *cells("b", 9.0, 8.0, 10.0), *cells("c", 9.0, 8.0, None)]
    table = tool.table_of(records)
    assert table.splitlines()[2] == "| a | all | 9.0 / 50.0 (1.0 min) | 8.0 / 50.0 (1.0 min) | 7.0 / 50.0 (1.0 min) |"
    assert table.splitlines()[4].endswith("| - |")
    assert table.endswith("Shots all: full is ahead of retinanet and fcos on 1 in AP, 0 in AP50, of 2 sets.\n")


def test_zero_shot_is_evaluated_on_what_a_training_is_validated_with(tool, tiny_cfg, tmp_path):
    """A set with images for validation and test alone is validated with the latter."""
    for split in ("valid", "test"):
        (tmp_path / "cats" / split).mkdir(parents=True)
        draw_dataset(tmp_path / "cats" / split)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.yaml").write_text(tiny_cfg.dump())
    (tmp_path / "w" / "w.pth").write_bytes(b"")
    cell = tool.Cell(tmp_path / "cats", "zero_shot", "all")
    command = tool.command_of(cell, tmp_path / "out", str(tmp_path / "w" / "w.pth"))
    assert command[3:7] == ["eval", "--config-file", str(tmp_path / "w" / "config.yaml"), "--num-gpus"]
    assert "cats_test" in words(command)


def test_the_table_of_the_experiments_is_made_from_the_measured_results(tool):
    page = Path(__file__).parents[2] / "docs" / "experiments" / "own_photographs.md"
    records = json.loads(page.with_suffix(".json").read_text())
    assert tool.table_of(records) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "lora"], "expected --weights for lora"),
        (["--methods", "fcos"], "expected 'full' beside a baseline"),
        (["--few-shot-methods", "lora"], "expected --weights for lora"),
        (["--shots", "0"], "expected numbers above 0, or all"),
        (["--jobs", "0"], "expected a number above 0, found 0"),
        # The results of the one would be taken for those of the other.
        (["--data", "mine/photos", "photos/train"], "--data: expected sets of different names, found 'photos' twice"),
    ],
)
def test_arguments_that_cannot_be_run_are_named(tool, more, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse_arguments(["--data", "x", *more])
    assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_baseline_trains_with_the_config_of_a_run(load_tool, tiny_cfg, tmp_path, name):
    tool = load_tool("closed_vocabulary")
    (tmp_path / "photos").mkdir()
    draw_dataset(tmp_path / "photos")
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    plan = plan_run(
        str(tmp_path / "photos"), tmp_path / "run", find_start("", str(tmp_path / "tiny.yaml"), tmp_path), epochs=3
    )
    (tmp_path / "run").mkdir(exist_ok=True)
    cfg = build_config(plan.config_file, plan.options)
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    # What a run that was stopped here has left.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.json").write_text('{"iteration": 1, "bbox/AP": 99.0, "bbox/AP50": 99.0}\n')
    # Group normalization needs more than one position on the coarsest level, of stride 128.
    sizes = ["--opts", "INPUT.MIN_SIZE_TRAIN", "(160,)", "INPUT.MIN_SIZE_TEST", "160"]
    sizes += ["INPUT.MAX_SIZE_TRAIN", "300", "INPUT.MAX_SIZE_TEST", "300"]
    tool.main(["--detector", name, "--run", str(tmp_path / "run"), "--output", str(tmp_path / "other"), *sizes])
    results = json.loads((tmp_path / "other" / "results.json").read_text())
    assert results["val"]["bbox"].keys() >= {"AP", "AP50"} and (tmp_path / "other" / "model_best.pth").is_file()
    assert results["val"]["bbox"]["AP"] < 99
    with pytest.raises(SystemExit):
        tool.main(["--detector", name, "--run", str(tmp_path / "run"), "--output", str(tmp_path / "run")])
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_baseline_starts_from_backbone_and_pyramid_of_the_weights_of_the_run(load_tool, tiny_cfg, tmp_path):
    tool = load_tool("closed_vocabulary")
    tiny_cfg.MODEL.DEVICE = "cpu"
    backbone = tool.build_backbone(tiny_cfg)
    weights = {f"backbone.{name}": tensor + 1 for name, tensor in backbone.state_dict().items()}
    torch.save({"model": {**weights, "head.other": torch.ones(2)}}, tmp_path / "start.pth")
    tool.load_backbone(backbone, str(tmp_path / "start.pth"))
    assert all(torch.equal(tensor, weights[f"backbone.{name}"]) for name, tensor in backbone.state_dict().items())


def test_baseline_learns_the_number_of_a_class_not_its_row_in_the_prompt(load_tool):
    tool = load_tool("closed_vocabulary")
    instances = Instances((8, 8), gt_boxes=Boxes(torch.zeros(2, 4)), gt_classes=torch.tensor([0, 1]))
    instances.gt_category_ids = torch.tensor([5, 3])
    assert tool._numbered(instances).gt_classes.tolist() == [5, 3]
    assert instances.gt_classes.tolist() == [0, 1]


def test_best_evaluation_counts(load_tool, tmp_path):
    tool = load_tool("closed_vocabulary")
    records = [
        {"iteration": 1, "bbox/AP": 3.0, "bbox/AP50": 9.0},
        {"total_loss": 1.0},
        {"bbox/AP": 2.0, "bbox/AP50": 10.0},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, records)))
    assert tool.best_results(tmp_path / "metrics.json") == {"AP": 3.0, "AP50": 9.0}
