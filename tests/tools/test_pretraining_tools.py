"""The programs that measure pre-training."""

import json
import math
from types import SimpleNamespace

import pretrain_micro
import pytest
import torch
from detectron2.data import DatasetCatalog
from drawn_images import register_drawn

from glipv2_d2.data import DetectionDatasetMapper


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
    monkeypatch.setattr(pretrain_micro, "NUM_COUNTED_BATCHES", 3)
    entropy, count = pretrain_micro.unigram_entropy(write_config(), tmp_path)
    assert entropy == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4)) and count == 12


def test_last_loss_is_the_mean_over_the_last_fifth(tmp_path):
    records = [{"iteration": step, "loss_mlm": float(step)} for step in range(10)] + [{"iteration": 10}]
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(record) for record in records))
    assert pretrain_micro.last_loss(tmp_path, "loss_mlm") == 8.5


def test_run_that_is_finished_is_not_repeated(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(pretrain_micro, "train", lambda command, *_: commands.append(command))
    runs = pretrain_micro.Runs(tmp_path, 5, ["SOLVER.IMS_PER_BATCH", "2"])
    folder = runs.train("half", "some.yaml", ("a", "b"), 3, "KEY", "value")
    assert folder == tmp_path / "half" and len(commands) == 1
    assert commands[0][-4:] == ["KEY", "value", "SOLVER.IMS_PER_BATCH", "2"]
    assert "('a', 'b')" in commands[0] and commands[0][commands[0].index("SEED") + 1] == "3"
    folder.mkdir()
    (folder / "model_final.pth").touch()
    assert runs.train("half", "some.yaml", ("a", "b"), 3) == folder and len(commands) == 1
