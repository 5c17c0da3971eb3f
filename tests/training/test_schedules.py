"""The schedules."""

import pytest

from segkit.training.schedules import cosine, poly


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


def test_poly_falls_from_one_as_the_power_of_what_is_left():
    factors = [poly(step, 1000, power=0.9) for step in range(1000)]
    assert factors[0] == 1
    assert factors[900] == pytest.approx(10**-0.9)  # a tenth of the run is left
    assert factors[-1] == pytest.approx(1000**-0.9)
    assert factors == sorted(factors, reverse=True)
    assert poly(250, 1000, power=1) == pytest.approx(0.75)
    assert poly(250, 1000, power=0) == 1
    assert poly(250, 1000) == factors[250]


@pytest.mark.parametrize("step", [-1, 10, 11])
def test_poly_refuses_a_step_outside_the_run(step):
    with pytest.raises(ValueError, match=f"step {step} is not in a run of 10 steps: expected 0 to 9"):
        poly(step, 10)
