import dataclasses

import pytest
import torch

from glipv2_d2.errors import InputError
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.exported.fixed_prompt import FixedPromptDetector
from glipv2_d2.prompts.tokenizer import PromptTokenizer

# Height and width before and after the image is resized; a multiple of 32, and not.
SIZES = [((128, 192), (64, 96)), ((100, 150), (60, 90)), ((45, 33), (90, 66))]


@pytest.fixture
def prompt(tiny_cfg):
    names = ["cat", "traffic light", "a dog"]
    (prompt,) = PromptTokenizer.from_config(tiny_cfg).tokenize_names(names, separator=". ", chunk_size=0)
    return dataclasses.replace(prompt, category_ids=torch.tensor([2, 0, 1]))


def build(cfg, **test):
    cfg.merge_from_list([word for key, value in test.items() for word in (key.replace("__", "."), value)])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    # Scores of a new model differ in the last digits.
    for parameter in model.head.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.head.bias0.data.fill_(-1.0)
    return model


def padded(side):
    return -(-side // 32) * 32


@pytest.mark.parametrize(("original", "resized"), SIZES)
@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_detections_are_those_of_the_model(tiny_cfg, prompt, original, resized, aggregation):
    model = build(tiny_cfg, MODEL__GLIPV2__TEST__SCORE_AGGREGATION=aggregation)
    image = torch.rand(3, *resized, generator=torch.Generator().manual_seed(1)) * 255
    one = {"image": image, "height": original[0], "width": original[1], "prompts": [prompt]}
    size = padded(resized[0]), padded(resized[1])
    # What is outside the image has no effect.
    canvas = torch.full((3, *size), 99.0)
    canvas[:, : resized[0], : resized[1]] = image
    with torch.no_grad():
        expected = model([one])[0]["instances"]
        sizes = torch.tensor(resized), torch.tensor(original)
        boxes, scores, categories = FixedPromptDetector(model, prompt, size)(canvas, *sizes)
    count = int((scores > 0).sum())
    assert 0 < count == min(len(expected), tiny_cfg.TEST.DETECTIONS_PER_IMAGE)
    torch.testing.assert_close(scores[:count], expected.scores[:count])
    # The predictor cuts boxes to the image.
    limit = torch.tensor([original[1], original[0]] * 2)
    cut = expected.pred_boxes.tensor.clamp(min=0).minimum(limit)
    torch.testing.assert_close(boxes[:count], cut[:count], rtol=1e-4, atol=1e-3)
    assert torch.equal(categories[:count], expected.pred_classes[:count])


def test_empty_rows_have_the_score_zero(tiny_cfg, prompt):
    model = build(tiny_cfg, MODEL__GLIPV2__TEST__SCORE_THRESH=1.0)
    with torch.no_grad():
        sizes = torch.tensor((64, 96)), torch.tensor((64, 96))
        boxes, scores, categories = FixedPromptDetector(model, prompt, (64, 96))(torch.zeros(3, 64, 96), *sizes)
    assert len(boxes) == len(scores) == len(categories) == tiny_cfg.TEST.DETECTIONS_PER_IMAGE
    assert torch.equal(scores, torch.zeros_like(scores)) and boxes.isfinite().all()


def test_the_text_encoder_is_left_behind(tiny_cfg, prompt):
    detector = FixedPromptDetector(build(tiny_cfg), prompt, (64, 96))
    assert not [name for name, _ in detector.named_parameters() if "text_encoder" in name]


@pytest.mark.parametrize("size", [(64, 97), (0, 64), (-32, 64)])
def test_a_size_that_the_model_would_pad_is_an_error(tiny_cfg, prompt, size):
    with pytest.raises(InputError, match="--size: expected height and width in multiples of 32"):
        FixedPromptDetector(build(tiny_cfg), prompt, size)
