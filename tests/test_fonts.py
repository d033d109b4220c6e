import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib import font_manager
from PIL import ImageFont

from glipv2_d2 import fonts
from glipv2_d2.fonts import legible
from glipv2_d2.visualizer import GroundingVisualizer

FONT = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 20)


@pytest.fixture
def without_other_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "_other_paths", lambda: ())


def has_letters(text, font):
    letters = font_manager.get_font(font.path).get_charmap()
    return all(ord(letter) in letters or letter.isspace() for letter in text)


@pytest.mark.parametrize("text", ["a dog 21%", "café", "собака", "σκύλος", ""])
def test_letters_of_the_first_font_stay(text):
    assert legible(text, FONT)[0] == text and has_letters(text, legible(text, FONT)[1])


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("汽车 21%", "U+6C7D  U+8F66  21%"),
        ("고양이", "goyangi"),
        ("カメラ", "kamera"),
        ("ＣＡＲ", "CAR"),
        ("a 🐶", "a [dog face]"),
        ("🐶 10%", "[dog face] 10%"),
    ],
)
def test_letters_of_no_font_are_spelled_out(without_other_fonts, text, spelled):
    assert legible(text, FONT)[0] == spelled and has_letters(spelled, legible(text, FONT)[1])


def test_a_font_that_has_the_letters_is_found(monkeypatch):
    # A font of mathematics stands for one of another script.
    path = font_manager.findfont("STIXGeneral")
    letter = chr(
        next(code for code in sorted(fonts._letters(path) - fonts._letters(fonts._first_path())) if code > 0x2000)
    )
    monkeypatch.setattr(fonts, "_other_paths", lambda: ("/no/font.ttf", path))
    text, font = legible(f"x {letter}", FONT)
    assert text == f"x {letter}" and font.path == path and font.size == 20


@pytest.mark.parametrize("phrases", [["乌鸦", "生姜"], ["고양이", "🐶"]])
def test_labels_in_other_scripts_differ(without_other_fonts, phrases):
    instances = Instances((100, 100))
    instances.pred_boxes, instances.scores = Boxes(torch.tensor([[10.0, 40.0, 90.0, 90.0]])), torch.tensor([0.5])
    drawn = []
    for phrase in phrases:
        instances.pred_classes = torch.tensor([0])
        image = GroundingVisualizer(np.zeros((100, 100, 3), np.uint8)).draw_predictions(instances, [phrase], phrase)
        drawn.append(image)
    assert drawn[0].shape != drawn[1].shape or not np.array_equal(*drawn)
