"""Damaged files of every format of datasets: what is left of them trains and is evaluated, or one line says why not."""

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from damaged_json import damaged
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from fuzzing import ODD_VALUES, assert_holds_for_random_input, changed_bytes
from hypothesis import strategies as st
from tar_shards import png, record, write_tar

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.data import build_test_loader
from glipv2_d2.data.dataset_mappers.build import build_train_mapper
from glipv2_d2.data.datasets import formats
from glipv2_d2.data.datasets.caption_files import open_captions
from glipv2_d2.data.datasets.odinw import OdinwSet
from glipv2_d2.data.datasets.question_files import open_questions
from glipv2_d2.data.loading import load_test_dataset, load_training_dicts
from glipv2_d2.evaluation.build import build_evaluator

IMAGES = [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in (1, 2)]
POLYGON = [4.5, 6, 24, 6, 24, 16]
RUNS = {"size": [48, 64], "counts": [100, 20, 2952]}
BOXES = [
    {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 10], "area": 200, "iscrowd": 0},
    {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 64, 48], "area": 9.5, "iscrowd": 0},
    {"id": 3, "image_id": 2, "category_id": 3, "bbox": [9, 9, 9, 9], "area": 81, "iscrowd": 1},
]
MASKED = [{**box, "segmentation": mask} for box, mask in zip(BOXES, ([POLYGON], [POLYGON, POLYGON], RUNS))]
CATEGORIES = [{"id": 1, "name": "cat", "supercategory": "a"}, {"id": 3, "name": "red dog", "supercategory": "a"}]
CAPTION = "a cat and a red dog"
SPANS = [[[2, 5]], [[12, 19]]]
QUESTION = {"question": "Is there a red dog?", "question_id": 7, "image_id": 1}
ANSWERS = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(["yes", "no"])]
REGIONS = [{"bbox": [4, 6, 24, 16], "phrase": "cat", "tokens_positive": SPANS[0]}]
REGIONS += [{"bbox": [0, 0, 64, 48], "phrase": ["red dog"], "score": 0.5}]
SENTENCES = "[/EN#11/people A cat] near [/EN#12/animals/other a red dog] .\nNothing here .\n"
XML = (
    "<annotation><filename>1.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>"
    "<object><name>11</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
    "<object><name>12</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"
)


class Case(NamedTuple):
    """Valid files, as json values, lines of them, texts or members of an archive, and how they are registered."""

    files: dict[str, Any]
    format: str
    sources: dict[str, Any]
    task: str | None = None


def coco(**more) -> dict:
    return {"images": IMAGES, "annotations": MASKED, "categories": CATEGORIES, **more}


def odvg_line(number: int, **content) -> dict:
    return {"filename": f"{number}.png", "height": 48, "width": 64, **content}


def tsv_case(task: str, labels: list, **more) -> Case:
    images = [[f"k{number}", png(number)] for number in (1, 2)]
    rows = [[f"k{number}", label] for number, label in enumerate(labels, 1)]
    names = {"img": "images.tsv", "label": "labels.tsv", "hw": "hw.tsv", "linelist": "rows.txt", "jsondict": "n.json"}
    sizes = [["k1", [{"height": 48, "width": 64}]], ["k2", "48 64"]]
    files = {"images.tsv": images, "labels.tsv": rows, "hw.tsv": sizes, "rows.txt": "0\n1\n0\n", **more}
    files["data.yaml"] = "".join(f"{key}: {name}\n" for key, name in names.items() if name in files)
    return Case(files, "tsv", {"yaml_file": "data.yaml"}, task)


JSON = {"json_file": "a.json", "image_root": ""}
LINES = {"jsonl_file": "a.jsonl", "image_root": "", "names_file": None}
NO_FILES = {"images_file": None, "boxes_file": None, "image_ids_file": None, "leave_out_ids": False}
VQA = {"questions_file": "q.json", "annotations_file": "a.json", "image_root": ""}
THING = {"class": "cat", "rect": [4, 6, 24, 16], "conf": 0.5}
PSEUDO = {"img_h": 48, "img_w": 64, "caption": CAPTION, "bboxes": [[4, 6, 24, 16], [1, 1, 9, 9]]}
REF = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": [{"sent_id": 3, "sent": "the cat"}]}
TASK = {"task_id": "1__0", "image_id": 1, "phrase": "cat", "instance_boxes": [[4, 6, 20.5, 10]]}
LVIS_IMAGES = [
    {**image, "neg_category_ids": [3], "not_exhaustive_category_ids": [1], "coco_url": f"http://x/v/{image['id']}.png"}
    for image in IMAGES
]
LVIS_CATEGORIES = [{**row, "synonyms": [row["name"], "x"], "frequency": "r"} for row in CATEGORIES]
KARPATHY = [
    {"filename": f"{i}.png", "cocoid": i, "split": "train", "sentences": [{"raw": "A dog."}, {"raw": "A cat"}]}
    for i in (1, 2)
]
PHRASES = [{**box, "phrase": "red dog"} for box in MASKED]
CASES = {
    "coco": Case({"a.json": coco()}, "coco", JSON),
    "lvis": Case({"a.json": coco(images=LVIS_IMAGES, categories=LVIS_CATEGORIES)}, "lvis", JSON),
    "odinw": Case(
        *({"a.json": coco()}, "odinw"),
        {**JSON, "odinw_set": OdinwSet("x", names=("kitten", "dog"), contexts=(("dog", "a ", " here"),))},
    ),
    "mdetr": Case(
        {
            "a.json": {
                "images": [{**image, "caption": CAPTION, "data_source": ""} for image in IMAGES],
                "annotations": [{**box, "tokens_positive": span} for box, span in zip(MASKED, SPANS)],
            }
        },
        *("grounding_json", {**JSON, "image_root": {"": ""}}, "grounding"),
    ),
    "odvg boxes": Case(
        {
            "a.jsonl": [
                odvg_line(1, detection={"instances": [{"bbox": [4, 6, 24, 16], "label": 4, "category": "cat"}]}),
                odvg_line(2, detection={"instances": [{"bbox": [0, 0, 9, 9], "label": 0}]}),
            ],
            "names.json": {"4": "cat", "0": "red dog"},
        },
        *("odvg", {**LINES, "names_file": "names.json"}, "detection"),
    ),
    "odvg captions": Case(
        {"a.jsonl": [odvg_line(i, grounding={"caption": CAPTION, "regions": REGIONS}) for i in (1, 2)]},
        *("odvg", LINES, "pseudo_grounding"),
    ),
    "tsv boxes": tsv_case(
        "detection", [[THING], {"objects": [THING]}], **{"n.json": {"label_to_idx": {"cat": 2, "fish": 1}}}
    ),
    "tsv captions": tsv_case("pseudo_grounding", [{**PSEUDO, "scores": [0.5, 0.75], "tokens_positive": SPANS}] * 2),
    "shards": Case(
        {"s.tar": {f"{i}.{kind}": value for i in "12" for kind, value in (("png", png(1)), ("json", record(1)))}},
        *("shards", {"shard_urls": ["s.tar"], "num_samples": None}),
    ),
    "referring": Case({"a.json": {"images": IMAGES, "annotations": PHRASES}}, "referring_json", JSON),
    "refcoco": Case(
        {"refs.json": {"refs": [REF, {**REF, "ann_id": 2, "image_id": 2}]}, "i.json": coco()},
        *("refcoco", {"json_file": "refs.json", "instances_file": "i.json", "image_root": "", "split": "val"}),
    ),
    "phrasecut": Case(
        {
            "refer.json": [{**TASK, "Polygons": [[[[4, 6], [24.5, 6], [24, 16]]]], "ann_ids": [1]}],
            "sizes.json": [{"image_id": 1, "height": 48, "width": 64, "split": "train"}],
        },
        *("phrasecut", {"json_file": "refer.json", "sizes_file": "sizes.json", "image_root": ""}),
    ),
    "flickr30k": Case(
        {"Annotations/1.xml": XML, "Sentences/1.txt": SENTENCES, "test.txt": "1\n"},
        *("flickr30k", {"entities_root": "", "split": "test", "image_root": ""}),
    ),
    "vqa": Case(
        {
            "q.json": {"data_subtype": "val2014", "questions": [QUESTION]},
            "a.json": {"annotations": [{**QUESTION, "answers": ANSWERS, "multiple_choice_answer": "yes"}]},
            "i.json": {"images": IMAGES},
            "b.jsonl": [odvg_line(1, question=QUESTION["question"], question_id=7, answer="yes", regions=REGIONS)],
            "ids.json": [1, 2],
        },
        *("vqa", {**VQA, **NO_FILES, "images_file": "i.json", "boxes_file": "b.jsonl", "image_ids_file": "ids.json"}),
    ),
    "vqa of coco": Case(
        {
            "q.json": {"data_subtype": "val2014", "questions": [QUESTION]},
            "a.json": {"annotations": [{**QUESTION, "answers": ANSWERS, "multiple_choice_answer": "yes"}]},
        },
        *("vqa", {**VQA, **NO_FILES}),
    ),
    "vqa json": Case(
        {
            "a.json": {
                "images": [{**IMAGES[0], "questions": [{**QUESTION, "answer": "yes", "type": "x"}]}],
                "annotations": PHRASES,
            }
        },
        *("vqa_json", JSON),
    ),
    "vqa lines": Case(
        {"a.jsonl": [odvg_line(i, question=QUESTION["question"], answer="yes", regions=REGIONS) for i in (1, 2)]},
        *("vqa_jsonl", {"jsonl_file": "a.jsonl", "image_root": ""}),
    ),
    "karpathy": Case(
        {"a.json": {"images": KARPATHY, "dataset": "coco"}, "i.json": {"images": IMAGES}},
        *("captioning", {**JSON, "splits": ("train",), "images_files": ("i.json",)}),
    ),
    "captions of coco": Case(
        {"a.json": {"images": IMAGES, "annotations": [{"id": i, "image_id": i, "caption": "A dog."} for i in (1, 2)]}},
        *("captioning", {**JSON, "splits": (), "images_files": ()}),
    ),
}

TRAIN_ONLY = ("mdetr", "odvg captions", "tsv captions", "shards")


def encode(name: str, content: Any) -> bytes:
    """The bytes of a file. Parts that damage has made something else are written as json."""
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if name.endswith(".jsonl") and isinstance(content, list):
        return b"".join(json.dumps(line).encode() + b"\n" for line in content)
    if name.endswith(".tsv") and isinstance(content, list):
        rows = [row if isinstance(row, list) else [row] for row in content]
        return b"".join(b"\t".join(map(encode_column, row)) + b"\n" for row in rows)
    return json.dumps(content, default=str).encode()


def encode_column(value: Any, is_base64: bool = True) -> bytes:
    if isinstance(value, bytes):
        return base64.b64encode(value) if is_base64 else value
    return encode("", value)


def write_file(path: Path, content: Any) -> None:
    """Write a file of a case, and the index beside a TSV file."""
    if path.suffix == ".tar" and isinstance(content, dict):
        members = {key: encode_column(value, is_base64=False) for key, value in content.items() if "\x00" not in key}
        write_tar(path, members)
        return
    path.write_bytes(encode(path.name, content))
    if path.suffix == ".tsv":
        lines = path.read_bytes().splitlines(True)
        offsets = itertools.accumulate(map(len, lines[:-1]), initial=0)
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


def write_files(data: st.DataObject, folder: Path, files: dict[str, Any]) -> None:
    """Write the files of a case, damaged in a few values or in a few bytes of one of them."""
    for _ in range(data.draw(st.integers(0, 2))):
        files = damaged(data, files, ODD_VALUES | st.integers(-3, 70) | st.text(max_size=9))
    broken = data.draw(st.sampled_from([*sorted(files), "", ""]))
    for name, content in files.items():
        write_file(folder / name, content)
        if name == broken:
            (folder / name).write_bytes(changed_bytes(data, (folder / name).read_bytes()))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the images that the cases speak of."""
    for name in ("v", "Annotations", "Sentences"):
        (tmp_path / name).mkdir()
    for place in ("{}.png", "{}.jpg", "v/{}.png", "COCO_val2014_00000000000{}.jpg"):
        for number in (1, 2):
            (tmp_path / place.format(number)).write_bytes(png(number))
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    return tmp_path


def small_config(folder: Path, name: str, with_masks: bool) -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_list(
        [
            *("OUTPUT_DIR", str(folder / "output"), "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)),
            *("DATALOADER.NUM_WORKERS", 0, "MODEL.MASK_ON", with_masks, "INPUT.MIN_SIZE_TRAIN", (48,)),
            *("INPUT.MIN_SIZE_TEST", 48, "MODEL.GLIPV2.VQA.ENABLED", True, "MODEL.GLIPV2.CAPTIONING.ENABLED", True),
            *("MODEL.GLIPV2.VQA.ANSWERS", str(folder / "answers.txt")),
        ]
    )
    return cfg


def placed(folder: Path, value: Any) -> Any:
    """The sources of a case with their paths below a folder."""
    if isinstance(value, str):
        return str(folder / value)
    if isinstance(value, dict):
        return {key: placed(folder, one) for key, one in value.items()}
    return type(value)(placed(folder, one) for one in value) if isinstance(value, (list, tuple)) else value


def use(cfg: CfgNode, name: str, is_train: bool) -> int:
    """Read a dataset as training or evaluation do, make its first samples, and return their number."""
    made = 0
    if is_train:
        records = load_training_dicts(name, filter_empty=True, with_masks=cfg.MODEL.MASK_ON)
        mapper = build_train_mapper(cfg)
        for item in records[:3]:
            sample = mapper({**item, "sample_seed": 3})
            boxes = sample["instances"].gt_boxes.tensor if "instances" in sample else torch.zeros(0, 4)
            assert torch.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()
            made += 1
        return made
    dataset = load_test_dataset(cfg, name)
    build_evaluator(cfg, dataset)
    for batch in itertools.islice(build_test_loader(cfg, dataset), 2):
        assert all(sample["image"].numel() if "image" in sample else sample["unreadable"] for sample in batch)
        made += len(batch)
    return made


def register(folder: Path, case: Case) -> None:
    plain = ("split", "splits", "odinw_set")
    sources = {key: value if key in plain else placed(folder, value) for key, value in case.sources.items()}
    formats.register(case.format, "fuzzed", {}, case.task, **sources)


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_files_are_good_before_they_are_damaged(folder, name, is_train):
    if name in TRAIN_ONLY and not is_train:
        pytest.skip("such data are not evaluated")
    for path, content in CASES[name].files.items():
        write_file(folder / path, content)
    register(folder, CASES[name])
    assert use(small_config(folder, "fuzzed", True), "fuzzed", is_train) > 0


def assert_used_or_refused(folder: Path, damage: Callable[[st.DataObject], str]) -> None:
    """Use datasets for a given time; ``damage`` writes the files of a case and returns its name."""

    def check(data: st.DataObject) -> None:
        name = damage(data)
        with_masks, is_train = data.draw(st.booleans()), data.draw(st.booleans())
        try:
            register(folder, CASES[name])
            use(small_config(folder, "fuzzed", with_masks), "fuzzed", is_train or name in TRAIN_ONLY)
        finally:
            DatasetCatalog.pop("fuzzed", None)
            MetadataCatalog.pop("fuzzed", None)

    assert_holds_for_random_input(check)


@pytest.mark.slow
def test_damaged_files_train_and_are_evaluated_or_are_refused_in_one_line(folder):
    def damage(data: st.DataObject) -> str:
        name = data.draw(st.sampled_from(sorted(CASES)))
        write_files(data, folder, CASES[name].files)
        return name

    assert_used_or_refused(folder, damage)


@pytest.mark.slow
def test_damaged_files_of_names_name_the_classes_or_are_refused_in_one_line(folder):
    def damage(data: st.DataObject) -> str:
        name = data.draw(st.sampled_from(["odvg boxes", "tsv boxes"]))
        for path, content in CASES[name].files.items():
            if path in ("names.json", "n.json"):
                write_files(data, folder, {path: content})
            else:
                write_file(folder / path, content)
        return name

    assert_used_or_refused(folder, damage)


SOURCES: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "captions": (
        {"a.jsonl": [{"filename": "1.png", "caption": CAPTION}] * 2},
        lambda folder: open_captions(str(folder / "a.jsonl"), 1),
    ),
    "archive": (
        {"s.tar": {"1.png": png(1), "1.txt": CAPTION, "2.jpg": png(2), "2.json": {"caption": CAPTION}}},
        lambda folder: open_captions(str(folder / "s.tar"), 1),
    ),
    "questions": (
        {"a.jsonl": [{"filename": "1.png", "question": "What is it?", "answer": "a dog", "question_id": 3}] * 2},
        lambda folder: open_questions(str(folder / "a.jsonl"), None, None, 1),
    ),
    "vqa": (
        {key: CASES["vqa"].files[key] for key in ("q.json", "a.json", "i.json")},
        lambda folder: open_questions(*(str(folder / name) for name in ("q.json", "a.json", "i.json")), 1),
    ),
}


@pytest.mark.slow
def test_damaged_captions_and_questions_to_label_are_read_or_skipped_with_a_reason(folder):
    def check(data: st.DataObject) -> None:
        files, read = SOURCES[data.draw(st.sampled_from(sorted(SOURCES)))]
        write_files(data, folder, files)
        found = read(folder)
        for piece in range(len(found)):
            list(found.read(piece))

    assert_holds_for_random_input(check)
