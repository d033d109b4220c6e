import json

import prepare_halves
import pytest


def write_annotations(folder, **changes):
    content = {
        "categories": [{"id": 1, "name": "crow"}],
        "images": [{"id": one, "file_name": f"{one}.jpg", "caption": f"caption {one}"} for one in (3, 5, 7)],
        "annotations": [{"id": 1, "image_id": 5}, {"id": 2, "image_id": 7}, {"id": 3, "image_id": 3}],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.json").write_text(json.dumps(content | changes))


def test_every_second_image_keeps_its_boxes_and_the_others_only_their_captions(tmp_path):
    write_annotations(tmp_path)
    prepare_halves.main([str(tmp_path)])
    half = json.loads((tmp_path / "annotations" / "half.json").read_text())
    assert [image["id"] for image in half["images"]] == [3, 7]
    assert [one["id"] for one in half["annotations"]] == [2, 3]
    assert half["categories"] == [{"id": 1, "name": "crow"}]
    lines = (tmp_path / "annotations" / "other_half_captions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"filename": "5.jpg", "caption": "caption 5"}]


WITHOUT_CAPTIONS = {"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]}


@pytest.mark.parametrize("content", [None, WITHOUT_CAPTIONS])
def test_file_that_is_missing_or_has_no_captions_ends_in_one_line(tmp_path, content):
    if content:
        write_annotations(tmp_path, **content)
    with pytest.raises(SystemExit, match="expected COCO json whose images have a caption"):
        prepare_halves.main([str(tmp_path)])
