import errno
import logging

import pytest
import torch
from conftest import CONFIGS, assert_one_line
from torch._utils import ExceptionWrapper

from glipv2_d2.engine.command_line import build_config, describe, one_line_errors
from glipv2_d2.engine.config_values import check_solver_values
from glipv2_d2.engine.train_loop import NonfiniteLossError
from glipv2_d2.errors import InputError
from glipv2_d2.program.config_arguments import parse_train_arguments
from glipv2_d2.tensor_files import write_checkpoint


@pytest.mark.parametrize(
    "words",
    [
        "--config-file a.yaml SEED 1 SOLVER.MAX_ITER 2",
        "--config-file a.yaml --opts SEED 1 SOLVER.MAX_ITER 2",
        "--config-file a.yaml SEED 1 --opts SOLVER.MAX_ITER 2",
        "--opts SEED 1 SOLVER.MAX_ITER 2",
    ],
)
def test_config_keys_come_with_and_without_the_flag(words):
    assert parse_train_arguments(words.split()).opts == ["SEED", "1", "SOLVER.MAX_ITER", "2"]


def test_flags_of_detectron2_are_there():
    arguments = parse_train_arguments(
        "--num-gpus 2 --num-machines 3 --machine-rank 1 --dist-url auto --eval-only --resume".split()
    )
    assert (arguments.num_gpus, arguments.num_machines, arguments.machine_rank) == (2, 3, 1)
    assert (arguments.dist_url, arguments.eval_only, arguments.resume, arguments.opts) == ("auto", True, True, [])


def test_config_is_defaults_then_file_then_pairs(tmp_path):
    text = "SEED: 4\nSOLVER: {EMA_DECAY: 0.5}\nMODEL: {META_ARCHITECTURE: GLIPv2, DEVICE: cpu}\n"
    (tmp_path / "a.yaml").write_text(text)
    cfg = build_config(str(tmp_path / "a.yaml"), ["SEED", "5"])
    assert (cfg.SEED, cfg.SOLVER.EMA_DECAY, cfg.SOLVER.ACCUMULATION_STEPS) == (5, 0.5, 1)
    assert cfg.is_frozen()


def test_a_config_that_was_written_out_repeats_its_lists(tmp_path):
    text = "SOLVER: {STEPS: &a [3, 4]}\nINPUT: {MIN_SIZE_TRAIN: *a}\nMODEL: {META_ARCHITECTURE: GLIPv2, DEVICE: cpu}\n"
    (tmp_path / "a.yaml").write_text(text)
    cfg = build_config(str(tmp_path / "a.yaml"), [])
    assert list(cfg.SOLVER.STEPS) == list(cfg.INPUT.MIN_SIZE_TRAIN) == [3, 4]


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SEED"], "KEY VALUE"),
        (["SEEDS", "1"], "SEEDS; did you mean SEED or "),
        (["SOLVER.BASELR", "1"], "SOLVER.BASELR; did you mean SOLVER.BASE_LR or SOLVER.BASE_LR_END"),
        (["MAX_ITER", "1"], "MAX_ITER; did you mean SOLVER.MAX_ITER"),
        # MODEL.RPN.BATCH_SIZE_PER_IMAGE is alike too, but nothing reads it.
        (["INPUT.MIN_SIZES_TEST", "1"], "did you mean INPUT.MIN_SIZE_TEST"),
        (["SOLVER.MAX_ITER", "many"], "MAX_ITER"),
        (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE: expected 'auto' or 'cpu'"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE: expected"),
        (["MODEL.META_ARCHITECTURE", "GLIP"], "MODEL.META_ARCHITECTURE: expected one of"),
        (["MODEL.FPN.NORM", "XN"], "MODEL.FPN.NORM: expected"),
        (["MODEL.SWIN.DEPTHS", "[2, 'two']"], "MODEL.SWIN.DEPTHS: expected numbers of at least 1"),
        (["MODEL.TEXT_ENCODER.DROPOUT", "-.5"], "MODEL.TEXT_ENCODER.DROPOUT: expected at least 0"),
        (["MODEL.TEXT_ENCODER.NUM_HEADS", "5"], "expected a divisor of MODEL.TEXT_ENCODER.HIDDEN_SIZE 768, found 5"),
        (
            ["MODEL.SWIN.NUM_HEADS", "[5, 5, 5, 5]"],
            "MODEL.SWIN.NUM_HEADS: expected divisors of MODEL.SWIN.EMBED_DIM 96",
        ),
        (["MODEL.SWIN.DEPTHS", "[2, 2]"], "MODEL.SWIN.DEPTHS: expected 4 numbers, found [2, 2]"),
        (["MODEL.PIXEL_MEAN", "[1.0]"], "MODEL.PIXEL_MEAN: expected 3 numbers, found [1.0]"),
        (["DATALOADER.NUM_WORKERS", "-1"], "DATALOADER.NUM_WORKERS: expected at least 0, found -1"),
        (["TEST.DETECTIONS_PER_IMAGE", "-5"], "TEST.DETECTIONS_PER_IMAGE: expected at least 0, found -5"),
    ],
)
def test_wrong_config_keys_end_in_one_line(opts, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_info, one_line_errors():
        build_config("", ["MODEL.META_ARCHITECTURE", "GLIPv2", "MODEL.DEVICE", "cpu", *opts])
    assert message in exit_info.value.code and "\n" not in exit_info.value.code


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.STEPS", (3, 2)),
        ("SOLVER.BASE_LR", -0.1),
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("TEST.EXPECTED_RESULTS", ["bbox", "AP", 40.0, 0.1]),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 40.0]]),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", "40.0", 0.1]]),
    ],
)
def test_wrong_values_of_a_training_name_their_key(tiny_cfg, key, value):
    tiny_cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=f"{key}: expected"):
        check_solver_values(tiny_cfg)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- SEED\n",
        "MODEL: 5\n",
        "_BASE_: wrong.yaml\n",
        None,
        "SEED: [1\n",
        "SEEDS: 1\n",
        "SOLVER: {BASELR: 1}\n",
        "OUTPUT_DIR: !!python/object/apply:os.getcwd []\n",
    ],
)
def test_wrong_config_file_ends_in_one_line(content, tmp_path):
    path = tmp_path / "wrong.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as exit_info, one_line_errors():
        build_config(str(path), [])
    assert "wrong.yaml" in exit_info.value.code and "\n" not in exit_info.value.code


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, KeyError, ConnectionResetError])
def test_defects_keep_their_traceback(kind):
    with pytest.raises(kind), one_line_errors():
        raise kind("shapes do not fit")


@pytest.mark.parametrize(
    "error",
    [
        InputError("SEED: expected a number"),
        NonfiniteLossError("training stopped"),
        FileNotFoundError("a.json: there is no such file"),
        PermissionError(errno.EACCES, "Permission denied", "a.json"),
        OSError(errno.ESTALE, "Stale file handle", "a.json"),
    ],
)
def test_bad_input_ends_in_one_line(error):
    with pytest.raises(SystemExit) as exit_info, one_line_errors():
        raise error
    assert exit_info.value.code == f"error: {error}"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "(MemoryError)"),
        (MemoryError("Unable to allocate 8.00 GiB"), "(Unable to allocate 8.00 GiB)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "(CUDA out of memory. Tried"),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), "(CUDA error: out of memory)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "(DefaultCPU"),
        (MemoryError("Caught MemoryError in DataLoader worker process 0.\nTraceback\nMemoryError: 8 GiB"), "8 GiB)"),
    ],
)
def test_too_little_memory_ends_in_one_line_on_every_device(error, told, caplog):
    with pytest.raises(SystemExit) as exit_info, one_line_errors():
        try:
            raise error
        except Exception as caught:
            # As the loop of detectron2 does.
            logging.getLogger("detectron2.engine.train_loop").exception("during training")
            raise caught
    assert exit_info.value.code.startswith("error: memory: expected enough for this run, found none left (")
    assert told in exit_info.value.code and "\n" not in exit_info.value.code and not caplog.records


def test_traceback_on_request():
    with pytest.raises(InputError, match="bad"), one_line_errors(show_traceback=True):
        raise InputError("bad")


def test_error_in_a_worker_shows_its_cause_alone():
    try:
        raise InputError("label of image 3 is missing")
    except InputError:
        # What a data loader does with an error of its worker process.
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(SystemExit) as exit_info, one_line_errors():
        wrapped.reraise()
    assert exit_info.value.code == "error: label of image 3 is missing"


def test_key_errors_show_their_text_without_quotes():
    assert describe(KeyError("no such key")) == "no such key"


def test_trainer_does_not_log_the_traceback_of_bad_input(caplog):
    logger = logging.getLogger("detectron2.engine.train_loop")
    with pytest.raises(SystemExit), one_line_errors():
        for error in (InputError("bad"), RuntimeError("defect")):
            try:
                raise error
            except (InputError, RuntimeError):
                logger.exception("failed: %s", error)
        raise InputError("bad")
    assert [record.getMessage() for record in caplog.records] == ["failed: defect"]
    assert not logger.filters


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("_BASE_: x.yaml", ("_BASE_", "x.yaml again")),
        ("_BASE_: 5", ("_BASE_", "found 5")),
        ("_BASE_: [gone.yaml]", ("x.yaml: _BASE_: expected a YAML file, found none at", "gone.yaml")),
        ("", ("found an empty file",)),
        ("- 1", ("found a list",)),
        ("5", ("found one value",)),
        ("SOLVER: {STEPS: &a [*a]}", ("an alias",)),
        ("MODEL: 3", ("x.yaml: MODEL: expected keys below it, such as", "found '3'")),
        ("MODEL: {FPN: [1]}", ("x.yaml: MODEL: FPN: expected keys below it, such as", "found a list")),
        ("MODEL: {FPN:}", ("x.yaml: MODEL: FPN: expected keys below it, such as", "found ''")),
        ("SOLVER: {BASE_LR: {A: 1}}", ("x.yaml: SOLVER: BASE_LR: expected a value such as", "found keys below it")),
        ("SOLVER: {MAX_ITER: [1]}", ("SOLVER.MAX_ITER",)),
        ("[" * 20_000, ("found deeper ones",)),
        ("SEED: " + "{a: " * 20_000, ("found deeper ones",)),
        ("SOLVER:\n  MAX_ITER: 1\n  MAX_ITER: 2", ("x.yaml: SOLVER: MAX_ITER: expected once, found again in line 3",)),
    ],
    ids=[
        *("loop", "number as base", "missing base", "empty", "list", "number", "alias"),
        *("no node", "list as node", "empty node", "node", "type", "nested", "nested keys", "twice"),
    ],
)
@pytest.mark.parametrize("as_base", [False, True])
def test_a_file_that_is_no_config_is_named(tmp_path, content, words, as_base):
    (tmp_path / "x.yaml").write_text(content)
    (tmp_path / "top.yaml").write_text("_BASE_: x.yaml")
    path = tmp_path / ("top.yaml" if as_base else "x.yaml")
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        build_config(str(path), [])
    assert_one_line(caught, path.parent, *words)


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "SOLVER.BASE_LR", "DATASETS.TRAIN", "MODEL.GLIPV2.TEST.SCORE_THRESH"])
@pytest.mark.parametrize("in_file", [True, False])
def test_a_key_without_its_value_is_named(tmp_path, key, in_file):
    *nodes, name = key.split(".")
    text = "".join(f"{'  ' * depth}{node}:\n" for depth, node in enumerate(nodes))
    (tmp_path / "x.yaml").write_text(f"{text}{'  ' * len(nodes)}{name}:\n" if in_file else "SEED: 1\n")
    with pytest.raises(InputError, match=f"^{key}: expected a value such as .*, found none$"):
        build_config(str(tmp_path / "x.yaml"), [] if in_file else [key, "None"])


@pytest.mark.parametrize("opts", [["\r", ""], ["VERSION", "\x85"], ["a\nb", "1"], ["SEED", "1\u20282"]])
def test_line_breaks_in_keys_and_values_stay_out_of_the_message(opts):
    with pytest.raises(InputError) as caught:
        build_config("", opts)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL", "5"], "MODEL: expected a key below it, such as MODEL."),
        (["MODEL.FPN", "[]"], "MODEL.FPN: expected a key below it, such as MODEL.FPN."),
        (
            ["SOLVER.BASE_LR.X", "5"],
            "SOLVER.BASE_LR.X: expected a key of the config, found a part below SOLVER.BASE_LR, a value",
        ),
    ],
)
def test_a_section_has_no_value_and_a_value_no_keys(opts, message):
    with pytest.raises(InputError) as caught:
        build_config(str(CONFIGS / "Base-GLIPv2.yaml"), opts)
    assert str(caught.value).startswith(message)


def test_the_output_folder_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_config(str(CONFIGS / "Base-GLIPv2.yaml"), ["OUTPUT_DIR", "~/runs"]).OUTPUT_DIR == f"{tmp_path}/runs"


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """The folder of a run that started from other weights, with a second config of a user in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_checkpoint(folder / "model_final.pth", {"model": {"a": torch.ones(1)}})
    for name, weights in (("config", "start.pth"), ("empty", ""), ("mine", "start.pth"), ("beside", "model_final.pth")):
        (folder / f"{name}.yaml").write_text(f"MODEL:\n  META_ARCHITECTURE: GLIPv2\n  WEIGHTS: '{weights}'\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("name", "opts", "for_results", "expected"),
    [
        ("config", [], True, "run/model_final.pth"),
        ("config", [], False, "start.pth"),
        ("config", ["MODEL.WEIGHTS", "other.pth"], True, "other.pth"),
        ("config", ["MODEL.WEIGHTS", ""], True, ""),
        ("empty", [], True, "run/model_final.pth"),
        ("empty", [], False, ""),
        ("mine", [], True, "start.pth"),
        ("beside", [], False, "run/model_final.pth"),
    ],
)
def test_results_of_a_run_are_those_of_its_own_weights(run_folder, name, opts, for_results, expected):
    opts = ["MODEL.DEVICE", "cpu", *opts]
    assert build_config(f"run/{name}.yaml", opts, for_results=for_results).MODEL.WEIGHTS == expected


def test_weights_in_the_working_directory_come_before_those_beside_the_config(run_folder):
    write_checkpoint("model_final.pth", {"model": {"a": torch.ones(1)}})
    assert build_config("run/beside.yaml", ["MODEL.DEVICE", "cpu"]).MODEL.WEIGHTS == "model_final.pth"
