import hashlib
import importlib
import json
import logging
from functools import partial
from pathlib import Path

import pytest
import rank_runs  # noqa: F401  # what is imported before processes are forked
import torch
from detectron2.data import MetadataCatalog
from drawn_images import draw_dataset

from glipv2_d2 import register_coco_grounding
from glipv2_d2.engine.runs import train
from glipv2_d2.evaluation.result_tables import write_result_table
from glipv2_d2.program.main import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def train_net(monkeypatch):
    """The script as a module; the loggers that it sets up are put back."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "glipv2_d2")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    monkeypatch.syspath_prepend(str(ROOT))
    yield importlib.import_module("train_net")
    for logger, (level, propagate, handlers) in zip(loggers, before):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


def write_config(cfg, path):
    path.write_text(cfg.dump())
    return str(path)


def read_metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]


def test_command_line_trains_resumes_and_evaluates(train_net, train_cfg, tmp_path):
    config = write_config(train_cfg, tmp_path / "config.yaml")
    output = Path(train_cfg.OUTPUT_DIR)
    arguments = ["--config-file", config, "--num-gpus", "0"]
    train_net.main([*arguments, "SOLVER.MAX_ITER", "2", "SOLVER.EMA_DECAY", "0.5"])
    first = torch.load(output / "model_final.pth", weights_only=True)
    assert first["iteration"] == 1
    train_net.main([*arguments, "--resume", "--opts", "SOLVER.MAX_ITER", "4", "SOLVER.EMA_DECAY", "0.5"])
    second = torch.load(output / "model_final.pth", weights_only=True)
    assert second["iteration"] == 3
    assert not torch.equal(first["model"]["head.bbox_pred.weight"], second["model"]["head.bbox_pred.weight"])
    results = output / "inference" / train_cfg.DATASETS.TEST[0] / "coco_instances_results.json"
    # A run that is complete only evaluates.
    results.unlink()
    train_net.main([*arguments, "--resume"])
    assert results.is_file()
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 3
    results.unlink()
    train_net.main([*arguments, "--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth")])
    assert results.is_file()
    assert (output / "config.yaml").is_file() and (output / "log.txt").is_file()
    digest = hashlib.sha256((output / "model_final.pth").read_bytes()).hexdigest()
    table = json.loads((output / "result_table.json").read_text())
    assert table["weights"]["MODEL.WEIGHTS"]["sha256"] == digest and table["config_file"] == config
    assert set(table["results"][train_cfg.DATASETS.TEST[0]]["bbox"]) > {"AP", "AP50"}
    # What is resumed is not what the config names.
    train_net.main([*arguments, "--eval-only", "--resume", "MODEL.WEIGHTS", "elsewhere.pth"])
    table = json.loads((output / "result_table.json").read_text())
    assert table["weights"] == {"checkpoint": {"file": str(output / "model_final.pth"), "sha256": digest}}


def test_eval_draws_a_sheet_beside_the_detections(train_net, train_cfg, tmp_path):
    """The fixture puts the loggers back."""
    config = write_config(train_cfg, tmp_path / "config.yaml")
    words = ["eval", "--config-file", config, "--num-gpus", "0", "--sheet", "MODEL.WEIGHTS", "random"]
    assert main(words) == 0
    folder = Path(train_cfg.OUTPUT_DIR) / "inference" / train_cfg.DATASETS.TEST[0]
    assert sorted(path.name for path in folder.iterdir()) == ["coco_instances_results.json", "sheet.jpg"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["DATASETS.TRAIN", "('nowhere',)"], "nowhere"),
        (["MODEL.WEIGHTS", "/missing/weights.pth"], "/missing/weights.pth"),
        (["SOLVER.EMA_DECAY", "2.0"], "SOLVER.EMA_DECAY"),
        (["SOLVER.ITERATIONS", "3"], "SOLVER.ITERATIONS"),
    ],
)
def test_wrong_input_ends_in_one_line(train_net, train_cfg, tmp_path, options, message, capsys):
    config = write_config(train_cfg, tmp_path / "config.yaml")
    with pytest.raises(SystemExit) as exit_info:
        train_net.main(["--config-file", config, "--num-gpus", "0", *options])
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_set_that_fails_is_a_row_and_the_others_are_written_at_once(
    train_net, train_cfg, tmp_path, monkeypatch, capsys
):
    """Of three sets the second has no category; when it fails, the result of the first is in its file."""
    good = train_cfg.DATASETS.TEST[0]
    source = MetadataCatalog.get(good)
    content = json.loads(Path(source.json_file).read_text())
    names = [f"{tmp_path.name}_{part}" for part in ("blank", "broken", "last")]
    blank = [{**content["categories"][0], "name": "  "}, *content["categories"][1:]]
    for name, categories in zip(names, (blank, [], content["categories"])):
        content["categories"] = categories
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_grounding(name, tmp_path / f"{name}.json", source.image_root)
        content = json.loads(Path(source.json_file).read_text())
    tables = []
    write_text = write_result_table.__globals__["write_text"]

    def keep(path, text):
        tables.append(json.loads(text)) if path.endswith(".json") else None
        write_text(path, text)

    monkeypatch.setitem(write_result_table.__globals__, "write_text", keep)
    config = write_config(train_cfg, tmp_path / "config.yaml")
    command = ["--config-file", config, "--num-gpus", "0", "--eval-only", "DATASETS.TEST", str(tuple(names))]
    with pytest.raises(SystemExit) as error:
        train_net.main([*command, "MODEL.WEIGHTS", "random"])
    assert (
        "expected 3 datasets that can be evaluated, found 1 that failed" in str(error.value) + capsys.readouterr().err
    )
    assert [sum(bool(one) for one in table["results"].values()) for table in tables] == [1, 1, 2]
    assert [list(table["failed"]) for table in tables] == [[], [names[1]], [names[1]]]
    text = (Path(train_cfg.OUTPUT_DIR) / "result_table.md").read_text()
    assert f"| {names[1]} | failed: {tmp_path / names[1]}.json: categories: expected at least one" in text
    assert f"| {names[0]} |" in text and f"| {names[2]} |" in text


def test_missing_data_end_an_evaluation_before_it_begins(train_net, train_cfg, tmp_path, monkeypatch):
    config = write_config(train_cfg, tmp_path / "config.yaml")
    name = "odinw_pothole_test"
    monkeypatch.setitem(vars(MetadataCatalog.get(name)), "json_file", str(tmp_path / "odinw/pothole/x.json"))
    with pytest.raises(SystemExit) as exit_info:
        train_net.main(["--config-file", config, "--num-gpus", "0", "--eval-only", "DATASETS.TEST", f"('{name}',)"])
    assert f"'{name}': json_file {tmp_path / 'odinw/pothole/x.json'} does not exist" in exit_info.value.code
    assert not (Path(train_cfg.OUTPUT_DIR) / "inference").exists()


def train_on(folder, arguments):
    """What each process does: a run that knows its dataset by the paths of its files."""
    register_coco_grounding("one_size", f"{folder}/annotations.json", folder)
    train(arguments)


@pytest.mark.parametrize("start", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(train_net, tiny_cfg, tmp_path, monkeypatch, start):
    # Padding would differ between the batches of the runs if the images had different sizes.
    (tmp_path / "drawn").mkdir()
    draw_dataset(tmp_path / "drawn", sizes=((96, 64),))
    tiny_cfg.merge_from_list(
        [
            *("SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 1e-6, "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0),
            *("SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.EMA_DECAY", 0.9, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False),
            # Without randomness in the model both runs see the same numbers.
            *("MODEL.SWIN.DROP_PATH_RATE", 0.0, "MODEL.FPN.DROP_BLOCK_PROB", 0.0),
            *("MODEL.GLIPV2.FUSION.DROPOUT", 0.0, "MODEL.TEXT_ENCODER.DROPOUT", 0.0),
        ]
    )
    config = write_config(tiny_cfg, tmp_path / "config.yaml")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begin = torch.multiprocessing.start_processes
    monkeypatch.setattr("torch.multiprocessing.start_processes", partial(begin, start_method=start))
    monkeypatch.setattr("glipv2_d2.engine.runs.train", partial(train_on, str(tmp_path / "drawn")))
    options = ["DATASETS.TRAIN", "('one_size',)", "DATASETS.TEST", "('one_size',)"]
    for processes in ("0", "2"):
        arguments = ["--config-file", config, "--num-gpus", processes, "--dist-url", "auto", *options]
        train_net.main([*arguments, "OUTPUT_DIR", str(tmp_path / processes)])
    one, two = (read_metrics(tmp_path / processes) for processes in ("0", "2"))
    for name in ("total_loss", "loss_grounding", "loss_box_reg", "loss_centerness"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4), name
    weights = torch.load(tmp_path / "2" / "model_final.pth", weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert (tmp_path / "2" / "inference" / "one_size" / "coco_instances_results.json").is_file()
