"""The mask head: one map for each box equals the mean of all token maps; its loss, and two processes as one."""

import math

import pytest
import torch
import torch.nn.functional as F
from batch_samples import make_shapes, mask_case
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from rank_runs import assert_ranks_train_as_one, run_ranks, train_steps
from torch import nn
from torch.testing import assert_close

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.modeling.heads.mask_head import HourglassMaskHead
from glipv2_d2.structures import TokenizedPrompt

CHANNELS, DIM, TOKENS = 6, 10, 7
SIZE = (64, 96)
STRIDES = [8, 16]
# Two phrases, of two tokens and of one, and one that was cut off.
TOKEN_MAP = [[0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0] * TOKENS]


def make_head(seed=0, **arguments):
    """A head whose every parameter matters."""
    torch.manual_seed(seed)
    defaults = {"channels": CHANNELS, "language_dim": DIM, "strides": STRIDES, "conv_dim": 8, "pooler_resolution": 4}
    head = HourglassMaskHead(**defaults | arguments)
    with torch.no_grad():
        head.bias_lang.normal_()
        for name, parameter in head.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return head


def make_prompt(token_map=TOKEN_MAP):
    token_map = torch.tensor(token_map, dtype=torch.bool)
    ids = torch.zeros(token_map.shape[1], dtype=torch.int64)
    return TokenizedPrompt(ids, token_map, torch.arange(len(token_map)), ("phrase",) * len(token_map))


def make_features(num_images=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]
    levels = [torch.randn(num_images, CHANNELS, *shape, generator=generator) for shape in shapes]
    return levels, torch.randn(num_images, TOKENS, DIM, generator=generator)


def random_boxes(count, seed=2):
    start = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([50.0, 30.0])
    return torch.cat((start, start + 30), dim=1)


def make_instances(boxes, classes, has_mask=None, bitmaps=False):
    """Boxes whose masks are their left halves."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    halves = [[left, top, (left + right) / 2, bottom] for left, top, right, bottom in boxes.tolist()]
    polygons = [[[left, top, right, top, right, bottom, left, bottom]] for left, top, right, bottom in halves]
    instances = Instances(SIZE)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = PolygonMasks(polygons)
    instances.gt_masks = BitMasks.from_polygon_masks(masks, *SIZE) if bitmaps else masks
    instances.gt_has_mask = torch.tensor(has_mask if has_mask is not None else [True] * len(boxes), dtype=torch.bool)
    return instances


NO_BOXES = Boxes(torch.zeros(0, 4))
BOX, OTHER = [8.0, 8.0, 41.0, 57.0], [40.0, 10.0, 81.0, 51.0]


# --- one map for each box ---------------------------------------------------------------------------------------------


def all_token_maps(head, levels, boxes, text, token_maps):
    """The slow form: the map of every token for every box, then the mean over those of its phrase."""
    results = []
    for image, (image_boxes, token_map) in enumerate(zip(boxes, token_maps)):
        x = head.input_projection(head.pooler([level[image : image + 1] for level in levels], [image_boxes]))
        for hourglass in head.hourglasses:
            x = hourglass(x).clamp(min=0)
        pixels = head.deconv(x).clamp(min=0)  # (K, conv_dim, 2S, 2S)
        embedding = text[image] / text[image].norm(dim=1, keepdim=True)  # (T, D)
        words = F.linear(embedding / 2, head.text_projection.weight, head.text_projection.bias)
        products = torch.einsum("kcyx,tc->ktyx", pixels, words) / torch.exp(head.log_scale)
        logits = products + (embedding @ head.bias_lang)[:, None, None]
        logits = logits.clamp(-50_000, 50_000)
        for own, tokens in zip(logits, token_map):
            results.append(own[tokens].mean(0))
    return torch.stack(results)


@pytest.mark.parametrize("arguments", [{}, {"conv_dim": CHANNELS}, {"hourglass_depth": 2, "num_hourglasses": 2}])
@pytest.mark.parametrize("num_boxes", [(3, 2), (20, 10)], ids=["at once", "in slices"])
def test_one_map_for_each_box_equals_the_mean_of_all_token_maps(arguments, num_boxes):
    head = make_head(log_scale=0.3, **arguments)
    levels, text = make_features(2)
    levels, text = [level.requires_grad_() for level in levels], text.requires_grad_()
    boxes = [random_boxes(count, seed) for seed, count in enumerate(num_boxes)]
    token_maps = [torch.tensor(TOKEN_MAP, dtype=torch.bool)[torch.arange(count) % 2] for count in num_boxes]
    inputs = [*levels, text, *head.parameters()]
    weights = torch.randn(sum(num_boxes), 8, 8)

    fast = head(levels, boxes, text, token_maps)
    slow = all_token_maps(head, levels, boxes, text, token_maps)
    assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad((form * weights).sum(), inputs) for form in (fast, slow)]
    for one, other in zip(*gradients):
        assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_activations_of_many_boxes_are_computed_again_slice_after_slice():
    head = make_head()
    levels, text = make_features()
    sizes = []
    head.deconv.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    token_map = torch.tensor(TOKEN_MAP[:1], dtype=torch.bool)

    def run(count):
        sizes.clear()
        return head(levels, [random_boxes(count)], text, [token_map.expand(count, -1)])

    logits = run(120)
    assert sizes == [10] * 12
    logits.sum().backward()
    assert sizes == [10] * 24
    run(20)
    assert sizes == [8, 8, 4]
    run(8).sum().backward()
    assert sizes == [8]
    with torch.no_grad():
        run(20)
    assert sizes == [20]


def test_logits_are_bounded():
    head = make_head(log_scale=-11.0)
    levels, text = make_features()
    logits = head(levels, [random_boxes(3)], text, [torch.tensor(TOKEN_MAP[:1], dtype=torch.bool).expand(3, -1)])
    assert logits.abs().max() == 50_000 and (logits.abs() < 50_000).any()


def test_padding_of_the_text_is_not_read():
    head = make_head()
    levels, text = make_features()
    token_map = torch.tensor(TOKEN_MAP[:2], dtype=torch.bool)[:, :4]
    boxes = [random_boxes(2)]
    expected = head(levels, boxes, text, [token_map])
    padded = torch.cat((text[:, :4], torch.full((1, 5, DIM), float("nan"))), dim=1)
    assert torch.equal(head(levels, boxes, padded, [token_map]), expected)


def test_phrase_without_tokens_is_finite():
    head = make_head()
    levels, text = make_features()
    logits = head(levels, [random_boxes(1)], text * 0, [torch.zeros(1, TOKENS, dtype=torch.bool)])
    assert logits.isfinite().all()


def test_untrained_head_has_no_bias_and_kaiming_weights():
    torch.manual_seed(0)
    head = HourglassMaskHead(channels=64, language_dim=300, strides=STRIDES, conv_dim=128, log_scale=0.25)
    for name, parameter in head.named_parameters():
        if "bias" in name:
            assert not parameter.any(), name
    assert head.log_scale.tolist() == [0.25]
    for weight, fan_out in ((head.text_projection.weight, 128), (head.deconv.weight, 128 * 4)):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


def test_level_of_another_width_is_projected_first():
    assert isinstance(make_head(conv_dim=CHANNELS).input_projection, nn.Identity)
    assert make_head().input_projection.weight.shape == (8, CHANNELS, 1, 1)


def test_a_head_without_hourglass_is_an_error():
    with pytest.raises(ValueError, match="MASK_HEAD.NUM_HOURGLASSES: expected at least 1, found 0"):
        make_head(num_hourglasses=0)


def test_config_decides():
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.GLIPV2.MASK_HEAD.update(
        {"HOURGLASS_DEPTH": 2, "NUM_HOURGLASSES": 3, "CONV_DIM": 32, "POOLER_RESOLUTION": 6}
    )
    cfg.MODEL.GLIPV2.MASK_HEAD.update({"MAX_PROPOSALS": 7, "LOSS_WEIGHT": 0.25})
    head = HourglassMaskHead(cfg, make_shapes(channels=5, language_dim=9, strides=STRIDES))
    assert len(head.hourglasses) == 3
    assert head.deconv.weight.shape == (32, 32, 2, 2) and head.input_projection.in_channels == 5
    assert head.pooler.resolution == 6
    assert [align.spatial_scale for align in head.pooler.aligns] == [1 / 8, 1 / 16]
    assert head.max_proposals == 7 and head.loss_weight == 0.25
    assert head.text_projection.in_features == len(head.bias_lang) == 9


# --- the loss ---------------------------------------------------------------------------------------------------------


def left_half(height=8, width=8):
    """The target of a box whose mask is its left half: the frame is a pixel narrower than the box."""
    target = torch.zeros(height, width)
    target[:, : width // 2] = 1
    return target


@pytest.mark.parametrize("bitmaps", [False, True])
def test_loss_is_the_mean_over_the_pixels_of_the_boxes_that_train(bitmaps):
    head = make_head()
    levels, text = make_features(2)
    # A proposal on the second box of the first image, one on nothing; the second image has one box.
    proposals = [Boxes(torch.tensor([[40.0, 10.0, 81.0, 53.0], [0.0, 0.0, 5.0, 5.0]])), NO_BOXES]
    instances = [make_instances([BOX, OTHER], [0, 1], bitmaps=bitmaps), make_instances([OTHER], [0], bitmaps=bitmaps)]
    losses = head.losses(*mask_case(levels, text, proposals, instances, [make_prompt(), make_prompt()]))
    assert losses.keys() == {"loss_mask"}

    boxes = [torch.tensor([[40.0, 10.0, 81.0, 53.0], BOX, OTHER]), torch.tensor([OTHER])]
    token_map = torch.tensor(TOKEN_MAP, dtype=torch.bool)
    maps = all_token_maps(head, levels, boxes, text, [token_map[[1, 0, 1]], token_map[[0]]])
    targets = torch.stack([left_half()] * 4)
    # The proposal ends two pixels below its mask, less than half a cell.
    probabilities = maps.sigmoid()
    expected = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).mean()
    assert_close(losses["loss_mask"], expected, atol=1e-5, rtol=1e-4)
    weighted = make_head(loss_weight=2.5).losses(
        *mask_case(levels, text, proposals, instances, [make_prompt(), make_prompt()])
    )
    assert_close(weighted["loss_mask"], losses["loss_mask"] * 2.5)


def test_proposals_are_limited():
    levels, text = make_features()
    proposals = Boxes(torch.tensor([BOX, [8.0, 8.0, 41.0, 40.0], [8.0, 8.0, 41.0, 38.0]]))
    seen = []
    for limit in (0, 1, 100):
        head = make_head(max_proposals=limit)
        head.deconv.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        head.losses(*mask_case(levels, text, [proposals], [make_instances([BOX], [0])], [make_prompt()]))
    assert seen == [1, 2, 4]


def test_gradient_reaches_features_text_and_every_parameter():
    head = make_head(num_groups=2, hourglass_depth=2)
    levels, text = make_features()
    levels, text = [level.requires_grad_() for level in levels], text.requires_grad_()
    losses = head.losses(*mask_case(levels, text, [NO_BOXES], [make_instances([BOX, OTHER], [0, 1])], [make_prompt()]))
    losses["loss_mask"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    assert levels[0].grad.any()
    # Words of the two phrases, and no others.
    assert (text.grad[0].abs().sum(1) > 0).tolist() == [False, True, True, True, False, False, False]


NOTHING = {
    "no boxes": make_instances([], []),
    "boxes without masks": make_instances([BOX, OTHER], [0, 1], has_mask=[False, False]),
    "phrase cut off": make_instances([BOX], [2]),
    "boxes without bitmaps": make_instances([BOX], [0], has_mask=[False], bitmaps=True),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_draw_is_a_loss_of_zero_that_touches_every_parameter(name):
    head = make_head(num_groups=2)
    levels, text = make_features()
    loss = head.losses(*mask_case(levels, text, [Boxes(torch.tensor([BOX]))], [NOTHING[name]], [make_prompt()]))[
        "loss_mask"
    ]
    assert loss.item() == 0
    loss.backward()
    for parameter in head.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_boxes_without_a_mask_change_nothing_for_the_others():
    head = make_head()
    levels, text = make_features()
    alone = head.losses(*mask_case(levels, text, [NO_BOXES], [make_instances([OTHER], [1])], [make_prompt()]))
    mixed = make_instances([BOX, OTHER, BOX], [0, 1, 2], has_mask=[False, True, True])
    # An annotation without a mask holds no polygon.
    mixed.gt_masks = PolygonMasks([[], mixed.gt_masks.polygons[1], []])
    assert_close(head.losses(*mask_case(levels, text, [Boxes(torch.tensor([BOX]))], [mixed], [make_prompt()])), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_single_precision_under_autocast(dtype):
    head = make_head()
    levels, text = make_features()
    batch = ([NO_BOXES], [make_instances([BOX, OTHER], [0, 1])], [make_prompt()])
    with torch.autocast("cpu", dtype=dtype):
        loss = head.losses(*mask_case([level.to(dtype) for level in levels], text.to(dtype), *batch))["loss_mask"]
        nothing = head.losses(*mask_case(levels, text, [NO_BOXES], [NOTHING["no boxes"]], [make_prompt()]))["loss_mask"]
    assert loss.dtype == torch.float32 and nothing.item() == 0
    assert_close(loss, head.losses(*mask_case(levels, text, *batch))["loss_mask"], atol=0.03, rtol=0.03)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_head_of_another_precision(dtype):
    levels, text = make_features()
    batch = ([NO_BOXES], [make_instances([BOX, OTHER], [0, 1])], [make_prompt()])
    loss = (
        make_head()
        .to(dtype)
        .losses(*mask_case([level.to(dtype) for level in levels], text.to(dtype), *batch))["loss_mask"]
    )
    assert_close(loss, make_head().losses(*mask_case(levels, text, *batch))["loss_mask"], atol=0.03, rtol=0.03)


# --- test time --------------------------------------------------------------------------------------------------------


def make_detections(boxes, phrase_ids):
    return Instances(SIZE, pred_boxes=Boxes(boxes), phrase_ids=torch.tensor(phrase_ids, dtype=torch.int64))


def test_probabilities_of_detections_are_those_of_their_phrases(monkeypatch):
    monkeypatch.setattr("glipv2_d2.modeling.heads.mask_head._TEST_SLICE", 2)
    head = make_head()
    levels, text = make_features(3)
    boxes = [random_boxes(5), random_boxes(0), random_boxes(1)]
    phrases = [[1, 0, 0, 1, 0], [], [1]]
    detections = [make_detections(*each) for each in zip(boxes, phrases)]
    masks = head.inference(levels, text, detections, [make_prompt()] * 3)
    assert [tuple(each.shape) for each in masks] == [(5, 8, 8), (0, 8, 8), (1, 8, 8)]
    assert not any(each.requires_grad for each in masks)
    token_maps = [torch.tensor(TOKEN_MAP, dtype=torch.bool)[each] for each in phrases]
    with torch.no_grad():
        maps = all_token_maps(head, levels, boxes, text, token_maps)
    assert_close(torch.cat(masks), maps.sigmoid(), atol=1e-5, rtol=1e-4)


def test_masks_can_be_learned():
    # The left half of whatever box: after some steps the head draws it.
    head = make_head(num_groups=0)
    levels, text = make_features()
    levels = [level + torch.linspace(-3, 3, level.shape[-1]) for level in levels]
    instances = make_instances([BOX], [0])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(80):
        loss = head.losses(*mask_case(levels, text, [NO_BOXES], [instances], [make_prompt()]))["loss_mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (mask,) = head.inference(levels, text, [make_detections(torch.tensor([BOX]), [0])], [make_prompt()])
    assert ((mask[0] >= 0.5) == left_half().bool()).float().mean() > 0.95


# --- two processes ----------------------------------------------------------------------------------------------------

# Classes of the boxes of four images, and whether they have masks; the first two images belong to rank 0.
BATCHES = {
    "both ranks have masks": [([0, 1], [True, True]), ([], []), ([1], [True]), ([0, 0], [False, True])],
    "one rank has none": [([0, 1], [True, True]), ([1], [True]), ([1, 0], [False, False]), ([], [])],
    "a single mask": [([], []), ([1], [False]), ([0, 1], [False, True]), ([2], [True])],
    "no mask": [([], []), ([1], [False]), ([2], [True]), ([], [])],
    "many boxes on one rank": [([0, 1] * 6, [True] * 12), ([0], [True]), ([], []), ([1], [True])],
}


class HeadWithLoss(nn.Module):
    """A head whose forward pass ends in its loss."""

    def __init__(self):
        super().__init__()
        self.head = make_head()

    def forward(self, *inputs):
        return self.head.losses(*mask_case(*inputs))["loss_mask"]


def make_inputs(name, rows):
    levels, text = make_features(4)
    batch = BATCHES[name][rows]
    instances = [make_instances(([BOX, OTHER] * 6)[: len(classes)], classes, has) for classes, has in batch]
    proposals = [Boxes(torch.tensor([BOX]))] * len(batch)
    return [level[rows] for level in levels], text[rows], proposals, instances, [make_prompt()] * len(batch)


def train(rank=None):
    return train_steps(HeadWithLoss(), make_inputs, BATCHES, rank)


def test_two_ranks_train_as_one_process_on_the_whole_batch():
    assert_ranks_train_as_one(run_ranks(train), train())
