import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from glipv2_d2.engine.run_report import class_table, draw_sheet, plot_confusion, write_report, write_results
from glipv2_d2.evaluation.detection_report import ClassReport, Confusion

TRUTH = {
    "images": [{"id": n, "file_name": f"{n}.png", "height": 60, "width": 80} for n in range(1, 15)],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        for n in range(1, 15)
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}


def report(name, boxes, ap, ap50):
    return ClassReport(name, boxes, ap, ap50, np.full(101, ap50 / 100))


def test_table_of_classes_leaves_classes_without_boxes_out_of_the_mean():
    lines = class_table([report("cat", 3, 40.0, 60.0), report("dog", 0, np.nan, np.nan), report("cow", 1, 10.0, 20.0)])
    assert lines[2:] == [
        "| cat   |     3 |  40.0 |  60.0 |",
        "| dog   |     0 |     - |     - |",
        "| cow   |     1 |  10.0 |  20.0 |",
        "| mean  |     4 |  25.0 |  40.0 |",
    ]


def test_a_bar_in_the_name_of_a_class_ends_no_cell():
    assert class_table([report("on|off", 3, 40.0, 60.0)])[2] == r"| on\|off |     3 |  40.0 |  60.0 |"


def test_results_have_their_form(tmp_path):
    write_results(tmp_path / "results.json", {"bbox": {"AP": 12.34567, "APs": float("nan")}}, 1.234, "out/model.pth")
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "val": {"bbox": {"AP": 12.3457, "APs": None}},
        "minutes": 1.23,
        "weights": "out/model.pth",
    }


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for image in TRUTH["images"][:-1]:
        Image.new("RGB", (80, 60), "gray").save(folder / image["file_name"])
    (folder / TRUTH["images"][-1]["file_name"]).write_bytes(b"no image")
    return folder


def test_report_draws_truth_beside_detections(images, tmp_path):
    detections = [{"image_id": n, "category_id": 1, "bbox": [50, 30, 20, 20], "score": 0.9} for n in range(1, 15)]
    detections += [{"image_id": n, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.8} for n in range(1, 15)]
    folder = tmp_path / "out" / "report"
    table, cut_off = write_report(folder, TRUTH, images, detections)
    # Half of the detections are right; precision 0.5 at every recall.
    assert table[2] == "| cat   |    14 |  50.0 |  50.0 |"
    assert cut_off == pytest.approx((0.8, 0.5, 1.0))
    drawings = sorted(path.name for path in folder.glob("val_*.png"))
    assert drawings == [f"val_{n:02d}.png" for n in range(1, 13)]
    for name in ("precision_recall.png", "confusion.png"):
        with Image.open(folder / name) as image:
            assert image.width > 300 and np.asarray(image.convert("L")).std() > 1
    drawn = np.asarray(Image.open(folder / "val_01.png")).astype(int)
    half = (drawn.shape[1] - 8) // 2
    scale = half / 80
    # A heading in black on white over each side.
    heading, drawn = np.split(drawn, [drawn.shape[0] - round(60 * scale)])
    assert 20 < len(heading) < 60
    for words in (heading[:, :half], heading[:, half + 8 :]):
        assert words.min() < 50 and words.max() == 255 and np.ptp(words, axis=2).max() == 0
    left, right = drawn[:, :half], drawn[:, half + 8 :]
    # Red of the outline at the lower edge of the wrong box, on the right only.
    row, column = round(50 * scale) - 1, round(60 * scale)
    assert np.ptp(left[row, column]) < 10 and np.ptp(right[row - 3 : row + 4, column], axis=1).max() > 50
    # The right box is on both sides.
    row, column = round(30 * scale) - 1, round(20 * scale)
    assert all(np.ptp(side[row - 3 : row + 4, column], axis=1).max() > 50 for side in (left, right))


@pytest.mark.parametrize("name", ["with a helmet, seen from far above, " * 6, "猫", "x\U0001f436"])
def test_no_name_of_a_class_spoils_a_figure(images, tmp_path, monkeypatch, recwarn, name):
    """Long ones leave space for the figure, and letters that no font has are spelled out: matplotlib warns of both."""
    monkeypatch.setattr("glipv2_d2.fonts._other_paths", tuple)
    truth = {**TRUTH, "categories": [{"id": 1, "name": name}, {"id": 2, "name": "dog"}]}
    write_report(tmp_path / "report", truth, images, [])
    assert not [str(warning.message) for warning in recwarn]


def test_a_matrix_of_many_classes_has_colours_alone(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: figures.append(self))
    for number in (20, 300):
        names = [f"class {k}" for k in range(number)]
        plot_confusion(Confusion(np.ones((number + 1, number + 1), np.int64), names, 0.3), tmp_path / "confusion.png")
    few, many = (figure.axes[0] for figure in figures)
    assert (len(few.texts), len(many.texts)) == (21 * 21, 0)
    # 24 inches for 301 rows.
    assert few.get_xticklabels()[0].get_size() == 10 and many.get_xticklabels()[0].get_size() < 24 * 72 / 301


def test_names_of_classes_are_drawn_as_they_are(images, tmp_path, monkeypatch):
    truth = {**TRUTH, "categories": [{"id": 1, "name": "_$_$"}, {"id": 2, "name": "dog"}]}
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    write_report(tmp_path / "report", truth, images, [])
    curves, confusion = (figure.axes[0] for figure in figures)
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["0.0 _$_$"]
    assert confusion.get_xticklabels()[0].get_text() == "_$_$"


def test_boxes_of_a_person_have_no_score(images, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "glipv2_d2.engine.run_report.GroundingVisualizer.draw_predictions",
        lambda self, instances, names: drawn.append(instances.has("scores")) or np.zeros((60, 80, 3), np.uint8),
    )
    detections = [{"image_id": n, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.8} for n in range(1, 15)]
    write_report(tmp_path / "report", TRUTH, images, detections)
    assert drawn == [False, True] * 12


def test_sheet_has_the_first_twelve_and_names_what_cannot_be_read(images, monkeypatch):
    written, where = [], draw_sheet.__globals__
    draw = where["draw_words"]
    monkeypatch.setitem(where, "draw_words", lambda words, *more: written.append(words[0][0]) or draw(words, *more))
    dicts = [
        {"image_id": image["id"], "file_name": str(images / image["file_name"])} for image in reversed(TRUTH["images"])
    ]
    detections = [{"image_id": 13, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.8}]
    sheet = draw_sheet(dicts, TRUTH, detections, 0.5, "all")
    assert written[0] == "14.png cannot be read" and written[1:] == ["annotated", "found, score from 0.50 on"] * 11
    # Two images in a row, each twice, 480 pixels wide.
    assert sheet.shape[1] == 2 * (2 * 480 + 8 + 10)


def test_report_of_a_run_that_found_nothing(images, tmp_path):
    table, cut_off = write_report(tmp_path / "report", TRUTH, images, [])
    assert table[2] == "| cat   |    14 |   0.0 |   0.0 |" and cut_off.recall == 0
    assert (tmp_path / "report" / "confusion.png").is_file()
