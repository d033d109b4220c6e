"""The share of the tuned weights: by halving, as close to the base as the own names allow."""

import pytest

from glipv2_d2.engine.share_choice import choose_share


@pytest.mark.parametrize(
    ("own", "tried", "share"),
    [
        # The metric is 40 from a share of 0.6 on, and falls steeply below.
        (lambda share: 40.0 if share >= 0.6 else 10.0, [1.0, 0.5, 0.75, 0.625], 0.625),
        (lambda share: 40.0 * min(1.0, share / 0.2), [1.0, 0.5, 0.25, 0.125], 0.25),
        # Nothing is lost on the way to the base.
        (lambda share: 40.0, [1.0, 0.5, 0.25, 0.125], 0.125),
        # Everything is.
        (lambda share: 40.0 * share, [1.0, 0.5, 0.75, 0.875], 1.0),
        # The model found nothing and is left beside its base.
        (lambda share: 0.0, [1.0, 0.5, 0.25, 0.125], 0.125),
        # A share between both is better than the tuned weights: 98 % of 50 is what counts.
        (lambda share: 50.0 if share == 0.5 else 40.0, [1.0, 0.5, 0.25, 0.375], 0.5),
    ],
)
def test_share_is_found_by_halving(own, tried, share):
    choice = choose_share(own, lambda share: 1 - share, 0.98)
    assert choice.share == share and list(choice.own) == tried
    assert all(choice.own[one] >= 0.98 * max(choice.own.values()) for one in choice.agreement)


def test_agreement_decides_among_shares_that_keep_enough():
    agreed = {1.0: 0.5, 0.5: 0.9, 0.25: 0.6, 0.125: 0.9}
    choice = choose_share(lambda share: 40.0, agreed.get, 0.98)
    # Of two that agree alike the one that is closer to the base.
    assert choice.share == 0.125 and choice.agreement == agreed
    assert choose_share(lambda share: 40.0, (agreed | {0.125: 0.8}).get, 0.98).share == 0.5
