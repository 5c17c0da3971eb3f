"""The exercises of notebook 02, answered as a learner would; test_exercises.py has blanks and mistakes."""

import re
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from segkit.memory import chunked_cross_entropy
from segkit.memory.recompute import Freeze
from segkit.notebook import sweep
from segkit.notebook.exercises import hint, n02
from segkit.notebook.exercises.kinds import UNANSWERED


def test_there_are_five():
    assert list(n02.EXERCISES) == [f"02.{i}" for i in range(1, 6)]


def test_02_1_is_what_the_simulation_says():
    peak = n02.simulated("block,stem,td,tu")
    part = sweep.place_of(peak.timeline.modules[peak.timeline.peak])
    assert hint("02.1", part) is None
    at_the_loss = max(
        total
        for path, total in zip(peak.timeline.modules, peak.timeline.total, strict=True)
        if sweep.place_of(path) == "loss"
    )
    assert at_the_loss < peak.total


def test_02_2_is_the_best_length_and_the_hints_count_right():
    lengths = [1, 2, 4, 8, 16, 32, 64]  # equal segments
    live = {s: max(moment.live for moment in sweep.toy_step(64, s)) for s in lengths}
    best = min(live.values())
    assert [s for s, count in live.items() if count == best] == [8] and hint("02.2", 8) is None
    assert (live[8], live[4], live[16], live[1], live[64]) == (15, 19, 19, 64, 64)
    for length in (4, 16):
        assert f"{live[length]} alive" in hint("02.2", length)
    assert f"{best} inputs are alive" in hint("02.2", best)


# 02.3 ---------------------------------------------------------------------------------------------


def test_02_3_is_measured():
    assert hint("02.3", " td, tu,stem , 3x3,cat1x1") is None
    assert hint("02.3", "unit,td,tu") == (
        "it fits with 2,727 MiB, but does 124.2 GMAC again; there is one that does 50.5"
    )
    assert hint("02.3", "") == "this step needs 11,103 MiB, more than 3,700"
    assert "covers '3x3' twice" in hint("02.3", "unit,3x3")
    assert hint("02.3", "cat1x1,spp").startswith("'spp' is none of the paper's labels")
    assert hint("02.3", "td:1").startswith("'td:1' is none of the paper's labels")
    assert hint("02.3", 3) == "labels with commas between them are asked for, this is int"
    assert hint("02.3", ...) == UNANSWERED


@pytest.mark.parametrize("answer", n02.EXERCISES["02.3"].others)
def test_02_3_hints_say_what_the_simulation_says(answer):
    sentence, peak = hint("02.3", answer), n02.simulated(answer)
    (needs,) = re.findall(r"([\d,]+) MiB", sentence)
    assert needs == f"{peak.total / n02.MIB:,.0f}"
    if work := re.findall(r"([\d.]+) GMAC", sentence):
        assert work == [f"{peak.recomputed_macs / 1e9:.1f}"]
    fits = peak.total / n02.MIB <= n02.EXERCISES["02.3"].budget
    assert fits == (answer in ("unit,td", "unit,tu", "unit,stem,td,tu"))


# 02.4 ---------------------------------------------------------------------------------------------


def recomputed_with(context):
    def recomputed(segment, x):
        return checkpoint(
            segment, x, use_reentrant=False, context_fn=lambda: (nullcontext(), context(segment))
        )

    return recomputed


def test_02_4_right_with_the_kits_own():
    assert hint("02.4", recomputed_with(Freeze)) is None


def test_02_4_right_by_setting_back():
    @contextmanager
    def set_back(segment):
        norm = next(module for module in segment.modules() if isinstance(module, nn.BatchNorm2d))
        momentum, counter = norm.momentum, norm.num_batches_tracked.item()
        norm.momentum = 0.0
        try:
            yield
        finally:
            norm.momentum = momentum
            norm.num_batches_tracked.fill_(counter)

    assert hint("02.4", recomputed_with(set_back)) is None


def test_02_4_without_finally_the_counter_stays_another():
    @contextmanager
    def forgotten(segment):
        norm = segment[0]
        momentum, counter = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, counter.clone()
        yield
        norm.momentum, norm.num_batches_tracked = momentum, counter

    assert "`finally`" in hint("02.4", recomputed_with(forgotten))


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no way back")


def test_02_4_an_error_in_the_backward_pass_is_told_and_not_raised():
    assert hint("02.4", lambda segment, x: NoWayBack.apply(segment(x))).endswith("ValueError: no way back")


# 02.5 ---------------------------------------------------------------------------------------------


def test_02_5_right():
    assert hint("02.5", lambda logits, labels: chunked_cross_entropy(logits, labels)) is None


def test_02_5_right_in_a_loop():
    def one(logits, labels):
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
        return F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")

    def loop(logits, labels):
        total = 0.0
        for i in range(len(logits)):
            total = total + checkpoint(one, logits[i : i + 1], labels[i : i + 1], use_reentrant=False)
        return total / labels.ne(255).sum()

    assert hint("02.5", loop) is None


def test_02_5_pairs_of_images_are_told_what_would_be_enough():
    def pairs(logits, labels):
        total = sum(
            checkpoint(n02._sum_of_one, *pair, use_reentrant=False)
            for pair in zip(logits.split(2), labels.split(2), strict=True)
        )
        return total / (labels != 255).sum()

    assert hint("02.5", pairs).endswith("are enough")


def test_02_5_what_cannot_be_measured_is_told():
    def counts(logits, labels):
        total = sum(
            checkpoint(n02._sum_of_one, *pair, use_reentrant=False) for pair in n02._images(logits, labels)
        )
        return total / (labels != 255).sum().item()

    assert hint("02.5", counts).startswith("the loss is right, but cannot be measured: ")
