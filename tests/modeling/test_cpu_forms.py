"""The forms for inference on a CPU give the model's results by the plain forms."""

import pytest
import torch
from detectron2.modeling import build_model
from prompt_samples import make_prompt

from glipv2_d2.layers import deform_conv, fusion, products
from glipv2_d2.modeling.backbone import swin_stripes


@pytest.fixture
def model(tiny_cfg, monkeypatch):
    torch.manual_seed(0)
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.3
    # Small pieces, and every product by oneDNN where there is AVX-512.
    for module, name in (
        (fusion, "BLOCK_SCORES"),
        (swin_stripes, "STRIPE_NUMBERS"),
        (swin_stripes, "MIN_POSITIONS"),
        (products, "MIN_PRODUCTS"),
        (deform_conv, "CHUNK_ELEMENTS"),
        (deform_conv, "SMALL_OUTPUT"),
    ):
        monkeypatch.setattr(module, name, 1)
    return build_model(tiny_cfg).eval()


def make_input(height, width, prompt):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "prompts": [prompt]}


@torch.no_grad()
def test_boxes_and_scores_are_those_of_the_plain_forms(model):
    inputs = [make_input(64, 96, make_prompt([1], [3])), make_input(50, 90, make_prompt([1, 2, 3, 4, 5, 6]))]
    actual = model(inputs)
    model.eval()  # forgets the prompts
    with products.plain_forms():
        expected = model(inputs)
    for one, other in zip(actual, expected):
        assert len(other["instances"]) > 0
        torch.testing.assert_close(one["instances"].scores, other["instances"].scores, rtol=0, atol=1e-6)
        boxes = (one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)
        torch.testing.assert_close(*boxes, rtol=0, atol=0.002)


@torch.no_grad()
def test_an_image_in_a_batch_has_the_results_that_it_has_alone(model):
    inputs = [make_input(64, 96, make_prompt([1], [3])), make_input(60, 90, make_prompt([1, 2, 3, 4, 5, 6]))]
    for one, alone in zip(model(inputs), inputs):
        other = model([alone])[0]
        torch.testing.assert_close(one["instances"].scores, other["instances"].scores, rtol=0, atol=1e-6)
        boxes = (one["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)
        torch.testing.assert_close(*boxes, rtol=0, atol=0.002)


def test_linear_layers_of_other_libraries_take_the_product_within_the_context_alone(monkeypatch):
    called = []
    linear = products.linear
    monkeypatch.setattr(products, "linear", lambda *args: called.append(len(args)) or linear(*args))
    layer, x = torch.nn.Linear(4, 5), torch.randn(3, 4)
    with products.library_layers():
        layer(x)  # with gradients
    with torch.no_grad():
        expected = layer(x)
        with products.library_layers():
            torch.testing.assert_close(layer(x), expected)
    assert called == [3]
