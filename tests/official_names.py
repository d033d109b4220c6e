"""Weights of GLIPv2 under the names that a GLIP checkpoint has: the table of the conversion, read backwards."""

from collections.abc import Mapping

from torch import Tensor

from glipv2_d2.checkpoint.glip_conversion import _name_pairs, find_layout
from glipv2_d2.checkpoint.name_rules import translate_name

# The official code registers this tensor under two names.
BIAS, TWIN = "rpn.head.mlm_head.bias", "rpn.head.mlm_head.decoder.bias"


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a model all of whose parts the official code has."""
    pairs = {ours: official for official, ours in _name_pairs(find_layout(state_dict)).items()}
    official = {translate_name(name, pairs): tensor for name, tensor in state_dict.items()}
    assert None not in official
    return {**official, TWIN: official[BIAS]} if BIAS in official else official
