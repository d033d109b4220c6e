import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from pycocotools import mask as mask_util

from glipv2_d2.data import (
    register_coco_grounding,
    register_grounding_json,
    register_odvg,
    register_shards,
    register_vqa_json,
)
from glipv2_d2.engine.shard_writer import open_shard


@pytest.fixture
def tool(load_tool):
    return load_tool("visualize_data")


@pytest.fixture
def register(tmp_path):
    """Write a json file beside two grey images of 64 x 48, and register it as a dataset for the length of a test."""
    names = []
    for image_id in (1, 2):
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), np.full((48, 64, 3), 90, np.uint8))

    def add(function, content, *folders, **options):
        names.append(f"{tmp_path.name}_{len(names)}")
        if not isinstance(content, Path):
            file, content = tmp_path / f"{names[-1]}.json", json.dumps(content)
            file.write_text(content)
            content, folders = file, (tmp_path,)
        function(names[-1], str(content), *folders, **options)
        return names[-1]

    return add


@pytest.fixture
def dataset(register):
    """Two images, one with a cat."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)]
    box = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
    categories = [{"id": 3, "name": "cat"}]
    return register(register_coco_grounding, {"images": images, "annotations": [box], "categories": categories})


REGION = {"bbox": [10, 10, 40, 30], "phrase": "a cat", "score": 0.875}
CAPTION = {"width": 64, "height": 48, "grounding": {"caption": "a cat here", "regions": [REGION]}}


@pytest.fixture
def captions(register):
    """An image with a caption that holds a cat, with a score."""
    return register(register_odvg, {"filename": "1.png", **CAPTION}, task="pseudo_grounding")


@pytest.fixture
def drawn(tool, monkeypatch):
    """What is drawn: labels with their colours, and texts in strips of nine pixels."""
    noted, overlay = [], tool.Visualizer.overlay_instances

    def note(self, **kwargs):
        noted.append(list(zip(kwargs["labels"], kwargs["assigned_colors"], strict=True)))
        return overlay(self, **kwargs)

    def strip(text, width):
        noted.append(text)
        return np.zeros((9, width, 3), np.uint8)

    monkeypatch.setattr(tool.Visualizer, "overlay_instances", note)
    monkeypatch.setattr(tool, "text_strip", strip)
    return noted


def run(tool, dataset, folder, source, *more) -> list[np.ndarray]:
    keys = ["DATASETS.TRAIN", f"('{dataset}',)", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "SEED", "1"]
    keys += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "SOLVER.IMS_PER_BATCH", "2"]
    tool.main(["--source", source, "--output-dir", str(folder), *more, *keys])
    return [cv2.imread(str(path)) for path in sorted(folder.iterdir())]


def test_unreadable_image_is_left_out_and_named(tool, dataset, tmp_path, capsys):
    (tmp_path / "1.png").write_bytes(b"no image")
    assert len(run(tool, dataset, tmp_path / "out", "annotation")) == 1
    assert f"skipped {tmp_path / '1.png'}: " in "".join(capsys.readouterr())


def labels_of(pairs) -> list[str]:
    return [label for label, _ in pairs]


def is_drawn_on(drawing: np.ndarray) -> bool:
    return bool((abs(drawing.astype(int) - 90) > 30).any())


def test_stored_boxes_are_drawn(tool, dataset, tmp_path):
    with_box, without = run(tool, dataset, tmp_path / "out", "annotation")
    assert with_box.shape == without.shape == (600, 800, 3)
    assert is_drawn_on(with_box) and not is_drawn_on(without)


def test_training_samples_are_drawn_with_their_prompt(tool, dataset, tmp_path):
    drawings = run(tool, dataset, tmp_path / "out", "dataloader", "--num", "5")
    assert len(drawings) == 5
    # Enlarged to 800 x 600, and the prompt below.
    assert all(drawing.shape[1] == 800 and drawing.shape[0] > 600 for drawing in drawings)
    names = [path.name for path in sorted((tmp_path / "out").iterdir())]
    assert {name.split("_")[1] for name in names} == {"1.jpg", "2.jpg"} and names[0].startswith("0000_")
    # The writing is black on white.
    assert all(drawing[600:].min() < 50 and drawing[600:].max() == 255 for drawing in drawings)


def test_boxes_are_drawn_where_the_model_sees_them(tool, dataset, tmp_path):
    drawings = run(tool, dataset, tmp_path / "out", "dataloader", "--num", "2")
    names = [path.name for path in sorted((tmp_path / "out").iterdir())]
    by_name = {name.split("_")[1]: drawing[:590] for name, drawing in zip(names, drawings, strict=True)}
    assert is_drawn_on(by_name["1.jpg"]) and not is_drawn_on(by_name["2.jpg"])


def test_stored_captions_are_drawn_with_phrases_and_scores(tool, captions, drawn, tmp_path):
    (drawing,) = run(tool, captions, tmp_path / "out", "annotation")
    assert drawing.shape == (609, 800, 3) and is_drawn_on(drawing[:600])
    assert labels_of(drawn[0]) == ["a cat 0.88"] and drawn[1] == "a cat here"


def test_training_samples_of_captions_are_drawn_with_their_phrases(tool, captions, tmp_path):
    drawings = run(tool, captions, tmp_path / "out", "dataloader", "--num", "2")
    assert len(drawings) == 2
    assert all(is_drawn_on(drawing[:590]) and drawing.shape[0] > 600 for drawing in drawings)


HALF_BOX = [[12, 12, 38, 12, 38, 20, 12, 20]]


def add_masks(dataset: str, *masks) -> None:
    """Give the image of a dataset as many boxes as there are masks, all the same, None without one."""
    file = Path(MetadataCatalog.get(dataset).json_file)
    content = json.loads(file.read_text())
    (item,) = content["annotations"]
    boxes = [{**item, "id": i, "segmentation": mask} for i, mask in enumerate(masks)]
    file.write_text(json.dumps({**content, "annotations": boxes}))


def is_filled(drawing: np.ndarray) -> bool:
    """Tell whether the image, enlarged to 800 x 600 pixels, is coloured in the mask, and not in the box below it."""
    inside, below = drawing[170:235, 250:400], drawing[280:350, 250:400]
    return bool((abs(inside.astype(int) - 90) > 10).any(axis=2).mean() > 0.9) and not is_drawn_on(below)


def rle_of(polygons) -> dict:
    encoded = mask_util.merge(mask_util.frPyObjects(polygons, 48, 64))
    return {"size": [48, 64], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
@pytest.mark.parametrize(
    "masks",
    [[HALF_BOX], [rle_of(HALF_BOX)], [None, HALF_BOX], [rle_of(HALF_BOX), None, "damaged"]],
    ids=["polygons", "RLE", "one without", "one damaged"],
)
def test_masks_are_drawn_if_the_model_has_them(tool, dataset, tmp_path, source, masks):
    add_masks(dataset, *masks)
    keys = ["MODEL.MASK_ON", "True", "INPUT.RANDOM_FLIP", "none", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True"]
    drawing = draw_first(tool, dataset, tmp_path / "out", source, keys)
    assert is_filled(drawing)
    assert not is_filled(draw_first(tool, dataset, tmp_path / "plain", source, keys[2:]))


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_boxes_of_one_name_have_one_color_of_their_own(tool, dataset, drawn, tmp_path, source):
    add_masks(dataset, HALF_BOX, HALF_BOX, HALF_BOX)
    file = Path(MetadataCatalog.get(dataset).json_file)
    content = json.loads(file.read_text())
    content["categories"].append({"id": 4, "name": "dog"})
    for item, category in zip(content["annotations"], (3, 4, 3), strict=True):
        item |= {"category_id": category, "bbox": [10, 10, 30, 20 if category == 3 else 21]}
    file.write_text(json.dumps(content))
    draw_first(tool, dataset, tmp_path / "out", source, [])
    colors = dict(drawn[0])
    assert all(colors[label] == color for label, color in drawn[0])
    assert colors.keys() == {"cat", "dog"} and colors["cat"] != colors["dog"]


NAMED = ("cat", "mat")


def test_stored_questions_are_drawn_with_what_they_name_and_the_answer(tool, register, drawn, tmp_path):
    questions = [{"question_id": 1, "question": "Is the cat grey?", "answer": "mat"}]
    image = {"id": 1, "file_name": "1.png", "height": 48, "width": 64, "questions": questions}
    boxes = [{"id": i, "image_id": 1, "bbox": [10, 10, 30, 20], "phrase": phrase} for i, phrase in enumerate(NAMED)]
    name = register(register_vqa_json, {"images": [image], "annotations": boxes})
    (drawing,) = run(tool, name, tmp_path / "out", "annotation")
    assert labels_of(drawn[0]) == ["cat", "[answer]"] and drawn[1] == "Is the cat grey?"
    assert drawing.shape == (609, 800, 3) and is_drawn_on(drawing[:600])


def draw_first(tool, dataset, folder, source, keys) -> np.ndarray:
    """Draw the image with boxes."""
    keys = ["DATASETS.TRAIN", f"('{dataset}',)", "SEED", "1", "INPUT.MIN_SIZE_TRAIN", "(96,)", *keys]
    tool.main(["--source", source, "--output-dir", str(folder), "--num", "1", *keys, "SOLVER.IMS_PER_BATCH", "1"])
    (path,) = folder.iterdir()
    assert path.stem.endswith("_1")
    return cv2.imread(str(path))


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_masks_of_captions_are_drawn(tool, register, tmp_path, source):
    image = {"id": 1, "file_name": "1.png", "height": 48, "width": 64, "caption": "a cat"}
    item = {"image_id": 1, "bbox": [10, 10, 30, 20], "tokens_positive": [[2, 5]]}
    boxes = [{**item, "segmentation": HALF_BOX}, item]
    name = register(register_grounding_json, {"images": [image], "annotations": boxes})
    keys = ["MODEL.MASK_ON", "True", "INPUT.RANDOM_FLIP", "none"]
    assert is_filled(draw_first(tool, name, tmp_path / "out", source, keys))


def test_images_in_shards_are_drawn(tool, register, tmp_path):
    with open_shard(tmp_path / "0.tar") as writer:
        writer.write(CAPTION, "s1", (tmp_path / "1.png").read_bytes(), "png")
    dataset = register(register_shards, tmp_path / "0.tar", num_samples=1)
    (stored,) = run(tool, dataset, tmp_path / "stored", "annotation", "--num", "3")
    drawings = run(tool, dataset, tmp_path / "drawn", "dataloader", "--num", "2")
    assert stored.shape[1] == 800 and is_drawn_on(stored[:590])
    assert len(drawings) == 2 and all(is_drawn_on(drawing[:590]) for drawing in drawings)


@pytest.mark.parametrize(
    ("marked", "text"), [([], ""), ([3], "3"), ([3, 4], "3-4"), ([1, 2, 3, 7, 9, 10], "1-3,7,9-10")]
)
def test_token_ranges_name_both_ends(tool, marked, text):
    is_token = torch.zeros(12, dtype=torch.bool)
    is_token[marked] = True
    assert tool.token_ranges(is_token) == text


def test_a_missing_dataset_ends_in_one_line(tool, tmp_path):
    with pytest.raises(SystemExit, match="error: dataset 'none_such' is not registered"):
        run(tool, "none_such", tmp_path / "out", "annotation")


def test_no_window_is_a_one_line_error(tool, dataset, tmp_path, monkeypatch):
    def no_window(*arguments):
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "imshow", no_window)
    with pytest.raises(SystemExit, match="error: --show"):
        run(tool, dataset, tmp_path / "out", "annotation", "--show")


def test_a_drawing_that_cannot_be_written_ends_in_one_line(tool, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imwrite", lambda path, image: False)
    with pytest.raises(SystemExit, match="error: --output-dir: expected a folder with space .* at .*0000_1.jpg"):
        run(tool, dataset, tmp_path / "out", "annotation")


def test_a_folder_that_cannot_be_written_to_is_named(tool, dataset):
    with pytest.raises(
        SystemExit, match="error: --output-dir: expected a folder that can be written to, found /proc/x"
    ):
        run(tool, dataset, "/proc/x", "annotation")
