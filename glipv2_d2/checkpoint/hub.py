"""Models on the hub of huggingface.co: fetched and sent only when that is asked for, known files only."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from detectron2.config import CfgNode
from huggingface_hub import HfApi, snapshot_download
from torch import nn

from ..errors import InputError, one_line
from ..prompts.pretrained import HUB_ERRORS
from .pretrained_folder import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, find_pretrained_config, save_pretrained
from .saved_names import NAMES_FILE

# What is fetched: of weights, safetensors only.
_HUB_FILES = (
    *(
        CONFIG_FILE,
        WEIGHTS_FILE,
        MANIFEST_FILE,
        NAMES_FILE,
        "answers.json",
        "answers.txt",
        "tokenizer/*.json",
        "tokenizer/*.txt",
    ),
    *("text_encoder.safetensors", "text_encoder/*.json", "text_encoder/*.txt", "text_encoder/*.safetensors"),
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate_pretrained(name: str | os.PathLike, *, download: bool = False, revision: str | None = None) -> str:
    """Return the path of the config of a pretrained folder, or of a repository of the hub that holds one.

    Args:
        name: Path of a folder, or USER/NAME of a repository; a folder that is there comes first.
        download: Fetch the repository, or what is new in it, into the local cache of the hub.
        revision: Branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: There is no such folder, and no download is allowed; or see ``find_pretrained_config``.
        InputError: The repository cannot be fetched, or a revision of a folder is asked for.
    """
    text = os.fspath(name)
    if Path(text).exists() or not _REPOSITORY.fullmatch(text):
        if revision is not None:
            raise InputError(f"revision: expected a repository of the hub that has it, found {text}")
        return find_pretrained_config(text)
    if not download:
        raise FileNotFoundError(
            f"{text}: expected a folder that save_pretrained wrote, found none; download=True, on the command "
            "line --allow-downloads, fetches the repository of that name from huggingface.co"
        )
    try:
        folder = snapshot_download(text, revision=revision, allow_patterns=list(_HUB_FILES))
    except HUB_ERRORS as error:
        raise InputError(f"{text}: expected a repository of huggingface.co, found {one_line(error):.300}") from error
    if not (Path(folder) / MANIFEST_FILE).is_file():
        raise InputError(f"{text}: expected a repository that push_to_hub made, found one without {MANIFEST_FILE}")
    return find_pretrained_config(folder)


def push_pretrained(
    model: nn.Module,
    cfg: CfgNode,
    repository: str,
    *,
    private: bool = True,
    license_name: str = "",
    results: str | os.PathLike | None = None,
    message: str = "Add the model",
    token: str | None = None,
) -> str:
    """Write a model as a folder and send it to the hub.

    Args:
        model, cfg, license_name, results: See ``save_pretrained``.
        repository: USER/NAME; it is made if it is not there.
        private: Only its owner sees a repository that is made.
        message: Message of the commit.
        token: Token of the user; None: the one that ``hf auth login`` has stored.

    Returns:
        The address of the repository.

    Raises:
        InputError: The name is not as above, a file would have to be unpickled, or the hub refuses.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"repository: expected USER/NAME, found {repository!r:.100}")
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace) / "model"
        save_pretrained(model, cfg, folder, license_name=license_name, results=results, title=repository)
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix not in (".json", ".md", ".safetensors", ".txt", ".yaml"):
                raise InputError(
                    f"MODEL.TEXT_ENCODER.WEIGHTS: expected safetensors to send, found {file.name}; save the text "
                    "encoder as safetensors"
                )
        try:
            api = HfApi(token=token)
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except HUB_ERRORS as error:
            raise InputError(
                f"{repository}: expected to send the model to huggingface.co, found {one_line(error):.300}"
            ) from error
    return str(address)
