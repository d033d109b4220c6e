"""Mappers of a drawn image for tests: the arguments of all, a dataset dict, and what the tokens of a sample spell."""

from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from glipv2_d2.prompts.tokenizer import PromptTokenizer


def options(augmentations=(), max_tokens=256, is_train=True, **more) -> dict:
    """The arguments that all mappers have."""
    tokenizer = PromptTokenizer(max_tokens=max_tokens)
    own = {"is_train": is_train, "augmentations": list(augmentations), "image_format": "BGR", "tokenizer": tokenizer}
    return {**own, **more}


def drawn_record(folder: Path, **fields) -> dict:
    """A dataset dict of an image of 64 x 48, which is written, with these fields."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    own = {"file_name": str(folder / "a.png"), "image_id": 7, "width": 64, "height": 48, "sample_seed": 11}
    return {**own, **fields}


def annotation(bbox, *spans, **fields) -> dict:
    """An annotation whose phrase has these ranges; without any it has no phrase."""
    target = {"tokens_positive": spans} if spans else {}
    return {"bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS, **target, **fields}


def spelled(mapper, ids) -> str:
    """The word pieces of ids, special tokens included."""
    return " ".join(mapper.tokenizer._encoder.id_to_token(index) for index in ids.tolist())


def words_of_boxes(mapper, sample) -> list[str]:
    """The text that the tokens of each box spell, read from the prompt."""
    prompt = sample["prompts"][0]
    return [spelled(mapper, prompt.input_ids[row]) for row in prompt.phrase_token_map[sample["instances"].gt_classes]]
