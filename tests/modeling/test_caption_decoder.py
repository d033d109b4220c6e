"""Captions word by word equal captions as a whole, in numbers and in what the search makes of them."""

import pytest
import torch
from causal_samples import LANGUAGE_LAYERS, VOCAB_SIZE, causal_logits, make_features, make_parts

from glipv2_d2.modeling.fusion_tower import FusionTower
from glipv2_d2.modeling.tasks.caption_decoder import CaptionDecoder
from glipv2_d2.modeling.tasks.text_generation import GenerationRules, generate

KINDS = sorted(LANGUAGE_LAYERS)
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def some_ids(rows, length, seed=0):
    return torch.randint(0, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))


def repeat_images(features, times):
    return [level.repeat_interleave(times, 0) for level in features]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["plain", "folded", "auto"])
@pytest.mark.parametrize(("images", "texts", "positions"), [(1, 1, True), (3, 1, False), (2, 3, True)])
def test_each_step_gives_the_logits_of_a_pass_over_the_whole_text(kind, form, images, texts, positions):
    parts, features = make_parts(kind, form, fusion_positions=positions), make_features(images)
    ids = some_ids(images * texts, 9)
    expected = causal_logits(parts, repeat_images(features, texts), ids)
    decoder = CaptionDecoder(*parts)
    state = decoder.prepare(features)
    for place in range(9):
        logits, state = decoder.step(ids[:, place], state)
        torch.testing.assert_close(logits, expected[:, place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_half_precision_stay_close_to_the_pass_in_half_precision(kind):
    parts, features, ids = make_parts(kind), make_features(2), some_ids(4, 6)
    decoder = CaptionDecoder(*parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = causal_logits(parts, repeat_images(features, 2), ids).float()
        state = decoder.prepare(features)
        for place in range(6):
            logits, state = decoder.step(ids[:, place], state)
            torch.testing.assert_close(logits.float(), expected[:, place], rtol=0.1, atol=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_can_be_reordered_multiplied_and_dropped(kind):
    parts, features = make_parts(kind), make_features(2)
    decoder = CaptionDecoder(*parts)
    ids = some_ids(2, 2)
    state = decoder.prepare(features)
    for place in range(2):
        _, state = decoder.step(ids[:, place], state)
    # Three texts of each image, all begun alike, then two of them, crossed.
    state = state.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    third, fourth = some_ids(6, 1, seed=1), some_ids(4, 1, seed=2)
    _, state = decoder.step(third[:, 0], state)
    rows = torch.tensor([2, 0, 5, 5])
    kept = state
    logits, _ = decoder.step(fourth[:, 0], state.select(rows))
    whole = torch.cat([ids.repeat_interleave(3, 0), third], dim=1)[rows]
    expected = causal_logits(parts, repeat_images(features, 2), torch.cat([whole, fourth], dim=1))[:, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert kept.encoder[0].keys.shape[:3] == (6, 3, 3)


def test_state_without_tokens_can_be_multiplied():
    parts, features = make_parts("bert"), make_features(2)
    decoder = CaptionDecoder(*parts)
    state = decoder.prepare(features).select(torch.tensor([0, 0, 1, 1]))
    ids = some_ids(4, 1)
    logits, _ = decoder.step(ids[:, 0], state)
    expected = causal_logits(parts, repeat_images(features, 2), ids)[:, 0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_runs_the_prefix_or_the_image_again(kind):
    encoder, tower, head = make_parts(kind)
    lengths, images = [], []
    inner = encoder.bert.encoder.layer[0].intermediate if kind == "bert" else encoder.resblocks[0].mlp
    inner.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    layer = tower.blocks[1].language_layer
    inner = layer.intermediate if kind == "bert" else layer.mlp
    inner.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    for block in tower.blocks:
        block.dyconv.register_forward_pre_hook(lambda *_: images.append("dyconv"))
        block.fusion.norm_visual.register_forward_pre_hook(lambda *_: images.append("norm"))
    decoder = CaptionDecoder(encoder, tower, head)
    state = decoder.prepare(make_features(1))
    # The levels that leave the last block are read by no token.
    assert images == ["norm", "dyconv", "norm"]
    for place in range(5):
        _, state = decoder.step(torch.tensor([place]), state)
    assert lengths == [1] * 10 and len(images) == 3


class WholeTexts:
    """A step that keeps nothing but the texts and runs them from the start every time."""

    def __init__(self, parts, features, texts):
        self.parts, self.features, self.texts = parts, features, texts

    def select(self, rows):
        return WholeTexts(self.parts, self.features, self.texts[rows])


def slow_step(token_ids, state):
    texts = torch.cat([state.texts, token_ids[:, None]], dim=1)
    features = repeat_images(state.features, len(texts) // len(state.features[0]))
    return causal_logits(state.parts, features, texts)[:, -1], WholeTexts(state.parts, state.features, texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam_size", [1, 4])
def test_search_finds_the_same_captions_with_and_without_remembered_states(kind, beam_size):
    parts, features = make_parts(kind), make_features(5)
    rules = GenerationRules(start_id=1, end_id=2, banned_ids=(0, 1), beam_size=beam_size, max_length=10, min_length=2)
    decoder = CaptionDecoder(*parts)
    found = generate(decoder.step, decoder.prepare(features), 5, rules)
    start = WholeTexts(parts, features, torch.zeros(5, 0, dtype=torch.int64))
    expected = generate(slow_step, start, 5, rules)
    assert [text.token_ids.tolist() for text in found] == [text.token_ids.tolist() for text in expected]
    assert [text.score for text in found] == pytest.approx([text.score for text in expected], rel=1e-4)
    assert len({tuple(text.token_ids.tolist()) for text in found}) > 1


def test_tower_without_fusion_cannot_write():
    tower = FusionTower(8, 12, num_blocks=1, channels=16, fusion=False)
    encoder, _, head = make_parts("bert")
    with pytest.raises(ValueError, match="FUSION.ENABLED: expected True to write captions, found False"):
        CaptionDecoder(encoder, tower, head).prepare(make_features(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_captions_on_a_gpu_follow_the_whole_text(kind, dtype):
    parts = [part.cuda() for part in make_parts(kind)]
    features, ids = [level.cuda() for level in make_features(2)], some_ids(4, 8).cuda()
    decoder = CaptionDecoder(*parts)
    tolerance = 1e-3 if dtype == torch.float32 else 0.2
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        expected = causal_logits(parts, repeat_images(features, 2), ids).float()
        state = decoder.prepare(features)
        for place in range(8):
            logits, state = decoder.step(ids[:, place], state)
            torch.testing.assert_close(logits.float(), expected[:, place], rtol=0.1, atol=tolerance)
        rules = GenerationRules(start_id=1, end_id=2, banned_ids=(0,), beam_size=3, max_length=10)
        texts = generate(decoder.step, decoder.prepare(features), 2, rules, device="cuda")
    assert all(text.token_ids.is_cuda and text.score <= 0 for text in texts)
