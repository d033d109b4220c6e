import time

import cv2
import numpy as np
import pytest
from check_cases import DOG, by_kind, check, encoded
from PIL import Image

# Five images without a fault.
GOOD = {f"{k}.jpg": (encoded(k), [DOG]) for k in range(5)}


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def test_a_good_set_has_no_findings(tmp_path):
    findings = check(tmp_path, {"train": GOOD, "val": {"9.jpg": (encoded(9), [DOG])}})
    assert findings.findings == [] and findings.stops == [] and findings.unreadable == {}
    # 32 of 48 pixels, at 192: 128.
    assert findings.lines() == [
        "mine: 6 images, 1 class, 6 boxes; half of them are under 128 pixels at input size 192",
        "    train 5 images 5 boxes; val 1 image 1 box",
    ]


CUT = encoded(50, (320, 240))[:-900]
ROWS = [
    ("unreadable images", "warning", None, "No such file"),
    ("unreadable images", "warning", b"", "cannot identify"),
    ("unreadable images", "warning", b"version https://git-lfs.github.com/spec/v1", "cannot identify"),
    ("unreadable images", "warning", encoded(99)[:500], "cannot identify"),
    ("unreadable images", "warning", encoded(99)[:640], "holds no pixels"),
    ("unreadable images", "warning", encoded(99, image_format="PNG")[:4000], "truncated"),
    ("truncated images", "warning", CUT, "% gray"),
    ("turned images", "note", encoded(99, exif=exif(3)), "orientation 3"),
    ("turned images", "note", encoded(99, (48, 64), exif=exif(6)), "orientation 6"),
    ("misnamed images", "note", encoded(99, image_format="PNG"), "PNG named .jpg"),
    ("gray images", "note", encoded(99, mode="L"), ""),
    ("sizes that differ", "warning", encoded(99, (65, 48)), "64 x 48 annotated, 65 x 48 in the file"),
    ("sizes that differ", "warning", encoded(99, (48, 64)), "64 x 48 annotated, 48 x 64 in the file"),
]


@pytest.mark.parametrize(("kind", "severity", "content", "case"), ROWS)
def test_each_fault_of_a_file_is_named(tmp_path, kind, severity, content, case):
    size = (320, 240) if content is CUT else (64, 48)
    findings = check(tmp_path, {"train": GOOD | {"x.jpg": (content, [DOG], *size)}})
    (one,) = findings.findings
    assert (one.kind, one.severity, one.number) == (kind, severity, 1) and "1 of 6 images" in one.text
    assert one.cases[0].startswith("train/x.jpg") and case in one.cases[0] and str(tmp_path) not in one.cases[0]
    assert (one.advice == "") == (severity == "note")
    assert findings.unreadable == ({"train": ["x.jpg"]} if kind == "unreadable images" else {})


@pytest.mark.parametrize("orientation", [0, 1, 65537])
def test_an_orientation_that_turns_nothing_is_no_finding(tmp_path, orientation):
    content = encoded(99, exif=exif(orientation)) if orientation < 9 else encoded(99)
    assert check(tmp_path, {"train": GOOD | {"x.jpg": (content, [DOG])}}).findings == []


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.png", encoded(99, image_format="PNG", mode="RGBA"), "images with alpha"),
        (
            "x.gif",
            encoded(99, image_format="GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
            "animated images",
        ),
        ("x.JPG", encoded(99), None),
        ("x.jpeg", encoded(99), None),
        ("x.webp", encoded(99, image_format="WEBP"), None),
    ],
)
def test_kinds_of_files_that_do_no_harm(tmp_path, name, content, kind):
    found = by_kind(check(tmp_path, {"train": GOOD | {name: (content, [DOG])}}))
    assert list(found) == ([kind] if kind else []) and all(one.severity == "note" for one in found.values())


def test_huge_images_are_named_with_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("glipv2_d2.data_check.images._HUGE_PIXELS", 64 * 48)
    (one,) = check(tmp_path, {"train": GOOD | {"x.jpg": (encoded(99, (65, 48)), [DOG], 65, 48)}}).findings
    assert one.kind == "huge images" and one.cases[0].startswith("train/x.jpg: 65 x 48, 0.0 MB")


def test_images_of_any_size_are_read_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("glipv2_d2.data.image_reading._MAX_PIXELS", 64 * 48 - 1)
    findings = check(tmp_path, {"train": GOOD})
    assert findings.findings == []
    findings.write(tmp_path / "report")
    assert (tmp_path / "report" / "data_check.html").read_text().count("<figure>") == 5


def test_images_without_a_readable_one_to_train_on_are_a_stop(tmp_path):
    findings = check(tmp_path, {"train": {"x.jpg": (b"text", [DOG])}, "val": GOOD})
    assert [one.kind for one in findings.stops] == ["unreadable images"] and findings.unreadable == {"train": ["x.jpg"]}


def test_copies_are_found_by_pixels_within_and_across_splits(tmp_path):
    original = encoded(7, image_format="PNG")
    # The same pixels in a file of other bytes.
    saved_again = cv2.imencode(".bmp", cv2.imdecode(np.frombuffer(original, np.uint8), 1))[1].tobytes()
    other = ("dog", 8, 8, 40, 41)
    train = GOOD | {"a.png": (original, [DOG]), "b.bmp": (saved_again, [DOG]), "c.jpg": (encoded(2), [DOG])}
    val = {"d.png": (original, [DOG]), "e.jpg": (encoded(4), [other])}
    found = by_kind(check(tmp_path, {"train": train, "val": val}))
    assert set(found) == {"copies across splits", "copies within a split", "copies with other boxes"}
    assert found["copies across splits"].cases == (
        "train/4.jpg = val/e.jpg",
        "train/a.png = train/b.bmp = val/d.png",
    )
    assert found["copies across splits"].severity == "warning" and found["copies across splits"].number == 2
    # b is a copy of a, c one of 2.
    assert found["copies within a split"].number == 2 and found["copies within a split"].severity == "note"
    assert found["copies with other boxes"].cases == (
        "train/4.jpg 1 box [8, 8, 40, 40] / val/e.jpg 1 box [8, 8, 40, 41]",
    )


def test_the_order_of_boxes_makes_no_difference_between_copies(tmp_path):
    boxes = [DOG, ("dog", 1, 1, 30, 30)]
    train = {"a.jpg": (encoded(1), boxes), "b.jpg": (encoded(1), boxes[::-1])}
    assert list(by_kind(check(tmp_path, {"train": train}))) == ["rare classes", "copies within a split"]


def test_augmented_copies_are_found_by_their_names(tmp_path):
    def named(stem, number):
        return f"{stem}_jpg.rf.{number:032x}.jpg"

    train = {named("a", 1): (encoded(1), [DOG]), named("a", 2): (encoded(2), [DOG]), named("b", 3): (encoded(3), [DOG])}
    train |= {named("c", 4): (encoded(4), [DOG]), "a_jpg.rf.jpg": (encoded(5), [DOG])}
    val = {named("b", 6): (encoded(6), [DOG])}
    (tmp_path / "one").mkdir()
    (note,) = check(tmp_path / "one", {"train": train}).findings
    assert (note.kind, note.severity, note.number) == ("variants within a split", "note", 2)
    (tmp_path / "two").mkdir()
    (warning,) = check(tmp_path / "two", {"train": train, "val": val}).findings
    assert (warning.kind, warning.severity, warning.number) == ("variants across splits", "warning", 1)
    assert warning.cases == (f"train/{named('b', 3)} = val/{named('b', 6)}",)


def test_some_files_can_be_left_unread(tmp_path):
    findings = check(tmp_path, {"train": GOOD}, max_pixels=2.9 * 64 * 48)
    assert [image.is_read for image in findings.facts.images] == [True, False, False, False, True]
    (one,) = findings.findings
    assert (one.kind, one.number, one.severity) == ("images not opened", 3, "note")


@pytest.mark.slow
def test_three_hundred_photographs_take_less_than_twenty_seconds(tmp_path):
    images = {f"{k}.jpg": (encoded(k, (640, 480)), [DOG], 640, 480) for k in range(300)}
    begin = time.process_time()
    findings = check(tmp_path, {"train": images})
    findings.write(tmp_path / "report")
    assert time.process_time() - begin < 20
