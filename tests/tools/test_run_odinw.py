"""The grid of few-shot experiments: what it runs, how it goes on after a stop, and its tables."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from drawn_images import draw_dataset
from own_set_writers import Photo, write_yolo

from glipv2_d2 import register_coco_grounding
from glipv2_d2.data.dataset_mappers.grounding import GroundingDatasetMapper
from glipv2_d2.data.datasets.odinw import ODINW_13, ODINW_SETS
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.heads.table import HEADS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(load_tool):
    return load_tool("run_odinw")


@pytest.fixture
def report(load_tool):
    return load_tool("odinw_report")


@pytest.fixture
def small_set(tmp_path):
    """The first part of the names of three registered datasets, all of four drawn images, two with a blue box."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    json_file = draw_dataset(folder)
    content = json.loads(json_file.read_text())
    content["annotations"].append({**content["annotations"][2], "id": 7, "image_id": 3})
    json_file.write_text(json.dumps(content))
    for split in ("train", "val", "test"):
        register_coco_grounding(f"{tmp_path.name}_{split}", json_file, folder)
    return tmp_path.name


def result(dataset, mode, shots, seed, value, **old):
    cell = {"dataset": dataset, "mode": mode, "shots": shots, "seed": seed, "value": value}
    return {**cell, "old": old, "unseen": {}, "seconds": None}


# --- tables


@pytest.mark.parametrize(
    ("values", "expected"),
    # Squared distances from the mean 2: 1, 0, 1; their sum over one less than three is 1.
    [([1.0, 2.0, 3.0], (2.0, 1.0, 3)), ([4.0], (4.0, 0.0, 1)), ([], (None, None, 0))],
)
def test_deviation_is_that_of_a_sample(report, values, expected):
    assert tuple(report.mean_and_deviation(values).values()) == expected


def test_average_is_over_seeds_of_means_over_sets(report):
    results = [result("a", "zero_shot", "0", None, 10.0), result("b", "zero_shot", "0", None, 20.0)]
    results += [result("a", "full", "1", seed, value) for seed, value in ((3, 30.0), (30, 40.0), (300, 99.0))]
    results += [result("b", "full", "1", seed, value) for seed, value in ((3, 50.0), (30, 48.0))]
    zero, full = report.summarize(results, ["a", "b"])
    assert zero["average"] == {"mean": 15.0, "deviation": 0.0, "runs": 1}
    # Seed 300 has no result for b yet.
    assert full["average"] == {"mean": 42.0, "deviation": pytest.approx(math.sqrt(8.0)), "runs": 2}
    assert full["sets"]["b"] == {"mean": 49.0, "deviation": pytest.approx(math.sqrt(2.0)), "runs": 2}
    assert full["sets"]["a"]["runs"] == 3


def test_tables_are_those_of_the_paper(report):
    results = [result(name, "zero_shot", "0", None, value, old_val=50.0) for name, value in (("a", 10.0), ("b", 20.0))]
    results += [result("a", "prompt", "10", seed, value, old_val=40.0) for seed, value in ((3, 30.0), (30, 40.0))]
    results += [result("b", "prompt", "10", seed, value, old_val=44.0) for seed, value in ((3, 50.0), (30, 48.0))]
    results += [result("a", "prompt", "all", 3, 60.0, old_val=30.0), result("a", "full", "1", 3, 33.0, old_val=2.0)]
    summary = report.summarize(results, ["a", "b"])
    text = report.markdown(summary, ["a", "b"], {"metric": "bbox/AP"})
    lines = text.splitlines()
    assert "- metric: bbox/AP" in lines
    assert "| mode | 0 | 1 | 10 | all |" in lines
    # Seeds: (30 + 50) / 2 = 40 and (40 + 48) / 2 = 44. With all data one set is missing, as with one shot.
    assert "| prompt | 15.0 | - | 42.0 ± 2.8 | - |" in lines and "| full | 15.0 | - | - | - |" in lines
    assert "| mode | shots | a | b | mean |" in lines
    assert "| prompt | 10 | 35.0 ± 7.1 | 49.0 ± 1.4 | 42.0 ± 2.8 |" in lines
    assert "| prompt | all | 60.0 | - | - |" in lines
    assert "| prompt | 10 | 42.0 ± 2.8 | 42.0 ± 2.3 |" in lines and "| zero_shot | 0 | 15.0 | 50.0 ± 0.0 |" in lines


def test_what_is_kept_is_a_part_of_full_tuning_and_of_the_base(report):
    rows = [("zero_shot", "0", None, 10.0, 60.0, 20.0, None), ("full", "10", 3, 40.0, 30.0, 15.0, 50.0)]
    rows += [("full", "10", 30, 60.0, 42.0, 15.0, 70.0), ("full+keep", "10", 3, 48.0, 57.0, 21.0, None)]
    rows += [("full+keep", "10", 30, 47.0, 57.0, 21.0, 90.0)]
    results = [
        {**result("a", *one[:4], old_val=one[4]), "unseen": {"b_test": one[5]}, "seconds": one[6]} for one in rows
    ]
    lines = report.markdown(report.summarize(results, ["a"]), ["a"], {}).splitlines()
    assert "| mode | shots | new classes | old_val | b_test (unseen) |" in lines
    assert "| full+keep | 10 | 47.5 ± 0.7 | 57.0 ± 0.0 | 21.0 ± 0.0 |" in lines
    # 47.5 of 50, 57 of 60, 21 of 20; 90 seconds, of the one run that knows its own, of 60.
    assert "| full+keep | 10 | 95 | 95 | 105 | 150 |" in lines
    assert "| zero_shot | 0 | - | 100 | 100 | - |" in lines and "| full | 10 | 100 | 60 | 75 | 100 |" in lines


def test_zero_shot_alone_has_a_table_and_a_plot(report, tmp_path):
    results = [result("a", "zero_shot", "0", None, 12.0)]
    report.write_report(tmp_path, results, ["a"], {"metric": "bbox/AP"})
    assert "| zero_shot | 12.0 |" in (tmp_path / "table.md").read_text()
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["rows"][0]["average"]["mean"] == 12.0 and content["sets"] == ["a"]
    assert (tmp_path / "data_efficiency.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.json", "data_efficiency.png"}


def test_plot_has_a_line_for_each_mode_that_starts_at_zero_shot(report, tmp_path, monkeypatch):
    import matplotlib.axes

    drawn = []
    errorbar = matplotlib.axes.Axes.errorbar

    def record(self, x, y, yerr, **options):
        drawn.append((options["label"], x, y, yerr))
        return errorbar(self, x, y, yerr, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", record)
    results = [result("a", "full", "10", 3, 40.0), result("a", "full", "1", 3, 20.0)]
    results += [
        result("a", "full", "1", 30, 22.0),
        result("a", "zero_shot", "0", None, 10.0),
        result("a", "prompt", "all", 3, 50.0),
    ]
    report.plot_data_efficiency(report.summarize(results, ["a"]), tmp_path / "plot.png", "bbox/AP", 1)
    assert drawn == [
        ("full", [0, 1, 2], [10.0, 21.0, 40.0], [0.0, pytest.approx(math.sqrt(2.0)), 0.0]),
        ("prompt", [0, 3], [10.0, 50.0], [0.0, 0.0]),
    ]


@pytest.mark.parametrize(("value", "expected"), [(31.5, 31.5), (math.nan, 0.0), (-math.inf, 0.0)])
def test_a_model_that_finds_nothing_has_zero(report, value, expected):
    assert report.finite(value) == expected


# --- the grid


def test_grid_has_a_cell_for_each_set_mode_shots_and_seed(tool):
    cells = tool.plan_cells(["a", "b"], ["full", "prompt"], ["0", "1", "all"], [3, 30])
    assert len(cells) == len(set(cells)) == 2 + 2 * 2 * 2 + 2 * 2
    assert cells[:2] == [("a", "zero_shot", "0", None), ("b", "zero_shot", "0", None)]
    # All data is all data: one seed.
    assert [cell for cell in cells if cell.shots == "all" and cell.seed != 3] == []
    assert len({cell.folder(Path("out")) for cell in cells}) == len(cells)


def test_what_is_named_twice_runs_and_counts_once(tool):
    once = tool.plan_cells(["a"], ["full", "prompt"], ["1", "3"], [3, 30])
    assert tool.plan_cells(["a"], ["full", "prompt", "full"], ["1", "01", "3"], [3, 30, 3]) == once


def test_odinw_stands_for_its_sets(tool):
    assert tool.expand_sets(["odinw13", "small_a"]) == [*(f"odinw_{key}" for key in ODINW_13), "small_a"]
    assert len(tool.expand_sets(["odinw35", "odinw13"])) == len(ODINW_SETS) == 35


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "two"], "expected numbers and 'all', found 'two'"),
        (["--max-iter", "5"], "expected both or neither"),
        (["--mode-opts", "lora", "A", "1"], "expected one of --modes"),
        (["--mode-opts", "prompt", "SOLVER.BASE_LR"], "KEY VALUE pairs"),
        (["--modes", "mask_head"], "invalid choice"),
    ],
)
def test_wrong_words_are_named(tool, words, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse(["--weights", "w.pth", *words])
    assert message in capsys.readouterr().err


def pairs(words):
    """The last value of each key."""
    return dict(zip(words[::2], words[1::2]))


def test_recipe_is_the_official_one_and_can_be_changed(tool):
    words = ["--weights", "w", "--mode-opts", "prompt", "SOLVER.BASE_LR", "0.1", "--opts", "SOLVER.IMS_PER_BATCH", "2"]
    arguments = tool.parse(words)
    full = pairs(tool.mode_options(arguments, tool.Cell("a", "full", "3", 30)))
    assert full["SOLVER.WEIGHT_DECAY"] == "0.05" and "SOLVER.BASE_LR" not in full
    assert (full["SOLVER.AUTO_STEP.PATIENCE"], full["SOLVER.EARLY_STOP_PATIENCE"]) == ("3", "8")
    assert full["MODEL.GLIPV2.TUNING.MODE"] == "full" and full["SOLVER.IMS_PER_BATCH"] == "2"
    assert full["INPUT.PROMPT.SHUFFLE"] == "False" and full["INPUT.PROMPT.NUM_NEGATIVES"] == "-1"
    prompt = pairs(tool.mode_options(arguments, tool.Cell("a", "prompt", "all", 3)))
    assert prompt["SOLVER.WEIGHT_DECAY"] == "0.25" and prompt["SOLVER.BASE_LR"] == "0.1"
    assert (prompt["SOLVER.AUTO_STEP.PATIENCE"], prompt["SOLVER.EARLY_STOP_PATIENCE"]) == ("2", "4")


def test_modes_that_forget_nothing_are_their_mode_with_keep(tool):
    words = ["--weights", "w", "--modes", "lora+keep", "full+between", "full+replay", "full+names"]
    arguments = tool.parse([*words, "--mode-opts", "lora", "SOLVER.BASE_LR", "0.005"])
    key, options = "MODEL.GLIPV2.TUNING.KEEP", {}
    for mode in arguments.modes:
        options[mode] = pairs(tool.mode_options(arguments, tool.Cell("a", mode, "1", 3)))
        assert options[mode][f"{key}.ENABLED"] == "True"
    assert options["lora+keep"]["MODEL.GLIPV2.TUNING.MODE"] == "lora"
    assert options["lora+keep"]["SOLVER.BASE_LR"] == "0.005" and f"{key}.LEAST_OWN" not in options["lora+keep"]
    assert options["full+replay"][f"{key}.LEAST_OWN"] == options["full+between"][f"{key}.NAMES_WEIGHT"] == "0.0"
    assert f"{key}.ENABLED" not in pairs(tool.mode_options(arguments, tool.Cell("a", "full", "1", 3)))
    assert [options[mode][f"{key}.BY_NAME"] for mode in arguments.modes] == ["False", "False", "False", "True"]
    files = [tool.result_file(mode) for mode in ("full", "full+replay", "full+between", "lora+keep", "full+names")]
    assert files == ["model_best.pth", "model_best.pth", "model_kept.pth", "model_kept.pth", "model_kept.pth"]


@pytest.mark.parametrize("mode", ["full", "prompt", "lora", "linear_probe"])
@pytest.mark.parametrize("model", ["swin_t", "swin_b_stage2", "coswin_h"])
def test_a_config_of_a_pretraining_is_tuned_without_its_losses(tool, model, mode):
    words = ["--weights", "w", "--config-file", f"configs/pretrain/glipv2_{model}.yaml", "--opts"]
    arguments = tool.parse([*words, "MODEL.DEVICE", "cpu", "MODEL.TEXT_ENCODER.TOKENIZER", ""])

    def losses(*more):
        arguments.opts = [*arguments.opts, *more]
        cfg = tool.build_config(arguments.config_file, tool.mode_options(arguments, tool.Cell("a", mode, "1", 3)))
        mapper = GroundingDatasetMapper.from_config(cfg)
        is_on = [HEADS[name].is_on(cfg) for name in ("mlm_head", "contrastive_head")]
        return is_on, mapper["mask_prob"]

    assert losses() == ([False, False], None)
    # Unless they are asked for.
    asked = ["MODEL.GLIPV2.MLM.ENABLED", "True", "MODEL.GLIPV2.TUNING.PRETRAINING_LOSSES", "True"]
    assert losses(*asked) == ([True, False], 0.15)


@pytest.mark.parametrize(
    ("shots", "copies", "num_images"),
    # Taken by ascending id: of one shot the first image alone, which has all three boxes.
    [("1", 8, 1), ("2", 1, 3), ("all", 1, 4)],
)
def test_an_epoch_is_all_images_some_times(tool, config, small_set, shots, copies, num_images, monkeypatch):
    monkeypatch.setattr(tool, "data_options", lambda cell: [*data_options(cell), "DATASETS.FEW_SHOT.SEED", "0"])
    arguments = tool.parse(["--weights", "w", "--config-file", config])
    length = pairs(tool.schedule(arguments, tool.Cell(small_set, "full", shots, 3)))
    period = math.ceil(num_images * copies / 4)
    assert length["TEST.EVAL_PERIOD"] == length["SOLVER.CHECKPOINT_PERIOD"] == str(period)
    assert length["SOLVER.MAX_ITER"] == str(200 * period) and length["SOLVER.WARMUP_ITERS"] == str(20 * period)


def data_options(cell):
    shots = "0" if cell.shots == "all" else cell.shots
    return ["DATASETS.TRAIN", str((f"{cell.dataset}_train",)), "DATASETS.FEW_SHOT.SHOTS", shots]


# --- running


@pytest.fixture
def run(tool, config, small_set, tmp_path, monkeypatch):
    """Run the tool on one set, with the programs of cells in this process; the calls are counted in ``calls``."""
    monkeypatch.syspath_prepend(str(ROOT))
    train_net = importlib.import_module("train_net")
    calls = []

    def call(command, log, lock):
        calls.append(command)
        assert command[0] == "train_net.py"
        train_net.main(command[1:])

    monkeypatch.setattr(tool, "call", call)
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    (tmp_path / "weights.pth").touch()

    def main(*words):
        arguments = ["--config-file", config, "--weights", str(tmp_path / "weights.pth"), "--num-gpus", "0"]
        arguments += ["--output", str(tmp_path / "out"), "--sets", small_set, "--max-iter", "2", "--eval-period", "1"]
        tool.main([*arguments, *words, "--opts", "SOLVER.IMS_PER_BATCH", "2"])

    main.calls, main.output, main.set = calls, tmp_path / "out", small_set
    return main


@pytest.fixture
def start_weights(tiny_cfg, tmp_path):
    """Weights of the tiny model in the file that the tool is called with."""
    torch.manual_seed(0)
    torch.save({"model": build_model(tiny_cfg).state_dict()}, tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_cells_train_test_and_are_not_done_twice(run, start_weights, capsys):
    old = f"{run.set}_val"
    words = ("--modes", "full", "--shots", "0", "1", "--seeds", "3", "--old-sets", old)
    run(*words)
    assert [("--eval-only" in command) for command in run.calls] == [True, False, True]
    cell = run.output / run.set / "full_1_seed3"
    results = json.loads((cell / "results.json").read_text())
    table = json.loads((cell / "test" / "result_table.json").read_text())["results"]
    found = table[f"{run.set}_test"]["bbox"]["AP"]
    assert results["value"] == (found or 0.0) and set(results["old"]) == {old}
    assert not list(cell.glob("*.pth"))
    assert "| full |" in capsys.readouterr().out
    run(*words)
    assert len(run.calls) == 3
    # Weights of the next seed are kept on request.
    run("--modes", "full", "--shots", "1", "--seeds", "30", "--old-sets", old, "--keep-weights")
    assert [path.name for path in (run.output / run.set / "full_1_seed30").glob("*.pth")] == ["model_best.pth"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_model_without_text_has_the_classes_of_each_set(run, config, tiny_cfg, tmp_path):
    tiny_cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "DyHead", "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", 365])
    Path(config).write_text(tiny_cfg.dump())
    # As after a pre-training on Objects365; the drawn set has three names.
    torch.save({"model": build_model(tiny_cfg).state_dict()}, tmp_path / "weights.pth")
    run("--modes", "full", "--shots", "1", "--seeds", "3", "--keep-weights")
    cell = run.output / run.set / "full_1_seed3"
    assert json.loads((cell / "results.json").read_text())["value"] >= 0
    weights = torch.load(cell / "model_best.pth", weights_only=True)["model"]
    assert len(weights["head.cls_logits.bias"]) == 3


def fake_call(run, tool, monkeypatch, stop_at):
    """Programs that only leave their result; the one of this number is stopped instead."""
    calls = []

    def call(command, log, lock):
        calls.append(command)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        if "--eval-only" in command:
            options = pairs(command[command.index("OUTPUT_DIR") :])
            folder = Path(options["OUTPUT_DIR"])
            folder.mkdir(parents=True, exist_ok=True)
            names = options["DATASETS.TEST"].strip("(),'").split("', '")
            table = {name: {"bbox": {"AP": 7.0, "AP50": None}} for name in names}
            (folder / "result_table.json").write_text(json.dumps({"results": table}))

    monkeypatch.setattr(tool, "call", call)
    return calls


def test_a_stopped_grid_goes_on_with_the_cell_that_was_half_done(run, tool, monkeypatch):
    words = ("--modes", "full", "--shots", "1", "--seeds", "3", "30")
    # Two programs a cell: the training of the second is stopped.
    calls = fake_call(run, tool, monkeypatch, stop_at=3)
    with pytest.raises(SystemExit, match="goes on from here"):
        run(*words)
    done = [path.parent.name for path in run.output.rglob("results.json")]
    assert done == ["full_1_seed3"] and len(calls) == 3
    calls = fake_call(run, tool, monkeypatch, stop_at=0)
    run(*words)
    assert len(calls) == 2 and "--resume" in calls[0] and "--resume" not in calls[1]
    assert calls[0][calls[0].index("OUTPUT_DIR") + 1].endswith("full_1_seed30")
    assert "| full | 7.0 ± 0.0 |" in (run.output / "table.md").read_text()


def test_a_cell_of_other_options_is_not_taken_for_this_one(run, tool, monkeypatch):
    words = ("--modes", "full", "--shots", "1", "--seeds", "3")
    calls = fake_call(run, tool, monkeypatch, stop_at=0)
    run(*words)
    with pytest.raises(SystemExit, match="1 cells failed.*\n.*expected the options of this run, found others"):
        run(*words, "--mode-opts", "full", "SOLVER.BASE_LR", "0.5")
    assert len(calls) == 2


def test_what_is_done_is_read_without_its_data_and_left_without_checkpoints(run, tool, monkeypatch):
    words = ("--modes", "full", "--shots", "1", "--seeds", "3")
    fake_call(run, tool, monkeypatch, stop_at=0)
    run(*words)
    folder = run.output / run.set / "full_1_seed3"
    for name in ("model_final.pth", "model_best.pth", "last_checkpoint"):
        (folder / name).touch()
    monkeypatch.setattr(tool, "schedule", None)
    run(*words)
    assert [path.name for path in folder.glob("*.pth")] == ["model_best.pth"]
    assert not (folder / "last_checkpoint").exists()


def test_a_cell_whose_data_changed_in_the_middle_is_not_resumed(run, tool, monkeypatch):
    words = ("--modes", "full", "--shots", "1", "--seeds", "3")
    fake_call(run, tool, monkeypatch, stop_at=2)
    with pytest.raises(SystemExit, match="goes on from here"):
        run(*words)
    monkeypatch.setattr(tool, "schedule", lambda arguments, cell: ["SOLVER.MAX_ITER", "9"])
    with pytest.raises(SystemExit, match="1 cells failed.*\n.*expected the options of this run, found others"):
        run(*words)


def test_table_says_how_it_was_made(run, tool, monkeypatch):
    fake_call(run, tool, monkeypatch, stop_at=0)
    run("--modes", "full", "--shots", "1", "--seeds", "3", "--mode-opts", "full", "SOLVER.BASE_LR", "0.5")
    text = (run.output / "table.md").read_text()
    assert "- options of full: SOLVER.BASE_LR 0.5\n" in text
    assert "- length: 2 updates, validated every 1\n" in text


def test_config_may_be_named_from_another_folder(run, tool, monkeypatch, tmp_path):
    calls = fake_call(run, tool, monkeypatch, stop_at=0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("VERSION: 2\n")
    run("--shots", "0", "--config-file", "own.yaml")
    assert calls[0][2] == str(tmp_path / "own.yaml")
    run("--shots", "0", "--config-file", str(ROOT / "configs/Base-GLIPv2.yaml"), "--output", str(tmp_path / "second"))
    assert calls[1][2] == "configs/Base-GLIPv2.yaml"


def test_a_cell_that_fails_is_named_and_the_others_go_on(run, tool, monkeypatch):
    fake_call(run, tool, monkeypatch, stop_at=0)
    # Four images: no category is in ten.
    with pytest.raises(SystemExit, match="2 cells failed.*\n.*has 3 images of 'red box', expected at least 10"):
        run("--modes", "full", "prompt", "--shots", "10", "0", "--seeds", "3")
    text = (run.output / "table.md").read_text()
    assert "| zero_shot | 7.0 |" in text
    assert f"| {run.set}/full_10_seed3 | failed: DATASETS.FEW_SHOT.SHOTS: " in text
    assert len(json.loads((run.output / "table.json").read_text())["failed"]) == 2
    with pytest.raises(SystemExit, match="1 cells failed.*\n.*--metric: .* one of bbox/AP, bbox/AP50, found 'segm/AP'"):
        run("--shots", "0", "--metric", "segm/AP", "--output", str(run.output / "other"))


def test_test_data_are_read_before_a_cell_trains(run, tool, monkeypatch):
    calls = fake_call(run, tool, monkeypatch, stop_at=0)
    json_file = Path(MetadataCatalog.get(f"{run.set}_test").json_file)
    damaged = json_file.with_name("damaged.json")
    damaged.write_text(json_file.read_text().replace('"categories"', '"kinds"'))
    MetadataCatalog.pop(f"{run.set}_test")
    DatasetCatalog.pop(f"{run.set}_test")
    register_coco_grounding(f"{run.set}_test", damaged, json_file.parent)
    with pytest.raises(SystemExit, match="1 cells failed.*\n.*damaged.json: categories: expected a list, found None"):
        run("--modes", "full", "--shots", "1", "--seeds", "3")
    assert not calls


def test_old_sets_are_read_before_a_cell_trains(run, tool, monkeypatch):
    calls = fake_call(run, tool, monkeypatch, stop_at=0)
    with pytest.raises(SystemExit, match="1 cells failed.*\n.*dataset 'no_such_set' is not registered"):
        run("--modes", "full", "--shots", "1", "--seeds", "3", "--old-sets", "no_such_set")
    assert not calls


def test_a_config_that_is_not_there_ends_the_run_and_similar_names_are_said(run):
    with pytest.raises(SystemExit, match="--config-file: .*found neither at 'glip_swin_t_e'; did you mean glip/"):
        run("--shots", "0", "--config-file", "glip_swin_t_e")


def test_missing_weights_end_the_run(run, tmp_path):
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(SystemExit, match="run_odinw: .*weights.pth"):
        run("--shots", "0")


def test_own_images_are_sets_of_every_process(tool, config, tmp_path, monkeypatch):
    commands = []

    def call(command, log, lock):
        commands.append(command)
        (Path(command[command.index("OUTPUT_DIR") + 1])).mkdir(parents=True, exist_ok=True)
        raise tool.CellError("stopped here")

    monkeypatch.setattr(tool, "call", call)
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    (tmp_path / "weights.pth").touch()
    photos = [Photo(f"{i}.png", 40, 30, [("cat", 2, 3, 22, 23)]) for i in range(5)]
    root = write_yolo(tmp_path / "odinw_cats", {"train": photos[:3], "val": photos[3:]}, ["cat"])
    monkeypatch.chdir(tmp_path)
    words = ["--config-file", config, "--weights", "weights.pth", "--output", "out", "--data", "odinw_cats"]
    with pytest.raises(SystemExit, match="2 cells failed:\n.*: stopped here\n.*: stopped here"):
        tool.main([*words, "--modes", "full", "--shots", "0", "all", "--seeds", "3"])
    assert DatasetCatalog["odinw_cats_val"] and "odinw_cats_test" not in DatasetCatalog
    for command in commands:
        assert command[command.index("DATASETS.REGISTER") + 1] == str((str(root),))
    # Without test images, both cells are tested on the validation images.
    assert commands[0][commands[0].index("DATASETS.TEST") + 1] == "('odinw_cats_val',)"
    assert (tmp_path / "out" / "datasets" / "odinw_cats_train.json").is_file()


def test_two_runs_never_share_an_output(run, tool, monkeypatch):
    def call(command, log, lock):
        with pytest.raises(SystemExit, match="^run_odinw: --output: .* expected no other run, "):
            run("--shots", "0")
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "call", call)
    with pytest.raises(SystemExit, match="goes on from here"):
        run("--shots", "0")


def test_a_process_that_fails_says_why_in_its_last_line(tool, tmp_path):
    with (tmp_path / "lock").open("w") as lock, pytest.raises(tool.CellError, match="process.log: no such colour"):
        program = "import sys; print('begin'); sys.exit('no such colour')"
        tool.call(["-c", program], tmp_path / "process.log", lock.fileno())


def test_old_sets_of_a_tuned_prompt_are_those_of_the_base(run, tool, monkeypatch):
    calls = fake_call(run, tool, monkeypatch, stop_at=0)
    run("--modes", "prompt", "--shots", "1", "--seeds", "3", "30", "--old-sets", "coco_2017_val")
    tests = [pairs(command[command.index("OUTPUT_DIR") :]) for command in calls if "--eval-only" in command]
    # The base is tested once, for both cells.
    assert [("coco_2017_val" in one["DATASETS.TEST"], Path(one["MODEL.WEIGHTS"]).name) for one in tests] == [
        (False, "model_best.pth"),
        (True, "weights.pth"),
        (False, "model_best.pth"),
    ]
    assert "MODEL.GLIPV2.TUNING.MODE" not in calls[2]
    text = (run.output / "table.md").read_text()
    assert "With `prompt` this is the base model" in text and "| prompt | 1 | 7.0 ± 0.0 | 7.0 ± 0.0 |" in text
