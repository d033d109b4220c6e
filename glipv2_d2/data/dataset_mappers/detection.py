"""Detection data as grounding data: the names of a dataset become the prompt."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog

from ...errors import InputError
from ...prompts.builder import clean_name, siblings
from ...prompts.kept_names import KeptNames, mix_names
from ...prompts.name_checks import check_names_differ
from ...prompts.name_texts import PromptTexts, name_texts, prompt_from_texts, text_namesakes, tokenize_texts
from ...prompts.protocols import chunk_size_of
from ...prompts.tokenizer import PromptTokenizer
from ...prompts.training_names import Siblings, sample_training_names
from ...prompts.vocabulary import dataset_names as names_of_dataset
from ...prompts.vocabulary import prompt_texts_of
from ...structures import TokenizedPrompt
from .base import DroppedText, PromptDatasetMapper, PromptedBoxes, boxes_to_train_on, check_probability

# For each row of a name with others of its parent, their rows.
SiblingRows = Mapping[int, Sequence[int]]


class DetectionDatasetMapper(PromptDatasetMapper):
    """Make model inputs from detection data.

    In training the prompt holds the names in the image and random other names of its dataset; a box whose name did not
    fit into the prompt is dropped, and an image without boxes gets a prompt of names that are all absent. No other name
    is one that reads like a name in the image, as "bow_(weapon)" and "bow_(decorative_ribbons)" do, or one of the
    image's ``never_negative_ids``. At test time all images share the prompts that hold every name of the dataset.
    A dataset may say other words for a name, or words around it: ``prompt_texts`` in its metadata, see ``name_texts``.

    Source: GLIP's conversion of detection data to grounding data.
    """

    task = "detection"
    has_category_names = True

    @configurable
    def __init__(
        self,
        *,
        vocabularies: Mapping[str, Sequence[str]],
        separator: str,
        num_negatives: int,
        full_negatives_prob: float,
        shuffle: bool,
        chunk_sizes: Mapping[str, int] | None = None,
        negative_sampling: str = "drawn",
        sibling_share: float = 0.0,
        siblings: Mapping[str, SiblingRows] | None = None,
        prompt_texts: Mapping[str, PromptTexts] | None = None,
        fixed_prompts: bool = False,
        kept_names: KeptNames | None = None,
        **options,
    ):
        """
        Args:
            vocabularies: For each dataset its names, in the order of their contiguous ids.
            separator: Between two names of a prompt.
            num_negatives: See INPUT.PROMPT.NUM_NEGATIVES.
            full_negatives_prob: See INPUT.PROMPT.FULL_NEGATIVES_PROB.
            shuffle: See INPUT.PROMPT.SHUFFLE.
            chunk_sizes: For some datasets the names in a prompt at test time; 0, as for all others: as many as fit.
            negative_sampling: See INPUT.PROMPT.NEGATIVE_SAMPLING.
            sibling_share: See INPUT.PROMPT.SIBLING_NEGATIVES.
            siblings: For some datasets the rows of names of one parent, see ``builder.siblings``.
            prompt_texts: For some datasets what prompts say for some of their names; all others stand for themselves.
            fixed_prompts: Train with the prompts of the test, as a tuned prompt needs; of several that hold all names
                one is drawn, among those with a name in the image and one other.
            kept_names: Other names that some training prompts hold too, among the own ones and as far as they fit; not
                with ``fixed_prompts``.
            options: Arguments of ``PromptDatasetMapper``.

        Raises:
            InputError: A vocabulary is empty or holds a name that no prompt can hold, a text is given to a name that is
                not there, or a probability is out of range.
        """
        super().__init__(**options)
        self.vocabularies = {dataset: list(names) for dataset, names in vocabularies.items()}
        self.separator = separator
        self.num_negatives = num_negatives
        check_probability("INPUT.PROMPT.FULL_NEGATIVES_PROB", full_negatives_prob)
        self.full_negatives_prob = full_negatives_prob
        self.shuffle = shuffle
        self.negative_sampling = negative_sampling
        check_probability("INPUT.PROMPT.SIBLING_NEGATIVES", sibling_share)
        self.sibling_share = sibling_share
        self.siblings = dict(siblings or {})
        self.fixed_prompts = fixed_prompts
        self.kept_names = kept_names
        self.texts = {
            dataset: name_texts(names, (prompt_texts or {}).get(dataset, {}))
            for dataset, names in self.vocabularies.items()
        }
        self.full_texts = {dataset: [text.full for text in texts] for dataset, texts in self.texts.items()}
        self.shared_ids = _shared_category_ids(
            {dataset: [text.name for text in texts] for dataset, texts in self.texts.items()}
        )
        self.namesakes = {dataset: text_namesakes(texts) for dataset, texts in self.texts.items()}
        self.chunks: dict[str, list[TokenizedPrompt]] = {}
        # In training too: a vocabulary that cannot become a prompt is an error before the first step.
        for dataset, texts in self.texts.items():
            check_names_differ(self.full_texts[dataset], self.tokenizer, f"dataset {dataset!r}", is_train=self.is_train)
            chunk_size = (chunk_sizes or {}).get(dataset, 0)
            self.chunks[dataset] = tokenize_texts(self.tokenizer, texts, separator=separator, chunk_size=chunk_size)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = True,
        tokenizer: PromptTokenizer | None = None,
        dataset_names: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Read the config; see ``PromptDatasetMapper``. Only prompts of a training are drawn."""
        made = super().from_config(cfg, is_train, tokenizer, dataset_names)
        if not is_train:
            return made
        share, names = cfg.INPUT.PROMPT.SIBLING_NEGATIVES, made["vocabularies"]
        kin = training_siblings(names) if share and not made["fixed_prompts"] else {}
        return {**made, "kept_names": training_kept_names(cfg, names), "sibling_share": share, "siblings": kin}

    @classmethod
    def own_options(cls, cfg: CfgNode, dataset_names: Sequence[str]) -> dict[str, Any]:
        """Read the names of the datasets, and what prompts are made of them."""
        # Names first: with them the metadata of a dataset is complete.
        vocabularies = {name: names_of_dataset(name) for name in dataset_names}
        return {
            "vocabularies": vocabularies,
            "fixed_prompts": cfg.MODEL.GLIPV2.TUNING.MODE == "prompt",
            "prompt_texts": {name: prompt_texts_of(cfg, name) for name in dataset_names},
            "separator": cfg.INPUT.PROMPT.SEPARATOR,
            "num_negatives": cfg.INPUT.PROMPT.NUM_NEGATIVES,
            "full_negatives_prob": cfg.INPUT.PROMPT.FULL_NEGATIVES_PROB,
            "negative_sampling": cfg.INPUT.PROMPT.NEGATIVE_SAMPLING,
            "shuffle": cfg.INPUT.PROMPT.SHUFFLE,
            "chunk_sizes": {name: chunk_size_of(cfg, name) for name in dataset_names},
            # Officially too: most names of a list are there by chance.
            "mask_only_positives": cfg.MODEL.GLIPV2.MLM.ONLY_POSITIVES,
        }

    def test_prompts(self, dataset_dict: dict) -> list[TokenizedPrompt]:
        """Return the prompts of the image's dataset: the same list every time."""
        return self.chunks[self._dataset_of(dataset_dict)]

    def training_target(self, dataset_dict: dict, rng: np.random.Generator) -> PromptedBoxes:
        """Draw the names of the prompt, and keep the boxes whose name is in it; crowd regions are never targets."""
        dataset = self._dataset_of(dataset_dict)
        texts, shared_ids = self.texts[dataset], self.shared_ids[dataset]
        # A blank name has no token to be learned.
        annotations = [item for item in boxes_to_train_on(dataset_dict) if texts[item["category_id"]].name.strip()]
        if self.fixed_prompts:
            return self._in_fixed_prompt(self.chunks[dataset], annotations, rng)
        positives = {item["category_id"] for item in annotations}
        read_the_same = [self.namesakes[dataset].get(name_id, ()) for name_id in positives]
        kin = [self.siblings.get(dataset, {}).get(name_id, ()) for name_id in positives]
        name_ids = sample_training_names(
            self.full_texts[dataset],
            positives,
            self.tokenizer,
            num_negatives=self.num_negatives,
            full_negatives_prob=self.full_negatives_prob,
            shuffle=self.shuffle,
            rng=rng,
            separator=self.separator,
            negative_sampling=self.negative_sampling,
            never_negatives=set(dataset_dict.get("never_negative_ids", ())).union(*read_the_same),
            siblings=Siblings(set().union(*kin), self.sibling_share),
        )
        others = self.kept_names.draw(rng) if self.kept_names else []
        if others:
            # They take the place of own names that are absent: the prompt stays short.
            present_ids = [name_id for name_id in name_ids if name_id in positives]
            others = self._fitting(others, present_ids, dataset)
            name_ids = present_ids if present_ids or others else name_ids
        own = [(texts[name_id], shared_ids[name_id]) for name_id in name_ids]
        phrases, own_rows = mix_names(own, others, rng)
        prompt = self.tokenizer(prompt_from_texts(*zip(*phrases, strict=True), separator=self.separator))
        has_tokens = prompt.phrase_token_map.any(dim=1).tolist()
        row_of_name = {name_id: row for row, name_id in zip(own_rows, name_ids, strict=True) if has_tokens[row]}
        kept = [item for item in annotations if item["category_id"] in row_of_name]
        num_lost_names = len(positives - set(row_of_name))
        return PromptedBoxes(
            prompt,
            kept,
            rows=np.array([row_of_name[item["category_id"]] for item in kept], dtype=np.int64),
            dropped=DroppedText(phrases=num_lost_names, boxes=len(annotations) - len(kept)),
        )

    def _fitting(self, others: list[str], name_ids: Sequence[int], dataset: str) -> list[str]:
        """Return the first of some other names that fit into a prompt beside the own ones."""
        full = self.full_texts[dataset]
        costs = [self.tokenizer.count_tokens(clean_name(full[name_id]) + self.separator) for name_id in name_ids]
        budget = self.tokenizer.max_content_tokens - sum(costs)
        used = itertools.accumulate(self.tokenizer.count_tokens(name + self.separator) for name in others)
        return [name for name, total in zip(others, used, strict=True) if total <= budget]

    def _in_fixed_prompt(
        self, chunks: Sequence[TokenizedPrompt], annotations: list[dict], rng: np.random.Generator
    ) -> PromptedBoxes:
        """Draw one of the prompts of the test, and keep the boxes whose name is in it."""
        positives = {item["category_id"] for item in annotations}
        holding = [row for row, chunk in enumerate(chunks) if not positives.isdisjoint(chunk.category_ids.tolist())]
        others = [row for row in range(len(chunks)) if row not in holding]
        drawn = [*holding, *([others[rng.integers(len(others))]] if others else [])]
        prompt = chunks[drawn[rng.integers(len(drawn))]]
        row_of_name = {name_id: row for row, name_id in enumerate(prompt.category_ids.tolist())}
        kept = [item for item in annotations if item["category_id"] in row_of_name]
        rows = np.array([row_of_name[item["category_id"]] for item in kept], dtype=np.int64)
        return PromptedBoxes(prompt, kept, rows)

    def _dataset_of(self, dataset_dict: dict) -> str:
        if len(self.vocabularies) == 1:
            return next(iter(self.vocabularies))
        dataset = dataset_dict.get("dataset_name")
        if dataset not in self.vocabularies:
            raise InputError(
                f"{dataset_dict.get('file_name')}: dataset_name is {dataset!r}, "
                f"expected one of {list(self.vocabularies)}"
            )
        return dataset


def training_kept_names(cfg: CfgNode, vocabularies: Mapping[str, Sequence[str]]) -> KeptNames | None:
    """Return the other names that training prompts hold beside those of the data; None if they hold none.

    A tuned prompt is the same for every image and answers for its own names alone.
    """
    keep = cfg.MODEL.GLIPV2.TUNING.KEEP
    replays = keep.ENABLED and not keep.BY_NAME and (keep.NAMES_WEIGHT or keep.BOXES_WEIGHT)
    replays = replays and cfg.MODEL.GLIPV2.TUNING.MODE != "prompt"
    return KeptNames.from_config(cfg, itertools.chain(*vocabularies.values())) if replays else None


def training_siblings(vocabularies: Mapping[str, Sequence[str]]) -> dict[str, SiblingRows]:
    """Return the siblings among the names of each dataset, by its ``thing_parents``, and log which have none."""
    found: dict[str, SiblingRows] = {}
    for dataset, names in vocabularies.items():
        parents = MetadataCatalog.get(dataset).get("thing_parents")
        found[dataset] = siblings(names, parents) if parents else {}
    if without := [dataset for dataset, own in found.items() if not own]:
        logging.getLogger(__name__).info(
            "INPUT.PROMPT.SIBLING_NEGATIVES has no effect on %s: no two of their names have the same supercategory, or "
            "all names have it",
            ", ".join(map(repr, without)),
        )
    return found


def _shared_category_ids(vocabularies: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Number the names so that a name has one id in all datasets; a dataset alone keeps its contiguous ids."""
    if len(vocabularies) == 1:
        return {dataset: list(range(len(names))) for dataset, names in vocabularies.items()}
    id_of_name: dict[str, int] = {}
    shared_ids: dict[str, list[int]] = {}
    for dataset, names in vocabularies.items():
        # Parentheses stay: they tell apart names that read the same in a prompt.
        keys = [" ".join(name.replace("_", " ").lower().split()) for name in names]
        shared_ids[dataset] = [id_of_name.setdefault(key, len(id_of_name)) for key in keys]
    return shared_ids
