"""The shortlist: its names are those that regions resemble most, and are asked for as if they were all."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_one_line
from prompt_samples import make_prompt

from glipv2_d2.errors import InputError
from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.tasks import shortlist
from glipv2_d2.modeling.tasks.shortlist import NameWords, rank_names
from glipv2_d2.prompts.name_subsets import prompts_of_names

# Ten names, some of several tokens, in three prompts that the encoder reads differently.
PROMPTS = [
    make_prompt([1], [3, 4], [6], category_ids=[3, 4, 5]),
    make_prompt([1, 2, 3], [5], [7], category_ids=[9, 8, 7]),
    make_prompt([1], [3], [5, 6], [8], category_ids=[0, 1, 2, 6]),
]


def make_input(prompts, seed=0, size=(40, 70), **more):
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": image, "height": 2 * size[0], "width": 2 * size[1], "prompts": prompts, **more}


@pytest.fixture
def build(tiny_cfg):
    """Make a model that finds something, with a shortlist of K names."""
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0, "MODEL.GLIPV2.GROUNDING.PRIOR_PROB", 0.3])
    tiny_cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = True

    def make(size, *keys):
        tiny_cfg.merge_from_list(["MODEL.GLIPV2.TEST.SHORTLIST", size, *keys])
        torch.manual_seed(0)
        return build_model(tiny_cfg).double().eval()

    return make


def slow_ranking(model, inputs):
    """Names by their likeness to an image, each pair of a word and a region by itself; best first."""
    images = model.preprocess_image([inputs])
    features = model.visual_features(images)
    head = model.contrastive_head
    height, width = inputs["image"].shape[-2:]
    regions = []
    for level, anchors in zip(features, model.anchor_generator(features), strict=True):
        for (left, top, right, bottom), vector in zip(anchors.tensor, level[0].flatten(1).T, strict=True):
            if (left + right) / 2 < width and (top + bottom) / 2 < height:
                regions.append(head.image_projection(vector))
    names = []
    for prompt in inputs["prompts"]:
        words = model.read_prompts([prompt]).embedded[0]
        names += [
            [head.text_projection(words[token]) for token in row.nonzero().flatten()] for row in prompt.phrase_token_map
        ]
    temperature = float(head.log_scale.exp())
    shares = [[] for _ in names]
    for region in regions:
        found = [
            sum(math.exp(float(F.cosine_similarity(region, word, dim=0)) / temperature) for word in words)
            for words in names
        ]
        for name, value in enumerate(found):
            shares[name].append(value / sum(found))
    scores = [sum(sorted(one)[-8:]) for one in shares]
    return sorted(range(len(scores)), key=lambda name: -scores[name])


def assert_same(found, expected):
    found, expected = found["instances"], expected["instances"]
    assert len(expected) > 0
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 4])
def test_the_names_that_regions_resemble_most_are_asked_for_alone(build, size, monkeypatch):
    # Regions come in several blocks.
    monkeypatch.setattr(shortlist, "_MOST_SHARES", 300)
    model, exact = build(size), build(0)
    for seed in range(2):
        inputs = make_input(PROMPTS, seed)
        chosen = sorted(slow_ranking(exact, inputs)[:size])
        subset = prompts_of_names(PROMPTS, chosen, max_tokens=256)
        (found,), (expected,) = model([inputs]), exact([{**inputs, "prompts": subset}])
        assert_same(found, expected)
        ids = torch.cat([prompt.category_ids for prompt in PROMPTS])[chosen]
        assert set(found["instances"].pred_classes.tolist()) <= set(ids.tolist())


@torch.no_grad()
@pytest.mark.parametrize("size", [10, 11])
def test_with_room_for_all_names_it_is_the_exact_mode(build, size):
    (found,), (expected,) = build(size)([make_input(PROMPTS)]), build(0)([make_input(PROMPTS)])
    assert_same(found, expected)
    assert torch.equal(found["instances"].scores, expected["instances"].scores)


@torch.no_grad()
def test_images_of_a_batch_have_names_of_their_own(build):
    model = build(3)
    inputs = [make_input(PROMPTS), make_input(PROMPTS, 1), make_input(PROMPTS[1:], 2), make_input(PROMPTS[:1], 3)]
    alone = [model([one])[0] for one in inputs]
    for found, expected in zip(model(inputs), alone, strict=True):
        assert_same(found, expected)
    assert model([]) == []


@torch.no_grad()
def test_a_caption_is_read_whole(build):
    caption = make_prompt([1], [3], [5], names=False)
    model, exact = build(1), build(0)
    assert_same(model([make_input([caption])])[0], exact([make_input([caption])])[0])


@torch.no_grad()
def test_a_vocabulary_is_read_once_and_again_after_its_weights_change(build):
    model, read = build(2), []
    model.text_encoder.register_forward_hook(lambda _, inputs, output: read.append(inputs[0].input_ids.shape[1]))
    model([make_input(PROMPTS)])
    assert sorted(read[:3]) == sorted(map(len, PROMPTS)) and len(read) == 4
    model([make_input(PROMPTS, 1)])
    assert len(read) <= 5
    before = model([make_input(PROMPTS)])[0]["instances"].pred_classes
    other = copy.deepcopy(model)
    model.contrastive_head.text_projection.weight.neg_()
    model.contrastive_head.text_projection.bias.neg_()
    after = model([make_input(PROMPTS)])[0]["instances"].pred_classes
    assert set(before.tolist()) != set(after.tolist())
    assert torch.equal(other([make_input(PROMPTS)])[0]["instances"].pred_classes, before)


def test_of_equal_names_the_earlier_comes_first():
    # Names 0, 2, 3, 5 of one word and 1, 4 of two.
    words = [[0.5, 0.0], [0.0, 2.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 2.0], [-9.0, 0.0]]
    names = NameWords(torch.tensor(words), [(1, 4), (2, 2)], torch.tensor([0, 4, 1, 2, 5, 3]), torch.arange(6))
    regions = torch.tensor([[[1.0, 0.0], [0.0, 9.0]], [[0.0, 1.0], [9.0, 0.0]]])
    inside = torch.tensor([[True, False], [True, False]])
    # Exponentials of the first image: 1.65, 1 + 1, 1, 1.65, 1.0001, 2.72; of the second: 1, 1 + 1, 7.4, 1, 7.4 + 1, 1.
    assert rank_names(regions, inside, names).tolist() == [[5, 1, 0, 3, 4, 2], [4, 2, 1, 0, 3, 5]]


@torch.no_grad()
def test_regions_in_the_padding_of_an_image_do_not_count(build, monkeypatch):
    seen = []
    monkeypatch.setattr(shortlist, "rank_names", lambda *inputs: seen.append(inputs[1]) or rank_names(*inputs))
    build(1)([make_input(PROMPTS)])
    # 64 x 96 pixels padded: 8 x 12 positions of stride 8, of which 5 x 9 begin in the image.
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[:5, :9] = True
    assert torch.equal(seen[0][0, : 8 * 12].unflatten(0, (8, 12)), expected)


def test_a_model_that_cannot_rank_names_says_so(build, tiny_cfg):
    with pytest.raises(InputError) as caught:
        build(3, "MODEL.GLIPV2.CONTRASTIVE.ENABLED", False)
    assert_one_line(caught, "MODEL.GLIPV2.TEST.SHORTLIST: expected 0 for a model without", "found 3", "CONTRASTIVE")
    with pytest.raises(InputError) as caught:
        build(-1)
    assert_one_line(caught, "MODEL.GLIPV2.TEST.SHORTLIST", "found -1")
    with pytest.raises(InputError) as caught:
        build(3, "MODEL.GLIPV2.CONTRASTIVE.ENABLED", True, "MODEL.GLIPV2.TUNING.MODE", "prompt",
              "MODEL.GLIPV2.TUNING.PRETRAINING_LOSSES", True)  # fmt: skip
    assert_one_line(caught, "MODEL.GLIPV2.TEST.SHORTLIST", "prompt is tuned")
