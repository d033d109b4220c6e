"""Yaml files that say what a set is: ``data.yaml`` of ultralytics, and our own, which names any forms by split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from ...errors import InputError, one_line
from ...likeness import did_you_mean
from ...yaml_texts import check_yaml
from ..datasets.value_checks import EntryError, is_integer, is_text, show
from ..image_reading import IMAGE_SUFFIXES
from .folder import Folder, decode_text, read_bytes, split_of
from .sets import SPLITS

_MOST_BYTES = 2**22
_OWN_KEYS = {"name", "path", "names", "seed"}
_FORM = "see docs/own_data.md"
_TAG = "tag:yaml.org,2002:"


class UnreadYamlError(InputError):
    """A yaml file cannot be read at all."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML keeps the last, and takes names as they are written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise InputError(f"{key.value}: expected once, found again in line {line}; write a list, or keep one")
            seen.add(key.value)
            if key.value == "names":
                _take_as_text(value)
        return super().construct_mapping(node, deep)


class Source(NamedTuple):
    """Where images or annotations of one split are.

    Attributes:
        split: "train", "val", "test", or "" where the files themselves say it.
        path: A folder, or a file of annotations or of paths of images.
        images: The folder of the images of a json file; "" for that of the file.
    """

    split: str
    path: str
    images: str = ""


class SetYaml(NamedTuple):
    """What a yaml file says about a set.

    Attributes:
        path: The file.
        root: The folder that its paths start from.
        name: The name of the set, "" for that of its folder.
        sources: At least one.
        classes: The names of the classes by the numbers of YOLO's lines; empty where it has none.
        prompts: The words for a class that prompts have, by its name.
        seed: Chooses validation images; None for the one of the caller.
        has_keypoints: Lines of YOLO's files have keypoints.
        missing: What is wrong with test splits that are not there.
    """

    path: str
    root: str
    name: str
    sources: list[Source]
    classes: dict[int, str]
    prompts: dict[str, str]
    seed: int | None
    has_keypoints: bool
    missing: list[str]


def is_set_yaml(path: str) -> bool:
    """Tell whether a yaml file says what a set is: splits, or a path and nothing that has other uses.

    Raises:
        UnreadYamlError: It cannot be read.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict):
        return False
    # The settings of a training may have "val: true".
    splits = [value for _, value in _split_values(content) if isinstance(value, (str, list, dict))]
    return bool(splits) or (is_text(content.get("path")) and set(content) <= _OWN_KEYS)


def read_set_yaml(path: str) -> SetYaml:
    """Read a yaml file.

    Raises:
        InputError: It cannot be read, or a value is not as expected.
        FileNotFoundError: A folder or file that it names is not there.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected lines of KEY: VALUE, found {show(content)}; {_FORM}")
    here = os.path.dirname(os.path.abspath(path))
    splits = _split_values(content)
    base = content.get("path")
    root = here
    if splits and base is not None:
        root = _existing(_text(base, path, "path"), [here], path, "path", default=here)
    _check_keys(content, [root, here], path)
    missing: list[str] = []
    sources: list[Source] = []
    if splits:
        for split, value in splits:
            try:
                sources += _read_sources(value, split, [root, here], path)
            except FileNotFoundError as error:
                # Roboflow names a test split whether there is one or not, and nobody trains with it.
                if split != "test" or len(splits) == 1:
                    raise
                missing.append(str(error).removeprefix(f"{path}: "))
    elif base is not None:
        sources = _read_sources(base, "", [here], path)
    else:
        raise InputError(f"{path}: expected train, val or path, found {', '.join(map(str, content))[:80]}; {_FORM}")
    classes, prompts = _read_names(content.get("names"), path)
    name, seed = content.get("name", ""), content.get("seed")
    if not (name == "" or is_text(name)):
        raise InputError(f"{path}: name: expected a text, found {show(name)}")
    if not (seed is None or is_integer(seed)):
        raise InputError(f"{path}: seed: expected an integer, found {show(seed)}")
    return SetYaml(path, root, name, sources, classes, prompts, seed, "kpt_shape" in content, missing)


def read_classes(path: str) -> dict[int, str]:
    """Return the names of YOLO's classes in a yaml file by their numbers; none if it has none or cannot be read."""
    try:
        content = _read_yaml(path)
        return _read_names(content.get("names") if isinstance(content, dict) else None, path)[0]
    except InputError:
        return {}


def images_of_sources(one: SetYaml, files: Folder) -> dict[str, str]:
    """Return the split of each image that the sources mean, by its path; an image of two belongs to the first.

    A source is a folder of images, or a text file with the path of an image in each line.
    """
    found: dict[str, str] = {}
    for source in one.sources:
        if os.path.isdir(source.path):
            inside = source.path.rstrip(os.sep) + os.sep
            paths: Sequence[str] = [path for path in files.images if path.startswith(inside)]
        else:
            paths = _listed_images(source.path, files)
        for path in paths:
            found.setdefault(path, source.split)
    return found


def _listed_images(list_file: str, files: Folder) -> list[str]:
    paths = []
    for line in filter(None, map(str.strip, decode_text(read_bytes(list_file, 2**28)).splitlines())):
        if os.path.splitext(line)[1].lower() not in IMAGE_SUFFIXES:
            continue
        try:
            paths.append(files.find_image(line, list_file))
        except EntryError:
            continue
    return paths


def _read_yaml(path: str) -> Any:
    try:
        text = decode_text(read_bytes(path, _MOST_BYTES))
        check_yaml(text)
        # Aliases may repeat each other without end, and a short list of paths and names needs none.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            raise InputError("expected values written out, found an alias (*NAME)")
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, EntryError) as error:
        raise UnreadYamlError(f"{path}: expected a yaml file, found {one_line(error)}") from error
    except InputError as error:
        raise UnreadYamlError(f"{path}: {error}") from error
    except ValueError as error:  # A date that does not exist, for example.
        raise UnreadYamlError(f"{path}: expected a yaml file, found {one_line(error)}") from error


def _take_as_text(names: yaml.Node) -> None:
    """Make texts of the classes of a yaml, in a list or a mapping, and of what prompts say: on is no truth value."""
    is_mapping, is_list = isinstance(names, yaml.MappingNode), isinstance(names, yaml.SequenceNode)
    for key, value in names.value if is_mapping else ((None, one) for one in names.value) if is_list else ():
        for node, kept in ((key, ("null", "int")), (value, ("null",))):
            if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_TAG) not in kept:
                node.tag = f"{_TAG}str"


def _split_values(content: Any) -> list[tuple[str, Any]]:
    """Return the splits of a yaml with what stands there."""
    if not isinstance(content, dict):
        return []
    pairs = [(split_of(key), value) for key, value in content.items() if isinstance(key, str)]
    return [(split, value) for split, value in pairs if split and value not in (None, "", [])]


def _check_keys(content: dict[Any, Any], bases: Sequence[str], path: str) -> None:
    """Refuse a key that names images and is not known, as "vla": they would be left out.

    Raises:
        InputError: There is one.
    """
    for key, value in content.items():
        if not isinstance(key, str) or key in _OWN_KEYS or split_of(key):
            continue
        meant = did_you_mean(key, SPLITS)
        is_path = is_text(value) and any(os.path.exists(os.path.join(base, value)) for base in bases)
        if (isinstance(value, dict) and {"json", "path"} & {*value}) or (meant and is_path):
            raise InputError(f"{path}: {key}: expected the name of a split, train, val or test, found another{meant}")


def _read_sources(value: Any, split: str, bases: Sequence[str], path: str) -> list[Source]:
    if isinstance(value, list):
        return [one for item in value for one in _read_sources(item, split, bases, path)]
    where = split or "path"
    if isinstance(value, dict):
        unknown = set(value) - {"json", "images", "path"}
        if unknown or ("json" in value) == ("path" in value):
            raise InputError(f"{path}: {where}: expected json and images, or path, found {show(value)}; {_FORM}")
        source = _described(_existing(_text(value.get("json", value.get("path")), path, where), bases, path, where))
        images = value.get("images")
        folder = "" if images is None else _existing(_text(images, path, f"{where}: images"), bases, path, where)
        return [Source(split, source, folder)]
    return [Source(split, _described(_existing(_text(value, path, where), bases, path, where)))]


def _described(source: str) -> str:
    """Return the folder of a yaml file that says what it holds; other paths as they are."""
    return os.path.dirname(source) if source.lower().endswith((".yaml", ".yml")) else source


def _text(value: Any, path: str, where: str) -> str:
    if not is_text(value):
        raise InputError(f"{path}: {where}: expected a path, found {show(value)}; {_FORM}")
    return value.strip()


def _existing(value: str, bases: Sequence[str], path: str, where: str, default: str | None = None) -> str:
    """Return the absolute path of something that is there.

    Paths of other computers, and of folders that were moved, are looked for by their last parts, as Roboflow's
    "../train/images" has to be.

    Raises:
        FileNotFoundError: There is nothing, and no default.
    """
    value = os.path.expanduser(value).replace("\\", "/")
    parts = [part for part in value.split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[first:]) for first in range(max(len(parts) - 3, 0), len(parts))]
    for one in [value, *ends]:
        for base in bases:
            found = os.path.normpath(os.path.join(base, one))
            if os.path.exists(found):
                return found
    if default is not None:
        return default
    raise FileNotFoundError(f"{path}: {where}: expected a folder or file, found none at {value}")


def _read_names(value: Any, path: str) -> tuple[dict[int, str], dict[str, str]]:
    """Return the classes by number, and the prompts by class."""
    if value is None:
        return {}, {}
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        raise InputError(f"{path}: names: expected a list or a mapping, found {show(value)}; {_FORM}")
    for key, text in value.items():
        if not is_text(text):
            raise InputError(f"{path}: names: {show(key)}: expected a text, found {show(text)}; {_FORM}")
    texts = {key: " ".join(text.split()) for key, text in value.items()}
    if all(is_integer(key) for key in texts):
        return texts, {}
    prompts = {" ".join(str(key).split()): text for key, text in texts.items()}
    # Of numbers in quotes the set says whether they number its classes or are these.
    are_numbers = all(key.isascii() and key.isdecimal() for key in prompts)
    return ({int(key): text for key, text in prompts.items()} if are_numbers else {}), prompts
