import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_weights import load_tiny, official_state_dict
from slow_layers import bi_attention, layer_norm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glipv2_d2.layers import fusion
from glipv2_d2.layers.fusion import BiAttentionBlock, BiMultiHeadAttention, folded_is_faster, split_levels

FORMS = ("plain", "folded")


def randomize(module: torch.nn.Module, spread: float = 1.0) -> None:
    """Every parameter random, biases and gammas too, so that no term vanishes."""
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=spread / fan_in**0.5)


def make_attention(c=6, d=5, embed=8, heads=2, dropout=0.0, dtype=torch.float64, seed=0) -> BiMultiHeadAttention:
    torch.manual_seed(seed)
    attention = BiMultiHeadAttention(c, d, embed, heads, dropout).to(dtype)
    randomize(attention, spread=2.0)
    return attention


def make_mask(lengths: list[int], size: int) -> Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_equals_the_slow_attention(form):
    attention = make_attention(heads=4)
    visual, language = torch.randn(2, 7, 6, dtype=torch.float64), torch.randn(2, 5, 5, dtype=torch.float64)
    mask = make_mask([5, 3], 5)
    actual = attention(visual, language, mask, form)
    weights = {name: value.detach().numpy() for name, value in attention.named_parameters()}
    for image in range(2):
        expected = bi_attention(visual[image].numpy(), language[image].numpy(), mask[image].numpy(), weights, 4)
        for side in range(2):
            np.testing.assert_allclose(actual[side][image].detach().numpy(), expected[side], rtol=0, atol=1e-12)


SIZES = [
    # images, positions, tokens, C, D, embed, heads, real tokens
    (2, 45, 12, 32, 48, 64, 4, [12, 7]),
    (1, 300, 9, 16, 24, 512, 8, [9]),
    (3, 10, 70, 24, 8, 48, 1, [1, 70, 33]),
    (2, 1, 2, 8, 8, 8, 2, [2, 1]),
]


def run_with_gradients(attention, visual, language, mask, form) -> tuple[list[Tensor], dict[str, Tensor]]:
    attention.zero_grad()
    visual, language = visual.clone().requires_grad_(), language.clone().requires_grad_()
    outputs = attention(visual, language, mask, form)
    generator = torch.Generator().manual_seed(3)
    probes = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    torch.autograd.backward(outputs, probes)
    gradients = {name: parameter.grad.clone() for name, parameter in attention.named_parameters()}
    return [out.detach() for out in outputs], {**gradients, "visual": visual.grad, "language": language.grad}


@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 2e-5, 2e-4), (torch.float64, 1e-10, 1e-10)])
@pytest.mark.parametrize("size", SIZES)
def test_folded_equals_plain_with_all_gradients(dtype, forward, backward, size):
    images, positions, tokens, c, d, embed, heads, lengths = size
    attention = make_attention(c, d, embed, heads, dtype=dtype)
    visual, language = torch.randn(images, positions, c, dtype=dtype), torch.randn(images, tokens, d, dtype=dtype)
    mask = make_mask(lengths, tokens)
    expected, expected_gradients = run_with_gradients(attention, visual, language, mask, "plain")
    actual, gradients = run_with_gradients(attention, visual, language, mask, "folded")
    for side in range(2):
        scale = max(1.0, expected[side].abs().max().item())
        assert (actual[side] - expected[side]).abs().max() <= forward * scale
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        # A softmax does not feel a number added to all of its scores: the gradient of the key's bias is all rounding.
        scale = max(gradient.abs().max().item(), 0.01 * largest)
        assert (gradients[name] - gradient).abs().max() <= backward * scale, name


@pytest.mark.parametrize("form", FORMS)
def test_positions_do_not_see_the_padding_and_all_tokens_see_all_positions(form):
    attention = make_attention()
    visual, language = torch.randn(1, 7, 6, dtype=torch.float64), torch.randn(1, 5, 5, dtype=torch.float64)
    masked = attention(visual, language, make_mask([3], 5), form)
    other_padding = language.clone()
    other_padding[:, 3:] = 100.0
    again = attention(visual, other_padding, make_mask([3], 5), form)
    torch.testing.assert_close(again[0], masked[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(again[1][:, :3], masked[1][:, :3], rtol=0, atol=1e-12)
    cut = attention(visual, language[:, :3], make_mask([3], 3), form)
    torch.testing.assert_close(cut[0], masked[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(cut[1], masked[1][:, :3], rtol=0, atol=1e-12)
    # The text side has no mask: a token of the padding gets what it would get as a real one.
    unmasked = attention(visual, language, make_mask([5], 5), form)
    torch.testing.assert_close(masked[1], unmasked[1], rtol=0, atol=1e-12)
    assert (masked[0] - unmasked[0]).abs().max() > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_prompt_without_real_tokens_weighs_all_tokens_equally(form):
    attention = make_attention(dtype=torch.float32)
    visual, language = torch.randn(1, 4, 6), torch.randn(1, 3, 5)
    update, _ = attention(visual, language, make_mask([0], 3), form)
    expected = attention.visual_out_proj(attention.language_value_proj(language).mean(1))
    torch.testing.assert_close(update, expected.expand(1, 4, 6))


def make_scalar_attention(dtype=torch.float32) -> BiMultiHeadAttention:
    """One channel, one head, every projection the identity: the score is the product of position and token."""
    attention = BiMultiHeadAttention(1, 1, 1, 1, 0.0).to(dtype)
    for projection in attention.children():
        torch.nn.init.ones_(projection.weight)
    return attention


@pytest.mark.parametrize("form", FORMS)
def test_scores_weigh_both_sides_by_hand(form):
    attention = make_scalar_attention()
    # Scores [[0, ln 3], [0, 0]]: position 0 gives weights 1/4 and 3/4, token 1 gives weights 3/4 and 1/4.
    visual, language = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [np.log(3.0)]]], dtype=torch.float32)
    to_visual, to_language = attention(visual, language, make_mask([2], 2), form)
    assert to_visual.flatten().tolist() == pytest.approx([0.75 * np.log(3), 0.5 * np.log(3)])
    assert to_language.flatten().tolist() == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize(
    ("form", "dtype"), [("plain", torch.float32), ("plain", torch.float16), ("folded", torch.float16)]
)
def test_scores_are_clamped(form, dtype):
    attention = make_scalar_attention(dtype)
    # Scores 100,000 and 200,000 both become 50,000: equal weights. In half precision they would be infinite.
    visual = torch.tensor([[[1000.0], [2000.0], [1.0]]], dtype=dtype)
    language = torch.tensor([[[100.0], [200.0], [1.0]]], dtype=dtype)
    to_visual, to_language = attention(visual, language, make_mask([3], 3), form)
    assert to_visual[0, 0].item() == 150
    assert to_language[0, 0].item() == 1500
    negative, _ = attention(-visual[:, :1], language[:, :2], make_mask([2], 2), form)
    assert negative.item() == 150


class RecordSoftmax(TorchDispatchMode):
    """Collects the element types that softmax reads."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._softmax.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", FORMS)
def test_softmax_runs_in_single_precision_under_autocast(form):
    attention = make_attention(c=32, d=16, embed=64, heads=4, dtype=torch.float32)
    visual, language, mask = torch.randn(2, 20, 32), torch.randn(2, 6, 16), make_mask([6, 4], 6)
    expected = attention(visual, language, mask, form)
    with torch.autocast("cpu", dtype=torch.bfloat16), RecordSoftmax() as record:
        actual = attention(visual, language, mask, form)
    assert record.dtypes == [torch.float32, torch.float32]
    for side in range(2):
        assert (actual[side].float() - expected[side]).abs().max() <= 0.05 * expected[side].abs().max()
    attention.bfloat16()
    with RecordSoftmax() as record:
        attention(visual.bfloat16(), language.bfloat16(), mask, form)
    assert record.dtypes == [torch.float32, torch.float32]


@pytest.mark.parametrize("form", FORMS)
def test_dropout_acts_on_both_directions_in_training_only(form):
    attention = make_attention(dropout=1.0)
    visual, language = torch.randn(1, 7, 6, dtype=torch.float64), torch.randn(1, 5, 5, dtype=torch.float64)
    mask = make_mask([5], 5)
    # Every weight dropped: nothing but the biases of the output projections is left.
    updates = attention(visual, language, mask, form)
    assert torch.equal(updates[0], attention.visual_out_proj.bias.expand(1, 7, 6))
    assert torch.equal(updates[1], attention.language_out_proj.bias.expand(1, 5, 5))
    at_test = attention.eval()(visual, language, mask, form)
    attention.dropout = 0.0
    for side, expected in enumerate(attention.train()(visual, language, mask, form)):
        torch.testing.assert_close(at_test[side], expected, rtol=0, atol=1e-12)


def test_both_forms_drop_alike(monkeypatch):
    # The same weights dropped by hand in both forms, in each form's own layout of the weights.
    keep = torch.rand(2, 3, 4, 7, 5, dtype=torch.float64) < 0.6  # direction, N, heads, S, T
    kept = {
        (3, 4, 7, 5): iter(keep),  # plain, both directions
        (3, 7, 4, 5): iter([keep[0].transpose(1, 2)]),  # folded, image side
        (3, 7, 20): iter([keep[1].transpose(1, 2).flatten(2)]),  # folded, text side
    }
    monkeypatch.setattr(F, "dropout", lambda weights, p, training: weights * next(kept[tuple(weights.shape)]) / (1 - p))
    attention = make_attention(heads=4, dropout=0.4)
    visual, language = torch.randn(3, 7, 6, dtype=torch.float64), torch.randn(3, 5, 5, dtype=torch.float64)
    plain = attention(visual, language, make_mask([5, 2, 4], 5), "plain")
    folded = attention(visual, language, make_mask([5, 2, 4], 5), "folded")
    for side in range(2):
        torch.testing.assert_close(folded[side], plain[side], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("positions", "tokens", "channels", "head_dim", "expected"),
    [
        (22400, 195, 256, 256, True),
        (22400, 256, 256, 256, True),
        (756, 100, 128, 64, True),
        (756, 160, 128, 64, True),  # 160*128*820 = 16.8 M against 1.25 * 756*64*288 = 17.4 M
        (756, 256, 128, 64, False),  # 256*128*820 = 26.9 M against 1.25 * 756*64*384 = 23.2 M
        (4, 64, 256, 256, False),  # fewer positions than tokens
    ],
)
def test_choice_of_the_form(positions, tokens, channels, head_dim, expected):
    assert folded_is_faster(positions, tokens, channels, head_dim) is expected


@pytest.mark.parametrize(
    ("form", "tokens", "expected"),
    [("auto", 2, "_folded"), ("auto", 40, "_plain"), ("plain", 2, "_plain"), ("folded", 40, "_folded")],
)
def test_the_form_that_runs_is_the_one_chosen(form, tokens, expected, monkeypatch):
    ran = []
    for name in ("_plain", "_folded"):
        monkeypatch.setattr(BiMultiHeadAttention, name, lambda *_, name=name: ran.append(name))
    # 40 positions, C 16, d 4. Two tokens: 1,408 products against 2,880; 40 tokens: 28,160 against 8,960.
    block = BiAttentionBlock(16, 5, embed_dim=8, num_heads=2, dropout=0.0, layer_scale=1.0, form=form)
    block.attention(torch.zeros(1, 40, 16), torch.zeros(1, tokens, 5), make_mask([tokens], tokens), block.form)
    assert ran == [expected]


@pytest.mark.parametrize("lengths", [[6, 2], [6, 6], [6, 0]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_blocks_equal_the_folded_form(dtype, tolerance, lengths, monkeypatch):
    attention = make_attention(c=32, d=16, embed=64, heads=4, dtype=dtype)
    visual, language = torch.randn(2, 50, 32, dtype=dtype), torch.randn(2, 6, 16, dtype=dtype)
    # The largest score comes last, so that all sums before it shrink to next to nothing.
    visual *= torch.linspace(0.1, 30, 50, dtype=dtype)[:, None]
    mask = make_mask(lengths, 6)
    expected = [update.detach() for update in attention(visual, language, mask, "folded")]
    for block_scores in (1, 7 * 24, 2**20):  # blocks of one position, of seven, and of all
        monkeypatch.setattr(fusion, "BLOCK_SCORES", block_scores)
        with torch.no_grad():
            actual = attention(visual, language, mask, "blocks")
        for side in range(2):
            scale = expected[side].abs().max().item()
            torch.testing.assert_close(actual[side], expected[side], rtol=0, atol=tolerance * scale)


@torch.no_grad()
@pytest.mark.parametrize("positions", [False, True])
def test_a_block_in_blocks_adds_its_updates_as_in_the_folded_form(positions, monkeypatch):
    torch.manual_seed(0)
    block = BiAttentionBlock(
        32, 16, embed_dim=64, num_heads=4, dropout=0.0, layer_scale=0.5, positions=positions
    ).eval()
    features, hidden = [torch.randn(2, 32, 5, 7), torch.randn(2, 32, 3, 4)], torch.randn(2, 6, 16)
    mask, before = make_mask([6, 2], 6), [level.clone() for level in features]
    found = {}
    monkeypatch.setattr(fusion, "BLOCK_SCORES", 7 * 24)
    for block.form in ("folded", "blocks"):
        levels, language = block(features, hidden, mask)
        found[block.form] = [*levels, language[mask]]
    for one, other in zip(found["blocks"], found["folded"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    assert all(torch.equal(level, kept) for level, kept in zip(features, before, strict=True))


def test_without_gradients_and_dropout_auto_takes_blocks_on_the_cpu(monkeypatch):
    ran = []
    for name in ("_plain", "_folded", "_blocks"):
        monkeypatch.setattr(BiMultiHeadAttention, name, lambda *_, name=name: ran.append(name))
    attention = make_attention(c=16, d=5, dtype=torch.float32, dropout=0.1)
    inputs = (torch.zeros(1, 40, 16), torch.zeros(1, 2, 5), make_mask([2], 2))
    for form in ("auto", "blocks"):
        attention(*inputs, form)  # a gradient may be wanted
        with torch.no_grad():
            attention.train()(*inputs, form)
            attention.eval()(*inputs, form)
    assert ran == ["_folded", "_folded", "_blocks"] * 2


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="FUSION.NUM_HEADS: expected a divisor of embed_dim 10, found 4"):
        BiMultiHeadAttention(4, 4, embed_dim=10, num_heads=4)
    with pytest.raises(ValueError, match="expected one of auto, plain, folded, blocks, found 'fast'"):
        make_attention()(torch.zeros(1, 1, 6), torch.zeros(1, 1, 5), make_mask([1], 1), "fast")
    with pytest.raises(ValueError, match="form: expected one of auto, plain, folded, blocks, found 'fast'"):
        BiAttentionBlock(4, 4, embed_dim=4, num_heads=1, dropout=0.0, layer_scale=1.0, form="fast")


def test_initial_projections_are_xavier_uniform_without_bias():
    torch.manual_seed(0)
    attention = BiMultiHeadAttention(100, 200, 400, 4)
    for projection in attention.children():
        limit = (6 / sum(projection.weight.shape)) ** 0.5
        assert 0.99 * limit < projection.weight.abs().max() <= limit
        assert projection.bias.abs().max() == 0


def make_block(form="auto", gamma=0.125) -> BiAttentionBlock:
    torch.manual_seed(1)
    block = BiAttentionBlock(6, 5, embed_dim=8, num_heads=2, dropout=0.0, layer_scale=gamma, form=form).double()
    randomize(block.attention, 2.0)
    return block


def make_levels() -> list[Tensor]:
    return [torch.randn(2, 6, *size, dtype=torch.float64) for size in ((3, 5), (2, 3), (1, 2))]


@pytest.mark.parametrize("form", FORMS)
def test_block_adds_scaled_updates_to_the_normalized_input(form):
    block = make_block(form)
    assert block.gamma_visual.tolist() == [0.125] * 6
    assert block.gamma_language.tolist() == [0.125] * 5
    randomize(block)
    features, hidden, mask = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64), make_mask([4, 2], 4)
    fused, fused_hidden = block(features, hidden, mask)
    weights = {name: value.detach().numpy() for name, value in block.named_parameters()}
    attention = {name.removeprefix("attention."): value for name, value in weights.items()}
    for image in range(2):
        # All positions of all levels in one sequence: finest level first, each row by row.
        visual = np.array([f[image, :, y, x].numpy() for f in features for y, x in np.ndindex(*f.shape[2:])])
        visual = layer_norm(visual, weights["norm_visual.weight"], weights["norm_visual.bias"], eps=1e-5)
        language = layer_norm(
            hidden[image].numpy(), weights["norm_language.weight"], weights["norm_language.bias"], eps=1e-5
        )
        updates = bi_attention(visual, language, mask[image].numpy(), attention, 2)
        visual = iter(visual + weights["gamma_visual"] * updates[0])
        language = language + weights["gamma_language"] * updates[1]
        np.testing.assert_allclose(fused_hidden[image].detach().numpy(), language, rtol=0, atol=1e-12)
        for level, before in zip(fused, features):
            assert level.shape == before.shape
            for y, x in np.ndindex(*level.shape[2:]):
                np.testing.assert_allclose(level[image, :, y, x].detach().numpy(), next(visual), rtol=0, atol=1e-12)


def test_block_changes_none_of_its_inputs():
    block = make_block()
    features, hidden, mask = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64), make_mask([4, 2], 4)
    copies = [level.clone() for level in features], hidden.clone(), mask.clone()
    block(features, hidden, mask)
    assert all(map(torch.equal, features, copies[0]))
    assert torch.equal(hidden, copies[1]) and torch.equal(mask, copies[2])


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_of_the_block_gets_a_gradient(form):
    block = make_block(form)
    fused, hidden = block(make_levels(), torch.randn(2, 4, 5, dtype=torch.float64), make_mask([4, 2], 4))
    (sum((level**3).sum() for level in fused) + (hidden**3).sum()).backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.abs().max() > 1e-8, name


OFFICIAL_NAMES = (
    ("b_attn.attn.", "attention."),
    ("b_attn.", ""),
    ("values_v_proj", "visual_value_proj"),
    ("values_l_proj", "language_value_proj"),
    ("out_v_proj", "visual_out_proj"),
    ("out_l_proj", "language_out_proj"),
    (".v_proj", ".visual_proj"),
    (".l_proj", ".language_proj"),
    ("layer_norm_v", "norm_visual"),
    ("layer_norm_l", "norm_language"),
    ("gamma_v", "gamma_visual"),
    ("gamma_l", "gamma_language"),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("index", "tolerance"), [(0, 1e-4), (3, 3e-4)])
def test_block_gives_the_official_numbers(index, tolerance, form):
    block = BiAttentionBlock(32, 48, embed_dim=2048, num_heads=8, dropout=0.1, layer_scale=0.5, form=form).eval()
    prefix = f"rpn.head.dyhead_tower.{index}."
    block.load_state_dict(official_state_dict(prefix=prefix, renamings=OFFICIAL_NAMES))
    language, tower = load_tiny("det_language.npz"), load_tiny("det_tower.npz")
    mask = language["attention_mask"].bool().expand(2, -1)
    if index == 0:
        before = load_tiny("det_backbone.npz")
        features, hidden = [before[f"fpn.p{level}"] for level in range(3, 8)], language["hidden"].expand(2, -1, -1)
    else:
        features = [tower[f"tower.2.dyconv.visual.p{level}"] for level in range(3, 8)]
        hidden = tower["tower.1.bert.hidden"]
    with torch.no_grad():
        fused, fused_hidden = block(features, hidden, mask)
    for level, actual in zip(range(3, 8), fused):
        expected = tower[f"tower.{index}.fuse.visual.p{level}"]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=tolerance)
    torch.testing.assert_close(fused_hidden[mask], tower[f"tower.{index}.fuse.hidden"][mask], rtol=1e-4, atol=tolerance)


# --- one way: tokens read the image, the image reads no token


def make_random_block(form: str) -> BiAttentionBlock:
    block = make_block(form)
    randomize(block)
    return block


@pytest.mark.parametrize("form", FORMS)
def test_tokens_read_the_image_as_in_both_directions(form):
    attention = make_attention(heads=4)
    visual, language = torch.randn(2, 7, 6, dtype=torch.float64), torch.randn(2, 5, 5, dtype=torch.float64)
    weights = {name: value.detach().numpy() for name, value in attention.named_parameters()}
    for chosen in (form, "auto"):
        actual = attention.read_image(visual, language, chosen).detach().numpy()
        for image in range(2):
            everything = np.ones(5, dtype=bool)
            _, expected = bi_attention(visual[image].numpy(), language[image].numpy(), everything, weights, 4)
            np.testing.assert_allclose(actual[image], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="expected one of auto, plain, folded, blocks, found 'fast'"):
        attention.read_image(visual, language, "fast")


@pytest.mark.parametrize("form", FORMS)
def test_block_without_image_reads_leaves_the_normalized_image_and_the_same_tokens(form):
    block = make_random_block(form)
    features, hidden, mask = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64), make_mask([4, 2], 4)
    levels, tokens = block(features, hidden, mask, image_reads=False)
    _, expected = block(features, hidden, mask)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-12)
    weight, bias = (block.norm_visual.get_parameter(name).detach().numpy() for name in ("weight", "bias"))
    for level, before in zip(levels, features):
        normed = layer_norm(before.permute(0, 2, 3, 1).numpy(), weight, bias, eps=1e-5)
        np.testing.assert_allclose(level.permute(0, 2, 3, 1).detach().numpy(), normed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_without_image_reads_levels_and_other_tokens_do_not_depend_on_a_token_exactly(form):
    block = make_random_block(form).float()
    features, hidden = [level.float() for level in make_levels()], torch.randn(2, 4, 5)
    mask = make_mask([4, 4], 4)
    levels, tokens = block(features, hidden, mask, image_reads=False)
    other = hidden.clone()
    other[:, 2] = torch.randn(2, 5)
    other_levels, other_tokens = block(features, other, mask, image_reads=False)
    assert all(map(torch.equal, other_levels, levels))
    changed = (other_tokens != tokens).any(-1)
    assert changed.tolist() == [[False, False, True, False]] * 2


def test_positions_of_a_block_are_read_in_any_form():
    block = make_random_block("plain")
    features, hidden = make_levels(), torch.randn(2, 4, 5, dtype=torch.float64)
    _, expected = block(features, hidden, make_mask([4, 4], 4), image_reads=False)
    visual = block.normalize_image(features)
    assert visual.shape == (2, 15 + 6 + 2, 6)
    for form in (None, *FORMS):
        torch.testing.assert_close(block.read_image(visual, hidden, form), expected, rtol=0, atol=1e-12)
    for level, before in zip(split_levels(torch.cat([f.flatten(2).mT for f in features], 1), features), features):
        assert torch.equal(level, before)


@pytest.mark.parametrize("form", FORMS)
def test_dropout_acts_on_what_tokens_alone_read_in_training_only(form):
    attention = make_attention(dropout=1.0)
    visual, language = torch.randn(1, 7, 6, dtype=torch.float64), torch.randn(1, 5, 5, dtype=torch.float64)
    assert torch.equal(attention.read_image(visual, language, form), attention.language_out_proj.bias.expand(1, 5, 5))
    _, expected = attention.eval()(visual, language, make_mask([5], 5), form)
    torch.testing.assert_close(attention.read_image(visual, language, form), expected, rtol=0, atol=1e-12)
