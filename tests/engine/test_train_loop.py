import copy
import logging

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from glipv2_d2.engine.train_loop import GroundingTrainLoop, seed_generators


class MeanModel(nn.Module):
    """Loss: mean over the batch of (w . x)^2, with dropout before it if asked for."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch):
        values = torch.stack([sample["x"] for sample in batch])
        return {
            "loss_a": (self.dropout(values) @ self.weight).float().pow(2).mean(),
            "loss_b": 0.5 * self.weight.pow(2).sum() * 0,
        }


def sample(*values, image_id=0):
    return {"x": torch.tensor(values), "image_id": image_id}


def make_loop(model, batches, lr=0.1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return GroundingTrainLoop(model, batches, optimizer, **options)


def run(loop, steps, start=0):
    with EventStorage(start) as storage:
        for loop.iter in range(start, start + steps):
            loop.run_step()
        return storage


def test_one_step_is_gradient_descent_on_the_sum_of_the_losses():
    model = MeanModel()
    run(make_loop(model, [[sample(1.0, 1.0)]]), 1)
    # loss = (w0 + w1)^2, gradient 2 * (1 - 2) = -2 for both.
    assert model.weight.tolist() == pytest.approx([1.2, -1.8])


def test_accumulated_batches_equal_one_large_batch():
    samples = [sample(*row) for row in torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).tolist()]
    large, small = MeanModel(), MeanModel()
    run(make_loop(large, [samples]), 1)
    storage = run(make_loop(small, [samples[:2], samples[2:4], samples[4:]], accumulation_steps=3), 1)
    assert torch.allclose(small.weight, large.weight, atol=1e-6)
    expected = sum(float(s["x"] @ torch.tensor([1.0, -2.0])) ** 2 for s in samples) / 6
    assert storage.latest()["loss_a"][0] == pytest.approx(expected, rel=1e-5)


def test_clipping_sees_the_gradient_of_the_whole_step():
    norms = []

    def clip(parameters):
        norms.append(nn.utils.clip_grad_norm_(parameters, 1.0).item())
        return torch.tensor(norms[-1])

    model = MeanModel()
    run(make_loop(model, [[sample(1.0, 1.0)], [sample(2.0, 2.0)]], accumulation_steps=2, clip_gradients=clip), 1)
    # Gradients (-2, -2) and (-8, -8), mean (-5, -5), norm 5 sqrt(2), clipped to 1: (-1, -1) / sqrt(2).
    assert norms == pytest.approx([5 * 2**0.5])
    step = 0.1 / 2**0.5
    assert model.weight.tolist() == pytest.approx([1 + step, -2 + step], abs=1e-5)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_nonfinite_loss_changes_nothing_and_names_its_images(precision, caplog):
    model = MeanModel()
    bad = [sample(1.0, 1.0, image_id=7), sample(float("nan"), 1.0, image_id=8)]
    loop = make_loop(model, [[sample(1.0, 1.0)], bad, [sample(1.0, 1.0)]], precision=precision)
    run(loop, 1)
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.WARNING):
        run(loop, 1, start=1)
    assert torch.equal(model.weight, before["weight"])
    assert "iteration 1" in caplog.text and "image ids 7, 8" in caplog.text
    assert loop.nonfinite_steps == 1
    run(loop, 1, start=2)
    assert loop.nonfinite_steps == 0
    assert not torch.equal(model.weight, before["weight"]) and model.weight.isfinite().all()


def test_nonfinite_batch_spoils_its_whole_step_and_no_other_image_is_named(caplog):
    model = MeanModel()
    batches = [[sample(1.0, 1.0, image_id=1)], [sample(float("inf"), 1.0, image_id=2)]]
    run(make_loop(model, batches, accumulation_steps=2), 1)
    assert model.weight.tolist() == [1.0, -2.0]
    assert "image ids 2;" in caplog.text


class InfiniteGradient(nn.Module):
    """Finite loss sqrt(w) at w = 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"loss_a": self.weight.sqrt().sum()}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_nonfinite_gradients_change_nothing(precision, caplog):
    model = InfiniteGradient()
    loop = make_loop(model, [[sample(1.0, 1.0)]], precision=precision)
    run(loop, 1)
    assert model.weight.item() == 0.0
    assert "gradients are not finite" in caplog.text and loop.nonfinite_steps == 1


def test_gradients_that_stay_infinite_at_the_smallest_loss_scale_count():
    loop = make_loop(InfiniteGradient(), [[sample(1.0, 1.0)]] * 40, precision=torch.float16, max_nonfinite_steps=3)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        run(loop, 40)
    # From 65536 the scale is halved 16 times before it is 1, and thrice more.
    assert loop.iter == 18


class OverflowingGradient(nn.Module):
    """Gradient of 2 in half precision, which overflows when it is scaled by 65536."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss_a": (self.weight.half() * 2).sum()}


def test_overflow_of_the_loss_scale_is_no_failure():
    model = OverflowingGradient()
    loop = make_loop(model, [[sample(1.0, 1.0)]] * 5, precision=torch.float16, max_nonfinite_steps=1)
    run(loop, 1)
    assert model.weight.item() == 1.0 and loop.nonfinite_steps == 0
    run(loop, 4, start=1)
    assert model.weight.item() < 1.0


def test_too_many_skipped_steps_in_a_row_end_the_training():
    model = MeanModel()
    loop = make_loop(model, [[sample(float("nan"), 1.0, image_id=5)]] * 3, max_nonfinite_steps=3)
    with pytest.raises(FloatingPointError, match="iteration 2: .*3 steps in a row.*image ids 5"):
        run(loop, 3)
    assert model.weight.tolist() == [1.0, -2.0]


def test_low_precision_trains_with_finite_weights():
    for precision in (torch.bfloat16, torch.float16):
        model = MeanModel()
        loop = make_loop(model, [[sample(1.0, 1.0)]] * 30, lr=0.05, precision=precision)
        run(loop, 30)
        assert model.weight.dtype == torch.float32
        assert abs(model.weight.sum().item()) < 0.1


def test_forward_runs_in_the_asked_precision():
    seen = []

    class Probe(MeanModel):
        def forward(self, batch):
            seen.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
            return super().forward(batch)

    for precision in (None, torch.bfloat16):
        run(make_loop(Probe(), [[sample(1.0, 1.0)]], precision=precision), 1)
    assert seen == [torch.float32, torch.bfloat16]


def test_randomness_of_a_step_depends_on_seed_and_iteration_alone():
    def weights_after(start, seed, steps):
        model = MeanModel(dropout=0.5)
        torch.rand(start)  # another past of the generator
        loop = make_loop(model, [[sample(1.0, 1.0), sample(0.5, 2.0)]] * 20, seed=seed, accumulation_steps=2)
        run(loop, steps, start)
        return model.weight.tolist()

    assert weights_after(3, seed=0, steps=4) == weights_after(3, seed=0, steps=4)
    assert weights_after(3, seed=0, steps=4) != weights_after(3, seed=1, steps=4)
    assert weights_after(3, seed=0, steps=4) != weights_after(4, seed=0, steps=4)


def test_batches_of_one_step_differ_in_their_randomness():
    draws = []

    class Probe(MeanModel):
        def forward(self, batch):
            draws.append(torch.rand(1).item())
            return super().forward(batch)

    run(make_loop(Probe(), [[sample(1.0, 1.0)]] * 2, accumulation_steps=2, seed=0), 1)
    assert draws[0] != draws[1]


def test_negative_seed_leaves_the_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(make_loop(MeanModel(), [[sample(1.0, 1.0)]], seed=-1), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeding_reaches_all_generators():
    import random

    draws = []
    for _ in range(2):
        seed_generators(1, 2, 3)
        draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
    seed_generators(1, 2, 4)
    assert draws[0] == draws[1]
    assert torch.rand(1).item() != draws[0][0]


def test_state_survives_a_file_without_pickled_objects(tmp_path):
    model = MeanModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    # Small enough for half precision under the initial loss scale.
    batches = [[sample(1e-3, 1e-3)], [sample(float("nan"), 1.0)]]
    loop = GroundingTrainLoop(model, batches, optimizer, precision=torch.float16)
    run(loop, 2)
    loop.grad_scaler.update(128.0)
    torch.save(loop.state_dict(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    other = make_loop(MeanModel(), [], precision=torch.float16)
    other.optimizer = torch.optim.AdamW(other.model.parameters(), lr=0.5)
    other.load_state_dict(state)
    assert other.grad_scaler.get_scale() == 128.0
    assert other.nonfinite_steps == 1
    assert other.optimizer.param_groups[0]["lr"] == 0.1
    assert other.optimizer.state_dict()["state"][0]["step"] == 1


def test_state_of_another_precision_starts_a_new_loss_scale():
    state = make_loop(MeanModel(), []).state_dict()
    loop = make_loop(MeanModel(), [], precision=torch.float16)
    loop.load_state_dict(state)
    assert loop.grad_scaler.get_scale() == 65536.0


def test_accumulation_below_one_names_the_key():
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATION_STEPS"):
        make_loop(MeanModel(), [], accumulation_steps=0)


def test_step_is_skipped_when_another_rank_has_a_nonfinite_loss(monkeypatch):
    # Two ranks, of which the other one reports 1: the mean is 0.5.
    monkeypatch.setattr("glipv2_d2.engine.train_loop.reduce_mean", lambda flag: (flag + 1) / 2)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    for name in ("all_gather", "gather"):
        monkeypatch.setattr(f"detectron2.utils.comm.{name}", lambda value, *_, **__: [value])
    model = MeanModel()
    loop = make_loop(model, [[sample(1.0, 1.0)]])
    run(loop, 1)
    assert model.weight.tolist() == [1.0, -2.0] and loop.nonfinite_steps == 1


def test_gradients_travel_between_ranks_once_per_step(monkeypatch):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain, model = MeanModel(), MeanModel()
        wrapped = nn.parallel.DistributedDataParallel(model)
        calls = []
        no_sync = wrapped.no_sync
        monkeypatch.setattr(wrapped, "no_sync", lambda: calls.append(1) or no_sync())
        batches = [[sample(1.0, 1.0)], [sample(0.5, 1.0)], [sample(0.0, 1.0)]]
        run(make_loop(wrapped, batches, accumulation_steps=3), 1)
        run(make_loop(plain, batches, accumulation_steps=3), 1)
    finally:
        torch.distributed.destroy_process_group()
    assert len(calls) == 2
    assert model.weight.tolist() == pytest.approx(plain.weight.tolist())
