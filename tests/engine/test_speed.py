"""What the measurement before a training with ``--minutes`` counts."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from glipv2_d2.engine import speed
from glipv2_d2.engine.train_loop import GroundingTrainLoop
from glipv2_d2.modeling.keeping import Keeping

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def quick_cfg(train_cfg, monkeypatch):
    """A config of which two updates are timed."""
    monkeypatch.setattr(speed, "_TIMED_UPDATES", 1)
    return train_cfg


def test_an_update_has_all_of_its_batches(quick_cfg, monkeypatch):
    quick_cfg.SOLVER.ACCUMULATION_STEPS = 3
    micro_steps, backward = [], GroundingTrainLoop._backward

    def count(self, batch, micro_step):
        micro_steps.append(micro_step)
        return backward(self, batch, micro_step)

    monkeypatch.setattr(GroundingTrainLoop, "_backward", count)
    speed.measure_seconds(quick_cfg)
    assert micro_steps == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("by_name", "compared"), [(False, 2), (True, 0)])
def test_an_update_that_is_compared_with_a_base_is_timed_with_it(quick_cfg, monkeypatch, by_name, compared):
    calls, losses = [], Keeping.losses

    def count(self, *arguments):
        calls.append(arguments)
        return losses(self, *arguments)

    monkeypatch.setattr(Keeping, "losses", count)
    quick_cfg.MODEL.WEIGHTS = "base.pth"
    quick_cfg.MODEL.GLIPV2.TUNING.KEEP.merge_from_list(["ENABLED", True, "BY_NAME", by_name])
    speed.measure_seconds(quick_cfg)
    assert len(calls) == compared


def test_images_that_cannot_be_read_are_not_timed(quick_cfg):
    first = Path(DatasetCatalog.get(quick_cfg.DATASETS.TEST[0])[0]["file_name"])
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    assert speed.measure_seconds(quick_cfg)[1] > 0
