"""A text encoder, a tower and a captioning head small enough to follow, and random images and captions for them."""

import torch

from glipv2_d2.layers.reading import CAUSAL
from glipv2_d2.modeling.fusion_tower import FusionTower
from glipv2_d2.modeling.heads.captioning_head import CaptioningHead
from glipv2_d2.modeling.text_encoder import BertTextEncoder, CLIPTextEncoder
from glipv2_d2.structures import TokenBatch

VOCAB_SIZE = 40
ENCODERS = {"bert": BertTextEncoder, "clip": CLIPTextEncoder}
LANGUAGE_LAYERS = {"bert": "post_norm", "clip": "pre_norm"}
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "intermediate_size": 20}
SHAPES = [(6, 9), (3, 5), (2, 3)]


def randomize(module, spread=1.5, seed=1):
    """Every parameter random, biases, norms and gammas too, so that no term vanishes and no bias decides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=spread / parameter[0].numel() ** 0.5, generator=generator)
            else:
                parameter.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.3, generator=generator)


def make_encoder(kind, **changes):
    encoder = ENCODERS[kind](**{**SIZES, "max_positions": 16, "dropout": 0.0, **changes})
    if "weights" not in changes:
        randomize(encoder)
    return encoder


def make_parts(kind, form="auto", blocks=2, **changes):
    """An encoder, a tower of as many blocks and a head, in eval mode; 8 channels in, 16 after the first block."""
    encoder = make_encoder(kind)
    tower = FusionTower(
        8,
        12,
        num_blocks=blocks,
        channels=16,
        num_groups=4,
        fusion_embed_dim=24,
        fusion_num_heads=3,
        fusion_form=form,
        language_num_heads=3,
        language_intermediate_size=20,
        language_layer_type=LANGUAGE_LAYERS[kind],
        **changes,
    )
    head = CaptioningHead(language_dim=12, vocab_size=VOCAB_SIZE)
    for seed, part in enumerate((tower, head)):
        randomize(part, seed=seed)
    return encoder.eval(), tower.eval(), head.eval()


def make_features(images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Each image has a colour of its own, which the mean over its positions keeps.
    colours = 2 * torch.randn(images, 8, 1, 1, generator=generator)
    return [colours + torch.randn(images, 8, *shape, generator=generator) for shape in SHAPES]


def make_tokens(*lengths, seed=0):
    """Captions of these lengths with random ids, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB_SIZE, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TokenBatch(ids * mask, mask)


def causal_logits(parts, features, input_ids):
    """Run whole texts (B, T) of B images through encoder, tower and head; (B, T, V)."""
    encoder, tower, head = parts
    tokens = TokenBatch(input_ids, torch.ones_like(input_ids, dtype=torch.bool))
    _, language = tower(features, encoder(tokens, causal=True), CAUSAL)
    return head(language.hidden)
