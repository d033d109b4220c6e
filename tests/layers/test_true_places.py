import pytest
import torch
from pretended_device import pretended_device

from glipv2_d2.layers.true_places import true_places


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_places_of_true_entries_are_those_of_nonzero_and_a_device_is_not_waited_for(share):
    mask = torch.rand(4, 31, generator=torch.Generator().manual_seed(0)) < share
    expected = mask.nonzero(as_tuple=True)
    count = len(expected[0])
    assert all(map(torch.equal, true_places(mask, count), expected))
    with pretended_device() as traffic:
        there = mask.to("cuda")
        traffic.clear()
        found = true_places(there, count)
        assert not traffic.waits
        assert all(torch.equal(one.numbers, other) for one, other in zip(found, expected))
