import html
import json
import re

import pytest
from check_cases import DOG, by_kind, check, encoded, micro_cfg
from own_set_writers import Photo, write_coco, write_labelme, write_voc, write_yolo

from glipv2_d2 import register_coco_grounding
from glipv2_d2.data_check import DataFindings, Finding, check_own_sets, configured_sets, find_reported
from glipv2_d2.data_check.page import choose_images
from glipv2_d2.errors import InputError
from glipv2_d2.program.main import main


@pytest.fixture
def mine(tmp_path):
    """The folder of two registered datasets: one file is missing, one has another size, one box has no area."""
    boxes = [[4, 4, 40, 40], [4, 4, 40, 40], [4, 4, 9, 9], [4, 4, 30, 30], [4, 4, 0, 9]]
    for split, rows in (("train", (0, 1, 2)), ("val", (3, 4))):
        images = [{"id": row, "file_name": f"{row}.png", "height": 48, "width": 64} for row in rows if row < 4]
        items = [{"id": row, "image_id": min(row, 3), "category_id": 1 + row % 2, "bbox": boxes[row]} for row in rows]
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": items, "categories": categories}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        register_coco_grounding(f"{tmp_path.name}_{split}", tmp_path / f"{split}.json", tmp_path)
    for row, size in ((0, (64, 48)), (2, (30, 20)), (3, (64, 48))):
        (tmp_path / f"{row}.png").write_bytes(encoded(row, size, "PNG"))
    return tmp_path


@pytest.fixture
def micro(mine):
    cfg = micro_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", (f"{mine.name}_train",), "DATASETS.TEST", (f"{mine.name}_val",)])
    return cfg


GOOD = {f"{k}.jpg": (encoded(k), [DOG]) for k in range(5)}


def test_the_gravest_findings_come_first_and_say_what_to_do(tmp_path):
    facts = check(tmp_path, {"train": GOOD}).facts
    note, stop = Finding("note", "b", 1, "a note"), Finding("stop", "a", 5, "a stop", "do this", tuple("uvwxy"))
    findings = DataFindings(facts, [note, stop])
    assert findings.lines()[2:] == ["stop: a stop; do this", "    u; v; w and 2 more", "note: a note"]
    assert findings.stops == [stop]


def test_json_and_page_hold_everything_and_nothing_is_run(tmp_path):
    name = "<script>alert(1)</script>"
    images = GOOD | {"<b>.jpg": (encoded(9)[:-900], [(name, 1, 1, 30, 30)])}
    findings = check(tmp_path, {"train": images, "val": {"v.jpg": (encoded(8), [DOG])}}, ("dog", name))
    paths = findings.write(tmp_path / "report")
    content = json.loads((tmp_path / "report" / "data_check.json").read_text())
    assert content["splits"]["train"] == {"images": 6, "images_without_boxes": 0, "boxes": 6}
    assert content["classes"] == {"dog": {"train": 5, "val": 1}, name: {"train": 1, "val": 0}}
    assert [one["kind"] for one in content["findings"]] == [one.kind for one in findings.findings]
    page = (tmp_path / "report" / "data_check.html").read_text()
    assert "<script" not in page and html.escape(name) in page and paths[1].endswith("data_check.html")
    # Self-contained: seven photographs inside, no other file.
    assert len(re.findall(r"<img [^>]*src='data:image/jpeg;base64,", page)) == 7
    assert not re.search(r"(src|href)='(?!data:)", page) and "url(" not in page


def test_images_of_the_page_show_every_class_and_never_a_copy_twice(tmp_path):
    names = ("dog", "cat")
    images = {f"{k}.jpg": (encoded(k), [DOG]) for k in range(40)}
    images |= {
        "cat.jpg": (encoded(50), [("cat", 1, 1, 30, 30)]),
        "copy.jpg": (encoded(3), [DOG]),
        "e.jpg": (encoded(60), []),
    }
    facts = check(tmp_path, {"train": images}, names).facts
    chosen = choose_images(facts, 10)
    assert len(chosen) == 10 and chosen == choose_images(facts, 10) and "cat.jpg" in [one.name for one in chosen[:2]]
    every = choose_images(facts, 99)
    assert len(every) == 42 and every[-1].name == "e.jpg"


def test_a_damaged_image_is_no_photograph_of_the_page(tmp_path):
    findings = check(tmp_path, {"train": GOOD | {"x.jpg": (b"text", [DOG])}})
    findings.write(tmp_path / "report")
    assert (tmp_path / "report" / "data_check.html").read_text().count("<figure>") == 5


def test_what_a_reader_leaves_out_is_a_finding_and_not_a_warning_besides(tmp_path, caplog):
    photos = [Photo(f"{k}.png", 64, 48, [("dog", 4, 4, 40, 40)]) for k in range(6)]
    root = write_coco(tmp_path / "mine", {"train": photos, "val": photos[:1]}, ["dog", "unused"])
    (json_file,) = [path for path in root.rglob("*.json") if len(json.loads(path.read_text())["images"]) == 6]
    content = json.loads(json_file.read_text())
    content["annotations"][0]["bbox"] = [4, 4, 0, 9]
    content["annotations"][1]["bbox"] = None
    json_file.write_text(json.dumps(content))
    own, left_out = find_reported(str(root))
    found = by_kind(check_own_sets(own, micro_cfg(), left_out=left_out))
    kinds = [kind for kind in found if kind.startswith("left out: ")]
    assert sum(found[kind].number for kind in kinds) == 2 and all(found[kind].severity == "warning" for kind in kinds)
    assert "boxes without area" in " ".join(kinds) and found["unused names"].cases == ("unused",)
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "left out" in record.message]


@pytest.mark.parametrize(("boxes", "status"), [([("dog", 4, 4, 40, 40)], 0), ([("dog", 0, 0, 1, 1)], 1)])
def test_the_program_ends_with_1_only_if_nothing_can_be_trained(tmp_path, boxes, status, capsys):
    photos = [Photo(f"{k}.png", 64, 48, boxes) for k in range(6)]
    root = write_coco(tmp_path / "mine", {"train": photos, "val": photos[:1]}, ["dog"])
    output = tmp_path / "report"
    words = ["--data", str(root), "--output", str(output), "--config-file", "configs/demo/glipv2_micro.yaml"]
    assert main(["check-data", *words]) == status
    printed = capsys.readouterr().out.splitlines()
    # Boxes of relative coordinates are left out.
    assert printed[0].startswith(f"mine: 7 images, 1 class, {0 if status else 7} boxes")
    assert printed[-1].startswith("written: ") and (output / "data_check.html").is_file()
    assert printed[2].startswith("stop: no image has a box; check that") == bool(status)
    assert any(": boxes not in pixels" in line for line in printed) == bool(status)


def test_registered_data_are_checked_as_their_files_are(tmp_path, mine, micro):
    own, left_out = configured_sets(micro)
    assert own.names == ["cat", "dog"] and [len(one.content["images"]) for one in own.splits.values()] == [3, 1]
    findings = check_own_sets(own, micro, left_out=left_out)
    found = by_kind(findings)
    assert found["left out: boxes without area"].number == 1
    assert found["sizes that differ"].cases == (f"train {mine}/2.png: 64 x 48 annotated, 30 x 20 in the file",)
    # The missing one is named by the check alone.
    assert list(findings.unreadable) == ["train"] and findings.unreadable["train"] == [f"{mine}/1.png"]


def test_other_than_detection_data_are_refused(micro):
    micro.merge_from_list(["DATASETS.TRAIN", (), "DATASETS.TEST", ()])
    with pytest.raises(InputError, match="DATASETS.TRAIN: expected datasets to check, found none"):
        configured_sets(micro)


def test_folders_that_are_put_together_are_told(tmp_path):
    for name, numbers in (("cats", range(3)), ("dogs", range(3, 6))):
        photos = [Photo(f"{k}.png", 64, 48, [(name, 4, 4, 40, 40)]) for k in numbers]
        write_coco(tmp_path / name, {"a": photos}, [name])
    own, left_out = find_reported(str(tmp_path))
    found = by_kind(check_own_sets(own, micro_cfg(), left_out=left_out))
    assert found["folders put together"].cases == ("cats: 3 images", "dogs: 3 images")
    # The two classes have two boxes or three to train on, whatever the others are.
    assert all(case in ("cats (2)", "cats (3)", "dogs (2)", "dogs (3)") for case in found["rare classes"].cases)


def test_what_misses_is_told_once(tmp_path):
    write_coco(tmp_path, {"train": [Photo(f"{k}.png", 64, 48, [("cat", 4, 4, 40, 40)]) for k in range(5)]}, ["cat"])
    (tmp_path / "train" / "0.png").unlink()
    own, left_out = find_reported(str(tmp_path))
    texts = [one.text for one in check_own_sets(own, micro_cfg(), left_out=left_out).findings]
    assert [text for text in texts if "left out" in text] == ["left out 1 of 5 images: missing files"]


def test_boxes_that_may_be_corners_are_a_warning(tmp_path):
    boxes = [("cat", 10 + number, 10, 70 + number, 50) for number in range(12)]
    write_coco(tmp_path, {"train": [Photo("0.png", 64, 48, boxes)], "val": [Photo("1.png", 64, 48, boxes)]}, ["cat"])
    own, left_out = find_reported(str(tmp_path))
    found = by_kind(check_own_sets(own, micro_cfg(), left_out=left_out))
    (finding,) = [one for kind, one in found.items() if "left, top, right, bottom" in kind]
    assert (finding.severity, finding.number) == ("warning", 24)


@pytest.mark.parametrize("names", [["cat"], ["cat", "dog", "cow"]])
def test_a_set_that_training_refuses_is_a_stop(tmp_path, names):
    """Each class keeps an image to train on, so one for each of three classes is not enough either."""
    write_coco(tmp_path, {"a": [Photo(f"{name}.png", 64, 48, [(name, 4, 4, 40, 40)]) for name in names]}, names)
    own, left_out = find_reported(str(tmp_path))
    (stop,) = check_own_sets(own, micro_cfg(), left_out=left_out).stops
    assert stop.kind == "no validation images" and "if others have all its classes" in stop.advice


def test_a_set_without_boxes_is_summed_up_without_a_warning(tmp_path, recwarn):
    check(tmp_path, {"train": {"a.jpg": (encoded(), [])}}).lines()
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo, write_labelme])
@pytest.mark.parametrize("fault", ["an unreadable image", "a missing image", "a box outside of the image"])
def test_a_class_that_lost_its_boxes_is_a_warning_in_every_form(tmp_path, write, fault):
    box = ("dog", 200, 3, 230, 23) if fault.startswith("a box") else ("dog", 2, 3, 22, 23)
    photos = [Photo(f"{i}.png", 40, 30, [("cat", 2, 3, 22, 23)]) for i in range(4)]
    root = write(tmp_path / "set", {"train": [*photos, Photo("x.png", 40, 30, [box])]}, ["cat", "dog", "supercat"])
    (path,) = root.rglob("x.png")
    if fault == "an unreadable image":
        path.write_bytes(b"")
    elif fault == "a missing image":
        path.unlink()
    own, left_out = find_reported(str(root))
    found = by_kind(check_own_sets(own, micro_cfg(), left_out=left_out))
    assert own.names == ["cat"] and found["lost names"].cases == ("dog",) and found["lost names"].severity == "warning"
    # Another class that is listed has no box at all.
    assert "unused names" not in found or found["unused names"].cases == ("supercat",)
