"""The claims of the Ladder-DenseNet paper, Tables 1 to 13."""

import shlex
from collections import Counter

import pytest
import torch

from segkit import models, papers
from segkit.bench import checkpointing, latency
from segkit.measure import max_batch
from segkit.papers import __main__ as command
from segkit.papers import checks

# Cells that hold a number, counted in the paper.
CELLS = {
    "1": 8,
    "2": 45,
    "3": 15,
    "4": 20,
    "5": 49,
    "6": 20,
    "7": 10,
    "8": 9,
    "9": 15,
    "10": 15,
    "11": 4,
    "12": 21,
    "13": 21,
}

PRINTED = {
    "ldn.table1.resnet50.b4": 14.9,
    "ldn.table2.dn121-32.iiou": 46.7,
    "ldn.table2.resnet101-32-4.params": 45.9,
    "ldn.table2.ldn121-32-2.flop": 154.5,
    "ldn.table3.lddn121-16-4.flop": 87.0,
    "ldn.table4.ldn121-64-4-ms.iou": 80.3,
    "ldn.table4.ldn121-128-4.cat-iou": 90.1,
    "ldn.table5.tkcn.test": 79.5,
    "ldn.table5.drn.flop": 2106.0,
    "ldn.table5.ldn161-64-4.val": 80.7,
    "ldn.table6.ldn121-64-4.ri": 68.7,
    "ldn.table7.ldn121-32-4-pt.iou": 78.1,
    "ldn.table8.trained-on-cityscapes.vistas": 44.0,
    "ldn.table9.ldn161-32-4-aug-ms.test": 83.6,
    "ldn.table10.ldn121-64-4-pspnet-spp.params": 10.6,
    "ldn.table11.ldn121-64-4.flip-crop": 76.7,
    "ldn.table12.block-stem-td-up.memory": 3902.0,
    "ldn.table12.unit.max-batch": 19.0,
    "ldn.table12.3x3.fps": 10.5,
    "ldn.table13.resnet101-32-4.memory": 15002.0,
    "ldn.table13.ldn161-32-4-ckpt.max-batch": 19.0,
    "ldn.table13.resnet18-32-4.fps": 24.4,
    "ldn.text.saving-of-stem-td-tu": 1.8,
    "ldn.text.learning-rate": 4e-4,
}

INCONSISTENT = {
    "ldn.table3.lddn121-16-4.flop",  # 87.0B in a column of G
    "ldn.table4.ldn169-64-4.params",  # LDN161's
    "ldn.table4.ldn169-64-4.flop",
    "ldn.table4.ldn121-64-4-ms.flop",  # the flips that Section 6.1 counts in are left out
    "ldn.table12.unit.memory",  # comes out with the transition-down blocks recomputed too
    "ldn.text.resnet50-params",  # 2.6·10⁶
    "ldn.text.gain-over-baseline",
    "ldn.text.saving-of-stem-td-tu",  # 1.8 GB against 1514 MB
    "ldn.text.memory-before",  # a GB of 1000 MB beside one of 1024
    "ldn.text.memory-after",  # 2.1B
    "ldn.text.conclusion-ldn121-cityscapes",  # 80.6 against Table 5's 80.0
}

DIFFERS = {
    "ldn.table2.dpn68-32-4.flop",
    "ldn.table2.ldn121-32-2.flop",
    "ldn.table5.denseaspp.flop",
    "ldn.table5.dfn.flop",
    "ldn.table5.lkm.flop",
    *(
        f"ldn.table5.{row}.flop"
        for row in ("tusimple", "sac-multiple", "pspnet", "multi-task", "tkcn", "deeplab-v3")
    ),
    *(f"ldn.table12.{row}.max-batch" for row in ("block-stem-td-up", "unit", "unit-stem-td-up")),
    *(
        f"ldn.table13.{row}-32-4{checkpointed}.max-batch"
        for row, checkpointed in (
            ("resnet101", ""),
            ("resnet50", ""),
            ("ldn161", "-ckpt"),
            ("ldn121", "-ckpt"),
        )
    ),
    "ldn.table13.resnet101-32-4.memory",
    "ldn.table13.resnet50-32-4.memory",
    "ldn.text.resnet50-flop-excess",
    "ldn.text.equation-1-block-1",
    *(f"ldn.text.caching-potential-block-{number}" for number in (1, 2, 3)),
    "ldn.text.equivalent-time",
    "ldn.text.equivalent-capacity",
}


@pytest.fixture(scope="module")
def ldn():
    return papers.load("ldn")


@pytest.fixture(scope="module")
def results(ldn):
    return {result.claim.id: result for result in papers.check(ldn)}


def test_every_numeric_cell_has_exactly_one_claim(ldn):
    claimed = Counter((claim.table, claim.row, claim.column) for claim in ldn if claim.table)
    cells = [(table.number, *cell) for table in ldn.tables for cell in table.cells]
    assert claimed == Counter(cells)
    assert max(claimed.values()) == 1
    assert {table.number: len(table.cells) for table in ldn.tables} == CELLS


def test_cells_are_rows_times_columns_less_the_empty_ones(ldn):
    for table in ldn.tables:
        assert len(table.cells) == len(table.rows) * len(table.columns) - len(table.empty)


@pytest.mark.parametrize(("claim_id", "value"), PRINTED.items())
def test_printed_values_are_the_papers(ldn, claim_id, value):
    assert ldn[claim_id].value == value


def test_every_status_is_what_the_computation_says(results):
    assert {name: result.error or result.verdict for name, result in results.items() if not result.ok} == {}


def test_the_paper_contradicts_itself_exactly_here(results):
    assert {name for name, result in results.items() if result.verdict == "inconsistent"} == INCONSISTENT
    assert {name for name, result in results.items() if result.verdict == "differs"} == DIFFERS


def test_table_4_ldn169_is_ldn161(results):
    size = results["ldn.table4.ldn169-64-4.params"]
    work = results["ldn.table4.ldn169-64-4.flop"]
    assert (size.ours, size.instead) == pytest.approx((16.09, 30.05), abs=0.01)
    assert (work.ours, work.instead) == pytest.approx((71.5, 138.72), abs=0.05)


def test_multi_scale_work_leaves_the_flips_out(results):
    result = results["ldn.table4.ldn121-64-4-ms.flop"]
    assert result.ours == pytest.approx(2 * result.instead)
    assert result.instead == pytest.approx(536.2, rel=0.0015)


def test_table_1_counts_projections_and_transitions_down(results):
    ours = {
        row: [results[f"ldn.table1.{row}.b{number}"].ours for number in (1, 2, 3, 4)]
        for row in ("resnet50", "densenet121")
    }
    assert ours == {
        "resnet50": [0.212992, 1.212416, 7.077888, 14.942208],
        "densenet121": [0.364544, 1.040384, 3.325952, 2.12992],
    }
    without = [checks.equivalent_residual_block("densenet121", n, quantity="weights") for n in (1, 2, 3, 4)]
    assert without == pytest.approx([1.26, 3.68, 9.54, 8.37], abs=0.005)  # far from n = 6, 12, 24, 16


def memory(results, table, row):
    result = results[f"ldn.table{table}.{row}.memory"]
    return result.ours, result.claim.value


def test_memory_of_the_baseline(results):
    assert memory(results, "12", "baseline")[0] == pytest.approx(11103, rel=0.005)
    assert memory(results, "12", "unit-stem-td-up")[0] == pytest.approx(2187, rel=0.005)
    assert memory(results, "13", "resnet50-32-4")[0] == pytest.approx(8607, rel=0.005)


def test_memory_shrinks_from_row_to_row_as_in_table_12(results, ldn):
    (table,) = (table for table in ldn.tables if table.number == "12")
    baseline, printed_baseline = memory(results, "12", "baseline")
    for row in table.rows:
        ours, printed = memory(results, "12", row)
        if row == "unit":
            assert ours / baseline == pytest.approx(0.382, abs=0.005)  # printed: 0.321
            ours = results["ldn.table12.unit.memory"].instead
        assert ours / baseline == pytest.approx(printed / printed_baseline, abs=0.015), row


def test_memory_shrinks_as_in_table_13(results):
    for network in ("ldn161-32-4", "ldn121-32-4"):
        before, printed_before = memory(results, "13", network)
        ours, printed = memory(results, "13", f"{network}-ckpt")
        assert ours / before == pytest.approx(printed / printed_before, abs=0.015), network


@pytest.mark.parametrize("fragmentation", [False, True])
def test_largest_batch_is_what_the_measuring_finds(fragmentation):
    network = models.build("ladder-resnet18-32-4", device="meta")
    options = {"budget_gib": 5.5, "fragmentation": fragmentation}
    found = max_batch(network, (768, 768), **options, optimizer="amsgrad")
    assert checks.largest_batch("ladder-resnet18-32-4", **options) == found > 6


def test_gaps_explain_why_checkpoints_bring_less_than_tensors_need():
    """As the notes of those claims say: budget -> with gaps; without, at 11.5 GiB."""
    rows = {"unit,td": ({11.5: 17}, 19), "unit,stem,td,tu": ({11.5: 26, 11.7: 27}, 34)}
    for recompute, (with_gaps, without) in rows.items():
        for gib, batch in with_gaps.items():
            assert checks.largest_batch("ldn121-32-4", recompute=recompute, budget_gib=gib) == batch
        assert checks.largest_batch("ldn121-32-4", recompute=recompute, fragmentation=False) == without


def test_a_dense_unit_keeps_what_it_reads_twice():
    assert checks.copies_kept("densenet121") == checks.copies_kept("densenet161") == 2


def test_every_structural_cell_of_our_models_is_computed(ldn, results):
    cells = [claim for claim in ldn if claim.table and claim.kind == "structure" and "model" in claim.how]
    assert len(cells) == 2 * (9 + 3 + 5 + 5 + 5) + 3  # Tables 2, 3, 4, 6, 10; Table 5 has no sizes
    assert all(results[claim.id].ours is not None for claim in cells)


def test_only_other_works_are_quoted(ldn):
    for claim in ldn.select(status="quoted"):
        if claim.table:
            assert claim.table in ("5", "7", "9")
            assert not any(word in claim.row for word in ("ldn", "lddn", "ddn"))
        else:
            assert "[25]" in claim.note


@pytest.fixture(scope="module")
def recipes(ldn, recipes_of):
    """Claim id to the recipe that its command would follow."""
    return recipes_of(ldn.select(status="needs-data"))


def test_every_command_is_one_that_the_trainer_takes(recipes, ldn):
    assert len(recipes) == len(ldn.select(status="needs-data")) > 60
    assert all(recipe.model in models.MODELS for recipe in recipes.values())


def test_speeds_are_measured_by_a_benchmark_that_there_is(ldn, monkeypatch, capsys):
    plans = checkpointing.PLANS
    tables = {(plan.model, plan.recompute, plan.papers_batch): plan.tables for plan in plans}
    claims = ldn.select(status="needs-gpu")
    assert {(claim.table, claim.column, claim.kind) for claim in claims} == {
        ("12", "fps", "speed"),
        ("13", "fps", "speed"),
        (None, None, "speed"),
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    in_text = ldn["ldn.text.conclusion-speed"].command.split()
    assert in_text[:4] == ["python", "-m", "segkit.bench", "latency"]
    with pytest.raises(SystemExit):
        latency.main(in_text[4:])
    assert "no CUDA device" in capsys.readouterr().err
    for claim in (claim for claim in claims if claim.table):
        words = shlex.split(claim.command)
        assert words[:4] == ["python", "-m", "segkit.bench", "checkpointing"]
        with pytest.raises(SystemExit):
            checkpointing.main(words[4:])
        assert "no CUDA device" in capsys.readouterr().err  # and not an option that there is not
        step = ldn[claim.id.replace(".fps", ".max-batch")]
        assert int(claim.table) in tables[step.how["model"], step.how.get("recompute"), step.value]


def test_commands_train_and_measure_what_the_table_says(recipes):
    half = recipes["ldn.table3.lddn121-8-4.iou"]
    assert (half.resolution, half.crop, half.model) == (0.5, (448, 448), "lddn121-8-4")
    full = recipes["ldn.table4.ldn121-128-4.iou"]
    assert (full.resolution, full.crop, full.epochs, full.multi_scale) == (1.0, (768, 768), 300, False)
    assert recipes["ldn.table4.ldn121-64-4-ms.iou"].multi_scale
    assert recipes["ldn.table5.ldn161-64-4.val"].multi_scale
    pretrained, random = recipes["ldn.table6.ldn121-64-4.pt"], recipes["ldn.table6.ldn121-64-4.ri"]
    assert (pretrained.weights, pretrained.epochs, pretrained.final_split) == ("imagenet", 400, "test")
    assert (random.weights, random.epochs, random.multi_scale) == ("none", 800, False)
    small = recipes["ldn.table7.ldn121-16-2-pt.iou"]
    assert (small.model, small.weights, small.epochs) == ("ldn121-16-2", "imagenet", 400)
    assert recipes["ldn.table7.ldn121-32-4-ri.iou"].multi_scale
    assert recipes["ldn.table10.ldn121-64-4-noaux.iou"].aux_weight == 0
    augmented = {name: recipes[f"ldn.table11.ldn121-64-4.{name}"] for name in ("none", "flip", "flip-crop")}
    assert {name: (recipe.flip, recipe.scale, recipe.crop) for name, recipe in augmented.items()} == {
        "none": (0, (1, 1), (1024, 2048)),
        "flip": (0.5, (1, 1), (1024, 2048)),
        "flip-crop": (0.5, (1, 1), (768, 768)),
    }


def test_check_and_show_print_the_ledger(ldn, results, capsys, monkeypatch):
    # Once is enough for the long computation.
    monkeypatch.setattr(command.ledger, "check", lambda claims: [results[claim.id] for claim in claims])
    assert command.main(["check", "ldn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split()[0] for line in lines if line.startswith("ldn.")]
    assert printed == [claim.id for claim in ldn]
    assert command.main(["show", "ldn.table4.ldn169-64-4.params"]) == 0
    shown = capsys.readouterr().out
    for words in ("Table 4, LDN169 64→4, Model size", "30.0M", "inconsistent", "| 30.053", "LDN161"):
        assert words in shown
    assert "model_size(model='ldn169-64-4', paper_count=True)" in shown
