"""YAML texts that are not trusted, checked before they are read: neither their depth nor their aliases may grow."""

from __future__ import annotations

import yaml

from .errors import InputError

# The time to read a text grows with the square of its depth. Configs have a tenth of it.
_MOST_LEVELS = 64


def check_yaml(text: str) -> None:
    """Check that a text is YAML that can be read in a moment.

    A value may be repeated, as where a config was written out, but not inside of one that is repeated itself.

    Raises:
        InputError: Values are too deep, or an alias stands inside a value with an anchor, which might never end.
        yaml.YAMLError: It is not YAML.
    """
    anchors: list[str | None] = []
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
            if len(anchors) > _MOST_LEVELS:
                raise InputError(f"expected values at most {_MOST_LEVELS} levels deep, found deeper ones")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchors.pop()
        elif isinstance(event, yaml.AliasEvent) and any(anchors):
            raise InputError("expected values written out, found an alias (*NAME) inside a value with an anchor")
