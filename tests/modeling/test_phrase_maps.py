import pytest
import torch
import torch.nn.functional as F
from pretended_device import pretended_device
from prompt_samples import make_prompt

from glipv2_d2.errors import InputError
from glipv2_d2.modeling.build import build_model
from glipv2_d2.modeling.phrase_results import find_phrase_maps

# 64 x 96 without padding; the second phrase has two words.
FIRST, SECOND = make_prompt((1,), (3, 4)), make_prompt((2,))


@pytest.fixture
def inputs():
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    return {"image": image, "height": 64, "width": 96, "prompts": [FIRST, SECOND]}


def build(cfg, **keys):
    for key, value in keys.items():
        cfg.MODEL.GLIPV2[key].ENABLED = value
    torch.manual_seed(0)
    return build_model(cfg).eval()


def values_by_hand(model, inputs, prompt):
    """Locations of all levels x phrases, after and before fusion, one prompt at a time."""
    features = model.visual_features(model.preprocess_image([inputs]))
    language = model.read_prompts([prompt])
    logits = torch.cat(model.fuse(features, language).predictions.token_logits, dim=1)[0]
    head, regions = model.contrastive_head, torch.cat([level[0].flatten(1).T for level in features])
    cosines = F.cosine_similarity(
        head.image_projection(regions)[:, None], head.text_projection(language.embedded[0])[None], dim=-1
    )
    spelled = [row.nonzero().squeeze(1) for row in prompt.phrase_token_map]
    return [
        torch.stack([values[:, tokens].mean(dim=1) for tokens in spelled]) for values in (logits.sigmoid(), cosines)
    ]


def test_maps_are_the_means_of_the_words_before_and_after_fusion(tiny_cfg, inputs):
    model = build(tiny_cfg, CONTRASTIVE=True)
    with torch.no_grad():
        expected = [values_by_hand(model, inputs, prompt) for prompt in (FIRST, SECOND)]
    maps = find_phrase_maps(model, inputs)
    for kind, parts in zip(("after", "before"), zip(*expected, strict=True), strict=True):
        values = torch.cat([level.flatten(1) for level in maps[kind].levels], dim=1)
        torch.testing.assert_close(values, torch.cat(parts), rtol=1e-4, atol=1e-5)
        assert maps[kind].image_size == (64, 96) and maps[kind].strides == [8, 16, 32, 64, 128]
        assert [tuple(level.shape[1:]) for level in maps[kind].levels][:2] == [(8, 12), (4, 6)]


def test_the_cpu_waits_for_a_device_once_for_each_kind_of_maps(tiny_cfg, inputs):
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_AGGREGATION = "max"
    model = build(tiny_cfg, CONTRASTIVE=True)
    with pretended_device() as traffic:
        model.to("cuda")
        find_phrase_maps(model, inputs)
        traffic.clear()
        maps = find_phrase_maps(model, inputs)
    assert traffic.waits.total() == len(maps) == 2 and not traffic.mixed and not traffic.unpinned, traffic


def test_without_a_contrastive_head_there_is_no_map_before_fusion(tiny_cfg, inputs):
    assert list(find_phrase_maps(build(tiny_cfg, CONTRASTIVE=False), inputs)) == ["after"]


def test_a_model_without_text_has_no_maps(inputs):
    with pytest.raises(InputError, match="phrase maps: expected a model that reads text, GLIPv2, found Linear"):
        find_phrase_maps(torch.nn.Linear(1, 1), inputs)
