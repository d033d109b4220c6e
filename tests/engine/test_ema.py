import pytest
import torch
from torch import nn

from glipv2_d2.engine.ema import ModelEMA


def make_model():
    model = nn.BatchNorm1d(1)
    nn.init.constant_(model.weight, 1.0)
    model.bias.requires_grad_(False)
    return model


def test_average_follows_the_formula_for_parameters_and_buffers():
    model = make_model()
    ema = ModelEMA(model, 0.75)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.running_mean.fill_(8.0)
    ema.update()
    ema.update()
    # weight: 0.75 * 1 + 0.25 * 5 = 2, then 0.75 * 2 + 0.25 * 5 = 2.75; mean: 0 -> 2 -> 3.5.
    with ema.apply():
        assert model.weight.item() == 2.75
        assert model.running_mean.item() == 3.5
    assert model.weight.item() == 5.0


@pytest.mark.parametrize("decay", [0.25, 0.998])
def test_all_tensors_at_once_move_as_one_after_the_other(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 70).double())
    ema = ModelEMA(model, decay)
    averages = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    assert len(averages) == 8
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for _ in range(20):
        for name, average in averages.items():
            tensors[name].data.normal_()
            average.lerp_(tensors[name].data, 1 - decay)
        ema.update()
    assert all(torch.equal(ema.state_dict()[name], average) for name, average in averages.items())


def test_apply_gives_the_weights_back_bit_for_bit_also_after_an_error():
    model = nn.Linear(4, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = ModelEMA(model, 0.9)
    for tensor in before.values():
        tensor.mul_(1.1)
    model.load_state_dict(before)
    ema.update()
    with pytest.raises(RuntimeError), ema.apply():
        assert not torch.equal(model.weight, before["weight"])
        raise RuntimeError
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_frozen_parameters_counters_and_buffers_that_are_not_saved_are_not_averaged():
    model = make_model()
    model.register_buffer("grid", torch.zeros(2), persistent=False)
    assert ModelEMA(model, 0.5).state_dict().keys() == {"weight", "running_mean", "running_var"}


def test_reset_starts_from_the_present_weights():
    model = make_model()
    ema = ModelEMA(model, 0.5)
    nn.init.constant_(model.weight, 7.0)
    ema.reset()
    with ema.apply():
        assert model.weight.item() == 7.0


def test_state_is_what_the_model_does_not_hold():
    model = make_model()
    ema = ModelEMA(model, 0.5)
    nn.init.constant_(model.weight, 3.0)
    assert ema.state_dict()["weight"].item() == 1.0
    with ema.apply():
        assert ema.state_dict()["weight"].item() == 3.0


def test_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="moving average.*'running_mean'"):
        ModelEMA(make_model(), 0.5).load_state_dict({"weight": torch.ones(1), "running_var": torch.ones(1)})


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_decay_outside_its_range_names_the_key(decay):
    with pytest.raises(ValueError, match="SOLVER.EMA_DECAY"):
        ModelEMA(make_model(), decay)


def test_warm_up_forgets_the_first_weights_and_ends_at_the_decay():
    model = make_model()
    ema = ModelEMA(model, 0.5, warmup=True)
    nn.init.constant_(model.weight, 11.0)
    # 0.1 of the old average: 0.1 * 1 + 0.9 * 11 = 10.
    ema.update(0)
    with ema.apply():
        assert model.weight.item() == pytest.approx(10.0)
    nn.init.constant_(model.weight, 0.0)
    # 2/11 of it, and from (1 + n) / (10 + n) > 0.5 on half of it.
    ema.update(1)
    ema.update(50)
    with ema.apply():
        assert model.weight.item() == pytest.approx(10.0 * 2 / 11 / 2)
