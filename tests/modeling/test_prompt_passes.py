"""Which prompts run together: every pair once, no pass above the limit, prompts of a length side by side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prompt_samples import make_prompt

from glipv2_d2.modeling.batch import Pairs
from glipv2_d2.modeling.tasks.prompt_passes import plan_passes, rows_by_padded_size


def prompt_of(length):
    return make_prompt([length - 2])


@given(st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=7), min_size=1, max_size=4), st.integers(1, 6))
def test_every_pair_is_in_one_pass_and_no_pass_is_too_large(lengths, max_pairs):
    prompts = [[prompt_of(length) for length in of_image] for of_image in lengths]
    passes = plan_passes(prompts, max_pairs)
    pairs = [pair for one in passes for pair in zip(one.rows, one.ranks)]
    expected = [(row, rank) for row, of_image in enumerate(prompts) for rank in range(len(of_image))]
    assert sorted(pairs) == expected
    assert [len(one.rows) for one in passes[:-1]] == [max_pairs] * (len(passes) - 1)
    assert 1 <= len(passes[-1].rows) <= max_pairs
    for one in passes:
        assert all(found is prompts[row][rank] for row, rank, found in zip(*one))
    longest = [len(prompt) for one in passes for prompt in one.prompts]
    assert longest == sorted(longest, reverse=True)


def test_prompts_of_a_length_run_in_the_order_of_the_images():
    chunks = [prompt_of(5), prompt_of(7), prompt_of(5)]
    passes = plan_passes([chunks, chunks], 2)
    assert [(one.rows, one.ranks) for one in passes] == [([0, 1], [1, 1]), ([0, 1], [0, 0]), ([0, 1], [2, 2])]


@pytest.mark.parametrize("max_pairs", [0, -1])
def test_a_pass_holds_a_prompt_at_least(max_pairs):
    with pytest.raises(ValueError, match=f"TEST.PROMPTS_PER_PASS: expected at least 1, found {max_pairs}"):
        plan_passes([[prompt_of(3)]], max_pairs)


@pytest.mark.parametrize(("num_images", "rows"), [(1, [0]), (1, [0, 0, 0]), (2, [0, 1]), (2, [1, 0, 1]), (3, [2])])
def test_each_pair_gets_the_levels_of_its_image(num_images, rows):
    levels = [torch.randn(num_images, 2, size, size) for size in (4, 2)]
    selected = Pairs(rows, [0] * len(rows), [prompt_of(3)] * len(rows)).select(levels)
    for level, found in zip(levels, selected, strict=True):
        assert torch.equal(found, torch.stack([level[row] for row in rows]))


@torch.no_grad()
def test_the_levels_of_one_image_are_not_copied_for_its_prompts():
    levels = [torch.randn(1, 2, 4, 4)]
    assert Pairs([0, 0], [0, 1], [prompt_of(3)] * 2).select(levels)[0].data_ptr() == levels[0].data_ptr()
    assert Pairs([0], [0], [prompt_of(3)]).select(levels) is levels


def test_images_of_one_padded_size_and_task_run_together():
    sizes = [(60, 90), (64, 96), (65, 96), (33, 70), (64, 96)]
    inputs = [{"image": torch.zeros(3, *size)} for size in sizes]
    inputs[4]["task"] = "vqa"
    # Multiples of 32: 64 x 96, 64 x 96, 96 x 96, 64 x 96, and a question of 64 x 96.
    assert rows_by_padded_size(inputs, 32) == [[0, 1, 3], [2], [4]]
    # Nothing is padded: 60 x 90, 64 x 96, 65 x 96, 33 x 70.
    assert rows_by_padded_size(inputs[:4] + inputs[1:2], 0) == [[0], [1, 4], [2], [3]]


def test_images_run_together_whose_finer_versions_have_one_padded_size():
    inputs = [{"image": torch.zeros(3, *size)} for size in ((60, 90), (64, 96), (60, 89), (60, 90))]
    for one, size in zip(inputs, ((150, 225), (160, 240), (150, 223)), strict=False):
        one["fine_image"] = torch.zeros(3, *size)
    # All images are padded to 64 x 96, the finer ones to 160 x 256, 160 x 256 and 160 x 224.
    assert rows_by_padded_size(inputs, 32) == [[0, 1], [2], [3]]
