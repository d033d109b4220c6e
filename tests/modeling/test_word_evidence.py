"""Evidence of classes for the names of many images and prompts at once: its plain twin, and what a GPU waits for."""

import copy

import pytest
import torch
from class_words_samples import make_image, model_with_class_words
from detectron2.structures import Boxes, Instances, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_device import pretended_device
from prompt_samples import make_prompt
from torch.testing import assert_close
from torchvision.ops import nms

from glipv2_d2.engine.multi_scale import MultiScaleModel, ScaleSettings
from glipv2_d2.modeling.batch import Pairs
from glipv2_d2.modeling.box_regression import clip_boxes_legacy
from glipv2_d2.modeling.class_evidence import centred, name_evidence, name_ratios
from glipv2_d2.modeling.heads.batched_selection import best_apart
from glipv2_d2.modeling.heads.class_words_head import phrase_ids
from glipv2_d2.modeling.tasks.word_evidence import WordEvidence
from glipv2_d2.structures import TokenBatch, TokenizedPrompt

# A box of whole pixels: left, top, width and height, which may be 0, and its score. Many tie, and many overlap alike.
BOX = st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 4))


@settings(max_examples=60)
@given(
    pairs=st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(BOX, min_size=n, max_size=n), min_size=1, max_size=3)),
    nms_thresh=st.sampled_from([0.0, 0.2, 0.5, 0.6, 1.0]),
    count=st.integers(1, 10),
)
def test_boxes_apart_are_those_that_the_suppression_of_each_pair_keeps_first_bit_for_bit(pairs, nms_thresh, count):
    table = torch.tensor(pairs).float()
    boxes = torch.cat((table[..., :2], table[..., :2] + table[..., 2:4]), dim=2)
    scores = table[..., 4] / 4
    best, nearest = best_apart(boxes, scores, nms_thresh, count)
    for row, (own, of_boxes) in enumerate(zip(boxes, scores, strict=True)):
        expected = own[nms(own, of_boxes, nms_thresh)[:count]]
        assert torch.equal(best[row, : len(expected)], expected) and not best[row, len(expected) :].any()
        assert torch.equal(nearest[row], pairwise_iou(Boxes(own), Boxes(expected)).argmax(dim=1))


def test_boxes_that_share_three_fifths_are_on_one_object_from_that_number_on():
    # 3 of 5 pixels. In single precision the quotient is above 0.6.
    boxes, scores = torch.tensor([[[0.0, 0, 4, 1], [1.0, 0, 5, 1]]]), torch.tensor([[0.5, 0.4]])
    assert best_apart(boxes, scores, 0.6, 2)[0].tolist() == [[[0, 0, 4, 1], [0, 0, 0, 0]]]
    assert best_apart(boxes, scores, 0.61, 2)[0].tolist() == boxes.tolist()


# Names of one token and of two; a token of two names; a name that was cut off; no names.
NAMES = make_prompt([4], [8, 9])
SHARED = TokenizedPrompt(
    torch.arange(1000, 1007),
    torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]]).bool(),
    torch.arange(2),
    ("", ""),
)
CUT = TokenizedPrompt(torch.arange(1000, 1004), torch.tensor([[0] * 4, [0, 0, 1, 0]]).bool(), torch.arange(2), ("", ""))
NOTHING = TokenizedPrompt(torch.arange(1000, 1003), torch.zeros(0, 3, dtype=torch.bool), torch.arange(0), ())


@pytest.fixture
def model(tiny_cfg):
    return model_with_class_words(tiny_cfg)


def make_inputs(*prompts):
    """Images of two sizes that are padded to one, each with these prompts."""
    sizes = [(64, 96), (60, 90)]
    return [
        {"image": make_image(seed, size), "height": size[0], "width": size[1], "prompts": list(prompts)}
        for seed, size in enumerate(sizes)
    ]


def predict(model, prompts):
    """Two images with their evidence, anchors, pairs and predictions, some of which are damaged or tie."""
    images = model.preprocess_image(make_inputs())
    features = model.visual_features(images)
    pairs = Pairs.of_images(prompts)
    fused = model.fuse(pairs.select(features), model.read_prompts(pairs.prompts))
    predictions, anchors = fused.predictions, model.anchors_of(features)
    for level in (*predictions.token_logits, *predictions.box_deltas, *predictions.centerness_logits):
        level[:, 1::5] = level[:, ::5][:, : level[:, 1::5].shape[1]]
    predictions.token_logits[0][:, 7] = predictions.centerness_logits[0][:, 9] = torch.nan
    predictions.token_logits[0][0, 30] = predictions.centerness_logits[0][0, 30] = 90.0
    predictions.box_deltas[0][0, 30, 1], predictions.box_deltas[0][:, 31, 2] = torch.nan, torch.inf
    return WordEvidence(model, images), predictions, anchors, pairs


def plain_evidence(model, evidence, predictions, anchors, pairs):
    """The token logits, (M, R, T): pair by pair, name by name, by the suppression of torchvision."""
    head, found = model.class_words_head, torch.cat(predictions.token_logits, dim=1)
    deltas, centerness = (torch.cat(levels, dim=1) for levels in predictions[1:])
    for number, (row, prompt) in enumerate(zip(pairs.rows, pairs.prompts, strict=True)):
        marked = prompt.phrase_token_map.any(dim=0)
        if not marked.any():
            continue
        scores = found[number, :, : len(prompt)][:, marked].sigmoid().amax(dim=1) * centerness[number].sigmoid()
        lost = ~deltas[number].isfinite().all(dim=1) | scores.isnan()
        own, scores = deltas[number].masked_fill(lost[:, None], 0.0), scores.masked_fill(lost, 0.0)
        boxes = model.head.box2box_transform.apply_deltas(own, Boxes.cat(anchors).tensor)
        boxes = clip_boxes_legacy(boxes, evidence._image_sizes[row])
        best = boxes[nms(boxes, scores, model.head.selector.nms_thresh)[: head.max_boxes]]
        nearest = pairwise_iou(Boxes(boxes), Boxes(best)).argmax(dim=1)
        classes = head.probabilities(evidence._cells, [row], best[None])[0]
        for name, spelled in zip(phrase_ids(prompt), prompt.phrase_token_map, strict=True):
            if name:
                ids = torch.tensor([[1000, *name, int(prompt.input_ids[-1])]])
                vector = model.text_encoder(TokenBatch(ids, torch.ones_like(ids).bool())).hidden[0, 1:-1].mean(dim=0)
                vector = centred(vector[None], head.mean_vector)
                said = name_evidence(classes, name_ratios(head.class_vectors, vector, head.word_temperature))[:, 0]
                for token in spelled.nonzero().flatten().tolist():
                    found[number, :, token] += head.weight * said[nearest] / prompt.phrase_token_map[:, token].sum()
    return found


@torch.no_grad()
@pytest.mark.parametrize("max_boxes", [3, 2000])
def test_evidence_for_all_pairs_at_once_is_that_of_its_plain_twin(model, max_boxes):
    model.class_words_head.max_boxes = max_boxes
    case = predict(model, [[NAMES, SHARED], [CUT, NOTHING, NAMES]])
    expected = plain_evidence(model, *case)
    evidence, predictions, anchors, pairs = case
    found = torch.cat(evidence.add(predictions, anchors, pairs).token_logits, dim=1)
    before = torch.cat(predictions.token_logits, dim=1)
    assert_close(found, expected, rtol=1e-6, atol=2e-6, equal_nan=True)
    changed = (found - before).nan_to_num().abs().amax(dim=1) > 0.01
    assert [row.nonzero().flatten().tolist() for row in changed] == [[4, 8, 9], [1, 2, 3], [2], [], [4, 8, 9]]


@torch.no_grad()
def test_evidence_for_a_pair_does_not_depend_on_the_others_or_their_order(model):
    evidence, predictions, anchors, pairs = predict(model, [[NAMES, SHARED], [CUT, NOTHING, NAMES]])
    together = evidence.add(predictions, anchors, pairs).token_logits
    for rows in ([0], [1], [2], [3], [4], [4, 2, 1]):
        part = type(predictions)(*([level[rows] for level in levels] for levels in predictions))
        own = Pairs(*([values[row] for row in rows] for values in pairs))
        for one, other in zip(evidence.add(part, anchors, own).token_logits, together, strict=True):
            assert_close(one, other[rows], rtol=1e-6, atol=2e-6, equal_nan=True)


@torch.no_grad()
def test_a_prompt_without_phrases_gets_no_evidence(model):
    inputs = [one | {"task": "detection"} for one in make_inputs(NOTHING)]
    assert [len(one["instances"]) for one in model(inputs)] == [0, 0]
    (found, _) = model(make_inputs(NAMES, NOTHING))
    assert_close(found["instances"].scores, model(make_inputs(NAMES))[0]["instances"].scores)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_names_and_classes_are_compared_in_single_precision(model, dtype, monkeypatch):
    case = predict(model, [[NAMES], [SHARED]])
    language = model.read_prompts
    monkeypatch.setattr(model, "read_prompts", lambda prompts: _read_exactly(language, prompts))
    expected = case[0].add(*case[1:]).token_logits
    with torch.autocast("cpu", dtype):
        found = case[0].add(*case[1:]).token_logits
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def _read_exactly(read, prompts):
    with torch.autocast("cpu", enabled=False):
        return read(prompts)


def count_waits(model, first, inputs):
    """What happens between CPU and device for a batch after another one, and its result, on a copy of the model."""
    model = copy.deepcopy(model)
    with pretended_device() as traffic:
        model.to("cuda")
        model(first)
        traffic.clear()
        torch.manual_seed(5)
        found = model(inputs)
    assert not traffic.mixed and not traffic.unpinned, traffic
    return traffic, found


@torch.no_grad()
@pytest.mark.parametrize("prompts_per_pass", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_on_a_device_the_cpu_waits_once_for_images_with_several_prompts_known_or_new(model, prompts_per_pass):
    model.tasks["detection"].prompts_per_pass = prompts_per_pass
    model.class_words_head.image_scale = 2.0
    known, other = make_inputs(NAMES, SHARED), make_inputs(make_prompt([3]), CUT)
    for one in (*known, *other):
        one["fine_image"] = one["image"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = model(known)
    traffic, found = count_waits(model, known, known)
    # For the candidates of all pairs.
    assert traffic.waits.total() == 1, traffic
    for one, want in zip(found, expected, strict=True):
        assert_close(one["instances"].scores.numbers, want["instances"].scores, rtol=1e-5, atol=1e-5)
    traffic, _ = count_waits(model, known, other)
    assert traffic.waits.total() == 1, traffic


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_a_device_waits_no_more_and_finds_the_same(model, dtype):
    inputs = make_inputs(NAMES, SHARED)
    expected = model(inputs)
    with torch.autocast("cuda", dtype):
        traffic, found = count_waits(model, inputs, inputs)
    assert traffic.waits.total() == 1, traffic
    for one, want in zip(found, expected, strict=True):
        one, want = one["instances"], want["instances"]
        assert one.scores.dtype == torch.float32 and len(one) == len(want)
        assert_close(one.scores.numbers, want.scores, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_more_pairs_take_no_more_kernels(model):
    launches = []
    for prompts in ([NAMES, SHARED], [NAMES, SHARED, CUT, make_prompt([3])]):
        inputs = make_inputs(*prompts)
        launches.append(count_waits(model, inputs, inputs)[0].launches)
    # Where a batch has more pairs than images, levels are selected.
    assert launches[1] - launches[0] <= 6, launches


@pytest.mark.slow
@torch.no_grad()
def test_a_shortlist_waits_once_more_and_evidence_adds_no_wait_at_several_sizes(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.CONTRASTIVE.ENABLED", True, "MODEL.GLIPV2.TEST.SHORTLIST", 2])
    model = model_with_class_words(tiny_cfg)
    inputs = make_inputs(make_prompt([1], [3, 4]), make_prompt([2], [5, 6]))
    traffic, _ = count_waits(model, inputs, inputs)
    assert traffic.waits.total() == 2, traffic
    several = MultiScaleModel(model, ScaleSettings((64, 96), 128, per_image=10))
    with_head, _ = count_waits(several, inputs, inputs)
    model.class_words_head = None
    without, _ = count_waits(several, inputs, inputs)
    assert with_head.waits.total() == without.waits.total()


def test_a_training_step_waits_for_the_positive_anchors_only(model):
    inputs = make_inputs(NAMES)
    for one, boxes in zip(inputs, ([[8.0, 8, 60, 50], [0, 0, 30, 40]], []), strict=True):
        classes = torch.arange(len(boxes))
        fields = {"gt_classes": classes, "gt_category_ids": classes}
        one["instances"] = Instances(one["image"].shape[1:], gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)), **fields)
    torch.manual_seed(5)
    expected = copy.deepcopy(model).train()(inputs)
    traffic, found = count_waits(model.train(), inputs, inputs)
    assert traffic.waits.total() == 1, traffic
    assert_close(found["loss_class_words"].numbers, expected["loss_class_words"], rtol=1e-4, atol=1e-4)
