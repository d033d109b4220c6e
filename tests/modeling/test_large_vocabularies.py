"""Vocabularies of any size: in passes of any size a prompt finds what it finds alone, and the image is read once."""

import json
from collections import Counter

import pytest
import torch
from detectron2.data import MetadataCatalog
from prompt_samples import make_prompt

from glipv2_d2.modeling import build_model
from glipv2_d2.prompts.tokenizer import PromptTokenizer

# Ten names in six prompts.
PROMPTS = [
    make_prompt([1], [3], category_ids=[0, 1]),
    make_prompt([2, 3, 7], [5], category_ids=[2, 3]),
    make_prompt([1], category_ids=[4]),
    make_prompt([1, 2, 3], [4, 5, 6], [8], category_ids=[5, 6, 7]),
    make_prompt([2], category_ids=[8]),
    make_prompt([3], category_ids=[9]),
]
SIZES = pytest.mark.parametrize("prompts_per_pass", [1, 4, 100])


def make_input(prompts, seed=0, size=(64, 96), **more):
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": image, "height": 2 * size[0], "width": 2 * size[1], "prompts": prompts, **more}


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    tiny_cfg.MODEL.GLIPV2.TEST.TOPK_CANDIDATES = 30
    tiny_cfg.MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT = 5
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.3
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 0
    return tiny_cfg


def build(cfg, prompts_per_pass=8):
    cfg.MODEL.GLIPV2.TEST.PROMPTS_PER_PASS = prompts_per_pass
    torch.manual_seed(0)
    # In double precision no near tie is decided by the rounding of another pass.
    return build_model(cfg).double().eval()


def by_class_and_score(instances):
    order = instances.scores.argsort(descending=True, stable=True)
    return instances[order[instances.pred_classes[order].argsort(stable=True)]]


def assert_same(found, *expected):
    expected = [one["instances"] for one in expected]
    expected = by_class_and_score(type(expected[0]).cat(expected))
    found = by_class_and_score(found["instances"])
    assert len(found) > 0
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    if expected.has("pred_masks"):
        assert torch.equal(found.pred_masks, expected.pred_masks)


@torch.no_grad()
@SIZES
def test_a_vocabulary_in_chunks_finds_what_each_chunk_finds_alone(cfg, prompts_per_pass):
    model = build(cfg, prompts_per_pass)
    alone = [model([make_input([prompt])])[0] for prompt in PROMPTS]
    assert all(len(one["instances"]) == 5 for one in alone)
    (together,) = model([make_input(PROMPTS)])
    assert_same(together, *alone)
    scores = together["instances"].scores
    assert torch.equal(scores, scores.sort(descending=True).values)


@torch.no_grad()
def test_the_merged_protocol_keeps_the_best_of_all_chunks(cfg):
    chunks = build(cfg)([make_input(PROMPTS)])[0]["instances"]
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    for prompts_per_pass in (1, 100):
        merged = build(cfg, prompts_per_pass)([make_input(PROMPTS)])[0]["instances"]
        assert len(merged) == 5 < len(chunks) == 30
        torch.testing.assert_close(merged.scores, chunks.scores[:5])
        assert torch.equal(merged.pred_classes, chunks.pred_classes[:5])


@torch.no_grad()
@SIZES
def test_an_image_is_read_once_and_a_chunk_too(cfg, prompts_per_pass):
    model = build(cfg, prompts_per_pass)
    calls, widths = Counter(), []
    model.backbone.register_forward_hook(lambda *_: calls.update(["backbone"]))
    model.text_encoder.register_forward_hook(lambda *_: calls.update(["text"]))
    model.fusion_tower.register_forward_hook(lambda module, inputs, _: widths.append(inputs[1].hidden.shape[:2]))
    inputs = [make_input(PROMPTS), make_input(PROMPTS, seed=1)]
    model(inputs[:1])
    assert calls == {"backbone": 1, "text": 5}
    # Lengths are 5, 9, 3, 10, 4 and 5, the first and the last prompt being the same text; a pass is as wide as its
    # longest prompt.
    expected = {1: [10, 9, 5, 5, 4, 3], 4: [10, 4], 100: [10]}[prompts_per_pass]
    assert [width for _, width in widths] == expected
    assert sum(pairs for pairs, _ in widths) == 6 and max(pairs for pairs, _ in widths) <= prompts_per_pass
    model(inputs)
    assert calls == {"backbone": 2, "text": 5}


@torch.no_grad()
@SIZES
def test_images_with_vocabularies_of_their_own_share_a_batch(cfg, prompts_per_pass):
    model = build(cfg, prompts_per_pass)
    inputs = [make_input(PROMPTS[:1]), make_input(PROMPTS[1:], seed=1), make_input(PROMPTS[2:4], seed=2)]
    for result, one in zip(model(inputs), inputs, strict=True):
        assert_same(result, *(model([one | {"prompts": [prompt]}])[0] for prompt in one["prompts"]))


CPU_IS_FULL = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: not enough memory: you tried to"


@torch.no_grad()
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(), RuntimeError(CPU_IS_FULL)],
    ids=type,
)
def test_a_pass_that_needs_too_much_memory_is_halved_once_and_finds_the_same(cfg, caplog, monkeypatch, error, masks):
    cfg.MODEL.MASK_ON, cfg.MODEL.GLIPV2.MASK_HEAD.CONV_DIM = masks, 16
    inputs = [make_input(PROMPTS), make_input(PROMPTS[2:], seed=1)]
    model = build(cfg, 8)
    expected, fuse, passes = model(inputs), model.fuse, []

    def fuse_at_most_two(features, *others, **options):
        passes.append(len(features[0]))
        if len(features[0]) > 2:
            raise error
        return fuse(features, *others, **options)

    monkeypatch.setattr(model, "fuse", fuse_at_most_two)
    for found, one in zip(model(inputs), expected, strict=True):
        assert_same(found, one)
    assert passes == [8, 4, 2, 2, 2, 2, 2]
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        "8 prompts together need more memory than there is; going on with 4",
        "4 prompts together need more memory than there is; going on with 2",
    ]
    # The next images begin with what was enough.
    model(inputs)
    assert passes[7:] == [2] * 5 and len(caplog.messages) == 2


@torch.no_grad()
def test_a_prompt_that_alone_needs_too_much_memory_and_any_other_error_stay_errors(cfg, monkeypatch):
    model = build(cfg)

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(model, "fuse", fail)
    error = RuntimeError(CPU_IS_FULL)
    with pytest.raises(MemoryError):
        model([make_input(PROMPTS)])
    error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        model([make_input(PROMPTS)])


@torch.no_grad()
@pytest.mark.parametrize("per_image", [5, 0])
@pytest.mark.parametrize("features", ["fpn", "fused"])
def test_masks_do_not_depend_on_the_passes(cfg, features, per_image):
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.GLIPV2.MASK_HEAD.FEATURES = features
    cfg.MODEL.GLIPV2.MASK_HEAD.CONV_DIM = 16
    cfg.TEST.DETECTIONS_PER_IMAGE = per_image
    inputs = [make_input(PROMPTS), make_input(PROMPTS[2:], seed=1)]
    expected = build(cfg, 1)(inputs)
    for result, one in zip(build(cfg, 3)(inputs), expected, strict=True):
        assert one["instances"].pred_masks.any()
        assert_same(result, one)


@torch.no_grad()
def test_without_fusion_the_tower_reads_an_image_once_for_all_chunks(cfg):
    cfg.MODEL.GLIPV2.FUSION.ENABLED = False
    cfg.MODEL.GLIPV2.TOWER.NUM_BLOCKS = 2
    model = build(cfg, 2)
    calls = []
    for block in model.fusion_tower.blocks:
        block.dyconv.register_forward_hook(lambda *_: calls.append(1))
    (together,) = model([make_input(PROMPTS)])
    assert len(calls) == 2
    # As if the tower ran for each chunk anew, beside its text.
    mix_levels, model.fusion_tower.mix_levels = model.fusion_tower.mix_levels, lambda features: []
    assert_same(together, *(model([make_input([prompt])])[0] for prompt in PROMPTS))
    assert len(calls) == 2 + 2 * len(PROMPTS)
    model.fusion_tower.mix_levels = mix_levels


@torch.no_grad()
def test_a_question_is_the_first_prompt_whatever_its_length(cfg, tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))
    cfg.MODEL.GLIPV2.VQA.ENABLED, cfg.MODEL.GLIPV2.VQA.ANSWERS = True, str(tmp_path / "answers.json")
    model = build(cfg, 2)
    inputs = [make_input([PROMPTS[2], PROMPTS[3]], task="vqa"), make_input([PROMPTS[0]], seed=1, task="vqa")]
    for result, one in zip(model(inputs), inputs, strict=True):
        (expected,) = model([one | {"prompts": one["prompts"][:1]}])
        torch.testing.assert_close(result["answer_scores"], expected["answer_scores"])


@torch.no_grad()
@pytest.mark.parametrize(("num_names", "chunk_size"), [(1203, 40), (5000, 0)])
def test_thousands_of_names_are_all_asked_for(cfg, num_names, chunk_size):
    # One candidate of every level and chunk, the best, and a limit that keeps them all.
    cfg.MODEL.GLIPV2.TEST.TOPK_CANDIDATES = 1
    model = build(cfg).float()
    lvis = MetadataCatalog.get("lvis_v1_val").thing_classes
    names = [*lvis, *(f"{name} {number}" for number in range(2, 6) for name in lvis)][:num_names]
    prompts = PromptTokenizer.from_config(cfg).tokenize_names(names, chunk_size=chunk_size)
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    found = model([make_input(prompts, size=(64, 64))])[0]["instances"]
    assert len(calls) == 1
    detected = set(found.pred_classes.tolist())
    assert all(not detected.isdisjoint(prompt.category_ids.tolist()) for prompt in prompts)
    assert chunk_size == 0 or len(prompts) == 31
