"""Find the images and boxes of a folder or file by content, whatever its folders are called."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence

from ...errors import InputError
from ...plurals import counted
from ...prompts.builder import clean_name
from ..datasets.skip_report import SkipReport
from ..datasets.value_checks import AnnotationError, EntryError, OmittedEntry, show
from .beside import count_folders_beside, count_unused_folders, count_unused_images, way_out_beside
from .canonical import make_coco_sets, same_name
from .coco_exports import looks_like_coco, read_coco_exports, sniff
from .folder import Folder, ImageShapes, is_plain, read_beginning, shown_path
from .labelme import looks_like_labelme, read_labelme
from .pascal_voc import is_pascal_voc, read_pascal_voc
from .set_yaml import SetYaml, Source, UnreadYamlError, images_of_sources, is_set_yaml, read_set_yaml
from .sets import OwnImage, OwnSets, Part
from .splits import make_splits
from .yolo import is_yolo, label_files, read_yolo

_JSON_SUFFIXES = (".json", ".txt")
_YAML_SUFFIXES = (".yaml", ".yml")
# Forms that are not read, by the suffix of their files and a text in them; some files of a folder are looked into.
_FOREIGN = (
    (".xml", b"<annotations>", "CVAT's xml"),
    (".json", b'"shape_attributes"', "VIA's json"),
    (".json", b'"from_name"', "Label Studio's json"),
    (".json", b'"classTitle"', "Supervisely's json"),
    (".csv", b",", "tables"),
    (".tfrecord", b"", "TFRecords"),
    (".ndjson", b"{", "Labelbox's json lines"),
)
_SNIFFED = 20
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".7z", ".rar")


def find_own_sets(path: str | os.PathLike[str], *, seed: int | None = 0) -> OwnSets:
    """Read the images and boxes of a folder or file that an annotation tool, a public set or a person made.

    It may be json in COCO's format, Pascal VOC xml, LabelMe's json or YOLO's text files, with images anywhere below the
    same folder; a ``data.yaml`` of ultralytics; or a yaml of our own, see docs/own_data.md. Splits are those of names
    ("train", "valid", "test" and their like) and of lists. Where there are images to train on and no validation images,
    a fifth of the former becomes these.

    Args:
        path: A folder, a yaml file, or an annotation file whose images lie in its folder or beside it.
        seed: Chooses the validation images where there is no validation split; None: no image is chosen, and a set
            without any split is one to test on.

    Raises:
        FileNotFoundError: Nothing is there.
        InputError: Nothing is found in it that can be used.
        AnnotationError: More of it is faulty than DATASETS.MAX_FAULTY_SHARE allows.
    """
    path = os.path.abspath(os.fspath(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: expected a folder or a file of images and boxes, found nothing")
    report = SkipReport(path, set_name(path))
    shapes = ImageShapes()
    if os.path.isdir(path):
        one, parts = _read_given(Folder(path, shapes), report, shapes)
    elif path.lower().endswith(_YAML_SUFFIXES):
        one = read_set_yaml(path)
        parts = _read_set_yaml(one, report, shapes)
    else:
        one, parts = None, _read_file(path, report, shapes)
    return _finish(path, one, parts, shapes, report, seed)


def _read_given(files: Folder, report: SkipReport, shapes: ImageShapes) -> tuple[SetYaml | None, list[Part]]:
    """Return what a folder holds, and the yaml file that says so; count what is not used, and what lies beside it."""
    try:
        one = _own_yaml(files, report)
        if one is None:
            parts = _read_folder(files, report, is_searched=True)
        else:
            parts = _read_set_yaml(one, report, shapes, files)
    except InputError as error:
        way_out = way_out_beside(files)
        if not way_out:
            raise
        raise InputError(f"{error}; {way_out}") from error
    if not any(part.images for part in parts) and (way_out := way_out_beside(files)):
        raise InputError(f"{files.root}: expected images with their annotations, found none; {way_out}")
    if one is None:
        count_unused_images(parts, files, report)
    count_unused_folders(parts, files, report)
    count_folders_beside(files, report)
    return one, parts


def set_name(path: str) -> str:
    """Return a name for the set at an absolute path: letters, digits and underscores, from the path's own names."""
    parts = [part for part in path.split(os.sep) if part]
    if parts and os.path.isfile(path):
        parts[-1] = os.path.splitext(parts[-1])[0]
        parts = parts[:-1] if len(parts) > 1 else parts
    while len(parts) > 1 and is_plain(parts[-1]):
        parts.pop()
    return re.sub(r"\W+", "_", parts[-1] if parts else "").strip("_") or "own"


def _folder_of(path: str, shapes: ImageShapes) -> Folder:
    """Return the files of the folder that a file lies in, or if it has no images of the one above."""
    folder = Folder(os.path.dirname(path), shapes)
    above = os.path.dirname(folder.root)
    return folder if folder.images or above in (folder.root, os.path.expanduser("~")) else Folder(above, shapes)


def _own_yaml(files: Folder, report: SkipReport) -> SetYaml | None:
    """Return the yaml file that says what a folder holds, the outermost one; None if there is none."""
    paths = [path for suffix in _YAML_SUFFIXES for path in files.others[suffix]]
    for path in sorted(paths, key=lambda one: (one.count(os.sep), os.path.basename(one) != "data.yaml", one)):
        try:
            if is_set_yaml(path):
                return read_set_yaml(path)
        except (FileNotFoundError, UnreadYamlError) as error:
            # As in an export whose images of one split were not copied: what is there may be found by content.
            report.count("yaml files")
            omitted = OmittedEntry(str(error).removeprefix(f"{path}: "), "yaml files that are not used")
            report.skip("yaml files", files.relative(path), omitted)
    return None


def _read_set_yaml(one: SetYaml, report: SkipReport, shapes: ImageShapes, files: Folder | None = None) -> list[Part]:
    """Return what the sources of a yaml file hold: YOLO's files if it has numbered classes and these are there."""
    for reason in one.missing:
        report.count("splits")
        report.skip("splits", os.path.basename(one.path), OmittedEntry(reason, "test splits that are not there"))
    files = _common_folder(one, shapes, files)
    if parts := _read_numbered(one, report, files):
        return parts
    found: list[Part] = []
    for source in one.sources:
        try:
            if os.path.isdir(source.path):
                parts = _read_folder(Folder(source.path, shapes), report, source.split, one.classes)
            else:
                parts = _read_file(source.path, report, shapes, source)
        except InputError as error:
            raise _error_of_labels(one, files, report) or error from error
        found += [part._replace(split=source.split or part.split) for part in parts]
    return found


def _error_of_labels(one: SetYaml, files: Folder, report: SkipReport) -> InputError | None:
    """Return what is wrong with the label files of YOLO that the images of a yaml have; None if they have none."""
    labels = label_files(files)
    if not one.classes and any(map(is_yolo, labels)):
        return InputError(
            f"{one.path}: names: expected the names of the classes whose numbers stand in {files.relative(labels[0])}, "
            "found none; write them as a list, the class 0 first"
        )
    if not labels or not report.cases:
        return None
    first = report.cases[0]
    return InputError(f"{one.path}: expected label files of YOLO with boxes, found {first.where}: {first.reason}")


def _read_numbered(one: SetYaml, report: SkipReport, files: Folder) -> list[Part]:
    """Return YOLO's files of the sources of a yaml; nothing if it numbers no classes, or no box is there."""
    if not one.classes:
        return []
    parts = read_yolo(files, report, one.classes, images_of_sources(one, files), has_keypoints=one.has_keypoints)
    return parts if any(image.boxes for part in parts for image in part.images) else []


def _common_folder(one: SetYaml, shapes: ImageShapes, files: Folder | None) -> Folder:
    """Return the files of the folder that all sources of a yaml file lie in, and labels beside them."""
    roots = [one.root, *(source.path for source in one.sources)]
    root = os.path.commonpath(roots)
    return files if files is not None and root == files.root else Folder(root, shapes)


def _read_folder(
    files: Folder,
    report: SkipReport,
    split: str = "",
    classes: Mapping[int, str] | None = None,
    *,
    is_searched: bool = False,
) -> list[Part]:
    """Return what the first reader finds whose format is there.

    Args:
        files: The folder.
        report: Counts what is left out.
        split: The split of all of it, where it is known.
        classes: Classes of the YOLO files, where they are known.
        is_searched: No yaml file in it says what it holds.
    """
    json_files = [path for suffix in _JSON_SUFFIXES for path in files.others[suffix]]
    coco_files = [path for path in json_files if looks_like_coco(path)]
    _count_no_annotations(files, ".json", (b"{", b"["), report)
    parts = read_coco_exports(coco_files, files, report, split) if coco_files else []
    if parts:
        return parts
    xml_files = files.others[".xml"]
    if any(map(is_pascal_voc, xml_files)):
        return read_pascal_voc(xml_files, files, report)
    _count_no_annotations(files, ".xml", (b"<",), report)
    labelme_files = [path for path in files.others[".json"] if looks_like_labelme(path)]
    if labelme_files:
        return read_labelme(labelme_files, files, report)
    if any(map(is_yolo, label_files(files))):
        one = None if classes or is_searched else _own_yaml(files, report)
        return (one and _read_numbered(one, report, files)) or read_yolo(files, report, classes or None)
    raise InputError(_nothing_found(files) + (f"; left out: {report.summary()}" if report.counts else ""))


def _count_no_annotations(files: Folder, suffix: str, begins: tuple[bytes, ...], report: SkipReport) -> None:
    """Count the files that begin as none of a suffix does: empty ones, text pointers, links to files that are gone."""
    for path in files.others[suffix]:
        begin = read_beginning(path).lstrip()[:60]
        if not begin.startswith(begins):
            found = show(begin.decode("utf-8", "replace").split("\n")[0]) if begin else "nothing"
            error = OmittedEntry(f"expected {suffix[1:]}, found {found}", f"files that are not {suffix[1:]}")
            report.count("annotation files")
            report.skip("annotation files", files.relative(path), error)


def _read_file(path: str, report: SkipReport, shapes: ImageShapes, source: Source | None = None) -> list[Part]:
    files = Folder(source.images, shapes) if source is not None and source.images else _folder_of(path, shapes)
    if looks_like_coco(path):
        try:
            return read_coco_exports([path], files, report, "" if source is None else source.split)
        except AnnotationError as error:
            if not (way_out := way_out_beside(files)):
                raise
            raise InputError(f"{error}; {way_out}") from error
    if is_pascal_voc(path):
        return read_pascal_voc([path], files, report)
    if looks_like_labelme(path):
        return read_labelme([path], files, report)
    way_out = "unpack it" if path.lower().endswith(_ARCHIVES) else "give the folder of the set"
    expected = "json in COCO's format" if source is not None else "json in COCO's format or yaml"
    raise InputError(f"{path}: expected {expected}, found another file; {way_out}")


def _nothing_found(files: Folder) -> str:
    others = sorted((suffix or "other", paths) for suffix, paths in files.others.items() if paths)
    listed = ", ".join(counted(len(paths), f"{suffix} file") for suffix, paths in others)
    found = f"{counted(len(files.images), 'image')} and {listed or 'no other files'}"
    foreign = {name for suffix, key, name in _FOREIGN for path in files.others[suffix][:_SNIFFED] if key in sniff(path)}
    packed = [path for paths in files.others.values() for path in paths if path.lower().endswith(_ARCHIVES)]
    way_out = f"unpack {files.relative(packed[0])}" if packed else "see docs/own_data.md"
    if foreign:
        way_out = f"export {' and '.join(sorted(foreign))} as COCO json"
    expected = "COCO json, Pascal VOC xml, LabelMe json or YOLO text files beside images"
    return f"{files.root}: expected {expected}, found {found}; {way_out}"


def _readable(images: Sequence[OwnImage], shapes: ImageShapes, report: SkipReport, root: str) -> list[OwnImage]:
    """Return the images that can be opened; the others must not change how a set is split."""
    kept = []
    for image in images:
        try:
            shapes.of(image.path)
            kept.append(image)
        except EntryError as error:
            report.count("images")
            report.skip("images", shown_path(image.path, root), error, [box.name for box in image.boxes])
    return kept


def _finish(
    path: str, one: SetYaml | None, parts: Sequence[Part], shapes: ImageShapes, report: SkipReport, seed: int | None
) -> OwnSets:
    root = path if os.path.isdir(path) else os.path.dirname(path)
    found: dict[str, list[OwnImage]] = {}
    source_ids: dict[str, int] = {}
    for part in parts:
        found.setdefault(part.split, []).extend(_readable(part.images, shapes, report, root))
        for class_name, source_id in part.source_ids.items():
            source_ids.setdefault(class_name, source_id)
    seed = seed if seed is None or one is None or one.seed is None else one.seed
    name = report.dataset if one is None or not one.name else re.sub(r"\W+", "_", one.name).strip("_") or "own"
    splits, is_made = make_splits(found, seed)
    declared = [class_name for part in parts for class_name in part.names]
    sets, names, unused = make_coco_sets(splits, declared, source_ids, shapes, report)
    unused = sorted({*unused, *map(same_name, report.names)} - {"", *names})
    report.close([image for one in sets.values() for image in one.content["images"]], "images with their annotations")
    if not names:
        left_out = f"; left out: {report.summary()}" if report.counts else ""
        raise InputError(f"{path}: expected boxes of at least one class, found none{left_out}")
    prompts = _prompts_of(one, declared, (*names, *unused))
    unknown = [class_name for class_name in prompts if class_name not in (*names, *unused)]
    if unknown:
        classes = ", ".join(map(repr, [*names, *unused]))
        raise InputError(f"{path}: names: expected classes of the set, {classes}, found {unknown[0]!r}")
    sizes = ", ".join(f"{split} {len(one.content['images'])}" for split, one in sets.items())
    notes = f"; val chosen from train by seed {seed}" if is_made else ""
    notes += f"; left out, since no box has them: {', '.join(unused)}" if unused else ""
    logging.getLogger(__name__).info("%s: images: %s; classes: %s%s", name, sizes, ", ".join(names), notes)
    prompts = {key: _words(path, key, text) for key, text in prompts.items() if key in names and key != text}
    return OwnSets(name, sets, names, prompts, unused, seed if is_made else None, path)


def _prompts_of(one: SetYaml | None, declared: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return what a yaml says for classes, by their names; numbers count where they are names of classes.

    Those of a list or a mapping that has named the classes are no words for them.
    """
    if one is None or {*declared} & {*one.classes.values()}:
        return {}
    numbered = {str(number): text for number, text in one.classes.items()}
    return one.prompts or (numbered if numbered.keys() <= {*names} else {})


def _words(path: str, class_name: str, text: str) -> str:
    """Return what a yaml says for a class as prompts take it: "red_blood_cell" as the name of a class is cleaned, too.

    Raises:
        InputError: No word is left.
    """
    words = " ".join(clean_name(text).split())
    if not words:
        raise InputError(f"{path}: names: {class_name}: expected words outside of parentheses, found {text!r}")
    return words
