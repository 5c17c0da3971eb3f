"""The schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segkit.training.schedules import cosine, poly, warmup


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


@given(st.integers(1, 10_000), st.integers(0, 20_000), st.floats(0, 1))
def test_warmup_is_a_straight_line_to_one_and_then_one(steps, step, factor):
    value = warmup(step, steps, factor=factor)
    if step >= steps:
        assert value == 1
    else:
        assert value == pytest.approx(factor + (1 - factor) * step / steps)
        assert factor <= value <= 1


def test_warmup_over_no_steps_is_none():
    assert [warmup(step, 0) for step in (0, 1, 100)] == [1, 1, 1]


def test_regsegs_rate_by_hand():
    """Sec. 4.2: half-way through the warm-up of 371,000 steps (the numbers multiplied by hand: 0.02740)."""
    rate = 0.05 * poly(1500, 371_000) * warmup(1500, 3000, factor=0.1)
    assert rate == pytest.approx(0.05 * 0.9963608 * 0.55, rel=1e-6)
    assert f"{rate:.5f}" == "0.02740"
    assert 0.05 * poly(0, 371_000) * warmup(0, 3000, factor=0.1) == pytest.approx(0.005)
    assert poly(3000, 371_000) * warmup(3000, 3000) < 1  # the initial rate itself is never reached


@pytest.mark.parametrize(
    ("step", "steps", "factor", "message"),
    [
        (-1, 10, 0.1, "not step -1 of 10"),
        (0, -10, 0.1, "not step 0 of -10"),
        (0, 10, 1.5, "a factor from 0 to 1, not 1.5"),
        (0, 10, -0.1, "a factor from 0 to 1, not -0.1"),
    ],
)
def test_warmup_refuses_what_is_no_warmup(step, steps, factor, message):
    with pytest.raises(ValueError, match=message):
        warmup(step, steps, factor=factor)
