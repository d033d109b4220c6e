"""The layers of BERT with a mask of ours: read in one direction, all tokens at once or one by one, or on a device.

The transformers library changes from version to version how a causal mask and kept keys reach the layers of BERT. The
names of the parts of a layer are those of the weights and do not change, so this module runs the layers part by part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import BertModel

from ...errors import InputError
from ...layers.reading import KeyValues, visible_tokens


def can_be_run(bert: Any) -> bool:
    """Tell whether the functions of this module can run a model: a BERT with absolute positions."""
    return isinstance(bert, BertModel) and getattr(bert.config, "position_embedding_type", "absolute") == "absolute"


def masked_pass(bert: Any, input_ids: Tensor, mask: Tensor, causal: bool, use_checkpoint: bool) -> Tensor:
    """Encode N texts whose tokens see all tokens of their text, or with ``causal`` those up to themselves.

    The library has the same without ``causal``, but looks for padding in the numbers of the mask, for which the CPU has
    to wait.

    Args:
        bert: A BERT with absolute positions.
        input_ids: (N, T) int64.
        mask: (N, T) bool, True at real tokens.
        causal: See above.
        use_checkpoint: Recompute the activations of each layer in the backward pass.

    Returns:
        (N, T, D). Values in the padding are finite and meaningless.

    Raises:
        InputError: ``bert`` is of another type.
    """
    _check_type(bert)
    visible = visible_tokens(mask, causal)
    # A token that may see nothing sees everything, because a softmax over nothing would be NaN.
    visible = visible | ~visible.any(dim=-1, keepdim=True)
    hidden = bert.embeddings(input_ids=input_ids)
    for layer in bert.encoder.layer:
        if use_checkpoint:
            hidden = checkpoint(_run_layer, layer, hidden, visible, use_reentrant=False)
        else:
            hidden = _run_layer(layer, hidden, visible)
    return hidden


def causal_step(
    bert: Any, input_ids: Tensor, position: int, past: list[KeyValues] | None
) -> tuple[Tensor, list[KeyValues]]:
    """Encode the next token of B texts as ``masked_pass`` does, without running those before it again.

    Args:
        bert: A BERT with absolute positions.
        input_ids: (B,) int64.
        position: Number of tokens before.
        past: For each layer the keys and values of these tokens; None before the first token.

    Returns:
        (B, 1, D), and the keys and values for the next token.

    Raises:
        InputError: ``bert`` is of another type.
    """
    _check_type(bert)
    positions = torch.full((1, 1), position, device=input_ids.device)
    hidden = bert.embeddings(input_ids=input_ids[:, None], position_ids=positions)
    known: list[KeyValues] = []
    for number, layer in enumerate(bert.encoder.layer):
        query, keys, values = _project(layer, hidden)
        known.append(KeyValues.extend(None if past is None else past[number], keys, values))
        hidden = _finish(layer, hidden, F.scaled_dot_product_attention(query, *known[-1]))
    return hidden, known


def _run_layer(layer: Any, hidden: Tensor, visible: Tensor) -> Tensor:
    query, keys, values = _project(layer, hidden)
    dropout = layer.attention.self.dropout
    attended = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=visible, dropout_p=dropout.p if dropout.training else 0.0
    )
    return _finish(layer, hidden, attended)


def _project(layer: Any, hidden: Tensor) -> list[Tensor]:
    attention = layer.attention.self
    return [
        projection(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)  # (N, heads, T, d)
        for projection in (attention.query, attention.key, attention.value)
    ]


def _finish(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    hidden = layer.attention.output(attended.transpose(1, 2).flatten(2), hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def _check_type(bert: Any) -> None:
    if not can_be_run(bert):
        positions = getattr(bert.config, "position_embedding_type", "absolute")
        raise InputError(
            f"MODEL.TEXT_ENCODER.WEIGHTS: expected a BERT with absolute positions to write captions, found a "
            f"{bert.config.model_type} with {positions} ones"
        )
