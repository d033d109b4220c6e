import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from glipv2_d2 import register_coco_grounding
from glipv2_d2.engine import truth_sheet
from glipv2_d2.engine.truth_sheet import write_sheet


@pytest.fixture
def drawn(monkeypatch):
    """What reaches the drawing of a sheet."""
    calls = []
    draw = truth_sheet.draw_sheet
    monkeypatch.setattr(truth_sheet, "draw_sheet", lambda *given: calls.append(given) or draw(*given))
    return calls


def write_detections(cfg, name, detections):
    folder = Path(cfg.OUTPUT_DIR) / "inference" / name
    folder.mkdir(parents=True)
    (folder / "coco_instances_results.json").write_text(json.dumps(detections))
    return folder / "sheet.jpg"


def test_the_sheet_cuts_at_the_best_f1_and_takes_images_by_their_ids(train_cfg, drawn):
    name = train_cfg.DATASETS.TEST[0]
    # The first box of each of the three images with boxes is found; a wrong one at a lower score.
    right = {"category_id": 1, "bbox": [4, 16, 16, 24], "score": 0.25}
    wrong = {"image_id": 3, "category_id": 2, "bbox": [4, 16, 16, 24], "score": 0.125}
    path = write_detections(train_cfg, name, [*({"image_id": n, **right} for n in range(3)), wrong])
    write_sheet(train_cfg, name)
    dicts, truth, detections, score, title = drawn[0]
    assert [record["image_id"] for record in dicts] == [0, 1, 2, 3]
    assert len(truth["annotations"]) == 6 and len(detections) == 4 and score == 0.25
    # Three of three found boxes are right, of six.
    assert title == (
        f"{name}: the first 4 of 4 images, annotated on the left, found on the right. From score 0.250 on, the best F1 "
        "of all images: precision 1.00, recall 0.50."
    )
    with Image.open(path) as image:
        assert np.asarray(image).std() > 1


def test_data_without_annotations_get_no_sheet(train_cfg, drawn, tmp_path, caplog):
    source = MetadataCatalog.get(train_cfg.DATASETS.TEST[0])
    content = json.loads(Path(source.json_file).read_text())
    del content["annotations"]
    (tmp_path / "unknown.json").write_text(json.dumps(content))
    name = f"{tmp_path.name}_unknown"
    register_coco_grounding(name, tmp_path / "unknown.json", source.image_root)
    with caplog.at_level("INFO"):
        write_sheet(train_cfg, name)
    assert not drawn and f"--sheet: {name} has no annotated names, and gets no sheet" in caplog.text
