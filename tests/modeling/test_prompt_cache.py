import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pretended_device import pretended_device

from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.text_encoder import build_text_encoder, prompt_cache
from glipv2_d2.modeling.text_encoder.prompt_cache import PromptCache
from glipv2_d2.structures import LanguageFeatures, TokenBatch, TokenizedPrompt


def make_prompt(*ids):
    return TokenizedPrompt(torch.tensor(ids), torch.zeros(0, len(ids), dtype=torch.bool), torch.zeros(0), ())


@pytest.fixture
def encoder(tiny_cfg):
    torch.manual_seed(0)
    encoder = build_text_encoder(tiny_cfg).eval()
    encoder.calls = []
    encoder.register_forward_hook(lambda module, inputs, output: module.calls.append(inputs[0].input_ids.tolist()))
    return encoder


CPU = torch.device("cpu")


@torch.no_grad()
def test_features_equal_those_of_the_encoder_at_real_tokens(encoder):
    prompts = [make_prompt(101, 7, 8, 9, 102), make_prompt(101, 5, 102)]
    expected = encoder(TokenBatch.from_prompts(prompts))
    actual = PromptCache().encode(encoder, prompts, CPU)
    assert torch.equal(actual.mask, expected.mask)
    torch.testing.assert_close(actual.hidden[expected.mask], expected.hidden[expected.mask])
    torch.testing.assert_close(actual.embedded, expected.embedded)


@torch.no_grad()
@pytest.mark.parametrize(
    ("most_tokens", "passes"),
    [
        (100, [[5, 4, 3, 2]]),
        # 2 x 5 tokens with padding, then 2 x 3.
        (12, [[5, 4], [3, 2]]),
        (4, [[5], [4], [3], [2]]),
    ],
)
def test_a_device_encodes_new_prompts_together_as_each_alone(encoder, monkeypatch, most_tokens, passes):
    monkeypatch.setattr(prompt_cache, "_MOST_TOKENS", most_tokens)
    prompts = [make_prompt(101, *range(7, 7 + length), 102) for length in (1, 3, 0, 2)]
    expected = PromptCache().encode(encoder, prompts, CPU)
    cache = PromptCache()
    with pretended_device() as traffic:
        encoder.to("cuda")
        lengths = []
        encoder.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].mask.numbers.sum(dim=1).tolist()))
        found = cache.encode(encoder, prompts, torch.device("cuda"))
        assert lengths == passes and not traffic.mixed
        again = cache.encode(encoder, prompts[::-1], torch.device("cuda"))
        assert len(lengths) == len(passes)
    for one, mask in ((found, expected.mask), (again, expected.mask.flip(0))):
        assert torch.equal(one.mask.numbers, mask)
    torch.testing.assert_close(found.hidden.numbers, expected.hidden)
    assert torch.equal(again.hidden.numbers.flip(0), found.hidden.numbers)
    assert [len(row) for row in cache._hidden.values()] == [3, 5, 2, 4][::-1]


@torch.no_grad()
def test_equal_prompts_are_encoded_once_over_calls(encoder):
    cache = PromptCache()
    first = cache.encode(encoder, [make_prompt(101, 7, 102), make_prompt(101, 7, 102)], CPU)
    again = cache.encode(encoder, [make_prompt(101, 7, 102)], CPU)
    assert encoder.calls == [[[101, 7, 102]]]
    assert torch.equal(first.hidden[1:], again.hidden)


@torch.no_grad()
@pytest.mark.parametrize("change", ["in place", "load_state_dict", "mode"])
def test_another_state_of_the_encoder_forgets(encoder, change):
    cache, prompt = PromptCache(), make_prompt(101, 7, 102)
    before = cache.encode(encoder, [prompt], CPU).hidden
    if change == "in place":
        encoder.bert.embeddings.word_embeddings.weight.mul_(2)
    elif change == "load_state_dict":
        encoder.load_state_dict({name: tensor * 1.5 for name, tensor in encoder.state_dict().items()})
    else:
        encoder.train()
    after = cache.encode(encoder, [prompt], CPU).hidden
    assert len(encoder.calls) == 2
    assert not torch.equal(before, after)


@torch.no_grad()
def test_the_least_recently_used_prompt_leaves_first(encoder):
    cache = PromptCache(max_tokens=4)
    a, b, c = make_prompt(101, 1), make_prompt(101, 2), make_prompt(101, 3)
    for prompt in (a, b, a, c, a, b):
        cache.encode(encoder, [prompt], CPU)
    assert [call[0][1] for call in encoder.calls] == [1, 2, 3, 2]


@torch.no_grad()
def test_the_cache_is_bounded_by_the_tokens_of_its_prompts(encoder):
    cache = PromptCache(max_tokens=6)
    short, other, long = make_prompt(101, 1), make_prompt(101, 2), make_prompt(101, 3, 4, 5, 6)
    # 2, 4 tokens; 9, of which the oldest 4 leave; 7, of which 5 leave; 4.
    for prompt in (short, other, long, short, other):
        cache.encode(encoder, [prompt], CPU)
    assert [call[0] for call in encoder.calls] == [p.input_ids.tolist() for p in (short, other, long, short, other)]
    # 6 tokens fit: the two short ones and one more.
    cache.encode(encoder, [make_prompt(101, 7)], CPU)
    for prompt in (short, other):
        cache.encode(encoder, [prompt], CPU)
    assert len(encoder.calls) == 6


@torch.no_grad()
def test_a_prompt_past_the_bound_of_the_cache_is_encoded_all_the_same(encoder):
    cache, prompt = PromptCache(max_tokens=2), make_prompt(101, 3, 4)
    first = cache.encode(encoder, [prompt], CPU)
    assert torch.equal(first.hidden, cache.encode(encoder, [prompt], CPU).hidden)
    assert len(encoder.calls) == 2
    # It has left nothing behind that counts.
    cache.clear()
    for _ in range(2):
        cache.encode(encoder, [make_prompt(101, 5)], CPU)
    assert len(encoder.calls) == 3


class MeetingEncoder(torch.nn.Module):
    """An encoder in which two threads are at the same time."""

    def __init__(self):
        super().__init__()
        self.meeting = threading.Barrier(2, timeout=20)

    def forward(self, tokens):
        self.meeting.wait()
        return LanguageFeatures(tokens.input_ids.unsqueeze(-1).float(), tokens.input_ids, tokens.mask)


def test_a_prompt_that_two_threads_encode_counts_once():
    cache, encoder = PromptCache(max_tokens=100), MeetingEncoder()

    def encode(number):
        with torch.no_grad():
            return cache.encode(encoder, [make_prompt(101, number, 102)], CPU).hidden.flatten().tolist()

    with ThreadPoolExecutor(2) as pool:
        for number in range(200):
            assert list(pool.map(encode, [number, number])) == [[101, number, 102]] * 2
    assert cache._num_tokens == sum(map(len, cache._hidden)) == 99


def test_a_copy_of_a_cache_is_empty_and_bounded():
    for copied in (copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))):
        assert copied(PromptCache(max_tokens=7)).max_tokens == 7


@torch.no_grad()
def test_clearing_gives_the_whole_bound_back(encoder):
    cache, prompts = PromptCache(max_tokens=4), [make_prompt(101, 1), make_prompt(101, 2)]
    for _ in range(2):
        for prompt in (*prompts, *prompts):
            cache.encode(encoder, [prompt], CPU)
        cache.clear()
    assert len(encoder.calls) == 4


@torch.no_grad()
def test_autocast_has_features_of_its_own(encoder):
    cache, prompt = PromptCache(), make_prompt(101, 7, 102)
    cache.encode(encoder, [prompt], CPU)
    with torch.autocast("cpu", torch.bfloat16):
        cache.encode(encoder, [prompt], CPU)
    assert len(encoder.calls) == 2


def test_training_between_two_evaluations_is_seen_also_with_a_fused_optimizer(tiny_cfg):
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    prompt = TokenizedPrompt(torch.tensor([101, 7, 102]), torch.tensor([[False, True, False]]), torch.zeros(1), ("a",))
    inputs = [{"image": torch.zeros(3, 64, 64), "prompts": [prompt]}]
    seen = []
    model.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        with torch.no_grad():
            model.eval()(inputs)
        model.train()
        encoder = model.text_encoder(TokenBatch.from_prompts([prompt]))
        encoder.hidden.sum().backward()
        for parameter in set(model.parameters()) - set(model.text_encoder.parameters()):
            parameter.grad = None
        optimizer.step()
    assert not torch.allclose(seen[0], seen[1])


def test_with_gradients_nothing_is_remembered(encoder):
    cache, prompt = PromptCache(), make_prompt(101, 7, 102)
    for _ in range(2):
        cache.encode(encoder, [prompt], CPU).hidden.sum().backward()
    assert len(encoder.calls) == 2
    assert encoder.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0
