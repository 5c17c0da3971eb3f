"""The benchmark of the D block: the same block in every row, exact ways, the record, the verdict."""

import json
import math

import pytest
import torch
from torch import nn

from segkit import papers
from segkit.bench import dblock
from segkit.bench.dblock import PLAIN, TABLE_1, WAYS, Way, branched, errors, summary, y_block
from segkit.models.regseg import DBlock


@pytest.fixture
def narrow(monkeypatch):
    """Blocks of 64 channels: up to four branches of one group."""
    monkeypatch.setattr(dblock, "WIDTH", 64)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The record of a run with few channels and small maps."""
    folder = tmp_path_factory.mktemp("dblock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dblock, "WIDTH", 64)
        assert dblock.main(["--maps", "6x8", "--rounds", "3", "--out", str(folder)]) == 0
    return json.loads((folder / "dblock.json").read_text())


def test_table_1(written):
    assert [row["block"] for row in written["table1"]] == list(TABLE_1)
    assert [row["dilations"] for row in written["table1"]] == [[1], [1, 1], [1, 4], [1, 10]]
    assert [round(row["paper_ratio"], 6) for row in written["table1"]] == [1.0, 1.1, 1.2, 1.2]
    assert written["table1_ratios"] == {
        row["block"]: {mode: row[mode]["ratio"] for mode in ("eval", "training")} for row in written["table1"]
    }
    for row in [*written["table1"], written["y_block_norms_folded"] | {"training": None}]:
        for mode in ("eval", "training"):
            if row[mode] is not None:
                check_timing(row[mode])
    assert written["table1"][0]["eval"]["ratio"] == written["table1"][0]["training"]["ratio"] == 1


def check_timing(timing):
    lower, upper = timing["quartiles"]
    assert 0 < timing["minimum"] <= lower <= timing["median"] <= upper
    assert timing["ratio"] > 0 and timing["ratio_of_minima"] > 0


def test_ways(written):
    assert [row["way"] for row in written["ways"]] == list(WAYS)
    for row in written["ways"]:
        check_timing(row["eval"])
        assert ("training" in row) == row["trains"] == WAYS[row["way"]].trains
        assert "note" not in row and row["exact"]
        assert row["error"]["float32"] <= 1e-6 and row["error"]["float64"] <= 1e-12
        assert ("gradients_float64" in row["error"]) == row["trains"]
        assert row["error"].get("training_float32", 0) <= 1e-6
        assert row["error"].get("gradients_float64", 0) <= 1e-12
    plain = written["ways"][0]
    assert plain["way"] == PLAIN and plain["eval"]["ratio"] == plain["training"]["ratio"] == 1
    assert set(plain["error"].values()) == {0}
    assert (
        "1e-06 in float32 and 1e-12 in float64, gradients and statistics in float64 too" in written["exact"]
    )
    assert "in float32 are reported only" in written["exact"]
    assert set(written["summary"]["faster"]) <= set(WAYS) - {PLAIN}


def test_the_record_says_how_it_was_made(written):
    assert written["command"].startswith("python -m segkit.bench dblock --maps 6x8")
    assert written["input"] == [1, 64, 6, 8] and written["precision"] == "fp32"
    assert written["rounds"] == 3 and written["warmup"] == 2
    assert set(written["environment"]) == set(dblock.ENVIRONMENT)
    one_thread = torch.get_num_threads() == 1
    assert written["clock"].startswith("the processor's time" if one_thread else "wall time")
    assert math.isfinite(written["machine"]["load_at_start"] + written["machine"]["load_at_end"])


def test_the_blocks_of_table_1_are_regsegs():
    torch.manual_seed(0)
    whole = y_block().eval()
    x = torch.randn(1, 256, 9, 11)
    for dilations in ((1, 4), (1, 10)):
        made, ours = branched(whole, dilations), DBlock(256, 256, dilations).eval()
        ours.load_state_dict(made.state_dict())  # the same names and shapes
        assert [conv.dilation for conv in made.branches] == [(d, d) for d in dilations]
        with torch.no_grad():
            assert torch.equal(made(x), ours(x))
            assert torch.equal(dblock.plain(made, x), ours(x))
            assert torch.equal(dblock.plain(whole, x), whole(x))
    split = branched(whole, (1, 1))
    assert len(split.branches) == 2 and len(whole.branches) == 1
    with torch.no_grad():
        torch.testing.assert_close(split(x), whole(x))
        assert not torch.allclose(branched(whole, (1, 4))(x), whole(x))
    for block in (whole, split, made):
        assert sum(parameter.numel() for parameter in block.parameters()) == 202_560


@pytest.mark.parametrize("dilations", [(1,), (2, 1), (1, 3, 6, 12)])
@pytest.mark.parametrize("name", [name for name in WAYS if name != PLAIN])
def test_every_way_is_exact(narrow, name, dilations):
    torch.manual_seed(1)
    found = errors(WAYS[name], branched(y_block(), dilations), torch.randn(2, 64, 7, 10))
    assert dblock.exact(found), found
    assert len(found) == (6 if WAYS[name].trains else 2)


def test_errors_are_seen(narrow):
    torch.manual_seed(2)
    block, x = branched(y_block(), (1, 4)), torch.randn(2, 64, 7, 10)
    found = errors(Way(lambda block, x: 1.001 * dblock.plain(block, x), ""), block, x)
    assert found["float64"] == pytest.approx(1e-3) and found["training_float32"] == pytest.approx(
        1e-3, rel=0.01
    )

    def other_gradient(block, x):
        main = dblock.plain(block, x)
        return 2 * main - main.detach()

    found = errors(Way(other_gradient, ""), block, x)
    assert found["training_float64"] == 0 and found["gradients_float64"] > 0.1

    def counts_twice(block, x):
        block.norm.num_batches_tracked.add_(int(block.training))
        return dblock.plain(block, x)

    found = errors(Way(counts_twice, ""), block, x)
    assert found["training_float64"] == 0 and found["gradients_float64"] == 1


def test_a_way_that_does_not_run_is_noted(narrow, monkeypatch, tmp_path, capsys):
    def fails(block, x):
        raise RuntimeError("no kernel\nand more")

    ways = {PLAIN: WAYS[PLAIN], "odd": Way(fails, "fails"), "norms folded": WAYS["norms folded"]}
    monkeypatch.setattr(dblock, "WAYS", ways)
    monkeypatch.setattr(dblock, "errors", lambda way, block, x: {"float32": 0.0, "float64": 0.0})
    assert dblock.main(["--maps", "4x6", "--rounds", "1", "--out", str(tmp_path)]) == 0
    rows = {row["way"]: row for row in json.loads((tmp_path / "dblock.json").read_text())["ways"]}
    assert rows["odd"]["note"] == "does not run: RuntimeError: no kernel" and "eval" not in rows["odd"]
    assert "(does not run: RuntimeError: no kernel)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "error", "verdict"),
    [
        ("float32", 1e-6, True),
        ("float32", 2e-6, False),
        ("float64", 2e-12, False),
        ("training_float32", 2e-6, False),
        ("training_float64", 2e-12, False),
        ("gradients_float64", 1e-12, True),
        ("gradients_float64", 2e-12, False),
        ("gradients_float32", 1.0, True),  # reported only
    ],
)
def test_what_exact_covers(key, error, verdict):
    assert dblock.exact({"float32": 0.0, "float64": 0.0, key: error}) is verdict


def test_the_committed_record_is_what_the_benchmark_writes(written):
    """The same keys throughout; of Table 1's size and with the numbers of passes that its page names."""
    kept = json.loads((papers.ledger.MEASURED / "dblock.json").read_text())

    def keys(value):
        if isinstance(value, dict):
            return {key: keys(part) for key, part in value.items() if key not in ("machine", "versions")}
        if isinstance(value, list):
            return [keys(part) for part in value if isinstance(part, dict)]
        return None

    assert keys(kept) == keys(written)
    assert (kept["input"], kept["rounds"], kept["exact"]) == ([1, 256, 64, 128], 21, written["exact"])
    assert [row["exact"] for row in kept["ways"]] == [row["exact"] for row in written["ways"]]
    assert kept["summary"] == summary(kept["ways"])


def row(way, *, exact=True, trains=True, eval=(1.0, 1.0), training=(1.0, 1.0)):
    made = {"way": way, "exact": exact, "trains": trains}
    for mode, ratios in (("eval", eval), ("training", training)):
        if ratios:
            made[mode] = dict(zip(("ratio", "ratio_of_minima"), ratios, strict=True))
    return made


def test_summary():
    rows = [
        row(PLAIN),
        row("both", eval=(0.9, 0.95), training=(0.99, 1.0)),
        row("by luck", eval=(0.9, 0.99)),
        row("a little", eval=(0.98, 0.98)),
        row("slow to train", eval=(0.8, 0.8), training=(1.02, 0.99)),
        row("inexact", exact=False, eval=(0.5, 0.5)),
        row("eval only", trains=False, eval=(0.7, 0.7), training=None),
        row("does not train", eval=(0.75, 0.75), training=None),
        row("does not run", eval=None, training=None),
    ]
    assert summary(rows) == {"faster": ["both", "eval only"], "fastest": "eval only"}
    assert summary(rows[:1]) == {"faster": [], "fastest": PLAIN}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--maps", "0x4"], "--maps 0x4: give at least one pixel a side"),
        (["--maps", "1x1"], "--maps 1x1: batch norm cannot train on one value per channel"),
        (["--maps", "wide"], "'wide' is not HEIGHTxWIDTH"),
        (["--rounds", "0"], "'0' is not a whole number of at least 1"),
        (["--precision", "int8"], "invalid choice: 'int8'"),
        (["--device", "cuda"], "there is no CUDA device; --device cpu times the blocks here"),
    ],
)
def test_bad_options(arguments, message, assert_refused):
    assert_refused(dblock.main, arguments, message)


def test_the_random_state_stays(narrow):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    dblock.main(["--maps", "2x3", "--rounds", "1"])
    assert torch.equal(torch.get_rng_state(), state)


def test_norms_have_values_as_after_training(narrow):
    norms = [module for module in y_block().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3
    for norm in norms:
        assert norm.running_mean.std() > 0.1 and norm.running_var.std() > 0.1 and norm.bias.std() > 0.1
