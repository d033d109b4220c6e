import json

import pytest
from prepare_captions import list_captions, main


def image(name, split="train", captions=("A dog. ",), **fields) -> dict:
    sentences = [{"raw": caption} for caption in captions]
    return {"filename": name, "filepath": "val2014", "split": split, "sentences": sentences, **fields}


def test_every_caption_of_the_splits_is_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "karpathy"
    folder.mkdir()
    images = [image("1.jpg", captions=["A dog. ", "Ein Häschen"]), image("2.jpg", "val"), image("3.jpg", "restval")]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    main([])
    lines = (folder / "captions_coco.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"filename": "val2014/1.jpg", "caption": "A dog."},
        {"filename": "val2014/1.jpg", "caption": "Ein Häschen"},
        {"filename": "val2014/3.jpg", "caption": "A dog."},
    ]
    assert capsys.readouterr().out.endswith("captions_coco.jsonl: 3 captions\n")
    main(["--splits", "val", "--output", str(tmp_path / "own.jsonl")])
    assert len((tmp_path / "own.jsonl").read_text().splitlines()) == 1


def test_images_may_have_no_folder():
    own = image("1.jpg")
    del own["filepath"]
    assert list_captions({"images": [own]}, "x", ["train"]) == [{"filename": "1.jpg", "caption": "A dog."}]


BAD = {
    "no json": ("{", "Expecting"),
    "list": ("[]", "images: expected a list.*found None"),
    "image": ('{"images": [7]}', r"images\[0\]: expected an object.*found 7"),
    "name": ('{"images": [{"split": "train"}]}', r"images\[0\]: filename: expected a string.*found None"),
    "sentences": ('{"images": [{"split": "train", "filename": "a"}]}', r"sentences: expected a list.*found None"),
    "sentence": (
        '{"images": [{"split": "train", "filename": "a", "sentences": [1]}]}',
        "expected objects with raw",
    ),
    "raw": (
        '{"images": [{"split": "train", "filename": "a", "sentences": [{}]}]}',
        "raw: expected a string",
    ),
    "none": ('{"images": []}', "found no caption of the splits train, restval"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_other_files_are_named_in_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit, match=f"error: .*a.json: .*{message}") as raised:
        main([str(tmp_path / "a.json"), "--output", str(tmp_path / "out.jsonl")])
    assert "\n" not in str(raised.value) and not (tmp_path / "out.jsonl").exists()
