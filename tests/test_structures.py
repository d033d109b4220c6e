"""The containers that data, prompts and model hand to each other."""

import copy
import dataclasses
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from glipv2_d2.structures import Prompt, TokenBatch, TokenizedPrompt


def tokenized(ids):
    return TokenizedPrompt(torch.tensor(ids), torch.zeros(0, len(ids), dtype=torch.bool), torch.tensor([]), ())


def test_prompt_takes_phrases_with_several_spans_or_none():
    prompt = Prompt("a dog, mostly white", ("dog", "cat"), (((2, 5), (14, 19)), ()), (0, 1))
    assert [prompt.caption[begin:end] for begin, end in prompt.phrase_spans[0]] == ["dog", "white"]


def test_span_may_reach_both_ends_of_the_caption():
    assert Prompt("dog", ("dog",), (((0, 3),),), (0,)).phrase_spans == (((0, 3),),)


@pytest.mark.parametrize("span", [(0, 0), (2, 2), (2, 1), (-1, 2), (0, 4), (3, 4)])
def test_span_that_is_empty_or_outside_is_refused(span):
    with pytest.raises(ValueError, match=r"expected non-empty ranges .* of 3 char.* of phrase 'dog'") as caught:
        Prompt("dog", ("dog",), (((0, 1), span),), (0,))
    assert str(span) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "phrases, spans, category_ids",
    [((), (((0, 1),),), (0,)), (("dog",), (), (0,)), (("dog",), (((0, 1),),), ()), (("dog",), (((0, 1),),), (0, 1))],
)
def test_parts_of_a_prompt_must_be_equally_many(phrases, spans, category_ids):
    sizes = (len(phrases), len(spans), len(category_ids))
    with pytest.raises(ValueError, match="equally many") as caught:
        Prompt("dog", phrases, spans, category_ids)
    assert str(sizes) in str(caught.value)


def test_prompts_cannot_be_changed():
    prompt = Prompt("dog", ("dog",), (((0, 3),),), (0,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt.caption = "cat"
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenized([1, 2]).phrases = ("cat",)


def test_length_of_a_tokenized_prompt_counts_its_tokens():
    assert len(tokenized([101, 4937, 102])) == 3


@pytest.mark.parametrize("mlm_labels", [None, torch.tensor([-100, 7, -100])])
@pytest.mark.parametrize("send", [lambda x: pickle.loads(ForkingPickler.dumps(x)), copy.deepcopy], ids=["send", "copy"])
def test_a_prompt_survives_being_sent_to_another_process(mlm_labels, send):
    prompt = TokenizedPrompt(
        torch.tensor([101, 7, 102]),
        torch.tensor([[False, True, False]]),
        torch.tensor([5]),
        ("dog",),
        mlm_labels,
        ((1, 2),),
    )
    sent = send(prompt)
    for field in dataclasses.fields(TokenizedPrompt):
        expected, found = getattr(prompt, field.name), getattr(sent, field.name)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected) and found.dtype == expected.dtype
            found.zero_()
            assert expected.any()
        else:
            assert found == expected


def test_a_prompt_is_sent_without_shared_memory():
    # A vocabulary of thousands of names would run out of file descriptors.
    prompt = tokenized([101, 7, 102])
    assert b"rebuild_storage" in ForkingPickler.dumps(prompt.input_ids).tobytes()
    assert b"rebuild_storage" not in ForkingPickler.dumps(prompt).tobytes()


def test_token_batch_pads_to_the_longest_prompt():
    tokens = TokenBatch.from_prompts([tokenized([101, 7, 102]), tokenized([101, 102]), tokenized([101, 8, 9, 0, 102])])
    assert tokens.input_ids.tolist() == [[101, 7, 102, 0, 0], [101, 102, 0, 0, 0], [101, 8, 9, 0, 102]]
    assert tokens.mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert tokens.input_ids.dtype == torch.int64 and tokens.mask.dtype == torch.bool


def test_token_batch_of_one_prompt_has_no_padding():
    tokens = TokenBatch.from_prompts([tokenized([101, 7, 102])])
    assert tokens.input_ids.shape == (1, 3) and tokens.mask.all()


def test_token_batch_lies_on_the_device_asked_for():
    tokens = TokenBatch.from_prompts([tokenized([101, 102])], "meta")
    assert tokens.input_ids.device.type == tokens.mask.device.type == "meta"
