"""Two sets of weights in one model: own names have the results of the tuned one alone, all others those of the base."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from class_words_samples import model_with_class_words
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.structures import Boxes, Instances
from pretended_device import pretended_device

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.checkpoint.weight_changes import WeightChanges
from glipv2_d2.engine.export import export_detector
from glipv2_d2.errors import InputError
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.batch import InputImages
from glipv2_d2.modeling.by_name import _merge, _select, add_base, base_tensors, pack_names, take_base, unpack_names
from glipv2_d2.modeling.exported.open_prompt import OpenPromptDetector
from glipv2_d2.prompts.builder import prompt_from_caption
from glipv2_d2.prompts.tokenizer import PromptTokenizer
from glipv2_d2.structures import DetectionLimits
from glipv2_d2.tensor_files import CheckpointError, write_checkpoint

NAMES = ["cat", "Red_car", "tree", "traffic light"]
OWN = ["red car", "traffic light"]
TOKENIZER = PromptTokenizer()


def changed(model, part):
    """A copy of a model that differs in some weights of a part."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in list(other.named_parameters())[::3]:
            if name.startswith(part):
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return other


def make_base(cfg):
    torch.manual_seed(0)
    # Untrained logits sit near the prior; a wide prior keeps scores away from ties.
    cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0, "MODEL.GLIPV2.GROUNDING.PRIOR_PROB", 0.3])
    return build_model(cfg).eval()


def joined(tuned, base, own=OWN):
    """The model that answers by name."""
    model = copy.deepcopy(tuned)
    _, tensors, _ = take_base(base_tensors(tuned.state_dict(), base.state_dict(), own))
    add_base(model, tensors, own)
    return model


@torch.no_grad()
def detect(model, *prompts, size=(64, 96), **options):
    limits = {"detection_limits": DetectionLimits(), **options}
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for _ in prompts]
    form = {"height": size[0], "width": size[1], **limits}
    inputs = [{"image": image, "prompts": one, **form} for image, one in zip(images, prompts, strict=True)]
    return [output["instances"] for output in model(inputs)]


def of_names(names, asked=NAMES):
    """The prompts of some names, with the ids that they have among all that are asked for."""
    prompts = TOKENIZER.tokenize_names(names)
    ids = torch.tensor([asked.index(name) for name in names])
    return [prompt.__class__(**{**vars(prompt), "category_ids": ids[prompt.category_ids]}) for prompt in prompts]


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    for field in one.get_fields():
        first, second = one.get(field), other.get(field)
        assert torch.equal(getattr(first, "tensor", first), getattr(second, "tensor", second)), field


def chosen(instances, names):
    rows = torch.tensor([NAMES.index(name) for name in names])
    return instances[torch.isin(instances.pred_classes, rows)]


@pytest.mark.parametrize(("part", "passes"), [("fusion_tower", 1), ("backbone", 2)])
def test_own_names_are_answered_by_the_tuned_model_and_others_by_the_base(tiny_cfg, monkeypatch, part, passes):
    base = make_base(tiny_cfg)
    tuned = changed(base, part)
    model = joined(tuned, base)
    seen = []
    whole = type(model).visual_features
    monkeypatch.setattr(type(model), "visual_features", lambda self, images: seen.append(self) or whole(self, images))
    (found,) = detect(model, TOKENIZER.tokenize_names(NAMES))
    assert len(seen) == passes
    own, others = NAMES[1::2], NAMES[::2]
    # Detections that differ between the two models, bit for bit those of either.
    for names, alone, foreign in ((own, tuned, base), (others, base, tuned)):
        (expected,), (wrong,) = (detect(one, of_names(names)) for one in (alone, foreign))
        assert_equal(chosen(found, names), expected)
        assert not torch.equal(expected.scores[:5], wrong.scores[:5])
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    # Another order of the names gives the same to each kind, since neither sees the other.
    (mixed,) = detect(model, of_names([NAMES[row] for row in (1, 0, 3, 2)]))
    assert_equal(chosen(mixed, own), chosen(found, own))
    assert_equal(chosen(mixed, others), chosen(found, others))


def test_a_base_with_another_text_encoder_reads_the_classes_by_it(tiny_cfg):
    tuned = model_with_class_words(tiny_cfg)
    base = changed(tuned, "text_encoder")
    # As of a tuning without class words: no file of its two sets says what an encoder says of them.
    model = joined(tuned, base)
    found, of_tuned = model.by_name.base.class_words_head.class_vectors, model.class_words_head.class_vectors
    base.class_words_head.read_classes(base.text_encoder)
    assert torch.equal(found, base.class_words_head.class_vectors)
    assert torch.equal(of_tuned, tuned.class_words_head.class_vectors) and not torch.equal(found, of_tuned)


@pytest.mark.parametrize("masks", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_cpu_waits_for_a_device_once_for_each_kind(tiny_cfg, masks):
    tiny_cfg.MODEL.MASK_ON, tiny_cfg.MODEL.GLIPV2.MASK_HEAD.CONV_DIM = masks, 16
    base = make_base(tiny_cfg)
    model = joined(changed(base, "head"), base)
    limits = {"detection_limits": DetectionLimits(per_image=7)}
    expected = detect(model, of_names(NAMES), of_names(NAMES), **limits)
    with pretended_device() as traffic:
        model.to("cuda")
        detect(model, of_names(NAMES), of_names(NAMES), **limits)
        traffic.clear()
        found = detect(model, of_names(NAMES), of_names(NAMES), **limits)
    assert traffic.waits.total() == 2 and not traffic.mixed and not traffic.unpinned, traffic
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) == 7 and one.has("pred_masks") == masks
        torch.testing.assert_close(one.scores.numbers, other.scores, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one.pred_boxes.tensor.numbers, other.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
        assert not masks or (one.pred_masks.numbers == other.pred_masks).float().mean() > 0.999


def test_images_of_a_batch_may_ask_for_one_kind_or_for_both(tiny_cfg):
    base = make_base(tiny_cfg)
    tuned = changed(base, "head")
    model = joined(tuned, base)
    asked = [of_names(NAMES[1::2]), of_names(NAMES), of_names(NAMES[::2])]
    found = detect(model, *asked)
    alone = [detect(one, *(asked[row] for row in range(3)))[row] for row, one in ((0, tuned), (2, base))]
    torch.testing.assert_close(found[0].scores, alone[0].scores)
    torch.testing.assert_close(found[2].scores, alone[1].scores)
    assert set(found[1].pred_classes.tolist()) == {0, 1, 2, 3}
    # The best of both sides count, as many as of one model.
    whole, few = (detect(model, of_names(NAMES), **limits)[0] for limits in ({}, {"detection_limits": _few()}))
    assert_equal(few, whole[:7])


@pytest.mark.parametrize(
    ("most", "left"), [(1, [3]), (2, [3, 0, 2]), (3, [3, 0, 2]), (4, [3, 0, 2, 1]), (0, [3, 0, 2, 1])]
)
def test_of_both_sides_the_best_stay_with_all_that_tie_with_the_last(most, left):
    """The left sides of the boxes tell them apart; those of the tuned weights come first."""
    sides = [([0, 1], [0.5, 0.4]), ([2, 3], [0.5, 0.9])]
    found = [
        Instances(
            (8, 8), pred_boxes=Boxes(torch.tensor([[x, 0, 8, 8] for x in xs]).float()), scores=torch.tensor(scores)
        )
        for xs, scores in sides
    ]
    assert _merge(found, most).pred_boxes.tensor[:, 0].tolist() == left


def _few():
    return DetectionLimits(per_image=7)


@torch.no_grad()
def test_the_base_sees_images_of_its_own_size(tiny_cfg):
    """Boxes of both sides are in one image, and the result does not depend on the other images of the batch."""
    base = make_base(tiny_cfg)
    tuned = changed(base, "head")
    model = joined(tuned, base)
    generator = torch.Generator().manual_seed(0)

    def make_input(size, base_size, names=NAMES):
        image, seen = (
            torch.randint(0, 256, (3, *one), generator=generator, dtype=torch.uint8) for one in (size, base_size)
        )
        form = {"height": 120, "width": 180, "prompts": of_names(names), "detection_limits": DetectionLimits()}
        return {"image": image, "of_base": {"image": seen}, **form}

    # They are padded to one size for the tuned weights, and to two for the base.
    inputs = [make_input((64, 96), (32, 48)), make_input((60, 90), (20, 30)), make_input((64, 96), (32, 48), ["cat"])]
    alone = [model([one])[0]["instances"] for one in inputs]
    for one, other in zip(model(inputs), alone, strict=True):
        torch.testing.assert_close(one["instances"].scores, other.scores)
    for row, names, side, part in (
        (0, NAMES[1::2], tuned, inputs[0]),
        (0, NAMES[::2], base, inputs[0]["of_base"]),
        (1, NAMES[::2], base, inputs[1]["of_base"]),
        (2, ["cat"], base, inputs[2]["of_base"]),
    ):
        seen = {"image": part["image"], "height": 120, "width": 180, "detection_limits": DetectionLimits()}
        expected, found = side([{**seen, "prompts": of_names(names)}])[0]["instances"], chosen(alone[row], names)
        assert torch.equal(found.scores, expected.scores) and len(found) > 0
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-4)


def test_what_is_no_detection_is_the_base_on_its_own_image(tiny_cfg):
    base = make_base(tiny_cfg)
    model = joined(changed(base, "head"), base)
    task = SimpleNamespace(name="vqa", inference=lambda side, inputs: [(side, one) for one in inputs])
    image, seen = torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)
    inputs = {"image": image, "fine_image": image, "of_base": {"image": seen}, "question_id": 3}
    assert model.by_name.answer(model, task, [inputs]) == [(model.by_name.base, {"image": seen, "question_id": 3})]
    assert model.by_name.answer(model, task, [{"image": image}]) == [(model.by_name.base, {"image": image})]


def test_images_of_a_kind_keep_their_finer_versions():
    images = InputImages(torch.rand(3, 3, 4, 4), [(4, 4)] * 3)
    assert _select(images, None, [2, 0])[0].fine is None
    images.fine = torch.rand(3, 3, 8, 8)
    assert torch.equal(_select(images, None, [2, 0])[0].fine, images.fine[[2, 0]])


def test_sentences_are_the_base_unless_own_names_are_all_that_they_speak_of(tiny_cfg):
    base = make_base(tiny_cfg)
    tuned = changed(base, "head")
    model = joined(tuned, base)
    caption, name = "a cat in a red car", "red car"
    sentence = TOKENIZER(prompt_from_caption(caption, [[(2, 5)], [(11, 18)]]))
    single = TOKENIZER(prompt_from_caption(name, [[(0, 7)]]))
    for prompt, answers in ((sentence, base), (single, tuned)):
        assert_equal(detect(model, [prompt])[0], detect(answers, [prompt])[0])


def test_a_file_holds_what_differs_and_is_read_back(tiny_cfg, tmp_path):
    base = make_base(tiny_cfg)
    tuned = changed(base, "head")
    model = joined(tuned, base)
    state = model.state_dict()
    differing = {name for name, one in base.state_dict().items() if not torch.equal(one, tuned.state_dict()[name])}
    added = {"by_name.own_names", *(f"by_name.base.{name}" for name in differing)}
    assert state.keys() == {*tuned.state_dict(), *added} and differing
    # What is equal is one tensor.
    assert model.by_name.base.backbone is not model.backbone
    assert {id(one) for one in model.by_name.base.backbone.parameters()} == set(map(id, model.backbone.parameters()))
    GLIPv2Checkpointer(model, str(tmp_path)).save("kept")
    torch.manual_seed(1)
    other = build_model(tiny_cfg).eval()
    GLIPv2Checkpointer(other, for_results=True).load(str(tmp_path / "kept.pth"))
    assert_equal(*(detect(one, of_names(NAMES))[0] for one in (model, other)))
    # Another file takes the place of both.
    GLIPv2Checkpointer(tuned, str(tmp_path)).save("tuned")
    GLIPv2Checkpointer(other, for_results=True).load(str(tmp_path / "tuned.pth"))
    assert other.by_name is None
    assert_equal(*(detect(one, of_names(NAMES))[0] for one in (tuned, other)))


def test_a_head_that_the_config_switches_off_is_left_out_of_both_sets(tiny_cfg, tmp_path, caplog):
    tiny_cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = True
    base = make_base(tiny_cfg)
    model = joined(changed(changed(base, "contrastive_head"), "head"), base)
    GLIPv2Checkpointer(model, str(tmp_path)).save("kept")
    tiny_cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = False
    other = build_model(tiny_cfg).eval()
    with caplog.at_level("WARNING"):
        GLIPv2Checkpointer(other, for_results=True).load(str(tmp_path / "kept.pth"))
    assert [message for message in caplog.messages if "no place for contrastive_head" in message]
    assert_equal(*(detect(one, of_names(NAMES))[0] for one in (model, other)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_file_of_both_answers_by_name_where_torch_or_detectron2_loads_it(tiny_cfg, tmp_path):
    base = make_base(tiny_cfg)
    model = joined(changed(base, "head"), base)
    GLIPv2Checkpointer(model, str(tmp_path)).save("kept")
    torch.manual_seed(1)
    others = [build_model(tiny_cfg).eval() for _ in range(2)]
    DetectionCheckpointer(others[0]).load(str(tmp_path / "kept.pth"))
    others[1].load_state_dict(model.state_dict())
    for other in others:
        assert_equal(*(detect(one, of_names(NAMES))[0] for one in (model, other)))
    # A model with a base takes the place of its own.
    swapped = joined(base, changed(base, "head"))
    others[1].load_state_dict(swapped.state_dict())
    assert_equal(*(detect(one, of_names(NAMES))[0] for one in (swapped, others[1])))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"by_name.own_names": None, "by_name.base.head.bias0": torch.ones(1)},
            {},
            "by_name.own_names: expected the names that were tuned, found none",
        ),
        ({"by_name.own_names": torch.tensor([255], dtype=torch.uint8)}, {}, "own_names: expected names as bytes"),
        ({"by_name.own_names": torch.ones(3)}, {}, "own_names: expected names as bytes of UTF-8, found torch.float32"),
        ({"by_name.own_names": pack_names([""])}, {}, "own_names: expected at least one name, found none"),
        ({"by_name.base.head.bias0": torch.ones(2)}, {}, "head.bias0: expected shape"),
        ({"by_name.base.head.bias0": torch.tensor([float("nan")])}, {}, "head.bias0: expected finite numbers"),
        (
            {"by_name.base.head.bias7": torch.ones(1)},
            {},
            "by_name.base: expected weights of the model, found head.bias7",
        ),
        ({}, {"for_results": False}, "expected one set of weights to train from"),
    ],
)
def test_a_base_that_does_not_fit_is_named(tiny_cfg, tmp_path, change, options, message):
    model = make_base(tiny_cfg)
    tensors = model.state_dict() | base_tensors(model.state_dict(), model.state_dict(), OWN) | change
    write_checkpoint(tmp_path / "kept.pth", {"model": {name: one for name, one in tensors.items() if one is not None}})
    with pytest.raises(CheckpointError, match=message):
        GLIPv2Checkpointer(model, **{"for_results": True, **options}).load(str(tmp_path / "kept.pth"))


def test_weights_are_not_interpolated_with_one_of_two_sets(tiny_cfg, tmp_path):
    base = make_base(tiny_cfg)
    model = joined(changed(base, "head"), base)
    for name, one in (("kept", model), ("plain", base)):
        GLIPv2Checkpointer(one, str(tmp_path)).save(name)
    changes = WeightChanges(interpolate_with=str(tmp_path / "kept.pth"), interpolation=0.5)
    with pytest.raises(CheckpointError, match=r"kept.pth: expected one set of weights to interpolate with .*found two"):
        GLIPv2Checkpointer(base, for_results=True, changes=changes).load(str(tmp_path / "plain.pth"))


def test_names_are_packed_and_read_back():
    names = ["wäscheklammer", "traffic light", "", "犬", "\ud800"]
    assert unpack_names(pack_names(names)) == names


def test_a_base_of_low_rank_updates_is_the_model_without_them(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TUNING.MODE", "lora", "MODEL.GLIPV2.TUNING.LORA.RANK", 2])
    tuned = make_base(tiny_cfg)
    base = copy.deepcopy(tuned)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("lora.up"):
                parameter.add_(0.3)
    model = copy.deepcopy(tuned)
    add_base(model, {}, OWN)
    assert not any("lora" in name for name in model.by_name.state_dict())
    (found,) = detect(model, of_names(NAMES))
    assert_equal(chosen(found, NAMES[1::2]), detect(tuned, of_names(NAMES[1::2]))[0])
    assert_equal(chosen(found, NAMES[::2]), detect(base, of_names(NAMES[::2]))[0])


def test_exports_hold_one_kind_of_names(tiny_cfg, tmp_path):
    base = make_base(tiny_cfg)
    model = joined(changed(base, "head"), base)
    with pytest.raises(InputError, match="expected one set of weights for all names, found one for own names"):
        OpenPromptDetector(model)
    GLIPv2Checkpointer(model, str(tmp_path)).save("kept")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "kept.pth")
    with pytest.raises(InputError, match="found both.*'Red_car'.*'cat', 'tree'.*export each kind"):
        export_detector(tiny_cfg, tmp_path / "names.pt2", NAMES[:3])


@pytest.mark.parametrize(("names", "size"), [(["tree"], (40, 90)), (["red car"], (60, 96))])
def test_an_export_says_the_image_size_of_the_weights_in_it(tiny_cfg, tmp_path, monkeypatch, names, size):
    base = make_base(tiny_cfg)
    GLIPv2Checkpointer(joined(changed(base, "head"), base), str(tmp_path)).save("kept")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "kept.pth")
    tiny_cfg.INPUT.MIN_SIZE_TEST, tiny_cfg.INPUT.MAX_SIZE_TEST = 60, 96
    tiny_cfg.MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST = (40, 90)
    monkeypatch.setattr(torch.export, "export", lambda detector, example: detector)
    monkeypatch.setattr(torch.export, "save", lambda program, path: path.touch())
    described = json.loads(export_detector(tiny_cfg, tmp_path / "names.pt2", names).description.read_text())
    assert tuple(described["resize"].values()) == size
    assert described["size"][0] == 64
