"""How many images of the data that a model is tested on are there: for tools/reproduce.py."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from glipv2_d2.data.datasets.flickr30k import read_image_boxes, read_sentences
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.errors import InputError


@functools.cache
def count_images(name: str) -> int:
    """Read a dataset, and return how many of its images are there and can be used.

    An image of Flickr30K whose captions name nothing that has a box counts too: nothing is to be found in it, and the
    loader leaves it out by rule.

    Args:
        name: A registered dataset with a json file, or a split of Flickr30K.

    Raises:
        InputError: Annotations break their format.
        FileNotFoundError: Data are not there.
    """
    found = {record["file_name"] for record in load_dataset(name)}
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        ids = set(Path(metadata.image_ids_file).read_text("utf-8-sig").split())
        others = ids - {Path(path).stem for path in found}
        return len(found) + sum(_has_no_fault(metadata, one) for one in others)
    return len(found)


def _has_no_fault(metadata: Any, image_id: str) -> bool:
    """Tell whether the files of an image of Flickr30K are there and can be used."""
    sentences, annotations = (
        os.path.join(metadata.entities_root, folder, f"{image_id}.{suffix}")
        for folder, suffix in (("Sentences", "txt"), ("Annotations", "xml"))
    )
    try:
        read_sentences(sentences)
        boxes = read_image_boxes(annotations)
    except (FileNotFoundError, InputError):
        return False
    return not boxes.left_out and os.path.isfile(os.path.join(metadata.image_root, f"{image_id}.jpg"))
