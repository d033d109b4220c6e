"""Questions and captions through the whole model: losses, answers, written captions."""

import dataclasses
import json

import pytest
import torch
from detectron2.structures import Boxes, Instances
from prompt_samples import make_prompt

from glipv2_d2.layers.reading import CAUSAL
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.tasks.caption_grounding import BOXES_PER_TOKEN, ground_tokens
from glipv2_d2.structures import GroundingPredictions, TokenBatch

BOX_LOSSES = {"loss_grounding", "loss_box_reg", "loss_centerness"}
ANSWERS = ["yes", "no", "2"]
PROMPT = make_prompt([1], [3, 4])


def make_input(task, prompt=PROMPT, boxes=None, seed=0, size=(64, 96)):
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    inputs = {"image": image, "height": size[0], "width": size[1], "task": task, "prompts": [prompt]}
    if task == "vqa":
        inputs |= {"question_id": seed, "answer_scores": torch.tensor([[1.0, 0.0, 0.3]])}
    if boxes is not None:
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
        inputs["instances"] = instances
    return inputs


def join_questions(inputs):
    """One model input with all questions about its image."""
    joined = {**inputs[0], "prompts": [one["prompts"][0] for one in inputs]}
    joined["answer_scores"] = torch.cat([one["answer_scores"] for one in inputs])
    if "instances" in joined:
        for number, one in enumerate(inputs):
            one["instances"] = one["instances"][:]
            one["instances"].gt_prompts = torch.full_like(one["instances"].gt_classes, number)
        joined["instances"] = Instances.cat([one["instances"] for one in inputs])
    return joined


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    vqa, captioning = tiny_cfg.MODEL.GLIPV2.VQA, tiny_cfg.MODEL.GLIPV2.CAPTIONING
    vqa.ENABLED = captioning.ENABLED = True
    vqa.ANSWERS = str(tmp_path / "answers.json")
    captioning.MAX_LENGTH, captioning.BEAM_SIZE = 6, 2
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    tiny_cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.3
    return tiny_cfg


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize(("task", "loss"), [("vqa", "loss_vqa"), ("captioning", "loss_caption")])
def test_plain_samples_have_the_loss_of_their_task_alone_and_grounded_ones_those_of_boxes_too(cfg, task, loss):
    cfg.MODEL.GLIPV2.PHRASE_CENTER.ENABLED = True
    model = build(cfg).train()
    assert set(model([make_input(task), make_input(task, seed=1)])) == {loss}
    losses = model([make_input(task, boxes=[[8, 8, 60, 50]]), make_input(task, boxes=[])])
    assert set(losses) == BOX_LOSSES | {loss, "loss_phrase_center"}
    sum(losses.values()).backward()
    other = "captioning_head" if task == "vqa" else "vqa_head"
    without = {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad and one.grad is None}
    # Captions leave the image's side of the fusion alone.
    assert without - {"fusion_tower"} == {other}
    assert task == "captioning" or "fusion_tower" not in without


@pytest.mark.parametrize("image_reads", [True, False])
@pytest.mark.parametrize("boxes", [None, [[8, 8, 60, 50]]])
def test_questions_about_one_image_train_as_if_each_had_its_own_and_the_backbone_runs_once(
    cfg, boxes, image_reads, monkeypatch
):
    cfg.MODEL.GLIPV2.VQA.IMAGE_READS_QUESTION = image_reads
    cfg.MODEL.FPN.DROP_BLOCK_PROB = cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.GLIPV2.FUSION.DROPOUT = cfg.MODEL.TEXT_ENCODER.DROPOUT = 0.0
    model = build(cfg).train()
    other = make_prompt([2, 5], [4])
    alone = [make_input("vqa", boxes=boxes), make_input("vqa", other, boxes=boxes), make_input("vqa", boxes=boxes)]
    alone[1]["answer_scores"] = torch.tensor([[0.0, 1.0, 0.0]])
    alone.insert(0, make_input("vqa", boxes=boxes, seed=1))
    together = [alone[0], join_questions(alone[1:])]
    sizes, run = [], model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda images: sizes.append(len(images)) or run(images))
    mixed, dyconv = [], model.fusion_tower.blocks[0].dyconv
    dyconv.register_forward_pre_hook(lambda module, inputs: mixed.append(len(inputs[0][0])))
    expected, found = model(alone), model(together)
    assert sizes == [4, 2]
    # What reads no question is the same for all of an image; plain questions need nothing of the last layer.
    assert mixed == ([] if boxes is None else [4, 4] if image_reads else [4, 2])
    assert found.keys() == expected.keys()
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-6)


def test_boxes_beside_several_questions_say_whose_they_are(cfg):
    joined = join_questions([make_input("vqa", boxes=[[8, 8, 60, 50]]) for _ in range(2)])
    joined["instances"].remove("gt_prompts")
    with pytest.raises(ValueError, match="instances: expected gt_prompts, .* beside 2 prompts, found none"):
        build(cfg).train()([joined])


def test_captions_hold_no_token_that_is_no_text(cfg):
    # Padding, [unused5], [MASK]; the end has to be written.
    assert {0, 6, 103} <= set(build(cfg).tasks["captioning"].rules.banned_ids)
    assert 102 not in build(cfg).tasks["captioning"].rules.banned_ids


def test_answers_start_as_frequent_as_their_list_says(cfg):
    with open(cfg.MODEL.GLIPV2.VQA.ANSWERS, "w") as file:
        json.dump({"yes": 6, "no": 3, "2": 1}, file)
    torch.testing.assert_close(build(cfg).vqa_head.classifier.bias.sigmoid().tolist(), [0.6, 0.3, 0.1])


@torch.no_grad()
@pytest.mark.parametrize("image_reads", [True, False])
def test_boxes_depend_on_the_question_if_the_image_reads_it(cfg, image_reads):
    cfg.MODEL.GLIPV2.VQA.IMAGE_READS_QUESTION = image_reads
    model = build(cfg).eval()
    features = model.visual_features(type("Images", (), {"tensor": torch.randn(1, 3, 64, 96)}))
    outputs = []
    for prompt in (PROMPT, make_prompt([2, 5], [4])):
        language = model.text_encoder(TokenBatch.from_prompts([prompt]))
        outputs.append(model.fuse(features, language, model.tasks["vqa"].reading))
    same = [torch.equal(*levels) for levels in zip(*(output.levels for output in outputs))]
    assert same == [not image_reads] * len(same)
    # The text reads the image in both ways, and words read those after them.
    for image in (features, [2 * level for level in features]):
        for ids in (PROMPT.input_ids, torch.cat([PROMPT.input_ids[:-1], torch.tensor([2000])])):
            language = model.text_encoder(TokenBatch.from_prompts([dataclasses.replace(PROMPT, input_ids=ids)]))
            outputs.append(model.fuse(image, language, model.tasks["vqa"].reading))
    first_words = [output.hidden[0, 0] for output in outputs[2:]]
    assert len({tuple(word.tolist()) for word in first_words}) == 4


@torch.no_grad()
@pytest.mark.parametrize("image_reads", [True, False])
def test_a_question_is_answered_as_it_was_trained(cfg, image_reads):
    cfg.MODEL.GLIPV2.VQA.IMAGE_READS_QUESTION = image_reads
    model, seen = build(cfg).eval(), []
    model.fusion_tower.register_forward_pre_hook(lambda tower, inputs: seen.append(inputs[2].image_reads))
    model([make_input("vqa"), make_input("vqa", seed=1)])
    model([make_input("detection")])
    assert seen == [image_reads, True]


def test_losses_of_pretraining_are_those_of_boxes_only(cfg):
    cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = cfg.MODEL.GLIPV2.MLM.ENABLED = True
    model = build(cfg).train()
    assert set(model([make_input("vqa", boxes=[[8, 8, 60, 50]])])) == BOX_LOSSES | {"loss_vqa"}
    inputs = make_input("detection", boxes=[[8, 8, 60, 50]])
    inputs["instances"].gt_category_ids = torch.tensor([0])
    assert set(model([inputs])) == BOX_LOSSES | {"loss_contrastive", "loss_mlm"}


def test_changing_a_word_changes_no_word_before_it_and_no_visual_feature(cfg):
    model = build(cfg).eval()
    image = torch.randn(1, 3, 64, 96)
    features = model.visual_features(type("Images", (), {"tensor": image}))

    def run(prompt):
        language = model.text_encoder(TokenBatch.from_prompts([prompt]), causal=True)
        fused = model.fuse(features, language, CAUSAL)
        return fused, model.captioning_head(fused.hidden)

    with torch.no_grad():
        fused, logits = run(PROMPT)
        for place in range(1, len(PROMPT)):
            ids = PROMPT.input_ids.clone()
            ids[place] = 2000
            changed, other_logits = run(dataclasses.replace(PROMPT, input_ids=ids))
            assert torch.equal(logits[:, :place], other_logits[:, :place])
            assert not torch.equal(logits[:, place], other_logits[:, place])
            for level, other in zip(fused.levels, changed.levels):
                assert torch.equal(level, other)
            for level, other in zip(fused.predictions.box_deltas, changed.predictions.box_deltas):
                assert torch.equal(level, other)


@torch.no_grad()
def test_answers_are_probabilities_and_a_grounded_question_has_detections_too(cfg):
    model = build(cfg).eval()
    no_phrases = dataclasses.replace(
        PROMPT, phrase_token_map=PROMPT.phrase_token_map[:0], category_ids=PROMPT.category_ids[:0], phrases=()
    )
    for prompt, finds in ((PROMPT, True), (no_phrases, False)):
        inputs = [make_input("vqa", prompt, seed=seed) for seed in range(2)]
        outputs = model(inputs)
        for output, one in zip(outputs, inputs):
            assert output["answer_scores"].shape == (3,)
            assert ((output["answer_scores"] > 0) & (output["answer_scores"] < 1)).all()
            assert (len(output["instances"]) > 0) is finds
            alone = model([one])[0]["answer_scores"]
            torch.testing.assert_close(output["answer_scores"], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_captions_hold_no_special_tokens_and_do_not_depend_on_the_batch(cfg):
    model = build(cfg).eval()
    inputs = [make_input("captioning", seed=seed) for seed in range(2)]
    inputs = [{key: value for key, value in one.items() if key != "prompts"} for one in inputs]
    special = {0, 100, 101, 102, 103}
    outputs = model(inputs)
    for output, one in zip(outputs, inputs):
        ids = output["caption_ids"].tolist()
        assert 1 <= len(ids) <= 6 and not special & set(ids)
        assert output["caption_score"] < 0 and "token_boxes" not in output
        alone = model([one])[0]
        assert alone["caption_ids"].tolist() == ids
        assert alone["caption_score"] == pytest.approx(output["caption_score"], abs=1e-4)


@torch.no_grad()
def test_a_grounded_caption_has_the_best_boxes_of_each_word_in_the_original_image(cfg):
    cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = True
    model = build(cfg).eval()
    inputs = make_input("captioning") | {"height": 128, "width": 192}
    output = model([inputs])[0]
    num_tokens = len(output["caption_ids"])
    assert output["token_boxes"].shape == (num_tokens, BOXES_PER_TOKEN, 4)
    assert output["token_scores"].shape == (num_tokens, BOXES_PER_TOKEN)
    assert (output["token_scores"].diff(dim=1) <= 0).all() and output["token_scores"][:, 0].min() > 0
    found = output["token_boxes"][output["token_scores"] > 0]
    assert found[:, 2].max() > 96 and found[:, 2].max() <= 192 and found.min() >= 0


@torch.no_grad()
def test_inputs_of_all_tasks_may_come_together_at_test_time(cfg):
    model = build(cfg).eval()
    inputs = [make_input(task, seed=seed) for seed, task in enumerate(("vqa", "detection", "captioning", "vqa"))]
    outputs = model(inputs)
    assert [sorted(output) for output in outputs] == [
        ["answer_scores", "instances"],
        ["instances"],
        ["caption_ids", "caption_score"],
        ["answer_scores", "instances"],
    ]
    with pytest.raises(ValueError, match="task: expected .* found .*'captioning', 'vqa'"):
        model.train()([make_input("vqa"), make_input("captioning")])


def test_a_task_that_the_model_is_not_made_for_is_an_error(tiny_cfg):
    model = build(tiny_cfg)
    for task, message in (("vqa", "VQA.ENABLED True"), ("captioning", "CAPTIONING.ENABLED True"), ("song", "'song'")):
        with pytest.raises(ValueError, match=message):
            model.eval()([make_input(task)])


def test_boxes_of_a_token_are_ranked_by_its_alignment_and_overlapping_ones_left_out(cfg):
    head = build(cfg).head
    anchors = [Boxes(torch.tensor([[0.0, 0, 40, 40], [2, 0, 42, 40], [50, 0, 90, 40]]))]
    logits = torch.tensor([[2.0, -3.0, 9.0], [1.0, -1.0, 9.0], [0.0, float("nan"), 9.0]])
    # The same twice, and a text that lacks the second token; no text has the third one.
    predictions = GroundingPredictions([logits.expand(3, -1, -1)], [torch.zeros(3, 3, 4)], [torch.zeros(3, 3)])
    sizes = [(64, 96), (64, 96), (64, 60)]
    found, again, short = ground_tokens(predictions, anchors, sizes, [2, 2, 1], head.box2box_transform, 0.6)
    assert torch.equal(again.boxes, found.boxes) and torch.equal(again.scores, found.scores)
    assert torch.equal(short.scores, found.scores[:1]) and short.boxes[0, 1].tolist() == [50, 0, 60, 40]
    expected = torch.tensor([2.0, 0.0]).sigmoid()
    torch.testing.assert_close(found.scores[0, :2], expected)
    assert found.scores[0, 2:].sum() == 0 and found.boxes[0, 2:].sum() == 0
    # The first two overlap: of each token the better one stays.
    torch.testing.assert_close(found.boxes[0, :2, 0], torch.tensor([0.0, 50.0]))
    assert found.boxes[1, 0, 0] == 2
    torch.testing.assert_close(found.scores[1, 0], torch.tensor(-1.0).sigmoid())


def test_captions_that_pass_the_token_limit_are_an_error_before_the_first_step(cfg):
    cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 20
    for length, fits in ((18, True), (19, False)):
        cfg.MODEL.GLIPV2.CAPTIONING.MAX_LENGTH = length
        if fits:
            build(cfg)
        else:
            with pytest.raises(ValueError, match="CAPTIONING.MAX_LENGTH: expected at most 18 .* found 19"):
                build(cfg)
