"""The drift of batch norms and the lost gradients of notebook 02: what happens, the same each time."""

import math

import pytest
import torch

from segkit.notebook import drift


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = {row.method: row for row in drift.bn_drift()}
    assert torch.equal(torch.get_rng_state(), before)  # a notebook's later cells draw what they drew before
    return found


def test_recomputing_moves_the_statistics_twice(rows):
    assert rows["plain"].factor == pytest.approx(0.1, abs=1e-6) and rows["plain"].counter == 1
    for method in ("checkpoint(use_reentrant=False)", "torchvision, memory_efficient=True"):
        assert rows[method].factor == pytest.approx(1 - 0.9**2, abs=1e-6)
        assert rows[method].counter == 2
        assert rows[method].difference > 0.01 and not rows[method].bit_equal


def test_the_folklore_momentum_is_close_but_counts_twice(rows):
    row = rows["momentum 1 - sqrt(1 - m)"]
    assert 0 < row.difference < 1e-6
    assert row.factor == pytest.approx(0.1, abs=1e-6)
    assert row.counter == 2 and not row.bit_equal


def test_ours_is_bit_equal(rows):
    row = rows["ours"]
    assert row.bit_equal and row.difference == 0 and row.counter == 1
    assert row.factor == rows["plain"].factor


def test_without_freezing_ours_would_drift(monkeypatch):
    class Nothing(drift.nullcontext):
        pass

    monkeypatch.setattr(drift, "Freeze", Nothing)
    row = drift.bn_drift()[-1]
    assert row.method == "ours" and not row.bit_equal and row.counter == 2


def test_gradients_never_tell(rows):
    assert len(rows) == 5 and all(row.same_gradients for row in rows.values())


def test_drift_is_deterministic(rows):
    assert drift.bn_drift() == list(rows.values())


def test_a_reentrant_first_segment_is_not_trained_and_looks_leaner():
    plain, right, wrong = drift.reentrant_loses_gradients()
    assert math.isfinite(plain.stem_gradient) and plain.stem_gradient > 0
    assert right.stem_gradient == plain.stem_gradient and wrong.stem_gradient is None
    assert wrong.peak < right.peak < plain.peak
    assert plain.warning is None and right.warning is None
    assert "None of the inputs have requires_grad=True" in wrong.warning
    assert drift.reentrant_loses_gradients() == [plain, right, wrong]
