import io
import json
import threading

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from glipv2_d2.data.datasets.caption_files import CaptionSample, SkippedCaption
from glipv2_d2.data.datasets.grounding_records import read_odvg_grounding
from glipv2_d2.engine import pseudo_boxes
from glipv2_d2.engine.pseudo_boxes import (
    CaptionPhrases,
    PseudoBoxLabeller,
    PseudoBoxTeacher,
    image_suffix,
    load_image,
    regions_of,
    teacher_id,
)
from glipv2_d2.engine.shard_writer import ShardWriter
from glipv2_d2.prompts.phrase_finders import build_phrase_finder
from glipv2_d2.structures import TokenizedPrompt

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def encode(extension, height=20, width=30, value=100):
    return cv2.imencode(f".{extension}", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def make_caption(*phrases):
    spans = [[(10 * row, 10 * row + len(phrase))] for row, phrase in enumerate(phrases)]
    token_map = torch.zeros(len(phrases), 1, dtype=torch.bool)
    prompt = TokenizedPrompt(torch.tensor([1]), token_map, torch.arange(len(phrases)), phrases)
    return CaptionPhrases(prompt, spans, 0, 0)


def make_instances(boxes, scores, rows, size=(20, 30)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(rows, dtype=torch.int64)
    return instances


# --- regions


def test_detections_become_regions_inside_the_image():
    caption = make_caption("a cat", "two dogs")
    boxes = [[-0.5, 2.004, 11.126, 20.7], [1.0, 2.0, 30.6, 12.0]]
    assert regions_of(make_instances(boxes, [0.75006, 0.5], [1, 0]), caption, 0.5) == [
        {"bbox": [0.0, 2.0, 11.13, 20.0], "phrase": "two dogs", "tokens_positive": [[10, 18]], "score": 0.7501},
        {"bbox": [1.0, 2.0, 30.0, 12.0], "phrase": "a cat", "tokens_positive": [[0, 5]], "score": 0.5},
    ]


@pytest.mark.parametrize(
    "box, score",
    [
        ([1.0, 1.0, 5.0, 5.0], 0.49),
        ([1.0, 1.0, 5.0, 5.0], float("nan")),
        ([1.0, 1.0, 2.004, 5.0], 0.9),
        ([1.0, 1.0, 5.0, 2.0], 0.9),
        ([1.0, 5.0, 5.0, 1.0], 0.9),
        ([30.0, 1.0, 30.5, 5.0], 0.9),
        ([1.0, -3.0, 5.0, 0.0], 0.9),
    ],
)
def test_low_scores_and_empty_boxes_are_left_out(box, score):
    assert regions_of(make_instances([box], [score], [0]), make_caption("a cat"), 0.5) == []


def test_readers_of_grounding_data_take_every_region():
    boxes = [[-0.5, 2.0, 11.126, 20.7], [28.99, 18.99, 30.6, 20.5], [1.0, 1.0, 2.0, 9.0]]
    caption = make_caption("a cat")
    regions = regions_of(make_instances(boxes, [0.75, 0.5, 0.9], [0, 0, 0]), caption, 0.5)
    record = {"height": 20, "width": 30, "grounding": {"caption": "a cat", "regions": regions}, "teacher": "me"}
    read, left_out = read_odvg_grounding(json.loads(json.dumps(record)))
    assert left_out == []
    assert [(item["bbox"], item["score"], item["tokens_positive"]) for item in read["annotations"]] == [
        ((0.0, 2.0, 11.13, 20.0), 0.75, ((0, 5),)),
        ((28.99, 18.99, 30.0, 20.0), 0.5, ((0, 5),)),
    ]


def test_no_detections_are_no_regions():
    assert regions_of(make_instances([], [], []), make_caption("a cat"), 0.5) == []


# --- images


def sample_of(image=None, file_name="a.jpg", caption="a cat", key="0"):
    return CaptionSample("line 1", key, file_name, caption, image)


def test_images_are_read_from_files_and_from_bytes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode("png", value=7))
    for sample in (sample_of(), sample_of(encode("png", value=7))):
        content, pixels = load_image(sample, str(tmp_path))
        assert content == encode("png", value=7)
        assert pixels.shape == (20, 30, 3) and (pixels == 7).all()


def test_images_are_blue_first_and_upright():
    image = Image.new("RGB", (30, 20), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    _, pixels = load_image(sample_of(file.getvalue()), "")
    assert pixels.shape == (30, 20, 3) and pixels[0, 0].tolist() == [0, 0, 255]


def test_missing_and_broken_images_say_why(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jpg").write_bytes(encode("jpg")[:200])
    reasons = {
        "none.jpg": "image file that is missing",
        "a.jpg/b.jpg": "image file that is missing",
        "folder": "image file that cannot be opened",
        "\x00": "image file that cannot be opened",
        "a.jpg": "image that is broken",
    }
    for file_name, reason in reasons.items():
        assert load_image(sample_of(file_name=file_name), str(tmp_path)) == SkippedCaption("line 1", reason)
    assert load_image(sample_of(b""), "") == SkippedCaption("line 1", "image that is broken")


@pytest.mark.parametrize("extension, suffix", [("jpg", "jpg"), ("png", "png"), ("webp", "webp"), ("bmp", None)])
def test_the_suffix_follows_the_content(extension, suffix):
    assert image_suffix(encode(extension)) == suffix
    assert image_suffix(b"") is None


# --- shards


class FixedTeacher:
    """Finds as many boxes for the last phrase of a caption as the image has columns of pixels beyond 30."""

    def __init__(self):
        self.batches = []

    def read_caption(self, caption):
        return make_caption(*caption.split(",")) if caption else None

    def find_regions(self, images, captions):
        self.batches.append(len(images))
        return [
            [
                {
                    "bbox": [0.0, 0.0, 5.0, 5.0],
                    "phrase": caption.prompt.phrases[-1],
                    "tokens_positive": [list(span) for span in caption.spans[-1]],
                    "score": 0.5,
                }
                for _ in range(image.shape[1] - 30)
            ]
            for image, caption in zip(images, captions)
        ]


def label(samples, as_tar=False, **options):
    teacher, file, steps = FixedTeacher(), io.BytesIO(), []
    options = {"image_root": "", "batch_size": 2, "num_threads": 0, **options}
    labeller = PseudoBoxLabeller(teacher, "me-1", **options)
    writer = ShardWriter(file, as_tar)
    counts = labeller.label_shard(iter(samples), writer, lambda: steps.append(1))
    assert len(steps) == counts.samples == len(samples)
    writer.close()
    return counts, file.getvalue(), teacher.batches


@pytest.mark.parametrize("num_threads", [0, 3])
def test_every_image_with_a_box_is_a_record_and_everything_is_counted(num_threads):
    samples = [sample_of(encode("png", width=30 + n), f"{n}.png", "a cat,a dog", str(n)) for n in (2, 0, 1, 1, 3)]
    samples.insert(1, SkippedCaption("line 2", "no caption"))
    samples.insert(3, sample_of(b"", "broken.png"))
    samples.insert(4, sample_of(encode("png"), caption=""))
    counts, content, batches = label(samples, num_threads=num_threads)
    records = [json.loads(line) for line in content.splitlines()]
    assert [record["filename"] for record in records] == ["2.png", "1.png", "1.png", "3.png"]
    assert records[0] == {
        "filename": "2.png",
        "height": 20,
        "width": 32,
        "grounding": {
            "caption": "a cat,a dog",
            "regions": [{"bbox": [0.0, 0.0, 5.0, 5.0], "phrase": "a dog", "tokens_positive": [[10, 15]], "score": 0.5}]
            * 2,
        },
        "teacher": "me-1",
    }
    assert batches == [2, 2, 1]
    assert (counts.samples, counts.images, counts.images_without_box, counts.boxes) == (8, 5, 1, 7)
    assert (counts.phrases_found, counts.phrases_kept) == (10, 4)
    assert counts.skipped == {
        "no caption": ["line 2"],
        "image that is broken": ["line 1"],
        "caption without a noun phrase": ["line 1"],
    }
    assert 0 < counts.seconds < 60


def test_tar_shards_hold_images_of_their_formats_only():
    samples = [
        sample_of(encode(extension, width=31), f"x.{extension}", key=extension) for extension in ("jpg", "bmp", "webp")
    ]
    counts, content, _ = label(samples, as_tar=True)
    assert counts.skipped == {"image of a format that tar shards do not hold": ["line 1"]} and counts.images == 2
    for name in (b"jpg.jpg", b"jpg.json", b"webp.webp", b"webp.json"):
        assert name in content
    assert b"bmp.json" not in content and encode("webp", width=31) in content
    counts, content, _ = label(samples)
    assert not counts.skipped and b"x.bmp" in content


def test_no_samples_are_an_empty_shard():
    counts, content, batches = label([])
    assert (counts.samples, counts.images, content, batches) == (0, 0, b"", [])


def test_threads_read_no_more_than_a_batch_ahead(monkeypatch):
    started, most_ahead = [], []
    lock = threading.Lock()
    original = pseudo_boxes.load_image

    def count(sample, image_root):
        with lock:
            started.append(sample)
        return original(sample, image_root)

    monkeypatch.setattr(pseudo_boxes, "load_image", count)
    labeller = PseudoBoxLabeller(FixedTeacher(), "me", image_root="", batch_size=3, num_threads=2)
    pairs = ((sample_of(encode("png")), make_caption("a cat")) for _ in range(30))
    for number, (_, _, (content, _)) in enumerate(labeller._with_images(pairs)):
        assert content == encode("png")
        most_ahead.append(len(started) - number)
    assert len(started) == 30 and max(most_ahead) <= 3 + 1


# --- the teacher


@pytest.fixture
def teacher(tiny_cfg, tmp_path):
    torch.manual_seed(0)
    # An untrained head gives about 0.01 to everything.
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.001, "TEST.DETECTIONS_PER_IMAGE", 20])
    return PseudoBoxTeacher(tiny_cfg, build_phrase_finder("rules"), 0.01)


def test_captions_are_read_by_their_noun_phrases(teacher):
    caption = teacher.read_caption("a dog and a dog")
    assert caption.prompt.phrases == ("a dog", "a dog")
    assert caption.spans == [[(0, 5)], [(10, 15)]]
    assert caption.prompt.category_ids.tolist() == [0, 1]
    assert (caption.num_past_limit, caption.num_without_tokens) == (0, 0)


def test_typed_special_tokens_of_a_caption_are_text(teacher):
    caption = teacher.read_caption("a dog [MASK] a cat")
    assert teacher.tokenizer.mask_id not in caption.prompt.input_ids.tolist()
    assert caption.spans[-1] == [(13, 18)]


@pytest.mark.parametrize("caption", ["", "  ", "of the and", "\x00\x07", "\u202e"])
def test_captions_without_a_noun_have_no_phrases(teacher, caption):
    assert teacher.read_caption(caption) is None


def test_right_to_left_and_control_characters_are_read(teacher):
    caption = teacher.read_caption("\x07a dog\u202e כלב חתול\u202c and a cat")
    assert caption.prompt.phrases[0] == "a dog" and caption.prompt.phrases[-1] == "a cat"
    assert caption.prompt.phrase_token_map.any(dim=1).all()
    assert (caption.num_past_limit, caption.num_without_tokens) == (0, 0)


def test_phrases_past_the_token_limit_are_counted(teacher):
    text = "a dog, " * 1428  # 9,996 characters; "a", "dog" and "," are a token each, 254 are left for them
    caption = teacher.read_caption(text)
    assert len(caption.spans) == 1428 and len(caption.prompt) == 256
    # Phrase k ends with token 3 k + 2 of 254: 84 fit, and of the next "a dog" both tokens do.
    assert caption.num_past_limit == 1428 - 85 and caption.num_without_tokens == 0


def test_phrases_that_are_no_tokens_are_told_from_those_past_the_limit(teacher):
    finder = teacher.finder._replace(find=lambda caption: [("a dog", [(0, 5)]), ("\x07" * 9, [(6, 15)])])
    teacher.finder = finder
    caption = teacher.read_caption("a dog " + "\x07" * 9)
    assert (caption.num_past_limit, caption.num_without_tokens) == (0, 1)


def test_regions_are_what_the_predictor_finds_image_by_image(teacher):
    texts = ["a man on a skateboard", "two dogs"]
    images = [np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8) for seed in range(2)]
    found = teacher.find_regions(images, [teacher.read_caption(text) for text in texts])
    for text, image, regions in zip(texts, images, found):
        output = teacher(image, text)
        instances, phrases = output["instances"], output["phrases"]
        for row, phrase in enumerate(phrases):
            expected = instances.scores[(instances.pred_classes == row) & (instances.scores >= 0.01)].tolist()
            scores = [region["score"] for region in regions if region["phrase"] == phrase]
            assert len(expected) > 0 and scores == pytest.approx(sorted(expected, reverse=True), abs=2e-4)
        for region in regions:
            [[begin, end]] = region["tokens_positive"]
            assert text[begin:end] == region["phrase"]
            left, top, right, bottom = region["bbox"]
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 48


def test_a_teacher_is_named_by_config_and_weights(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"abc")
    # sha256 of "abc", FIPS 180-2, appendix B.1.
    assert teacher_id("configs/pretrain/glipv2_swin_t.yaml", str(tmp_path / "w.pth")) == "glipv2_swin_t-ba7816bf8f01"
    with pytest.raises(FileNotFoundError, match="--weights: expected the weights of a teacher, found no file"):
        teacher_id("a.yaml", str(tmp_path / "none.pth"))
