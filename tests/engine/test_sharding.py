"""Two processes that share the weights of a model train as two that have all of them, and leave the same files."""

import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_cfg
from drawn_images import register_drawn
from rank_runs import run_ranks
from torch import distributed
from torch.testing import assert_close
from training_runs import assert_same, train

from glipv2_d2 import GLIPv2Trainer
from glipv2_d2.checkpoint.checkpointer import build_for_results
from glipv2_d2.engine.train_loop import check_sharding
from glipv2_d2.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

STEPS, HALF = 4, 2
OPTIONS = (
    *("SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", HALF, "SOLVER.ACCUMULATION_STEPS", 2),
    *("SOLVER.EMA_DECAY", 0.9, "SOLVER.WARMUP_ITERS", 2, "SOLVER.STEPS", (3,), "SOLVER.BASE_LR", 0.001),
    *("SOLVER.MAX_CHECKPOINTS", 2, "MODEL.GLIPV2.TOWER.USE_CHECKPOINT", True, "TEST.EVAL_PERIOD", HALF),
    *("TEST.BEST_METRICS", ("bbox/AP",)),
)


def make_cfg(dataset, folder, *options):
    cfg = make_tiny_cfg()
    data = ("DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,))
    cfg.merge_from_list([*OPTIONS, *data, "OUTPUT_DIR", str(folder), *options])
    return cfg


def train_of_rank(rank):
    """Losses, results and the parts that a rank holds of a run each way, and the files of the folder they share."""
    shared = [tempfile.mkdtemp() if rank == 0 else None]
    distributed.broadcast_object_list(shared)
    folder = Path(shared[0])
    dataset = register_drawn(Path(tempfile.mkdtemp()) / "drawn")
    found = {}
    for name, sharded in (("whole", False), ("parts", True), ("again", True), ("whole again", False)):
        torch.manual_seed(rank)
        output = folder / name
        if name in ("again", "whole again") and rank == 0:
            # Cut off after the first checkpoint; the file of either way goes on in the other.
            output.mkdir()
            source = folder / "parts"
            shutil.copy(source / f"model_{HALF - 1:07d}.pth", output)
            (output / "last_checkpoint").write_text(f"model_{HALF - 1:07d}.pth")
        distributed.barrier()
        cfg = make_cfg(dataset, output, "SOLVER.SHARD_WEIGHTS", sharded)
        trainer = train(cfg, resume=True)
        history = trainer.storage.history("total_loss").values() if rank == 0 else []
        found[name] = {
            "start": trainer.start_iter,
            "losses": [value for value, _ in history],
            "numbers": sum(own.numel() for own in map(part_of, trainer.model.parameters())),
            "ap": float(trainer._last_eval_results["bbox"]["AP"]) if rank == 0 else math.nan,
        }
        distributed.barrier()
    if rank == 0:
        files = {name: sorted(file.name for file in (folder / name).glob("*.pth")) for name in found}
        finals = {name: torch.load(folder / name / "model_final.pth", weights_only=True) for name in found}
        cfg = make_cfg(dataset, folder, "MODEL.WEIGHTS", str(folder / "parts" / "model_final.pth"))
        loaded = build_for_results(cfg).state_dict()
        shutil.rmtree(folder)
        return found, files, finals, loaded
    return (found,)


def part_of(parameter):
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(train_of_rank)


@pytest.mark.slow
def test_losses_and_weights_are_those_of_whole_models(ranks):
    found, _, finals, _ = ranks[0]
    assert len(found["parts"]["losses"]) == STEPS
    assert found["parts"]["losses"] == pytest.approx(found["whole"]["losses"], rel=1e-4)
    assert found["parts"]["losses"][0] != pytest.approx(found["parts"]["losses"][-1], rel=1e-4)
    assert found["parts"]["ap"] == pytest.approx(found["whole"]["ap"], abs=0.5)
    whole, parts = finals["whole"]["model"], finals["parts"]["model"]
    assert list(whole) == list(parts)
    for name, tensor in whole.items():
        assert_close(parts[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.slow
def test_each_process_holds_about_half_of_the_numbers(ranks):
    whole = ranks[0][0]["whole"]["numbers"]
    for rank in ranks:
        assert rank[0]["whole"]["numbers"] == whole and rank[0]["parts"]["numbers"] < 0.6 * whole


@pytest.mark.slow
def test_the_checkpoint_is_whole_and_loads_into_one_process(ranks):
    _, files, finals, loaded = ranks[0]
    names = ["model_0000001.pth", "model_0000003.pth", "model_best_bbox_AP.pth", "model_final.pth"]
    assert files["parts"] == files["whole"] == names
    assert_shapes(finals["parts"], finals["whole"])
    for name, tensor in finals["parts"]["model"].items():
        assert torch.equal(loaded[name], tensor)


def assert_shapes(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_shapes(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(ranks):
    found, _, finals, _ = ranks[0]
    assert found["again"]["start"] == HALF
    for key in ("model", "iteration"):
        assert_same(finals["again"][key], finals["parts"][key])
    assert_same(finals["again"]["trainer"]["_trainer"], finals["parts"]["trainer"]["_trainer"])
    assert_same(finals["again"]["trainer"]["hooks"], finals["parts"]["trainer"]["hooks"])


@pytest.mark.slow
def test_whole_models_go_on_from_the_file_of_a_sharded_one(ranks):
    found, _, finals, _ = ranks[0]
    assert found["whole again"]["start"] == HALF
    for name, tensor in finals["parts"]["model"].items():
        assert_close(finals["whole again"]["model"][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.GLIPV2.TUNING.MODE", "lora"), "MODEL.GLIPV2.TUNING.MODE: expected 'full' with .*, found 'lora'"),
        (("SOLVER.AMP.ENABLED", True), "SOLVER.AMP.DTYPE: expected 'bfloat16' with .*, found 'float16'"),
        (("MODEL.GLIPV2.CLASS_WORDS.ENABLED", True), "MODEL.GLIPV2.CLASS_WORDS.ENABLED: expected False .*, found True"),
        (("MODEL.GLIPV2.BOX.REG_LOSS_WEIGHT", 0.0), "SOLVER.SHARD_WEIGHTS: expected False where .*, found True"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tiny_cfg, options, message):
    tiny_cfg.merge_from_list(["SOLVER.SHARD_WEIGHTS", True, *options])
    with pytest.raises(InputError, match=message):
        check_sharding(tiny_cfg)


def test_one_process_keeps_its_weights(train_cfg):
    train_cfg.SOLVER.SHARD_WEIGHTS = True
    model = GLIPv2Trainer(train_cfg).model
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())
