"""The programs that measure pre-training."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_ablation
import run_odinw
import torch
from conftest import load_config
from detectron2.data import DatasetCatalog
from drawn_images import register_drawn

from glipv2_d2.data import DetectionDatasetMapper
from glipv2_d2.folders import lock_folder


@pytest.fixture
def dataset(tmp_path):
    return register_drawn(tmp_path / "drawn", sizes=((96, 64),))


@pytest.fixture
def write_config(tiny_cfg, tmp_path, dataset):
    def write(*options):
        tiny_cfg.merge_from_list(["DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,), *options])
        path = tmp_path / "config.yaml"
        path.write_text(tiny_cfg.dump())
        return str(path)

    return write


def test_boxes_of_the_samples_are_those_of_the_resized_image(load_tool, tiny_cfg, dataset):
    tiny_cfg.INPUT.MIN_SIZE_TEST = 32
    tiny_cfg.DATASETS.TEST = (dataset,)
    mapper = DetectionDatasetMapper(tiny_cfg, is_train=False, dataset_names=(dataset,))
    samples = list(load_tool("evaluate_retrieval").annotated_samples(mapper, DatasetCatalog.get(dataset)))
    assert [len(sample["gt_boxes"]) for sample in samples] == [3, 2, 1, 0]
    assert samples[0]["image"].shape == (3, 48, 32)
    # The first box is 16 x 24 at (4, 16); its last pixel (19, 39) moves to (9.5, 19.5), and the edge is one further.
    assert samples[0]["gt_boxes"][0].tolist() == [2.0, 8.0, 10.5, 20.5]
    assert samples[0]["gt_category_ids"].tolist() == [0, 1, 2]


def test_retrieval_is_measured_in_every_space_that_the_model_has(load_tool, write_config, dataset, tmp_path):
    arguments = ["--config-file", write_config("MODEL.GLIPV2.CONTRASTIVE.ENABLED", True), "--dataset", dataset]
    load_tool("evaluate_retrieval").main([*arguments, "--output", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == {"fused", "contrastive"}
    for space in result.values():
        assert space["names"] == 3 and space["regions"] == 6
        # Three names: all are among the best five.
        assert 0 <= space["recall@1"] <= space["recall@5"] == space["recall@10"] == 100.0


def test_entropy_of_masked_words_is_that_of_their_frequencies(write_config, monkeypatch, tmp_path):
    def batches(cfg):
        while True:
            labels = [torch.tensor([7, -100, 7]), torch.tensor([8, 9]), None]
            yield [{"prompts": [SimpleNamespace(mlm_labels=one)]} for one in labels]

    monkeypatch.setenv("DETECTRON2_DATASETS", "before")
    monkeypatch.setattr("glipv2_d2.data.build_train_loader", batches)
    monkeypatch.setattr(run_ablation, "NUM_COUNTED_BATCHES", 3)
    entropy, count = run_ablation.unigram_entropy(write_config(), tmp_path)
    assert entropy == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4)) and count == 12


def test_last_loss_is_the_mean_over_the_last_fifth(tmp_path):
    records = [{"iteration": step, "loss_mlm": float(step)} for step in range(10)] + [{"iteration": 10}]
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(record) for record in records))
    assert run_ablation.last_loss(tmp_path, "loss_mlm") == 8.5


@pytest.fixture
def commands(monkeypatch):
    """The commands of trainings, which write the end of a metrics.json in place of training."""
    done = []

    def train(command, folder, environment, max_iter):
        done.append(command)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_final.pth").touch()
        results = {f"stampworld_{split}/bbox/{name}": 10.0 for split in ("val", "val_novel") for name in ("AP", "AP50")}
        results |= {"stampworld_val_novel/bbox/AP": math.nan, "stampworld_val_grounding/any_box/R@1": 61.234}
        earlier = {"iteration": max_iter // 2, **dict.fromkeys(results, 1.0)}
        records = [earlier, {"iteration": max_iter, **results}]
        (folder / "metrics.json").write_text("\n".join(map(json.dumps, records)))

    monkeypatch.setattr(run_ablation, "train", train)
    return done


def test_training_that_is_finished_is_not_repeated(commands, tmp_path):
    runs = run_ablation.Runs(tmp_path, 200, [], ["SOLVER.IMS_PER_BATCH", "2"])
    for _ in range(2):
        runs.train(tmp_path / "half", "some.yaml", ("a", "b"), 3, ["KEY", "value"])
    (command,) = commands
    assert command[-4:] == ["KEY", "value", "SOLVER.IMS_PER_BATCH", "2"]
    assert "('a', 'b')" in command and command[command.index("SEED") + 1] == "3"
    # A moving average over 20 of 200 updates.
    assert command[command.index("SOLVER.EMA_DECAY") + 1] == "0.9500"


def test_a_training_that_was_stopped_in_its_tests_is_made_anew(commands, monkeypatch, tmp_path):
    runs, trained = run_ablation.Runs(tmp_path, 200, [], []), run_ablation.train

    def stop(command, folder, environment, max_iter):
        folder.mkdir()
        (folder / "model_final.pth").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(run_ablation, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.train(tmp_path / "half", "some.yaml", ("a",), 3)
    monkeypatch.setattr(run_ablation, "train", trained)
    runs.train(tmp_path / "half", "some.yaml", ("a",), 3)
    assert len(commands) == 1


@pytest.mark.parametrize(
    "change",
    [{"max_iter": 300}, {"transfer": ["raccoon"]}, {"options": ["SEED", "1"]}, {"num_names": None}, {"num_train": 8}],
)
def test_a_folder_is_of_one_length_of_one_kind_of_scenes_and_of_one_list_of_options(monkeypatch, tmp_path, change):
    """Captions that were labelled for other scenes would have boxes anywhere."""
    drawn, halved = [], []
    monkeypatch.setattr(run_ablation, "prepare", lambda world, options, _: drawn.append(options) or world)
    monkeypatch.setattr(run_ablation.Runs, "call", lambda runs, command: halved.append(command))

    def begin(max_iter=200, transfer=(), options=(), **scenes):
        runs = run_ablation.Runs(tmp_path, max_iter, transfer, options)
        runs.make_data(**{"num_names": 4, "num_novel": 2, "num_train": 6, **scenes})

    begin()
    begin()
    with pytest.raises(SystemExit, match="settings.json: expected .*, found .*; change --output"):
        begin(**change)
    data = str(tmp_path / "datasets" / "stampworld")
    numbers = ["--num-novel", "2", "--num-train", "6", "--num-val", "100", "--num-names", "4"]
    assert drawn == [["--output", data, *numbers]] * 2 and halved == [["datasets/prepare_halves.py", data]] * 2


def test_a_comparison_is_about_stampworld_and_ends_with_the_step_that_fails(monkeypatch, tmp_path):
    runs = run_ablation.Runs(tmp_path, 200, [], [])
    # What is drawn where the packages of cut-outs cannot be had.
    monkeypatch.setattr(run_ablation, "prepare", lambda *_: "shapeworld")
    with pytest.raises(SystemExit, match="StampWorld could not be made"):
        runs.make_data(4, 2, 6)
    with pytest.raises(SystemExit, match="this step failed: -c 'raise SystemExit.3.'"):
        runs.call(["-c", "raise SystemExit(3)"])


@pytest.fixture
def ablation(monkeypatch, tmp_path):
    """The program with runs that only write a record, whose AP is the seed."""

    def run(runs, form, seed):
        folder = form.folder(runs.output, seed)
        folder.mkdir(parents=True, exist_ok=True)
        record = {**form._asdict(), "seed": seed, "measures": {"seen AP": float(seed)}}
        (folder / "results.json").write_text(json.dumps(record))

    monkeypatch.setattr(run_ablation.signal, "signal", lambda *_: None)
    monkeypatch.setattr(run_ablation.Runs, "run", run)
    for step in ("make_data", "label_captions"):
        monkeypatch.setattr(run_ablation.Runs, step, lambda *_: None)
    return lambda *words: run_ablation.main(["--output", str(tmp_path), *words])


def test_a_later_command_keeps_the_runs_of_an_earlier_one(ablation, tmp_path):
    ablation("--seeds", "1", "--losses", "all", "intra", "--captions", "no")
    ablation("--seeds", "0", "1", "--losses", "intra")
    records = json.loads((tmp_path / "runs.json").read_text())
    assert [(one["losses"], one["captions"], one["seed"]) for one in records] == [
        *(("intra", "no", 0), ("intra", "yes", 0), ("intra", "no", 1), ("all", "no", 1), ("intra", "yes", 1)),
    ]
    assert (tmp_path / "table.md").read_text() == run_ablation.tables_of(records)


def test_a_machine_without_git_knows_no_commit(load_tool, monkeypatch):
    tool = load_tool("run_ablation")
    monkeypatch.setenv("PATH", "")
    assert tool._commit() == "unknown"


def test_two_commands_do_not_run_in_one_folder(ablation, tmp_path):
    with lock_folder(tmp_path, "here"), pytest.raises(SystemExit, match="^run_ablation: --output: .* no other run, "):
        ablation()
    ablation("--seeds", "0", "--losses", "intra")


def test_run_is_recorded_with_its_measures_and_not_repeated(commands, monkeypatch, tmp_path):
    def call(runs, command):
        (path,) = [word for word in command if word.endswith("retrieval.json")]
        with open(path, "w") as stream:
            json.dump({"fused": {"recall@1": 5.5}, "contrastive": {"recall@1": 7.5}}, stream)

    monkeypatch.setattr(run_ablation.Runs, "call", call)
    runs, form = run_ablation.Runs(tmp_path, 200, [], []), run_ablation.Form("inter", "no")
    record = runs.run(form, 1)
    assert record["measures"] == {
        **{"seen AP": 10.0, "seen AP50": 10.0, "unseen AP": 0.0, "unseen AP50": 10.0, "phrases R@1": 61.23},
        **{"retrieval fused R@1": 5.5, "retrieval contrastive R@1": 7.5},
    }
    (command,) = commands
    words = dict(zip(command, command[1:]))
    assert words["MODEL.GLIPV2.CONTRASTIVE.ENABLED"] == "True" and words["MODEL.GLIPV2.MLM.ENABLED"] == "False"
    assert "pseudo" not in words["DATASETS.TRAIN"]
    assert runs.run(form, 1) == record and len(commands) == 1


def test_captions_are_data_of_the_forms_with_captions_alone(commands, monkeypatch, tmp_path):
    monkeypatch.setattr(run_ablation.Runs, "retrieval", lambda *_: {})
    runs = run_ablation.Runs(tmp_path, 200, [], [])
    for captions in run_ablation.CAPTIONS:
        runs.run(run_ablation.Form("intra", captions), 0)
    assert ["stampworld_pseudo" in str(command) for command in commands] == [False, True]


@pytest.mark.parametrize(
    ("losses", "switches"), [("intra", "False False"), ("inter", "True False"), ("all", "True True")]
)
def test_each_form_has_one_loss_more_and_the_last_one_masked_words(commands, monkeypatch, tmp_path, losses, switches):
    monkeypatch.setattr(run_ablation.Runs, "retrieval", lambda *_: {})
    monkeypatch.setattr(run_ablation, "last_loss", lambda folder, name: {"loss_mlm": 1.23456}[name])
    monkeypatch.setattr(run_ablation, "unigram_entropy", lambda config, root: (2.34567, 9))
    measures = run_ablation.Runs(tmp_path, 200, [], []).run(run_ablation.Form(losses, "no"), 0)["measures"]
    words = dict(zip(commands[0], commands[0][1:]))
    found = [words[f"MODEL.GLIPV2.{name}.ENABLED"] for name in ("CONTRASTIVE", "MLM")]
    assert " ".join(found) == switches
    of_words = {"loss_mlm": 1.235, "entropy of masked words": 2.346}
    assert {name: measures[name] for name in of_words if name in measures} == (of_words if losses == "all" else {})


def test_captions_are_labelled_once_by_a_teacher_of_the_boxes(commands, monkeypatch, tmp_path):
    calls = []

    def call(runs, command):
        calls.append(command)
        folder = Path(command[command.index("--output") + 1])
        folder.mkdir()
        for name in "ba":
            (folder / f"{name}.jsonl").write_text(f"{name}\n")

    monkeypatch.setattr(run_ablation.Runs, "call", call)
    runs = run_ablation.Runs(tmp_path, 200, [], [])
    (runs.data / "annotations").mkdir(parents=True)
    for _ in range(2):
        runs.label_captions(4)
    (training,), (labelling,) = commands, calls
    words = dict(zip(training, training[1:]))
    assert words["--config-file"] == "configs/demo/glipv2_micro.yaml" and words["SEED"] == "4"
    assert words["DATASETS.TRAIN"] == "('stampworld_half', 'stampworld_half_grounding')"
    words = dict(zip(labelling, labelling[1:]))
    assert labelling[0] == "tools/generate_pseudo_boxes.py" and words["--config-file"] == run_ablation.TEACHER_CONFIG
    assert words["--weights"] == str(tmp_path / "teacher" / "model_final.pth")
    assert words["--image-root"] == str(runs.data / "train")
    assert words["--captions"] == str(runs.data / "annotations" / "other_half_captions.jsonl")
    assert (runs.data / "annotations" / "pseudo.jsonl").read_text() == "a\nb\n"
    # Lower scores would be left out by the training.
    cfg = load_config("pretrain/glipv2_micro.yaml")
    assert float(words["--score-thresh"]) == cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE


def test_a_transfer_tunes_on_ten_shots_of_each_own_set(monkeypatch, tmp_path):
    asked = []

    def call(runs, command):
        asked.append(run_odinw.parse(command[1:]))
        for name, shots, value in (("cells", "10", 41.256), ("cells", "0", 3.0), ("raccoon", "10", 80.0)):
            (cell,) = run_odinw.plan_cells([name], ["full"], [shots], [3])
            folder = cell.folder(asked[-1].output)
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps({"dataset": name, "value": value}))

    monkeypatch.setattr(run_ablation.Runs, "call", call)
    folder = tmp_path / "run"
    assert run_ablation.Runs(tmp_path, 200, [], []).few_shots(folder) == {} and not asked
    found = run_ablation.Runs(tmp_path, 200, ["photos/raccoon", "/cells"], []).few_shots(folder)
    assert found == {"cells 10 shots AP50": 41.26, "raccoon 10 shots AP50": 80.0}
    (asked,) = asked
    assert (asked.modes, asked.shots, asked.seeds, asked.metric) == (["full"], ["10"], [3], "bbox/AP50")
    assert asked.data == [str(Path.cwd() / "photos/raccoon"), "/cells"]
    assert (asked.max_iter, asked.eval_period, asked.weights) == (100, 50, str(folder / "model_final.pth"))
    assert asked.opts == ["DATASETS.FEW_SHOT.ALLOW_FEWER", "True"]


def test_gain_is_tested_over_pairs_of_one_seed():
    gain = run_ablation.paired({0: 1.0, 1: 2.0, 2: 3.0, 7: 9.0}, {2: 6.0, 0: 2.0, 1: 4.0})
    # Gains of 1, 2 and 3: t = 2 / (1 / sqrt(3)), and with two degrees of freedom p = 1 - t / sqrt(2 + t * t).
    assert gain == pytest.approx({"gain": 2.0, "deviation": 1.0, "seeds": 3, "p": 1 - math.sqrt(12 / 14)})
    assert run_ablation.paired({0: 1.0}, {0: 2.0}) == {"gain": 1.0, "deviation": 0.0, "seeds": 1, "p": None}
    assert run_ablation.paired({0: 1.0}, {1: 2.0}) == {"gain": None, "deviation": 0.0, "seeds": 0, "p": None}
    assert run_ablation.paired({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0})["p"] == 0.0
    assert run_ablation.paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})["p"] == 1.0


def test_table_has_means_and_the_gain_of_each_loss_and_of_captions():
    rows = [
        ("intra", "no", 1.0),
        ("inter", "no", 3.0),
        ("intra", "yes", 2.0),
        ("all", "no", 3.5),
        ("inter", "yes", 1.5),
    ]
    records = [
        {"losses": losses, "captions": captions, "seed": seed, "measures": {"unseen AP": value + seed * seed}}
        for losses, captions, value in rows
        for seed in (0, 2)
    ]
    table = run_ablation.tables_of(records)
    # Seeds 0 and 2 add 0 and 4: the mean is 2 more, the deviation sqrt(8) = 2.83.
    assert "| unseen AP | 3.0 ± 2.8 | 5.0 ± 2.8 | 4.0 ± 2.8 | 5.5 ± 2.8 | 3.5 ± 2.8 |" in table
    gains = table.split("| gain of |")[1].splitlines()[2:]
    assert gains == [
        "| L_inter, without captions | unseen AP | +2.0 ± 0.0 | 2 | 0.000 |",
        "| L_mlm, without captions | unseen AP | +0.5 ± 0.0 | 2 | 0.000 |",
        "| L_inter, with captions | unseen AP | -0.5 ± 0.0 | 2 | 0.000 |",
        "| captions, intra | unseen AP | +1.0 ± 0.0 | 2 | 0.000 |",
        "| captions, inter | unseen AP | -1.5 ± 0.0 | 2 | 0.000 |",
    ]


def test_one_seed_has_no_deviation():
    records = [
        {"losses": losses, "captions": "no", "seed": 0, "measures": {"seen AP": value}}
        for losses, value in (("intra", 1.0), ("inter", 3.0))
    ]
    table = run_ablation.tables_of(records)
    assert "| seen AP | 1.0 | 3.0 |" in table and "| L_inter, without captions | seen AP | +2.0 | 1 | - |" in table
