import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer

from glipv2_d2.modeling.backbone import swin_stripes
from glipv2_d2.modeling.backbone.coswin import CoSwin
from glipv2_d2.modeling.backbone.swin import FreezableSwin


def make_swin(swin_class=FreezableSwin, **options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "depths": (2, 1, 2), "num_heads": (2, 3, 4), "out_indices": (0, 1, 2)} | options
    swin = swin_class(window_size=3, **sizes).double().eval()
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return swin


def assert_equals_detectron2(swin, images):
    expected = SwinTransformer.forward(swin, images)
    with torch.no_grad():
        actual = swin(images)
    assert list(actual) == list(expected)
    for name, feature in expected.items():
        torch.testing.assert_close(actual[name], feature.detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("swin_class", [FreezableSwin, CoSwin])
@pytest.mark.parametrize("positions", [1, 40, 10**6])
@pytest.mark.parametrize("size", [(48, 48), (52, 71), (5, 4), (17, 90)])
def test_stripes_equal_detectron2s_blocks(size, positions, swin_class, monkeypatch):
    # Maps that fit the windows and maps that are padded, smaller than a window too; stripes of one row and of all.
    monkeypatch.setattr(swin_stripes, "MIN_POSITIONS", positions)
    monkeypatch.setattr(swin_stripes, "STRIPE_NUMBERS", 1)
    assert_equals_detectron2(make_swin(swin_class), torch.randn(2, 3, *size, dtype=torch.float64))


def test_layers_without_bias_and_other_scales_are_followed():
    assert_equals_detectron2(make_swin(qkv_bias=False, qk_scale=0.7), torch.randn(1, 3, 40, 32, dtype=torch.float64))


def test_stripes_cover_a_map_once():
    stripes = swin_stripes.cut_stripes(7, 4, 3, 1, 9)
    # Rows 1 to 3, 4 to 6, and what follows the padded rows 7 and 8 on the ring: row 0.
    assert [stripe.rows for stripe in stripes] == [((1, 4),), ((4, 7),), ((0, 1),)]
    for stripe in stripes:
        assert torch.equal(stripe.slots[stripe.places], torch.arange(len(stripe.places)))
    # Two windows across: columns 1 to 3, and the padded columns 4 and 5 with column 0.
    assert stripes[0].slots.view(2, 3, 3)[0].tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]
    assert stripes[0].padding.tolist() == [9, 10, 12, 13, 15, 16]
    assert stripes[0].regions[1].tolist() == [1, 1, 2] * 3


def test_the_input_of_the_model_stays_as_it_is():
    swin, images = make_swin(patch_norm=False), torch.randn(1, 3, 24, 24, dtype=torch.float64)
    before = images.clone()
    with torch.no_grad():
        first = swin(images)
        second = swin(images)
    assert torch.equal(images, before)
    assert all(torch.equal(first[name], second[name]) for name in first)
