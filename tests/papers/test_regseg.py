"""The claims of the RegSeg paper, Tables 1 to 10."""

import itertools
import re
import shlex
from collections import Counter

import pytest
import torch

from segkit import models, papers
from segkit.bench import dblock, latency
from segkit.measure.latency import PAPERS_ROUNDS, PAPERS_WARMUP
from segkit.measure.receptive_field import bound, receptive_field
from segkit.models.regseg import DILATIONS
from segkit.papers import __main__ as command
from segkit.papers import checks, regseg_checks, vnet_checks

# Cells that hold a number, counted in the paper; a mean with its deviation, 78.13±0.48, is two of them. Not
# cells: Table 6's ranges and crops, which name its rows, Table 7's ticks and Table 9's resolutions.
CELLS = {"1": 4, "2": 38, "3": 20, "4": 30, "5": 8, "6": 7, "7": 4, "8": 28, "9": 75, "10": 10}

PRINTED = {
    "regseg.table1.y.ms": 1.0,
    "regseg.table1.d-1-10.ms": 1.2,
    "regseg.table2.eighth.repeat": 3,
    "regseg.table2.last.channels": 320,
    "regseg.table3.run-1.train": 35.77,
    "regseg.table3.run-4.reduced": 75.41,
    "regseg.table4.7.field": 4127,
    "regseg.table4.10.field": 607,
    "regseg.table4.9.reduced": 75.17,
    "regseg.table5.regseg.reduced": 75.84,
    "regseg.table5.bisenet.reduced": 74.68,
    "regseg.table6.large-512x1024.reduced": 75.03,
    "regseg.table7.long.reduced": 78.3,
    "regseg.table8.gas.fps": 153.1,
    "regseg.table8.regseg.spread": 0.07,
    "regseg.table9.mobilenetv3.gflops": 9.74,
    "regseg.table9.ddrnet-23.spread": 0.3,
    "regseg.table9.regseg.test": 78.3,
    "regseg.table10.ddrnet.val": 77.59,
    "regseg.text.field-width": 4095,
    "regseg.text.gain-over-hardnet": 1.5,
}

INCONSISTENT = {
    "regseg.table4.10.field",  # 607 against 479
    "regseg.text.bound",  # row 8 of Table 4 breaks it
    "regseg.text.gain-over-hardnet",  # 2.3 by Table 9
    "regseg.text.gain-of-3x3",  # 0.82 like for like
}

DIFFERS = {"regseg.table9.mobilenetv3.params", "regseg.table9.mobilenetv3.gflops"}


# Rows of Tables 8 to 10 whose networks the kit builds, and their names there.
BUILT = {
    "mobilenetv3": "lraspp-mobilenetv3",
    "swiftnet-rn18": "swiftnet-rn18",
    "fc-hardnet-70": "fc-hardnet70",
    "ddrnet-23": "ddrnet23",
    "ddrnet": "ddrnet23",
    "regseg": "regseg",
}


@pytest.fixture(scope="module")
def regseg():
    return papers.load("regseg")


@pytest.fixture(scope="module")
def results(regseg):
    return {result.claim.id: result for result in papers.check(regseg)}


def test_every_numeric_cell_has_exactly_one_claim(regseg):
    claimed = Counter((claim.table, claim.row, claim.column) for claim in regseg if claim.table)
    cells = [(table.number, *cell) for table in regseg.tables for cell in table.cells]
    assert claimed == Counter(cells)
    assert max(claimed.values()) == 1
    assert {table.number: len(table.cells) for table in regseg.tables} == CELLS


@pytest.mark.parametrize(("claim_id", "value"), PRINTED.items())
def test_printed_values_are_the_papers(regseg, claim_id, value):
    assert regseg[claim_id].value == value


def test_every_status_is_what_the_computation_says(results):
    assert {name: result.error or result.verdict for name, result in results.items() if not result.ok} == {}


def test_the_paper_contradicts_itself_exactly_here(results):
    assert {name for name, result in results.items() if result.verdict == "inconsistent"} == INCONSISTENT
    assert {name for name, result in results.items() if result.verdict == "differs"} == DIFFERS


def test_table_4s_fields(results):
    fields = [results[f"regseg.table4.{row}.field"] for row in range(1, 11)]
    assert [result.ours for result in fields] == [
        *(3807, 3743, 3743, 3295, 3807, 2207, 4127, 3263, 3743),  # as printed
        479,
    ]
    assert fields[-1].instead == 607
    assert regseg_checks.field_of_rates("11*(1,1)") + 3 * 2 * 32 == 607  # 32 pixels for each unit of dilation
    assert regseg_checks.field_of_rates("8*(1,1)+3*(2,2)") == 511  # as if no block of the row strode


def test_row_10s_field_is_what_a_probe_finds_too():
    network = models.build("regnety-600mf", device="meta")
    assert receptive_field(network, at="backbone", output=-1).size == (479, 479)


def test_row_8_alone_breaks_the_bound_at_its_first_dilated_block():
    rows = [f"regseg-row{row}" for row in DILATIONS]
    assert [regseg_checks.beyond_bound([row]) for row in rows] == [0, 0, 0, 0, 0, 0, 0, 1, 0]
    (broken,) = (entry for entry in bound(regseg_checks._path("regseg-row8")) if not entry.holds)
    assert (broken.size, broken.stride, broken.layer.dilation) == (63, 16, 4)


@pytest.mark.parametrize(
    ("rates", "agreeing"),
    [
        ("(1,1)+(1,2)+4*(1,4)+7*(1,14)", 13),
        ("(1,1)+(1,2)+5*(1,4)+6*(1,14)", 12),
        ("(1,1)+(1,2)+4*(1,4)+7*(1,7,14)", 6),
        ("(1,14)", 1),
    ],
)
def test_blocks_are_compared_with_the_text_one_by_one(rates, agreeing):
    assert regseg_checks.blocks_as_printed("regseg", rates) == agreeing


@pytest.mark.parametrize("rates", ["", "(1,14", "7x(1,14)", "(1,1)+", "(1,0.5)"])
def test_rates_that_are_none_are_refused(rates):
    with pytest.raises(ValueError, match="is not dilations such as"):
        regseg_checks.field_of_rates(rates)


def test_more_blocks_than_the_model_has_are_refused():
    with pytest.raises(ValueError, match="regseg has 18 blocks, fewer than the 19"):
        regseg_checks.blocks_as_printed("regseg", "19*(1,1)")


def test_table_2_is_what_table_4s_first_row_becomes(regseg):
    rows = ("quarter", "eighth", "sixteenth", "sixteenth-1-2", "sixteenth-1-4", "sixteenth-1-14", "last")
    cells = {
        row: {c: regseg[f"regseg.table2.{row}.{c}"].value for c in ("d1", "d2", "repeat")} for row in rows
    }
    blocks = [((cell["d1"], cell["d2"]),) * int(cell["repeat"]) for cell in cells.values()]
    assert tuple(itertools.chain(*blocks))[-13:] == DILATIONS[1]


def test_sizes_and_work_are_computed(results):
    ours = {
        row: tuple(results[f"regseg.table9.{row}.{column}"].ours for column in ("params", "gflops"))
        for row in ("swiftnet-rn18", "fc-hardnet-70", "ddrnet-23", "regseg", "mobilenetv3")
    }
    assert ours["swiftnet-rn18"] == pytest.approx((11.797071, 103.57), rel=1e-4)
    assert ours["fc-hardnet-70"] == pytest.approx((4.119257, 35.6275), rel=1e-5)
    assert ours["ddrnet-23"] == pytest.approx((20.148819, 143.0605), rel=1e-6)
    assert ours["regseg"] == pytest.approx((3.334951, 39.0772), rel=1e-6)
    assert ours["mobilenetv3"] == pytest.approx((1.746878, 9.915), rel=1e-4)


def test_one_convention_does_not_fit_both_rows_of_table_10(regseg):
    work = regseg_checks.work
    assert abs(work("regseg", convention="conv") - regseg["regseg.table10.regseg.gflops"].value) > 0.5
    assert abs(work("ddrnet23", convention="fvcore") - regseg["regseg.table10.ddrnet.gflops"].value) > 0.5


def test_every_row_of_work_names_its_convention(regseg, results):
    for claim in regseg:
        if claim.column == "gflops" and results[claim.id].computed:
            words = {"conv": "convolutions alone", "fvcore": "fvcore's total"}[claim.how["convention"]]
            assert claim.note.startswith(words), claim.id


def test_deviations_divide_by_n(regseg, results):
    spreads = {claim.id: claim.how["runs"] for claim in regseg if claim.column == "spread" and claim.how}
    assert {name: results[name].ours for name in spreads} == pytest.approx(
        {
            "regseg.table8.regseg.spread": 0.069,
            "regseg.table9.regseg.spread": 0.483,
            "regseg.table10.ddrnet.spread": 0.093,
            "regseg.table10.regseg.spread": 0.483,
        },
        abs=5e-4,
    )
    for name, runs in spreads.items():  # the notes give the other deviation; the means are the cells beside
        other = regseg_checks.deviation(runs) * (len(runs) / (len(runs) - 1)) ** 0.5
        assert f"n - 1 ({other:.{3 if other < 0.1 else 2}f}" in regseg[name].note
        beside = regseg[name.replace("spread", "miou" if ".table8." in name else "val")]
        digits = len(beside.printed.partition("±")[0].strip().partition(".")[2])
        assert round(regseg_checks.mean(runs), digits) == beside.value
        assert all(f"{run:.3f}" in beside.note for run in runs)


def test_table_3s_deviations_and_means(regseg):
    """The printed columns: 1.01 of mIoU and 0.11 of mIOU^R, and each mIoU is that of 16 classes and three."""
    columns = {
        column: [regseg[f"regseg.table3.run-{run}.{column}"].value for run in range(1, 5)]
        for column in ("truck", "bus", "train", "miou", "reduced")
    }
    spread = {column: regseg_checks.deviation(values) for column, values in columns.items()}
    assert (round(spread["miou"], 2), round(spread["reduced"], 2)) == (1.01, 0.11)
    assert min(spread["truck"], spread["bus"], spread["train"]) > 2.5
    for truck, bus, train, miou, reduced in zip(*columns.values(), strict=True):
        assert (16 * reduced + truck + bus + train) / 19 == pytest.approx(miou, abs=0.01)
    claim = regseg["regseg.text.variation"]
    assert (claim.how["runs"], claim.how["over"]) == (columns["reduced"], columns["miou"])
    assert "is ours and chosen" in claim.note and f"at most {claim.tolerance}" in claim.note
    assert "0.11 of mIOU^R over 1.01 of mIoU" in claim.note


def test_gains_in_the_text_are_of_printed_cells(regseg, results):
    assert results["regseg.text.gain-over-hardnet"].ours == pytest.approx(2.3)
    note = regseg["regseg.text.gain-over-ddrnet-val"].note
    assert (
        re.search(r"last epochs; of the best ones ([\d.]+)", note).group(1)
        in regseg["regseg.table10.regseg.val"].note
    )
    gain = results["regseg.text.gain-of-3x3"]
    assert (gain.ours, gain.instead) == pytest.approx((0.82, 0.69))
    assert "0.69" in gain.claim.note and "0.82" in gain.claim.note


def test_only_other_works_are_quoted(regseg):
    for claim in regseg.select(status="quoted"):
        if claim.table:
            assert claim.table in ("8", "9")
            assert claim.row != "regseg"
            assert claim.kind in ("accuracy", "speed") or claim.how == {}, claim.id
            assert "[" in regseg.tables[int(claim.table) - 1].rows[claim.row]  # a reference
        else:
            assert claim.where == "Section 4.1"  # sizes of data sets


def test_sizes_of_networks_that_the_kit_builds_are_not_quoted(regseg):
    quoted = {claim.row for claim in regseg.select(status="quoted", kind="structure")}
    assert not quoted & set(BUILT)
    computed = {claim.row for claim in regseg if claim.table == "9" and claim.kind == "structure"} - quoted
    assert computed == set(BUILT) - {"ddrnet"}


def test_every_model_of_the_claims_is_the_kits(regseg):
    named = {claim.how["model"] for claim in regseg if "model" in claim.how}
    named |= {name for claim in regseg for name in claim.how.get("models", ())}
    assert len(named) > 20
    assert named <= set(models.MODELS)


@pytest.fixture(scope="module")
def recipes(regseg, recipes_of):
    """Claim id to the recipe that its command would follow."""
    return recipes_of(regseg.select(status="needs-data"))


def test_every_command_is_one_that_the_trainer_takes(recipes, regseg):
    assert len(recipes) == len(regseg.select(status="needs-data")) == 53
    chosen = {(recipe.model, *sorted(recipe.model_options.items())) for recipe in recipes.values()}
    assert len(chosen) == 19  # ten backbones, seven other decoders, RegSeg and DDRNet-23
    for model, *options in chosen:
        models.build(model, device="meta", **dict(options))


def test_speeds_are_measured_by_benchmarks_that_there_are(regseg, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    claims = regseg.select(status="needs-gpu")
    assert Counter(claim.table for claim in claims) == {"1": 4, "8": 1, "9": 1, "10": 2}
    benchmarks = {"dblock": dblock, "latency": latency}
    for line in {claim.command for claim in claims}:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "segkit.bench"]
        with pytest.raises(SystemExit):
            benchmarks[words[3]].main(words[4:])
        assert "no CUDA device" in capsys.readouterr().err  # and not an option that there is not
    for claim in claims:
        if claim.table != "1":
            named = itertools.takewhile(lambda word: word[:2] != "--", shlex.split(claim.command)[5:])
            assert BUILT[claim.row] in named, claim.id


def test_printed_speeds_are_those_that_the_benchmarks_show(regseg):
    assert {name for name in latency.TABLES if name.startswith("regseg")} == {
        f"regseg.table{number}" for number in (8, 9, 10)
    }
    for number in ("8", "9", "10"):
        claims = [c for c in regseg.select(table=number, column="fps") if c.row in BUILT]
        table = latency.TABLES[f"regseg.table{number}"]
        printed = {BUILT[claim.row]: claim.value for claim in claims}
        assert printed == {model: value for model, value in table.per_second.items() if value is not None}
        assert table.quoted == {BUILT[claim.row] for claim in claims if claim.status == "quoted"}
        assert ("mobilenetv3", "fps") in regseg.tables[8].empty  # the one network without a number
    for row, (_, printed) in zip(("y", "d-1-1", "d-1-4", "d-1-10"), dblock.TABLE_1.values(), strict=True):
        assert regseg[f"regseg.table1.{row}.ms"].value == printed


def test_speeds_are_timed_in_their_tables_setting(regseg):
    """Each command, but for the GPU, is what `latency.TABLES` says of the claim's table."""
    for claim in regseg.select(column="fps", status="needs-gpu"):
        words = shlex.split(claim.command)
        options = dict(itertools.pairwise(words))
        table = latency.TABLES[f"regseg.table{claim.table}"]
        size = f"{table.image_size[0]}x{table.image_size[1]}"
        assert options.get("--image-size", "1024x2048") == size
        assert options.get("--num-classes", "19") == str(table.num_classes)
        assert options["--precision"] == "fp16" and table.machine in claim.note
    assert latency.GPU_SIZE == (1024, 2048)
    for number in ("8", "9"):
        assert "Table 10 has the comparable ratio" in regseg[f"regseg.table{number}.regseg.fps"].note


def test_notes_say_how_the_authors_runs_differ(regseg):
    """Color jitter in Tables 3 to 6; the best of the evaluated epochs in Tables 4 to 8."""
    claims = [claim for claim in regseg.select(status="needs-data") if claim.table in "345678"]
    assert Counter(claim.table for claim in claims) == {"3": 20, "4": 10, "5": 8, "6": 7, "7": 4, "8": 1}
    for claim in claims:
        jitter = "trained with color jitter, where the command uses RandAug" in claim.note
        assert jitter == (claim.table in "3456"), claim.id
        if claim.table == "3":
            assert claim.note.startswith("of the last epoch, as the kit measures it")
        else:
            assert re.search(r"best (of|epoch)", claim.note), claim.id
            assert re.search("[Tt]he kit measures (the last|it)", claim.note), claim.id


def test_commands_train_what_the_table_says(recipes):
    ablation = recipes["regseg.table3.run-1.reduced"]
    assert (ablation.model, ablation.epochs, ablation.short_side) == ("regseg-row5", 500, (256, 1792))
    for row in range(1, 10):
        assert recipes[f"regseg.table4.{row}.reduced"].model == f"regseg-row{row}"
    assert recipes["regseg.table4.10.reduced"].model == "regnety-600mf"
    best = recipes["regseg.table5.regseg.reduced"]
    assert (best.model, best.model_options) == ("regseg-row2", {"decoder": "regseg"})
    assert recipes["regseg.table5.concat1x1.reduced"].model == "regseg-sum1x1"
    wide = recipes["regseg.table6.large-512x1024.reduced"]
    assert (wide.model, wide.short_side, wide.crop) == ("regseg-row5", (512, 2048), (512, 1024))
    more = [recipes[f"regseg.table7.{row}.reduced"] for row in ("none", "resize", "ohem", "long")]
    assert [(r.model, r.short_side, r.loss, r.epochs) for r in more] == [
        ("regseg", (512, 2048), "cross_entropy", 500),
        ("regseg", (400, 1600), "cross_entropy", 500),
        ("regseg", (400, 1600), "ohem", 500),
        ("regseg", (400, 1600), "cross_entropy", 1000),
    ]
    camvid = recipes["regseg.table8.regseg.miou"]
    assert (camvid.dataset, camvid.final_split, camvid.weights) == ("camvid", "test", "FILE.pt")
    ours, theirs = recipes["regseg.table10.regseg.val"], recipes["regseg.table10.ddrnet.val"]
    assert (ours.model, ours.seed, theirs.model, theirs.seed) == ("regseg", 1, "ddrnet23", 0)
    different = {key for key, value in ours.settings().items() if theirs.settings()[key] != value}
    assert different == {"name", "model", "seed"}  # "under the exact same training setting"
    assert recipes["regseg.table9.regseg.val"] == ours


def test_the_recipes_are_those_of_section_4_2(regseg, results):
    schedule = {claim.id.removeprefix("regseg.text."): claim for claim in regseg if claim.kind == "schedule"}
    assert len(schedule) == 29
    timing = {name: results[schedule.pop(f"timing-{name}").id].ours for name in ("warmup", "rounds")}
    assert timing == {"warmup": PAPERS_WARMUP, "rounds": PAPERS_ROUNDS}
    for name, claim in schedule.items():
        assert claim.how["recipe"].startswith("regseg_"), name
        assert results[claim.id].verdict == "reproduced", name


@pytest.mark.parametrize(
    ("benchmark", "timed", "arguments"),
    [(latency, "latency", ["--models", "regseg"]), (dblock, "measure", [])],
)
def test_the_benchmarks_iterate_on_a_gpu_as_section_4_7(benchmark, timed, arguments, monkeypatch):
    class Timed(Exception):
        """Raised in place of timing; its argument is how it would have been timed."""

    def time_them(*_, **how):
        raise Timed(how)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark._record, "stamp", lambda *_, **__: {"machine": {}})
    monkeypatch.setattr(benchmark, timed, time_them)
    with pytest.raises(Timed) as caught:
        benchmark.main([*arguments, "--device", "cuda"])
    how = caught.value.args[0]
    assert (how["warmup"], how["rounds"]) == (10, 100)


@pytest.mark.parametrize(("module", "number"), [("decoder", 6), ("decoder.conv8.1", 0)])
def test_a_module_without_exactly_one_convolution_is_refused(module, number):
    message = f"'{module}' of regseg has {number} convolutions; name a module that has exactly one"
    with pytest.raises(ValueError, match=re.escape(message)):
        regseg_checks.convolution("regseg", module, quantity="channels")


def test_a_function_has_one_name():
    assert checks.merged({"a": min}, {"b": max}) == {"a": min, "b": max}
    with pytest.raises(ValueError, match="two functions for claims are named a, c; rename one of them"):
        checks.merged({"a": min, "b": min, "c": min}, {"c": max, "a": max, "d": max})
    groups = (vnet_checks.FUNCTIONS, regseg_checks.FUNCTIONS)
    assert all(checks.FUNCTIONS[name] is function for group in groups for name, function in group.items())


def test_check_and_show_print_the_ledger(regseg, results, capsys, monkeypatch):
    # Once is enough for the long computation.
    monkeypatch.setattr(command.ledger, "check", lambda claims: [results[claim.id] for claim in claims])
    assert command.main(["check", "regseg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split()[0] for line in lines if line.startswith("regseg.")]
    assert printed == [claim.id for claim in regseg]
    assert command.main(["show", "regseg.table4.10.field"]) == 0
    shown = capsys.readouterr().out
    for words in ("Table 4, row 10, Dilated RegNetY-600MF", "607", "inconsistent", "479.00 | 607.00"):
        assert words in shown
