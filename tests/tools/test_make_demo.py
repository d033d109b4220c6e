import json
import math
from pathlib import Path

import pytest
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
        "annotations": [{"image_id": 1, "bbox": [0, 0, 10, 10]}],
    }
    commands = []

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
            found = [{"image_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5, "category_id": 1}]
            (output / "inference" / dataset / "coco_instances_results.json").write_text(json.dumps(found))
        (output / "metrics.json").write_text(json.dumps(record) + "\n")

    for name, step in {"prepare": prepare, "train": train, "draw_splits": lambda *_, **__: []}.items():
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
    for split in ("val", "val_novel", "wideworld_val_names"):
        assert (metrics[split]["bbox"]["AP"], metrics[split]["names"], metrics[split]["recall10"]) == (10.0, 1, 100.0)


def test_a_terminal_of_80_columns_shows_whole_names_of_splits(make_demo, monkeypatch, capsys, tmp_path):
    results = {"AP": 100.0, "AP50": 100.0, "AP75": 100.0}
    metrics = {"bbox": results, "names": 1000, "recall10": 100.0, "recall100": 100.0}
    splits = [f"{world}_{split}" for world, names in make_demo.SPLITS.items() for split in names]
    monkeypatch.setattr(make_demo, "CONSOLE", Console(width=80, highlight=False))
    make_demo.report(dict.fromkeys(splits, metrics), {}, splits, tmp_path, [])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("│")] == splits
    assert max(map(len, lines[:-1])) <= 80
