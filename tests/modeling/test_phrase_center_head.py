"""The head that reads from a phrase where its box is: its formula, what counts, and two processes as one."""

import math

import pytest
import torch
from batch_samples import text_case
from detectron2.structures import Boxes, Instances
from rank_runs import run_ranks
from torch import distributed
from torch.testing import assert_close

from glipv2_d2.modeling.heads.phrase_center_head import PhraseCenterHead
from glipv2_d2.structures import TokenizedPrompt

SIZE = (100, 200)
NUM_TOKENS = 5


def make_head(**arguments):
    torch.manual_seed(0)
    return PhraseCenterHead(language_dim=6, **arguments)


def make_prompt(*phrases, num_tokens=NUM_TOKENS):
    """A prompt of some tokens whose phrases have the tokens that are given."""
    token_map = torch.zeros(len(phrases), num_tokens, dtype=torch.bool)
    for row, tokens in enumerate(phrases):
        token_map[row, list(tokens)] = True
    ids, names = torch.zeros(num_tokens, dtype=torch.int64), tuple(f"phrase {row}" for row in range(len(phrases)))
    return TokenizedPrompt(ids, token_map, torch.arange(len(phrases)), names)


def make_boxes(*boxes):
    """Boxes given as the phrase and x0, y0, x1, y1."""
    instances = Instances(SIZE)
    instances.gt_classes = torch.tensor([box[0] for box in boxes], dtype=torch.int64)
    instances.gt_boxes = Boxes(torch.tensor([box[1:] for box in boxes], dtype=torch.float32).reshape(-1, 4))
    return instances


def make_text(num_texts=1):
    return torch.randn(num_texts, NUM_TOKENS, 6, generator=torch.Generator().manual_seed(3))


def loss_by_hand(head, vectors, centres):
    """The mean distance, number by number, of what the head reads from vectors."""
    total = 0.0
    for vector, centre in zip(vectors, centres):
        mean = sum(vector) / len(vector)
        variance = sum((one - mean) ** 2 for one in vector) / len(vector)
        normed = [(one - mean) / math.sqrt(variance + 1e-5) for one in vector]
        for row, expected in enumerate(centre):
            weight, bias = head.center.weight[row].tolist(), head.center.bias[row].item()
            distance = abs(sum(w * one for w, one in zip(weight, normed)) + bias - expected)
            total += distance**2 / 0.4 if distance < 0.2 else distance - 0.1
    return total / (2 * len(vectors))


def test_loss_is_the_weighted_smooth_distance_of_the_centres_from_the_means_of_the_tokens():
    head, text = make_head(loss_weight=3.0), make_text()
    boxes = make_boxes((1, 20, 10, 60, 30), (0, 100, 0, 200, 100))
    found = head.losses(*text_case(text, [make_prompt((1, 2), (3,))], [boxes], SIZE))["loss_phrase_center"]
    # Centres (40, 20) and (150, 50) of 200 pixels along the longer side.
    vectors = [text[0, 3].tolist(), text[0, 1:3].mean(0).tolist()]
    assert found.item() == pytest.approx(3 * loss_by_hand(head, vectors, [(-0.6, -0.8), (0.5, -0.5)]), rel=1e-5)


def test_phrases_of_all_prompts_weigh_the_same():
    head, text = make_head(), make_text(2)
    prompts = [make_prompt((1,), (2,)), make_prompt((1, 2), num_tokens=4)]
    boxes = [make_boxes((0, 0, 0, 20, 20), (1, 100, 0, 120, 20)), make_boxes((0, 40, 40, 60, 60))]
    found = head.losses(*text_case(text, prompts, boxes, SIZE))["loss_phrase_center"]
    vectors = [text[0, 1].tolist(), text[0, 2].tolist(), text[1, 1:3].mean(0).tolist()]
    centres = [(-0.9, -0.9), (0.1, -0.9), (-0.5, -0.5)]
    assert found.item() == pytest.approx(loss_by_hand(head, vectors, centres), rel=1e-5)


def test_phrases_without_a_token_or_with_several_boxes_do_not_count():
    head, text = make_head(), make_text()
    prompt = make_prompt((1,), (2,), (), (4,))
    counted = (1, 20, 10, 60, 30)
    boxes = make_boxes((0, 0, 0, 9, 9), counted, (0, 50, 50, 60, 60), (2, 0, 0, 40, 40))
    found = head.losses(*text_case(text, [prompt], [boxes], SIZE))["loss_phrase_center"]
    assert_close(found, head.losses(*text_case(text, [prompt], [make_boxes(counted)], SIZE))["loss_phrase_center"])


@pytest.mark.parametrize("boxes", [(), ((0, 0, 0, 9, 9), (0, 50, 50, 60, 60))], ids=["none", "two of a phrase"])
def test_without_a_phrase_to_find_the_loss_is_zero_and_reaches_the_parameters(boxes):
    head, text = make_head(), make_text().requires_grad_()
    loss = head.losses(*text_case(text, [make_prompt((1,))], [make_boxes(*boxes)], SIZE))["loss_phrase_center"]
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad is not None and not one.grad.any() for one in (*head.parameters(), text))


def test_one_phrase_on_one_of_eight_ranks_weighs_as_much_as_in_one_process(monkeypatch):
    head, text, boxes, prompt = make_head(), make_text(), make_boxes((0, 20, 10, 60, 30)), make_prompt((1,))
    alone = head.losses(*text_case(text, [prompt], [boxes], SIZE))["loss_phrase_center"]
    module = "glipv2_d2.distributed"
    monkeypatch.setattr(f"{module}.comm.get_world_size", lambda: 8)
    monkeypatch.setattr(f"{module}.reduce_mean", lambda count: count / 8)
    # The gradients of the ranks are averaged, seven of which are zero.
    assert_close(head.losses(*text_case(text, [prompt], [boxes], SIZE))["loss_phrase_center"] / 8, alone)


def test_places_of_large_images_stay_exact_beside_half_precision_text():
    head, prompt = make_head().bfloat16(), make_prompt((1,))
    head.center.weight.data.zero_()
    head.center.bias.data.copy_(torch.tensor([1.0, -1.0]))
    boxes = make_boxes((0, 1201, 0, 1205, 2))
    loss = head.losses(*text_case(make_text().bfloat16(), [prompt], [boxes], (800, 1344)))["loss_phrase_center"]
    distances = [1 - (1203 * 2 / 1344 - 1), 2 / 1344]
    expected = (distances[0] - 0.1 + distances[1] ** 2 / 0.4) / 2
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-4)


# --- two processes ----------------------------------------------------------------------------------------------------

# Three phrases on the first rank, none on the second.
PROMPTS = [make_prompt((1,), (2,), (3, 4)), make_prompt((1,))]
BOXES = [make_boxes((0, 0, 0, 20, 20), (1, 100, 0, 120, 20), (2, 40, 40, 60, 60)), make_boxes()]


def gradients_of_rank(rank):
    head = make_head()
    head.losses(*text_case(make_text(2)[[rank]], [PROMPTS[rank]], [BOXES[rank]], SIZE))["loss_phrase_center"].backward()
    for parameter in head.parameters():
        distributed.all_reduce(parameter.grad)
        parameter.grad /= 2
    return [parameter.grad for parameter in head.parameters()]


def test_two_ranks_have_the_gradients_of_the_whole_batch():
    head = make_head()
    head.losses(*text_case(make_text(2), PROMPTS, BOXES, SIZE))["loss_phrase_center"].backward()
    for found in run_ranks(gradients_of_rank):
        assert_close(found, [parameter.grad for parameter in head.parameters()])
