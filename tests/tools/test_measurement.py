"""Passes that are cut into segments, and what is counted between the cuts."""

import pytest
import torch
import torch.nn.functional as F
from benchmarks import measurement
from benchmarks.measurement import Memory, PassCutter, map_tensors, sum_segments, summarize_memory
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glipv2_d2.layers.deform_conv import modulated_deform_conv2d
from glipv2_d2.structures import TokenBatch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Head(nn.Linear):
    """The calls of the real head, on numbers."""

    def forward(self, x, text):
        return super().forward(x + text)

    def label_anchors(self):
        return None

    def losses(self, predictions):
        return {"loss": predictions.sum()}

    def inference(self, predictions):
        return predictions


class Model(nn.Module):
    """The rooms of the real model, each a linear map; its one block has no fusion."""

    def __init__(self):
        super().__init__()
        self.backbone, self.text_encoder, self.head = nn.Linear(2, 2), nn.Linear(2, 2), Head(2, 2)
        block = nn.Module()
        block.fusion, block.language_layer, block.dyconv = None, None, nn.Linear(2, 2)
        self.fusion_tower = nn.Module()
        self.fusion_tower.blocks = nn.ModuleList([block])

    def forward(self, x):
        features, text = self.backbone(x), self.text_encoder(x)
        predictions = self.head(self.fusion_tower.blocks[0].dyconv(features), text)
        if not self.training:
            return self.head.inference(predictions)
        self.head.label_anchors()
        return self.head.losses(predictions)


def modules_of(cuts, direction) -> list[str]:
    """The modules in order of their segments, without those in between."""
    modules = [module for (module, way), _ in cuts if way == direction and module != "other"]
    return [module for i, module in enumerate(modules) if i == 0 or modules[i - 1] != module]


def test_a_training_pass_is_cut_forth_and_back():
    cuts = PassCutter(Model().train()).run(torch.ones(3, 2), lambda: None)
    assert modules_of(cuts, "forward") == ["backbone", "text encoder", "dyconv", "head", "losses"]
    assert modules_of(cuts, "backward") == ["losses", "head", "dyconv", "text encoder", "backbone"]
    assert cuts[0][0] == ("other", "forward") and cuts[-1][0] == ("other", "end")


def test_a_pass_at_test_time_has_no_backward_and_every_pass_is_cut_alike():
    cutter = PassCutter(Model().eval())
    first = cutter.run(torch.ones(3, 2), lambda: None)
    assert modules_of(first, "forward") == ["backbone", "text encoder", "dyconv", "head", "post-processing"]
    assert modules_of(first, "backward") == []
    assert cutter.run(torch.ones(3, 2), lambda: None) == first


def test_cutting_changes_no_gradient():
    model, x = Model().train(), torch.ones(3, 2)
    model(x)["loss"].backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    PassCutter(model).run(x, lambda: None)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_every_pass_tells_the_prompt_cache_that_a_weight_changed():
    model = Model().eval()
    weight = next(model.text_encoder.parameters())
    version, values = weight._version, weight.detach().clone()
    PassCutter(model).run(torch.ones(3, 2), lambda: None)
    assert weight._version > version and torch.equal(weight, values)


def test_macs_of_each_segment():
    # Three rows through maps of 2 x 2: 12 products. Backward: 12 for the weights, and 12 for inputs that need it.
    macs = measurement.count_macs(lambda read: PassCutter(Model().train()).run(torch.ones(3, 2), read))
    assert [macs[module, "forward"] for module in ("backbone", "text encoder", "dyconv", "head")] == [12] * 4
    assert macs["head", "backward"] == macs["dyconv", "backward"] == 24
    assert macs["backbone", "backward"] == macs["text encoder", "backward"] == 12


def count(function) -> float:
    with FlopCounterMode(display=False, custom_mapping=measurement._flop_formulas()) as counter:
        function()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("form", ["torchvision", "gather"])
def test_deformable_convolution_counts_product_and_sampling(form):
    x, offset, modulation = torch.zeros(1, 3, 5, 7), torch.zeros(1, 18, 5, 7), torch.zeros(1, 9, 5, 7)
    with torch.no_grad():
        macs = count(lambda: modulated_deform_conv2d(x, offset, modulation, torch.zeros(4, 3, 3, 3), None, form=form))
    # 35 positions x 9 taps x 3 channels: 4 products each for the sampling, and one for each of 4 outputs.
    assert macs == 35 * 27 * 4 + 35 * 27 * 4


def test_depthwise_convolution_counts_its_groups_in_both_directions():
    x, weight = torch.zeros(1, 4, 5, 5, requires_grad=True), torch.zeros(4, 1, 3, 3, requires_grad=True)
    macs = count(lambda: F.conv2d(x, weight, padding=1, groups=4).sum().backward())
    assert macs == 3 * (25 * 4 * 9)  # forward, gradient of the map, gradient of the weight


def test_tensors_are_mapped_at_any_depth_and_containers_keep_their_type():
    batch = TokenBatch(torch.tensor([[1]]), torch.tensor([[True]]))
    mapped = map_tensors({"a": [torch.tensor(1), 5], "b": (batch, "text")}, lambda x: x + 1)
    assert mapped["a"][0].item() == 2 and mapped["a"][1] == 5 and mapped["b"][1] == "text"
    assert isinstance(mapped["b"], tuple) and isinstance(mapped["b"][0], TokenBatch)
    assert mapped["b"][0].input_ids.item() == 2


A, B = ("head", "forward"), ("other", "forward")
END = ("other", "end")


def test_segments_of_one_module_are_added_up():
    assert sum_segments([(B, 1.0), (A, 2.0), (B, 5.0), (A, 6.0), (END, 16.0)]) == {B: 2.0, A: 13.0}


def test_memory_is_counted_from_the_begin_of_each_segment():
    cuts = [(B, Memory(100, 900)), (A, Memory(110, 120)), (B, Memory(150, 300)), (A, Memory(130, 150))]
    most, kept, most_of_all = summarize_memory([*cuts, (END, Memory(135, 140))])
    assert most == {B: 20, A: 190}  # 120 - 100 and 150 - 150; 300 - 110 and 140 - 130
    assert kept == {B: -10, A: 45}  # 10 - 20; 40 + 5
    assert most_of_all == 200  # what was held before the first cut is not of this pass


def test_trace_gives_what_is_held_and_the_most_since_the_cut_before():
    def memory(ts, total):
        return {"name": "[memory]", "ts": ts, "args": {"Total Allocated": total}}

    def mark(ts):
        return {"name": measurement._MARK, "ts": ts}

    events = [mark(5), memory(2, 30), memory(1, 80), mark(0), memory(7, 40), {"ph": "M"}, mark(9)]
    assert measurement._read_trace(events) == [Memory(0, 0), Memory(30, 80), Memory(40, 40)]
