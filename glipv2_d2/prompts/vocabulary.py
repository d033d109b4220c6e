"""The names of a registered dataset, and the prompts that ask for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import InputError
from ..structures import TokenizedPrompt
from .builder import plain_name
from .name_checks import check_names_differ
from .name_texts import NameText, PromptTexts, name_texts, tokenize_texts
from .protocols import chunk_size_of
from .tokenizer import PromptTokenizer
from .training_names import fit_one_prompt


def dataset_names(dataset_name: str) -> list[str]:
    """Return the ``thing_classes`` of a dataset; row k is the name of the contiguous id k.

    Datasets that learn their names from the annotation file are loaded once for it.

    Raises:
        InputError: No such dataset is registered, or it has no ``thing_classes``.
    """
    names = None
    if dataset_name in MetadataCatalog.list():
        names = MetadataCatalog.get(dataset_name).get("thing_classes")
    if names is None:
        if dataset_name not in DatasetCatalog.list():
            raise InputError(
                f"dataset {dataset_name!r} is not registered; see DatasetCatalog.list() for those that are"
            )
        DatasetCatalog.get(dataset_name)
        names = MetadataCatalog.get(dataset_name).get("thing_classes")
    if not names:
        raise InputError(f"dataset {dataset_name!r}: expected thing_classes in its metadata, found {names!r}")
    return list(names)


def prompt_texts_of(cfg: CfgNode, dataset_name: str) -> PromptTexts:
    """Return the ``prompt_texts`` in the metadata of a dataset; none if INPUT.PROMPT.DATASET_TEXTS leaves them out."""
    return MetadataCatalog.get(dataset_name).get("prompt_texts", {}) if cfg.INPUT.PROMPT.DATASET_TEXTS else {}


def trained_names(cfg: CfgNode) -> list[str]:
    """Return the names that prompts of DATASETS.TRAIN ask for, without and with the words around them, each once.

    They are as ``plain_name`` returns them.

    Raises:
        InputError: See ``dataset_names`` and ``name_texts``.
    """
    texts = (name_texts(dataset_names(name), prompt_texts_of(cfg, name)) for name in cfg.DATASETS.TRAIN)
    return _plain_forms(itertools.chain(*texts))


def trained_tokens(cfg: CfgNode) -> list[str]:
    """Return the tokens of ``trained_names`` that the vocabulary knows, as ``token_name`` returns them."""
    tokenizer = PromptTokenizer.from_config(cfg)
    return [tokens for name in trained_names(cfg) if (tokens := tokenizer.token_name(name))]


def only_names(cfg: CfgNode) -> list[str]:
    """Return the names of ``DATASETS.TEST[0]``, as ``trained_names`` does, if the weights know no others.

    The list is empty where they do, or where the names are not known here.
    """
    name = next(iter(cfg.DATASETS.TEST), "")
    if not cfg.MODEL.GLIPV2.TEST.ONLY_OWN_NAMES or name not in MetadataCatalog.list():
        return []
    names = MetadataCatalog.get(name).get("thing_classes", [])
    return _plain_forms(name_texts(names, prompt_texts_of(cfg, name))) if names else []


def _plain_forms(texts: Iterable[NameText]) -> list[str]:
    """Return names without and with the words around them, as ``plain_name`` does, each once."""
    return list(dict.fromkeys(plain_name(form) for text in texts for form in (text.name, text.full)))


def build_default_prompts(cfg: CfgNode) -> list[TokenizedPrompt]:
    """Tokenize the names of ``DATASETS.TEST[0]``, which inputs without a prompt are asked for.

    Returns:
        One prompt per chunk of names; ``category_ids`` are the contiguous ids of the dataset.

    Raises:
        InputError: ``DATASETS.TEST`` is empty, or the names cannot be a prompt, see ``PromptTokenizer.tokenize_names``.
    """
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST: expected a dataset whose names answer inputs without a prompt, found none")
    name = cfg.DATASETS.TEST[0]
    try:
        texts = name_texts(dataset_names(name), prompt_texts_of(cfg, name))
        tokenizer = PromptTokenizer.from_config(cfg)
        check_names_differ([text.full for text in texts], tokenizer, f"dataset {name!r}", is_train=False)
        return tokenize_texts(
            tokenizer,
            texts,
            separator=cfg.INPUT.PROMPT.SEPARATOR,
            chunk_size=chunk_size_of(cfg, name),
        )
    except ValueError as error:
        raise InputError(f"dataset {name!r}: {error}") from error


def names_fit_one_prompt(cfg: CfgNode, dataset_name: str) -> bool:
    """Tell whether a training prompt holds all names of a dataset, see ``fit_one_prompt``.

    Raises:
        InputError: See ``dataset_names`` and ``name_texts``.
    """
    texts = name_texts(dataset_names(dataset_name), prompt_texts_of(cfg, dataset_name))
    return fit_one_prompt([text.full for text in texts], PromptTokenizer.from_config(cfg), cfg.INPUT.PROMPT.SEPARATOR)


class DefaultPrompts:
    """Prompts that are made when they are first asked for; unlike a cached function it can be copied and pickled."""

    def __init__(self, make: Callable[[], list[TokenizedPrompt]]) -> None:
        self._make = make
        self._prompts: list[TokenizedPrompt] | None = None

    def __call__(self) -> list[TokenizedPrompt]:
        """Return one prompt per chunk of names."""
        if self._prompts is None:
            self._prompts = self._make()
        return self._prompts
