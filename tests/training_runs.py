"""Runs of the trainer, and what they leave, for several tests."""

import torch

from glipv2_d2 import GLIPv2Trainer


def train(cfg, resume=False):
    trainer = GLIPv2Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other, path=""):
    """Compare nested containers bit for bit."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{path}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def without_evaluation(cfg, folder, *options):
    cfg = cfg.clone()
    cfg.merge_from_list([*("OUTPUT_DIR", str(folder), "DATASETS.TEST", (), "SOLVER.EMA_DECAY", 0.9), *options])
    return cfg
