"""Scores that pycocoevalcap computes with Java: its tokenizer, METEOR and SPICE. Nothing is ever downloaded."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import one_line

_PACKAGE = "pycocoevalcap"
_TOKENIZER_FILE = "tokenizer/stanford-corenlp-3.4.1.jar"
_METEOR_FILES = ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz")
# The package itself would fetch these two, half a gigabyte, when SPICE is first used.
_SPICE_FILES = (
    "spice/spice-1.0.jar",
    "spice/lib/stanford-corenlp-3.6.0.jar",
    "spice/lib/stanford-corenlp-3.6.0-models.jar",
)
# Errors of a Java program that does not start, or dies.
_FAILURES = (OSError, ValueError, subprocess.SubprocessError)


class JavaMetricsError(RuntimeError):
    """The scores cannot be computed with Java here; the message says why in one line."""


def score_with_java(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score captions by pycocoevalcap, which tokenizes them first.

    Args:
        captions: Captions of N >= 1 images, as the model wrote them.
        references: For each image its references, at least one.

    Returns:
        ``BLEU1`` to ``BLEU4``, ``ROUGE_L`` and ``CIDEr``, and ``METEOR`` and ``SPICE`` if they could be computed; if
        not, the log says why. All are on the scale of the package.

    Raises:
        JavaMetricsError: The package or Java is not there, or its tokenizer does not work.
    """
    reason = missing_for_java()
    if reason:
        raise JavaMetricsError(reason)
    try:
        wanted = _tokenize(references)
        found = _tokenize([[caption] for caption in captions])
    except _FAILURES as error:
        raise JavaMetricsError(f"the tokenizer of {_PACKAGE} failed ({one_line(error)})") from error
    # The scorer of BLEU prints to stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        bleu = _load("bleu.bleu", "Bleu")(4).compute_score(wanted, found)[0]
    scores = {f"BLEU{order}": float(score) for order, score in enumerate(bleu, 1)}
    scores["ROUGE_L"] = float(_load("rouge.rouge", "Rouge")().compute_score(wanted, found)[0])
    scores["CIDEr"] = float(_load("cider.cider", "Cider")().compute_score(wanted, found)[0])
    for name, module, files in (("METEOR", "meteor.meteor", _METEOR_FILES), ("SPICE", "spice.spice", _SPICE_FILES)):
        score = _score_by_program(name, module, files, wanted, found)
        if score is not None:
            scores[name] = score
    return scores


def missing_for_java() -> str:
    """Return in one line what pycocoevalcap and its tokenizer lack here; empty if they work."""
    folder = _package_folder()
    if folder is None:
        return f"the package {_PACKAGE} is not installed"
    if shutil.which("java") is None:
        return "there is no program java"
    if not (folder / _TOKENIZER_FILE).is_file():
        return f"{folder / _TOKENIZER_FILE} is missing"
    # Its tokenizer writes a temporary file beside its program.
    if not os.access((folder / _TOKENIZER_FILE).parent, os.W_OK):
        return f"{(folder / _TOKENIZER_FILE).parent} cannot be written to"
    return ""


def _score_by_program(
    name: str, module: str, files: Sequence[str], wanted: dict[int, list[str]], found: dict[int, list[str]]
) -> float | None:
    """Run a scorer that starts Java; return None, with a warning in the log, if it fails."""
    folder = _package_folder()
    assert folder is not None, "score_with_java has checked that the package is there"
    missing = [folder / file for file in files if not (folder / file).is_file()]
    reason = f"{missing[0]} is missing" if missing else ""
    if not missing:
        try:
            return float(_load(module, name.capitalize())().compute_score(wanted, found)[0])
        except _FAILURES as error:
            reason = f"its program failed ({one_line(error)})"
    logging.getLogger(__name__).warning("%s is not computed: %s", name, reason)
    return None


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)


def _tokenize(sentences: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    """Tokenize the sentences of images.

    Raises:
        ValueError: The program did not return all of them.
    """
    # The tokenizer works line by line, and loses an empty last line.
    rows = {row: [{"caption": " ".join(text.split()) or "."} for text in texts] for row, texts in enumerate(sentences)}
    tokenized = _load("tokenizer.ptbtokenizer", "PTBTokenizer")().tokenize(rows)
    for row, texts in enumerate(sentences):
        if len(tokenized.get(row, ())) != len(texts):
            raise ValueError(f"found {len(tokenized.get(row, ()))} of {len(texts)} sentences of image {row}")
    return tokenized
