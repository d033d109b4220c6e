"""The rows of published figures: their commands, their files, and how results are compared with them."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS
from official_layouts import register_below, write_official_data
from published_rows import DATA_FILES, MODELS, NUM_IMAGES, ROWS, SUITES, Figure, KnownFile, Margin, address_of

from glipv2_d2.data.datasets.odinw import ODINW_13
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.engine.command_line import build_config
from glipv2_d2.modeling import build_model
from glipv2_d2.program.config_arguments import parse_train_arguments
from glipv2_d2.prompts.protocols import chunk_size_of, limits_of

ROOT = Path(__file__).parents[2]
ZOO = (ROOT / "docs" / "MODEL_ZOO.md").read_text("utf-8")


@pytest.fixture
def tool(load_tool):
    return load_tool("reproduce")


# --- the table


def test_the_model_zoo_shows_the_table_of_rows(tool):
    assert tool.list_rows(ROWS) in ZOO


def value(row, metric, source):
    """The figure of a row, by the start of the name of its source."""
    (found,) = [one.value for one in ROWS[row] if one.metric == metric and one.source.startswith(source)]
    return found


def test_other_tables_of_the_model_zoo_have_the_figures_of_the_rows():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ZOO.splitlines() if line.startswith("|")]
    by_file = {row[2]: row[3] for row in rows if row[0].startswith("`glip/") and len(row) == 5}
    shown = dict(
        pair for files, figures in by_file.items() for pair in zip(files.split(", "), map(float, figures.split(", ")))
    )
    expected = {
        f"`{MODELS[name].file.path}`": value(f"{name}/coco", "bbox/AP", "README")
        for name in ("glip_t_a", "glip_t_b", "glip_t_c", "glip_t", "glip_l")
    }
    assert shown == expected
    few_shot = {row[0].split(",")[0]: row[1] for row in rows if len(row) == 8}
    assert float(few_shot["GLIP-T"]) == value("glip_t/odinw13", "bbox/AP", "GLIPv2")
    assert float(few_shot["GLIP-L"]) == value("glip_l/odinw13", "bbox/AP", "GLIP,")


@pytest.mark.parametrize(
    ("model", "coco", "last", "best", "odinw"),
    # As the model zoo of the official README has them; APr of LVIS minival with the last and the best checkpoint.
    [
        ("glip_t_a", 42.9, None, 14.2, 28.7),
        ("glip_t_b", 44.9, None, 13.5, 33.2),
        ("glip_t_c", 46.7, 14.3, 17.7, 44.4),
        ("glip_t", 46.6, 17.6, 20.1, 42.7),
        ("glip_l", 51.4, 29.3, 30.1, 51.2),
    ],
)
def test_figures_of_the_official_readme(model, coco, last, best, odinw):
    assert value(f"{model}/coco", "bbox/AP", "README") == coco
    assert value(f"{model}/odinw13", "bbox/AP", "README") == odinw
    if last is None:
        assert value(f"{model}/lvis_minival", "bbox_fixed/APr", "GLIP") == best
    else:
        assert value(f"{model}/lvis_minival", "bbox_fixed/APr", "README") == last
        assert value(f"{model}_lvisbest/lvis_minival", "bbox_fixed/APr", "README") == best


@pytest.mark.parametrize(
    ("model", "per_set"),
    # "Official" in mmdetection's table of ODinW-35, in the order of its rows: the thirteen sets of ODinW-13.
    [
        ("glip_t_a", [0.122, 0.175, 0.709, 0.010, 0.502, 0.569, 0.512, 0.339, 0.010, 0.074, 0.253, 0.372, 0.566]),
        ("glip_t_b", [0.110, 0.171, 0.683, 0.006, 0.450, 0.279, 0.540, 0.501, 0.025, 0.288, 0.338, 0.475, 0.547]),
        ("glip_t_c", [0.130, 0.182, 0.752, 0.508, 0.497, 0.712, 0.565, 0.504, 0.101, 0.244, 0.302, 0.510, 0.534]),
    ],
)
def test_means_over_thirteen_of_the_35_sets(model, per_set):
    assert value(f"{model}/odinw13_val", "bbox/AP", "official code") == round(100 * sum(per_set) / 13, 1)


def test_figures_of_odinw_are_of_the_split_that_their_source_took():
    """The configs of mmdetection, whose table has the figures of the official code, name the validation splits."""
    found = {
        (one.source.startswith("official code"), one.data, SUITES[row.split("/")[1]].is_of_val)
        for row, figures in ROWS.items()
        for one in figures
        if one.data.startswith("odinw13")
    }
    assert found == {(True, "odinw13 val", True), (False, "odinw13 test", False)}


@pytest.mark.parametrize(
    ("row", "port"),
    # The other rows of mmdetection's table of LVIS minival where it has the official code beside its own: APr and AP.
    [("glip_t_c/lvis_minival", (14.4, 25.2)), ("glip_l/lvis_minival", (27.9, 36.1))],
)
def test_the_margin_of_a_figure_of_the_port_is_what_separates_it_from_the_official_code(row, port):
    official = value(row, "bbox_fixed/APr", "README"), value(row, "bbox_fixed/AP", "official code")
    distance = max(abs(one - other) for one, other in zip(official, port, strict=True))
    margins = [one.margin for row in ROWS if "lvis" in row for one in ROWS[row] if one.source == "port"]
    assert margins and all(distance <= margin.points for margin in margins)


def test_figures_that_decide_come_first_and_say_why():
    for row, figures in ROWS.items():
        decides = [one.margin is not None for one in figures]
        assert figures and decides == sorted(decides, reverse=True), row
        assert all(one.margin is None or (0 < one.margin.points <= 2 and one.margin.reason) for one in figures)
        model, suite = row.split("/")
        assert model in MODELS and suite in SUITES
    assert all(re.fullmatch("[0-9a-f]{64}", one.file.sha256 or "0" * 64) for one in MODELS.values())


def with_long_ones(rows):
    """Rows as parameters, slow but for the first one of each model and of each suite."""
    first = {row.split("/")[part]: row for part in (0, 1) for row in reversed(rows)}.values()
    return [pytest.param(row, marks=[] if row in first else pytest.mark.slow) for row in rows]


@pytest.mark.parametrize("row", with_long_ones(ROWS))
def test_the_command_of_a_row_has_the_protocol_of_its_figures(tool, row):
    arguments = tool.parse([row])
    command = tool.command_of(row, arguments, Path("out"))
    parsed = parse_train_arguments(command[1:])
    cfg = build_config(str(ROOT / parsed.config_file), [*parsed.opts, "MODEL.DEVICE", "cpu"])
    model, suite = row.split("/")
    assert parsed.eval_only and (ROOT / command[0]).is_file()
    assert cfg.MODEL.WEIGHTS.endswith(MODELS[model].file.path)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333)
    assert (cfg.MODEL.SWIN.EMBED_DIM == 192) == model.startswith("glip_l")
    assert cfg.MODEL.GLIPV2.FUSION.ENABLED == (model != "glip_t_a")
    assert cfg.INPUT.PROMPT.DATASET_TEXTS == (suite != "odinw13_val_names")
    test = cfg.MODEL.GLIPV2.TEST
    assert (test.SCORE_THRESH, test.TOPK_CANDIDATES, test.NMS_THRESH, test.SCORE_AGGREGATION) == (
        0.05,
        1000,
        0.6,
        "mean",
    )
    assert cfg.INPUT.PROMPT.SEPARATOR == ". " and not test.SHORTLIST and not cfg.TEST.AUG.ENABLED
    data = set(cfg.DATASETS.TEST)
    protocol = (40, 300, 0) if suite == "lvis_minival" else (0, 0, 100)
    assert {(chunk_size_of(cfg, name), *limits_of(cfg, name)) for name in data} == {protocol}
    assert cfg.TEST.LVIS_BOXES == "official"
    assert data == {
        "coco": {"coco_2017_val"},
        "lvis_minival": {"lvis_v1_minival"},
        "flickr30k": {"flickr30k_val", "flickr30k_test"},
    }.get(suite, {f"odinw_{key}_{split_of(suite)}" for key in ODINW_13})
    # A figure is of data that the row tests on.
    assert {one.data for one in ROWS[row]} <= {*data, f"odinw13 {split_of(suite)}"}


def split_of(suite):
    return "val" if "_val" in suite else "test"


def test_numbers_of_images_are_of_tested_data(tool):
    tested = {name for row in ROWS for name in tool.datasets_of(row)}
    assert set(NUM_IMAGES) == tested


def test_patterns_choose_rows_and_mistyped_ones_are_named(tool, capsys):
    assert tool.parse(["glip_l/*", "*/coco"]).rows == [row for row in ROWS if "glip_l/" in row or "/coco" in row]
    assert len(tool.parse(["--list"]).rows) == len(ROWS)
    for words, message in ((["glip_t_d/coco"], "found 'glip_t_d/coco'; did you mean"), ([], "found none; --list")):
        with pytest.raises(SystemExit):
            tool.parse(words)
        assert message in capsys.readouterr().err


# --- comparison


MARGIN = Margin(0.3, "because")


@pytest.mark.parametrize(
    ("measured", "margin", "word"),
    [
        (46.4, MARGIN, "pass"),
        (47.0, MARGIN, "pass"),
        (46.39, MARGIN, "fail"),
        (47.01, MARGIN, "fail"),
        (None, MARGIN, "fail"),
        (10.0, None, "compared"),
    ],
)
def test_a_result_passes_within_the_margin_on_both_sides(tool, measured, margin, word):
    figure = Figure("x", "bbox/AP", 46.7, "README", margin)
    table = {"results": {"x": {"bbox": {"AP": measured}}}, "summary": {}}
    found = tool.compare(figure, table)
    assert (found["verdict"], found["measured"], found["published"]) == (word, measured, 46.7)
    assert tool.compare(figure, table, is_smoke=True)["verdict"] == "ran"


def test_a_figure_of_a_suite_is_its_mean(tool):
    figure = Figure("odinw13 test", "bbox/AP", 42.6, "README", MARGIN)
    table = {"results": {}, "summary": {"odinw13 test": {"mean": {"bbox": {"AP": 42.5}}, "median": {}}}}
    assert tool.compare(figure, table)["verdict"] == "pass"


def test_one_figure_that_fails_makes_the_row_fail(tool):
    verdicts = [{"verdict": word} for word in ("pass", "compared")]
    assert tool.verdict(verdicts, is_published=True) == "pass"
    assert tool.verdict([*verdicts, {"verdict": "fail"}], is_published=True) == "fail"
    for is_published in (True, False):
        assert tool.verdict(verdicts[1:], is_published=is_published) == "compared"


# --- files


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A folder of all datasets with two images in each, and the datasets registered there."""
    root = tmp_path / "official data"
    write_official_data(root)
    register_below(root, monkeypatch)
    return root


@pytest.fixture
def weights(tmp_path):
    """A folder with a file for every model, which all have the same few bytes."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for model in MODELS.values():
        (folder / model.file.path).write_bytes(b"weights")
    return folder


def test_a_row_that_lacks_files_says_which_and_where_to_get_them(tool, tmp_path, monkeypatch, capsys):
    register_below(tmp_path, monkeypatch)
    words = ["--weights", str(tmp_path), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        tool.main(["glip_t_c/coco", "glip_t_c/lvis_minival", "glip_t_c/flickr30k", "glip_t_c/odinw13", *words])
    assert caught.value.code == 1
    text = capsys.readouterr().out
    for name in ("glip_tiny_model_o365_goldg.pth", "instances_val2017.json", "lvis_v1_minival", "flickr30k/flickr30k"):
        assert name in text
    for address in ("GLIPModel/GLIP", "annotations_trainval2017.zip", "zips/val2017.zip", "flickr30k_entities"):
        assert address in text
    assert all(f"odinw_{key}_test" in text for key in ODINW_13)
    report = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [row["verdict"] for row in report] == ["missing"] * 4
    assert "| glip_t_c/coco | missing: weights: expected" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("part", ["Annotations", "Sentences", "val.txt"])
def test_a_part_of_flickr30k_entities_that_is_missing_is_named(tool, official, weights, part):
    (official / "flickr30k/flickr30k" / part).rename(official / "elsewhere")
    lacks = tool.missing("glip_t/flickr30k", weights)
    # Both splits have the folders, and each a list of its own.
    assert len(lacks) == (1 if part == "val.txt" else 2)
    assert all(part in line and "https://github.com/BryanPlummer/flickr30k_entities" in line for line in lacks)


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("odinw_EgoHands_generic_test", "EgoHands.zip"),
        ("odinw_AerialMaritimeDrone_large_val", "AerialMaritimeDrone.zip"),
        ("odinw_pistols_test", "pistols.zip"),
    ],
)
def test_missing_sets_of_odinw_name_their_archive(name, archive):
    assert address_of(name).startswith(f"https://huggingface.co/GLIPModel/GLIP/resolve/main/odinw_35/{archive}, ")


def test_a_check_names_files_that_are_not_the_published_ones(tool, official, weights, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(["--check", "glip_t_c/coco", "glip_l_lvisbest/lvis_minival", "--weights", str(weights)])
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["WRONG", "WRONG", "WRONG", "good", "WRONG", "WRONG"]
    assert "o365_goldg.pth: expected 3,710,104,213 bytes, found 7; get it again from" in lines[0]
    assert "instances_val2017.json: expected 19,987,840 bytes" in lines[1]
    assert "coco_2017_val: expected 5000 images that can be used, found 2" in lines[2]
    # sha256sum of "weights"
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert lines[3].endswith(f"7 bytes, SHA-256 {digest}; no published sum is known")
    assert "lvis_v1_minival_inserted_image_name.json: expected SHA-256 02301f6c" in lines[4]
    assert lines[5] == "WRONG: lvis_v1_minival: expected 4809 images that can be used, found 2"


def test_a_check_names_what_several_rows_lack_once(tool, tmp_path, monkeypatch, capsys):
    register_below(tmp_path, monkeypatch)
    with pytest.raises(SystemExit):
        tool.main(["--check", "glip_t_c/odinw13", "glip_t/odinw13", "--weights", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    # The weights of each model, and the 13 sets once.
    assert len(set(lines)) == len(lines) == 1 + 13 + 1 + 1
    assert lines[-1] == "missing: glip_t/odinw13: 13 as above"


def test_one_folder_with_all_images_of_flickr30k_and_links_to_it_serves_both_splits(tool, official):
    """As datasets/README.md says; the images are distributed in one folder."""
    images = official / "flickr30k/flickr30k_images"
    for split in ("val", "test"):
        for image in (images / split).iterdir():
            image.rename(images / image.name)
        (images / split).rmdir()
        assert f"ln -s . {split}" in (ROOT / "datasets/README.md").read_text("utf-8")
        (images / split).symlink_to(".")
    tool.count_images.cache_clear()
    assert [tool.count_images(name) for name in tool.datasets_of("glip_t/flickr30k")] == [2, 2]


@pytest.mark.parametrize(("missing", "number"), [("", 2), ("image", 1), ("Sentences", 1), ("Annotations", 1)])
def test_an_image_of_flickr30k_in_which_nothing_is_to_be_found_is_not_missing(tool, official, missing, number):
    """Its only phrases are of the scene; but an image whose files are not there is missing."""
    entities = official / "flickr30k/flickr30k"
    (entities / "Sentences/0.txt").write_text("It is [/EN#2/scene a road] .\n")
    paths = {
        "image": official / "flickr30k/flickr30k_images/val/0.jpg",
        "Sentences": entities / "Sentences/0.txt",
        "Annotations": entities / "Annotations/0.xml",
    }
    if missing:
        paths[missing].unlink()
    tool.count_images.cache_clear()
    assert tool.count_images("flickr30k_val") == number


def test_a_file_with_the_published_sum_is_good(tool, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert tool.check_file(path, KnownFile("file", "there", 7, digest))[0]
    assert tool.check_file(path, KnownFile("file", "there", None, digest)) == (
        True,
        f"{path}: 7 bytes, the published SHA-256",
    )
    assert not tool.check_file(path, KnownFile("file", "there", 7, "0" * 64))[0]


@pytest.mark.parametrize("suite", ["coco", "lvis_minival", "flickr30k", "odinw13", "odinw13_val"])
def test_small_copies_have_the_first_images_and_their_annotations(tool, official, tmp_path, monkeypatch, suite):
    names = tool.datasets_of(f"glip_t_c/{suite}")
    small = tmp_path / "small"
    assert tool.copy_first_images(names, official, small, 1) == dict.fromkeys(names, 1)
    whole = {name: load_dataset(name) for name in names}
    register_below(small, monkeypatch)
    for name in names:
        records = load_dataset(name)
        # Flickr30K has two captions of each image.
        assert len(records) == (2 if suite == "flickr30k" else 1)
        assert [one["image_id"] for one in records] == [one["image_id"] for one in whole[name]][: len(records)]
        assert all(Path(one["file_name"]).is_symlink() and one["annotations"] for one in records)


# --- running


@pytest.fixture
def run(tool, official, weights, tiny_cfg, config, tmp_path, monkeypatch):
    """Run rows with the tiny model in place of the released ones, in this process; ``calls`` are their commands."""
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0])
    Path(config).write_text(tiny_cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(tiny_cfg).state_dict()}, weights / "tiny.pth")
    for model in MODELS.values():
        (weights / model.file.path).unlink()
        os.link(weights / "tiny.pth", weights / model.file.path)
    monkeypatch.syspath_prepend(str(ROOT))
    train_net = importlib.import_module("train_net")
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    calls = []

    def call(command, log, lock, environment):
        calls.append(command)
        assert command[:2] == ["train_net.py", "--config-file"] and command[2].startswith(f"{CONFIGS.name}/glip/")
        with monkeypatch.context() as patch:
            register_below(Path(environment["DETECTRON2_DATASETS"]), patch)
            train_net.main(["--config-file", config, *command[3:]])

    monkeypatch.setattr(tool, "call", call)

    def main(*words):
        words = [*words, "--weights", str(weights), "--num-gpus", "0", "--output", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as caught:
            tool.main(words)
        return caught.value.code or 0

    main.calls, main.output, main.weights = calls, tmp_path / "out", weights
    return main


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_row_runs_is_compared_and_is_not_done_twice(tool, run, monkeypatch, capsys):
    # Random weights do not give the published AP.
    assert run("glip_t_c/coco") == 1
    result = json.loads((run.output / "full/glip_t_c/coco/result.json").read_text())
    (figure,) = result["figures"]
    assert result["verdict"] == figure["verdict"] == "fail" and figure["published"] == 46.7
    assert figure["measured"] == pytest.approx(0, abs=40)
    text = capsys.readouterr().out
    assert "46.7 published (README): fail, margin 0.3: one decimal is published" in text
    assert "not the published file: 4274770c" in text
    report = (run.output / "report.md").read_text()
    assert "| glip_t_c/coco | fail | coco_2017_val | bbox/AP |" in report and "- one decimal is published" in report
    monkeypatch.setattr(tool, "call", lambda command, *_: run.calls.append(command))
    run("glip_t_c/coco")
    assert len(run.calls) == 1
    assert "coco_2017_val: 2 of 5000 images" in text and "- glip_t_c/coco: coco_2017_val: 2 of 5000 images" in report
    # Another file of this name runs again.
    os.utime(run.weights / MODELS["glip_t_c"].file.path, ns=(1, 1))
    run("glip_t_c/coco")
    assert len(run.calls) == 2
    assert "its files, images or command have changed since its result" in capsys.readouterr().out


def test_a_result_is_of_all_files_and_images_that_it_was_made_of(
    tool, official, weights, tmp_path, monkeypatch, capsys
):
    """A list of Flickr30K is no json; of COCO one image was not there, which is no error of a run."""
    json_file = official / "coco/annotations/instances_val2017.json"
    content = json.loads(json_file.read_text())
    last = content["images"][-1]
    assert {"annotations/instances_val2017.json", "flickr30k/val.txt", "flickr30k/test.txt"} <= {
        "/".join(Path(path).parts[-2:])
        for row in ("glip_t/coco", "glip_t/flickr30k")
        for path in tool.fingerprints(row, weights)
    }
    calls = []

    def call(command, *_):
        folder = Path(command[-1])
        table = {"weights": {"MODEL.WEIGHTS": {"sha256": "0"}}, "summary": {}, "results": {"coco_2017_val": {}}}
        (folder / "result_table.json").write_text(json.dumps(table))
        calls.append(command)

    monkeypatch.setattr(tool, "call", call)
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    image = official / "coco/val2017" / last["file_name"]
    image.rename(tmp_path / "elsewhere")
    for number in (1, 1, 2):
        if number == 2:
            (tmp_path / "elsewhere").rename(image)
        tool.count_images.cache_clear()
        with pytest.raises(SystemExit):
            tool.main(["glip_t/coco", "--weights", str(weights), "--output", str(tmp_path / "out")])
        assert len(calls) == number and f"coco_2017_val: {number} of 5000 images" in capsys.readouterr().out


SUM = MODELS["glip_t"].file.sha256


@pytest.mark.parametrize(
    ("digest", "images", "published", "word"),
    [(SUM, 5000, 46.6, "pass"), ("0", 5000, 46.6, "fail"), (SUM, 4999, 46.6, "fail"), (SUM, 5000, 40.0, "fail")],
)
def test_a_row_passes_with_the_published_files_and_figures_alone(
    tool, official, weights, tmp_path, monkeypatch, digest, images, published, word
):
    """Figures that were mended after a result are compared with it, without another run."""
    calls = []

    def call(command, *_):
        calls.append(command)
        results = {"coco_2017_val": {"bbox": {"AP": 46.5}}}
        table = {"weights": {"MODEL.WEIGHTS": {"sha256": digest}}, "summary": {}, "results": results}
        (Path(command[-1]) / "result_table.json").write_text(json.dumps(table))

    monkeypatch.setattr(tool, "call", call)
    monkeypatch.setattr(tool, "count_images", lambda name: images)
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    for figure in (46.6, published):
        monkeypatch.setitem(tool.ROWS, "glip_t/coco", (Figure("coco_2017_val", "bbox/AP", figure, "README", MARGIN),))
        with pytest.raises(SystemExit) as caught:
            tool.main(["glip_t/coco", "--weights", str(weights), "--output", str(tmp_path / "out")])
    assert (caught.value.code or 0) == (word != "pass")
    (result,) = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert (result["verdict"], len(calls)) == (word, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("row", ROWS)
def test_every_row_runs_on_small_files_in_the_official_folders(run, row, capsys):
    assert run("--smoke", row) == 0
    (result,) = json.loads((run.output / "smoke_report.json").read_text())["rows"]
    assert result["verdict"] == "ran" and set(result["images"].values()) == {2}
    # LVIS has boxes of one common category here.
    undefined = {one["metric"] for one in result["figures"] if one["measured"] is None}
    assert undefined <= {"bbox_fixed/APr", "bbox_fixed/APf"}
    assert "images: " in capsys.readouterr().out
    text = (run.output / "smoke_report.md").read_text()
    assert text.startswith("# Rehearsal on at most 50 images of a dataset: nothing is compared") and "Why" not in text


def test_a_program_that_fails_is_an_error_of_its_row_and_the_others_go_on(
    tool, official, weights, tmp_path, monkeypatch
):
    def fail(command, log, lock, environment):
        raise tool.InputError("log: no memory")

    monkeypatch.setattr(tool, "call", fail)
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        tool.main(["glip_t_a/coco", "glip_t_b/coco", "--weights", str(weights), "--output", str(tmp_path / "out")])
    assert caught.value.code == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [(row["verdict"], row["reason"]) for row in report] == [("error", "log: no memory")] * 2
    assert "| glip_t_b/coco | error: log: no memory |" in (tmp_path / "out" / "report.md").read_text()


def test_known_annotations_lie_in_the_folders_of_the_named_datasets(tool, official):
    paths = {tool._known(path).path for row in ROWS for path in tool.annotation_files(row)}
    assert set(DATA_FILES) <= paths
