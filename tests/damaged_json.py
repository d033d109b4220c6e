"""Random damage to json content, for tests of readers."""

import copy
from typing import Any

from hypothesis import strategies as st

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox"]), values, max_size=2),
    max_leaves=6,
)


def damaged(data: st.DataObject, files: dict[str, Any]) -> dict[str, Any]:
    """A copy of some files' content in which one random value is replaced or removed; a whole file is replaced only."""
    files = copy.deepcopy(files)
    owner, key = files, data.draw(st.sampled_from(sorted(files)))
    while isinstance(owner[key], (dict, list)) and owner[key] and data.draw(st.integers(0, 5)):
        owner = owner[key]
        key = data.draw(st.sampled_from(sorted(owner) if isinstance(owner, dict) else range(len(owner))))
    if owner is not files and data.draw(st.booleans()):
        del owner[key]
    else:
        owner[key] = data.draw(_VALUES)
    return files
