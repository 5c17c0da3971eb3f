"""The claims of the VNet paper, Tables 2 and 3."""

import re
from collections import Counter

import pytest

from segkit import models, papers
from segkit.bench import latency
from segkit.papers import __main__ as command
from segkit.papers import vnet_checks

# Cells that hold a number, counted in the paper. Three of Table 3 say "False".
CELLS = {"2": 27, "3": 13}

PRINTED = {
    "vnet.table2.pspnet.params": 65.7,
    "vnet.table2.bisenet-resnet18.params": 49,
    "vnet.table2.bisenet-xception.miou": 68.4,
    "vnet.table2.segnet.speed": 5,
    "vnet.table2.icnet.speed": 30.3,
    "vnet.table2.erfnet.params": 2.07,
    "vnet.table2.enet.miou": 58.3,
    "vnet.table2.espnet.speed": 47.6,
    "vnet.table2.vnet.miou": 63.93,
    "vnet.table3.pspnet.training": 12189,
    "vnet.table3.espnet.training": 7431,
    "vnet.table3.enet.training": 8151,
    "vnet.table3.vnet.training": 5021,
    "vnet.table3.vnet.validation": 9345,
    "vnet.table3.vnet.cost": 2.9,
    "vnet.text.params-evaluation": 0.18,
    "vnet.text.learning-rate": 5e-4,
}

INCONSISTENT = {"vnet.text.params-evaluation"}  # 0.18 M against 0.16 M

DIFFERS = {
    "vnet.table2.bisenet-resnet18.params",
    "vnet.table2.bisenet-xception.params",
    "vnet.table2.icnet.params",
    "vnet.table3.espnet.training",
    "vnet.table3.espnet.validation",
    "vnet.table3.enet.training",
    "vnet.table3.vnet.training",
    "vnet.table3.vnet.validation",
}


@pytest.fixture(scope="module")
def vnet():
    return papers.load("vnet")


@pytest.fixture(scope="module")
def results(vnet):
    return {result.claim.id: result for result in papers.check(vnet)}


def test_every_numeric_cell_has_exactly_one_claim(vnet):
    claimed = Counter((claim.table, claim.row, claim.column) for claim in vnet if claim.table)
    cells = [(table.number, *cell) for table in vnet.tables for cell in table.cells]
    assert claimed == Counter(cells)
    assert max(claimed.values()) == 1
    assert {table.number: len(table.cells) for table in vnet.tables} == CELLS


@pytest.mark.parametrize(("claim_id", "value"), PRINTED.items())
def test_printed_values_are_the_papers(vnet, claim_id, value):
    assert vnet[claim_id].value == value


def test_every_status_is_what_the_computation_says(results):
    assert {name: result.error or result.verdict for name, result in results.items() if not result.ok} == {}


def test_the_paper_contradicts_itself_exactly_here(results):
    assert {name for name, result in results.items() if result.verdict == "inconsistent"} == INCONSISTENT
    assert {name for name, result in results.items() if result.verdict == "differs"} == DIFFERS


def test_printed_speeds_are_those_that_the_benchmark_shows(vnet):
    claims = vnet.select(column="speed", status="needs-gpu")
    models_of = {claim.row: vnet[f"vnet.table2.{claim.row}.params"].how["model"] for claim in claims}
    table = latency.TABLES["vnet.table2"]
    assert {models_of[claim.row]: claim.value for claim in claims} == table.per_second
    assert (table.image_size, table.num_classes) == (vnet_checks.IMAGE_SIZE, vnet_checks.CLASSES)
    assert table.quoted == set() and table.machine in claims[0].note
    assert table.image_size == latency.GPU_SIZE  # what a command that names no size times
    for claim in claims:
        words = claim.command.split()
        assert words[:5] == ["python", "-m", "segkit.bench", "latency", "--models"]
        assert words[5:-2] == list(table.per_second) and words[-2:] == ["--device", "cuda"]


def test_all_sizes_are_computed(vnet, results):
    sizes = {claim.row: results[claim.id].ours for claim in vnet if claim.column == "params"}
    assert sizes == pytest.approx(
        {
            "pspnet": 65.707475,
            "bisenet-resnet18": 13.494777,
            "segnet": 29.453971,
            "icnet": 6.7,
            "bisenet-xception": 1.842289,
            "erfnet": 2.066642,
            "enet": 0.364311,
            "espnet": 0.363462,
            "vnet": 0.162291,
        },
        abs=5e-5,
    )


def test_sizes_of_releases_are_checked_by_another_count(monkeypatch):
    """ICNet's prototxt has 6,671,443 weights in its convolutions; batch norms have two per map."""

    def weights_alone(i, o, kernel, *, groups=1, norm=True, bias=False):
        return i * o * kernel**2 // groups + (o if bias else 0)

    monkeypatch.setattr(vnet_checks, "_conv", weights_alone)
    assert vnet_checks.size_of_release("icnet") == 6.671443


def test_the_two_sizes_of_vnet(results):
    size = results["vnet.text.params-evaluation"]
    assert (size.ours, size.instead) == pytest.approx((0.162291, 0.177779), abs=1e-6)


def test_memory_keeps_table_3s_order(results):
    ours = {row: results[f"vnet.table3.{row}.training"].ours for row in ("vnet", "espnet", "enet", "pspnet")}
    assert ours["vnet"] < ours["espnet"] < ours["enet"]
    assert ours["pspnet"] == 12189  # a card of that size is full
    assert vnet_checks.peak_of_training("pspnet-r101", batch_size=1) > 16 * 1024
    assert ours["vnet"] < vnet_checks.peak_of_training("vnet", reversible=False)


def test_notes_give_the_numbers_that_come_out(vnet, results):
    """Percentages in notes on memory are those of the computation."""
    for name in ("vnet.table3.espnet.training", "vnet.table3.enet.training", "vnet.table3.vnet.training"):
        share, direction = re.search(r"simulated (\d+) % (above|below)", vnet[name].note).groups()
        excess = 100 * (results[name].ours / vnet[name].value - 1)
        assert round(excess) == (int(share) if direction == "above" else -int(share)), name
    plain = re.search(r"it would be (\d+) MB", vnet["vnet.table3.vnet.training"].note).group(1)
    assert round(vnet_checks.peak_of_training("vnet", reversible=False)) == int(plain)
    needed = re.search(r"needs ([\d.]+) GiB", vnet["vnet.table3.pspnet.training"].note).group(1)
    assert f"{vnet_checks.peak_of_training('pspnet-r101', batch_size=1) / 1024:.1f}" == needed
    assert vnet_checks.peak_of_training("pspnet-r50", batch_size=1) < 12189


def test_validation_needs_no_more_than_training(results):
    for row in ("espnet", "enet", "vnet"):
        training, validation = (results[f"vnet.table3.{row}.{when}"] for when in ("training", "validation"))
        assert validation.ours == min(training.ours, 12189)


def test_the_schedule_is_that_of_the_recipe(vnet, results):
    """Batch sizes in Table 3 apart, which are compared with the text's."""
    schedule = [claim for claim in vnet if claim.kind == "schedule" and not claim.table]
    assert {claim.id.removeprefix("vnet.text."): results[claim.id].ours for claim in schedule} == {
        "batch-size": 4,
        "beta-1": 0.9,
        "beta-2": 0.999,
        "weight-decay": 1e-4,
        "learning-rate": 5e-4,
        "power": 0.9,
        "epochs": 300,
    }
    for claim in schedule:
        assert claim.how["recipe"] == "vnet_cityscapes"
        assert results[claim.id].verdict == "reproduced"


def test_functions_measure_the_network():
    assert vnet_checks.map_of("vnet-018", "stage2", quantity="channels") == 64
    assert vnet_checks.map_of("segnet", "encoder.4.convolve", quantity="subsampling") == 16
    assert vnet_checks.convolutions("segnet", "encoder", kernel=3) == 13
    assert vnet_checks.convolutions("vnet", "stage1", kernel=1) == 0
    assert vnet_checks.asymmetric_saving("enet") == pytest.approx(60)  # 5x1 and 1x5: 1 - 10/25


def test_only_other_works_are_quoted(vnet):
    for claim in vnet.select(status="quoted"):
        assert claim.row != "vnet"
        assert claim.table == "2" or claim.where in ("Section II-A", "Section IV-A"), (
            claim.id
        )  # ERFNet, Cityscapes


def test_every_model_of_the_tables_is_the_kits(vnet):
    named = {claim.how["model"] for claim in vnet if "model" in claim.how}
    assert named == {"pspnet-r101", "segnet", "erfnet", "enet", "espnet", "vnet"}
    assert named <= set(models.MODELS)


def test_check_and_show_print_the_ledger(vnet, results, capsys, monkeypatch):
    # Once is enough for the long computation.
    monkeypatch.setattr(command.ledger, "check", lambda claims: [results[claim.id] for claim in claims])
    assert command.main(["check", "vnet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split()[0] for line in lines if line.startswith("vnet.")]
    assert printed == [claim.id for claim in vnet]
    assert command.main(["show", "vnet.table2.bisenet-resnet18.params"]) == 0
    shown = capsys.readouterr().out
    for words in ("Table 2, BiSeNet-ResNet18 [2], Param.", "differs", "13.49", "release"):
        assert words in shown
