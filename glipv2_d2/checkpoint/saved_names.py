"""The names that a model was trained on, in its folder: what images without a prompt are asked for elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..tensor_files import CheckpointError

NAMES_FILE = "names.json"


def class_names(cfg: CfgNode) -> list[str]:
    """Return the names of ``DATASETS.TEST[0]`` if they are known; its files are not read."""
    if not cfg.DATASETS.TEST or cfg.DATASETS.TEST[0] not in MetadataCatalog.list():
        return []
    return list(MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", []))


def write_names(cfg: CfgNode, folder: Path) -> None:
    """Write the names of ``DATASETS.TEST[0]``, with the texts that the model reads for them, if they are known."""
    if names := class_names(cfg):
        texts = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("prompt_texts", {})
        content = {"names": names, "texts": {name: list(text) for name, text in texts.items()}}
        (folder / NAMES_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def use_names(cfg: CfgNode, folder: Path, digest: str) -> None:
    """Let the names of a folder be those of ``DATASETS.TEST[0]``.

    If that dataset is unknown here, or has other names, a name of its own takes its place in the config.

    Args:
        cfg: Config of the folder; it is changed.
        folder: Has the file of names.
        digest: Hash of the file, which tells two models apart whose datasets have one name.

    Raises:
        CheckpointError: The file is not as ``write_names`` writes it.
    """
    names, texts = _read_names(folder / NAMES_FILE)
    if not cfg.DATASETS.TEST or class_names(cfg) == names:
        return
    dataset = f"{cfg.DATASETS.TEST[0]}_{digest[:8]}"
    MetadataCatalog.get(dataset).set(thing_classes=names, prompt_texts=texts)
    cfg.DATASETS.TEST = (dataset, *cfg.DATASETS.TEST[1:])


def _read_names(path: Path) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected names as JSON, found damaged text") from error
    fields = content if isinstance(content, dict) else {}
    names, texts = fields.get("names", []), fields.get("texts", [])
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    is_dict = isinstance(texts, dict) and all(_are_three(text) for text in texts.values())
    if not names or not is_list or not is_dict:
        raise CheckpointError(f"{path}: expected 'names', and 'texts' of three strings, found {content!r:.100}")
    return names, {name: tuple(text) for name, text in texts.items()}


def _are_three(text: object) -> bool:
    return isinstance(text, list) and len(text) == 3 and all(isinstance(part, str) for part in text)
