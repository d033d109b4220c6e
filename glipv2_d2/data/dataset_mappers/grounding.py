"""Grounding data: the caption of an image is the prompt, and its boxes belong to phrases of the caption."""

from __future__ import annotations

import numpy as np

from ...prompts.builder import prompt_from_caption
from ...prompts.flip_words import swap_left_right
from ...prompts.tokenizer import PromptTokenizer
from ...structures import CharSpan, TokenizedPrompt
from .base import PromptDatasetMapper, PromptedBoxes, boxes_to_train_on


class GroundingDatasetMapper(PromptDatasetMapper):
    """Make model inputs from images with a caption and boxes that have ``tokens_positive``.

    Boxes with the same character ranges share a phrase. A box whose phrase was cut off by the token limit is dropped
    and counted. Phrases of a sentence belong to no category: their ids are -1 in training.

    Source: the official GLIP code for data in MDETR's format.
    """

    task = "grounding"

    def training_target(self, dataset_dict: dict, rng: np.random.Generator) -> PromptedBoxes:
        """Make the caption a prompt whose phrases are those of the boxes; crowd regions are never targets."""
        return self.ground(dataset_dict["caption"], boxes_to_train_on(dataset_dict))

    def mirrored(self, dataset_dict: dict) -> dict:
        """Return a dataset dict with "left" and "right" swapped in its caption."""
        return mirror_text(dataset_dict, "caption")

    def test_prompts(self, dataset_dict: dict) -> list[TokenizedPrompt]:
        """Return the caption as one prompt; the category id of a phrase is its row."""
        phrases, _ = distinct_phrases(dataset_dict.get("annotations", []))
        return [self.tokenizer(prompt_from_caption(dataset_dict["caption"], [spans for spans, _ in phrases]))]

    def ground(self, caption: str, annotations: list[dict]) -> PromptedBoxes:
        """Make a caption a prompt, and the (M,) annotations the boxes of its phrases."""
        phrases, rows = distinct_phrases(annotations)
        spans = [spans for spans, _ in phrases]
        prompt = self.tokenizer(prompt_from_caption(caption, spans, category_ids=[-1] * len(phrases)))
        return PromptedBoxes.with_tokens(prompt, annotations, rows, num_tokens_cut_off(caption, prompt, self.tokenizer))


def mirror_text(dataset_dict: dict, field: str) -> dict:
    """Return a dataset dict with "left" and "right" swapped in the text of a field and in the ranges of its boxes."""
    annotations = dataset_dict.get("annotations", ())
    text, spans = swap_left_right(dataset_dict[field], [item.get("tokens_positive", ()) for item in annotations])
    mirrored = {**dataset_dict, field: text}
    if annotations:
        mirrored["annotations"] = [
            {**item, "tokens_positive": ranges} if ranges else item
            for item, ranges in zip(annotations, spans, strict=True)
        ]
    return mirrored


def num_tokens_cut_off(text: str, prompt: TokenizedPrompt, tokenizer: PromptTokenizer, num_added: int = 0) -> int:
    """Count the tokens of a text that did not fit into its prompt, together with ``num_added`` other ones."""
    if len(prompt) < tokenizer.max_tokens:
        return 0
    return tokenizer.count_tokens(text) + num_added - tokenizer.max_content_tokens


def distinct_phrases(annotations: list[dict]) -> tuple[list[tuple[tuple[CharSpan, ...], bool]], np.ndarray]:
    """Find the phrases of M boxes, each once, in the order of first use.

    Returns:
        For each phrase its character ranges and whether it is the answer too, and the (M,) phrase of each annotation.
    """
    row_of_phrase: dict[tuple[tuple[CharSpan, ...], bool], int] = {}
    rows = []
    for item in annotations:
        ranges = tuple(sorted((int(begin), int(end)) for begin, end in item.get("tokens_positive", ())))
        rows.append(row_of_phrase.setdefault((ranges, bool(item.get("answer_box", False))), len(row_of_phrase)))
    return list(row_of_phrase), np.array(rows, dtype=np.int64)
