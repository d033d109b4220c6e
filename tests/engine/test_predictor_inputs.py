"""The predictor on one and on many images, in all their forms."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glipv2_d2 import GLIPv2Predictor
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.data import DetectionDatasetMapper
from glipv2_d2.data.image_reading import read_image
from glipv2_d2.data.transforms import ImageVersions
from glipv2_d2.engine import image_inputs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

BGR = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.001, "TEST.DETECTIONS_PER_IMAGE", 20])
    return tiny_cfg


@pytest.fixture
def predictor(cfg):
    torch.manual_seed(0)
    return GLIPv2Predictor(cfg)


def assert_equal(one, other):
    """The same bit for bit."""
    assert one["phrases"] == other["phrases"] and len(one["instances"]) == len(other["instances"]) > 0
    for name, value in one["instances"].get_fields().items():
        expected = other["instances"].get(name)
        tensors = (value, expected) if torch.is_tensor(value) else (value.tensor, expected.tensor)
        assert torch.equal(*tensors)


@pytest.fixture
def photos(tmp_path):
    """Three files: an image, one that is none, and another image."""
    for name, pixels in (("a.png", BGR), ("c.png", BGR[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])).save(tmp_path / name)
    (tmp_path / "b.png").write_text("no image")
    return [tmp_path / name for name in ("a.png", "b.png", "c.png")]


def test_every_form_of_an_image_gives_the_same_result(predictor, photos):
    expected = predictor(BGR, ["dog"])
    for form in (photos[0], str(photos[0]), photos[0].read_bytes(), Image.open(photos[0])):
        assert_equal(predictor(form, ["dog"]), expected)
    tensor = torch.from_numpy(BGR[:, :, ::-1].transpose(2, 0, 1).copy())
    assert_equal(predictor(tensor, ["dog"], channel_order="RGB"), expected)
    result = predictor(photos[0], ["dog"])
    assert result.source == str(photos[0]) and list(result) == ["instances", "phrases"]
    assert (np.asarray(result.draw()) == np.asarray(expected.draw(BGR))).all()


def test_many_images_have_one_prompt_and_a_bad_one_is_named(predictor, photos, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        results = predictor([photos[0], photos[1], BGR[:, ::-1], None], ["dog", "cat"])
    assert_equal(results[0], predictor(BGR, ["dog", "cat"]))
    assert_equal(results[2], predictor(BGR[:, ::-1], ["dog", "cat"]))
    assert [result.error is None for result in results] == [True, False, True, False]
    assert results[1].error.startswith(f"images[1]: {photos[1]}: ") and results[1].source == str(photos[1])
    assert results[3].error.startswith("images[3]: image: expected a path")
    assert all(result["phrases"] == ["dog", "cat"] for result in results)
    assert [f"left out: {results[k].error}" in caplog.text for k in (1, 3)] == [True, True]


def test_one_image_that_cannot_be_read_is_an_error(predictor, photos):
    with pytest.raises(ValueError, match="b.png: .*expected a readable image"):
        predictor(photos[1], ["dog"])


def test_an_array_of_images_is_many(predictor):
    images = np.stack([BGR, BGR[:, ::-1]])
    results = predictor(images, ["dog"])
    assert len(results) == 2
    assert_equal(results[1], predictor(BGR[:, ::-1], ["dog"]))


@pytest.mark.parametrize("batch_size, ahead", [(1, [1, 2, 3, 4, 5]), (2, [2, 2, 4, 4, 5])])
def test_an_iterator_is_read_no_further_than_a_batch(predictor, batch_size, ahead):
    drawn = []

    def images():
        for number in range(5):
            drawn.append(number)
            yield BGR[: 40 + number]

    results = predictor(images(), ["dog"], batch_size=batch_size)
    assert not drawn
    seen = []
    for number, result in enumerate(results):
        seen.append(len(drawn))
        assert result["instances"].image_size == (40 + number, 80)
    assert seen == ahead


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_images_before_an_error_of_an_iterator_have_results(predictor, error):
    def images():
        yield BGR[:40]
        yield BGR[:41]
        raise error("the camera is gone")

    results = predictor(images(), ["dog"], batch_size=4)
    assert [next(results)["instances"].image_size[0] for _ in range(2)] == [40, 41]
    with pytest.raises(error, match="the camera is gone"):
        next(results)


def test_batches_give_what_single_images_give(predictor):
    images = [BGR, BGR[:, ::-1], BGR[:30]]
    for one, other in zip(predictor(images, ["dog"], batch_size=2), predictor(images, ["dog"])):
        torch.testing.assert_close(one["instances"].scores, other["instances"].scores)
        torch.testing.assert_close(
            one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor, atol=1e-3, rtol=1e-4
        )


def test_each_image_may_have_its_own_prompt(predictor):
    prompts = [["dog"], "a man on a skateboard"]
    for results in (
        predictor.predict_batch([BGR, BGR], prompts),
        list(predictor.stream(iter([BGR, BGR]), prompts=iter(prompts))),
    ):
        assert [result["phrases"] for result in results] == [["dog"], ["a man", "a skateboard"]]
        assert_equal(results[1], predictor(BGR, "a man on a skateboard"))


@pytest.mark.parametrize("prompts, found", [([["dog"]], "more images"), ([["dog"]] * 3, "more prompts")])
def test_prompts_and_images_end_together(predictor, prompts, found):
    with pytest.raises(ValueError, match=f"prompts: expected one for each image, found {found}"):
        list(predictor.stream([BGR, BGR], prompts=prompts))


def test_a_threshold_leaves_out_lower_scores(predictor):
    scores = predictor(BGR, ["dog"])["instances"].scores
    threshold = float(scores.sort().values[len(scores) // 2])
    expected = scores[scores >= threshold].tolist()
    assert 0 < len(expected) < len(scores)
    assert predictor(BGR, ["dog"], threshold=threshold)["instances"].scores.tolist() == expected
    assert predictor([BGR], ["dog"], threshold=threshold)[0]["instances"].scores.tolist() == expected


def test_an_open_file_is_no_stream_of_images(predictor, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"lines")
    with open(tmp_path / "a.jpg", "rb") as file, pytest.raises(TypeError, match="expected a path, .* BufferedReader"):
        predictor(file, ["dog"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 2}, "threshold: expected a number from 0 to 1, found 2"),
        ({"threshold": "0.3"}, "threshold: expected a number from 0 to 1, found '0.3'"),
        ({"threshold": float("nan")}, "threshold: expected a number from 0 to 1, found nan"),
        ({"batch_size": 0}, "batch_size: expected a whole number from 1, found 0"),
        ({"prompts": [["dog"]]}, "prompts: expected no other prompt beside them"),
    ],
)
def test_wrong_options_are_named_before_an_image_is_read(predictor, options, message):
    with pytest.raises(ValueError, match=message):
        predictor(iter([]), ["dog"], **options)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError,
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_much_memory_of_one_image_does_not_end_the_stream(predictor, monkeypatch, error):
    model = predictor.model
    asked = []

    def short_of_memory(inputs):
        asked.append(len(inputs))
        if len(inputs) > 1 or inputs[0]["height"] == 40:
            raise error()
        return model(inputs)

    monkeypatch.setattr(predictor, "model", short_of_memory)
    results = predictor([BGR, BGR[:40], BGR[:30]], ["dog"], batch_size=3)
    assert asked == [3, 1, 1, 1]
    assert [result.error for result in results] == [None, "images[1]: out of memory", None]
    monkeypatch.setattr(predictor, "model", model)
    assert_equal(results[2], predictor(BGR[:30], ["dog"]))


def test_pixels_of_a_path_are_those_of_the_one_reader(predictor, photos, monkeypatch):
    asked = []

    def note(record, image_format, truncated):
        asked.append((Path(record["file_name"]).name, image_format))
        return read_image(record, image_format, truncated)

    monkeypatch.setattr(image_inputs, "read_image", note)
    predictor(photos[0], ["dog"])
    assert asked == [("a.png", "BGR")]


# --- random weights


def test_random_weights_are_refused_unless_they_are_asked_for(cfg):
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="MODEL.WEIGHTS: expected weights, .* found none; .*MODEL.WEIGHTS random"):
        GLIPv2Predictor(cfg)
    cfg.MODEL.WEIGHTS = "random"
    assert len(GLIPv2Predictor(cfg)(BGR, ["dog"])["instances"])


def test_a_training_may_start_from_random_weights_under_both_names(cfg, predictor):
    for name in ("", "random"):
        assert GLIPv2Checkpointer(predictor.model).load(name) == {}


def test_the_folder_of_a_run_is_used_with_its_own_weights(cfg, predictor, tmp_path):
    """Also where the run started from other weights, which its config names."""
    run = tmp_path / "run"
    run.mkdir()
    cfg.MODEL.WEIGHTS = "elsewhere.pth"
    (run / "config.yaml").write_text(cfg.dump())
    GLIPv2Checkpointer(predictor.model, str(run)).save("model_final")
    found = GLIPv2Predictor.from_pretrained(run, ["MODEL.DEVICE", "cpu"])
    assert found.cfg.MODEL.WEIGHTS == str(run / "model_final.pth")
    assert_equal(found(BGR, ["dog"]), predictor(BGR, ["dog"]))


def test_finer_image_is_that_of_the_test_loader(cfg, predictor, photos):
    mapper = DetectionDatasetMapper(cfg, is_train=False)
    mapper.image_versions = predictor._image_versions = ImageVersions(1.5, (20, 50))
    expected, found = mapper.test_image({"file_name": str(photos[0])}), predictor._model_input(BGR)
    assert torch.equal(found["image"], expected["image"].float())
    assert torch.equal(found["fine_image"], expected["fine_image"])
    assert torch.equal(found["of_base"]["image"], expected["of_base"]["image"])
    assert found["fine_image"].shape[1:] == tuple(round(1.5 * side) for side in found["image"].shape[1:])
