import json

import pytest
from parity_weights import TINY_FOLDER, official_state_dict


def test_recreated_weights_have_the_recorded_numbers():
    facts = json.loads((TINY_FOLDER / "weights.json").read_text())
    tensors = official_state_dict()
    assert set(tensors) == {name for name, fact in facts.items() if fact["by_rule"]}
    for name, tensor in tensors.items():
        fact, values = facts[name], tensor.double().flatten()
        assert list(tensor.shape) == fact["shape"], name
        assert (values[0].item(), values[-1].item()) == (fact["first"], fact["last"]), name
        assert values.sum().item() == pytest.approx(fact["sum"], rel=1e-9, abs=1e-6), name
        assert values.norm().item() == pytest.approx(fact["l2"], rel=1e-9), name
