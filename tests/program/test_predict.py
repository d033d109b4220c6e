import json
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from glipv2_d2 import GLIPv2Predictor, find_own_sets
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.colored_text import phrase_color
from glipv2_d2.engine import predictor as engine_predictor
from glipv2_d2.errors import InputError
from glipv2_d2.program import predict_run, predict_sources, predict_tasks
from glipv2_d2.program.main import command_parser, run_command
from glipv2_d2.program.predict import lower_threshold, read_prompt
from glipv2_d2.program.predict_files import ResultFolder, folder_name
from glipv2_d2.program.predict_sources import list_images

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def config(tiny_cfg, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(tiny_cfg.dump())
    return str(path)


@pytest.fixture
def use_predictor(monkeypatch):
    """Replace the model by a class of a test; ``stream`` asks it for one image after the other."""

    def use(predictor_class):
        def stream(self, images, prompt, **options):
            return (self(image, prompt) for image in images)

        predictor_class.stream = stream
        monkeypatch.setattr(engine_predictor, "GLIPv2Predictor", predictor_class)

    return use


@pytest.fixture
def run(config, tmp_path):
    """Run the program on an image, or on what ``source`` names; return the content of its JSON file."""

    def main(*words, source=None):
        source = ["--input", str(write_images(tmp_path / "images", "a.png"))] if source is None else source
        run_command("predict", ["--config-file", config, "--output", str(tmp_path / "out"), *source, *words])
        return json.loads((tmp_path / "out" / "predictions.json").read_text())

    return main


def make_instances(size, boxes, scores, classes=None):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.arange(len(boxes)) if classes is None else torch.tensor(classes)
    return instances


@pytest.fixture
def fixed_predictor(use_predictor):
    """Replace the detector by one that finds the same two boxes everywhere; return what it was asked."""
    asked = []

    class FixedPredictor:
        def __init__(self, cfg):
            pass

        def __call__(self, image, prompt):
            asked.append((image.shape, prompt))
            boxes = [[1.0, 2.0, 11.126, 12.0], [0.0, 0.0, 5.0, 5.0]]
            instances = make_instances(image.shape[:2], boxes, [0.75, 0.4], [1, 0])
            return {"instances": instances, "phrases": ["a cat", "a dog"]}

    use_predictor(FixedPredictor)
    return asked


def write_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.full((20, 30, 3), 100, np.uint8))
    return folder


def write_video(path):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    for value in (0, 100, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    return str(path)


def test_folder_of_images_becomes_drawings_and_one_json(run, fixed_predictor, tmp_path):
    images = write_images(tmp_path / "images", "b.png", "a.jpg")
    (images / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    content = run("--prompt", "a dog and a cat", source=["--input", str(images)])
    assert content["prompt"] == "a dog and a cat"
    assert [Path(record["file_name"]).name for record in content["predictions"]] == ["a.jpg", "b.png"]
    assert content["predictions"][0]["detections"] == [
        {"phrase": "a dog", "score": 0.75, "box": [1.0, 2.0, 11.13, 12.0]}
    ]
    assert fixed_predictor == [((20, 30, 3), "a dog and a cat")] * 2
    for record in content["predictions"]:
        assert cv2.imread(str(output / record["drawing"])).shape[1] == 800
    assert sorted(file.name for file in output.iterdir()) == ["a.png", "b.png", "predictions.json"]


def test_threshold_decides_what_is_kept(run, fixed_predictor):
    for threshold, count in (("0.3", 2), ("0.8", 0)):
        assert len(run("--confidence-threshold", threshold)["predictions"][0]["detections"]) == count


@pytest.mark.parametrize(
    "words, prompt", [(["--vocabulary", "dog, traffic light"], ["dog", "traffic light"]), ([], None)]
)
def test_vocabulary_is_a_list_of_names_and_no_prompt_is_none(run, fixed_predictor, words, prompt):
    run(*words)
    assert fixed_predictor[0][1] == prompt


def test_globs_and_repeated_names_keep_one_drawing_each(run, fixed_predictor, tmp_path):
    one, two = write_images(tmp_path / "one", "a.png"), write_images(tmp_path / "two", "a.png")
    records = run(source=["--input", str(tmp_path / "*" / "a.png"), str(one / "a.png")])["predictions"]
    assert [record["file_name"] for record in records] == [str(one / "a.png"), str(two / "a.png")]
    assert len({record["drawing"] for record in records}) == 2
    assert all((tmp_path / "out" / record["drawing"]).is_file() for record in records)


def huge_png():
    """A PNG file that claims 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    "content", [b"", b"no image", huge_png(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cut off"]
)
def test_unreadable_image_is_left_out_and_named(run, fixed_predictor, tmp_path, capsys, content):
    images = write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:50] if content == "cut off" else content)
    records = run(source=["--input", str(images)])["predictions"]
    assert [Path(record["file_name"]).name for record in records] == ["a.png", "c.png"]
    output = "".join(capsys.readouterr())
    assert f"skipped {images / 'b.png'}" in output and "1 of 3 images skipped, see above" in output


def test_every_result_is_written_before_the_next_image(run, fixed_predictor, tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", "a.png", "b.png", "c.png", "d.png")
    seen = []

    def read_image(file, **_):
        path = tmp_path / "out" / "predictions.json"
        seen.append(len(json.loads(path.read_text())["predictions"]) if path.exists() else 0)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return np.full((20, 30, 3), 100, np.uint8)

    monkeypatch.setattr(predict_run, "as_bgr", read_image)
    with pytest.raises(SystemExit):
        run("--prompt", "a dog", source=["--input", str(images)])
    assert seen == [0, 1, 2, 3]


def test_an_image_that_needs_too_much_memory_is_left_out(run, fixed_predictor, tmp_path, monkeypatch, capsys):
    images = write_images(tmp_path / "images", "a.png", "b.png")
    draw, errors = predict_tasks.Detector.draw, [MemoryError]

    def without_memory(*arguments):
        if errors:
            raise errors.pop()
        return draw(*arguments)

    monkeypatch.setattr(predict_tasks.Detector, "draw", without_memory)
    records = run(source=["--input", str(images)])["predictions"]
    assert [Path(record["file_name"]).name for record in records] == ["b.png"]
    assert f"skipped {images / 'a.png'}: out of memory" in "".join(capsys.readouterr())


def test_no_drawing_replaces_another_or_follows_a_link(run, fixed_predictor, tmp_path):
    names = ["c1/a.png", "c1/a_2.png", "c2/a.png", "c2/A.png", "c2/a_2.png"]
    for name in names:
        write_images((tmp_path / name).parent, Path(name).name)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").write_text("untouched")
    for name in ("a.png", "predictions.json"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    records = run(source=["--input", *(str(tmp_path / name) for name in names)])["predictions"]
    drawings = [record["drawing"] for record in records]
    assert drawings == ["a.png", "a_2.png", "a_3.png", "A_4.png", "a_2_2.png"]
    assert all((tmp_path / "out" / name).is_file() for name in drawings)
    assert (tmp_path / "elsewhere").read_text() == "untouched"


def test_a_folder_shows_every_format_that_training_reads(tmp_path):
    names = [f"a{suffix}" for suffix in (".JPG", ".bmp", ".gif", ".jp2", ".png", ".tiff", ".webp")]
    for name in (*names, "a.eps", "a.mp4", "a.txt"):
        (tmp_path / name).touch()
    found, left_out = list_images(str(tmp_path))
    assert [Path(file).name for file in found] == names and left_out == ["1 video"]


def test_a_folder_of_folders_shows_the_images_below_it(tmp_path):
    for name in ("train/a.jpg", "val/deep/b.png", ".thumbs/c.png", "labels.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, left_out = list_images(str(tmp_path))
    assert [str(Path(file).relative_to(tmp_path)) for file in found] == ["train/a.jpg", "val/deep/b.png"]
    assert left_out == []


def test_photographs_of_phones_in_a_format_that_is_not_read_are_told(run, fixed_predictor, tmp_path, capsys):
    photos = tmp_path / "phone"
    photos.mkdir()
    for name in ("IMG_1.HEIC", "IMG_2.heic"):
        (photos / name).write_bytes(b"ftypheic")
    told = "2 images in a format that is not read, such as HEIC; save as JPEG"
    with pytest.raises(SystemExit, match=f"expected image files at {photos}, found {told}"):
        run(source=[str(photos)])
    write_images(photos, "a.png")
    run(source=[str(photos)])
    assert f"{photos}: left out {told}\n" in capsys.readouterr().err


def test_what_a_folder_holds_and_is_not_looked_at_is_told(run, fixed_predictor, tmp_path, capsys):
    photos = write_images(tmp_path / "photos", "a.png")
    write_images(photos / "old", "b.png", "c.png")
    write_video(photos / "d.mp4")
    (photos / "notes.txt").touch()
    assert len(run(source=[str(photos)])["predictions"]) == 1
    assert (
        f"{photos}: left out 2 images in folders below it and 1 video; '{photos}/**' takes all\n"
        in capsys.readouterr().err
    )
    records = run(source=[f"{photos}/**"])["predictions"]
    assert [Path(one["file_name"]).name for one in records] == ["a.png", "b.png", "c.png", *["d.mp4"] * 3]
    assert capsys.readouterr().err == ""


def test_no_frame_has_the_name_of_an_image(run, fixed_predictor, tmp_path):
    photos = write_images(tmp_path / "photos", "clip_000001.png")
    write_video(photos / "clip.mp4")
    run("--save", "json,yolo,crops", source=[f"{photos}/*"])
    for folder in ("labels", "crops/a dog"):
        assert len(list((tmp_path / "out" / folder).iterdir())) == 4


def test_a_drawing_that_cannot_be_written_ends_in_one_line(run, fixed_predictor, tmp_path, monkeypatch):
    photos = write_images(tmp_path / "photos", "a.png")
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: open("/dev/full", "wb", 0).write(content))
    with pytest.raises(
        SystemExit, match=f"^error: {tmp_path / 'out' / 'a.png'}: expected space for the file, found the"
    ):
        run(source=[str(photos)])


@pytest.mark.parametrize(
    ("kinds", "output"), [("images", "photos/images"), ("yolo", "photos"), ("similarity", "photos")]
)
def test_results_never_replace_files_of_the_person(run, fixed_predictor, tmp_path, kinds, output):
    photos = write_images(tmp_path / "photos" / "images", "a.png")
    before = (photos / "a.png").read_bytes()
    with pytest.raises(SystemExit, match="--output: expected another folder than that of the images, found"):
        run("--save", kinds, "--output", str(tmp_path / output), source=[str(photos)])
    assert (photos / "a.png").read_bytes() == before
    assert [path.name for path in photos.parent.rglob("*")] == ["images", "a.png"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog,", ["cat", "dog"]),
        ("cat,,dog", ["cat", "dog"]),
        (" ,", None),
        # As GLIP's demos write a class list; a full stop right behind a word is part of the name.
        ("cat . st. bernard . dog .", ["cat", "st. bernard", "dog"]),
    ],
)
def test_separators_too_many_name_nothing(text, names):
    arguments = command_parser("predict").parse_args(["--model", "m", "--names", text])
    if names:
        assert read_prompt(arguments) == names
    else:
        with pytest.raises(InputError, match="--names: expected names with commas between them, found ' ,'"):
            read_prompt(arguments)


def test_video_becomes_a_video(run, fixed_predictor, tmp_path):
    records = run("--prompt", "a dog", source=["--video-input", write_video(tmp_path / "in.mp4")])["predictions"]
    assert [record["frame"] for record in records] == [0, 1, 2]
    video = cv2.VideoCapture(str(tmp_path / "out" / "in.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.get(cv2.CAP_PROP_FPS) == 10.0
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) == 800


@pytest.mark.parametrize(
    "words, message",
    [
        (["--input", "/missing/*.jpg"], "/missing/*.jpg"),
        (["--video-input", "/missing.mp4"], "/missing.mp4"),
        (["--video-input", __file__], "no frame"),
        (["--input", __file__], "readable images"),
        (["--input", __file__, "--opts", "SEED"], "KEY VALUE"),
        (["--input", __file__, "--confidence-threshold", "7"], "--threshold: expected a number from 0 to 1"),
        (["--input", __file__, "--output", __file__], "--output: expected a folder, found a file at"),
        (["--input", __file__, "--output", f"{__file__}/out"], "--output: expected a folder, found a file at"),
    ],
)
def test_wrong_input_ends_in_one_line_without_a_result(run, fixed_predictor, tmp_path, words, message):
    with pytest.raises(SystemExit) as exit_info:
        run(source=words)
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_real_model_answers_the_command_line(run):
    options = ["--opts", "MODEL.GLIPV2.TEST.SCORE_THRESH", "0.001", "TEST.DETECTIONS_PER_IMAGE", "5"]
    content = run("--vocabulary", "dog,cat", "--confidence-threshold", "0", *options)
    detections = content["predictions"][0]["detections"]
    assert detections and {detection["phrase"] for detection in detections} <= {"dog", "cat"}
    with pytest.raises(SystemExit, match=r"names\[1\]"):
        run("--vocabulary", "dog,_,cat")


def test_heat_maps_are_saved_for_images_of_any_colours(run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, channels in (("gray", ()), ("color", (3,)), ("alpha", (4,))):
        cv2.imwrite(str(images / f"{name}.png"), np.full((20, 30, *channels), 100, np.uint8))
    records = run("--names", "dog,cat", "--save", "json,similarity", source=[str(images)])["predictions"]
    assert [record["similarity"] for record in records] == [
        f"similarity/{name}.png" for name in ("alpha", "color", "gray")
    ]
    drawn = [cv2.imread(str(tmp_path / "out" / record["similarity"])) for record in records]
    # Two tiles of 480 pixels, of one image: transparency and the number of channels change nothing.
    assert drawn[0].shape[1] == 2 * 490 and (drawn[0] == drawn[1]).all() and (drawn[1] == drawn[2]).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.json", "similarity"]


def test_a_video_has_no_heat_maps(run, fixed_predictor, tmp_path):
    with pytest.raises(SystemExit, match="--save: expected similarity with images alone, found the video"):
        run("--save", "json,similarity", source=["--video-input", write_video(tmp_path / "in.mp4")])


@pytest.fixture
def masking_predictor(use_predictor, config):
    """Replace the model by one with masks that finds the same everywhere; return the configs it was built from and the
    phrases it was asked for."""
    noted = SimpleNamespace(configs=[], phrases=[])

    class MaskingPredictor:
        def __init__(self, cfg):
            noted.configs.append(cfg)

        def __call__(self, image, prompt):
            boxes = [[0.0, 0.0, 5.0, 5.0], [10.0, 4.0, 24.0, 16.0]]
            instances = make_instances(image.shape[:2], boxes, [0.4, 0.75])
            instances.pred_masks = torch.zeros(2, *image.shape[:2], dtype=torch.bool)
            instances.pred_masks[0, :5, :5] = True
            instances.pred_masks[1, 4:16, 10:24] = True
            return {"instances": instances, "phrases": ["a cat", "a dog"]}

        def refer(self, image, phrase):
            noted.phrases.append(phrase)
            mask = np.zeros(image.shape[:2], dtype=bool)
            mask[4:16, 10:24] = True
            return {"mask": mask}

    use_predictor(MaskingPredictor)
    Path(config).write_text(Path(config).read_text().replace("MASK_ON: false", "MASK_ON: true"))
    return noted


# Rows 4..15 and columns 10..23 of 20 x 30 pixels, by columns: 204 outside, 14 times 12 inside and 8 outside, the rest.
RUN_LENGTHS = {"size": [20, 30], "counts": [204, *[12, 8] * 13, 12, 124]}


def decode(segmentation):
    return mask_utils.decode({**segmentation, "counts": segmentation["counts"].encode("ascii")})


def test_masks_are_drawn_and_written_as_run_lengths(run, masking_predictor, tmp_path):
    (detection,) = run()["predictions"][0]["detections"]
    assert sorted(detection) == ["box", "phrase", "score", "segmentation"] and detection["phrase"] == "a dog"
    assert detection["segmentation"]["size"] == [20, 30]
    expected = mask_utils.decode(mask_utils.frPyObjects(RUN_LENGTHS, 20, 30))
    assert expected.sum() == 168 and (decode(detection["segmentation"]) == expected).all()
    image = cv2.imread(str(tmp_path / "out" / "a.png"))
    # 20 x 30 pixels are enlarged to 533 x 800: the mask begins at row 107 and column 267.
    inside, outside = image[400, 450].tolist(), image[500, 100].tolist()
    assert inside != outside == [100, 100, 100]
    assert inside == [round(0.45 * color + 55) for color in reversed(phrase_color(1))]


def test_referring_gives_one_mask_for_every_image(run, masking_predictor, tmp_path):
    images = write_images(tmp_path / "images", "a.png", "b.png")
    content = run("--task", "refer", "--prompt", "the dog, on the left", source=["--input", str(images)])
    assert content["prompt"] == "the dog, on the left"
    assert masking_predictor.phrases == ["the dog, on the left"] * 2
    assert [record["drawing"] for record in content["predictions"]] == ["a.png", "b.png"]
    expected = mask_utils.decode(mask_utils.frPyObjects(RUN_LENGTHS, 20, 30))
    for record in content["predictions"]:
        assert sorted(record) == ["drawing", "file_name", "segmentation"]
        assert (decode(record["segmentation"]) == expected).all()
        image = cv2.imread(str(tmp_path / "out" / record["drawing"]))[:, :, ::-1]
        assert image[400, 450].tolist() == [round(0.45 * color + 55) for color in phrase_color(0)]
        assert image.shape[0] > 533 and (image[533:] == phrase_color(0)).all(axis=2).any()


@pytest.mark.parametrize(
    "task, words, threshold",
    [
        ("refer", [], 0.5),
        ("refer", ["--confidence-threshold", "0.25"], 0.25),
        ("refer", ["--confidence-threshold", "1"], 1.0),
        ("refer", ["--opts", "MODEL.GLIPV2.TEST.REFERRING_THRESH", "0.125"], 0.125),
        ("detect", ["--confidence-threshold", "0.25"], 0.5),
    ],
)
def test_threshold_of_referring_alone_is_that_of_the_model(run, masking_predictor, task, words, threshold):
    run("--task", task, "--prompt", "a dog", *words)
    assert masking_predictor.configs[0].MODEL.GLIPV2.TEST.REFERRING_THRESH == threshold


def test_video_is_segmented_frame_by_frame(run, masking_predictor, tmp_path):
    source = ["--video-input", write_video(tmp_path / "in.mp4")]
    records = run("--task", "refer", "--prompt", "a dog", source=source)["predictions"]
    assert [record["frame"] for record in records] == [0, 1, 2]
    assert all(decode(record["segmentation"]).sum() == 168 for record in records)
    assert cv2.VideoCapture(str(tmp_path / "out" / "in.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--caption: expected a phrase with --task refer, found no prompt"),
        (["--vocabulary", "dog,cat"], "--caption: expected a phrase with --task refer, found --names"),
        (
            ["--prompt", "a dog", "--opts", "MODEL.MASK_ON", "False"],
            "MODEL.MASK_ON: expected True with --task refer, found False in ",
        ),
        (["--prompt", "a dog", "--opts", "SEED"], "KEY VALUE"),
        (
            ["--prompt", "a dog", "--confidence-threshold", "nan"],
            "--threshold: expected a number from 0 to 1",
        ),
    ],
)
def test_wrong_referring_ends_in_one_line_before_a_model_is_built(run, masking_predictor, tmp_path, words, message):
    with pytest.raises(SystemExit) as exit_info:
        run("--task", "refer", *words)
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert not masking_predictor.configs and not (tmp_path / "out").exists()


def test_real_model_with_a_mask_head_answers_both_tasks(run):
    options = ["MODEL.MASK_ON", "True", "MODEL.GLIPV2.MASK_HEAD.CONV_DIM", "16", "TEST.DETECTIONS_PER_IMAGE", "5"]
    options = ["--confidence-threshold", "0", "--opts", *options, "MODEL.GLIPV2.TEST.SCORE_THRESH", "0.001"]
    torch.manual_seed(0)
    detections = run("--prompt", "a dog", *options)["predictions"][0]["detections"]
    masks = [decode(detection["segmentation"]) for detection in detections]
    assert masks and all(mask.shape == (20, 30) for mask in masks)
    torch.manual_seed(0)
    # "a dog" is one noun phrase, so that both tasks ask the model the same.
    union = decode(run("--prompt", "a dog", "--task", "refer", *options)["predictions"][0]["segmentation"])
    assert (union == np.any(masks, axis=0)).all()


# --- answers and captions


@pytest.fixture
def talking_predictor(use_predictor):
    """Replace the model by one that says the same of every image; what it grounds can be changed, and it notes what
    it was asked."""

    class TalkingPredictor:
        boxes = [[1.0, 2.0, 11.126, 12.0], [0.0, 0.0, 5.0, 5.0]]
        scores = [0.75, 0.4]
        asked = []

        def __init__(self, cfg):
            pass

        def answer(self, image, question):
            self.asked.append((image.shape, question))
            instances = make_instances(image.shape[:2], self.boxes, self.scores)
            answers = [("a cat", 0.61238), ("no", 0.2), ("2", 0.1), ("red", 0.05), ("air", 0.01)]
            phrases = ["[answer]", "the dog"] if self.boxes else []
            return {"answer": "a cat", "score": 0.61238, "answers": answers, "instances": instances, "phrases": phrases}

        def caption(self, image):
            self.asked.append(image.shape)
            instances = make_instances(image.shape[:2], self.boxes, self.scores)
            phrases, spans = (["a dog", "a cat"], [[(0, 5)], [(10, 15)]]) if self.boxes else ([], [])
            output = {"caption": "a dog and a cat", "score": -0.76543, "instances": instances}
            words = [
                {"word": "dog", "span": (2, 5), "box": [1.0, 2.0, 11.126, 12.0], "score": 0.76543},
                {"word": "and", "span": (6, 9), "box": None, "score": 0.0},
            ]
            return {**output, "phrases": phrases, "phrase_spans": spans, "words": words if self.boxes else []}

    use_predictor(TalkingPredictor)
    return TalkingPredictor


@pytest.fixture
def run_on_two(run, talking_predictor, tmp_path):
    """Run the program on two images; return the content of its JSON file and the drawings."""

    def main(*words):
        content = run(*words, source=["--input", str(write_images(tmp_path / "images", "a.png", "b.png"))])
        return content, [cv2.imread(str(tmp_path / "out" / name))[:, :, ::-1] for name in ("a.png", "b.png")]

    return main


def has_color(area, row):
    return bool((area == phrase_color(row)).all(axis=2).any())


def test_a_question_is_answered_for_every_image(run_on_two, talking_predictor):
    content, drawings = run_on_two(
        "--task", "vqa", "--question", "What is the dog chasing?", "--confidence-threshold", "0.3"
    )
    assert content["question"] == "What is the dog chasing?"
    assert [record["drawing"] for record in content["predictions"]] == ["a.png", "b.png"]
    for record in content["predictions"]:
        assert record["answer"] == "a cat" and record["score"] == 0.6124
        assert record["answers"] == [["a cat", 0.6124], ["no", 0.2], ["2", 0.1], ["red", 0.05], ["air", 0.01]]
        assert record["detections"] == [
            {"phrase": "[answer]", "score": 0.75, "box": [1.0, 2.0, 11.13, 12.0]},
            {"phrase": "the dog", "score": 0.4, "box": [0.0, 0.0, 5.0, 5.0]},
        ]
    assert talking_predictor.asked[-2:] == [((20, 30, 3), "What is the dog chasing?")] * 2
    # 20 x 30 pixels are enlarged to 533 x 800; question and answer stand below.
    for drawing in drawings:
        assert drawing.shape[1] == 800
        assert has_color(drawing[533:], 0) and has_color(drawing[533:], 1)


def test_a_caption_is_written_for_every_image(run_on_two, talking_predictor):
    content, drawings = run_on_two("--task", "caption")
    assert sorted(content) == ["predictions"] and len(content["predictions"]) == 2
    for record in content["predictions"]:
        assert record["caption"] == "a dog and a cat" and record["score"] == -0.7654
        assert record["detections"] == [{"phrase": "a dog", "score": 0.75, "box": [1.0, 2.0, 11.13, 12.0]}]
        # Of the words also those with a low score.
        assert record["words"] == [
            {"word": "dog", "span": [2, 5], "score": 0.7654, "box": [1.0, 2.0, 11.13, 12.0]},
            {"word": "and", "span": [6, 9], "score": 0.0, "box": None},
        ]
    assert talking_predictor.asked[-2:] == [(20, 30, 3)] * 2
    for drawing in drawings:
        # The box of the second phrase has too low a score.
        assert has_color(drawing[533:], 0) and not has_color(drawing[533:], 1)


@pytest.mark.parametrize("words", [["--task", "vqa", "--question", "What is it?"], ["--task", "caption"]])
def test_a_model_without_grounding_gives_text_and_no_boxes(run_on_two, talking_predictor, monkeypatch, words):
    monkeypatch.setattr(talking_predictor, "boxes", [])
    monkeypatch.setattr(talking_predictor, "scores", [])
    content, drawings = run_on_two(*words)
    assert [record["detections"] for record in content["predictions"]] == [[], []]
    assert all(record.get("words", []) == [] for record in content["predictions"])
    assert all((drawing[:500] == drawing[0, 0]).all() and drawing.shape[0] > 533 for drawing in drawings)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--task", "vqa"],
            "--question: expected a question with --task vqa and none with other tasks, found no question",
        ),
        (["--question", "What is it?"], "found --task detect"),
        (["--task", "caption", "--question", "What is it?"], "found --task caption"),
        (["--task", "caption", "--prompt", "a dog"], "--caption, --names: expected --task detect or refer"),
        (["--task", "caption", "--vocabulary", "dog"], "--caption, --names: expected --task detect"),
    ],
)
def test_flags_that_do_not_fit_together_end_in_one_line(run, talking_predictor, words, message):
    before = len(talking_predictor.asked)
    with pytest.raises(SystemExit) as exit_info:
        run(*words)
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert len(talking_predictor.asked) == before


def test_texts_of_a_video_are_not_drawn(run, talking_predictor, tmp_path):
    source = ["--video-input", write_video(tmp_path / "in.mp4")]
    for words in (["--task", "vqa", "--question", "What is it?"], ["--task", "caption"]):
        with pytest.raises(SystemExit, match="--save: expected json or jsonl with --task .* found images; --save json"):
            run(*words, source=source)
        content = run(*words, "--save", "json", source=source)
        assert [record["frame"] for record in content["predictions"]] == [0, 1, 2]
    assert not (tmp_path / "out" / "in.mp4").exists()


def test_a_question_and_a_prompt_exclude_each_other(run, talking_predictor, capsys):
    with pytest.raises(SystemExit):
        run("--task", "vqa", "--question", "What is it?", "--prompt", "a dog")
    assert "not allowed with argument" in capsys.readouterr().err


# --- what is saved


def test_coco_results_and_their_images_are_read_by_pycocotools(run, masking_predictor, tmp_path):
    images = write_images(tmp_path / "images", "a.png", "b.png")
    run("--save", "coco,json", "--threshold", "0.3", source=[str(images)])
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == ["coco_images.json", "coco_results.json", "predictions.json"]
    coco = COCO(str(out / "coco_images.json"))
    assert [image["file_name"] for image in coco.imgs.values()] == [str(images / "a.png"), str(images / "b.png")]
    assert [one["name"] for one in coco.cats.values()] == ["a cat", "a dog"]
    results = coco.loadRes(str(out / "coco_results.json"))
    assert [(one["image_id"], one["category_id"]) for one in results.anns.values()] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    dog = results.anns[2]
    assert dog["bbox"] == [10.0, 4.0, 14.0, 12.0] and dog["score"] == 0.75 and dog["area"] == 168
    assert (results.annToMask(dog) == mask_utils.decode(mask_utils.frPyObjects(RUN_LENGTHS, 20, 30))).all()


def test_coco_results_without_a_detection_are_an_empty_list(run, masking_predictor, tmp_path):
    run("--save", "coco,json", "--threshold", "0.9")
    assert json.loads((tmp_path / "out" / "coco_results.json").read_text()) == []
    assert len(json.loads((tmp_path / "out" / "coco_images.json").read_text())["images"]) == 1


def test_lines_yolo_and_crops(run, masking_predictor, tmp_path):
    images = write_images(tmp_path / "images", "a.png", "b.png")
    cv2.imwrite(str(images / "a.png"), np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    content = run("--save", "json,jsonl,yolo,crops", source=[str(images)])
    out = tmp_path / "out"
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == content["predictions"]
    assert (out / "classes.txt").read_text() == "a cat\na dog\n"
    # Box 10, 4, 24, 16 of 30 x 20 pixels: its centre is (17, 10), its sides are 14 and 12.
    assert (out / "labels" / "a.txt").read_text() == "1 0.566667 0.500000 0.466667 0.600000\n"
    crop = cv2.imread(str(out / "crops" / "a dog" / "a_0.png"))
    assert (crop == cv2.imread(str(images / "a.png"))[4:16, 10:24]).all()
    assert sorted(path.name for path in (out / "crops").rglob("*.png")) == ["a_0.png", "b_0.png"]
    assert not list(out.glob("*.png"))


def test_yolo_lines_beside_their_images_are_a_set_to_train_on(run, fixed_predictor, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        cv2.imwrite(str(images / f"{number}.png"), np.full((20, 30, 3), 40 * number, np.uint8))
    run("--save", "json,yolo", "--threshold", "0.3", source=[str(images)])
    shutil.copytree(images, tmp_path / "out" / "images")
    own = find_own_sets(tmp_path / "out")
    boxes = [sorted(one["bbox"] for one in split.content["annotations"]) for split in own.splits.values()]
    assert own.names == ["a cat", "a dog"] and sum(map(len, boxes)) == 8
    # Left, top, width, height.
    expected = [pytest.approx([0, 0, 5, 5], abs=0.01), pytest.approx([1, 2, 10.126, 10], abs=0.01)]
    assert all(box in expected for box in sum(boxes, []))


def test_a_second_run_replaces_the_first(run, masking_predictor, tmp_path):
    for _ in range(2):
        content = run("--save", "json,jsonl,coco", source=[str(write_images(tmp_path / "images", "a.png", "b.png"))])
    assert len(content["predictions"]) == 2
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2
    assert len(json.loads((tmp_path / "out" / "coco_images.json").read_text())["images"]) == 2


def test_phrases_are_safe_names_of_folders():
    found = [folder_name(text) for text in ("a dog", "../../etc", "a/b", "", "...", "\u732b", "x" * 300)]
    assert found == ["a dog", "_etc", "a_b", "_", "_", "\u732b", "x" * 60]


def test_the_best_boxes_are_kept(run, fixed_predictor):
    (record,) = run("--max-boxes", "1", "--threshold", "0")["predictions"]
    assert [one["score"] for one in record["detections"]] == [0.75]


def test_a_threshold_above_all_scores_is_named_with_one_that_shows_the_best(run, fixed_predictor, tmp_path, capsys):
    run("--threshold", "0.8")
    # The best score is 0.75.
    found = ": all scores are below 0.8, --threshold 0.75 shows the best one"
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}: 1 image, 0 detections{found}\n"
    run("--threshold", "0.75")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}: 1 image, 1 detection\n"


def test_a_lower_threshold_is_named_with_the_images_that_it_shows_something_in():
    # Three of the four images with a score have one from 0.2 on, two from 0.317 on.
    found = lower_threshold([0.1, 0.4, 0.0, 0.2, 0.317], 0.5)
    assert found == ": all scores are below 0.5, --threshold 0.2 shows something in 3 of 5"
    assert lower_threshold([0.1, 0.4, 0.317], 0.5).endswith("--threshold 0.31 shows something in 2 of 3")
    assert lower_threshold([0.0, 0.004, 0.0], 0.5).endswith("--threshold 0 shows something in 1 of 3")


def test_names_come_from_a_file(run, fixed_predictor, tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffdog\n\n traffic light \n", encoding="utf-8")
    run("--names-file", str(tmp_path / "names.txt"))
    assert fixed_predictor[0][1] == ["dog", "traffic light"]


def test_a_batch_is_read_at_once(run, use_predictor, tmp_path, monkeypatch):
    seen = []

    class Predictor:
        def __init__(self, cfg):
            pass

        def __call__(self, image, prompt):
            raise AssertionError

    use_predictor(Predictor)

    def stream(self, images, prompt, batch_size):
        seen.append((prompt, batch_size))
        return iter([{"instances": make_instances((20, 30), [], [], []), "phrases": ["dog"]} for _ in images])

    monkeypatch.setattr(Predictor, "stream", stream)
    content = run("--names", "dog", "--batch-size", "3", "--threshold", "0.25")
    assert seen == [(["dog"], 3)] and content["predictions"][0]["detections"] == []


def test_an_input_that_is_not_there_does_not_end_the_run(run, fixed_predictor, tmp_path, capsys):
    images = write_images(tmp_path / "images", "a.png")
    content = run(source=[str(tmp_path / "none" / "*.jpg"), str(images / "a.png"), str(images / "b.png")])
    assert [Path(record["file_name"]).name for record in content["predictions"]] == ["a.png"]
    output = capsys.readouterr()
    for name in (tmp_path / "none" / "*.jpg", images / "b.png"):
        assert f"skipped {name}: no image files there" in output.err
    assert output.err.endswith("b.png: no image files there\n2 inputs not found, see above\n")
    assert output.out == f"wrote {tmp_path / 'out'}: 1 image, 1 detection\n"


def test_every_truncated_image_is_named_and_drawn(run, fixed_predictor, tmp_path, capsys):
    images = write_images(tmp_path / "images", "a.jpg")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    content = cv2.imencode(".jpg", pixels)[1].tobytes()
    for name in ("b.jpg", "c.jpg"):
        (images / name).write_bytes(content[:-200])
    records = run(source=[str(images)])["predictions"]
    assert len(records) == 3
    lines = capsys.readouterr().err.splitlines()
    named = [line for line in lines if line.endswith("; decoded as far as it goes")]
    assert [line.split(": ")[0] for line in named] == [str(images / "b.jpg"), str(images / "c.jpg")]


def test_images_and_a_broken_video_in_one_run(run, fixed_predictor, tmp_path, capsys):
    images = write_images(tmp_path / "images", "a.png")
    (images / "broken.mp4").write_bytes(b"no video")
    write_video(images / "clip.mp4")
    content = run(source=[str(images / "a.png"), str(images / "broken.mp4"), str(images / "clip.mp4")])
    assert [record.get("frame") for record in content["predictions"]] == [None, 0, 1, 2]
    output = capsys.readouterr()
    assert f"skipped {images / 'broken.mp4'}: no frame can be read" in output.err
    assert output.err.endswith("\n1 of 2 videos skipped, see above\n")
    assert output.out == f"wrote {tmp_path / 'out'}: 1 image and 3 frames of 1 video, 4 detections\n"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "clip.mp4", "predictions.json"]


def test_frames_of_a_damaged_video_are_counted(run, fixed_predictor, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "cut.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 48))
    for frame in np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    content = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: int(0.6 * len(content))])
    done = len(run(source=[str(tmp_path / "cut.avi")])["predictions"])
    output = capsys.readouterr()
    assert 0 < done < 8 and f"cut.avi: {8 - done} of 8 frames cannot be read; the video is damaged\n" in output.err
    assert f"{done} frames of 1 video" in output.out


def test_a_drawn_video_takes_the_place_of_a_link_and_does_not_follow_it(run, fixed_predictor, tmp_path):
    video = Path(write_video(tmp_path / "in.mp4"))
    content = video.read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "in.mp4").symlink_to(video)
    run(source=["--video-input", str(video)])
    assert video.read_bytes() == content and not (tmp_path / "out" / "in.mp4").is_symlink()


@pytest.mark.parametrize(("said", "rate"), [(0.0, 25), (-1.0, 25), (float("nan"), 25), (90000.0, 25), (59.94, 59.94)])
def test_a_rate_of_frames_that_cannot_be_is_not_believed(monkeypatch, said, rate):
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: SimpleNamespace(get=lambda key: said))
    assert predict_sources.Frames(predict_sources.Source("0", "webcam")).rate == rate


def test_an_address_of_any_length_gives_names_that_a_disk_takes(tmp_path):
    folder = ResultFolder(tmp_path, ["images"], {})
    for text in ("x" * 400, "ü" * 200, "犬" * 200):
        name = folder.item(f"https://example.org/{text}.jpg?size=3").name
        (tmp_path / f"{name}_000000.png").touch()
        assert text.startswith(name) and len(name) > 50


def test_a_webcam_ends_with_ctrl_c(run, fixed_predictor, tmp_path, monkeypatch):
    opened, capture = [], cv2.VideoCapture

    class Webcam:
        def __new__(cls, source):
            # The video that is drawn is looked at, too.
            return super().__new__(cls) if source == 0 else capture(source)

        def __init__(self, number):
            opened.append(number)
            self.left = 2

        def get(self, key):
            return 0.0

        def read(self):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return True, np.zeros((20, 30, 3), np.uint8)

        def release(self):
            opened.append("closed")

    monkeypatch.setattr(predict_sources.cv2, "VideoCapture", Webcam)
    content = run(source=["0"])
    assert opened == [0, "closed"]
    assert [(one["file_name"], one["frame"]) for one in content["predictions"]] == [("webcam 0", 0), ("webcam 0", 1)]
    assert (tmp_path / "out" / "webcam 0.mp4").is_file()


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "INPUT: expected images, folders, globs, videos, addresses or a webcam number, found none"),
        (["http://a/b.jpg"], "INPUT: expected a file, found the address http://a/b.jpg; --allow-downloads fetches it"),
        ([__file__, "--save", "images,pdf"], "--save: expected some of images, json, jsonl, coco, yolo, crops"),
        ([__file__, "--save", "coco", "--task", "caption"], "--save: expected some of images, json, jsonl with"),
        ([__file__, "--batch-size", "0"], "--batch-size: expected a number from 1, found 0"),
        ([__file__, "--max-boxes", "-1"], "--max-boxes: expected a number from 1, found -1"),
        ([__file__, "--names-file", "/missing.txt"], "/missing.txt"),
        ([__file__, "--names-file", "/dev/null"], "--names-file: expected a name on each line, found none in"),
    ],
)
def test_wrong_flags_end_in_one_line(run, fixed_predictor, tmp_path, words, message):
    with pytest.raises(SystemExit) as exit_info:
        run(source=words)
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_a_model(tiny_cfg, tmp_path, capsys):
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.001
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    predictor = GLIPv2Predictor(tiny_cfg)
    (run_folder / "config.yaml").write_text(tiny_cfg.dump())
    GLIPv2Checkpointer(predictor.model, str(run_folder)).save("model_final")
    images = write_images(tmp_path / "images", "a.png", "b.png", "c.png")
    words = [str(images), "--names", "dog", "--threshold", "0", "--batch-size", "2", "--output", str(tmp_path / "out")]
    for model in (["--model", str(run_folder)], ["--config-file", str(run_folder / "config.yaml")]):
        run_command("predict", [*words, *model, "--opts", "MODEL.DEVICE", "cpu"])
        records = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
        expected = predictor(images / "a.png", ["dog"]).to_json()["detections"]
        assert len(records) == 3 and records[0]["detections"] == expected and expected
