import copy
import logging
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from head_samples import SHAPES, make_class_head, make_head
from prompt_samples import make_prompt
from torch._dynamo.utils import counters

from glipv2_d2.errors import InputError
from glipv2_d2.modeling import compiled
from glipv2_d2.modeling.compiled import CompiledParts


def make_input(height, width, prompt):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "prompts": [prompt]}


def assert_same_predictions(found, expected):
    for one, other in zip(found, expected, strict=True):
        for level, other_level in zip(one, other, strict=True):
            torch.testing.assert_close(level, other_level)


@pytest.fixture
def traced(monkeypatch):
    """Sizes at which a part was traced, in one piece: a break of the graph is an error."""
    sizes = []
    torch.compiler.reset()

    def compile_whole(function, **options):
        def backend(graph, inputs):
            sizes.append(max((tuple(one.shape) for one in inputs if one.ndim == 4), key=lambda shape: shape[2:]))
            return graph

        return real(function, fullgraph=True, **(options | {"backend": backend}))

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_whole)
    yield sizes
    torch.compiler.reset()


@pytest.mark.slow
@torch.no_grad()
def test_compiled_parts_have_no_break_and_give_the_same_detections(tiny_cfg, traced, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "MAX_SIZES", 2)
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.3
    torch.manual_seed(0)
    plain = build_model(tiny_cfg).eval()
    tiny_cfg.MODEL.GLIPV2.TEST.COMPILER = "eager"
    model = build_model(tiny_cfg).eval()
    model.load_state_dict(plain.state_dict())
    short, long = make_prompt([1], [3]), make_prompt([1, 2, 3, 4, 5, 6])
    for inputs, parts_traced in (
        (make_input(64, 64, short), 3),  # backbone, tower, head
        (make_input(64, 64, long), 0),  # padded to the same number of tokens
        (make_input(32, 64, short), 3),
        (make_input(32, 32, short), 0),  # a third size
        (make_input(64, 32, short), 0),
    ):
        before = len(traced)
        with caplog.at_level(logging.WARNING):
            actual, expected = (one([inputs])[0]["instances"] for one in (model, plain))
        assert len(traced) - before == parts_traced
        assert len(expected) > 0
        torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.002)
    assert sum("COMPILER: 2 sizes of images and prompts are compiled" in line for line in caplog.messages) == 1


@torch.no_grad()
def test_head_is_compiled_in_one_piece_and_the_padding_of_its_text_is_left_out(traced):
    torch.manual_seed(0)
    head, parts = make_head(prior_prob=0.3).eval(), CompiledParts("eager")
    levels = [torch.randn(2, 8, *shape) for shape in SHAPES]
    for num_tokens in (5, 9, 32):
        text = torch.randn(2, num_tokens, 6)
        assert_same_predictions(parts.predict(head, levels, text), head(levels, text))
        assert len(traced) == 1
    text = torch.randn(2, 33, 6)
    assert_same_predictions(parts.predict(head, levels, text), head(levels, text))
    assert len(traced) == 2


@torch.no_grad()
def test_head_of_fixed_classes_keeps_all_of_them_when_it_is_compiled(traced):
    torch.manual_seed(0)
    head, parts = make_class_head(num_classes=5).eval(), CompiledParts("eager")
    levels, nothing = [torch.randn(2, 8, *shape) for shape in SHAPES], torch.zeros(2, 0, 0)
    assert_same_predictions(parts.predict(head, levels, nothing), head(levels, nothing))
    assert len(traced) == 1


@pytest.mark.slow
@torch.no_grad()
def test_tower_without_fusion_is_compiled_for_its_levels_alone(tiny_cfg, traced):
    tiny_cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "DyHead", "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", 2])
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TEST.COMPILER", "eager", "MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0])
    model = build_model(tiny_cfg).eval()
    plain = copy.deepcopy(model)
    plain._compiled = CompiledParts()
    inputs = [make_input(64, 64, None) | {"prompts": []}]
    actual, expected = (one(inputs)[0]["instances"] for one in (model, plain))
    assert len(traced) == 3  # backbone, levels, head
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.002)


@pytest.mark.slow
@torch.no_grad()
def test_what_inductor_has_compiled_is_right_and_is_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    levels, text = [torch.randn(2, 8, *shape) for shape in SHAPES], torch.randn(2, 5, 6)
    head = make_head(prior_prob=0.3).eval()
    expected, counts = head(levels, text), []
    for _ in range(2):
        torch.compiler.reset()
        counters.clear()
        assert_same_predictions(CompiledParts("inductor").predict(head, levels, text), expected)
        counts.append([counters["inductor"][f"fxgraph_cache_{what}"] for what in ("miss", "hit")])
    assert counts == [[1, 0], [0, 1]]


def test_nothing_is_compiled_in_training_and_with_gradients(traced):
    layer, parts = torch.nn.Linear(4, 4), CompiledParts("eager")
    x = torch.randn(1, 2, 3, 4)
    parts.features(layer.eval(), x)
    with torch.no_grad():
        parts.features(layer.train(), x)
        CompiledParts().features(layer.eval(), x)
        assert traced == []
        parts.features(layer, x)
    assert traced == [(1, 2, 3, 4)]


def test_a_copy_compiles_for_itself(traced):
    layer, parts = torch.nn.Linear(4, 4).eval(), CompiledParts("eager")
    with torch.no_grad():
        parts.features(layer, torch.zeros(1, 2, 3, 4))
        for copied in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
            other = torch.nn.Linear(4, 4).eval()
            x = torch.randn(1, 2, 3, 4)
            assert torch.equal(copied.features(other, x), other(x))
            assert copied.backend == "eager"


def test_an_unknown_backend_is_named():
    with pytest.raises(InputError, match="TEST.COMPILER: expected one of .*inductor.* found 'fast'"):
        CompiledParts("fast")
