import copy

import pytest
import torch

from glipv2_d2.errors import InputError
from glipv2_d2.layers.reading import BOTH_WAYS
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.exported.open_prompt import OpenPromptDetector, PromptReader
from glipv2_d2.prompts.tokenizer import PromptTokenizer


def build(cfg, **test):
    cfg.merge_from_list([word for key, value in test.items() for word in (key.replace("__", "."), value)])
    torch.manual_seed(0)
    model = build_model(cfg).eval().requires_grad_(False)
    # Scores of a new model differ in the last digits.
    for parameter in model.head.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.head.bias0.data.fill_(-1.0)
    return model


@pytest.mark.parametrize("size", [(60, 90), (128, 64)])
@pytest.mark.parametrize("names", [["cat"], ["cat", "traffic light", "a dog"]])
@pytest.mark.parametrize("fusion", [True, False])
def test_candidates_are_the_detections_of_the_model_before_boxes_are_suppressed(tiny_cfg, size, names, fusion):
    # With a threshold of 1 no box is suppressed.
    model = build(tiny_cfg, MODEL__GLIPV2__TEST__NMS_THRESH=1.0, MODEL__GLIPV2__FUSION__ENABLED=fusion)
    (prompt,) = PromptTokenizer.from_config(tiny_cfg).tokenize_names(names)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) * 255
    expected = model([{"image": image, "prompts": [prompt]}])[0]["instances"]
    detector = OpenPromptDetector(copy.deepcopy(model)).eval()
    text = PromptReader(model.text_encoder, BOTH_WAYS)(prompt.input_ids[None])
    # What is outside the image has no effect.
    canvas = torch.full((3, *(-(-side // 32) * 32 for side in size)), 99.0)
    canvas[:, : size[0], : size[1]] = image
    boxes, scores, phrases = detector(canvas, torch.tensor(size), text, prompt.phrase_token_map)
    scores, order = scores.sort(descending=True, stable=True)
    count = len(expected)
    assert 100 <= count < len(scores)
    torch.testing.assert_close(scores[:count], expected.scores, rtol=1e-4, atol=1e-5)
    assert (phrases[order][:count] == expected.pred_classes).float().mean() > 0.98
    torch.testing.assert_close(boxes[order][:20], expected.pred_boxes.tensor[:20], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"MODEL__GLIPV2__TUNING__MODE": "prompt"}, ("prompt_tuner", ".pt2")),
        ({"MODEL__GLIPV2__TEST__SCORE_AGGREGATION": "max"}, ("head", "'max'", ".pt2")),
        ({"MODEL__GLIPV2__FUSION__POSITIONS": True}, ("fusion_tower.blocks.0.fusion", "POSITIONS", ".pt2")),
    ],
)
def test_a_part_that_cannot_be_exported_is_named(tiny_cfg, keys, words):
    model = build(tiny_cfg, **keys)
    with pytest.raises(InputError) as caught:
        OpenPromptDetector(model)
    for word in words:
        assert word in str(caught.value)
