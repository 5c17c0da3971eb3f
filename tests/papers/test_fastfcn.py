"""The claims of the FastFCN paper, Tables 1 to 5."""

import dataclasses
import re
import shlex
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import segkit.predict
import segkit.train
from segkit import models, papers
from segkit.bench import jpu
from segkit.measure import peak_memory
from segkit.papers import __main__ as command
from segkit.papers import fastfcn_checks
from segkit.training.recipes import RECIPES

# All cells that hold a number, as the paper prints them, row by row; OS, printed once for several rows, is a
# cell of each.
TABLES = {
    "1": """
  Encoding [36], None          8 78.39 49.91
  Encoding [36], Bilinear     32 76.10 46.47
  Encoding [36], FPN [20]     32 78.16 49.59
  Encoding [36], JPU (ours)   32 78.98 51.05
  ASPP [6], None               8 78.27 49.19
  ASPP [6], JPU (ours)        32 78.79 50.07
  PSP [38], None               8 78.60 50.58
  PSP [38], JPU (ours)        32 78.91 50.89
""",
    "2": """
  ResNet-50, Encoding [36], None         18.77
  ResNet-50, Encoding [36], Bilinear     45.67
  ResNet-50, Encoding [36], FPN [20]     37.87
  ResNet-50, Encoding [36], JPU (ours)   37.56
  ResNet-50, ASPP [6], None              15.99
  ResNet-50, ASPP [6], JPU (ours)        20.67
  ResNet-50, PSP [38], None              18.08
  ResNet-50, PSP [38], JPU (ours)        28.48
  ResNet-101, Encoding [36], None        10.51
  ResNet-101, Encoding [36], Bilinear    35.20
  ResNet-101, Encoding [36], FPN [20]    32.40
  ResNet-101, Encoding [36], JPU (ours)  32.02
  ResNet-101, ASPP [6], None             10.46
  ResNet-101, ASPP [6], JPU (ours)       18.08
  ResNet-101, PSP [38], None             11.36
  ResNet-101, PSP [38], JPU (ours)       23.87
""",
    "3": """
  FCN-8s [22]                        37.8
  CRF-RNN [39]                       39.3
  ParseNet [21]                      40.4
  BoxSup [10]                        40.5
  HO-CRF [2]                         41.3
  Piecewise [19]                     43.3
  VeryDeep [32]                      44.5
  DeepLabV2 [5], ResNet-101 + COCO   45.7
  RefineNet [18], ResNet-152         47.3
  EncNet [36], ResNet-101            51.7
  DUpsampling [29], Xception-71      52.5
  EncNet+JPU (ours), ResNet-50       51.2
  EncNet+JPU (ours), ResNet-101      53.1
""",
    "4": """
  FCN [22]                     71.32 29.39
  SegNet [3]                   71.00 21.64
  DilatedNet [35]              73.55 32.31
  CascadeNet [40]              74.52 34.90
  RefineNet [18], ResNet-152       - 40.7
  PSPNet [38], ResNet-101      81.39 43.29
  PSPNet [38], ResNet-269      81.69 44.94
  EncNet [36], ResNet-50       79.73 41.11
  EncNet [36], ResNet-101      81.69 44.65
  Ours, ResNet-50              80.39 42.75
  Ours, ResNet-101             80.99 44.34
""",
    "5": """
  CASIA_IVA_JD, ✗              1 0.5547
  WinterIsComing, ✗            2 0.5544
  PSPNet [38], ResNet-269      - 0.5538
  EncNet [36], ResNet-101      - 0.5567
  Ours, ResNet-101             - 0.5584
""",
}
CELLS = {"1": 24, "2": 16, "3": 13, "4": 21, "5": 7}  # counted in the paper

PRINTED = {
    "fastfcn.text.miou-abstract": 53.13,
    "fastfcn.text.miou-59-r50": 52.10,
    "fastfcn.text.weight-decay": 1e-4,
    "fastfcn.text.pcontext-training-images": 4998,
}

INCONSISTENT = {
    "fastfcn.table3.r50.miou",  # 59/60 of what was measured on 59 classes, like the next two
    "fastfcn.table3.r101.miou",
    "fastfcn.text.miou-abstract",
    "fastfcn.text.less-computation-abstract",  # 2.72; 3.05 are frames per second
    "fastfcn.text.less-computation-conclusion",
    "fastfcn.text.conv5-computation",  # 14.48; 16 but for the first block
    "fastfcn.text.conv5-memory",  # 13.89, likewise
}

DIFFERS = {
    "fastfcn.text.less-memory",
    "fastfcn.text.pcontext-classes",
    "fastfcn.text.memory-of-encnet",  # as far as it is simulated
}

PAIRS = [(depth, head) for depth in ("r50", "r101") for head in ("enc", "aspp", "psp")]
NONE, JPU = "fastfcn-r101-enc-none", "fastfcn-r101-enc-jpu"


@pytest.fixture(scope="module")
def fastfcn():
    return papers.load("fastfcn")


@pytest.fixture(scope="module")
def results(fastfcn):
    return {result.claim.id: result for result in papers.check(fastfcn)}


@pytest.fixture(scope="module")
def recipes(fastfcn, recipes_of):
    """Claim id to the recipe that its command would follow."""
    return recipes_of(fastfcn.select(status="needs-data"))


def test_every_numeric_cell_has_exactly_one_claim(fastfcn):
    claimed = Counter((claim.table, claim.row, claim.column) for claim in fastfcn if claim.table)
    cells = [(table.number, *cell) for table in fastfcn.tables for cell in table.cells]
    assert claimed == Counter(cells)
    assert max(claimed.values()) == 1
    assert {table.number: len(table.cells) for table in fastfcn.tables} == CELLS


@pytest.mark.parametrize(("number", "printed"), TABLES.items())
def test_the_tables_are_the_papers(fastfcn, number, printed):
    table = next(table for table in fastfcn.tables if table.number == number)
    rows = [row.rsplit(maxsplit=len(table.columns)) for row in printed.strip().splitlines()]
    assert list(table.rows.values()) == [label.strip() for label, *_ in rows]
    expected = [float(cell) for _, *cells in rows for cell in cells if cell != "-"]
    assert [fastfcn[table.claim_id(*cell)].value for cell in table.cells] == expected
    assert len(expected) == CELLS[number]


@pytest.mark.parametrize(("claim_id", "value"), PRINTED.items())
def test_printed_values_are_the_papers(fastfcn, claim_id, value):
    assert fastfcn[claim_id].value == value


def test_every_status_is_what_the_computation_says(results):
    assert {name: result.error or result.verdict for name, result in results.items() if not result.ok} == {}


def test_the_paper_contradicts_itself_exactly_here(results):
    assert {name for name, result in results.items() if result.verdict == "inconsistent"} == INCONSISTENT
    assert {name for name, result in results.items() if result.verdict == "differs"} == DIFFERS


def test_work_is_nowhere_three_times_less(fastfcn):
    """Six pairs of Table 2, dilated and with JPU; the notes give the smallest and the largest."""
    ratios = {
        pair: fastfcn_checks.less_work(f"fastfcn-{'-'.join(pair)}-jpu", than=f"fastfcn-{'-'.join(pair)}-none")
        for pair in PAIRS
    }
    assert [round(ratio, 2) for ratio in ratios.values()] == [2.35, 1.45, 1.40, 2.72, 1.79, 1.72]
    numbers = {
        r"([\d.]+) times fewer, the most": max(ratios.values()),
        r"it is ([\d.]+) or more": min(ratios.values()),
        r"alone have ([\d.]+) times": fastfcn_checks.less_work(JPU, than=NONE, part="backbone"),
        r"it would be ([\d.]+)\.": fastfcn_checks.less_work(JPU, than=NONE, lateral=True),
    }
    for where in ("abstract", "conclusion"):
        note = fastfcn[f"fastfcn.text.less-computation-{where}"].note
        assert {pattern: re.search(pattern, note).group(1) for pattern in numbers} == {
            pattern: f"{number:.2f}" for pattern, number in numbers.items()
        }


def test_memory_is_nowhere_three_times_less(fastfcn, results):
    ratios = [
        fastfcn_checks.less_kept(f"fastfcn-{depth}-{head}-jpu", than=f"fastfcn-{depth}-{head}-none")
        for depth, head in PAIRS
    ]
    assert [round(ratio, 2) for ratio in ratios] == [1.21, 1.21, 1.20, 1.71, 1.70, 1.69]
    result = results["fastfcn.text.less-memory"]
    assert result.ours == max(ratios)
    assert re.search(r"([\d.]+) times less", result.claim.note).group(1) == f"{max(ratios):.2f}"
    assert re.search(r"it is ([\d.]+) or more", result.claim.note).group(1) == f"{min(ratios):.2f}"
    sizes = [sum(p.numel() for p in fastfcn_checks._network(name).parameters()) for name in (JPU, NONE)]
    more = re.search(r"by ([\d.]+) M there", result.claim.note).group(1)
    assert f"{(sizes[0] - sizes[1]) / 1e6:.1f}" == more


def test_what_is_kept_is_counted_as_by_the_tracker():
    """Activations of `peak_memory` at the end of the forward pass are what autograd saved by then."""
    name = "fastfcn-r50-enc-jpu"
    step = peak_memory(fastfcn_checks._network(name), 2, (512, 512), step=lambda m, x, y: m(x)["out"].sum())
    most = max(step.timeline.bytes["activations"])
    kept = fastfcn_checks._kept_by(name)
    assert kept / 2 / 2**20 == pytest.approx(929.3, abs=0.1)
    assert most + 2 * 3 * 512 * 512 * 4 == pytest.approx(kept, rel=0.002)  # the images count as input there


def test_blocks_of_a_stage(fastfcn, results):
    """Exactly 4 and 16 times, but for the first block of each stage."""
    for stage, rounded in ((4, 4), (5, 16)):
        for what, word in (("work", "computation"), ("kept", "memory")):
            factors = {
                part: fastfcn_checks.stage_factor(NONE, stage, over=JPU, what=what, part=part)
                for part in ("all", "first", "after the first")
            }
            assert factors["first"] < factors["all"] < factors["after the first"]
            assert factors["after the first"] == pytest.approx(rounded, rel=0 if what == "work" else 0.002)
            result = results[f"fastfcn.text.conv{stage}-{word}"]
            assert result.ours == factors["all"]
            numbers = re.findall(r"\d+\.\d\d", result.claim.note)
            assert numbers == [f"{factor:.2f}" for factor in factors.values()]


def test_speeds_of_table_2_do_not_fit_together(fastfcn):
    fps = {claim.row: claim.value for claim in fastfcn.select(table="2")}
    ratios = {pair: fps["-".join((*pair, "jpu"))] / fps["-".join((*pair, "none"))] for pair in PAIRS}
    best = max(ratios, key=ratios.get)
    others = [ratio for pair, ratio in ratios.items() if pair != best]
    assert best == ("r101", "enc") and all(ratio < 3 for ratio in others)
    for name in ("faster-abstract", "faster-introduction", "less-time", "faster-r101"):
        note = fastfcn[f"fastfcn.text.{name}"].note
        assert re.search(r"head, ([\d.]+) times", note).group(1) == f"{ratios[best]:.2f}"
        assert re.search(r"are ([\d.]+) to ([\d.]+) times", note).groups() == (
            f"{min(others):.2f}",
            f"{max(others):.2f}",
        )
    deeper = {
        head: 1000 / fps[f"r101-{head}-none"] - 1000 / fps[f"r50-{head}-none"]
        for head in ("enc", "aspp", "psp")
    }
    expected = 1000 / (1000 / fps["r50-enc-none"] + (deeper["aspp"] + deeper["psp"]) / 2)
    note = fastfcn["fastfcn.table2.r101-enc-none.fps"].note
    assert re.findall(r"([\d.]+) ms", note) == [f"{deeper[head]:.1f}" for head in ("aspp", "psp", "enc")]
    assert f"it would be {expected:.1f} fps" in note
    assert f"JPU {fps['r101-enc-jpu'] / expected:.2f} times as fast" in note


def test_sixty_classes_are_fifty_nine(fastfcn, results):
    figures = {"table3.r50.miou": 51.2, "table3.r101.miou": 53.1, "text.miou-abstract": 53.13}
    for name, printed in figures.items():
        result = results[f"fastfcn.{name}"]
        assert result.claim.value == printed
        assert result.instead == result.ours * 59 / 60
        assert f"{result.ours:.2f} measured on 59" in result.claim.note
    assert results["fastfcn.table3.r101.miou"].ours == fastfcn["fastfcn.text.miou-59-r101"].value


def test_memory_of_four_images(fastfcn, results):
    def gib(model, side):
        return fastfcn_checks.memory_within(model, batch_size=4, image_size=(side, side), card=0)

    note = fastfcn["fastfcn.text.images-per-gpu"].note
    assert note == f"simulated, {gib(JPU, 480):.1f} GiB"
    beyond = results["fastfcn.text.memory-of-encnet"]
    assert beyond.ours == gib(NONE, 576) < 12
    assert f"{beyond.ours:.1f} GiB" in beyond.claim.note
    assert results["fastfcn.text.images-per-gpu"].ours == 12  # the card is all that is told
    assert fastfcn_checks.memory_beyond(NONE, batch_size=4, image_size=(576, 576), card=8) == 8


def test_gains_in_the_text_are_of_printed_cells(fastfcn, results):
    for name, row in (("fpn", "enc-fpn"), ("encnet", "enc-none")):
        gain = fastfcn["fastfcn.table1.enc-jpu.miou"].value - fastfcn[f"fastfcn.table1.{row}.miou"].value
        result = results[f"fastfcn.text.gain-over-{name}"]
        assert result.ours == 1 < gain
        assert result.claim.note == f"by {gain:.2f}"
    assert fastfcn_checks.more_by_than(1.5, 1, limit=1) == 0.5
    assert fastfcn_checks.more_than(5, 2, limit=3) == 2.5


def test_functions_measure_the_network():
    strides = {up: fastfcn_checks.output_stride(f"fastfcn-r50-enc-{up}") for up in ("none", "fpn", "jpu")}
    assert strides == {"none": 8, "fpn": 32, "jpu": 32}
    assert fastfcn_checks.output_stride("fastfcn-r50-enc-bilinear", at="up") == 8
    assert fastfcn_checks.in_stage("fastfcn-r50-enc-none", 4, what="blocks") == 6
    assert fastfcn_checks.in_stage(NONE, 5, what="dilation") == 4
    assert fastfcn_checks.in_stage(JPU, 5, what="dilation") == 1
    assert fastfcn_checks.jpu(JPU, what="branches", dilations=[1, 2, 3, 8]) == 3


def test_only_other_works_and_data_sets_are_quoted(fastfcn):
    for claim in fastfcn.select(status="quoted"):
        if claim.table:
            assert claim.table in ("3", "4", "5")
            assert claim.row not in ("r50", "r101", "ours"), claim.id
        else:
            assert re.search("images|encnet-crop|gpu", claim.id), claim.id
    not_quoted = {claim.row for claim in fastfcn if claim.table in ("3", "4", "5")}
    not_quoted -= {claim.row for claim in fastfcn.select(status="quoted")}
    assert not_quoted == {"r50", "r101", "ours"}


def test_every_model_of_the_claims_is_the_kits(fastfcn):
    named = {claim.how["model"] for claim in fastfcn if "model" in claim.how}
    assert named <= set(models.MODELS)
    assert {f"fastfcn-{claim.row}" for claim in fastfcn.select(table="2")} <= set(models.MODELS)


def test_commands_train_what_the_row_says(fastfcn, recipes):
    assert len(recipes) == 22
    for claim_id, chosen in recipes.items():
        table, row = fastfcn[claim_id].table, fastfcn[claim_id].row
        if table == "1":
            assert (chosen.name, chosen.model) == ("fastfcn_pcontext", f"fastfcn-r50-{row}")
            # the other heads predict no presence
            assert chosen.presence_weight == (0.2 if row.startswith("enc") else 0)
        else:
            depth = row or claim_id.rpartition("-")[2]
            name = "fastfcn_ade20k" if table == "4" else "fastfcn_pcontext"
            assert (chosen.name, chosen.model) == (name, f"fastfcn-{depth}-enc-jpu")
        assert chosen.multi_scale == (table != "1")
        assert chosen.aux_weight == 0.2


def test_speeds_are_measured_by_a_benchmark_that_there_is(fastfcn, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    claims = fastfcn.select(status="needs-gpu")
    assert Counter(claim.table for claim in claims) == {"2": 16}
    for line in {claim.command for claim in claims}:
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "segkit.bench", "jpu"]
        with pytest.raises(SystemExit):
            jpu.main(words[4:])
        assert "no CUDA device" in capsys.readouterr().err  # and not an option that there is not
    for claim in claims:
        backbone, head, upsampling = claim.row.split("-")
        named = claim.command.partition("--upsamplings ")[2].partition(" --")[0].split()
        assert f"--backbones {backbone} --heads {head} " in claim.command
        assert named[0] == "none" and upsampling in named, claim.id
        assert jpu.printed(f"{backbone}-{head}", upsampling) == claim.value
    assert sum(value is not None for row in jpu.TABLE_2.values() for value in row) == 16
    assert (512, 512) == jpu.IMAGE_SIZE == fastfcn_checks.IMAGE_SIZE
    assert [fastfcn_checks.timed_image(index=index) for index in (0, 1)] == list(jpu.IMAGE_SIZE)
    assert jpu.CLASSES == fastfcn_checks.CLASSES


def test_the_recipes_are_those_of_section_4(fastfcn, results):
    schedule = [c for c in fastfcn.select(kind="schedule") if "recipe" in c.how]
    assert len(schedule) == 15
    for claim in schedule:
        assert claim.how["recipe"].startswith("fastfcn_"), claim.id
        assert results[claim.id].verdict == "reproduced"


def test_random_scales_are_of_training_and_not_of_evaluation(monkeypatch):
    other = dataclasses.replace(RECIPES["fastfcn_pcontext"], base_size=1040)
    monkeypatch.setitem(fastfcn_checks.RECIPES, "fastfcn_pcontext", other)
    assert [fastfcn_checks.random_scale("fastfcn_pcontext", index=index) for index in (0, 1)] == [0.5, 2]


def test_the_way_to_the_server_is_there(fastfcn):
    """What the note on Table 5 says: options of `predict`, and windows and scales in the recipe."""
    note = fastfcn["fastfcn.table5.ours.score"].note
    words = shlex.split(re.search("`(python -m segkit.predict .*?)`", note).group(1))
    args = segkit.predict._parser().parse_args([w for w in words[3:] if w != "..."])
    assert args.multi_scale and args.ids and args.windows is None
    recipe = RECIPES[re.match(r"\w+", note).group()]
    assert recipe.windows and recipe.eval_scales


def test_a_stage_of_several_dilations_is_refused(monkeypatch):
    blocks = [SimpleNamespace(conv2=nn.Conv2d(1, 1, 3, dilation=d)) for d in (1, 2, 4)]
    monkeypatch.setattr(fastfcn_checks, "_blocks", lambda model, stage: blocks)
    with pytest.raises(ValueError, match=r"dilations \[2, 4\] in Conv4 of multigrid"):
        fastfcn_checks.in_stage("multigrid", 4, what="dilation")


def test_counting_leaves_a_network_in_eval_mode():
    network = fastfcn_checks._network("fastfcn-r50-enc-jpu")
    fastfcn_checks._kept_by("fastfcn-r50-enc-jpu")
    assert not any(module.training for module in network.modules())


def test_check_and_show_print_the_ledger(fastfcn, results, capsys, monkeypatch):
    # Once is enough for the computation.
    monkeypatch.setattr(command.ledger, "check", lambda claims: [results[claim.id] for claim in claims])
    assert command.main(["check", "fastfcn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split()[0] for line in lines if line.startswith("fastfcn.")]
    assert printed == [claim.id for claim in fastfcn]
    assert command.main(["show", "fastfcn.table3.r50.miou"]) == 0
    shown = capsys.readouterr().out
    for words in ("Table 3, EncNet+JPU (ours), ResNet-50", "51.2", "inconsistent", "52.100 | 51.232"):
        assert words in shown
