import hashlib
import json

import pytest
from detectron2.config import get_cfg
from detectron2.utils import comm

from glipv2_d2 import add_glipv2_config
from glipv2_d2.data.datasets.odinw import ODINW_13, ODINW_SETS
from glipv2_d2.evaluation.result_tables import summarize, warn_of_earlier_results, write_result_table

CATS = {"bbox": {"AP": 41.25, "AP50": 60.0, "APs": float("nan"), "AP-cat": 41.25}}
PHRASES = {"any_box": {"R@1": 85.7}, "merged": {"R@1": 80.0}}


def table_of(folder, results, *options, **arguments):
    """The two files of an evaluation, read again."""
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_list(["DATASETS.TEST", tuple(results), *options])
    write_result_table(cfg, results, str(folder), **arguments)
    return json.loads((folder / "result_table.json").read_text()), (folder / "result_table.md").read_text()


def test_two_sets_make_a_row_each_in_the_table_of_their_task(tmp_path):
    found = {"first_set": CATS, "second_set": {"bbox": {"AP": 20.0, "AR": 50.0}, **PHRASES}}
    content, text = table_of(tmp_path, found, config_file="configs/a.yaml")
    assert content["results"]["first_set"] == {"bbox": {"AP": 41.25, "AP50": 60.0, "APs": None, "AP-cat": 41.25}}
    assert content["results"]["second_set"]["any_box"] == {"R@1": 85.7}
    assert content["config_file"] == "configs/a.yaml" and content["summary"] == {}
    tables = text.split("## ")
    assert tables[1] == (
        "bbox\n\n"
        "| dataset | AP | AP50 | APs | AR |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| first_set | 41.25 | 60.00 | - | - |\n"
        "| second_set | 20.00 | - | - | 50.00 |\n\n"
    )
    assert tables[2] == "any_box\n\n| dataset | R@1 |\n| --- | --- |\n| second_set | 85.70 |\n\n"
    assert tables[3].startswith("merged") and len(tables) == 4
    assert "Config: `configs/a.yaml`" in tables[0]


def test_a_single_set_and_one_without_results_have_their_places(tmp_path):
    content, text = table_of(tmp_path, {"alone": PHRASES})
    assert content["results"] == {"alone": PHRASES} and "| alone | 80.00 |" in text
    content, _ = table_of(tmp_path, {"alone": PHRASES, "nothing": {}})
    assert content["results"]["nothing"] == {}


def test_a_set_that_failed_is_a_row_with_the_reason_and_one_that_has_not_run_is_none(tmp_path):
    found = {"broken": {}, "first_set": CATS, "later": {}}
    content, text = table_of(tmp_path, found, failures={"broken": "boxes.json: expected |json|,\nfound 'x'"})
    assert content["failed"] == {"broken": "boxes.json: expected |json|,\nfound 'x'"}
    assert (
        "| first_set | 41.25 | 60.00 | - |\n| broken | failed: boxes.json: expected /json/, found 'x' | - | - |\n"
        in text
    )
    assert "later" not in text
    _, text = table_of(tmp_path, {"broken": {}}, failures={"broken": "why"})
    assert "## results\n\n| dataset | - |\n| --- | --- |\n| broken | failed: why |\n" in text


def test_mean_and_median_are_those_of_the_sets():
    results = {name: {"bbox": {"AP": value, "AP-cat": value, "APs": small}} for name, value, small in
               (("a", 10.0, 1.0), ("b", 20.0, None), ("c", 60.0, 3.0), ("d", 99.0, 9.0))}  # fmt: skip
    assert summarize(results, ["a", "b", "c"]) == {
        "mean": {"bbox": {"AP": 30.0, "APs": None}},
        "median": {"bbox": {"AP": 20.0, "APs": None}},
    }
    assert summarize(results, ["a", "c"])["median"] == {"bbox": {"AP": 35.0, "APs": 2.0}}
    # A set without the task has no value.
    assert summarize({**results, "e": {}}, ["a", "e"])["mean"] == {"bbox": {"AP": None, "APs": None}}


@pytest.mark.parametrize(
    ("keys", "split", "expected"),
    [
        (ODINW_13, "test", ["odinw13 test"]),
        (ODINW_13, "val", ["odinw13 val"]),
        (tuple(ODINW_SETS), "test", ["odinw13 test", "odinw35 test"]),
        (ODINW_13[1:], "test", []),
    ],
)
def test_a_whole_suite_has_mean_and_median(tmp_path, keys, split, expected):
    results = {f"odinw_{key}_{split}": {"bbox": {"AP": float(row)}} for row, key in enumerate(keys)}
    content, text = table_of(tmp_path, results)
    assert list(content["summary"]) == expected
    for title in expected:
        num_sets = 13 if title.startswith("odinw13") else 35
        values = sorted(row for row, key in enumerate(keys) if num_sets == 35 or key in ODINW_13)
        mean, median = sum(values) / num_sets, values[num_sets // 2]
        assert content["summary"][title]["mean"]["bbox"]["AP"] == pytest.approx(mean)
        assert f"| mean of {title} | {mean:.2f} |\n| median of {title} | {median:.2f} |" in text


def test_weights_are_named_with_their_hash(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    (tmp_path / "base.pth").write_bytes(b"base")
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("weights", "base")}
    weights, base = str(tmp_path / "w.pth"), str(tmp_path / "base.pth")
    content, text = table_of(tmp_path, {"a": PHRASES}, "MODEL.WEIGHTS", weights)
    assert content["weights"] == {"MODEL.WEIGHTS": {"file": weights, "sha256": expected["weights"]}}
    assert f"MODEL.WEIGHTS: `{weights}`, sha256 {expected['weights']}\n" in text
    options = ("MODEL.GLIPV2.TUNING.WEIGHTS", weights, "MODEL.GLIPV2.TUNING.INTERPOLATE_WITH", base)
    content, text = table_of(tmp_path, {"a": PHRASES}, *options, "MODEL.GLIPV2.TUNING.INTERPOLATION", 0.75)
    assert content["weights"]["MODEL.WEIGHTS"] == {"file": "", "sha256": None}
    assert content["weights"]["MODEL.GLIPV2.TUNING.WEIGHTS"]["sha256"] == expected["weights"]
    share = {"file": base, "sha256": expected["base"], "share_of_others": 0.75}
    assert (
        content["weights"]["MODEL.GLIPV2.TUNING.INTERPOLATE_WITH"] == share
        and "0.75 of MODEL.WEIGHTS, the rest of this" in text
    )
    assert "MODEL.WEIGHTS: `none`, no file" in text
    content, _ = table_of(tmp_path, {"a": PHRASES}, *options, checkpoint=base)
    assert content["weights"] == {"checkpoint": {"file": base, "sha256": expected["base"]}}


def test_the_protocol_stands_beside_the_numbers(tmp_path):
    options = ("TEST.DETECTIONS_PER_IMAGE", 300, "MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT", 200)
    content, text = table_of(tmp_path, {"a": PHRASES}, *options, "MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE", 40)
    protocol = content["protocol"]
    assert protocol["TEST.DETECTIONS_PER_IMAGE"] == 300 and protocol["MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT"] == 200
    assert protocol["INPUT.MIN_SIZE_TEST"] == 800 and protocol["TEST.LVIS_PROTOCOLS"] == ["standard", "fixed"]
    assert "`MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE 40`" in text


def test_protocols_that_datasets_bring_stand_beside_the_numbers(tmp_path):
    key = "MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE"
    content, text = table_of(tmp_path, {"lvis_v1_minival": CATS})
    assert content["protocol"][key] == 40 and content["protocol"]["TEST.DETECTIONS_PER_IMAGE"] == 0
    content, text = table_of(tmp_path, {"coco_2017_val": CATS, "lvis_v1_minival": CATS})
    assert content["protocol"][key] == {"coco_2017_val": 0, "lvis_v1_minival": 40}
    assert "`TEST.DETECTIONS_PER_IMAGE coco_2017_val 100, lvis_v1_minival 0`" in text
    assert content["protocol"]["TEST.LVIS_BOXES"] == "official"


def test_text_of_the_user_does_not_break_the_markdown(tmp_path):
    _, text = table_of(tmp_path, {"a": PHRASES}, config_file="a`b\nc.yaml")
    assert "Config: `a'b c.yaml`\n" in text


def test_results_of_an_earlier_evaluation_are_not_replaced_without_a_word(tmp_path, caplog):
    warn_of_earlier_results(str(tmp_path))
    assert not caplog.records
    table_of(tmp_path, {"first_set": CATS})
    warn_of_earlier_results(str(tmp_path))
    assert f"{tmp_path}/result_table.md is of an earlier evaluation and is replaced" in caplog.text


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    cfg = get_cfg()
    add_glipv2_config(cfg)
    write_result_table(cfg, {}, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
