"""The command lines of the package: their config, and errors in one line."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.multiprocessing import ProcessExitedException

from ..checkpoint.pretrained_folder import is_pretrained_config, merge_pretrained_config
from ..checkpoint.resume import find_result_file
from ..config import add_glipv2_config
from ..config_files import find_config_file
from ..data.own_sets import register_configured_sets
from ..detectron2_keys import check_config, config_leaves, is_honoured
from ..errors import DiskFullError, InputError, full_disk_message, means_full_disk, means_no_memory
from ..likeness import did_you_mean
from ..yaml_texts import check_yaml
from .config_values import check_model_values
from .stopping import RunStopped

# detectron2 and yacs raise these for keys and values that do not fit, and for YAML that is not a config.
_CONFIG_ERRORS = (AssertionError, AttributeError, KeyError, RecursionError, TypeError, ValueError, yaml.YAMLError)

# None, as in detectron2, is the decay of all other parameters.
_NONE_IS_A_VALUE = "SOLVER.WEIGHT_DECAY_NORM"

# Errors of files and disks that a user can mend.
_FILE_ERRORS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_FILE_TROUBLES = (
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EROFS,
    # NFS: another machine has removed the file.
    errno.ESTALE,
)


def build_config(
    config_file: str, opts: Sequence[str], *, for_results: bool = False, measures: bool = False
) -> CfgNode:
    """Build the frozen config of a command line: defaults, then the file, then KEY VALUE pairs.

    The sets of DATASETS.REGISTER are registered. A relative MODEL.WEIGHTS is looked for in the working directory, and
    one that stands in the file also beside it.

    Args:
        config_file: Path of the file, or the name of one that comes with the package, see ``get_config_file``; "":
            none.
        opts: Keys and values in turn.
        for_results: No training follows: where ``opts`` name no MODEL.WEIGHTS, the config of a run is used with the
            weights of this run, which lie beside it, and so is a file without MODEL.WEIGHTS. The classes of a set of
            DATASETS.REGISTER are those that the run has written down.
        measures: With ``for_results``: such a set is read again, since its images are needed.

    Raises:
        InputError: A key does not exist or has no value; a value is of the wrong type or not allowed; a changed key of
            detectron2 has no effect here; there is no GPU; the file is not a config; it is the config of a damaged
            pretrained folder; or a set of DATASETS.REGISTER cannot be used.
        FileNotFoundError: There is no such file, the pretrained folder around it lacks one, or a set is not there.
    """
    if config_file:
        config_file = find_config_file(config_file)
    if len(opts) % 2:
        raise InputError(f"config keys: expected pairs of KEY VALUE, found {' '.join(opts)!r}")
    cfg = get_cfg()
    add_glipv2_config(cfg)
    defaults = dict(config_leaves(cfg))
    try:
        if is_pretrained_config(config_file):
            merge_pretrained_config(cfg, config_file)
        elif config_file:
            _check_config_file(cfg, config_file)
            # detectron2's default would run code from the file.
            cfg.merge_from_file(config_file, allow_unsafe=False)
        _check_option_keys(cfg, opts[::2])
        cfg.merge_from_list(list(opts))
    except InputError:
        raise
    except _CONFIG_ERRORS as error:
        where = " ".join(f"config {config_file} {' '.join(opts)}".split())
        found = f"{describe(error)}{_likely_keys(error)}"
        raise InputError(f"{where}: expected its keys with values of their types, found {found}") from error
    for key, value in config_leaves(cfg):
        if value is None and defaults.get(key) is not None and key != _NONE_IS_A_VALUE:
            raise InputError(f"{key}: expected a value such as {defaults[key]!r}, found none")
    if config_file and "MODEL.WEIGHTS" not in opts[::2]:
        cfg.MODEL.WEIGHTS = _weights_of_file(cfg.MODEL.WEIGHTS, config_file, for_results)
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    check_config(cfg)
    check_model_values(cfg)
    for path in cfg.DATASETS.REGISTER:
        if not isinstance(path, str):
            raise InputError(f"DATASETS.REGISTER: expected paths of folders and files, found {path!r}")
    # A config that a run writes is read from other folders, too.
    cfg.DATASETS.REGISTER = tuple(map(os.path.abspath, cfg.DATASETS.REGISTER))
    cfg.freeze()
    from_record = for_results and not measures
    register_configured_sets(cfg, os.path.dirname(config_file), needs_images=not for_results, from_record=from_record)
    return cfg


def _weights_of_file(weights: str, config_file: str, for_results: bool) -> str:
    """Return the path of the weights of a config file, whose MODEL.WEIGHTS are ``weights``."""
    folder = os.path.dirname(config_file) or "."
    # In the config that a training wrote, MODEL.WEIGHTS are those it started from.
    is_of_run = os.path.basename(config_file) == "config.yaml" and not is_pretrained_config(config_file)
    if for_results and (is_of_run or not weights) and (found := find_result_file(folder)):
        logging.getLogger(__name__).info("MODEL.WEIGHTS: %s, found beside %s", found, config_file)
        return found
    if weights and "://" not in weights and not os.path.isabs(weights) and not os.path.exists(weights):
        beside = os.path.normpath(os.path.join(folder, weights))
        return beside if os.path.isfile(beside) else weights
    return weights


def _likely_keys(error: Exception) -> str:
    """Return which keys a mistyped one may have meant, as the end of a message; empty for other errors."""
    mistyped = re.match(r"Non-existent (?:config )?key: (\S+)", describe(error))
    if mistyped is None:
        return ""
    cfg = get_cfg()
    add_glipv2_config(cfg)
    # A key that nothing reads is no help.
    return did_you_mean(mistyped.group(1), (key for key, _ in config_leaves(cfg) if is_honoured(key)))


def _check_config_file(cfg: CfgNode, path: str, derived: tuple[str, ...] = ()) -> None:
    """Check the form of a YAML file and of those that it derives from, which the reader of configs takes for granted.

    Raises:
        InputError: One is empty or not a mapping, has a key twice, has a value where the config has keys or the other
            way round, is too deep, repeats values inside repeated ones, which might never end, or derives from itself.
        FileNotFoundError: One derives from a file that is not there.
    """
    if path in derived:
        raise InputError(f"{path}: _BASE_: expected files that do not derive from themselves, found {path} again")
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"{derived[-1]}: _BASE_: expected a YAML file, found none at {path}")
    with PathManager.open(path, "r") as file:
        text = file.read()
    try:
        check_yaml(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    # Python objects are refused when the config is read, before anything is made.
    bases = None
    node = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        found = "an empty file" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "one value"
        raise InputError(f"{path}: expected lines of KEY: VALUE, found {found}")
    _check_sections(cfg, node, path)
    for key, value in node.value:
        if key.value == "_BASE_":
            bases = yaml.safe_load(yaml.serialize(value))
    for base in bases if isinstance(bases, list) else [bases] if bases is not None else []:
        if not isinstance(base, str):
            raise InputError(f"{path}: _BASE_: expected the path of a file, found {base!r}")
        base = os.path.expanduser(base)
        is_relative = not base.startswith(("/", "http://", "https://"))
        _check_config_file(
            cfg, os.path.normpath(os.path.join(os.path.dirname(path), base)) if is_relative else base, (*derived, path)
        )


def _check_sections(cfg: CfgNode, node: yaml.MappingNode, where: str) -> None:
    """Check that a file has each key once, keys below those of the config's keys that have some, else values."""
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key.value, str) or key.value not in cfg:
            continue
        if key.value in seen:
            raise InputError(f"{where}: {key.value}: expected once, found again in line {key.start_mark.line + 1}")
        seen.add(key.value)
        default = cfg[key.value]
        has_keys = isinstance(value, yaml.MappingNode)
        if isinstance(default, CfgNode) and not has_keys:
            found = "a list" if isinstance(value, yaml.SequenceNode) else f"{value.value!r:.100}"
            expected = f"keys below it, such as {next(iter(default), 'none')}"
            raise InputError(f"{where}: {key.value}: expected {expected}, found {found}")
        if not isinstance(default, (CfgNode, dict)) and has_keys:
            raise InputError(f"{where}: {key.value}: expected a value such as {default!r:.100}, found keys below it")
        if isinstance(default, CfgNode):
            _check_sections(default, value, f"{where}: {key.value}")


def _check_option_keys(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Check that KEY VALUE pairs give values to keys that have values; keys that do not exist are left to yacs."""
    for key in keys:
        node: Any = cfg
        parts = key.split(".")
        for depth, part in enumerate(parts):
            if not isinstance(node, CfgNode):
                raise InputError(
                    f"{key}: expected a key of the config, found a part below {'.'.join(parts[:depth])}, a value"
                )
            if part not in node:
                break
            node = node[part]
        else:
            if isinstance(node, CfgNode):
                raise InputError(f"{key}: expected a key below it, such as {key}.{next(iter(node), 'KEY')}, found none")


@contextmanager
def one_line_errors(show_traceback: bool = False) -> Iterator[None]:
    """End the program with one line on standard error if its input is bad; a defect keeps its traceback.

    Args:
        show_traceback: Let the exception through as it is.
    """
    if show_traceback:
        yield
        return
    train_logger = logging.getLogger("detectron2.engine.train_loop")
    train_logger.addFilter(_is_not_input_error)
    try:
        yield
    except ProcessExitedException as error:
        # The process has said why.
        # A negative code is the signal that ended it.
        raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code) from None
    except RunStopped as stop:
        if comm.is_main_process():
            sys.stderr.write(f"{stop}\n")
        raise SystemExit(stop.exit_status) from None
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C\n")
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if not is_input_error(error):
            raise
        raise SystemExit(f"error: {describe(error)}") from None
    finally:
        train_logger.removeFilter(_is_not_input_error)


def is_input_error(error: BaseException | None) -> bool:
    """Tell bad input, files that cannot be used and too little memory from a defect of the program."""
    if means_no_memory(error) or _is_worker_death(error):
        return True
    return isinstance(error, (InputError, *_FILE_ERRORS)) or (
        isinstance(error, OSError) and error.errno in _FILE_TROUBLES
    )


def describe(error: Exception) -> str:
    """Return the message of an exception on one line; of one that crossed a process border, that of its cause."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if _is_worker_death(error):
        found = " ".join(text.split())
        return (
            f"DATALOADER.NUM_WORKERS: expected data workers that live as long as the run, found: {found} Often memory "
            "was short: fewer workers, or more shared memory (/dev/shm), help"
        )
    if means_no_memory(error):
        # Of an error in a worker the traceback comes first, of one of CUDA advice to programmers last.
        told = text.strip().split("\n")[-1 if text.startswith("Caught ") else 0]
        return (
            f"memory: expected enough for this run, found none left ({told or 'MemoryError'}); smaller "
            "SOLVER.IMS_PER_BATCH, DATALOADER.NUM_WORKERS or images need less"
        )
    if isinstance(error, OSError) and not isinstance(error, DiskFullError) and means_full_disk(error):
        return full_disk_message(error.filename2 or error.filename)
    if text.startswith("Caught "):
        # The last line of a traceback: type, colon, message.
        text = re.sub(r"^[\w.]+: ", "", text.strip().split("\n")[-1])
    return " ".join(text.split())


def _is_worker_death(error: BaseException | None) -> bool:
    """Tell the error that the death of a data worker raises in whatever runs at the moment."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _is_not_input_error(record: logging.LogRecord) -> bool:
    """Keep a log record unless it is the traceback of bad input, which the command line reports on its own."""
    return not (record.exc_info and is_input_error(record.exc_info[1]))
