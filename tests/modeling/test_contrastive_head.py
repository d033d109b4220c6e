"""The contrastive head: which features it takes, how it projects and labels them, and what it does with nothing."""

import pytest
import torch
import torch.nn.functional as F
from batch_samples import contrast_case, make_shapes
from contrastive_samples import Image, make_instances, make_prompt
from torch.testing import assert_close

from glipv2_d2.modeling.batch import AnchorTargets
from glipv2_d2.modeling.heads.contrastive_head import ContrastiveHead
from glipv2_d2.modeling.heads.region_word_packing import pack_word_labels
from glipv2_d2.structures import LanguageFeatures, TokenBatch

IMAGES = [
    Image([None, 0, 0, 1, None], [4, 9], [0, 1]),
    Image([None, 0, None], [-1], [0]),
    Image([None, 0, None, 1], [9, 2], [0]),
]
SHAPES = [(4, 3), (2, 2)]  # 16 anchors
MATCHED = [{1: 0, 5: 0, 13: 1}, {0: 0, 15: 0}, {11: 0, 12: 0}]  # for each image anchor: box


def make_head(**changes):
    torch.manual_seed(0)
    return ContrastiveHead(channels=6, language_dim=5, embed_dim=4, **changes)


def make_inputs(images=IMAGES, matched=MATCHED, seed=1):
    """Arguments of ``losses``."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(len(images), 6, *shape, generator=generator) for shape in SHAPES]
    prompts = [make_prompt(image) for image in images]
    mask = TokenBatch.from_prompts(prompts).mask
    embedded = torch.randn(*mask.shape, 5, generator=generator)
    # Fused text, and padding, must not be looked at.
    embedded[~mask] = torch.nan
    language = LanguageFeatures(torch.full_like(embedded, torch.nan), embedded, mask)
    matched_idxs = torch.full((len(images), sum(height * width for height, width in SHAPES)), -1)
    for image, boxes in enumerate(matched):
        for anchor, box in boxes.items():
            matched_idxs[image, anchor] = box
    targets = AnchorTargets(matched_idxs, torch.empty(0), torch.empty(0))
    return features, language, prompts, targets, [make_instances(image) for image in images]


def slow_loss(head, features, language):
    """The loss of IMAGES and MATCHED, with the pairs written out by hand."""
    flat = torch.cat([level.flatten(2) for level in features], dim=2)
    places = [(0, 1), (0, 5), (0, 13), (1, 0), (1, 15), (2, 11), (2, 12)]
    regions = torch.stack([flat[image, :, anchor] for image, anchor in places])
    regions = F.normalize(regions @ head.image_projection.weight.T + head.image_projection.bias)
    words = torch.cat([language.embedded[image, : len(IMAGES[image].words)] for image in range(3)])
    words = F.normalize(words @ head.text_projection.weight.T + head.text_projection.bias)
    scores = regions @ words.T / head.log_scale.exp()
    # Words: [CLS] four four nine [SEP] | . word . | [CLS] nine . two
    signs = [
        "-++-- --- ----",
        "-++-- --- ----",
        "---+- --- -+--",
        "-...- -+- -.-.",
        "-...- -+- -.-.",
        "---+- --- -+--",
        "---+- --- -+--",
    ]
    signs = [list(line.replace(" ", "")) for line in signs]
    targets = torch.tensor([[sign == "+" for sign in line] for line in signs])
    scores = scores.masked_fill(torch.tensor([[sign == "." for sign in line] for line in signs]), -1e9)
    total = 0.0
    for axis_scores, axis_targets in ((scores, targets), (scores.T, targets.T)):
        rows = axis_targets.any(dim=1)
        soft = axis_targets[rows] / axis_targets[rows].sum(dim=1, keepdim=True)
        total = total + F.cross_entropy(axis_scores[rows], soft)
    return total


@pytest.mark.parametrize("form", ["auto", "dense", "chunked"])
def test_loss_is_that_of_positive_anchors_and_real_tokens_before_fusion(form):
    head = make_head(form=form, loss_weight=0.5, log_scale=-1.0)
    features, language, *others = make_inputs()
    for tensor in (*features, language.embedded):
        tensor.requires_grad_()
    loss = head.losses(*contrast_case(features, language, *others))
    assert list(loss) == ["loss_contrastive"]
    leaves = [*features, language.embedded, *head.parameters()]
    gradients = torch.autograd.grad(loss["loss_contrastive"], leaves)
    expected = 0.5 * slow_loss(head, features, language)
    assert_close(loss["loss_contrastive"], expected, atol=1e-5, rtol=1e-5)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, leaves)):
        assert_close(actual, wanted, atol=1e-5, rtol=1e-4)
        assert wanted.abs().sum() > 0


def test_vectors_have_unit_length_and_words_carry_the_temperature():
    head = make_head(log_scale=-2.0)
    regions, words = head(torch.randn(3, 6), torch.randn(2, 5))
    assert_close(regions.norm(dim=1), torch.ones(3))
    assert_close(words.norm(dim=1), torch.full((2,), 7.389056))
    assert make_head().log_scale.item() == pytest.approx(-2.66)


def test_projections_begin_with_xavier_weights_and_no_bias():
    head = ContrastiveHead(channels=300, language_dim=200, embed_dim=100)
    for projection, fans in ((head.image_projection, 400), (head.text_projection, 300)):
        bound = (6 / fans) ** 0.5
        assert 0.99 * bound < projection.weight.abs().max() <= bound and projection.bias.abs().sum() == 0


def test_words_are_labelled_by_the_phrases_they_spell():
    labels = pack_word_labels([make_prompt(image) for image in IMAGES], torch.device("cpu"))
    assert labels.images.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    assert labels.categories.tolist() == [-1, 4, 4, 9, -1] + [-1] * 3 + [-1, 9, -1, 2]
    assert sorted(labels.phrases.T.tolist()) == [[1, 0], [2, 0], [3, 1], [6, 2], [9, 3], [11, 4]]


def test_a_word_of_two_names_has_the_larger_category():
    prompt = make_prompt(Image([0, 1], [7, 3], []))
    prompt.phrase_token_map[0, 1] = True
    assert pack_word_labels([prompt], torch.device("cpu")).categories.tolist() == [7, 7]


def chosen_anchors(head, matched):
    return head._choose_anchors(make_inputs(matched=matched)[3].matched_idxs)


def test_surplus_anchors_are_left_out_at_random_image_by_image():
    head = make_head(max_regions_per_image=3)
    matched = [dict.fromkeys(range(2, 12), 0), {4: 0, 9: 0}, {}]
    torch.manual_seed(0)
    draws = [chosen_anchors(head, matched) for _ in range(30)]
    for chosen in draws:
        assert chosen.sum(dim=1).tolist() == [3, 2, 0]
        assert chosen[1].nonzero().flatten().tolist() == [4, 9]
    assert torch.stack(draws).any(dim=0)[0].nonzero().flatten().tolist() == list(range(2, 12))
    torch.manual_seed(0)
    assert torch.equal(chosen_anchors(head, matched), draws[0])


def test_all_anchors_are_taken_where_they_are_not_too_many():
    for most in (10, 16, 100):
        chosen = chosen_anchors(make_head(max_regions_per_image=most), MATCHED)
        assert [row.nonzero().flatten().tolist() for row in chosen] == [[1, 5, 13], [0, 15], [11, 12]]


@pytest.mark.parametrize(
    "images", [IMAGES, [image._replace(regions=[]) for image in IMAGES]], ids=["boxes without anchors", "no boxes"]
)
def test_a_batch_without_positive_anchors_has_a_loss_of_zero_that_reaches_all_parameters(images):
    head = make_head()
    loss = head.losses(*contrast_case(*make_inputs(images, matched=[{}, {}, {}])))["loss_contrastive"]
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad.abs().sum() == 0 for parameter in head.parameters())


def test_an_image_without_boxes_offers_its_words():
    head = make_head()
    with_words = head.losses(*contrast_case(*make_inputs(matched=[MATCHED[0], {}, {}])))["loss_contrastive"]
    features, language, *others = make_inputs(matched=[MATCHED[0], {}, {}])
    alone = (others[0][:1], AnchorTargets(others[1].matched_idxs[:1], None, None), others[2][:1])
    without = head.losses(
        *contrast_case([level[:1] for level in features], LanguageFeatures(*(x[:1] for x in language[:3])), *alone)
    )
    assert with_words > without["loss_contrastive"] + 0.1


def test_half_precision_features_are_compared_in_single_precision():
    head = make_head()
    features, language, *others = make_inputs()
    features = [level.bfloat16() for level in features]
    language = LanguageFeatures(language.hidden, language.embedded.bfloat16(), language.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.losses(*contrast_case(features, language, *others))["loss_contrastive"]
    single = LanguageFeatures(language.hidden, language.embedded.float(), language.mask)
    expected = head.losses(*contrast_case([level.float() for level in features], single, *others))["loss_contrastive"]
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_config_decides_the_arguments(tiny_cfg):
    tiny_cfg.merge_from_list(
        [
            *("MODEL.GLIPV2.CONTRASTIVE.EMBED_DIM", 12, "MODEL.GLIPV2.CONTRASTIVE.LOG_SCALE", -1.5),
            *("MODEL.GLIPV2.CONTRASTIVE.MAX_REGIONS_PER_IMAGE", 7, "MODEL.GLIPV2.CONTRASTIVE.LOSS_WEIGHT", 0.25),
            *("MODEL.TEXT_ENCODER.MAX_TOKENS", 64),
        ]
    )
    head = ContrastiveHead(tiny_cfg, make_shapes(channels=6, language_dim=5))
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    assert shapes == {
        "image_projection.weight": (12, 6),
        "image_projection.bias": (12,),
        "text_projection.weight": (12, 5),
        "text_projection.bias": (12,),
        "log_scale": (1,),
    }
    assert head.log_scale.item() == -1.5
    assert (head.max_regions_per_image, head.max_tokens, head.loss_weight, head.form) == (7, 64, 0.25, "auto")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "fast"}, "form: expected one of auto, chunked, triton, dense, found 'fast'"),
        ({"max_regions_per_image": 0}, "CONTRASTIVE.MAX_REGIONS_PER_IMAGE: expected at least 1, found 0"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_head(**changes)
