"""The cosine schedule."""

import pytest

from segkit.training.schedules import cosine


def test_cosine_falls_from_one_through_one_half():
    factors = [cosine(epoch, 300) for epoch in range(300)]
    assert factors[0] == 1
    assert factors[150] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.75)  # (1 + cos 60°) / 2
    assert 0 < factors[-1] < 1e-4
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("epoch", [-1, 10, 11])
def test_cosine_refuses_an_epoch_outside_the_run(epoch):
    with pytest.raises(ValueError, match="0 to 9"):
        cosine(epoch, 10)
