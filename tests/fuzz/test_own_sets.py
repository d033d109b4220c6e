"""Damaged exports of annotation tools: a set whose json trains, or one line that says why not."""

import itertools
import json
import shutil

import pytest
from damaged_json import damaged
from detectron2.data import DatasetCatalog, MetadataCatalog
from fuzzing import ODD_VALUES, assert_holds_for_random_input, changed_bytes
from hypothesis import strategies as st
from tar_shards import png

from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.loading import load_training_dicts
from glipv2_d2.data.own_sets import find_own_sets, register_own_sets

VOC = (
    "<annotation><folder>x</folder><filename>{}.png</filename><size><width>64</width><height>48</height><depth>3"
    "</depth></size><object><name>red dog</name><difficult>0</difficult><bndbox><xmin>4</xmin><ymin>6</ymin>"
    "<xmax>24</xmax><ymax>16</ymax></bndbox></object></annotation>"
)
SHAPES = [
    {"label": "cat", "points": [[4, 6], [24, 16]], "shape_type": "rectangle"},
    {"label": "red dog", "points": [[4, 6], [24, 6], [24, 16]], "shape_type": "polygon"},
]
LABELME = {"version": "5.0", "flags": {}, "shapes": SHAPES, "imagePath": "1.png", "imageHeight": 48, "imageWidth": 64}
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in (1, 2)],
    "annotations": [{"id": i, "image_id": i, "category_id": 3, "bbox": [4, 6, 20, 10], "iscrowd": 0} for i in (1, 2)],
    "categories": [{"id": 0, "name": "all"}, {"id": 3, "name": "cat", "supercategory": "all"}],
}
YAML = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, red dog]\nprompts: {cat: a small cat}\n"
SETS = {
    "voc": {
        "1.png": 1,
        "1.xml": VOC.format(1),
        "2.png": 2,
        "2.xml": VOC.format(2),
        "train.txt": "1\n",
        "val.txt": "2\n",
    },
    "yolo": {
        "data.yaml": YAML,
        "images/train/1.png": 1,
        "labels/train/1.txt": "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.9 0.1 0.9 0.9\n",
        "images/val/2.png": 2,
        "labels/val/2.txt": "1 0.5 0.5 0.25 0.25\n",
    },
    "plain yolo": {"1.png": 1, "1.txt": "0 0.5 0.5 0.25 0.25\n", "2.png": 2, "2.txt": "", "classes.txt": "cat\ndog\n"},
    "labelme": {"1.png": 1, "1.json": LABELME, "2.png": 2, "2.json": {**LABELME, "imagePath": "2.png"}},
    "coco": {"train/1.png": 1, "train/2.png": 2, "train/_annotations.coco.json": COCO},
    "own yaml": {"set.yaml": "train: a.json\nimages: .\n", "a.json": COCO, "1.png": 1, "2.png": 2},
}


@pytest.mark.slow
def test_damaged_exports_are_a_set_that_trains_or_are_refused_in_one_line(tmp_path):
    numbers = itertools.count()

    def check(data: st.DataObject) -> None:
        files = SETS[data.draw(st.sampled_from(sorted(SETS)))]
        folder, output = tmp_path / f"set{next(numbers)}", tmp_path / "output"
        kept = {name: value for name, value in files.items() if not isinstance(value, int)}
        for _ in range(data.draw(st.integers(0, 2))):
            kept = damaged(data, kept, ODD_VALUES | st.text(max_size=9))
        broken = data.draw(st.sampled_from(sorted(files)))
        for name, value in {**files, **kept}.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            content = png(value) if name.endswith(".png") else text.encode("utf-8", "surrogatepass")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(changed_bytes(data, content) if name == broken else content)
        before = set(DatasetCatalog)
        try:
            for name in register_own_sets(find_own_sets(folder), output).values():
                records = load_training_dicts(name, filter_empty=False)
                check_dataset_dicts(name, records, len(MetadataCatalog.get(name).thing_classes))
        finally:
            for name in set(DatasetCatalog) - before:
                DatasetCatalog.pop(name)
                MetadataCatalog.pop(name, None)
            shutil.rmtree(folder)
            shutil.rmtree(output, ignore_errors=True)

    assert_holds_for_random_input(check)
