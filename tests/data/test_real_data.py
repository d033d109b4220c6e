"""Real photographs and exports of annotation tools, in the folder that the environment variable GLIPV2_REAL_DATA names.

They are not part of the repository; without the variable these tests are skipped.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data import (
    register_captioning,
    register_coco_grounding,
    register_referring_json,
    register_vqa,
    register_vqa_jsonl,
)
from glipv2_d2.data.datasets.coco import load_detection_truth
from glipv2_d2.data.datasets.skip_report import DataReport
from glipv2_d2.data.image_reading import read_image
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.data.own_sets import OwnSets, find_own_sets
from glipv2_d2.errors import InputError

ROOT = Path(os.environ.get("GLIPV2_REAL_DATA", "no-real-data"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="GLIPV2_REAL_DATA names no folder")

SETS = sorted(
    str(path.relative_to(ROOT)) for split in ("train", "val", "test") for path in ROOT.glob(f"*/{split}.json")
)
SETS += [f"coco_mini/instances_{split}.json" for split in ("train", "val")]

# Exports without a fault. The images of most are not there.
EXPORTS = [
    "roboflow/animals_polygons/_annotations.coco.json",
    "roboflow/soft_drink_half_pixels/_annotations.coco.json",
    "roboflow/face_mask_NA_supercategory/custom_val.json",
    "labelme/coco_export/annotations.json",
    "cvat/people_pets/instances_default.json",
    "cvat/people_pets/keypoints_annotation.txt",
    "cvat/people_pets/segmentation_annotationjson.txt",
    "coco_other/sahi/coco_evaluate/dataset.json",
    "coco_other/sahi/combined_coco.json",
    "coco_other/sahi/terrain1_coco.json",
    "coco_other/sahi/visdrone2019-det-train-first50image.json",
    "voc100/coco_format_v1/instances_default.json",
    "voc100/coco_format_v2/instances_v2.json",
]
OTHER_FORMATS = [
    *("via/via/via_bbox.json", "voc100/labelme_format/labelme_format/2007_000027.json"),
    *("voc100/yolo_format/obj_train_data/obj_train_data/2007_000027.txt", "coco_other/sahi/coco_evaluate/result.json"),
]


@pytest.mark.parametrize("file", SETS)
def test_every_image_and_box_of_a_set_loads(new_name, file):
    path = ROOT / file
    register_coco_grounding(new_name, path, path.parent / "images")
    with DataReport() as report:
        records = load_dataset(new_name, with_masks=True)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(records) == len(content["images"])
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
    assert not any(one.counts for one in report.files.values())
    assert MetadataCatalog.get(new_name).thing_classes == [
        row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])
    ]
    assert read_image(records[0], "RGB").shape == (records[0]["height"], records[0]["width"], 3)
    truth = load_detection_truth(str(path), str(path.parent / "images"))
    assert [item["bbox"] for item in truth["annotations"]] == [item["bbox"] for item in content["annotations"]]
    assert [item["area"] for item in truth["annotations"]] == [item["area"] for item in content["annotations"]]


@pytest.mark.parametrize("file", EXPORTS)
def test_an_export_loads_whole(new_name, file):
    path = ROOT / "formats" / file
    register_coco_grounding(new_name, path, path.parent)
    with DataReport() as report:
        records = DatasetCatalog.get(new_name)
    content = json.loads(path.read_text(encoding="utf-8"))
    found = report.files[str(path), new_name]
    assert not found.counts
    if "animals_polygons" in file:  # One of them reaches 245 pixels past its image.
        assert found.changed == {"boxes cut at the border of their image": 12}
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"]) > 0


@pytest.mark.parametrize(
    ("file", "first", "is_class"),
    [
        ("roboflow/face_mask_NA_supercategory/custom_val.json", "mask_weared_incorrect", True),
        ("labelme/coco_export/annotations.json", "_background_", False),
        ("roboflow/soft_drink_half_pixels/_annotations.coco.json", None, False),
    ],
)
def test_category_0_is_a_class_or_an_empty_row(new_name, file, first, is_class):
    path = ROOT / "formats" / file
    register_coco_grounding(new_name, path, path.parent)
    DatasetCatalog.get(new_name)
    rows = json.loads(path.read_text(encoding="utf-8"))["categories"]
    assert rows[0]["id"] == 0 and first in (None, rows[0]["name"])
    assert (MetadataCatalog.get(new_name).thing_classes[0] == rows[0]["name"]) == is_class


@pytest.mark.parametrize("file", OTHER_FORMATS)
def test_another_format_is_one_clear_error(new_name, file):
    path = ROOT / "formats" / file
    register_coco_grounding(new_name, path, path.parent)
    with pytest.raises(InputError, match=f"{path.name}: (images: )?expected (a list|an object|a json file)") as raised:
        DatasetCatalog.get(new_name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_captions_of_coco_load(new_name, split):
    folder = ROOT / "coco_mini"
    register_captioning(new_name, folder / f"captions_{split}.json", folder / "images")
    records = load_dataset(new_name)
    assert len(records) == 50 and all(len(record["captions"]) >= 5 for record in records)


@pytest.mark.parametrize("split", ["train", "val"])
def test_questions_of_vqa_load(new_name, split):
    folder = ROOT / "vqa_coco"
    files = [folder / "vqav2" / f"v2_{name}_{split}2014_{kind}.json" for name, kind in VQA_FILES]
    if not files[0].is_file():
        pytest.skip(f"no questions of {split}2014")
    register_vqa(new_name, *files, folder / "coco" / f"{split}2014")
    content = json.loads(files[0].read_text(encoding="utf-8"))
    records = load_dataset(new_name)
    assert len(records) == len(content["questions"]) and all(record["answers"] for record in records)


VQA_FILES = (("OpenEnded_mscoco", "questions"), ("mscoco", "annotations"))


def test_yes_no_questions_of_pope_load(new_name):
    folder = ROOT / "vqa_coco"
    register_vqa_jsonl(new_name, folder / "pope.jsonl", folder / "coco" / "val2014")
    records = DatasetCatalog.get(new_name)
    assert len(records) == 36 and {record["answers"][0] for record in records} == {"yes", "no"}
    assert records[0]["question"] == "Is there a sink in the image?"


def test_phrases_can_be_the_names_of_a_set(tmp_path, new_name):
    content = json.loads((ROOT / "voc100" / "val.json").read_text())
    names = {row["id"]: row["name"] for row in content["categories"]}
    for item in content["annotations"]:
        item["phrase"] = names[item["category_id"]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_referring_json(new_name, tmp_path / "a.json", ROOT / "voc100" / "images")
    records = load_dataset(new_name, with_masks=True)
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])


# Images and boxes of each set and split as its source tells them, and the number of classes with boxes.
OWN_SETS = {
    "animals_masks": ({"train": (70, 114), "val": (35, 46), "test": (20, 29)}, 7),
    "bccd": ({"train": (103, 1417), "val": (87, 1137), "test": (72, 945)}, 3),
    "bike_helmets": ({"train": (80, 205), "val": (40, 90), "test": (30, 82)}, 2),
    "coco_mini": ({"train": (50, 470), "val": (50, 382)}, 59),
    "face_mask": ({"train": (120, 519), "val": (60, 271)}, 3),
    "plant_defects": ({"val": (50, 184), "test": (30, 92)}, 15),
    "playing_cards": ({"train": (99, 179), "val": (67, 143)}, 6),
    "raccoon": ({"train": (160, 173), "val": (40, 44)}, 1),
    "traffic_vn": ({"train": (70, 276), "val": (6, 8)}, 2),
    "voc100": ({"train": (80, 216), "val": (20, 57)}, 20),
}


def sizes(own: OwnSets) -> dict[str, tuple[int, int]]:
    return {split: (len(one.content["images"]), len(one.content["annotations"])) for split, one in own.splits.items()}


@pytest.mark.parametrize("name", OWN_SETS)
def test_a_set_is_found_by_its_folder(name):
    own = find_own_sets(ROOT / name)
    assert own.name == name and (sizes(own), len(own.names)) == OWN_SETS[name] and own.seed is None


@pytest.mark.parametrize(
    ("folder", "boxes"), [("raccoon/as_found", 3), ("bccd/as_found", 24), ("formats/labelme/coco_export", 12)]
)
def test_an_export_is_found_by_its_folder(folder, boxes):
    # Two cells of bccd have no area.
    assert sum(number for _, number in sizes(find_own_sets(ROOT / folder)).values()) == boxes


def write_forms(folder: Path, name: str) -> dict[str, Path]:
    """Links to the images of a set of ROOT, with its boxes as VOC xml, as YOLO and as COCO json."""
    forms = {form: folder / form / name for form in ("coco", "voc", "yolo")}
    for split in ("train", "val"):
        content = json.loads((ROOT / name / f"{split}.json").read_text(encoding="utf-8"))
        names = [row["name"] for row in content["categories"]]
        rows = {row["id"]: number for number, row in enumerate(content["categories"])}
        places = {"coco": "images", "voc": f"{split}/images", "yolo": f"images/{split}"}
        for form, root in forms.items():
            (root / places[form]).mkdir(parents=True, exist_ok=True)
        (forms["voc"] / split / "annots").mkdir()
        (forms["yolo"] / "labels" / split).mkdir(parents=True)
        (forms["yolo"] / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")
        (forms["coco"] / f"{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            for form, root in forms.items():
                (root / places[form] / image["file_name"]).symlink_to(ROOT / name / "images" / image["file_name"])
            stem, width, height = os.path.splitext(image["file_name"])[0], image["width"], image["height"]
            objects, lines = "", ""
            for item in content["annotations"]:
                if item["image_id"] == image["id"]:
                    x, y, w, h = item["bbox"]
                    row = rows[item["category_id"]]
                    sides = "".join(
                        f"<{side}>{value:.10g}</{side}>"
                        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + w, y + h))
                    )
                    objects += f"<object><name>{names[row]}</name><bndbox>{sides}</bndbox></object>"
                    shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                    lines += " ".join([str(row), *(f"{share:.6f}" for share in shares)]) + "\n"
            (forms["voc"] / split / "annots" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
            (forms["yolo"] / "labels" / split / f"{stem}.txt").write_text(lines)
    return forms


@pytest.mark.parametrize("name", ["raccoon", "bccd", "playing_cards", "face_mask", "voc100", "traffic_vn"])
def test_three_forms_of_a_set_are_one(tmp_path, name):
    texts = [
        {split: one.json_text() for split, one in find_own_sets(path).splits.items()}
        for path in write_forms(tmp_path, name).values()
    ]
    assert texts[0] == texts[1] == texts[2]


FORMS = {
    "pascalvoc_format": "",
    "imagenet_format": "",
    "labelme_format": "",
    "yolo_format": "person\n\n\n\n\n\n\n\n\ntvmonitor\ntrain\n\naeroplane\n",
    "coco_format_v1/instances_default.json": "",
    "coco_format_v2/instances_v2.json": "",
}


def test_the_forms_of_one_truth_agree(tmp_path):
    """Five images are there in all of the forms that this package reads."""
    stems = [path.stem for path in (ROOT / "formats/voc100/pascalvoc_format/pascalvoc_format").glob("*.xml")]
    assert len(stems) == 5
    texts = {}
    for number, (form, classes) in enumerate(FORMS.items()):
        source, folder = ROOT / "formats" / "voc100" / form, tmp_path / str(number)
        (folder / "images").mkdir(parents=True)
        for stem in stems:
            (folder / "images" / f"{stem}.jpg").symlink_to(ROOT / "voc100" / "images" / f"{stem}.jpg")
        if source.is_dir():
            shutil.copytree(source, folder / "files")
            (folder / "classes.txt").write_text(classes)
        else:
            content = json.loads(source.read_text())
            content["images"] = [one for one in content["images"] if one["file_name"][:-4] in stems]
            ids = {one["id"] for one in content["images"]}
            content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
            (folder / "boxes.json").write_text(json.dumps(content))
        texts[form] = {split: one.json_text() for split, one in find_own_sets(folder).splits.items()}
    assert [form for form in texts if texts[form] != texts["pascalvoc_format"]] == []
