"""Text encoders of both kinds, small and random, and prompts for them."""

import torch
from torch import nn
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, PreTrainedModel

from glipv2_d2.modeling.text_encoder import BertTextEncoder, CLIPTextEncoder
from glipv2_d2.structures import TokenBatch

SIZES = {"vocab_size": 60, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "intermediate_size": 20}
LIBRARY_SIZES = {"vocab_size": 60, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
LIBRARY_SIZES |= {"intermediate_size": 20}
CLIP_CONFIG = {**LIBRARY_SIZES, "max_position_embeddings": 16, "layer_norm_eps": 1e-12, "projection_dim": 8}


def small_bert(**changes) -> BertTextEncoder:
    torch.manual_seed(0)
    return BertTextEncoder(**{**SIZES, "max_positions": 16, "dropout": 0.0, **changes})


def small_clip(**changes) -> CLIPTextEncoder:
    """An encoder with every parameter random."""
    torch.manual_seed(0)
    encoder = CLIPTextEncoder(**{**SIZES, "max_positions": 16, **changes})
    if "weights" not in changes:
        scramble(encoder)
    return encoder


def scramble(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=generator)


def bert_folder(folder, **changes) -> BertModel:
    """A folder of the transformers library with a BERT of these sizes; the model in it."""
    torch.manual_seed(1)
    return _saved(BertModel(BertConfig(**LIBRARY_SIZES, **changes)), folder)


def clip_folder(folder, **changes) -> CLIPTextModel:
    """The same with the text model of a CLIP, with every parameter random."""
    model = CLIPTextModel(CLIPTextConfig(**{**CLIP_CONFIG, **changes}))
    scramble(model)
    return _saved(model, folder)


def _saved(model: PreTrainedModel, folder) -> PreTrainedModel:
    model.eval().save_pretrained(folder)
    return model


def some_tokens(*lengths: int, seed: int = 0) -> TokenBatch:
    """Prompts of these lengths with random ids, padded to the longest."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 60, (length,), generator=generator)
        mask[row, :length] = True
    return TokenBatch(ids, mask)


def token_embedding(encoder: nn.Module) -> nn.Module:
    return encoder.bert.embeddings.word_embeddings if hasattr(encoder, "bert") else encoder.token_embedding


def count_encoded_rows(encoder: nn.Module) -> list[int]:
    """The number of prompts of each pass that follows."""
    rows: list[int] = []
    token_embedding(encoder).register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


class Payload:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
