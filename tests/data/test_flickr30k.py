import logging
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.data.dataset_mappers.grounding import GroundingDatasetMapper
from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.flickr30k import load_flickr30k, read_image_boxes, read_image_ids, read_sentences
from glipv2_d2.data.datasets.formats import register_flickr30k
from glipv2_d2.data.datasets.skip_report import SkipReport
from glipv2_d2.data.datasets.value_checks import AnnotationError
from glipv2_d2.data.loading import load_dataset

pytestmark = pytest.mark.usefixtures("images_exist")

SENTENCES = (
    "[/EN#11/people Two young guys] with [/EN#12/bodyparts/other shaggy hair] look at [/EN#11/people them] .\n"
    "A man on [/EN#13/scene the street] .\n"
    "[/EN#14/people A man] near [/EN#13/scene a road] [ or not ] .\n"
)
OBJECTS = (
    "<object><name>11</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
    "<object><name>11</name><name>14</name>"
    "<bndbox><xmin>31</xmin><ymin>5</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object>"
    "<object><name>12</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>2</xmax><ymax>9</ymax></bndbox></object>"
    "<object><name>13</name><scene>1</scene><nobndbox>0</nobndbox></object>"
)


def annotation(objects=OBJECTS, size="<width>64</width><height>48</height><depth>3</depth>") -> str:
    return f"<annotation><filename>7.jpg</filename><size>{size}</size>{objects}</annotation>"


@pytest.fixture
def load(tmp_path, new_name):
    """A function that writes the files of images, registers a split and loads it."""

    def write_and_load(xml=None, sentences=None, ids="7\n"):
        for folder in ("Annotations", "Sentences", "images"):
            (tmp_path / folder).mkdir()
        (tmp_path / "Annotations" / "7.xml").write_text(xml or annotation())
        (tmp_path / "Sentences" / "7.txt").write_text(sentences or SENTENCES)
        (tmp_path / "test.txt").write_text(ids)
        register_flickr30k(new_name, tmp_path, "test", tmp_path / "images")
        return load_dataset(new_name)

    return write_and_load


def test_every_caption_with_a_box_is_a_dict(load, tmp_path, new_name, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        first, third = load()
    metadata = MetadataCatalog.get(new_name)
    assert (metadata.task, metadata.evaluator_type) == ("grounding", "flickr30k")
    # Pixels 1 to 20 of the file are the columns 0 to 19.
    both = [(0.0, 0.0, 20.0, 30.0), (30.0, 4.0, 64.0, 48.0)]
    expected = [((0, 14), both[0]), ((0, 14), both[1]), ((20, 31), (1.0, 2.0, 2.0, 9.0))]
    expected += [((40, 44), both[0]), ((40, 44), both[1])]
    assert first == {
        "file_name": os.path.join(tmp_path, "images", "7.jpg"),
        "height": 48,
        "width": 64,
        "image_id": "7_0",
        "caption": "Two young guys with shaggy hair look at them .",
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": (span,)} for span, box in expected
        ],
    }
    assert third["image_id"] == "7_2" and third["caption"] == "A man near a road [ or not ] ."
    assert [item["bbox"] for item in third["annotations"]] == both[1:]
    # The scene has no box, so the second caption has nothing to find.
    assert "left out captions (captions without a box: 1); image 7, caption 1: expected a phrase" in caplog.text
    check_dataset_dicts("x", [first, third], task="grounding")


def test_the_prompt_has_a_phrase_for_each_marked_one(load, data_cfg):
    first, _ = load()
    (prompt,) = GroundingDatasetMapper(data_cfg, is_train=False).test_prompts(first)
    assert prompt.phrases == ("Two young guys", "shaggy hair", "them")
    assert prompt.category_ids.tolist() == [0, 1, 2]


def test_boxes_outside_their_image_are_left_out_and_counted(load, caplog):
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    bad = [(65, 1, 70, 9), (9, 9, 8, 9), (1, 1, 5, "x"), (-5, 1, 0, 9), (1, 49, 5, 60), (1, 9, 5, 8), (1, -9, 5, 0)]
    objects = "".join(f"<object><name>11</name>{box.format(*one)}</object>" for one in [*bad, (0, 1, 64, 48)])
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        (record,) = load(annotation(objects))
    # The last one begins a pixel before its image, as a few of the release do.
    assert [item["bbox"] for item in record["annotations"]] == [(-1.0, 0.0, 64.0, 48.0)] * 2
    for kind in ("boxes outside their image: 4", "boxes without area: 2", "boxes that are not four numbers: 1"):
        assert kind in caplog.text
    assert "image 7: object '11': bbox: expected a box inside its image of 64 x 48" in caplog.text


def test_a_bracket_inside_a_phrase_does_not_end_it(tmp_path):
    (tmp_path / "a.txt").write_text("[/EN#1/people A man [left]] sits . [/EN#2/other ] \n\n")
    (sentence,) = read_sentences(str(tmp_path / "a.txt"))
    assert sentence.text == "A man [left] sits ." and sentence.phrases == [((0, 12), "1")]


@pytest.mark.parametrize(
    "text", ["[/EN#1/people A man sits .", "a [/EN#x/people man] .", "[/EN#1 A man] sits", b"\xff\xfe [/EN#1/people A]"]
)
def test_broken_marks_are_an_error_of_one_line(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AnnotationError, match="a.txt.*expected") as error_info:
        read_sentences(str(tmp_path / "a.txt"))
    assert "\n" not in str(error_info.value)


BOMB = '<!ENTITY a "ha">' + "".join(f'<!ENTITY {n} "{f"&{p};" * 9}">' for p, n in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>', "document type 'x'"),
        (f"<!DOCTYPE x [{BOMB}]><annotation>&i;</annotation>", "document type"),
        ("<annotation>&e;</annotation>", "undefined entity"),
        ("<annotation>", "expected the XML"),
        ("", "expected the XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "expected the XML"),
        ("<annotation/>", "size: expected width and height in pixels, found None x None"),
        (annotation(size="<width>64</width><height>0</height>"), "64 x 0"),
        (
            annotation(size="<width>6x3</width><height>9</height>"),
            "size: expected width and height in pixels, found None",
        ),
        ("<annotation>" + " " * 2**20 + "</annotation>", "more than 1048576 bytes"),
    ],
)
def test_xml_that_is_no_annotation_is_an_error_of_one_line(tmp_path, xml, message):
    (tmp_path / "a.xml").write_text(xml)
    with pytest.raises(AnnotationError, match="a.xml") as error_info:
        read_image_boxes(str(tmp_path / "a.xml"))
    assert message in str(error_info.value) and "\n" not in str(error_info.value)


def test_a_document_type_is_found_in_any_encoding(tmp_path):
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x [<!ENTITY e "boo">]><annotation>&e;</annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(AnnotationError, match="document type"):
        read_image_boxes(str(tmp_path / "a.xml"))


def test_an_image_whose_files_are_malformed_is_left_out_whole(load, tmp_path, caplog):
    load()
    for folder, name, text in (("Annotations", "8.xml", "<annotation>"), ("Sentences", "8.txt", "A dog .")):
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "test.txt").write_text("8\n7\n")
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load_flickr30k(str(tmp_path), "test", str(tmp_path / "images"), "x")
    assert {record["image_id"][0] for record in records} == {"7"}
    assert "images (malformed files: 1)" in caplog.text and "8.xml: expected the XML" in caplog.text


@pytest.mark.parametrize(
    ("second", "kind"),
    [("seven", "malformed ids"), ("7", "images listed twice"), ("../7", "malformed ids"), ("٧", "malformed ids")],
)
def test_ids_that_are_not_numbers_or_come_twice_are_left_out(tmp_path, second, kind):
    (tmp_path / "ids.txt").write_text(f"\ufeff7\n\n{second}\n8\n", encoding="utf-8")
    report = SkipReport("ids.txt")
    assert read_image_ids(str(tmp_path / "ids.txt"), report) == ["7", "8"]
    (case,) = report.cases
    assert case.kind == kind and case.where == "line 3" and report.totals["images"] == 3
    assert case.reason == f"expected the number of another image, found {second!r}"


def test_an_image_without_files_is_left_out_and_named(load, caplog):
    with caplog.at_level(logging.WARNING, "glipv2_d2"):
        records = load(ids="7\n8\n")
    assert {record["image_id"][0] for record in records} == {"7"}
    assert "images (missing files: 1)" in caplog.text and "8.txt: expected a file of the release" in caplog.text


@pytest.mark.parametrize("missing", ["Annotations", "Sentences", "images", "test.txt"])
def test_missing_folders_are_named(tmp_path, new_name, missing):
    for name in {"Annotations", "Sentences", "images"} - {missing}:
        (tmp_path / name).mkdir()
    if missing != "test.txt":
        (tmp_path / "test.txt").write_text("7\n")
    register_flickr30k(new_name, tmp_path, "test", tmp_path / "images")
    with pytest.raises(FileNotFoundError, match=f"{new_name}.*{missing}"):
        DatasetCatalog.get(new_name)


def test_a_split_without_boxes_is_an_error(load):
    with pytest.raises(
        AnnotationError,
        match="of the split 'test' with boxes, found nothing to use; left out: captions .captions without a box: 3",
    ):
        load(annotation(""))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_end_in_another_error(tmp_path, data):
    for file_name, text, read in (("a.txt", SENTENCES, read_sentences), ("a.xml", annotation(), read_image_boxes)):
        place, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 9))
        damaged = text[:place] + data.draw(st.text(max_size=5)) + text[place + length :]
        (tmp_path / file_name).write_bytes(damaged.encode("utf-8", "surrogatepass"))
        try:
            assert read(str(tmp_path / file_name)) is not None
        except AnnotationError as error:
            assert "\n" not in str(error)
