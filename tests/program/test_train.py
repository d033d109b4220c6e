"""``glipv2 train --data`` from end to end, with the tiny model on four drawn images."""

import errno
import json
import multiprocessing
import re
import shlex
import time
from pathlib import Path

import cv2
import pytest
import yaml
from drawn_images import draw_dataset
from own_set_writers import Photo, write_coco, write_voc, write_yolo
from torch.multiprocessing import ProcessExitedException
from training_runs import assert_same, load

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.engine import launch
from glipv2_d2.engine.own_run import find_start, own_datasets, plan_run
from glipv2_d2.engine.progress import ElapsedTime
from glipv2_d2.engine.trainer import GLIPv2Trainer
from glipv2_d2.errors import InputError
from glipv2_d2.folders import lock_folder
from glipv2_d2.program.main import main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

FORK = multiprocessing.get_context("fork")


class Killed(BaseException):
    """What ends a process at once."""


@pytest.fixture
def words(tiny_cfg, tmp_path, monkeypatch):
    """The words of a run of ten updates, without ``--output``."""
    (tmp_path / "photos").mkdir()
    draw_dataset(tmp_path / "photos")
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_cfg.dump())
    monkeypatch.chdir(tmp_path)
    return ["train", "--data", "photos", "--epochs", "10", "--config-file", str(config)]


def kill_at(monkeypatch, update, error=Killed):
    """End every run before this update, by default without any clean-up of the program."""
    whole = GLIPv2Trainer.before_step

    def before_step(self):
        if self.iter == update:
            raise error
        whole(self)

    monkeypatch.setattr(GLIPv2Trainer, "before_step", before_step)


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_run_that_is_at_work_keeps_its_folder(words, tmp_path, flag):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("of another run")
    ready = FORK.Event()
    other = FORK.Process(target=hold, args=(ready,), daemon=True)
    other.start()
    assert ready.wait(60)
    data = words[:3] if flag == "--overwrite" else words[:1]
    with pytest.raises(SystemExit, match="error: --output: out: expected no other run, found another one, "):
        main([*data, "--output", "out", flag])
    other.kill()
    assert (tmp_path / "out" / "config.yaml").read_text() == "of another run"


def hold(ready):
    with lock_folder("out", "there", inherited=False):
        ready.set()
        time.sleep(600)


def test_run_leaves_weights_report_results_and_the_next_command(words, tmp_path, capsys):
    assert main([*words, "--output", "out"]) == 0
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"model_best.pth", "model_final.pth", "last_checkpoint", "config.yaml", "report", "results.json"} <= names
    assert {name for name in names if name.endswith(".pth")} == {"model_best.pth", "model_final.pth"}
    results = json.loads((out / "results.json").read_text())
    assert results.keys() == {"val", "minutes", "weights"} and {"AP", "AP50"} <= results["val"]["bbox"].keys()
    assert results["weights"].endswith("model_best.pth")
    text = capsys.readouterr().out
    assert text.startswith("reading photos, then training; all results go to out\n")
    assert "length: 10 updates of 4 images (10 epochs), an evaluation every 1" in text
    assert "after 9 of 10 updates: AP" in text
    assert re.search(r"evaluating \S*out/model_best.pth and drawing the report\n(.|\n)*\nnext: ", text)
    assert not [words for words in ("Saving checkpoint", "No weights to load", "csv format") if words in text]
    last = text.strip().splitlines()[-1]
    assert last.startswith("next: glipv2 predict photos --model out --threshold ")
    assert last.endswith(" --names 'blue box,green box,red box'")
    # It can be pasted.
    assert main(shlex.split(last.removeprefix("next: glipv2 "))) == 0
    assert len(list((tmp_path / "output" / "predictions").glob("?.png"))) == 4
    with pytest.raises(SystemExit, match="--output out: expected a new folder, found a run"):
        main([*words, "--output", "out"])


def test_killed_run_goes_on_and_ends_bit_for_bit_alike(words, tmp_path, monkeypatch):
    main([*words, "--output", "whole"])
    with monkeypatch.context() as patches:
        kill_at(patches, 3)
        patches.setattr(ElapsedTime, "state_dict", lambda self: {"minutes": 60.0})
        with pytest.raises(Killed):
            main([*words, "--output", "cut"])
    assert (tmp_path / "cut" / "model_best.pth").is_file() and (tmp_path / "cut" / "last_checkpoint").is_file()
    main(["train", "--output", "cut", "--resume"])
    for name in ("model_final.pth", "model_best.pth"):
        assert_same(load(tmp_path / "whole" / name)["model"], load(tmp_path / "cut" / name)["model"])
    whole, cut = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut"))
    assert whole["val"] == cut["val"]
    assert whole["minutes"] < 60 < cut["minutes"] < 120


def test_a_run_that_forgets_nothing_ends_with_weights_between(words, tiny_cfg, tmp_path, capsys):
    GLIPv2Checkpointer(GLIPv2Trainer.build_model(tiny_cfg), str(tmp_path)).save("base")
    keep = ["--keep", "--weights", "base.pth", "MODEL.GLIPV2.TUNING.KEEP.BY_NAME", "False"]
    keep += ["SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"]
    assert main([*words, "--output", "out", *keep]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["weights"].endswith("model_kept.pth") and 0 < load("out/model_kept.pth")["share"] <= 1
    text = capsys.readouterr()
    assert "the final weights, model_kept.pth: share" in text.out + text.err
    # A later run in the folder that begins with these weights keeps nothing unless it is asked to.
    plan = plan_run("photos", tmp_path / "next", find_start("out/model_kept.pth", "", tmp_path))
    assert as_dict(plan.options)["MODEL.GLIPV2.TUNING.KEEP.ENABLED"] == "False"
    with pytest.raises(SystemExit, match="--keep: expected weights that know other names, found none"):
        main([*words, "--output", "other", "--keep"])


def test_interrupted_run_says_how_it_goes_on(words, monkeypatch, capsys):
    kill_at(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--output", "my run"])
    assert exit_info.value.code == 130
    *_, first, second = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("stopped by Ctrl-C") and second == "go on by: glipv2 train --output 'my run' --resume"


@pytest.mark.slow
def test_equal_sets_in_three_formats_give_equal_weights(words, tmp_path):
    boxes = [("cat", 5, 5, 40, 50), ("red dog", 30, 20, 90, 60)]
    photos = [Photo(f"{stem}.png", 96, 64, boxes[: 1 + number % 2]) for number, stem in enumerate("abcde")]
    models = []
    for writer in (write_coco, write_voc, write_yolo):
        data = writer(tmp_path / writer.__name__, {"train": photos[:3], "val": photos[3:]}, ["cat", "red dog"])
        output = str(tmp_path / f"out_{writer.__name__}")
        main(["train", "--data", str(data), "--output", output, "--epochs", "4", *words[-2:]])
        models.append(load(f"{output}/model_final.pth")["model"])
    assert_same(models[0], models[1])
    assert_same(models[0], models[2])


def test_the_first_machine_plans_and_every_one_runs_the_config(words, tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(launch, "launch_run", lambda run, arguments: launched.append(arguments))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    machines = ["--output", "out", "--num-gpus", "3", "--num-machines", "2", "--dist-url", "tcp://first:1"]
    main([*words, *machines, "--machine-rank", "1"])
    assert not (tmp_path / "out").exists()
    main([*words, *machines])
    assert [(one.config_file, one.opts, one.machine_rank) for one in launched] == [
        ("out/config.yaml", [], 1),
        ("out/config.yaml", [], 0),
    ]
    # Six processes share a batch of six.
    assert "IMS_PER_BATCH: 6" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.slow
def test_two_processes_train_as_one_run(words, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main([*words, "--output", "out", "--num-gpus", "2"]) == 0
    out = tmp_path / "out"
    assert (out / "results.json").is_file() and (out / "report" / "classes.md").is_file()
    assert "process 1 of 2" in (out / "log.txt.rank1").read_text()


def test_minutes_become_updates_that_the_config_holds(words, tmp_path):
    """A hundredth of a second holds no evaluation, so the run has its least length; a year is cut to the epochs."""
    start = find_start("", words[-1], tmp_path)
    short = plan_run("photos", tmp_path / "short", start, minutes=1 / 6000)
    assert as_dict(short.options)["SOLVER.MAX_ITER"] == "10"
    assert re.search(r"0.000166667 minutes at .* s each; the least takes 0\.\d\)", " ".join(short.reasons))
    long = plan_run("photos", tmp_path / "long", start, minutes=500_000, epochs=80)
    # 3 images in batches of 4.
    assert as_dict(long.options)["SOLVER.MAX_ITER"] == "60" and "(80 epochs)" in " ".join(long.reasons)


def test_an_epoch_counts_the_images_of_all_batches_of_an_update(words, tmp_path):
    keys = ["SOLVER.ACCUMULATION_STEPS", "2"]
    plan = plan_run("photos", tmp_path / "run", find_start("", words[-1], tmp_path), epochs=80, options=keys)
    # 3 images in updates of two batches of 4.
    assert "length: 30 updates of 8 images (80 epochs), an evaluation every 3" in plan.reasons


@pytest.mark.parametrize("key", ["SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS"])
def test_updates_of_no_image_are_refused(words, tmp_path, key):
    with pytest.raises(InputError, match=f"{key}: expected at least 1, found 0"):
        plan_run("photos", tmp_path / "run", find_start("", words[-1], tmp_path), options=[key, "0"])


def test_keys_of_the_person_go_before_choices(words, tmp_path):
    plan = plan_run(
        "photos",
        tmp_path / "run",
        find_start("", words[-1], tmp_path),
        epochs=7,
        options=["SOLVER.MAX_ITER", "50", "SOLVER.EMA_DECAY", "0.5"],
    )
    keys = as_dict(plan.options)
    assert (keys["SOLVER.MAX_ITER"], keys["TEST.EVAL_PERIOD"], keys["SOLVER.EMA_DECAY"]) == ("50", "5", "0.5")
    assert plan.reasons[-1] == "changed by you: SOLVER.MAX_ITER 50 SOLVER.EMA_DECAY 0.5"


def test_the_period_that_is_said_is_that_of_the_person(words, tmp_path):
    start, keys = find_start("", words[-1], tmp_path), ["SOLVER.MAX_ITER", "50", "TEST.EVAL_PERIOD", "25"]
    plan = plan_run("photos", tmp_path / "run", start, options=keys)
    assert "length: 50 updates of 4 images (SOLVER.MAX_ITER), an evaluation every 25" in plan.reasons


def test_a_share_of_faults_that_is_allowed_lets_a_run_start(words, tmp_path):
    box = ("cat", 5, 5, 45, 35)
    write_voc(tmp_path / "faulty", {"train": [Photo("a.png", 50, 40, [box, *[("cat", 9, 9, 5, 5)] * 12])]}, ["cat"])
    write_voc(tmp_path / "more", {"train": [Photo("b.png", 50, 40, [box])]}, ["cat"])
    (tmp_path / "set.yaml").write_text("train: faulty\nval: more\n")
    start, keys = find_start("", words[-1], tmp_path), ["SOLVER.MAX_ITER", "10"]
    with pytest.raises(InputError, match="or raise DATASETS.MAX_FAULTY_SHARE"):
        plan_run("set.yaml", tmp_path / "run", start, options=keys)
    plan = plan_run("set.yaml", tmp_path / "run", start, options=[*keys, "DATASETS.MAX_FAULTY_SHARE", "1.0"])
    assert as_dict(plan.options)["DATASETS.MAX_FAULTY_SHARE"] == "1.0"


def test_a_set_that_shall_not_be_divided_needs_images_that_validate(words, tmp_path):
    start = find_start("", words[-1], tmp_path)
    with pytest.raises(InputError, match="expected images for training and for validation, found only test;"):
        plan_run("photos", tmp_path / "run", start, options=["SOLVER.MAX_ITER", "10", "DATASETS.DIVIDE", "False"])


def test_a_model_knows_no_names_but_its_own_where_it_started_without_weights(words, tiny_cfg, tmp_path):
    """The weights of such a model, whose config stands beside them, know its names: a second tuning adds to them."""
    tiny_cfg.MODEL.GLIPV2.TEST.ONLY_OWN_NAMES = True
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    (tmp_path / "model_best.pth").write_bytes(b"")
    for weights, expected in (("", "True"), ("model_best.pth", "False")):
        start = find_start(weights, "" if weights else words[-1], tmp_path)
        plan = plan_run("photos", tmp_path / f"run{weights}", start, options=["SOLVER.MAX_ITER", "10"])
        assert as_dict(plan.options)["MODEL.GLIPV2.TEST.ONLY_OWN_NAMES"] == expected


@pytest.mark.parametrize(("side", "scale"), [(128, 1.5), (384, 1.0)])
def test_the_image_that_the_classifier_reads_keeps_its_size(words, tiny_cfg, tmp_path, side, scale):
    """It had 192 pixels, twice the network's 96; it never gets less than the network."""
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.CLASS_WORDS.ENABLED", True, "MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", 2.0])
    tiny_cfg.INPUT.MIN_SIZE_TEST = 96
    (tmp_path / "words.yaml").write_text(tiny_cfg.dump())
    start = find_start("", "words.yaml", tmp_path)
    plan = plan_run("photos", tmp_path / "run", start, options=["INPUT.MIN_SIZE_TEST", str(side)])
    assert as_dict(plan.options)["MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE"] == str(scale)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["INPUT.MIN_SIZE_TEST", "384"], ("(96, 288)", "2.0")),
        (["INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "288"], ("()", None)),
        (["INPUT.MIN_SIZE_TEST", "384", "MODEL.GLIPV2.TUNING.KEEP.BY_NAME", "False"], ("()", None)),
        (["INPUT.MIN_SIZE_TEST", "384", "MODEL.GLIPV2.TUNING.KEEP.ENABLED", "False"], ("()", None)),
    ],
)
def test_what_answers_for_other_names_keeps_its_image_size(words, tiny_cfg, tmp_path, options, expected):
    """The config beside the weights is that of a run which kept names, too."""
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.CLASS_WORDS.ENABLED", True, "MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", 2.0])
    tiny_cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 288])
    tiny_cfg.MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST = (64, 96)
    (tmp_path / "words.yaml").write_text(tiny_cfg.dump())
    keep = ["MODEL.GLIPV2.TUNING.KEEP.ENABLED", "True", *options]
    plan = plan_run("photos", tmp_path / "run", find_start("", "words.yaml", tmp_path), options=keep)
    chosen = as_dict(plan.options)
    assert tuple(chosen.get(f"MODEL.GLIPV2.TUNING.KEEP.{key}") for key in ("SIZE_TEST", "IMAGE_SCALE")) == expected


def test_the_base_of_a_run_that_kept_names_has_its_own_image_size_in_the_next(words, tiny_cfg, tmp_path):
    """The config beside it is that of the tuned weights, and says the size of the base in a key of its own."""
    tiny_cfg.merge_from_list(["MODEL.GLIPV2.CLASS_WORDS.ENABLED", True, "MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE", 1.0])
    tiny_cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 384, "INPUT.MAX_SIZE_TEST", 576])
    tiny_cfg.MODEL.GLIPV2.TUNING.KEEP.merge_from_list(["SIZE_TEST", (64, 96), "IMAGE_SCALE", 9.0])
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    for name, expected in (
        ("keep_base.safetensors", ("(64, 96)", "9.0", "1.5")),
        ("model_best.pth", ("()", None, "1.0")),
    ):
        (tmp_path / name).write_bytes(b"")
        options = [
            "MODEL.GLIPV2.TUNING.KEEP.ENABLED",
            "True",
            "INPUT.MIN_SIZE_TEST",
            "384",
            "INPUT.MAX_SIZE_TEST",
            "576",
        ]
        chosen = as_dict(plan_run("photos", tmp_path / "run", find_start(name, "", tmp_path), options=options).options)
        keys = ("TUNING.KEEP.SIZE_TEST", "TUNING.KEEP.IMAGE_SCALE", "CLASS_WORDS.IMAGE_SCALE")
        assert tuple(chosen.get(f"MODEL.GLIPV2.{key}") for key in keys) == expected


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "valid", "test"), ("set_train", "set_val")),
        (("valid", "test"), ("set_val", "set_test")),
        (("test",), None),
    ],
)
def test_what_trains_and_what_validates(tiny_cfg, tmp_path, folders, expected):
    for folder in folders:
        (tmp_path / "set" / folder).mkdir(parents=True)
        draw_dataset(tmp_path / "set" / folder)
    tiny_cfg.DATASETS.REGISTER, tiny_cfg.OUTPUT_DIR = (str(tmp_path / "set"),), str(tmp_path / "out")
    if expected:
        assert own_datasets(tiny_cfg) == expected
    else:
        with pytest.raises(InputError, match="expected images for training and for validation, found only test"):
            own_datasets(tiny_cfg)


LENGTH = ["SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "4"]
SHARE = "MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE"


@pytest.fixture
def with_class_words(tiny_cfg, tmp_path, monkeypatch):
    """The config has class words. Return a function that sets what they are worth, and the shares that are tested."""
    tiny_cfg.MODEL.GLIPV2.CLASS_WORDS.ENABLED = tiny_cfg.MODEL.TEXT_ENCODER.FREEZE = True
    tiny_cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.0
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    test = GLIPv2Trainer.test

    def set_worth(worth, without=20):
        shares = []

        def tested(cfg, model, *rest):
            """The detections show the share."""
            results, share = test(cfg, model, *rest), model.class_words_head.share
            (found,) = (Path(cfg.OUTPUT_DIR) / "inference").glob("*/coco_instances_results.json")
            boxes = [{**one, "score": 0.5 + share / 4} for one in json.loads(found.read_text())]
            found.write_text(json.dumps(boxes))
            results["bbox"]["AP"] = 20 + worth * share if share else without
            shares.append(share)
            return results

        monkeypatch.setattr(GLIPv2Trainer, "test", staticmethod(tested))
        return shares

    return set_worth


# detectron2 says NaN where nothing is found.
@pytest.mark.parametrize(("worth", "without", "share"), [(10, 20, 1.0), (0, 20, 0.0), (0, float("nan"), 1.0)])
def test_the_classes_of_a_classifier_count_for_own_names_where_they_raise_ap(
    words, with_class_words, tmp_path, worth, without, share
):
    shares, out = with_class_words(worth, without), tmp_path / "out"
    main([*words, "--output", "out", *LENGTH])
    assert shares == [1.0, 1.0, 0.0]
    assert json.loads((out / "results.json").read_text())["val"]["bbox"]["AP"] == 20 + worth
    (found,) = (out / "inference").glob("*/coco_instances_results.json")
    assert {one["score"] for one in json.loads(found.read_text())} == {0.5 + share / 4}
    assert not (out / "without_class_words").exists()
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["MODEL"]["GLIPV2"]["TUNING"]["CLASS_WORDS_SHARE"] == share
    # The next run chooses again.
    plan = plan_run("photos", tmp_path / "next", find_start(str(out / "model_best.pth"), "", tmp_path), options=LENGTH)
    assert as_dict(plan.options)[SHARE] == "-1.0"


def test_a_share_of_the_classes_that_is_set_is_kept(words, with_class_words, tmp_path):
    shares = with_class_words(10)
    main([*words, "--output", "out", *LENGTH, SHARE, "0.5"])
    assert shares == [0.5, 0.5]


def test_a_share_cannot_be_chosen_by_a_metric_that_there_is_not(words, with_class_words):
    with_class_words(10)
    metric = ["SOLVER.AUTO_STEP.METRIC", "segm/AP", "SOLVER.EARLY_STOP_PATIENCE", "0"]
    with pytest.raises(SystemExit, match="SOLVER.AUTO_STEP.METRIC: expected a result .*, found 'segm/AP'"):
        main([*words, "--output", "out", *LENGTH, *metric])


def test_a_run_whose_share_cannot_be_written_goes_on_with_its_config(words, with_class_words, tmp_path, monkeypatch):
    shares, whole, config = with_class_words(0), Path.write_bytes, tmp_path / "out" / "config.yaml"

    def full_disk(path, content):
        whole(path, content[:9])
        if path.name.startswith(config.name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, content)

    with monkeypatch.context() as patches, pytest.raises(SystemExit, match="config.yaml: "):
        patches.setattr(Path, "write_bytes", full_disk)
        main([*words, "--output", "out", *LENGTH])
    assert yaml.safe_load(config.read_text())["MODEL"]["GLIPV2"]["TUNING"]["CLASS_WORDS_SHARE"] == -1
    main(["train", "--output", "out", "--resume"])
    assert shares[-2:] == [1.0, 0.0] and (tmp_path / "out" / "results.json").is_file()
    assert yaml.safe_load(config.read_text())["MODEL"]["GLIPV2"]["TUNING"]["CLASS_WORDS_SHARE"] == 0


def as_dict(options):
    return dict(zip(options[::2], options[1::2], strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "photos"], "--output: expected the folder of the run, found none"),
        (["--output", "out"], "--data: expected a folder or a file"),
        (["--output", "out", "--resume", "--epochs", "3"], "--resume: expected --output alone"),
        (["--output", "out", "--resume", "--config-file", "glip_swin_t_c"], "--output alone, .*found --config-file"),
        (["--output", "out", "--resume", "SOLVER.MAX_ITER", "3"], "--resume: expected --output alone"),
        (["--data", "photos", "--output", "out", "--minutes", "0"], "--minutes: expected a number above 0, .*found 0"),
        (
            ["--data", "photos", "--output", "out", "--epochs", "inf"],
            "--epochs: expected a number .*found inf",
        ),
        (["--data", "photos", "--output", "out", "--machine-rank", "1"], "--machine-rank: expected 0 to 0, .*found 1"),
        (["--data", "photos", "--output", "out", "--num-machines", "2"], "--dist-url: expected for 2 machines the add"),
        ([], "expected --data PATH and --output DIR, or --config-file FILE"),
    ],
)
def test_arguments_that_do_not_fit_are_named(words, message):
    with pytest.raises(SystemExit, match=message):
        main(["train", *words])


def test_data_are_checked_before_the_first_update(words, tmp_path, monkeypatch, capsys):
    (image,) = (tmp_path / "photos").rglob("0.png")
    pixels = cv2.imread(str(image))
    # A JPEG that was cut off, under the same name.
    image.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes()[:-30])
    kill_at(monkeypatch, 0)
    with pytest.raises(Killed):
        main([*words, "--output", "out"])
    printed = capsys.readouterr().out.splitlines()
    assert "the check of the data: out/data_check/data_check.html" in printed
    assert any(line.startswith("warning: 1 of 4 images is cut off") for line in printed)
    assert (tmp_path / "out" / "data_check" / "data_check.html").is_file()


def test_what_is_wrong_with_files_is_said_once(words, tmp_path, caplog, capsys):
    images = sorted((tmp_path / "photos").rglob("*.png"))
    for image in images[:3]:
        # JPEGs that were cut off, under the same names, to train on and to validate with.
        image.write_bytes(cv2.imencode(".jpg", cv2.imread(str(image)))[1].tobytes()[:-30])
    images[3].write_bytes(b"no image")
    main([*words, "--output", "out"])
    said = [*capsys.readouterr().out.splitlines(), *(one.message for one in caplog.records if one.levelno > 20)]
    assert [line for line in said if "cut off" in line or "decoded" in line or "unreadable" in line] == [
        "warning: 3 of 3 images are cut off, and read as far as possible; the rest is gray; "
        "open and save such files again, or leave them out",
        "warning: left out 1 of 4 images: unreadable images; correct them if they are needed",
    ]


def test_data_that_cannot_be_trained_on_end_in_one_line_and_leave_no_run(words, tmp_path):
    (json_file,) = (tmp_path / "photos").rglob("*.json")
    json_file.write_text(json_file.read_text().replace("red box", "\U0001f600").replace("blue box", "\U0001f601"))
    message = "expected data that can be trained on, found: stop: the model cannot tell some names apart; rename them"
    for _ in range(2):
        with pytest.raises(SystemExit, match=message):
            main([*words, "--output", "out"])


@pytest.mark.parametrize(("status", "is_left"), [(1, False), (143, True)])
def test_an_error_of_a_spawned_process_leaves_the_folder_free_too(words, tmp_path, monkeypatch, status, is_left):
    def end(run, arguments):
        raise ProcessExitedException("a process has said why", 0, 1, status)

    monkeypatch.setattr(launch, "launch_run", end)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--output", "out", "--num-gpus", "2"])
    assert ended.value.code == status
    # A signal is no error: the run may go on.
    assert (tmp_path / "out" / "config.yaml").exists() == is_left


def test_a_run_that_could_not_begin_leaves_its_folder_free(words, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    for _ in range(2):
        with pytest.raises(SystemExit, match="weights.pth: expected"):
            main([*words, "--output", "out", "--weights", "weights.pth"])
