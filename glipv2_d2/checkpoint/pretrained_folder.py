"""A folder that holds a whole model, to be moved and shared: config, weights, and the files that inference needs.

``config.yaml`` is a config like any other; paths in it that begin with "./" are relative to the folder.
``files.json`` lists every file with its SHA-256, but for ``README.md``, a page that a person may change. Nothing in a
folder is executed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from transformers import BertModel

from ..errors import InputError, space_errors
from ..modeling.by_name import take_base
from ..modeling.text_encoder.bert import BertTextEncoder
from ..modeling.text_encoder.clip import CLIPTextEncoder
from ..paths import is_remote
from ..prompts.pretrained import resolve_pretrained
from ..tensor_files import CheckpointError, file_sha256, write_tensors
from ..yaml_texts import check_yaml
from .fit_check import check_fit
from .model_card import CARD_FILE, check_license, find_measured, model_card
from .model_shapes import build_meta_model
from .name_rules import summarize_names
from .resume import find_result_file
from .saved_names import NAMES_FILE, use_names, write_names

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"
MANIFEST_FILE = "files.json"

_HERE = "./"
# Where the person is, whatever a config says.
_OUTPUT = "./output"
_TOKENIZER_FILES = ("*.json", "*.txt")
_ENCODER_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin")
# Settings of a plain BERT beside its sizes; some versions of the transformers library lack an entry.
_BERT_FORM = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}


def save_pretrained(
    model: nn.Module,
    cfg: CfgNode,
    folder: str | os.PathLike,
    *,
    overwrite: bool = False,
    license_name: str = "",
    results: str | os.PathLike | None = None,
    title: str = "",
) -> None:
    """Write a model as a folder from which it can be built without any other file; whole or not at all.

    The folder gets the config; all weights in one file; the tokenizer unless it is the packaged one; the list of
    answers of a model that answers questions; and a pretrained text encoder that its sizes do not describe completely.
    The class names of the test data come along, but no other part of datasets. A page about the model says what the
    config says, and what was measured with its weights.

    Args:
        model: The model in the state to save.
        cfg: Config that the model was built from; it is not changed.
        folder: New or empty folder.
        overwrite: It may also be one that this function wrote, if nothing was added to it; it is replaced.
        license_name: Licence of the model, for the page, such as "apache-2.0"; "": none is named.
        results: File or folder of results that were measured with the weights, see ``find_measured``.
        title: Title of the page; "": the name of the folder.

    Raises:
        FileExistsError: The folder is not empty.
        FileNotFoundError: The parent folder is missing, or a file that the config names.
        CheckpointError: The model does not fit the config.
        InputError: The licence is no short name, or the results are not those of these weights.
    """
    folder = Path(folder)
    check_license(license_name)
    _check_target(folder, overwrite)
    card = model_card(title or folder.name, cfg, model, find_measured(cfg, results), license_name)
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder {folder.absolute().parent}, found none")
    beside = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent)
    with space_errors(folder), beside as workspace:
        written = Path(workspace) / "folder"
        written.mkdir()
        portable = _portable_config(cfg, model, written)
        tensors = model.state_dict()
        _check_rebuilt(portable, tensors, written)
        (written / CONFIG_FILE).write_text(portable.dump(), encoding="utf-8")
        write_names(cfg, written)
        write_tensors(written / WEIGHTS_FILE, tensors, {"source": "glipv2_d2"})
        hashes = {name: file_sha256(written / name) for name in _file_names(written)}
        (written / MANIFEST_FILE).write_text(json.dumps({"files": hashes}, indent=2) + "\n", encoding="utf-8")
        (written / CARD_FILE).write_text(card, encoding="utf-8")
        if folder.exists():
            os.replace(folder, Path(workspace) / "before")
        os.replace(written, folder)


def _check_target(folder: Path, overwrite: bool) -> None:
    """Make sure that nothing is lost where a folder will be written.

    Raises:
        FileExistsError: There is a file, or a folder with files that may not be replaced.
        CheckpointError: The list of files of a folder that may be replaced is damaged.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found = "one with files; name another folder"
    if folder.is_dir() and (folder / MANIFEST_FILE).is_file():
        found = "one that save_pretrained wrote; overwrite=True replaces it"
        if overwrite:
            known = {*_read_manifest(folder / MANIFEST_FILE), MANIFEST_FILE, CARD_FILE}
            others = [name for name in _file_names(folder) if name not in known]
            if not others:
                return
            found = f"one to which {others[0]} was added; name another folder"
    raise FileExistsError(f"{folder}: expected a new or an empty folder, found {found}")


def find_pretrained_config(folder: str | os.PathLike) -> str:
    """Return the path of the config in a folder that ``save_pretrained`` wrote, or that a training wrote.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks its config or its list of files.
        NotADirectoryError: It is a file.
    """
    if Path(folder).is_file():
        raise NotADirectoryError(f"{folder}: expected the folder of a model, found a file; give {Path(folder).parent}")
    if (Path(folder) / CONFIG_FILE).is_file() and find_result_file(str(folder)):
        return str(Path(folder) / CONFIG_FILE)
    for path in (Path(folder), Path(folder) / MANIFEST_FILE, Path(folder) / CONFIG_FILE):
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: expected a folder that save_pretrained wrote, or that of a run with weights, found nothing"
            )
    return str(Path(folder) / CONFIG_FILE)


def is_pretrained_config(path: str) -> bool:
    """Tell whether a config lies in a folder that ``save_pretrained`` wrote."""
    return os.path.basename(path) == CONFIG_FILE and (Path(path).parent / MANIFEST_FILE).is_file()


def merge_pretrained_config(cfg: CfgNode, path: str) -> None:
    """Check the files of a folder that ``save_pretrained`` wrote, and merge its config with the paths of its files.

    Args:
        cfg: Config with the defaults; it is changed.
        path: Path of the config in the folder, see ``is_pretrained_config``.

    Raises:
        FileNotFoundError: A file of the list is missing.
        CheckpointError: The list is damaged, a file differs from it, the config is too deep, the config names a file
            that is not in the list, another config, data or a download, or a folder that it names holds a file that is
            not in the list.
        AssertionError, KeyError, yaml.YAMLError: As ``CfgNode.merge_from_file``.
    """
    folder = Path(path).parent
    hashes = _read_manifest(folder / MANIFEST_FILE)
    for name, expected in hashes.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: expected the {len(hashes)} files that {MANIFEST_FILE} lists, found no such file"
            )
        found = file_sha256(file)
        if found != expected:
            raise CheckpointError(
                f"{file}: expected sha256 {expected}, found {found}; copy the folder again, and give other settings as "
                "KEY VALUE instead of in its config"
            )
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    try:
        check_yaml(text)
    except InputError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    # A key may be written in many ways.
    if "_BASE_" in (yaml.safe_load(text) or ()):
        raise CheckpointError(f"{folder / CONFIG_FILE}: _BASE_: expected a config that stands alone, found a base")
    cfg.merge_from_file(str(folder / CONFIG_FILE), allow_unsafe=False)
    _bind(cfg, folder, hashes)
    _check_alone(cfg, folder / CONFIG_FILE)
    if NAMES_FILE in hashes:
        use_names(cfg, folder, hashes[NAMES_FILE])


def _bind(cfg: CfgNode, folder: Path, files: Collection[str]) -> None:
    """Replace "./" in the paths of a folder's config by the folder, and check that they lead to its ``files``."""
    encoder, vqa = cfg.MODEL.TEXT_ENCODER, cfg.MODEL.GLIPV2.VQA
    for node, key, name in (
        (cfg.MODEL, "WEIGHTS", "MODEL.WEIGHTS"),
        (encoder, "WEIGHTS", "MODEL.TEXT_ENCODER.WEIGHTS"),
        (encoder, "TOKENIZER", "MODEL.TEXT_ENCODER.TOKENIZER"),
        (vqa, "ANSWERS", "MODEL.GLIPV2.VQA.ANSWERS"),
    ):
        if not node[key] and node is not cfg.MODEL:
            continue
        if not node[key].startswith(_HERE):
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: {name}: expected a path that begins with {_HERE!r}, found {node[key]!r}"
            )
        relative = node[key].removeprefix(_HERE)
        if not any(file == relative or file.startswith(f"{relative}/") for file in files):
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: {name}: expected a file or folder that {MANIFEST_FILE} lists, found "
                f"{node[key]!r}"
            )
        for file in _file_names(folder):
            # A library may read any file of a folder.
            if file.startswith(f"{relative}/") and file not in files:
                raise CheckpointError(f"{folder / file}: expected only files that {MANIFEST_FILE} lists, found another")
        node[key] = str(folder / relative)


def _check_alone(cfg: CfgNode, path: Path) -> None:
    """Check that a folder's config names no other files, data or addresses, which a stranger could choose."""
    cfg.OUTPUT_DIR = _OUTPUT
    # These are part of the weights of the folder.
    cfg.MODEL.TIMM.WEIGHTS = cfg.MODEL.GLIPV2.CLASS_WORDS.WEIGHTS = ""
    tuning = cfg.MODEL.GLIPV2.TUNING
    for key, value in (
        ("MODEL.GLIPV2.TUNING.WEIGHTS", tuning.WEIGHTS),
        ("MODEL.GLIPV2.TUNING.INTERPOLATE_WITH", tuning.INTERPOLATE_WITH),
        ("MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD", cfg.MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD),
        ("DATASETS.REGISTER", cfg.DATASETS.REGISTER),
    ):
        if value:
            raise CheckpointError(f"{path}: {key}: expected none in a folder that stands alone, found {value!r:.100}")


def _portable_config(cfg: CfgNode, model: nn.Module, folder: Path) -> CfgNode:
    """Return the config for the folder, and copy into the folder the files that the config names."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = _OUTPUT
    cfg.DATASETS.REGISTER = ()
    cfg.MODEL.WEIGHTS = _HERE + WEIGHTS_FILE
    # These are part of the weights now.
    cfg.MODEL.TIMM.WEIGHTS = cfg.MODEL.GLIPV2.CLASS_WORDS.WEIGHTS = ""
    cfg.MODEL.GLIPV2.TUNING.WEIGHTS = ""
    cfg.MODEL.GLIPV2.TUNING.INTERPOLATE_WITH = ""
    cfg.MODEL.GLIPV2.TUNING.INTERPOLATION = 1.0
    if cfg.MODEL.GLIPV2.TUNING.MODE == "lora" and not any(".lora." in name for name, _ in model.named_parameters()):
        # The updates are part of the weights already.
        cfg.MODEL.GLIPV2.TUNING.MODE = "full"
    settings = cfg.MODEL.TEXT_ENCODER
    if settings.TOKENIZER:
        source = resolve_pretrained(settings.TOKENIZER, "MODEL.TEXT_ENCODER.TOKENIZER", settings.ALLOW_DOWNLOAD)
        settings.TOKENIZER = _copy_folder(source, folder / "tokenizer", _TOKENIZER_FILES)
    encoder = getattr(model, "text_encoder", None)
    if settings.WEIGHTS and encoder is not None:
        sizes = _encoder_sizes(encoder)
        if sizes is None:
            settings.WEIGHTS = _copy_encoder(settings.WEIGHTS, settings.ALLOW_DOWNLOAD, folder)
        else:
            settings.WEIGHTS = ""
            settings.update(sizes)
    elif encoder is None:
        settings.WEIGHTS = ""
    settings.ALLOW_DOWNLOAD = False
    vqa = cfg.MODEL.GLIPV2.VQA
    if vqa.ENABLED:
        name = "answers.json" if vqa.ANSWERS.endswith(".json") else "answers.txt"
        shutil.copyfile(PathManager.get_local_path(vqa.ANSWERS), folder / name)
        vqa.ANSWERS = _HERE + name
    else:
        vqa.ANSWERS = ""
    return cfg


def _encoder_sizes(encoder: Any) -> dict[str, int] | None:
    """Read from a text encoder the keys of ``MODEL.TEXT_ENCODER`` that rebuild it; None if they are not enough."""
    if type(encoder) is BertTextEncoder:
        is_plain = all(getattr(encoder.bert.config, name, value) == value for name, value in _BERT_FORM.items())
        if type(encoder.bert) is not BertModel or not is_plain:
            return None
        num_layers = len(encoder.bert.encoder.layer)
    elif type(encoder) is CLIPTextEncoder:
        num_layers = len(encoder.resblocks)
    else:
        return None
    return {
        "VOCAB_SIZE": encoder.vocab_size,
        "HIDDEN_SIZE": encoder.hidden_size,
        "NUM_LAYERS": num_layers,
        "NUM_HEADS": encoder.num_heads,
        "INTERMEDIATE_SIZE": encoder.intermediate_size,
        "MAX_POSITIONS": encoder.max_positions,
    }


def _copy_encoder(weights: str, allow_download: bool, folder: Path) -> str:
    path = "" if is_remote(weights) else PathManager.get_local_path(weights)
    if os.path.isfile(path):
        name = f"text_encoder{Path(path).suffix}"
        shutil.copyfile(path, folder / name)
        return _HERE + name
    source = resolve_pretrained(weights, "MODEL.TEXT_ENCODER.WEIGHTS", allow_download)
    return _copy_folder(source, folder / "text_encoder", _ENCODER_FILES)


def _copy_folder(source: str, target: Path, patterns: Sequence[str]) -> str:
    """Copy the files of a folder, not those below; return the path of the copy for the config."""
    target.mkdir()
    for path in sorted({path for pattern in patterns for path in Path(source).glob(pattern) if path.is_file()}):
        # Files in the hub's cache are links.
        shutil.copyfile(path, target / path.name)
    if not any(target.iterdir()):
        raise CheckpointError(f"{source}: expected files {', '.join(patterns)} to copy, found none")
    return _HERE + target.name


def _check_rebuilt(portable: CfgNode, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Make sure that the config of the folder builds a model with these tensors."""
    if portable.MODEL.TEXT_ENCODER.WEIGHTS:
        # It is read where the model is built, which a model without values cannot do.
        return
    cfg = portable.clone()
    _bind(cfg, folder, [WEIGHTS_FILE, *_file_names(folder)])
    expected = build_meta_model(cfg).state_dict()
    check_fit(tensors, expected, "the model to save")
    tensors, base, _ = take_base(tensors)
    different = (expected.keys() ^ tensors.keys()) | ((base or {}).keys() - expected.keys())
    if different:
        raise CheckpointError(
            f"the model to save: expected the tensors of its config, found others: {summarize_names(sorted(different))}"
        )


def _file_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a list of files as JSON, found damaged text: {' '.join(str(error).split())}"
        ) from error
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not {CONFIG_FILE, WEIGHTS_FILE} <= files.keys():
        raise CheckpointError(f"{path}: expected 'files' with {CONFIG_FILE} and {WEIGHTS_FILE}, found {content!r:.100}")
    for name, digest in files.items():
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise CheckpointError(f"{path}: {name}: expected a sha256, found {digest!r:.100}")
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise CheckpointError(f"{path}: expected files of the folder, found {name!r}")
    return files
