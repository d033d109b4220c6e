"""A dataset of four drawn images, and the tiny model set up to train on it."""

import pytest
from drawn_images import register_drawn


@pytest.fixture
def drawn_dataset(tmp_path):
    """The name of a registered dataset of four images."""
    return register_drawn(tmp_path / "drawn")


@pytest.fixture
def train_cfg(tiny_cfg, drawn_dataset, tmp_path):
    """A run of four steps that evaluates at its end."""
    tiny_cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", (drawn_dataset,), "DATASETS.TEST", (drawn_dataset,)),
            *("OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2),
            *("SOLVER.WARMUP_ITERS", 2, "SOLVER.STEPS", (3,), "TEST.EVAL_PERIOD", 0),
        ]
    )
    return tiny_cfg
