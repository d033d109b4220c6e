"""What the page of ``glipv2 serve`` answers, without a browser."""

import stat
import struct
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

gradio = pytest.importorskip("gradio")

from page_cases import make_predictor  # noqa: E402

from glipv2_d2.errors import InputError  # noqa: E402
from glipv2_d2.program.page import Answers, Found, build_page, draw, draw_caption, in_words  # noqa: E402
from glipv2_d2.program.serve import surroundings  # noqa: E402
from glipv2_d2.visualizer import GroundingVisualizer  # noqa: E402


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return make_predictor(tmp_path_factory.mktemp("page"))


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "dog.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)).save(path)
    return str(path)


def make_found(caption=None):
    instances = Instances((48, 80))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 30, 40], [5, 6, 70, 44], [0, 0, 9, 9]]))
    instances.scores = torch.tensor([0.4, 0.9, 0.1])
    instances.pred_classes = torch.tensor([0, 1, 0])
    image = np.full((48, 80, 3), 200, np.uint8)
    return Found(image, instances, ["dog", "cat"], caption)


def test_detections_are_those_of_the_predictor(predictor, photograph):
    found, drawing, rows, said = Answers(predictor).find(photograph, "zebra, cup", 0.0)
    expected = predictor(np.asarray(Image.open(photograph))[:, :, ::-1], ["zebra", "cup"])
    assert found.phrases == ["zebra", "cup"] and found.caption is None
    assert torch.equal(found.instances.pred_boxes.tensor, expected["instances"].pred_boxes.tensor)
    assert len(rows) == len(expected["instances"]) > 0 and said.startswith(f"{len(rows)} found")
    assert drawing.dtype == np.uint8


def test_a_sentence_stands_below_its_drawing(predictor, photograph):
    found, drawing, _, _ = Answers(predictor).find(photograph, "a cat near a dog", 0.0)
    assert found.caption == "a cat near a dog" and found.phrases == ["a cat", "a dog"]
    _, names_drawing, _, _ = Answers(predictor).find(photograph, "cat, dog", 0.0)
    assert drawing.shape[0] > names_drawing.shape[0]


@pytest.mark.parametrize(("threshold", "names"), [(0.0, ["cat", "dog", "dog"]), (0.4, ["cat", "dog"]), (0.95, [])])
def test_the_threshold_keeps_scores_from_it_on_the_best_first(threshold, names):
    drawing, rows, said = draw(make_found(), threshold)
    assert [row[0] for row in rows] == names
    if names:
        assert rows[0] == ["cat", 0.9, 5.0, 6.0, 70.0, 44.0]
        assert said == f"{len(names)} found with a score of at least {threshold:.2f}."
    else:
        assert said == "Nothing found. The best score is 0.90."
        assert np.array_equal(
            drawing,
            GroundingVisualizer(make_found().image).draw_predictions(make_found().instances[:0], ["dog", "cat"]),
        )


def test_without_a_photograph_there_is_nothing_to_draw():
    assert draw(None, 0.3) == (None, [], "")
    assert draw_caption(None, "all") is None


def test_an_answer_comes_with_its_scores_and_a_drawing(predictor, photograph):
    drawing, best = Answers(predictor).answer(photograph, "is there a dog?")
    assert set(best) == {"yes", "no", "two"} and all(0 <= score <= 1 for score in best.values())
    assert drawing.ndim == 3


def test_words_of_a_caption_choose_their_box():
    found = make_found("a dog and a cat")._replace(
        spans=[[(0, 5)], [(10, 15)]],
        words=[{"word": "dog", "span": (2, 5), "box": [1.0, 2, 30, 40], "score": 0.4}],
    )
    together, alone = draw_caption(found, "all"), draw_caption(found, "1. dog")
    # Only the box of the cat reaches column 60 of the image; drawings are ten times as large.
    assert (together[60:440, 600:] != 200).any() and (alone[60:440, 600:] == 200).all()


def test_a_description_gives_its_words_to_choose_from(predictor, photograph):
    found, drawing, colored, chooser = Answers(predictor).describe(photograph)
    assert "".join(word["token"] for word in colored.value).strip() == found.caption.strip()
    assert [name for name, _ in chooser.choices][0] == "all" and len(chooser.choices) == len(found.words) + 1
    assert drawing.ndim == 3


def claiming_png(side):
    """A PNG that says to have sides of so many pixels, and holds none."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    packed = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("content", "text", "message"),
    [
        (None, "dog", "Choose a photograph first."),
        (b"not an image", "dog", "^wrong.jpg: cannot identify a format of images; expected a readable image$"),
        (b"", "dog", "expected a readable image"),
        (b"\x89PNG\r\n\x1a\n", "dog", "expected a readable image"),
        # PIL has an error of its own for a claim of 400 million pixels.
        (claiming_png(20_000), "dog", "^wrong.jpg: Image size .*; expected a readable image$"),
        ("image", " ", "Write names, such as"),
    ],
)
def test_what_is_wrong_is_said(predictor, photograph, tmp_path, content, text, message):
    file = None if content is None else photograph
    if isinstance(content, bytes):
        file = str(tmp_path / "wrong.jpg")
        (tmp_path / "wrong.jpg").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Answers(predictor).find(file, text, 0.3)


def raise_memory_error():
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")


def raise_input_error():
    raise InputError("names: expected words, found '<img src=x>'")


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        # The page would show it as a picture.
        (raise_input_error, "names: expected words, found '&lt;img src=x&gt;'"),
        (raise_memory_error, "There is not enough memory; try a smaller photograph or fewer names."),
    ],
)
def test_the_page_says_what_is_wrong_as_it_is(handler, message):
    with pytest.raises(gradio.Error) as raised:
        in_words(handler)()
    assert raised.value.message == message


def test_files_of_photographs_and_drawings_do_not_stay_for_ever(predictor):
    frequency, age = build_page(predictor, "small").delete_cache
    assert frequency <= age <= 24 * 3600


def test_the_page_has_a_tab_for_each_thing_that_the_model_does(predictor):
    def tabs(page):
        return [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)]

    assert tabs(build_page(predictor, "small")) == ["Find", "Ask", "Describe"]


def test_a_page_has_files_of_its_own_and_no_proxy_before_it(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    with surroundings("192.0.2.1"):
        folder = Path(gradio.utils.get_upload_folder())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(map(urllib.request.proxy_bypass, ("intranet", "localhost", "127.0.0.1", "192.0.2.1")))
        assert not urllib.request.proxy_bypass("example.org")
    assert not folder.exists()
