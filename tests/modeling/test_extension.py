"""A new head and a new task are one class and one row each: they are built, train, answer; everyone knows of them."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from prompt_samples import make_prompt
from torch import nn

from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer
from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.dataset_mappers.build import MAPPERS
from glipv2_d2.data.dataset_mappers.grounding import GroundingDatasetMapper
from glipv2_d2.engine.train_loop import has_idle_parts
from glipv2_d2.modeling.batch import TrainingHead
from glipv2_d2.modeling.heads.table import HEADS, HeadEntry
from glipv2_d2.modeling.tasks.base import Task
from glipv2_d2.modeling.tasks.build import TASKS
from glipv2_d2.solver import build_optimizer
from glipv2_d2.tensor_files import CheckpointError


class ShadeHead(TrainingHead):
    """Tells from the first token of the fused text how bright the image is."""

    def __init__(self, cfg, shapes):
        super().__init__()
        self.rate = nn.Linear(shapes.language_dim, 1)

    def losses(self, fused, batch):
        shades = batch.images.tensor.mean(dim=(1, 2, 3))
        return {"loss_shade": (self.rate(fused.hidden[:, 0]).squeeze(1) - shades).square().mean()}


class Shade(Task):
    """How bright is the image?"""

    name = "shade"
    heads = ("shade_head",)
    answered_by = "shade_head"

    @classmethod
    def from_config(cls, cfg, shapes):
        return cls()

    def inference(self, model, inputs):
        features = model.visual_features(model.preprocess_image(inputs))
        language = model.read_prompts([one["prompts"][0] for one in inputs])
        fused = model.fuse(features, language, self.reading, with_levels=False)
        return [{"shade": shade.item()} for shade in model.shade_head.rate(fused.hidden[:, 0])]


@pytest.fixture
def shade_cfg(tiny_cfg, monkeypatch):
    monkeypatch.setitem(
        HEADS, "shade_head", HeadEntry("MODEL.SHADE.ENABLED", ShadeHead, starts_random=True, gives_results=True)
    )
    monkeypatch.setitem(TASKS, "shade", Shade)
    tiny_cfg.MODEL.SHADE = CfgNode({"ENABLED": True})
    tiny_cfg.SOLVER.HEAD_MULTIPLIER = 20.0
    tiny_cfg.SOLVER.BASE_LR = 1e-3
    tiny_cfg.MODEL.FPN.DROP_BLOCK_PROB = tiny_cfg.MODEL.GLIPV2.FUSION.DROPOUT = 0.0
    torch.manual_seed(0)
    return tiny_cfg


INPUTS = [
    {"image": torch.full((3, 64, 64), shade), "task": "shade", "prompts": [make_prompt([1])]} for shade in (20.0, 220.0)
]


def test_a_new_head_trains_and_its_task_answers(shade_cfg):
    model = build_model(shade_cfg)
    optimizer = build_optimizer(shade_cfg, model)
    losses = []
    for _ in range(40):
        loss = model.train()(INPUTS)["loss_shade"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        dark, bright = model.eval()(INPUTS)
    assert dark["shade"] < bright["shade"] - 0.5
    # What a batch of another task asks for does not change.
    detected = model([{key: value for key, value in INPUTS[0].items() if key != "task"}])
    assert set(detected[0]) == {"instances"}


def test_everyone_else_knows_a_new_head_from_its_row(shade_cfg, tmp_path):
    model = build_model(shade_cfg)
    assert list(dict(model.named_children()))[-2:] == ["shade_head", "anchor_generator"]
    rates = {
        id(parameter): group["lr"]
        for group in build_optimizer(shade_cfg, model).param_groups
        for parameter in group["params"]
    }
    assert rates[id(model.shade_head.rate.weight)] == 20 * rates[id(model.fusion_tower.blocks[0].dyconv.offset.weight)]
    # Batches of other tasks leave it without gradients.
    assert has_idle_parts(shade_cfg)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("shade_head")}
    path = str(tmp_path / "detector.pth")
    torch.save({"model": weights}, path)
    GLIPv2Checkpointer(model).load(path, checkpointables=[])
    with pytest.raises(CheckpointError, match="expected weights for shade_head"):
        GLIPv2Checkpointer(model, for_results=True).load(path)


def test_a_model_without_the_head_has_neither(shade_cfg):
    shade_cfg.MODEL.SHADE.ENABLED = False
    model = build_model(shade_cfg)
    assert model.shade_head is None and "shade" not in model.tasks
    with pytest.raises(
        ValueError, match=r"task: expected \['detection'\], found 'shade'; it needs MODEL.SHADE.ENABLED"
    ):
        model.train()(INPUTS)
    shade_cfg.MODEL.SHADE.ENABLED = True
    shade_cfg.MODEL.META_ARCHITECTURE = "DyHead"
    with pytest.raises(ValueError, match="MODEL.SHADE.ENABLED: expected False"):
        build_model(shade_cfg)


class ShadeMapper(GroundingDatasetMapper):
    """Asks for the brightness of an image, with its caption as the prompt."""

    task = "shade"
    targets = ("caption",)
    learns_boxes_alone = False

    def training_target(self, dataset_dict, rng):
        return self.ground(dataset_dict["caption"], [])

    def completed(self, sample, dataset_dict):
        del sample["instances"]
        return {**sample, "task": self.task}


def test_data_of_a_new_task_reach_its_head_by_the_row_of_their_mapper(shade_cfg, monkeypatch, tmp_path):
    monkeypatch.setitem(MAPPERS, "shade", ShadeMapper)
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "1.png")
    record = {"file_name": str(tmp_path / "1.png"), "image_id": 1, "caption": "a gray wall"}
    DatasetCatalog.register("shades", lambda: [record, {**record, "image_id": 2}])
    MetadataCatalog.get("shades").task = "shade"
    shade_cfg.merge_from_list(["DATASETS.TRAIN", ("shades",), "OUTPUT_DIR", str(tmp_path)])
    batch = next(iter(build_train_loader(shade_cfg)))
    assert [one["task"] for one in batch] == ["shade"] * 2
    assert list(build_model(shade_cfg)(batch)) == ["loss_shade"]
