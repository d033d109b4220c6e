"""Check a set: read its files, then draw findings from images, boxes and names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..data.dataset_mappers.build import mapper_of
from ..data.datasets.skip_report import DataReport, SkipReport, with_progress
from ..data.datasets.value_checks import read_json_file
from ..data.loading import check_is_available
from ..data.own_sets import MORE_IMAGES, CocoSet, OwnSets, find_own_sets, training_splits
from ..data.own_sets.folder import split_of
from ..errors import InputError
from ..plurals import agreeing, counted, singular
from ..prompts.tokenizer import PromptTokenizer
from .boxes import box_findings, class_findings
from .facts import BoxFacts, DataFacts, ImageFacts
from .findings import UNOPENED, Finding
from .images import image_findings, read_file
from .names import name_findings, prompt_findings, prompt_tokens
from .report import JSON_FILE, DataFindings


def check_own_sets(
    own: OwnSets, cfg: CfgNode, *, left_out: Iterable[SkipReport] = (), max_pixels: float = 0
) -> DataFindings:
    """Check the images, boxes and names of a set for the model of a config.

    Each file is read once, one after the other; only figures are kept of it.

    Args:
        own: The set.
        cfg: Its INPUT, prompts, text encoder and limit of detections count.
        left_out: What was left out when the set was found, see ``find_reported``.
        max_pixels: About as many pixels are read, of files that are spread evenly over the set; 0 for all. Where one
            core reads a hundred million in a second, a billion of them take ten seconds.
    """
    tokenizer = PromptTokenizer.from_config(cfg)
    reports = list(left_out)
    images = list(_images_of(own.splits))
    for row in with_progress(_rows_to_read(images, max_pixels), f"{own.name}: images"):
        images[row] = read_file(images[row])
    texts = [own.prompts.get(name, name) for name in own.names]
    chunk_size = max(0, cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE)
    facts = DataFacts(
        own.name,
        images,
        list(own.names),
        dict(own.prompts),
        (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        prompt_tokens(texts, tokenizer, cfg.INPUT.PROMPT.SEPARATOR, chunk_size),
    )
    lost = sorted({" ".join(name.split()) for report in reports for name in report.names} - {"", *own.names})
    findings = [
        *image_findings(facts),
        *class_findings(facts),
        *box_findings(facts, cfg.TEST.DETECTIONS_PER_IMAGE),
        *name_findings(own.names, own.prompts, tokenizer),
        *prompt_findings(facts.num_tokens, own.names, tokenizer.max_tokens),
        *_left_out(reports),
        *(_unvalidated(own) if reports and own.source else ()),
        *_put_together(own),
        *_unused([name for name in own.unused_names if name not in lost]),
        *_lost(lost),
        *_unread(images),
    ]
    return DataFindings(facts, findings)


def find_reported(path: str) -> tuple[OwnSets, list[SkipReport]]:
    """Find the set of a path, however much of it is faulty, and return it with what was left out.

    Raises:
        FileNotFoundError, InputError: See ``find_own_sets``.
    """
    with DataReport(max_share=1.0, is_quiet=True) as report:
        own = find_own_sets(path)
    return own, list(report.files.values())


def report_of_readers(folder: str | os.PathLike[str] = "") -> DataReport:
    """Return the report for readers of a set that is checked: a quiet one, since the check says what is wrong.

    Args:
        folder: What an earlier check has written; without it, or if not all image files were opened, the report is not
            quiet. "": the check follows.
    """
    if not folder:
        return DataReport(is_quiet=True)
    file = os.path.join(folder, JSON_FILE)
    findings = read_json_file(file)["findings"] if os.path.isfile(file) else [{"kind": UNOPENED}]
    return DataReport(is_quiet=all(one["kind"] != UNOPENED for one in findings))


def configured_sets(cfg: CfgNode) -> tuple[OwnSets, list[SkipReport]]:
    """Return the detection data of DATASETS.TRAIN and DATASETS.TEST as one set, and what was left out of it.

    Its images have their whole paths.

    Raises:
        InputError: There is none; one is not registered, is not of files with boxes and names, or has other names
            than the first.
        FileNotFoundError: Annotations or images are not there.
        AnnotationError: A file cannot be used at all.
    """
    splits: dict[str, list[str]] = {"train": list(cfg.DATASETS.TRAIN), "val": list(cfg.DATASETS.TEST)}
    if not any(splits.values()):
        raise InputError("DATASETS.TRAIN: expected datasets to check, found none; --data PATH checks a folder")
    names: list[str] = []
    sets: dict[str, CocoSet] = {}
    left_out: list[SkipReport] = []
    for split, datasets in splits.items():
        content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        for dataset in datasets:
            with DataReport(max_share=1.0) as report:
                found = _read_registered(dataset, content)
            left_out += report.files.values()
            if names and found != names:
                raise InputError(
                    f"dataset {dataset!r}: expected the names of the other datasets, found others; check them apart"
                )
            names = found
        content["categories"] = [{"id": row, "name": name} for row, name in enumerate(names)]
        if content["images"]:
            sets[split] = CocoSet("", content, {})
    first = next(name for found in splits.values() for name in found)
    prompts = {name: "".join(text) for name, text in MetadataCatalog.get(first).get("prompt_texts", {}).items()}
    return OwnSets(first, sets, names, prompts, [], None, ""), left_out


def _read_registered(dataset: str, content: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Add the images and boxes of a registered dataset to a content, and return its names."""
    check_is_available(dataset)
    records = DatasetCatalog.get(dataset)
    names = list(MetadataCatalog.get(dataset).get("thing_classes", ()))
    if not mapper_of(dataset).has_category_names or not names or any(_is_packed(record) for record in records):
        raise InputError(f"dataset {dataset!r}: expected detection data, each image a file, found other data")
    for record in records:
        image_id = len(content["images"])
        image = {"file_name": os.path.abspath(record["file_name"]), "id": image_id}
        content["images"].append(image | {key: record[key] for key in ("height", "width")})
        for item in record.get("annotations", ()):
            content["annotations"].append(
                {
                    "image_id": image_id,
                    "category_id": item["category_id"],
                    "bbox": list(BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYWH_ABS)),
                    "iscrowd": item.get("iscrowd", 0),
                }
            )
    return names


def _is_packed(record: Mapping[str, Any]) -> bool:
    return "image_bytes" in record or "tsv_offset" in record or "height" not in record


def _rows_to_read(images: Sequence[ImageFacts], max_pixels: float) -> list[int]:
    """Choose the images whose files are read."""
    total = sum(height * width for height, width in (image.size for image in images))
    number = len(images)
    if 0 < max_pixels < total:
        number = max(1, int(number * max_pixels / total))
    return np.linspace(0, len(images) - 1, number).round().astype(int).tolist()


def _images_of(splits: Mapping[str, CocoSet]) -> Iterator[ImageFacts]:
    for split, one in splits.items():
        names = {category["id"]: category["name"] for category in one.content["categories"]}
        boxes: dict[int, list[BoxFacts]] = {}
        for item in one.content["annotations"]:
            left, top, width, height = item["bbox"]
            corners = (left, top, left + width, top + height)
            box = BoxFacts(names[item["category_id"]], corners, bool(item.get("iscrowd", 0)))
            boxes.setdefault(item["image_id"], []).append(box)
        for image in one.content["images"]:
            path = os.path.join(one.image_root, image["file_name"])
            size = (image["height"], image["width"])
            yield ImageFacts(split, image["file_name"], path, size, tuple(boxes.get(image["id"], ())))


def _left_out(reports: Sequence[SkipReport]) -> Iterator[Finding]:
    """Yield a finding for each kind of entry that a reader left out or changed."""
    for report in reports:
        for (unit, kind), number in report.counts.items():
            cases = tuple(
                f"{case.where}: {case.reason}" for case in report.cases if (case.unit, case.kind) == (unit, kind)
            )
            if kind == "annotations of images that are left out":
                continue  # Their images are told.
            share = f"{number:,} of " if number < report.totals[unit] else ""
            text = f"left out {share}{counted(max(number, report.totals[unit]), singular(unit))}: {kind}"
            # A file of something else, such as figures, is no fault of the set.
            is_other = kind == "other annotation files"
            advice = "" if is_other or unit == "folders" else "correct them if they are needed"
            yield Finding("note" if is_other else "warning", f"left out: {kind}", number, text, advice, cases)
    changed = sum((report.changed for report in reports), Counter())
    for kind, number in changed.items():
        if kind.startswith("classes left out"):
            continue  # They have a finding of their own, with their names.
        # Of a single category the name is in the text.
        text = kind if kind.startswith("category") else f"{kind}: {number:,}"
        severity = "warning" if kind.startswith("boxes that may be left") else "note"
        yield Finding(severity, f"changed: {kind}", number, text)


def _unvalidated(own: OwnSets) -> Iterator[Finding]:
    """Yield a finding if a set that was found has images to train on and none to validate with."""
    train, val = training_splits(own.splits)
    if train in own.splits and val not in own.splits:
        text = f"no image validates: {train} has {counted(len(own.splits[train].content['images']), 'image')}"
        yield Finding("stop", "no validation images", 0, text, MORE_IMAGES)


def _put_together(own: OwnSets) -> Iterator[Finding]:
    """Yield a finding if folders with names of their own, perhaps sets of their own, were put together."""
    folders: Counter[str] = Counter()
    for one in own.splits.values() if os.path.isdir(own.source) else ():
        paths = (os.path.join(one.image_root, os.path.dirname(image["file_name"])) for image in one.content["images"])
        folders.update(os.path.relpath(path, own.source).split(os.sep)[0] for path in paths)
    if len(folders) > 1 and not any(map(split_of, folders)):
        text = f"the set is made of {counted(len(folders), 'folder')}; give one of them alone to leave the others out"
        cases = tuple(f"{name}: {counted(number, 'image')}" for name, number in folders.most_common())
        yield Finding("note", "folders put together", len(folders), text, "", cases)


def _unused(names: list[str]) -> Iterator[Finding]:
    if names:
        text = f"{counted(len(names), 'class')} of the files {agreeing(len(names), 'has', 'have')} no box, left out"
        yield Finding("note", "unused names", len(names), text, "", tuple(names))


def _lost(names: list[str]) -> Iterator[Finding]:
    if names:
        text = f"all boxes of {counted(len(names), 'class')} are among what was left out"
        advice = "mend the images or boxes that were left out, or the model will not know these names"
        yield Finding("warning", "lost names", len(names), text, advice, tuple(names))


def _unread(images: list[ImageFacts]) -> Iterator[Finding]:
    number = sum(not image.is_read for image in images)
    if number:
        found = f"{number:,} of {counted(len(images), 'image')} {agreeing(number, 'was', 'were')} not opened"
        text = f"{found}; glipv2 check-data opens all"
        yield Finding("note", UNOPENED, number, text)
