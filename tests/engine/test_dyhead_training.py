import pytest
import torch

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import GLIPv2Checkpointer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def dyhead_cfg(train_cfg):
    """A run on the three names of the drawn images, which draws no other name into its prompts."""
    options = [
        "MODEL.META_ARCHITECTURE",
        "DyHead",
        "MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES",
        3,
        "INPUT.PROMPT.NUM_NEGATIVES",
        0,
    ]
    train_cfg.merge_from_list([*options, "SOLVER.EMA_DECAY", 0.9])
    return train_cfg


def test_model_without_text_trains_is_evaluated_and_loads_again_by_the_same_means(dyhead_cfg, tmp_path):
    torch.manual_seed(0)
    trainer = GLIPv2Trainer(dyhead_cfg)
    trainer.resume_or_load(resume=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"head.cls_logits.weight", "head.bbox_pred.weight", "backbone.bottom_up.patch_embed.proj.weight"} <= moved
    results = trainer._last_eval_results
    assert "AP50" in results["bbox"]
    model = GLIPv2Trainer.build_model(dyhead_cfg)
    GLIPv2Checkpointer(model, for_results=True).load(str(tmp_path / "output" / "model_final.pth"))
    again = GLIPv2Trainer.test(dyhead_cfg, model)
    assert again["bbox"] == pytest.approx(results["bbox"], nan_ok=True)


def test_dataset_with_other_names_than_classes_is_refused(dyhead_cfg):
    dyhead_cfg.merge_from_list(["MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", 4])
    model = GLIPv2Trainer.build_model(dyhead_cfg)
    with pytest.raises(ValueError, match=r"expected the names of all 4 classes .*found 3 names"):
        GLIPv2Trainer.test(dyhead_cfg, model)


def test_a_model_without_text_has_the_classes_of_its_data(dyhead_cfg):
    dyhead_cfg.merge_from_list(["MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES", 0])
    assert GLIPv2Trainer.build_model(dyhead_cfg).head.num_classes == 3
    dyhead_cfg.DATASETS.TEST = ()
    assert GLIPv2Trainer.build_model(dyhead_cfg).head.num_classes == 3
    dyhead_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="NUM_CLASSES: expected at least 1, found 0"):
        GLIPv2Trainer.build_model(dyhead_cfg)
