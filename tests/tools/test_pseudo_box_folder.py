import json
import threading

import pseudo_box_folder
import pytest
from pseudo_box_folder import PseudoBoxFolder, format_report, summarize

from glipv2_d2.engine.pseudo_boxes import PseudoBoxCounts


def make_folder(path, rank=0, world_size=1, num_shards=5):
    return PseudoBoxFolder(path, "jsonl", num_shards, rank, world_size)


def finish(folder, number, **counts):
    folder.shard(number).write_text("")
    folder.finish(number, PseudoBoxCounts(**counts))


def test_each_process_has_every_nth_shard(tmp_path):
    assert [make_folder(tmp_path, rank, 2).unfinished() for rank in range(2)] == [[0, 2, 4], [1, 3]]
    assert make_folder(tmp_path, 6, 7).unfinished() == []


def test_a_shard_is_finished_with_its_counts_and_another_number_of_processes_goes_on(tmp_path):
    folder = make_folder(tmp_path)
    assert folder.shard(3) == tmp_path / "pseudo-000003.jsonl"
    assert PseudoBoxFolder(tmp_path, "shards", 5).shard(3) == tmp_path / "pseudo-000003.tar"
    folder.shard(0).write_text("without counts")
    folder.finish(1, PseudoBoxCounts())  # without its shard
    finish(folder, 2)
    assert folder.unfinished() == [0, 1, 3, 4]
    assert [make_folder(tmp_path, rank, 3).unfinished() for rank in range(3)] == [[0, 3], [1, 4], []]


def test_a_folder_goes_on_with_its_own_settings_only(tmp_path):
    settings = {"teacher": "a", "captions": ["c.jsonl", 1], "score_thresh": 0.5}
    make_folder(tmp_path).check_settings(settings)
    assert json.loads((tmp_path / "settings.json").read_text()) == settings
    for rank in range(2):
        make_folder(tmp_path, rank, 2).check_settings(settings)
        with pytest.raises(
            ValueError, match="settings.json: expected score_thresh 0.5, with which this folder was begun, found 0.4"
        ):
            make_folder(tmp_path, rank, 2).check_settings({**settings, "score_thresh": 0.4})
    with pytest.raises(ValueError, match="expected more None, .* found 1"):
        make_folder(tmp_path).check_settings({**settings, "more": 1})
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match="settings.json: expected a JSON object, found list"):
        make_folder(tmp_path).check_settings(settings)


def test_other_processes_wait_for_the_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_box_folder, "_POLL_SECONDS", 0.01)
    second = make_folder(tmp_path, 1, 2)
    with pytest.raises(ValueError, match="from the process of rank 0 within 0 seconds, found none"):
        second.check_settings({}, timeout=0.02)
    timer = threading.Timer(0.05, make_folder(tmp_path, 0, 2).check_settings, [{"a": 1}])
    timer.start()
    with pytest.raises(ValueError, match="expected a 1, .* found 2"):
        second.check_settings({"a": 2}, timeout=30)
    timer.join()


def test_waiting_ends_when_the_shards_of_all_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_box_folder, "_POLL_SECONDS", 0.01)
    folder = make_folder(tmp_path)
    for number in range(4):
        finish(folder, number)
    timer = threading.Timer(0.05, finish, [folder, 4])
    timer.start()
    finished = []
    folder.wait(finished.append)
    timer.join()
    assert finished[0] == 4 and sum(finished) == 5 and folder.unfinished() == []


def test_the_report_sums_up_the_counts_of_all_shards(tmp_path):
    folder = make_folder(tmp_path, num_shards=2)
    first = {"samples": 4, "images": 3, "images_without_box": 1, "phrases_found": 7, "phrases_kept": 2, "boxes": 5}
    first["answer_boxes"] = 3
    finish(folder, 0, **first, seconds=1.26, skipped={"no image": ["a"]})
    second = {"samples": 20, "images": 1, "phrases_found": 1, "phrases_kept": 1, "boxes": 1, "seconds": 1.0}
    second |= {"phrases_past_token_limit": 3, "phrases_without_tokens": 2, "answer_boxes": 1}
    finish(folder, 1, **second, skipped={"no image": [f"b{i}" for i in range(15)], "no caption": ["ü"]})
    report = folder.write_report({"teacher": "t"})
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report == {
        **{"shards": 2, "samples": 24, "images": 4, "images_without_box": 1, "phrases_found": 8, "phrases_kept": 3},
        **{"phrases_past_token_limit": 3, "phrases_without_tokens": 2, "boxes": 6, "answer_boxes": 4},
        "boxes_per_image": 1.5,
        **{"seconds": 2.3, "settings": {"teacher": "t"}},
        "skipped": {
            "no image": {"count": 16, "first": ["a", *(f"b{i}" for i in range(9))]},
            "no caption": {"count": 1, "first": ["ü"]},
        },
    }
    lines = "\n".join(format_report(report))
    assert "samples: 24 in 2 shards" in lines and "without a box 1" in lines
    assert "found 8, kept 3 (37.5%), past the token limit 3, without tokens 2" in lines
    assert "boxes: 6, 1.5 per image, of answers 4\n" in lines
    assert "skipped, no image: 16 (a, b0, b1, b2, b3, b4, b5, b6, b7, b8, ...)\nskipped, no caption: 1 (ü)" in lines


def test_nothing_gives_a_report_of_zeros():
    report = summarize([])
    assert report["shards"] == report["images"] == report["boxes_per_image"] == 0
    assert format_report(report)[0] == "samples: 0 in 0 shards"
    assert format_report(report)[-1] == "boxes: 0, 0.0 per image"


@pytest.mark.parametrize("content", ['{"samples": 1}', "{", "[]"])
def test_damaged_counts_are_named(tmp_path, content):
    folder = make_folder(tmp_path, num_shards=1)
    folder.counts(0).write_text(content)
    with pytest.raises(ValueError, match="counts/000000.json: "):
        folder.write_report({})
