"""The claims of the DenseASPP report, Tables 1 and 2."""

import math
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from torch import nn

from segkit import models, papers
from segkit.measure import cost
from segkit.measure.receptive_field import receptive_field
from segkit.papers import __main__ as command
from segkit.papers import checks, denseaspp_checks

# All cells, as the paper prints them: Table 1's sizes as height times width, its dilations as their number.
TABLE_1 = """
     layers scale growth  params    size epochs train  val
  #1      4    61     32  662420   50176     50  51.4 31.6
  #2      4    61     32 1266580   50176     60  54.9 29.9
  #3      4   121     32 1266580  262144     80  63.3 41.4
  #4      5   127     64 2252820  524288     60  73.5 54.0
  #5      6   145     64 2748179  524288     60  55.0 39.5
"""
TABLE_2 = """
               epochs train  val
  Densenet-121     60  73.5 54.0
  Densenet-201     60  73.9 54.2
  MobileNet-V3     40  67.7 41.9
  ConvNeXt         30  65.9 53.0
"""
DILATIONS = [[3, 6, 9, 12], [3, 6, 9, 12], [6, 12, 18, 24], [3, 6, 12, 18, 24], [3, 6, 9, 12, 18, 24]]
CELLS = {"1": 40, "2": 12}  # cells that hold a number, counted in the paper

PRINTED = {
    "denseaspp.text.field": 127,
    "denseaspp.text.learning-rate": 3e-4,
    "denseaspp.text.weight-decay": 1e-5,
    "denseaspp.text.growth": 16,
}

DIFFERS = {
    "denseaspp.text.heavier-backbones",  # one of the two is
    "denseaspp.text.originals-reduction",  # in one of the four released networks, like the next
    "denseaspp.text.originals-growth",
}

SCHEDULE = {"height": 512, "width": 1024, "batch-size": 8, "epochs": 60, "learning-rate": 3e-4}
SCHEDULE |= {"weight-decay": 1e-5, "smaller-images": 224**2, "square-images": 512**2}


@pytest.fixture(scope="module")
def denseaspp():
    return papers.load("denseaspp")


@pytest.fixture(scope="module")
def results(denseaspp):
    return {result.claim.id: result for result in papers.check(denseaspp)}


@pytest.fixture(scope="module")
def recipes(denseaspp, recipes_of):
    """Claim id to the recipe that its command would follow."""
    return recipes_of(denseaspp.select(status="needs-data"), "denseaspp_cityscapes")


def test_every_numeric_cell_has_exactly_one_claim(denseaspp):
    claimed = Counter((claim.table, claim.row, claim.column) for claim in denseaspp if claim.table)
    cells = [(table.number, *cell) for table in denseaspp.tables for cell in table.cells]
    assert claimed == Counter(cells)
    assert max(claimed.values()) == 1
    assert {table.number: len(table.cells) for table in denseaspp.tables} == CELLS


@pytest.mark.parametrize(("number", "printed"), [("1", TABLE_1), ("2", TABLE_2)])
def test_the_tables_are_the_papers(denseaspp, number, printed):
    _, *rows = printed.strip().splitlines()
    expected = [float(cell) for row in rows for cell in row.split()[1:]]
    table = next(table for table in denseaspp.tables if table.number == number)
    assert [denseaspp[table.claim_id(*cell)].value for cell in table.cells] == expected
    assert len(expected) == CELLS[number]
    assert [label.replace(" ", "-") for label in table.rows.values()] == [row.split()[0] for row in rows]


def test_the_dilations_are_the_papers(denseaspp):
    claims = denseaspp.select(column="dilations")
    assert [claim.how["dilations"] for claim in claims] == DILATIONS
    assert [claim.printed for claim in claims] == [str(tuple(dilations)) for dilations in DILATIONS]


@pytest.mark.parametrize(("claim_id", "value"), PRINTED.items())
def test_printed_values_are_the_papers(denseaspp, claim_id, value):
    assert denseaspp[claim_id].value == value


def test_every_status_is_what_the_computation_says(results):
    assert {name: result.error or result.verdict for name, result in results.items() if not result.ok} == {}


def test_the_report_differs_exactly_here(results):
    assert not [name for name, result in results.items() if result.verdict == "inconsistent"]
    assert {name for name, result in results.items() if result.verdict == "differs"} == DIFFERS


def test_sizes_and_fields_are_the_papers(results):
    columns = {
        column: [results[f"denseaspp.table1.{row}.{column}"].ours for row in range(1, 6)]
        for column in ("params", "scale", "growth", "dilations")
    }
    assert columns == {
        "params": [662420, 1266580, 1266580, 2252820, 2748179],
        "scale": [61, 61, 121, 127, 145],
        "growth": [32, 32, 32, 64, 64],
        "dilations": [4, 4, 4, 5, 6],
    }


@pytest.mark.parametrize("row", [1, 3, 4, 5])
def test_fields_by_other_ways(denseaspp, row):
    """A probe of the head, and the formulas of Section 4.1, from printed dilations to the printed field."""
    claim = denseaspp[f"denseaspp.table1.{row}.scale"]
    network = models.build(f"denseaspp-student{row}", device="meta")
    size = receptive_field(network.head, channels=network.channels).size
    dilations = denseaspp[f"denseaspp.table1.{row}.dilations"].how["dilations"]
    assert size == (claim.value, claim.value)
    assert denseaspp_checks.field_by_formula(dilations) == claim.value == 1 + 2 * sum(dilations)


def test_layers_are_compared_with_the_text_one_by_one():
    def agreeing(*dilations):
        return denseaspp_checks.student("denseaspp-student4", quantity="layers", dilations=dilations)

    assert agreeing(3, 6, 12, 18, 24) == agreeing(3, 6, 12, 18, 24, 30) == 5
    assert agreeing(3, 6, 9, 12, 18, 24) == 2
    assert agreeing() == 0


def test_the_norms_that_number_5_has_and_number_4_has_not(denseaspp):
    def trained(**options):
        network = models.build("denseaspp-student5", num_classes=19, device="meta", **options)
        return sum(p.numel() for p in network.parameters() if p.requires_grad)

    note = denseaspp["denseaspp.table1.5.params"].note
    assert trained(norm_out=False) == int(re.search(r"would have ([\d,]+)", note).group(1).replace(",", ""))
    assert trained() - trained(norm_out=False) == int(re.search(r"the (\d+) that", note).group(1))


def test_no_released_network_follows_both_rules(results):
    shares = {
        depth: [
            denseaspp_checks.reduction(f"denseaspp{depth}", quantity=quantity)
            for quantity in ("squeeze", "growth")
        ]
        for depth in (121, 161, 169, 201)
    }
    assert (shares[121], shares[201]) == ([4, 8], [2, 4])
    assert shares[161] == [1104 / 512, 1104 / 128] and shares[169] == [832 / 336, 832 / 168]
    for name, rule in (("reduction", [201]), ("growth", [121])):
        which = ("reduction", "growth").index(name)
        assert [depth for depth, found in shares.items() if found[which] == (2, 8)[which]] == rule
        result = results[f"denseaspp.text.originals-{name}"]
        assert (result.ours, result.claim.value, result.verdict) == (1, 4, "differs")
        assert f"DenseASPP-{rule[0]} alone" in result.claim.note


def test_mobilenetv3_is_the_lighter_one(denseaspp):
    work = {
        name: cost(denseaspp_checks._classifier(name), (224, 224)).macs
        for name in ("mobilenet_v3_large", "densenet121")
    }
    assert round(work["densenet121"] / work["mobilenet_v3_large"]) == 13
    assert "thirteen times fewer" in denseaspp["denseaspp.text.heavier-backbones"].note
    assert denseaspp_checks.heavier(["convnext_tiny"], than="densenet121") == 1
    assert denseaspp_checks.heavier(["mobilenet_v3_large"], than="densenet121") == 0


def test_functions_measure_the_network():
    shares = [
        denseaspp_checks.features(f"denseaspp-student{row}", quantity=quantity)
        for row, quantity in ((1, "channels"), (1, "upsampled"), (2, "channels"), (2, "upsampled"))
    ]
    assert shares == [512, 1, 1024, 2]
    assert denseaspp_checks.student("denseaspp-student1", quantity="squeeze") == 0
    assert denseaspp_checks.dilation_of_block("denseaspp-student2", 3) == 1
    assert denseaspp_checks.blocks_left_out("denseaspp-student4") == 0


def test_the_schedule_is_that_of_the_recipe(denseaspp, results):
    schedule = [c for c in denseaspp if c.kind == "schedule" and not c.table]
    names = {claim.id.removeprefix("denseaspp.text.") for claim in schedule}
    assert names == SCHEDULE.keys() - {"smaller-images", "square-images"}
    assert {name: results[f"denseaspp.text.{name}"].ours for name in SCHEDULE} == SCHEDULE


def test_commands_train_what_the_row_says(denseaspp, recipes):
    assert len(recipes) == 18
    for claim_id, chosen in recipes.items():
        table, row, column = claim_id.split(".")[1:]
        printed = {c.column: c.value for c in denseaspp.select(table=table[-1], row=row)}
        assert chosen.epochs == printed["epochs"], claim_id
        assert math.prod(chosen.image_size) == printed.get("size", 512 * 1024), claim_id
        assert chosen.crop == chosen.image_size  # whole images
        assert chosen.final_split == column
        classes = chosen.dataset_options["num_classes"]
        assert classes == (19 if (table, row) == ("table1", "5") else 20)
        if column == "train":  # the same network as for val
            continue
        network = models.build(chosen.model, num_classes=classes, device="meta", **chosen.model_options)
        if table == "table1":
            assert sum(p.numel() for p in network.parameters() if p.requires_grad) == printed["params"]
        else:
            assert (chosen.model, network.backbone_name) == ("denseaspp-student4", row)
    assert recipes["denseaspp.table2.densenet121.val"].settings() == (
        recipes["denseaspp.table1.4.val"].settings() | {"model_options": {}}
    )


def test_a_rows_options_are_read_as_the_command_reads_them(denseaspp, recipes):
    for claim in denseaspp.select(column="epochs"):
        table = f"table{claim.table}"
        read = denseaspp_checks._run_of(claim.how["model"], claim.how["run"])
        assert read == recipes[f"denseaspp.{table}.{claim.row}.val"]


def test_only_other_works_and_the_data_set_are_quoted(denseaspp):
    for claim in denseaspp.select(status="quoted"):
        assert claim.table is None
        assert "Section 3" in claim.where or claim.id in (
            "denseaspp.text.original-height",
            "denseaspp.text.original-width",
            "denseaspp.text.largest-useful-dilation",  # of Yang et al., like the next
            "denseaspp.text.epochs-of-the-original",
        )


def test_every_model_of_the_claims_is_the_kits(denseaspp):
    named = {claim.how["model"] for claim in denseaspp if "model" in claim.how}
    assert named == {f"denseaspp-student{row}" for row in range(1, 6)}
    named |= set(denseaspp_checks.ORIGINALS)
    assert named <= set(models.MODELS)


def test_what_is_not_one_number_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no quantity 'depth' of a student's model"):
        denseaspp_checks.student("denseaspp-student1", quantity="depth")
    with pytest.raises(ValueError, match="student1 has 0 dilations that denseaspp-student2 has not"):
        denseaspp_checks.dilation_added("denseaspp-student1", to="denseaspp-student2")
    convolutions = [nn.Conv2d(4, n, 3, dilation=n) for n in (1, 2)]
    layers = [SimpleNamespace(conv=convolution) for convolution in convolutions]
    odd = SimpleNamespace(head=SimpleNamespace(layers=layers), denseblock1=nn.ModuleList(convolutions))
    monkeypatch.setattr(denseaspp_checks, "_student", lambda model: odd)
    monkeypatch.setattr(denseaspp_checks, "_backbone", lambda network: odd)
    with pytest.raises(ValueError, match=r"growth differs from layer to layer in odd: \[1, 2\]"):
        denseaspp_checks.student("odd", quantity="growth")
    with pytest.raises(ValueError, match=r"dilations \[1, 2\] in dense block 1 of odd"):
        denseaspp_checks.dilation_of_block("odd", 1)


def test_a_check_sees_a_model_that_was_edited_in_between(monkeypatch):
    denseaspp_checks.student("denseaspp-student1", quantity="trainable")
    monkeypatch.setitem(models.MODELS, "denseaspp-student1", models.MODELS["denseaspp-student2"])
    assert denseaspp_checks.student("denseaspp-student1", quantity="trainable") == 662420
    checks.forget()
    assert denseaspp_checks.student("denseaspp-student1", quantity="trainable") == 1266580
    checks.forget()


def test_check_and_show_print_the_ledger(denseaspp, results, capsys, monkeypatch):
    # Once is enough for the computation.
    monkeypatch.setattr(command.ledger, "check", lambda claims: [results[claim.id] for claim in claims])
    assert command.main(["check", "denseaspp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split()[0] for line in lines if line.startswith("denseaspp.")]
    assert printed == [claim.id for claim in denseaspp]
    assert command.main(["show", "denseaspp.text.originals-reduction"]) == 0
    shown = capsys.readouterr().out
    for words in ("Section 4.2", "c0/2", "differs", "1.00", "release"):
        assert words in shown
