import json
import math

import pytest


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
    assert make_demo.split_results(tmp_path, "val") == {"bbox": {"AP": 30.12, "AP50": 50.0, "AP75": 0.0}}


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
