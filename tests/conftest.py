"""What the tests share: the path of the assets and a configuration small enough for a CPU.

The process that shares the tests out between others reads this file before it starts them: libraries, which take
seconds, are imported where they are used.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from detectron2.config import CfgNode

ASSETS = Path(__file__).parent / "assets"
CONFIGS = Path(__file__).parents[1] / "configs"


def pytest_configure() -> None:
    """Give the examples of hypothesis no time limit each: on a machine at work it would fail them by chance."""
    from hypothesis import settings

    settings.register_profile("no time limit", deadline=None)
    settings.load_profile("no time limit")


def load_config(name: str | Path) -> CfgNode:
    """The config of a file, by its path in ``configs`` or by any other."""
    from detectron2.config import get_cfg

    from glipv2_d2 import add_glipv2_config

    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


def make_tiny_cfg() -> CfgNode:
    """A GLIPv2 of four Swin blocks, one tower block and a two-layer text encoder, all random."""
    cfg = load_config("Base-GLIPv2.yaml")
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "random", "SEED", 3, "DATALOADER.NUM_WORKERS", 0),
            *("MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SWIN.NUM_HEADS", [2, 2, 4, 4]),
            *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.GLIPV2.TOWER.CHANNELS", 32, "MODEL.GLIPV2.TOWER.NUM_BLOCKS", 1),
            *("MODEL.GLIPV2.FUSION.EMBED_DIM", 64, "MODEL.GLIPV2.FUSION.NUM_HEADS", 4),
            *("MODEL.TEXT_ENCODER.HIDDEN_SIZE", 48, "MODEL.TEXT_ENCODER.NUM_LAYERS", 2),
            *("MODEL.TEXT_ENCODER.NUM_HEADS", 4, "MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE", 96),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TRAIN", 96),
            *("INPUT.MAX_SIZE_TEST", 96, "SOLVER.AMP.ENABLED", False, "SOLVER.IMS_PER_BATCH", 2),
        ]
    )
    return cfg


def assert_one_line(caught: pytest.ExceptionInfo, *words: object) -> None:
    """The message of an error is one line that holds these words."""
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


@pytest.fixture
def tiny_cfg() -> CfgNode:
    return make_tiny_cfg()


@pytest.fixture
def nfs_locks(monkeypatch) -> None:
    """Locks as NFS has them: for what is open for writing alone (flock(2))."""
    flock = fcntl.flock

    def lock_what_is_written(file, operation):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_what_is_written)


@pytest.fixture
def no_locks(monkeypatch) -> None:
    """Locks as Lustre has them that is mounted without the option flock."""

    def refuse(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.fixture
def assets() -> Path:
    return ASSETS


@pytest.fixture(autouse=True)
def log_handlers_end_with_their_test():
    """Remove the handlers that a program adds, which write to the captured output of its test, and its levels."""
    from detectron2.utils.logger import setup_logger

    loggers = [logging.getLogger(name) for name in ("detectron2", "glipv2_d2", "fvcore")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before):
        logger.handlers[:] = handlers
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    # It remembers for which arguments there is a handler.
    setup_logger.cache_clear()


@pytest.fixture(autouse=True)
def registered_datasets_end_with_their_test():
    """Remove the datasets that a test registers: another one may use their names."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = [(catalog, set(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in before:
        for name in set(catalog) - names:
            catalog.pop(name)
