"""What a run says: on the terminal what a person needs, in log.txt of its folder everything."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from ..checkpoint.resume import LAST_CHECKPOINT
from ..errors import full_disk_message, means_full_disk, space_errors
from ..folders import check_writable

# Loggers of detectron2 that speak of its own steps; of the images evaluated a bar tells.
_STEPS = ("detectron2.data.common", "detectron2.evaluation.evaluator", "detectron2.evaluation.testing")


def start_log(cfg: CfgNode, arguments: argparse.Namespace) -> None:
    """Open terminal and log.txt of ``OUTPUT_DIR`` for the records of a run, and write its config to config.yaml.

    The terminal gets what the first process logs, from the level INFO on. log.txt gets that of DEBUG too: environment,
    command line, config and model are there alone. In the folder of a training an evaluation leaves config.yaml alone,
    by which the training goes on.
    """
    if comm.is_main_process():
        check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    PathManager.mkdirs(cfg.OUTPUT_DIR)
    log_file = _log_file(os.path.abspath(cfg.OUTPUT_DIR), comm.get_rank())
    for name in ("fvcore", "detectron2", "glipv2_d2"):
        logger = setup_logger(None, comm.get_rank(), name=name, color=False)
        logger.addHandler(log_file)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setLevel(logging.INFO)
                handler.setFormatter(_TerminalFormatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
                handler.addFilter(_is_no_step)
    logger = logging.getLogger(__name__)
    logger.debug("process %d of %d", comm.get_rank(), comm.get_world_size())
    if not comm.is_main_process():
        return
    logger.debug("environment:\n%s", _environment())
    # The words after --opts are among the others.
    words = {name: value for name, value in vars(arguments).items() if name != "more_opts"}
    logger.debug("command line: %s", words)
    logger.debug("config:\n%s", cfg.dump())
    is_of_training = os.path.isfile(os.path.join(cfg.OUTPUT_DIR, LAST_CHECKPOINT))
    if not (vars(arguments).get("eval_only") and is_of_training):
        config_file = f"{cfg.OUTPUT_DIR}/config.yaml"
        with space_errors(config_file), PathManager.open(config_file, "w") as file:
            file.write(cfg.dump())
    logger.info("files of this run, log.txt among them: %s", cfg.OUTPUT_DIR)


@functools.lru_cache
def _log_file(folder: str, rank: int) -> _LogFile:
    """Return the one handler of a process for its file in a folder: a record is never written twice."""
    name = f"log.txt.rank{rank}" if rank else "log.txt"
    handler = _LogFile(os.path.join(folder, name), encoding="utf-8", errors="backslashreplace")
    line = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
    handler.setFormatter(logging.Formatter(line, datefmt="%m/%d %H:%M:%S"))
    return handler


class _LogFile(logging.FileHandler):
    """A file of records. If its disk is full, one line on standard error says so, and the run goes on without them."""

    _is_told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if error is None or not means_full_disk(error):
            super().handleError(record)
        elif not self._is_told:
            self._is_told = True
            tqdm.write(full_disk_message(self.baseFilename), file=sys.stderr)


class _TerminalFormatter(logging.Formatter):
    """Time and message; the level where it is more than news."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        if record.levelno < logging.WARNING:
            return text
        return text.replace("] ", f"] {record.levelname}: ", 1)


def _is_no_step(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not record.name.startswith(_STEPS)


def _environment() -> str:
    """Return versions and devices, without what is alarming and means nothing here."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    # It warns of a missing compiler for GPUs.
    logger.setLevel(logging.ERROR)
    try:
        lines = collect_env_info().splitlines()
    finally:
        logger.setLevel(level)
    # No compiled part of detectron2 is used.
    return "\n".join(line for line in lines if not line.startswith("detectron2._C"))
