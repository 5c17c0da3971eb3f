"""Plans fit their budget, redo no more than they must, and say so when nothing fits."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.bench.checkpointing import PLANNED
from segkit.bench.plans import STEPS
from segkit.measure import peak_memory
from segkit.memory import Segments, chunked_step, frontier, plan, planner
from segkit.models import build

NAME, BATCH, SIZE = "ladder-resnet18-32-4", 4, (256, 320)
MIB = 2**20
MEASURED = Path(__file__).parents[2] / "data" / "measured" / "plans.json"
all_models = pytest.mark.skipif(
    os.environ.get("SEGKIT_ALL_MODELS") != "1", reason="a minute of simulations; with --all-models"
)


@pytest.fixture(scope="module")
def network():
    return build(NAME, device="meta")


@pytest.fixture(scope="module")
def plain(network):
    return peak_memory(network, BATCH, SIZE)


@pytest.fixture(scope="module")
def plans(network):
    return frontier(network, BATCH, SIZE, ratio=0.85)


def simulated(recompute, **options):
    return peak_memory(build(NAME, device="meta", recompute=recompute), BATCH, SIZE, **options)


# --- the search ---

choices = st.lists(
    st.lists(st.tuples(*[st.integers(0, 20)] * 4), min_size=1, max_size=4), min_size=1, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(choices=choices, loss=st.integers(0, 20), budget=st.integers(0, 100))
def test_the_search_finds_what_trying_everything_finds(choices, loss, budget):
    table = planner._Table(
        (),
        [
            [
                planner._Choice((f"{i}:{j}",), kept, need, (macs, written))
                for j, (kept, need, macs, written) in enumerate(place)
            ]
            for i, place in enumerate(choices)
        ],
        loss,
    )
    best = None
    for taken in itertools.product(*table.choices):
        kept, fits = 0, True
        for choice in taken:
            fits = fits and kept + choice.need <= budget
            kept += choice.kept
        work = (sum(c.work[0] for c in taken), sum(c.work[1] for c in taken))
        if fits and kept + loss <= budget and (best is None or work < best):
            best = work
    found = planner._least_work(table, budget)
    assert (found and found[0]) == best
    if found:
        by_tokens = {c.tokens[0]: c for place in table.choices for c in place}
        taken = [by_tokens[token] for token in found[1]]
        assert len(taken) == len(choices)
        assert (sum(c.work[0] for c in taken), sum(c.work[1] for c in taken)) == best


def test_combinations_leave_out_what_covers_each_other():
    tokens = ["cat1x1:1", "3x3:1", "unit:1", "block:1"]
    found = list(planner._combinations(tokens))
    assert found == [
        (),
        ("cat1x1:1",),
        ("3x3:1",),
        ("unit:1",),
        ("block:1",),
        ("cat1x1:1", "3x3:1"),
    ]


# --- plans ---


def test_a_budget_for_the_plain_step_needs_no_segments(network, plain):
    found = plan(network, plain.total / 2**30, BATCH, SIZE)
    assert found.recompute == ""
    assert found.total == plain.total
    assert found.recomputed_macs == 0
    assert "recompute=''" in str(found) and "(0.0 % of a forward pass)" in str(found)


def test_a_frontier_falls_in_memory_and_grows_in_work(plans, plain):
    assert plans[0].total == plain.total and len(plans) >= 5
    for more, less in itertools.pairwise(plans):
        assert less.total < more.total
        assert less.recomputed_macs >= more.recomputed_macs
    assert plans[-1].total < 0.6 * plain.total
    assert plans[0].forward_macs == plain.forward_macs > 0


def test_a_plan_is_what_build_takes_and_costs_what_it_says(plans):
    for found in plans[1:]:
        peak = simulated(found.recompute)
        assert peak.total == found.total
        assert peak.recomputed_macs == found.recomputed_macs


def test_no_plan_by_hand_that_fits_does_less(network):
    search = planner._Search(network, BATCH, SIZE)
    rows = [
        simulated(text) for text in ("stem", "block", "tu", "block,stem,tu", "skip,blend", "block,tu,spp")
    ]
    for row in rows:
        found = search.within(row.total)
        assert found.total <= row.total
        assert found.recomputed_macs <= row.recomputed_macs


def test_the_loss_is_the_callers(network, plans):
    lean = plan(network, 0.9 * plans[-1].total / 2**30, BATCH, SIZE, step=chunked_step)
    assert lean.total == simulated(lean.recompute, step=chunked_step).total <= 0.9 * plans[-1].total


def test_what_the_model_recomputes_itself_plays_no_role(plain):
    busy = build(NAME, device="meta", recompute="block,stem")
    found = plan(busy, plain.total / 2**30, BATCH, SIZE)
    assert (found.recompute, found.total) == ("", plain.total)
    assert busy.segment.chosen == {"block", "stem"}


def test_the_model_stays_as_it_is():
    model = build(NAME, recompute="tu")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    plan(model, 8, 2, (64, 64))
    assert model.segment.chosen == {"tu"} and model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["ldn121-64-4", "vnet", "enet", "espnet", "erfnet", "segnet", "pspnet-r50"])
def test_every_choice_redoes_what_the_search_thinks(name):
    """Each place is offered with all modules that its segments run."""
    search = planner._Search(build(name, device="meta"), 2, (256, 256))
    plain = search.plain.recomputed_macs  # reversible stacks recompute by themselves
    for i, place in enumerate(search.combinations):
        tokens = place[-1]
        choices, _ = search.take_apart(
            search.measure(tokens), [tokens if i == j else () for j in range(len(search.paths))]
        )
        whole = search.measure(tokens).recomputed_macs
        others = sum(choice.work[0] for j, choice in enumerate(choices) if j != i)
        assert choices[i].work[0] + others == whole, tokens
        if name != "vnet":
            assert others == plain == 0, tokens


def test_networks_with_few_plans_get_the_very_best():
    for name in ("vnet", "enet"):
        model = build(name, device="meta")
        search = planner._Search(model, 2, (128, 256))
        assert search.few
        for factor in (0.95, 0.85, 0.75):
            budget = int(factor * search.plain.total)
            fitting = [p.recomputed_macs for p in search.few if p.total <= budget]
            found = search.within(budget)
            assert (found.recomputed_macs if found else None) == (min(fitting) if fitting else None)


def test_a_reversible_network_that_was_built_to_recompute():
    plain = peak_memory(build("vnet", device="meta"), 2, (128, 256)).total
    busy = build("vnet", device="meta", recompute="unit")
    assert plan(busy, 1, 2, (128, 256)).total == plain


class Own(nn.Module):
    """A network of one's own: two convolutions, one of which can be a segment."""

    def __init__(self, recompute=None):
        super().__init__()
        self.segment = Segments(recompute, available=("block",))
        self.first = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()
        )
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 2, 1))
        for place, part in enumerate((self.first, self.second), start=1):
            self.segment.offer("block", str(place), part)
        self.segment.check_places()

    def forward(self, x):
        x = self.segment("block", self.first, x, place="1")
        return self.segment("block", self.second, x, place="2")


def test_a_network_of_ones_own():
    model = Own()
    plain = peak_memory(model, 2, (64, 64)).total
    found = plan(model, 0.9 * plain / 2**30, 2, (64, 64))
    assert found.recompute in ("block:1", "block:2", "block")
    assert found.total == peak_memory(Own(found.recompute), 2, (64, 64)).total <= 0.9 * plain


# --- what cannot be done ---


def test_nothing_fits(network, plans):
    with pytest.raises(
        ValueError,
        match=r"No plan fits .* at batch 4 and 256x320: the leanest found, recompute='.+', needs 0\.\d+ GiB",
    ):
        plan(network, 0.9 * plans[-1].total / 2**30, BATCH, SIZE)


def test_a_budget_below_the_model_itself(network):
    with pytest.raises(ValueError, match="does not hold the model itself"):
        plan(network, 0.1, BATCH, SIZE, optimizer="amsgrad")


@pytest.mark.parametrize("budget", [0, -1, "12", True, float("nan")])
def test_wrong_budgets(network, budget):
    with pytest.raises(ValueError, match="budget_gib="):
        plan(network, budget, BATCH, SIZE)


def test_a_network_without_segments():
    with pytest.raises(ValueError, match="Sequential offers no segments to choose from"):
        plan(nn.Sequential(nn.Conv2d(3, 2, 1)), 8, BATCH, SIZE)


def test_a_network_with_several_segments():
    with pytest.raises(ValueError, match="Sequential has 2 Segments"):
        plan(nn.Sequential(Own(), Own()), 8, BATCH, SIZE)


def test_wrong_ratio(network):
    with pytest.raises(ValueError, match=r"ratio=1: give a number between 0 and 1"):
        frontier(network, BATCH, SIZE, ratio=1)


# --- at the paper's scale ---


@all_models
def test_paper_scale():
    """LDN121 32->4, batch 6, 768x768, AMSGrad, by checkpoints alone; the paper's best: 2106 MB, 132.6 G."""
    search = planner._Search(
        build("ldn121-32-4", device="meta"),
        6,
        (768, 768),
        step=chunked_step,
        optimizer="amsgrad",
        precision="fp32",
    )
    assert search.leanest().total < 1230 * MIB
    found = search.within(1490 * MIB)
    assert found.total <= 1490 * MIB
    assert found.recomputed_macs < 83e9
    assert found.recompute == PLANNED  # which the benchmark of checkpoints runs


class TestMeasured:
    """The committed plans are still what the code says."""

    result = json.loads(MEASURED.read_text(encoding="utf-8"))

    def peak(self, row, step, precision):
        model = build(self.result["model"], device="meta", recompute=row["recompute"])
        setting = (self.result["batch_size"], tuple(self.result["image_size"]))
        return peak_memory(
            model, *setting, step=STEPS[step], optimizer=self.result["optimizer"], precision=precision
        )

    def test_plans_on_the_frontiers(self):
        for part in self.result["frontiers"]:
            for row in (part["plans"][len(part["plans"]) // 2], part["plans"][-1]):
                peak = self.peak(row, part["step"], part["precision"])
                assert (peak.total, peak.recomputed_macs) == (row["predicted"], row["recomputed_macs"])

    def test_below_earlier_frontiers(self):
        (chunked,) = (
            part["plans"]
            for part in self.result["frontiers"]
            if (part["step"], part["precision"]) == ("chunked", "fp32")
        )
        # A prototype's frontier had these points.
        for mib, gmac in ((4770, 0), (2714, 34), (1864, 81), (1567, 115), (1490, 127)):
            work = [row["recomputed_macs"] for row in chunked if row["predicted"] <= mib * MIB]
            assert min(work) <= gmac * 1e9

    def test_largest_batches(self):
        row = self.result["largest_batch"][-1]
        model = build(row["model"], device="meta", recompute=row["recompute"])
        for gib, batch in list(row["batch_by_gib"].items())[:2]:
            peaks = [
                peak_memory(model, b, (row["crop"],) * 2, step=STEPS[row["step"]], optimizer="amsgrad").total
                for b in (batch, batch + 1)
            ]
            assert peaks[0] <= int(gib) * 2**30 < peaks[1]
