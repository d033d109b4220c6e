import logging
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage
from rank_runs import run_ranks
from torch import nn

from glipv2_d2.data.image_reading import DISK_FAULT
from glipv2_d2.data.stream.state import StreamState, TrainLoader
from glipv2_d2.engine import data_hooks
from glipv2_d2.engine.data_hooks import DataStateHook, SkippedImagesHook, merge_positions
from glipv2_d2.engine.stopping import StopHook
from glipv2_d2.errors import InputError


def make_hook(max_share, batches, num_images=0):
    hook = SkippedImagesHook(max_share)
    hook.trainer = SimpleNamespace(model=nn.Linear(1, 1), storage=EventStorage())
    assert list(hook.watch(batches, num_images)) == batches
    return hook


def batches_with(skipped_positions, count):
    """Batches of two samples; each of the given samples stands for one unreadable file before it."""
    samples = [{"skipped_files": [f"bad_{k}.png"]} if k in skipped_positions else {} for k in range(count)]
    return [samples[k : k + 2] for k in range(0, count, 2)]


def test_share_is_that_of_unreadable_files_among_all_drawn():
    # 97 samples and 3 unreadable files: 3 of 100 drawn.
    batches = batches_with({3, 40, 50}, 97)
    make_hook(0.03, batches).after_step()
    with pytest.raises(ValueError, match=r"at most 2.9% .*MAX_SKIPPED_SHARE\), found 3 of 100, such as bad_3.png"):
        make_hook(0.029, batches).after_step()


def test_the_message_says_what_to_do_with_a_value_that_lets_the_run_go_on():
    batches = batches_with({3, 40, 50}, 97)
    with pytest.raises(ValueError, match=r"save these files.*MAX_SKIPPED_SHARE 0.06 to train") as found:
        make_hook(0.01, batches).after_step()
    value = float(str(found.value).split("MAX_SKIPPED_SHARE ")[1].split()[0])
    make_hook(value, batches).after_step()


def test_a_file_that_comes_again_and_again_counts_once():
    # The kangaroo set: 131 images, two of them unreadable, 20 epochs.
    bad = [{"skipped_files": ["a.jpg"]}, {"skipped_files": ["b.jpg"]}]
    hook = make_hook(0.0, [bad, [{}] * 129] * 20, num_images=131)
    hook.after_step()
    assert hook.trainer.storage.latest()["data/skipped_files"][0] == 2


@pytest.mark.parametrize("place", [0, 300, 900])
def test_the_order_of_the_images_does_not_decide(place):
    # 9 of 1,000 are unreadable, all next to each other.
    samples = [{"skipped_files": [f"{k}.jpg"]} if place <= k < place + 9 else {} for k in range(1000)]
    hook = SkippedImagesHook(0.01)
    hook.trainer = SimpleNamespace(model=nn.Linear(1, 1), storage=EventStorage())
    for _ in hook.watch([[sample] for sample in samples], num_images=1000):
        hook.after_step()
    assert hook.trainer.storage.latest()["data/skipped_files"][0] == 9


def test_two_files_are_no_reason_to_stop():
    make_hook(0.0, batches_with({0, 1}, 2)).after_step()
    with pytest.raises(ValueError, match="MAX_SKIPPED_SHARE"):
        make_hook(0.0, batches_with({0, 1, 2}, 4)).after_step()


def test_later_files_end_the_run_too():
    hook = SkippedImagesHook(0.1)
    hook.trainer = SimpleNamespace(model=nn.Linear(1, 1), storage=EventStorage())
    bad = [[{"skipped_files": [f"{k}.jpg"]}] for k in range(100)]
    with pytest.raises(ValueError, match=r"found 4[1-3] of 400"):
        for _ in hook.watch(bad, num_images=400):
            hook.after_step()


def test_a_file_that_several_ranks_met_counts_once(monkeypatch):
    monkeypatch.setattr(data_hooks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(data_hooks, "reduce_mean", lambda counts: counts)
    batches = batches_with({0, 1}, 4)
    others: set[str] = set()
    monkeypatch.setattr(data_hooks.comm, "all_gather", lambda files: [files, others])
    others |= {"bad_0.png", "bad_1.png"}
    make_hook(0.0, batches).after_step()
    others |= {"bad_9.png"}
    with pytest.raises(ValueError, match="found 3 of 12"):
        make_hook(0.0, batches).after_step()


def stop_of_rank(rank):
    """The number of the step that ends the run of a rank, and why."""
    bad_files = [["a", "b"], ["b", "b"], ["", ""], ["", "c"], ["", ""]]
    batches = [[{"skipped_files": [files[rank]]} if files[rank] else {}] for files in bad_files]
    hook = SkippedImagesHook(0.0)
    hook.trainer = SimpleNamespace(model=nn.Linear(1, 1), storage=EventStorage())
    for step, _ in enumerate(hook.watch(batches)):
        try:
            hook.after_step()
        except InputError as error:
            return {"step": step, "message": str(error)}
    return {}


def test_two_ranks_stop_at_the_same_step_by_the_files_of_both():
    first, second = run_ranks(stop_of_rank)
    # Two in each of four steps, and one more for each of the five that could not be read.
    assert first == second and first["step"] == 3 and "found 3 of 13, such as a;" in first["message"]


def test_truncated_images_are_named_once_and_listed_at_the_end(caplog):
    reports = [{"truncated_files": [f"{name}.jpg: cut"]} for name in "aba"]
    with caplog.at_level(logging.WARNING):
        hook = make_hook(0.0, [reports])
        hook.after_step()
    assert caplog.messages == ["decoded as far as it goes: a.jpg: cut; others are only counted until the end"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        hook.after_train()
    expected = "2 truncated images, decoded as far as possible; save again:\na.jpg: cut\nb.jpg: cut"
    assert caplog.messages == [expected]


def test_one_truncated_image_is_named_once_in_a_run(caplog):
    with caplog.at_level(logging.WARNING):
        hook = make_hook(0.0, [[{"truncated_files": ["a.jpg: cut"]}] * 2])
        hook.after_train()
    assert caplog.messages == ["decoded as far as it goes: a.jpg: cut; others are only counted until the end"]


def test_unreadable_images_are_named_as_they_come_and_listed_once_at_the_end(caplog):
    with caplog.at_level(logging.WARNING):
        hook = make_hook(1.0, batches_with({0, 3}, 4) + batches_with({0}, 2))
    prefix = "left out of the training data: "
    assert caplog.messages == [f"{prefix}bad_0.png", f"{prefix}bad_3.png"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        hook.after_train()
    assert caplog.messages == ["2 unreadable images, skipped:\nbad_0.png\nbad_3.png"]


def test_images_that_a_disk_did_not_give_are_told_from_unreadable_ones(caplog):
    lines = ["a.jpg: broken", f"b.jpg: Input/output error, {DISK_FAULT}", f"c.jpg: Stale file handle, {DISK_FAULT}"]
    hook = make_hook(1.0, [[{"skipped_files": lines}]])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        hook.after_train()
    assert caplog.messages[0].startswith("3 unreadable images (2 by errors of the disk), skipped:\na.jpg: broken\n")
    with pytest.raises(InputError, match="such as b.jpg: Input/output error, an error of the disk"):
        make_hook(0.1, [[{"skipped_files": lines}]]).after_step()


def test_only_the_first_of_a_kind_are_named_as_they_come(caplog, monkeypatch):
    monkeypatch.setattr(data_hooks, "_NUM_LISTED", 15)
    lines = [f"r{k}" for k in range(20)]
    with caplog.at_level(logging.WARNING):
        hook = make_hook(1.0, [[{"skipped_records": lines, "damaged_shards": ["a.tar: cut"]}]])
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "left out of the training data: r9; others are only counted until the end"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        hook.after_train()
    shards, records = caplog.messages
    assert shards == "1 damaged shard, read up to the damage:\na.tar: cut"
    assert records == "at least 15 malformed records, left out, or boxes of them:\n" + "\n".join(lines[:15])


def test_what_was_dropped_is_counted_in_the_metrics_and_at_the_end(caplog):
    reports = [{"dropped": {"tokens": 30, "phrases": 2}}, {"dropped": {"tokens": 5, "records": 4}}, {}]
    hook = make_hook(1.0, [reports, [{"skipped_files": ["x.png"]}]])
    hook.after_step()
    latest = {name: value for name, (value, _) in hook.trainer.storage.latest().items()}
    assert latest == {
        "data/skipped_files": 1,
        "data/dropped_tokens": 35,
        "data/dropped_phrases": 2,
        "data/dropped_records": 4,
    }
    with caplog.at_level(logging.WARNING):
        hook.after_train()
    assert caplog.messages[-1] == "dropped from the training data of this process: 35 tokens, 2 phrases, 4 records"


def test_samples_without_a_box_left_alarm_nobody(caplog):
    hook = make_hook(1.0, [[{"dropped": {"samples": 2}}, {"dropped": {"samples": 1}}]])
    with caplog.at_level(logging.INFO):
        hook.after_train()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "3 training samples without any box left gave way to others")
    ]


def test_counts_are_those_of_all_ranks(monkeypatch):
    # Two ranks; the other one counts nothing.
    monkeypatch.setattr(data_hooks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(data_hooks, "reduce_mean", lambda counts: counts / 2)
    hook = make_hook(0.5, [[{"dropped": {"boxes": 3}}]])
    hook.after_step()
    assert hook.trainer.storage.latest()["data/dropped_boxes"][0] == 3


def test_damaged_shards_are_no_unreadable_images():
    hook = make_hook(0.0, [[{"damaged_shards": ["a.tar: cut"]}] * 200])
    hook.after_step()
    assert hook.trainer.storage.latest().get("data/skipped_files", (0, 0))[0] == 0


def test_end_of_a_clean_run_is_silent(caplog):
    make_hook(0.0, batches_with(set(), 4)).after_train()
    assert caplog.messages == []


def test_watching_does_not_read_ahead():
    drawn = []
    loader = (drawn.append(k) or [{}] for k in range(5))
    stream = SkippedImagesHook(0.5).watch(loader)
    next(stream)
    assert drawn == [0]


# --- where the stream stands


def state_hook(positions, period=2, max_iter=5) -> DataStateHook:
    hook = DataStateHook(period, stop=StopHook())
    hook.trainer = SimpleNamespace(iter=0, max_iter=max_iter)
    hook.attach(TrainLoader([], StreamState(7, {"DATASETS.TRAIN": ["a"]}, positions=positions)))
    return hook


def test_the_state_is_that_of_the_last_checkpoint_step():
    positions = {}
    hook = state_hook(positions)
    seen = []
    for iteration in range(5):
        positions["s/0"] = [iteration, 0, 0, 0]
        hook.trainer.iter = iteration
        hook.after_step()
        seen.append(dict(hook.state_dict()["positions"]))
    # Steps 2 and 4, and the last one.
    assert [seen_then.get("s/0", [None])[0] for seen_then in seen] == [None, 1, 1, 3, 4]
    assert hook.state_dict()["seed"] == 7 and hook.state_dict()["layout"] == {"DATASETS.TRAIN": ["a"]}


def test_a_saved_state_is_there_for_the_loader():
    hook = DataStateHook(3, stop=StopHook())
    assert hook.saved is None and hook.state_dict() == {}
    state = state_hook({"s/0": [1, 2, 3, 4]}).state_dict()
    hook.load_state_dict(state)
    assert hook.saved == hook.state_dict() == state
    # A run that ends before it has begun.
    hook.trainer = SimpleNamespace(iter=2, max_iter=3)
    hook.after_step()
    assert hook.state_dict() == state


def test_positions_of_all_ranks_are_joined(monkeypatch):
    ranks = [{"s/0": [9, 1, 0, 2], "s/1": [3, 0, 0, 3]}, {"s/0": [4, 0, 1, 1], "s/1": [12, 1, 0, 0]}]
    assert merge_positions(ranks) == {"s/0": [9, 1, 0, 2], "s/1": [12, 1, 0, 0]}
    monkeypatch.setattr(data_hooks.comm, "all_gather", lambda positions: [positions, {"s/9": [0, 0, 0, 0]}])
    hook = state_hook({"s/0": [5, 0, 0, 5]}, period=1)
    hook.after_step()
    assert hook.state_dict()["positions"] == {"s/0": [5, 0, 0, 5], "s/9": [0, 0, 0, 0]}
