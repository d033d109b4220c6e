import json

import pytest
from prepare_phrasecut import main


@pytest.fixture
def release(tmp_path):
    """Two splits of three images; Visual Genome's folders have two of them and one other."""
    folder = tmp_path / "VGPhraseCut_v0"
    folder.mkdir()
    tasks = {
        "train": [{"image_id": 1}, {"image_id": 2}, {"image_id": 1}, {"image_id": "1"}, 7],
        "val": [{"image_id": 3}],
    }
    for split, content in tasks.items():
        (folder / f"refer_{split}.json").write_text(json.dumps(content))
    (folder / "image_data_split.json").write_text("[]")
    for name, images in (("VG_100K", (1, 8)), ("VG_100K_2", (2,))):
        (tmp_path / name).mkdir()
        for image in images:
            (tmp_path / name / f"{image}.jpg").write_bytes(b"image %d" % image)
    return tmp_path


def run(release, *options):
    main(
        [
            *("--annotations", str(release / "VGPhraseCut_v0"), "--output", str(release / "phrasecut")),
            *("--images", str(release / "VG_100K"), str(release / "VG_100K_2"), *options),
        ]
    )


@pytest.mark.parametrize("options", [(), ("--copy",)])
def test_the_images_that_are_needed_are_put_beside_the_annotations(release, capsys, options):
    run(release, *options)
    images = release / "phrasecut" / "images"
    assert sorted(path.name for path in images.iterdir()) == ["1.jpg", "2.jpg"]
    assert (images / "2.jpg").read_bytes() == b"image 2"
    assert (images / "2.jpg").is_symlink() == (not options)
    assert sorted(path.name for path in (release / "phrasecut").iterdir()) == [
        *("image_data_split.json", "images", "refer_train.json", "refer_val.json")
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("refer_train.json: 3 phrases of 2 images")
    assert lines[1].endswith("refer_val.json: 1 phrase of 1 image, 1 of them missing (3.jpg)")


def test_a_second_run_adds_what_is_new_and_keeps_what_is_there(release, capsys):
    images = release / "phrasecut" / "images"
    images.mkdir(parents=True)
    (images / "1.jpg").write_bytes(b"mine")
    (images / "2.jpg").symlink_to(release / "gone.jpg")
    run(release)
    assert (images / "1.jpg").read_bytes() == b"mine" and (images / "2.jpg").read_bytes() == b"image 2"
    (release / "VG_100K" / "3.jpg").write_bytes(b"late")
    run(release)
    assert (images / "3.jpg").read_bytes() == b"late" and "missing" not in capsys.readouterr().out.splitlines()[-1]


def test_annotations_that_changed_are_written_anew_and_those_in_place_stay(release):
    run(release)
    (release / "VGPhraseCut_v0" / "refer_val.json").write_text('[{"image_id": 2}]')
    run(release)
    assert json.loads((release / "phrasecut" / "refer_val.json").read_text()) == [{"image_id": 2}]
    own = release / "phrasecut"
    main(["--annotations", str(own), "--images", str(release / "VG_100K"), "--output", str(own)])
    assert json.loads((own / "refer_val.json").read_text()) == [{"image_id": 2}]


def test_a_link_is_absolute(release, monkeypatch):
    monkeypatch.chdir(release)
    main(["--annotations", "VGPhraseCut_v0", "--images", "VG_100K", "--output", "phrasecut"])
    assert (release / "phrasecut" / "images" / "1.jpg").read_bytes() == b"image 1"


def test_several_missing_images_are_counted_and_the_first_named(release, capsys):
    tasks = [{"image_id": image} for image in (1, 9, 7, 6, 5)]
    (release / "VGPhraseCut_v0" / "refer_val.json").write_text(json.dumps(tasks))
    run(release)
    assert "5 images, 4 of them missing (5.jpg, 6.jpg, 7.jpg, ...)" in capsys.readouterr().out


def change(release, name, content):
    (release / "VGPhraseCut_v0" / name).write_text(content)


def remove_splits(release):
    for file in (release / "VGPhraseCut_v0").glob("refer_*.json"):
        file.unlink()


FAILURES = {
    "no split": (remove_splits, "expected refer_train.json, .*found none"),
    "no json": (lambda release: change(release, "refer_val.json", "{"), "refer_val.json: expected json, found none"),
    "no list": (
        lambda release: change(release, "refer_val.json", "{}"),
        "expected a list of tasks with an image_id",
    ),
    "no task": (
        lambda release: change(release, "refer_val.json", "[3]"),
        "expected a list of tasks with an image_id",
    ),
    "no sizes": (lambda release: (release / "VGPhraseCut_v0" / "image_data_split.json").unlink(), "image_data_split"),
    "no folder": (
        lambda release: (release / "VG_100K").rename(release / "other"),
        "VG_100K: expected a folder",
    ),
    "no image": (lambda release: [path.unlink() for path in release.glob("VG*/*.jpg")], "found none of the 3 images"),
}


@pytest.mark.parametrize("spoil, message", FAILURES.values(), ids=FAILURES)
def test_what_is_not_there_ends_in_one_line(release, spoil, message):
    spoil(release)
    with pytest.raises(SystemExit, match=f"error: .*{message}") as raised:
        run(release)
    assert "\n" not in str(raised.value)


def test_the_default_output_is_below_the_root(release, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(release / "root"))
    main(["--annotations", str(release / "VGPhraseCut_v0"), "--images", str(release / "VG_100K")])
    assert (release / "root" / "phrasecut" / "images" / "1.jpg").is_file()
