import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import cv2
import numpy as np
import pseudo_box_folder
import pytest
import torch

from glipv2_d2.engine.pseudo_boxes import PseudoBoxTeacher
from glipv2_d2.engine.shard_writer import open_shard

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(load_tool):
    return load_tool("generate_pseudo_boxes")


@pytest.fixture
def fixed_teacher(tool, monkeypatch, tiny_cfg):
    """Replace the detector by one that finds every phrase in the whole image; return the captions it was asked."""
    asked = []

    class FixedTeacher(PseudoBoxTeacher):
        def __init__(self, cfg, finder, score_thresh):
            from glipv2_d2 import PromptTokenizer

            self.finder, self.score_thresh = finder, score_thresh
            self.tokenizer = PromptTokenizer.from_config(cfg)

        def find_regions(self, images, captions):
            asked.extend(" | ".join(caption.prompt.phrases) for caption in captions)
            return [
                [
                    {"bbox": [0.0, 0.0, *map(float, image.shape[1::-1])], "phrase": phrase, "score": 0.9,
                     "tokens_positive": [list(span) for span in spans]}
                    for phrase, spans in zip(caption.prompt.phrases, caption.spans)
                ]
                for image, caption in zip(images, captions)
            ]  # fmt: skip

    monkeypatch.setattr(tool, "PseudoBoxTeacher", FixedTeacher)
    monkeypatch.setattr(pseudo_box_folder, "_POLL_SECONDS", 0.01)
    return asked


@pytest.fixture
def inputs(tmp_path, config):
    """Five images with captions, and the arguments that read them."""
    images = tmp_path / "images"
    images.mkdir()
    captions = tmp_path / "captions.jsonl"
    with open(captions, "w") as file:
        for i in range(5):
            cv2.imwrite(str(images / f"{i}.png"), np.full((20, 30 + i, 3), 100, np.uint8))
            file.write(json.dumps({"filename": f"{i}.png", "caption": f"a dog and {i} cats"}) + "\n")
    (tmp_path / "teacher.pth").write_bytes(b"abc")
    arguments = ["--config-file", config, "--weights", str(tmp_path / "teacher.pth"), "--image-root", str(images)]
    return [*arguments, "--captions", str(captions), "--output", str(tmp_path / "out"), "--noun-phrases", "rules"]


def replace(arguments, flag, value):
    place = arguments.index(flag)
    return [*arguments[: place + 1], str(value), *arguments[place + 2 :]]


def without(arguments, flag):
    place = arguments.index(flag)
    return [*arguments[:place], *arguments[place + 2 :]]


def read_records(folder):
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def read_report(folder):
    return json.loads((folder / "report.json").read_text())


def write_caption_tar(path, keys, image=None):
    image = image or cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
    with open_shard(path) as writer:
        for key in keys:
            writer.write({"caption": f"a dog and {key} cats"}, str(key), image, "jpg")
    return image


def test_captions_become_grounding_records_and_a_report(tool, fixed_teacher, inputs, tmp_path, capsys):
    tool.main([*inputs, "--shard-size", "2", "--batch-size", "2"])
    folder = tmp_path / "out"
    assert sorted(file.name for file in folder.iterdir()) == [
        *("counts", "pseudo-000000.jsonl", "pseudo-000001.jsonl", "pseudo-000002.jsonl", "report.json"),
        "settings.json",
    ]
    records = read_records(folder)
    assert [record["filename"] for record in records] == [f"{i}.png" for i in range(5)]
    assert records[3] == {
        "filename": "3.png",
        "height": 20,
        "width": 33,
        "grounding": {
            "caption": "a dog and 3 cats",
            "regions": [
                {"bbox": [0, 0, 33, 20], "phrase": "a dog", "tokens_positive": [[0, 5]], "score": 0.9},
                {"bbox": [0, 0, 33, 20], "phrase": "3 cats", "tokens_positive": [[10, 16]], "score": 0.9},
            ],
        },
        "teacher": "config-ba7816bf8f01",
    }
    report = read_report(folder)
    assert (report["samples"], report["images"], report["boxes"], report["boxes_per_image"]) == (5, 5, 10, 2.0)
    assert (report["phrases_found"], report["phrases_kept"], report["shards"]) == (10, 10, 3)
    assert report["settings"]["noun_phrases"] == "rules 2" and report["settings"]["score_thresh"] == 0.5
    printed = capsys.readouterr().out
    assert "samples: 5 in 3 shards" in printed and "report.json" in printed


def test_a_killed_run_goes_on_where_it_stopped(tool, fixed_teacher, inputs, tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def kill_at_the_second(writer_path, opened=[]):  # noqa: B006
        opened.append(writer_path)
        if len(opened) == 2:
            raise KeyboardInterrupt
        return open_shard(writer_path)

    with monkeypatch.context() as patch:
        patch.setattr(tool, "open_shard", kill_at_the_second)
        with pytest.raises(SystemExit, match="^130$"):
            tool.main([*inputs, "--shard-size", "2"])
    assert len(fixed_teacher) == 2 and not (folder / "report.json").exists()
    before = (folder / "pseudo-000000.jsonl").stat()
    tool.main([*inputs, "--shard-size", "2"])
    assert fixed_teacher == [f"a dog | {i} cats" for i in range(5)]
    assert (folder / "pseudo-000000.jsonl").stat().st_ino == before.st_ino
    assert len(read_records(folder)) == read_report(folder)["boxes"] / 2 == 5
    # A finished run makes no teacher and writes the report again.
    (folder / "report.json").unlink()
    monkeypatch.setattr(tool, "PseudoBoxTeacher", None)
    tool.main([*inputs, "--shard-size", "2"])
    assert read_report(folder)["samples"] == 5


def test_processes_share_the_shards_and_the_first_reports_on_all(tool, fixed_teacher, inputs, tmp_path):
    tool.main([*replace(inputs, "--output", tmp_path / "alone"), "--shard-size", "2"])
    arguments = [tool.parse_arguments([*inputs, "--shard-size", "2"]) for _ in range(2)]
    reports = {}
    threads = [
        threading.Thread(target=lambda rank=rank: reports.update({rank: tool.run(arguments[rank], rank, 2)}))
        for rank in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports[1] is None and reports[0] == read_report(tmp_path / "out")
    one, two = read_report(tmp_path / "alone"), reports[0]
    assert {**one, "seconds": 0} == {**two, "seconds": 0} and one["images"] == 5
    assert read_records(tmp_path / "alone") == read_records(tmp_path / "out")


def test_tar_shards_become_tar_shards(tool, fixed_teacher, inputs, tmp_path):
    for shard in range(2):
        image = write_caption_tar(tmp_path / f"c-{shard}.tar", [10 * shard, 10 * shard + 1])
    content = (tmp_path / "c-1.tar").read_bytes()
    (tmp_path / "c-1.tar").write_bytes(content[: len(content) // 10])
    tool.main(replace(inputs, "--captions", tmp_path / "c-{0..1}.tar"))
    with tarfile.open(tmp_path / "out" / "pseudo-000000.tar") as tar:
        assert tar.getnames() == ["0.jpg", "0.json", "1.jpg", "1.json"]
        assert tar.extractfile("1.jpg").read() == image
        record = json.load(tar.extractfile("1.json"))
    assert record["grounding"]["caption"] == "a dog and 1 cats" and record["filename"] == "1.jpg"
    assert (record["height"], record["width"]) == (20, 30)
    report = read_report(tmp_path / "out")
    assert report["shards"] == 2 and report["skipped"]["rest of a damaged tar shard"]["count"] == 1


def test_files_become_tar_shards_on_request(tool, fixed_teacher, inputs, tmp_path):
    tool.main([*inputs, "--format", "shards"])
    with tarfile.open(tmp_path / "out" / "pseudo-000000.tar") as tar:
        assert tar.getnames()[:4] == ["000000000.png", "000000000.json", "000000001.png", "000000001.json"]
        assert tar.extractfile("000000001.png").read() == (tmp_path / "images" / "1.png").read_bytes()


def test_bad_entries_are_skipped_counted_and_named(tool, fixed_teacher, inputs, tmp_path, capsys):
    captions = tmp_path / "captions.jsonl"
    with open(captions, "a") as file:
        for filename, caption in (("none.png", "a dog"), ("0.png", "of the"), ("0.png", "a dog, " * 1428)):
            file.write(json.dumps({"filename": filename, "caption": caption}) + "\n")
        file.write("{\n")
    (tmp_path / "images" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    tool.main(inputs)
    report = read_report(tmp_path / "out")
    assert report["skipped"] == {
        "image that is broken": {"count": 1, "first": ["line 3: '2.png'"]},
        "image file that is missing": {"count": 1, "first": ["line 6: 'none.png'"]},
        "caption without a noun phrase": {"count": 1, "first": ["line 7: '0.png'"]},
        "line that is not a JSON object": {"count": 1, "first": ["line 9"]},
    }
    assert report["samples"] == 9 and report["images"] == 5 and report["phrases_past_token_limit"] == 1343
    assert "skipped, image file that is missing: 1 (line 6: 'none.png')" in capsys.readouterr().out


@pytest.fixture
def question_inputs(inputs, tmp_path):
    """Questions about the five images in jsonl, and the arguments that read them."""
    lines = [
        {"filename": f"{i}.png", "question": "What is the dog holding?", "answer": answer, "question_id": 10 + i}
        for i, answer in enumerate(["a ball", "yes", "stick", "red", "2 bones"])
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [*without(inputs, "--captions"), "--source", "vqa", "--questions", str(path)]


def test_questions_become_records_with_boxes_of_the_answer(tool, fixed_teacher, question_inputs, tmp_path, capsys):
    tool.main([*question_inputs, "--shard-size", "2"])
    assert fixed_teacher == ["the dog | a ball", "the dog", "the dog | stick", "the dog", "the dog | 2 bones"]
    records = read_records(tmp_path / "out")
    assert [record["question_id"] for record in records] == [10, 11, 12, 13, 14]
    # This teacher finds everything in the whole image, so that the box of the answer is that of the dog.
    box = {"bbox": [0, 0, 30, 20], "phrase": "the dog", "tokens_positive": [[8, 15]], "score": 0.9}
    assert records[0] == {
        "filename": "0.png",
        "height": 20,
        "width": 30,
        "question_id": 10,
        "question": "What is the dog holding?",
        "answer": "a ball",
        "regions": [{**box, "answer_box": True}],
        "teacher": "config-ba7816bf8f01",
    }
    assert records[1]["regions"] == [{**box, "bbox": [0, 0, 31, 20]}]
    report = read_report(tmp_path / "out")
    assert (report["samples"], report["images"], report["shards"]) == (5, 5, 3)
    assert (report["phrases_found"], report["phrases_kept"], report["boxes"], report["answer_boxes"]) == (8, 8, 5, 3)
    assert report["settings"]["source"] == "vqa"
    assert "boxes: 5, 1.0 per image, of answers 3" in capsys.readouterr().out


def test_a_killed_run_over_questions_goes_on_where_it_stopped(tool, fixed_teacher, question_inputs, tmp_path):
    tool.main([*question_inputs, "--shard-size", "2"])
    folder = tmp_path / "out"
    whole = [file.read_bytes() for file in sorted(folder.glob("*.jsonl"))]
    # As after the end of a process: the second shard is written, its counts are not.
    for lost in (folder / "report.json", folder / "counts" / "000001.json"):
        lost.unlink()
    (folder / "pseudo-000001.jsonl").write_text("half")
    tool.main([*question_inputs, "--shard-size", "2"])
    assert len(fixed_teacher) == 5 + 2
    assert [file.read_bytes() for file in sorted(folder.glob("*.jsonl"))] == whole
    assert read_report(folder)["samples"] == 5


def test_questions_of_vqav2_are_read_from_two_files(tool, fixed_teacher, question_inputs, tmp_path):
    questions = [{"question_id": 50 + i, "image_id": i, "question": "Where is the dog?"} for i in range(3)]
    answers = [{"question_id": 50 + i, "multiple_choice_answer": f"on {i + 2} chairs"} for i in range(2)]
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30 + i} for i in range(3)]
    for name, entries in (("questions", questions), ("annotations", answers), ("images", images)):
        (tmp_path / f"{name}.json").write_text(json.dumps({name: entries}))
    arguments = replace(question_inputs, "--questions", tmp_path / "questions.json")
    arguments += ["--annotations", str(tmp_path / "annotations.json"), "--images-file", str(tmp_path / "images.json")]
    tool.main([*arguments, "--shard-size", "2"])
    records = read_records(tmp_path / "out")
    assert [(record["question_id"], record["filename"]) for record in records] == [(50, "0.png"), (51, "1.png")]
    assert records[1]["answer"] == "on 3 chairs"
    report = read_report(tmp_path / "out")
    assert report["skipped"] == {"no answer": {"count": 1, "first": ["questions[2]"]}} and report["shards"] == 2
    # Any of the three files decides on the content.
    (tmp_path / "images.json").write_text(json.dumps({"images": images[:2]}))
    with pytest.raises(SystemExit, match="expected input_bytes .*, with which this folder was begun"):
        tool.main([*arguments, "--shard-size", "2"])


@pytest.mark.parametrize(
    "source, change, message",
    [
        ("caption", ["--score-thresh", "1.5"], "--score-thresh: expected a number from 0 to 1, found 1.5"),
        ("caption", ["--score-thresh", "nan"], "--score-thresh: expected a number from 0 to 1, found nan"),
        ("caption", ["--shard-size", "0"], "--shard-size: expected at least 1, found 0"),
        ("caption", ["--batch-size", "0"], "--batch-size: expected at least 1, found 0"),
        ("caption", ["--captions", "/missing.jsonl"], "captions: there is no file /missing.jsonl"),
        (
            "caption",
            ["--weights", "/missing.pth"],
            "--weights: expected the weights of a teacher, found no file /missing.pth",
        ),
        (
            "caption",
            ["--image-root", "/missing"],
            "--image-root: expected the images of the input in /missing, found none of",
        ),
        (
            "caption",
            ["--captions", "TAR", "--shard-size", "5"],
            "--shard-size: expected none, since each tar shard becomes one shard",
        ),
        (
            "caption",
            ["--captions", "TAR", "--format", "jsonl"],
            "--format: expected shards, since images in tar shards have no file",
        ),
        ("caption", ["SEED"], "KEY VALUE"),
        ("none", [], "--source caption: expected --captions and no input of another source, found none"),
        (
            "vqa",
            ["--captions", "a.jsonl"],
            "--source vqa: expected --questions and no input of another source, found --ca",
        ),
        ("vqa", ["--source", "caption"], "--source caption: expected --captions and no input of another source, found"),
        ("vqa", ["--format", "shards"], "--format: expected jsonl, since questions are read from jsonl only"),
        ("vqa", ["--images-file", __file__], "--images-file: expected none with jsonl"),
        ("vqa", ["--questions", "/missing.jsonl"], "questions: there is no file /missing.jsonl"),
        (
            "vqa",
            ["--image-root", "/missing"],
            "--image-root: expected the images of the input in /missing, found none of",
        ),
        ("vqa", ["--shard-size", "0"], "--shard-size: expected at least 1, found 0"),
    ],
)
def test_wrong_arguments_end_in_one_line_without_a_shard(
    tool, fixed_teacher, inputs, question_inputs, tmp_path, source, change, message
):
    write_caption_tar(tmp_path / "c.tar", [1])
    arguments = {"caption": inputs, "vqa": question_inputs, "none": without(inputs, "--captions")}[source]
    change = [str(tmp_path / "c.tar") if word == "TAR" else word for word in change]
    with pytest.raises(SystemExit) as exit_info:
        tool.main([*arguments, *change])
    assert message in exit_info.value.code and "\n" not in exit_info.value.code
    assert not list((tmp_path / "out").glob("pseudo-*"))


@pytest.mark.parametrize(
    "change, key",
    [
        (["--score-thresh", "0.4"], "score_thresh 0.5, .*, found 0.4"),
        (["--shard-size", "3"], "shard_size 2, .*, found 3"),
        (["--format", "shards"], "format 'jsonl', .*, found 'shards'"),
        (["TEST.DETECTIONS_PER_IMAGE", "7"], "config "),
    ],
)
def test_a_folder_is_not_continued_with_other_settings(tool, fixed_teacher, inputs, tmp_path, change, key):
    tool.main([*inputs, "--shard-size", "2"])
    with pytest.raises(SystemExit, match=f"error: .*settings.json: expected {key}"):
        tool.main([*inputs, "--shard-size", "2", *change])
    # What changes nothing in the boxes may change.
    tool.main([*inputs, "--shard-size", "2", "--batch-size", "1", "DATALOADER.NUM_WORKERS", "2"])
    with open(tmp_path / "captions.jsonl", "a") as file:
        file.write('{"filename": "1.png", "caption": "a"}\n')
    with pytest.raises(SystemExit, match="expected input_bytes .*, with which this folder was begun"):
        tool.main([*inputs, "--shard-size", "2"])


def test_a_few_missing_images_are_no_wrong_folder(tool, fixed_teacher, inputs, tmp_path):
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    captions = tmp_path / "captions.jsonl"
    captions.write_text(captions.read_text() + '{"filename": "a.png", "caption": "of"}\n' * 5)
    tool.main(inputs)
    assert read_report(tmp_path / "out")["images"] == 0
    tool.main([*replace(inputs, "--output", tmp_path / "threads"), "DATALOADER.NUM_WORKERS", "2"])
    assert read_report(tmp_path / "threads")["skipped"]["image file that is missing"]["count"] == 5


@pytest.mark.parametrize("source", ["caption", "vqa"])
def test_a_real_teacher_labels_captions_and_questions(tool, inputs, question_inputs, tmp_path, tiny_cfg, source):
    torch.manual_seed(0)
    torch.save({"model": PseudoBoxTeacher(tiny_cfg, None, 0.0).model.state_dict()}, tmp_path / "teacher.pth")
    arguments = inputs if source == "caption" else question_inputs
    tool.main([*arguments, "--score-thresh", "0.01", "MODEL.GLIPV2.TEST.SCORE_THRESH", "0.001"])
    records, report = read_records(tmp_path / "out"), read_report(tmp_path / "out")
    assert len(records) == 5 == report["images"]
    found = []
    for record in records:
        text = record["question"] if source == "vqa" else record["grounding"]["caption"]
        for region in record["regions"] if source == "vqa" else record["grounding"]["regions"]:
            found.append(region)
            assert 0.01 <= region["score"] <= 1
            assert "answer_box" in region or len(region["tokens_positive"]) == 1
            for begin, end in region.get("tokens_positive", []):
                assert text[begin:end] == region["phrase"]
    assert len(found) == report["boxes"] > 0
    assert any("answer_box" in region for region in found) == (source == "vqa")


@pytest.mark.parametrize(("gpus", "expected"), [(1, 0), (4, 3)])
def test_a_process_takes_its_own_gpu_of_those_that_it_sees(tool, inputs, monkeypatch, gpus, expected):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(tool, "run", lambda *_: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    tool.main(inputs)
    assert taken == [expected]


@pytest.mark.slow
def test_two_processes_of_torchrun_label_captions(inputs, tmp_path, tiny_cfg):
    torch.save({"model": PseudoBoxTeacher(tiny_cfg, None, 0.0).model.state_dict()}, tmp_path / "teacher.pth")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += [str(ROOT / "tools" / "generate_pseudo_boxes.py"), *inputs, "--shard-size", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["--score-thresh", "0.01"]
    subprocess.run([*command, "MODEL.GLIPV2.TEST.SCORE_THRESH", "0.001"], check=True, env=environment, timeout=900)
    report = read_report(tmp_path / "out")
    assert report["shards"] == 5 and report["images"] == 5 and len(read_records(tmp_path / "out")) == 5
