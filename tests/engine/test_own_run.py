from pathlib import Path

import pytest
from own_set_writers import Photo, write_coco

from glipv2_d2.config_files import get_config_file
from glipv2_d2.engine.own_run import Start, check_output, clear_output, find_start, plan_run, prediction_command
from glipv2_d2.errors import InputError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return path


def test_folder_of_another_run_is_refused(tmp_path):
    check_output(tmp_path / "new", resume=False, overwrite=False)
    touch(tmp_path / "old" / "config.yaml")
    with pytest.raises(InputError, match=r"found a run \(config.yaml\); go on with it by --resume"):
        check_output(tmp_path / "old", resume=False, overwrite=False)
    check_output(tmp_path / "old", resume=True, overwrite=False)
    check_output(tmp_path / "old", resume=False, overwrite=True)
    with pytest.raises(InputError, match="--resume: expected a run"):
        check_output(tmp_path / "new", resume=True, overwrite=False)


def test_a_file_is_no_folder_of_a_run(tmp_path):
    file = touch(tmp_path / "photos.json")
    for folder in (file, file / "run"):
        with pytest.raises(NotADirectoryError, match="--output: expected a folder, found a file at .*photos.json"):
            check_output(folder, resume=False, overwrite=False)


def test_weights_that_would_be_replaced_are_refused(tmp_path):
    weights = touch(tmp_path / "old" / "model_best.pth")
    with pytest.raises(InputError, match="--weights: expected a file outside of --output"):
        check_output(tmp_path / "old", resume=False, overwrite=True, weights=str(weights))
    check_output(tmp_path / "new", resume=False, overwrite=True, weights=str(weights))


def test_files_of_the_person_stay_when_a_run_is_replaced(tmp_path):
    own = ("model_0000009.pth", "model_best.pth", "tuned_best.safetensors", "last_checkpoint", "metrics.json")
    for name in (*own, "notes.txt", "mine.pth"):
        touch(tmp_path / name)
    clear_output(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "mine.pth"}


def test_start_is_what_is_named_then_what_lies_at_home_then_the_encoders(tmp_path):
    named = str(touch(tmp_path / "mine" / "model_best.pth"))
    start = find_start("", "", tmp_path)
    assert (start.weights, Path(start.config_file).name) == ("", "glipv2_micro.yaml")
    assert "pretrained encoders" in start.reason
    home = touch(tmp_path / "output" / "demo" / "run" / "model_final.pth")
    config = touch(home.parent / "config.yaml")
    assert find_start("", "", tmp_path)[:2] == (str(home), str(config))
    words = touch(tmp_path / "output" / "words" / "run" / "model_final.pth")
    assert find_start("", "", tmp_path).reason == f"{words}, which `make words` made"
    # Weights without a config beside them are those of a GLIP-T.
    start = find_start(named, "", tmp_path)
    assert (start.weights, Path(start.config_file).name) == (named, "custom_swin_t.yaml")
    config = touch(tmp_path / "mine" / "config.yaml")
    assert find_start(named, "", tmp_path)[:2] == (named, str(config))
    # Another model has no use for the weights at home.
    assert find_start("", "other.yaml", tmp_path)[:2] == ("", "other.yaml")
    assert find_start(named, "other.yaml", tmp_path)[:2] == (named, "other.yaml")


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--weights: expected a file of weights, found none at nowhere.pth"):
        find_start("nowhere.pth", "", tmp_path)


def test_a_name_with_a_comma_is_not_split_by_the_next_command():
    command = prediction_command("my photos", Path("out"), 0.256, ["cup", "red cup"])
    assert command == "glipv2 predict 'my photos' --model out --threshold 0.26 --names 'cup,red cup'"
    for other in ("cup, red", "cup . red"):
        assert "--names" not in prediction_command("photos", Path("out"), 0.5, ["cup", other])
    assert "--names 'cup,no. 7'" in prediction_command("photos", Path("out"), 0.5, ["cup", "no. 7"])
    command = prediction_command("photos", Path("out"), 0.5, ["cup", "cup, red"])
    assert command == "glipv2 predict photos --model out --threshold 0.50"


@pytest.mark.parametrize(("words", "number"), [("{}", "-1"), ("bottle of sparkling water with taste {}", "40")])
def test_few_names_that_are_too_long_for_one_prompt_are_drawn(tmp_path, words, number):
    """50 names of 7 tokens and a separator are 400 tokens; a prompt has 254."""
    names = [words.format(one) for one in map(str, range(50))]
    photos = [Photo(f"{row}.png", 50, 40, [(name, 1, 2, 31, 32)]) for row, name in enumerate(names)]
    data = write_coco(tmp_path / "set", {"train": photos, "val": photos[:2]}, names)
    start = Start("", get_config_file("glipv2_micro"), "none")
    options = plan_run(str(data), tmp_path / "run", start, epochs=1).options
    assert options[options.index("INPUT.PROMPT.NUM_NEGATIVES") + 1] == number
