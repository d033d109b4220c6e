import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from rich.console import Console


@pytest.fixture
def make_demo(load_tool):
    return load_tool("make_demo")


def test_half_written_lines_of_the_metrics_are_left_out(make_demo, tmp_path):
    lines = ['{"iteration": 19, "total_loss": 2.0}', '{"iteration": 3', '{"data": 1}', '{"iteration": 39}', "{"]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert [record["iteration"] for record in make_demo.read_metrics(tmp_path)] == [19, 39]
    assert make_demo.read_metrics(tmp_path / "nothing") == []


def test_the_last_result_of_a_split_counts_and_nan_is_zero(make_demo, tmp_path):
    results = [(10.0, 20.0, 5.0), (30.123, 50.0, math.nan)]
    keys = [f"stampworld_val/bbox/{name}" for name in ("AP", "AP50", "AP75")]
    records = [{"iteration": i, **dict(zip(keys, values))} for i, values in enumerate(results)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, records)))
    assert make_demo.split_results(tmp_path, "stampworld_val") == {"bbox": {"AP": 30.12, "AP50": 50.0, "AP75": 0.0}}


@pytest.mark.parametrize(("top", "recall"), [(1, 33.33), (2, 66.67)])
def test_recall_counts_objects_under_the_best_boxes_whatever_their_name(make_demo, tmp_path, top, recall):
    truth = {
        "images": [{"id": 1}, {"id": 2}, {"id": 3}],
        "annotations": [
            {"image_id": 1, "bbox": [0, 0, 10, 10]},
            {"image_id": 1, "bbox": [50, 50, 10, 10]},
            {"image_id": 2, "bbox": [0, 0, 10, 10]},
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    predictions = [
        {"image_id": 1, "bbox": [0, 0, 10, 9], "score": 0.9, "category_id": 7},
        {"image_id": 1, "bbox": [51, 50, 10, 10], "score": 0.5, "category_id": 1},
        {"image_id": 2, "bbox": [8, 8, 10, 10], "score": 0.9, "category_id": 1},
    ]
    assert make_demo.box_recall(predictions, tmp_path / "val.json", top) == recall


def test_updates_are_those_of_the_keys_else_of_the_config(make_demo):
    assert [make_demo.num_updates(make_demo.RUNS[name]) for name in ("demo", "full")] == [700, 4800]


def test_every_world_of_a_run_is_made_trained_on_and_tested(make_demo, tmp_path, monkeypatch):
    """The steps are stand-ins; of the splits, those that a world has are tested, by the names of their datasets."""
    truth = {
        "categories": [{"id": 1, "name": "yak"}],
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}],
    }
    commands, drawn_from = [], []

    def prepare(world, options, environment):
        folder = Path(options[options.index("--output") + 1]) / "annotations"
        folder.mkdir(parents=True)
        for split in {"stampworld": ("val", "val_novel"), "wideworld": ("val_names",)}[world]:
            (folder / f"{split}.json").write_text(json.dumps(truth))
        return world

    def train(command, output, environment, max_iter):
        commands.append((command, max_iter))
        output.mkdir()
        record = {"iteration": max_iter - 1, "total_loss": 2.0}
        for dataset in ("stampworld_val", "stampworld_val_novel", "wideworld_val_names"):
            record |= {f"{dataset}/bbox/{name}": 10.0 for name in ("AP", "AP50", "AP75")}
            (output / "inference" / dataset).mkdir(parents=True)
            found = [{"image_id": 1, "bbox": [0, 0, 10, 10], "score": 0.125, "category_id": 1}]
            found += [{**found[0], "score": 0.06}]
            (output / "inference" / dataset / "coco_instances_results.json").write_text(json.dumps(found))
        (output / "metrics.json").write_text(json.dumps(record) + "\n")

    def draw_splits(config, weights, data, scores, output, per_split):
        drawn_from.append(scores)
        return []

    for name, step in {"prepare": prepare, "train": train, "draw_splits": draw_splits}.items():
        monkeypatch.setattr(make_demo, name, step)
    output = tmp_path / "words"
    monkeypatch.setattr("sys.argv", ["make_demo", "--words", "--output", str(output), "--max-iter", "3"])
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    make_demo.main()
    ((command, max_iter),) = commands
    assert max_iter == 3 and "configs/pretrain/glipv2_micro_words.yaml" in command
    assert command[command.index("DATASETS.TEST") + 1] == (
        "('stampworld_val', 'stampworld_val_novel', 'wideworld_val_names')"
    )
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["world"] == "stampworld, wideworld"
    # A second box of the same object is a false one.
    assert drawn_from == [dict.fromkeys(["val", "val_novel", "wideworld_val_names"], 0.125)]
    for split in ("val", "val_novel", "wideworld_val_names"):
        assert (metrics[split]["bbox"]["AP"], metrics[split]["names"], metrics[split]["recall10"]) == (10.0, 1, 100.0)


def test_a_terminal_of_80_columns_shows_whole_names_of_splits(make_demo, monkeypatch, capsys, tmp_path):
    results = {"AP": 100.0, "AP50": 100.0, "AP75": 100.0}
    metrics = {"bbox": results, "names": 1000, "recall10": 100.0, "recall100": 100.0, "drawn_from": 0.5}
    splits = [f"{world}_{split}" for world, names in make_demo.SPLITS.items() for split in names]
    monkeypatch.setattr(make_demo, "CONSOLE", Console(width=80, highlight=False))
    make_demo.report(dict.fromkeys(splits, metrics), {}, splits, tmp_path, [])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == splits
    assert max(map(len, rows)) <= 80


@pytest.mark.parametrize(("score", "drawn"), [(0.2, ["dog"]), (0.05, ["dog", "yak"]), (0.5, [])])
def test_drawn_is_the_best_name_of_each_object_from_a_score_on(make_demo, score, drawn):
    """The second name stands on the first object."""
    found = Instances((50, 50))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 20, 20], [1, 0, 20, 20], [30, 30, 50, 50]]))
    found.scores, found.pred_classes = torch.tensor([0.4, 0.3, 0.1]), torch.tensor([0, 1, 2])
    kept = make_demo.best_per_object(found, score).pred_classes
    assert [["dog", "cat", "yak"][row] for row in kept.tolist()] == drawn
