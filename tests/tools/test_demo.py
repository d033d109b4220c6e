import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def demo(load_tool):
    return load_tool("demo")


@pytest.fixture
def fixed_predictor(demo, monkeypatch):
    """Replace the detector by one that finds the same two boxes everywhere; return what it was asked."""
    asked = []

    class FixedPredictor:
        def __init__(self, cfg):
            pass

        def __call__(self, image, prompt):
            asked.append((image.shape, prompt))
            instances = Instances(image.shape[:2])
            instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.126, 12.0], [0.0, 0.0, 5.0, 5.0]]))
            instances.scores = torch.tensor([0.75, 0.4])
            instances.pred_classes = torch.tensor([1, 0])
            return {"instances": instances, "phrases": ["a cat", "a dog"]}

    monkeypatch.setattr(demo, "GLIPv2Predictor", FixedPredictor)
    return asked


def write_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.full((20, 30, 3), 100, np.uint8))
    return folder


def read_predictions(folder):
    return json.loads((folder / "predictions.json").read_text())


def test_folder_of_images_becomes_pictures_and_one_json(demo, config, fixed_predictor, tmp_path):
    images = write_images(tmp_path / "images", "b.png", "a.jpg")
    (images / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    demo.main(["--config-file", config, "--input", str(images), "--output", str(output), "--prompt", "a dog and a cat"])
    content = read_predictions(output)
    assert content["prompt"] == "a dog and a cat"
    assert [Path(record["file_name"]).name for record in content["predictions"]] == ["a.jpg", "b.png"]
    assert content["predictions"][0]["detections"] == [
        {"phrase": "a dog", "score": 0.75, "box": [1.0, 2.0, 11.13, 12.0]}
    ]
    assert fixed_predictor == [((20, 30, 3), "a dog and a cat")] * 2
    for record in content["predictions"]:
        assert cv2.imread(str(output / record["picture"])).shape[1] == 800
    assert sorted(file.name for file in output.iterdir()) == ["a.png", "b.png", "predictions.json"]


def test_threshold_decides_what_is_kept(demo, config, fixed_predictor, tmp_path):
    images = write_images(tmp_path / "images", "a.png")
    arguments = ["--config-file", config, "--input", str(images), "--output", str(tmp_path), "--confidence-threshold"]
    for threshold, count in (("0.3", 2), ("0.8", 0)):
        demo.main([*arguments, threshold])
        assert len(read_predictions(tmp_path)["predictions"][0]["detections"]) == count


@pytest.mark.parametrize(
    "words, prompt", [(["--vocabulary", "dog, traffic light"], ["dog", "traffic light"]), ([], None)]
)
def test_vocabulary_is_a_list_of_names_and_no_prompt_is_none(demo, config, fixed_predictor, tmp_path, words, prompt):
    images = write_images(tmp_path / "images", "a.png")
    demo.main(["--config-file", config, "--input", str(images), "--output", str(tmp_path), *words])
    assert fixed_predictor[0][1] == prompt


def test_globs_and_repeated_names_keep_one_picture_each(demo, config, fixed_predictor, tmp_path):
    one, two = write_images(tmp_path / "one", "a.png"), write_images(tmp_path / "two", "a.png")
    output = tmp_path / "out"
    inputs = [str(tmp_path / "*" / "a.png"), str(one / "a.png")]
    demo.main(["--config-file", config, "--input", *inputs, "--output", str(output)])
    records = read_predictions(output)["predictions"]
    assert [record["file_name"] for record in records] == [str(one / "a.png"), str(two / "a.png")]
    assert len({record["picture"] for record in records}) == 2
    assert all((output / record["picture"]).is_file() for record in records)


def test_unreadable_image_is_left_out_and_named(demo, config, fixed_predictor, tmp_path, capsys):
    images = write_images(tmp_path / "images", "a.png", "b.png")
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:50])
    demo.main(["--config-file", config, "--input", str(images), "--output", str(tmp_path / "out")])
    assert [Path(record["file_name"]).name for record in read_predictions(tmp_path / "out")["predictions"]] == ["b.png"]
    assert "a.png" in "".join(capsys.readouterr())


def test_video_becomes_a_video(demo, config, fixed_predictor, tmp_path):
    source = tmp_path / "in.mp4"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    for value in (0, 100, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    output = tmp_path / "out"
    demo.main(["--config-file", config, "--video-input", str(source), "--output", str(output), "--prompt", "a dog"])
    assert [record["frame"] for record in read_predictions(output)["predictions"]] == [0, 1, 2]
    video = cv2.VideoCapture(str(output / "in.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.get(cv2.CAP_PROP_FPS) == 10.0
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) == 800


@pytest.mark.parametrize(
    "words, message",
    [
        (["--input", "/missing/*.jpg"], "/missing/*.jpg"),
        (["--video-input", "/missing.mp4"], "/missing.mp4"),
        (["--video-input", __file__], "no frame"),
        (["--input", __file__], "readable images"),
        (["--input", "IMAGES", "--opts", "SEED"], "KEY VALUE"),
    ],
)
def test_wrong_input_ends_in_one_line_without_a_result(demo, config, fixed_predictor, tmp_path, words, message):
    images = str(write_images(tmp_path / "images", "a.png"))
    words = [images if word == "IMAGES" else word for word in words]
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_info:
        demo.main(["--config-file", config, "--output", str(output), *words])
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert not (output / "predictions.json").exists()


def test_real_model_answers_the_command_line(demo, config, tmp_path):
    images = write_images(tmp_path / "images", "a.png")
    arguments = ["--config-file", config, "--input", str(images), "--output", str(tmp_path / "out")]
    arguments += ["--vocabulary", "dog,cat", "--confidence-threshold", "0"]
    demo.main([*arguments, "--opts", "MODEL.GLIPV2.TEST.SCORE_THRESH", "0.001", "TEST.DETECTIONS_PER_IMAGE", "5"])
    detections = read_predictions(tmp_path / "out")["predictions"][0]["detections"]
    assert detections and {detection["phrase"] for detection in detections} <= {"dog", "cat"}
    with pytest.raises(SystemExit, match=r"names\[1\]"):
        demo.main([*arguments, "--vocabulary", "dog,,cat"])
