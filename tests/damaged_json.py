"""Random damage to json content, for tests of readers."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from hypothesis import strategies as st

from glipv2_d2.data.datasets.dict_checks import check_dataset_dicts
from glipv2_d2.data.datasets.value_checks import AnnotationError

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox"]), values, max_size=2),
    max_leaves=6,
)


def damaged(data: st.DataObject, files: dict[str, Any], values: st.SearchStrategy = _VALUES) -> dict[str, Any]:
    """A copy of some files' content in which one random value is replaced or removed; a whole file is replaced only."""
    files = copy.deepcopy(files)
    owner, key = files, data.draw(st.sampled_from(sorted(files)))
    while isinstance(owner[key], (dict, list)) and owner[key] and data.draw(st.integers(0, 5)):
        owner = owner[key]
        key = data.draw(st.sampled_from(sorted(owner) if isinstance(owner, dict) else range(len(owner))))
    if owner is not files and data.draw(st.booleans()):
        del owner[key]
    else:
        owner[key] = data.draw(values)
    return files


def assert_fit_or_one_line(load: Callable[[], list[dict]], folder: Path, name: str, task: str) -> list[dict]:
    """What a reader makes of damaged files is fit for training, and returned; or one line names a file: none."""
    try:
        records = load()
    except AnnotationError as error:
        assert str(folder) in str(error) and re.fullmatch(".{1,3000}", str(error))
        records = []
    else:
        assert records
        check_dataset_dicts("damaged", records, len(MetadataCatalog.get(name).get("thing_classes", ())), task=task)
    finally:
        MetadataCatalog.pop(name, None)
    return records
