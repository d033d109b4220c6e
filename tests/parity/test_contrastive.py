"""The contrastive head against numbers of the official shallow contrastive loss, in that loss's own terms.

It averages otherwise (both sums halved, over the number of positive anchors), pads with unlabelled anchors that are
compared with everything, leaves the anchors of each image's first box out, and in the fixtures takes fused text. What
it computes from given regions, words and labels is what the pieces of this package compute.
"""

import json

import numpy as np
import pytest
import torch
from conftest import ASSETS
from parity_weights import TINY_SALT, load_tiny, tensor_for
from torch.testing import assert_close
from torchvision.ops import roi_align

from glipv2_d2.modeling.heads.contrastive_head import ContrastiveHead
from glipv2_d2.modeling.losses.contrastive_loss import soft_cross_entropy
from glipv2_d2.modeling.losses.region_word_targets import dense_targets, label_regions, label_words

OFFICIAL = "rpn.loss_evaluator.shallow_contrastive_projection_"
# Parameters of the head by their official names.
NAMES = {
    "image_projection.weight": OFFICIAL + "image.weight",
    "image_projection.bias": OFFICIAL + "image.bias",
    "text_projection.weight": OFFICIAL + "text.weight",
    "text_projection.bias": OFFICIAL + "text.bias",
    "log_scale": "rpn.loss_evaluator.shallow_log_scale",
}
# A category that no word has: such a region is compared with all words, and belongs to none.
NO_CATEGORY = 10_000
VARIANTS = ["fpn_zero_pads", "fpn_random_pads", "fpn_max_positives", "backbone_zero_pads"]


def load(variant):
    facts = json.loads((ASSETS / "parity" / "v2" / f"shallow_{variant}.json").read_text())
    with np.load(ASSETS / "parity" / "v2" / f"shallow_{variant}.npz") as arrays:
        return facts, {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def make_head(channels):
    head = ContrastiveHead(channels=channels, language_dim=48, embed_dim=64)
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    head.load_state_dict(
        {name: torch.from_numpy(tensor_for(NAMES[name], shape, TINY_SALT)) for name, shape in shapes.items()}
    )
    return head


def visual_features(variant, image, anchors):
    """(n, C) at the anchors of an image: of the pyramid, or of the backbone under the anchors' boxes."""
    backbone = load_tiny("det_backbone.npz")
    if variant.startswith("fpn"):
        levels = [backbone[f"fpn.p{level}"][image].flatten(1) for level in range(3, 8)]
        return torch.cat(levels, dim=1)[:, anchors].T
    levels = load_tiny("anchors.npz")
    boxes = torch.cat([levels[name] for name in sorted(levels)])[anchors]
    return roi_align(backbone["swin.4"][image : image + 1], [boxes], 1, 1 / 16, aligned=True).flatten(1)


def build(variant, arrays, head):
    """Regions and words with their phrases; and where they stand among the padded ones of the file."""
    visual, region_facts, places = [], [], []
    words, word_facts, word_phrases, word_places = [], [], [], []
    num_regions = num_words = 0
    padded = len(arrays["image_logits"]) // 2
    for image in range(2):
        positive = arrays[f"img{image}.positive_anchors_of_loss"]
        pads = arrays.get(f"img{image}.negative_pad_anchors", positive[:0])
        visual.append(visual_features(variant, image, torch.cat((positive, pads))))
        region_facts += [(image, label) for label in arrays[f"img{image}.gold_od_label"].tolist()]
        region_facts += [(image, NO_CATEGORY)] * len(pads)
        places += [image * padded + place for place in range(len(positive) + len(pads))]
        valid = (arrays["image_logits"][0, image * 256 : (image + 1) * 256] > -1e5).nonzero().squeeze(1)
        words.append(arrays["text_embedding"][image, valid])
        word_facts += [(image, label) for label in arrays[f"img{image}.od_label_of_tokens"][valid].tolist()]
        word_places += (valid + 256 * image).tolist()
        # Each region is a phrase of its own.
        region, token = arrays[f"img{image}.token_map"][:, valid].nonzero(as_tuple=True)
        word_phrases.append(torch.stack((token + num_words, region + num_regions)))
        num_regions, num_words = num_regions + len(positive) + len(pads), num_words + len(valid)
    projected = head(torch.cat(visual), torch.cat(words))
    regions = label_regions(projected[0], *torch.tensor(region_facts).T)
    words = label_words(projected[1], *torch.tensor(word_facts).T)
    region_phrases = torch.arange(num_regions).expand(2, -1)
    return regions, words, region_phrases, torch.cat(word_phrases, dim=1), (places, word_places)


@pytest.mark.parametrize("form", ["dense", "chunked"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_targets_loss_and_gradients_equal_the_official_ones(variant, form):
    facts, arrays = load(variant)
    head = make_head(96 if variant.startswith("backbone") else 32)
    regions, words, region_phrases, word_phrases, (rows, columns) = build(variant, arrays, head)
    assert_close(regions.vectors @ words.vectors.T, arrays["image_logits"][rows][:, columns], atol=3e-4, rtol=1e-4)
    targets = dense_targets(regions, words, region_phrases, word_phrases).float()
    normalized = targets / targets.sum(dim=1, keepdim=True).clamp(min=1)
    assert_close(normalized, arrays["image_target"][rows][:, columns])
    assert_close((targets / targets.sum(dim=0).clamp(min=1)).T, arrays["text_target"][columns][:, rows])

    to_words, _ = soft_cross_entropy(regions, words, region_phrases, word_phrases, form)
    to_regions, _ = soft_cross_entropy(words, regions, word_phrases, region_phrases, form)
    assert_close(to_words.item(), facts["image_to_token_sum"], atol=1e-4, rtol=1e-4)
    assert_close(to_regions.item(), facts["token_to_image_sum"], atol=1e-4, rtol=1e-4)
    loss = (to_words + to_regions) / 2 / facts["num_positive"]
    assert_close(loss.item(), facts["losses"]["loss_shallow_contrastive"], atol=1e-4, rtol=1e-4)
    loss.backward()
    for name, parameter in head.named_parameters():
        official, gradient = NAMES[name].removeprefix("rpn.loss_evaluator."), parameter.grad.double()
        expected = facts["gradients_of_projections"][official]
        probe = torch.from_numpy(tensor_for("probe." + official, tuple(gradient.shape), ""))
        tolerance = 1e-3 * expected["l2"] + 1e-6
        assert abs(gradient.norm().item() - expected["l2"]) <= tolerance, name
        assert abs((gradient * probe).sum().item() - expected["probe"]) <= tolerance, name
