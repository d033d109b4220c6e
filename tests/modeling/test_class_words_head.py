"""The head that names regions by the classes of a classifier: cells, its loss, seen names, and detections."""

import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from batch_samples import contrast_case, make_shapes
from class_words_samples import ColourClassifier, make_head, make_image, model_with_class_words
from conftest import assert_one_line
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from mask_samples import BOXES, PROMPT, make_input
from prompt_samples import make_prompt
from torch.testing import assert_close

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.tuned_weights import load_tuned, save_tuned
from glipv2_d2.data.transforms import ImageVersions
from glipv2_d2.errors import InputError
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.batch import AnchorTargets, Pairs
from glipv2_d2.modeling.by_name import add_base
from glipv2_d2.modeling.class_evidence import centred, kept_probabilities, name_evidence, name_ratios
from glipv2_d2.modeling.heads.class_words_head import ClassCells, ClassWordsHead, build_classifier, phrase_ids, place_of
from glipv2_d2.modeling.tasks.word_evidence import WordEvidence
from glipv2_d2.prompts.builder import prompt_from_caption
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import TokenBatch
from glipv2_d2.tensor_files import CheckpointError, read_tensors, write_tensors


def painted(*colours):
    """An image of 32 x 64: a colour on the left and one on the right."""
    return torch.tensor(colours).T[:, None, :].repeat_interleave(32, 1).repeat_interleave(32, 2)


def test_cells_are_those_of_the_classifiers_own_pixels():
    head = make_head(pixel_scale=[2.0, 2.0, 2.0], pixel_shift=[1.0, 0.0, 0.0], flip_channels=True)
    cells = head.classify(painted([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])[None])
    assert (cells.height, cells.width, cells.stride) == (1, 2, 32)
    assert_close(cells.logits, torch.tensor([[[6.0, 4.0, 3.0], [12.0, 10.0, 9.0]]]))


def test_a_larger_image_has_more_cells_over_the_same_pixels():
    head = make_head(image_scale=2.0, temperature=1.0, kept=3)
    image = painted([1.0, 2.0, 3.0], [4.0, 5.0, 9.0])
    cells = head.classify(image[None])
    assert (cells.height, cells.width, cells.stride) == (2, 4, 16)
    found = head.probabilities(cells, [0], torch.tensor([[[0.0, 0.0, 16.0, 32.0], [48.0, 4.0, 60.0, 20.0]]]))
    assert_close(found[0], torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]).softmax(dim=1), atol=1e-2, rtol=0.0)


def test_cells_reach_to_the_border_of_an_image_that_is_no_multiple_of_them():
    cells = make_head(image_scale=1.5).classify(torch.full((1, 3, 32, 64), 4.0))
    # The classifier reads 48 x 96 pixels, and nothing below them.
    assert (cells.height, cells.width, cells.stride) == (2, 3, 32 / 1.5)
    assert_close(cells.logits[0, :, 0], torch.tensor([4.0] * 3 + [2.0] * 3))


def loss_case(matched):
    """Two images with one level of 2 x 2 anchors: a box of each colour, and one of both."""
    prompts = [make_prompt([4], [8, 9]), make_prompt([3])]
    instances = []
    for boxes, classes in (([[0, 0, 32, 32], [32, 0, 64, 32]], [1, 1]), ([[16, 0, 48, 32]], [0])):
        one = Instances((32, 64))
        one.gt_boxes, one.gt_classes = Boxes(torch.tensor(boxes).float()), torch.tensor(classes)
        instances.append(one)
    features = [torch.randn(2, 6, 2, 2, generator=torch.Generator().manual_seed(1))]
    targets = AnchorTargets(torch.tensor(matched), torch.empty(0), torch.empty(0))
    fused, batch = contrast_case(features, None, prompts, targets, instances)
    images = torch.stack([painted([1.0, 0.0, 0.0], [0.0, 2.0, 0.0])] * 2)
    return features[0], fused, batch._replace(images=ImageList(images, [(32, 64)] * 2))


def test_the_loss_is_the_cross_entropy_with_the_classes_of_each_anchors_box():
    head = make_head(temperature=2.0, kept=2, loss_weight=3.0)
    head.class_vectors.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)))
    features, fused, batch = loss_case([[-1, 1, -1, 0], [0, -1, -1, -1]])
    loss = head.losses(fused, batch)["loss_class_words"]
    logits = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.5, 1.0, 0.0]])
    expected = 0.0
    for (image, anchor), of_box in zip([(0, 1), (0, 3), (1, 0)], logits, strict=True):
        region = F.normalize(head.projection(features[image].flatten(1)[:, anchor]), dim=0)
        logs = (head.class_vectors @ region / math.exp(-2.66)).log_softmax(dim=0)
        expected -= (kept_probabilities(of_box[None], 2.0, 2)[0] * logs).sum()
    assert_close(loss, 3.0 * expected / 3)
    loss.backward()
    assert head.projection.weight.grad.abs().sum() > 0
    head.loss_weight = 0.0
    assert head.losses(fused, batch) == {}


class LinearColours(ColourClassifier):
    """Its last layer gives what it reads, in the precision of autocast."""

    def get_classifier(self):
        return lambda cells: F.linear(cells, torch.eye(3))


def test_the_loss_is_computed_in_single_precision():
    head = make_head()
    head.class_vectors.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)))
    head.classifier = LinearColours()
    _, fused, batch = loss_case([[-1, 1, -1, 0], [0, -1, -1, -1]])
    expected = head.losses(fused, batch)["loss_class_words"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.losses(fused, batch)["loss_class_words"], expected)


def test_without_positive_anchors_the_loss_is_zero_and_reaches_the_layer():
    head = make_head()
    loss = head.losses(*loss_case([[-1] * 4] * 2)[1:])["loss_class_words"]
    assert loss == 0
    loss.backward()
    assert head.projection.weight.grad is not None


def test_names_with_a_box_count_as_seen():
    head = make_head(weight=0.5, taught_weight=0.25)
    head.observe(loss_case([[-1] * 4] * 2)[2])
    assert head.taught.nonzero().flatten().tolist() == sorted([place_of((1008, 1009)), place_of((1003,))])
    prompt = make_prompt([4], [8, 9])
    weights = head.token_weights(phrase_ids(prompt), prompt.phrase_token_map[None])
    assert_close(weights[0], prompt.phrase_token_map * torch.tensor([[0.5], [0.25]]))


def test_the_place_of_a_name_is_that_of_files():
    assert (place_of((1,)), place_of((1, 2))) == (2, 2 * 1_000_003 + 3 - 30 * 2**16)
    for name in ((0,), (0, 0), (30_521, 101, 7, 30_521)):
        powers = [(number + 1) * 1_000_003**power for power, number in enumerate(reversed(name))]
        assert place_of(name) == sum(powers) % 2**16


def test_the_base_of_a_tuning_reads_its_own_size(tiny_cfg):
    model = model_with_class_words(tiny_cfg)
    model.class_words_head = make_head(language_dim=48, channels=32, image_scale=1.5, base_image_scale=2.5)
    add_base(model, {}, ["own"])
    assert (model.class_words_head.image_scale, model.by_name.base.class_words_head.image_scale) == (1.5, 2.5)
    assert make_head(image_scale=1.5).base_image_scale == 1.5


@pytest.mark.parametrize(("value", "share"), [(-1.0, 1.0), (0.0, 0.0), (0.25, 0.25)])
def test_the_share_of_a_tuning_counts_for_taught_names_and_not_in_the_base(tiny_cfg, value, share):
    words, tiny_cfg.MODEL.TEXT_ENCODER.FREEZE = tiny_cfg.MODEL.GLIPV2.CLASS_WORDS, True
    words.ENABLED, words.WEIGHT, words.TAUGHT_WEIGHT = True, 0.5, 0.4
    tiny_cfg.MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE = value
    model = model_with_class_words(tiny_cfg)
    model.class_words_head = ClassWordsHead(tiny_cfg, make_shapes(channels=32, language_dim=48))
    add_base(model, {}, ["own"])
    prompt = make_prompt([4], [8])
    token_map, names = prompt.phrase_token_map[None], phrase_ids(prompt)
    for head, of_taught in ((model.class_words_head, 0.4 * share), (model.by_name.base.class_words_head, 0.4)):
        head.taught[place_of(names[0])] = True
        assert_close(head.token_weights(names, token_map)[0], token_map[0] * torch.tensor([[of_taught], [0.5]]))


@pytest.mark.parametrize(
    ("several_sizes", "size", "scale"), [(False, (64, 96), 2.5), (True, (64, 96), 1.5), (False, (), 1.5)]
)
def test_the_base_of_a_tuning_reads_the_classes_at_the_scale_of_the_image_that_it_gets(
    tiny_cfg, several_sizes, size, scale
):
    words, keep = tiny_cfg.MODEL.GLIPV2.CLASS_WORDS, tiny_cfg.MODEL.GLIPV2.TUNING.KEEP
    words.ENABLED, words.IMAGE_SCALE, tiny_cfg.MODEL.TEXT_ENCODER.FREEZE = True, 1.5, True
    keep.SIZE_TEST, keep.IMAGE_SCALE, tiny_cfg.TEST.AUG.ENABLED = size, 2.5, several_sizes
    head = ClassWordsHead(tiny_cfg, make_shapes(channels=32, language_dim=48))
    assert head.base_image_scale == scale
    versions = ImageVersions.from_config(tiny_cfg)(np.zeros((128, 192, 3), dtype=np.uint8), (80, 120))
    seen = versions.get("of_base", {"image": torch.zeros(3, 80, 120), **versions})
    assert seen["fine_image"].shape[2] == head.base_image_scale * seen["image"].shape[2]


def test_names_with_masked_tokens_count_as_seen_by_the_tokens_that_they_had():
    """Of the name 8, 9 a token is masked, and one has become another; of the name 3 nothing has to be restored."""
    head, (_, _, batch) = make_head(), loss_case([[-1] * 4] * 2)
    first, second = batch.prompts
    ids, labels = first.input_ids.clone(), torch.full_like(first.input_ids, -100)
    ids[8], ids[9], labels[8], labels[9] = 103, 2000, 1008, 1009
    prompts = [
        dataclasses.replace(first, input_ids=ids, mlm_labels=labels),
        dataclasses.replace(second, mlm_labels=torch.full_like(second.input_ids, -100)),
    ]
    head.observe(batch._replace(pairs=batch.pairs._replace(prompts=prompts)))
    assert head.taught.nonzero().flatten().tolist() == sorted([place_of((1008, 1009)), place_of((1003,))])


@pytest.mark.parametrize(
    ("mode", "learns"), [("full", True), ("linear_probe", True), ("prompt", True), ("lora", True), ("mask_head", False)]
)
def test_names_count_as_seen_in_every_tuning_of_what_finds_them_and_its_file_says_so(tiny_cfg, tmp_path, mode, learns):
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", mode, "MODEL.MASK_ON", True])
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.LORA.RANK", 2, "MODEL.GLIPV2.TUNING.LORA.PARTS", ("fusion_tower",)])

    def build_tuned():
        model = model_with_class_words(tiny_cfg)
        if mode != "full":
            # The head that the config would have built does not train.
            head = model.class_words_head.requires_grad_(False)
            model.tuning = model.tuning._replace(fixed_parts=(*model.tuning.fixed_parts, head))
        return model

    model = build_tuned().train()
    losses = model([make_input(PROMPT, BOXES)])
    assert ("loss_class_words" in losses) == (mode == "full")
    seen = {place_of(name) for name in phrase_ids(PROMPT)} if learns else set()
    assert set(model.class_words_head.taught.nonzero().flatten().tolist()) == seen
    if mode == "full":
        return
    save_tuned(model, tmp_path / "tuned.safetensors")
    other = build_tuned()
    load_tuned(other, tmp_path / "tuned.safetensors")
    assert torch.equal(other.class_words_head.taught, model.class_words_head.taught)
    # A file from before, or a model without the head, lacks the names alone.
    tensors, metadata = read_tensors(tmp_path / "tuned.safetensors")
    assert tensors.pop("class_words_head.taught").any() == learns
    other.class_words_head = None
    load_tuned(other, tmp_path / "tuned.safetensors")
    write_tensors(tmp_path / "before.safetensors", tensors, metadata)
    load_tuned(model, tmp_path / "before.safetensors")


def test_a_token_of_two_phrases_takes_the_mean_of_their_evidence():
    prompt = make_prompt([4], [8, 9])
    token_map = prompt.phrase_token_map.clone()
    token_map[0] |= token_map[1]
    (weights,) = make_head(weight=1.0).token_weights([(1004,), (1008, 1009)], token_map[None])
    assert weights.sum(dim=0).unique().tolist() == [0.0, 1.0]
    assert weights[1].max() == 0.5


@pytest.fixture
def model(tiny_cfg):
    return model_with_class_words(tiny_cfg)


def run(model, prompts):
    with torch.no_grad():
        return model([{"image": make_image(), "height": 64, "width": 96, "prompts": prompts}])[0]["instances"]


@pytest.mark.parametrize("together", [1, 2, 64])
def test_class_vectors_are_the_means_of_the_words_of_each_class(model, monkeypatch, together):
    head = model.class_words_head
    monkeypatch.setattr("glipv2_d2.modeling.heads.class_words_head._TEXTS_AT_ONCE", together)
    head.class_vectors.zero_()
    head.read_classes(model.text_encoder)
    means = torch.stack([model.read_prompts([text]).hidden[0][1:-1].mean(dim=0) for text in head.texts])
    assert_close(head.class_vectors, centred(means))


@pytest.mark.parametrize("for_results", [False, True])
def test_classes_are_read_by_the_text_encoder_of_weights_without_the_head(tiny_cfg, tmp_path, for_results):
    """The encoder may be random before. A random classifier stays one, and results would be noise."""
    model = model_with_class_words(tiny_cfg)
    head, before = model.class_words_head, model.class_words_head.class_vectors.clone()
    torch.manual_seed(7)
    GLIPv2Checkpointer(build_model(tiny_cfg), str(tmp_path)).save("plain")
    GLIPv2Checkpointer(model, for_results=for_results).load(str(tmp_path / "plain.pth"), [])
    means = torch.stack([model.read_prompts([text]).hidden[0][1:-1].mean(dim=0) for text in head.texts])
    assert_close(head.class_vectors, centred(means))
    assert not torch.equal(head.class_vectors, before)
    # Those of a file that has the head are its own.
    before = head.class_vectors.neg_().clone()
    GLIPv2Checkpointer(model, str(tmp_path)).save("whole")
    GLIPv2Checkpointer(model, for_results=for_results).load(str(tmp_path / "whole.pth"), [])
    assert torch.equal(head.class_vectors, before)
    head.classifier, head.starts_random = torch.nn.Linear(2, 2), True
    if for_results:
        with pytest.raises(CheckpointError) as caught:
            GLIPv2Checkpointer(model, for_results=True).load(str(tmp_path / "plain.pth"))
        assert_one_line(caught, "expected weights for class_words_head.classifier.", "found none")
    else:
        GLIPv2Checkpointer(model).load(str(tmp_path / "plain.pth"), [])


def test_classes_of_weights_without_text_encoder_are_read_once_and_a_base_takes_those_of_the_tuned(model, monkeypatch):
    read = []
    monkeypatch.setattr(ClassWordsHead, "read_classes", lambda head, encoder: read.append(encoder))
    whole = model.state_dict()
    few = {name: whole[name] for name in whole if name.startswith("backbone.")}
    model.load_state_dict(few, strict=False)
    assert read == [model.text_encoder]
    model.load_state_dict(whole)
    add_base(model, few, ["dog"])
    assert len(read) == 1
    torch.nn.ModuleDict({"part": model}).load_state_dict({f"part.{name}": few[name] for name in few}, strict=False)
    assert model.text_encoder in read[1:]
    assert torch.equal(model.by_name.base.class_words_head.class_vectors, whole["class_words_head.class_vectors"])


@pytest.mark.parametrize(("weights", "times"), [("", 1), ("random", 1), ("run/model_final.pth", 0)])
def test_a_model_whose_weights_come_from_a_file_leaves_the_classes_to_it(tiny_cfg, monkeypatch, weights, times):
    read = []
    monkeypatch.setattr(ClassWordsHead, "read_classes", lambda *args: read.append(args))
    tiny_cfg.MODEL.GLIPV2.CLASS_WORDS.ENABLED = tiny_cfg.MODEL.TEXT_ENCODER.FREEZE = True
    tiny_cfg.MODEL.GLIPV2.CLASS_WORDS.WEIGHTS = ""
    tiny_cfg.MODEL.WEIGHTS = weights
    build_model(tiny_cfg)
    assert len(read) == times


def test_an_anchor_has_the_evidence_of_the_best_box_that_it_overlaps_most(model):
    head, prompt = model.class_words_head, make_prompt([4], [8, 9])
    head.max_boxes = 2
    images = model.preprocess_image([{"image": make_image()}])
    with torch.no_grad():
        features = model.visual_features(images)
        predictions = model.fuse(features, model.read_prompts([prompt])).predictions
        anchors = model.anchors_of(features)
        found = WordEvidence(model, images).add(predictions, anchors, Pairs([0], [0], [prompt]))
        before, after = (torch.cat(one.token_logits, dim=1)[0] for one in (predictions, found))
        # The best box by any name, and the best of those that overlap it little.
        deltas, places = torch.cat(predictions.box_deltas, dim=1)[0], Boxes.cat(anchors).tensor
        boxes = model.head.box2box_transform.apply_deltas(deltas, places)
        boxes = boxes.clamp(min=0).minimum(torch.tensor([96.0, 64.0, 96.0, 64.0]))
        centerness = torch.cat(predictions.centerness_logits, dim=1)[0].sigmoid()
        scores = before[:, [4, 8, 9]].sigmoid().amax(dim=1) * centerness
        best = scores.argmax()
        apart = pairwise_iou(Boxes(boxes), Boxes(boxes[best][None]))[:, 0] <= model.head.selector.nms_thresh
        chosen = torch.stack([best, scores.where(apart, 0.0).argmax()])
        said, names = head.probabilities(head.classify(images.tensor), [0], boxes[None, chosen])[0], []
        for ids in ([1000, 1004, 1010], [1000, 1008, 1009, 1010]):
            tokens = TokenBatch(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
            names.append(model.text_encoder(tokens).hidden[0, 1:-1].mean(dim=0))
        ratios = name_ratios(head.class_vectors, centred(torch.stack(names), head.mean_vector), head.word_temperature)
        expected = 0.7 * name_evidence(said, ratios) @ prompt.phrase_token_map.float()
    nearest = pairwise_iou(Boxes(boxes), Boxes(boxes[chosen])).argmax(dim=1)
    assert nearest.unique().tolist() == [0, 1]
    assert_close(after - before, expected[nearest], atol=1e-5, rtol=1e-4)


def test_names_with_weight_zero_are_detected_as_without_the_head(model):
    prompts = [make_prompt([4], [8, 9])]
    counted = run(model, prompts)
    model.class_words_head.weight = 0.0
    with_head = run(model, prompts)
    assert not torch.equal(counted.scores, with_head.scores)
    model.class_words_head = None
    without = run(model, prompts)
    assert_close(with_head.scores, without.scores)
    assert_close(with_head.pred_boxes.tensor, without.pred_boxes.tensor)


def test_images_are_classified_where_a_name_counts_alone(model, monkeypatch):
    classified = []
    monkeypatch.setattr(model.class_words_head, "classify", lambda *images: classified.append(images) or cells)
    cells = ClassCells(torch.zeros(1, 6, 3), 2, 3, 32.0)
    model.class_words_head.taught[place_of((1004,))] = True
    model.class_words_head.taught_weight = 0.0
    run(model, [make_prompt([4])])
    assert not classified
    run(model, [make_prompt([4]), make_prompt([4], [8, 9]), make_prompt([8, 9])])
    assert len(classified) == 1


def test_an_encoder_that_trains_is_refused(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.CLASS_WORDS.ENABLED = True
    with pytest.raises(InputError) as caught:
        build_model(tiny_cfg)
    assert_one_line(caught, "MODEL.GLIPV2.CLASS_WORDS.ENABLED", "MODEL.TEXT_ENCODER.FREEZE")


@pytest.mark.parametrize("key", ["IMAGE_SCALE", "TEMPERATURE", "CLASSES_KEPT", "WORD_TEMPERATURE", "MAX_BOXES"])
def test_numbers_that_nothing_can_be_said_with_are_refused(tiny_cfg, key):
    tiny_cfg.MODEL.GLIPV2.CLASS_WORDS[key] *= 0
    with pytest.raises(InputError) as caught:
        ClassWordsHead.from_config(tiny_cfg, None)
    assert_one_line(caught, f"MODEL.GLIPV2.CLASS_WORDS.{key}", "found 0")


@pytest.mark.parametrize("share", [1.5, float("nan")])
def test_more_than_all_evidence_is_refused(tiny_cfg, share):
    tiny_cfg.MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE = share
    with pytest.raises(InputError) as caught:
        ClassWordsHead.from_config(tiny_cfg, None)
    assert_one_line(caught, "MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE: expected a share of at most 1", str(share))


def test_pixels_of_the_network_become_those_of_the_classifier(tiny_cfg):
    # timm: tf_efficientnet_lite0 has mean and deviation 0.5 of pixels in 0..1. Here (pixel - 100) / 50, in BGR.
    tiny_cfg.merge_from_list(["MODEL.PIXEL_MEAN", [100.0] * 3, "MODEL.PIXEL_STD", [50.0] * 3])
    _, scale, shift = build_classifier("tf_efficientnet_lite0", "", tiny_cfg)
    pixel = 130.0
    assert_close((pixel - 100) / 50 * scale[0] + shift[0], (pixel / 255 - 0.5) / 0.5)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_head_of_a_config_says_of_a_cell_what_its_classifier_says_of_an_image(tiny_cfg, tmp_path, image_format):
    """The weights are those of the file, which do not train, and timm's own forward pass is the other formulation."""
    torch.manual_seed(3)
    classifier = timm.create_model("efficientnet_lite0").eval()
    write_tensors(tmp_path / "classifier.safetensors", classifier.state_dict())
    keys = {"TEMPERATURE": 1.25, "CLASSES_KEPT": 7, "WORD_TEMPERATURE": 0.5, "MAX_BOXES": 3, "WEIGHT": 0.75}
    keys |= {"TAUGHT_WEIGHT": 0.125, "LOSS_WEIGHT": 2.0}
    words = tiny_cfg.MODEL.GLIPV2.CLASS_WORDS
    words.update(keys, NAME="efficientnet_lite0", WEIGHTS=str(tmp_path / "classifier.safetensors"))
    tiny_cfg.INPUT.FORMAT, tiny_cfg.MODEL.TEXT_ENCODER.FREEZE = image_format, True
    head = ClassWordsHead(tiny_cfg, make_shapes(channels=32, language_dim=48))
    found = (head.temperature, head.kept, head.word_temperature, head.max_boxes, head.weight)
    assert (*found, head.taught_weight, head.loss_weight) == tuple(keys.values()) and not head.starts_random
    image = make_image(5, (32, 32)).float()
    mean, std = (
        torch.tensor(numbers).view(3, 1, 1) for numbers in (tiny_cfg.MODEL.PIXEL_MEAN, tiny_cfg.MODEL.PIXEL_STD)
    )
    cells = head.classify(((image - mean) / std)[None])
    rgb = (image if image_format == "RGB" else image.flip(0)) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = classifier(((rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None])
    assert_close(cells.logits[0], expected, rtol=1e-4, atol=1e-5)
    head.train()
    assert not any(part.training for part in head.classifier.modules())
    trained = {name for name, one in head.named_parameters() if one.requires_grad}
    assert trained == {"projection.weight", "projection.bias", "log_scale"}
    # The first class of ImageNet: its names in WordNet, and what it is.
    text = "tench, Tinca tinca: freshwater dace-like game fish of Europe and western Asia noted for ability to survive "
    text = PromptTokenizer()(prompt_from_caption(f"{text}outside water", []))
    assert len(head.texts) == 1000 and torch.equal(head.texts[0].input_ids, text.input_ids)


def test_weights_of_another_classifier_are_named_by_their_key(tiny_cfg, tmp_path):
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(InputError) as caught:
        build_classifier("tf_efficientnet_lite0", str(tmp_path / "other.safetensors"), tiny_cfg)
    assert_one_line(caught, "MODEL.GLIPV2.CLASS_WORDS.WEIGHTS: ", "other.safetensors has 1 tensors")


@pytest.mark.parametrize("name", ["no_such_model", "tf_efficientnetv2_s.in21k"])
def test_a_classifier_needs_the_classes_of_imagenet(tiny_cfg, name):
    with pytest.raises(InputError) as caught:
        build_classifier(name, "", tiny_cfg)
    assert_one_line(caught, "MODEL.GLIPV2.CLASS_WORDS.NAME", name.partition(".")[0] if "no_such" in name else "1000")


def test_a_finer_image_is_classified_in_place_of_an_enlarged_one():
    head = make_head(image_scale=2.0)
    coarse = painted([1.0, 2.0, 3.0], [4.0, 5.0, 9.0])
    fine = painted([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [2.0, 2.0, 2.0]).repeat_interleave(2, 1)
    cells = head.classify(coarse[None], fine[None])
    assert (cells.height, cells.width, cells.stride) == (2, 4, 16)
    assert_close(cells.logits[0, :4], torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [2.0] * 3]))


def test_finer_images_are_normalized_and_classified_where_all_inputs_have_one(model):
    generator = torch.Generator().manual_seed(1)
    inputs = [
        {"image": torch.rand(3, *size, generator=generator), "fine_image": torch.rand(3, *fine, generator=generator)}
        for size, fine in (((64, 96), (128, 192)), ((32, 96), (64, 192)))
    ]
    images = model.preprocess_image(inputs)
    first = (inputs[0]["fine_image"] - model.pixel_mean) / model.pixel_std
    second = (inputs[1]["fine_image"] - model.pixel_mean) / model.pixel_std
    assert_close(images.fine, torch.stack([first, F.pad(second, (0, 0, 0, 64))]))
    with torch.no_grad():
        alone = [WordEvidence(model, model.preprocess_image([one]))._cells.logits[0] for one in inputs]
        together = WordEvidence(model, images)._cells.logits
    assert_close(together[0], alone[0])
    assert_close(together[1, : len(alone[1])], alone[1])
    del inputs[1]["fine_image"]
    assert model.preprocess_image(inputs).fine is None


def test_what_is_remembered_of_a_prompt_is_not_taken_for_one_with_other_marked_tokens(model):
    evidence = WordEvidence(model, model.preprocess_image([{"image": make_image()}]))
    prompt = make_prompt([4], [8, 9])
    ids = prompt.input_ids.clone()
    ids[8] = ids[4]
    for token in (4, 8):
        token_map = torch.zeros(1, len(ids), dtype=torch.bool)
        token_map[0, token] = True
        _, weights, spelled = evidence._of_prompts([type(prompt)(ids, token_map, torch.zeros(1).long(), ("dog",))])
        assert weights.nonzero().tolist() == [[0, 0, token]] and spelled.nonzero().tolist() == [[0, token]]


@torch.no_grad()
def test_what_is_remembered_of_a_prompt_follows_the_names_seen_and_the_vectors_of_classes(model):
    evidence = WordEvidence(model, model.preprocess_image([{"image": make_image()}]))
    head, prompt = model.class_words_head, make_prompt([4], [8, 9])
    ratios, weights, _ = evidence._of_prompts([prompt])
    head.taught.fill_(True)
    assert_close(evidence._of_prompts([prompt])[1], weights * head.taught_weight / head.weight)
    head.class_vectors.copy_(head.class_vectors.flip(0))
    assert not torch.equal(evidence._of_prompts([prompt])[0], ratios)
