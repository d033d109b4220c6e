import logging
from types import SimpleNamespace

import pytest
from torch import nn

from glipv2_d2.engine.hooks import SkippedImagesHook


def make_hook(max_share, batches):
    hook = SkippedImagesHook(max_share)
    hook.trainer = SimpleNamespace(model=nn.Linear(1, 1))
    assert list(hook.watch(batches)) == batches
    return hook


def batches_with(skipped_positions, count):
    """Batches of two samples; each of the given samples stands for one unreadable file before it."""
    samples = [{"skipped_files": [f"bad_{k}.png"]} if k in skipped_positions else {} for k in range(count)]
    return [samples[k : k + 2] for k in range(0, count, 2)]


def test_share_counts_unreadable_images_among_all_drawn():
    # 98 samples and 2 unreadable files: 2 of 100 drawn.
    batches = batches_with({3, 40}, 98)
    make_hook(0.02, batches).after_step()
    with pytest.raises(ValueError, match=r"at most 1.9% .*MAX_SKIPPED_SHARE.*2.0%.*bad_3.png"):
        make_hook(0.019, batches).after_step()


def test_few_images_are_no_reason_to_stop():
    make_hook(0.0, batches_with({0, 1}, 96)).after_step()
    with pytest.raises(ValueError, match="MAX_SKIPPED_SHARE"):
        make_hook(0.0, batches_with({0, 1}, 98)).after_step()


def test_unreadable_images_are_listed_once_at_the_end(caplog):
    hook = make_hook(1.0, batches_with({0, 3}, 4) + batches_with({0}, 2))
    with caplog.at_level(logging.WARNING):
        hook.after_train()
    assert caplog.messages == ["2 unreadable images were skipped:\nbad_0.png\nbad_3.png"]


def test_end_of_a_clean_run_is_silent(caplog):
    make_hook(0.0, batches_with(set(), 4)).after_train()
    assert caplog.messages == []


def test_watching_does_not_read_ahead():
    drawn = []
    loader = (drawn.append(k) or [{}] for k in range(5))
    stream = SkippedImagesHook(0.5).watch(loader)
    next(stream)
    assert drawn == [0]
