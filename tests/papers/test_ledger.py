"""The claims ledger: format, verdicts and command; what each paper claims is tested in test_<paper>.py."""

import json

import pytest

from segkit import papers
from segkit.papers import __main__ as command
from segkit.papers import checks

GOOD = """
paper = "toy"
title = "A toy paper"

[tables.1]
title = "Two nets"
labels = ["Backbone"]
empty = ["theirs.size"]
rows.ours = { label = "Ours", with = { model = "a" } }
rows.big = { label = "Ours, big", with = { model = "b", flags = "--big" } }
rows.theirs = { label = "Theirs [1]" }
claims = [
    { id = "toy.table1.ours.size", printed = "9.5M", status = "reproduced" },
    { id = "toy.table1.ours.iou", printed = "70", status = "needs-data" },
    { id = "toy.table1.big.size", printed = "9.0M", status = "differs", note = "no layout found" },
    { id = "toy.table1.big.iou", printed = "71.5", status = "not-built", note = "no data set" },
    { id = "toy.table1.theirs.iou", printed = "60.0", status = "quoted" },
]
[tables.1.columns.size]
label = "Size"
unit = "M"
kind = "structure"
tolerance = 0.05
how = { function = "fake" }
[tables.1.columns.iou]
label = "IoU"
unit = "%"
kind = "accuracy"
tolerance = 0.5
how = { command = "run {model} {flags}" }

[[text.claims]]
id = "toy.text.gain"
where = "Section 1"
printed = "about 1"
value = 1
unit = "pp"
kind = "text"
tolerance = "60 %"
how = { function = "difference", a = "@toy.table1.big.iou", b = "@toy.table1.ours.iou" }
status = "reproduced"
"""


@pytest.fixture
def fake(monkeypatch):
    """A registered function that counts its calls: 9.52 for net a, 12.0 for net b."""
    calls = []

    def function(model, *, digits=2):
        calls.append(model)
        return {"a": 9.52, "b": 12.0}[model]

    monkeypatch.setitem(checks.FUNCTIONS, "fake", function)
    return calls


@pytest.fixture
def write(tmp_path):
    """Writes GOOD with replacements, each of which must be found, and returns its path."""

    def write(*replacements):
        text = GOOD
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "toy.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def verdict(path, claim_id, **options):
    (result,) = papers.check([papers.load(path)[claim_id]], **options)
    return result


def test_a_cell_takes_what_it_does_not_say_from_its_row_and_column(fake, write):
    ledger = papers.load(write())
    claim = ledger["toy.table1.ours.size"]
    assert (claim.value, claim.unit, claim.printed_unit, claim.tolerance) == (9.5, "M", "M", 0.05)
    assert (claim.kind, claim.where) == ("structure", "Table 1, Ours, Size")
    assert claim.how == {"function": "fake", "model": "a"}
    assert ledger["toy.table1.ours.iou"].command == "run a"
    assert (ledger["toy.table1.theirs.iou"].how, ledger["toy.table1.theirs.iou"].tolerance) == ({}, None)
    assert ledger["toy.text.gain"].how == {"function": "difference", "a": 71.5, "b": 70.0}
    assert ledger["toy.text.gain"].tolerance == pytest.approx(0.6)
    assert ledger.tables[0].cells == [
        ("ours", "size"),
        ("ours", "iou"),
        ("big", "size"),
        ("big", "iou"),
        ("theirs", "iou"),
    ]


def test_flags_go_into_the_command_and_nowhere_else(fake, write):
    path = write(('"71.5", status = "not-built", note = "no data set"', '"71.5", status = "needs-data"'))
    ledger = papers.load(path)
    assert ledger["toy.table1.big.iou"].command == "run b --big"
    assert ledger["toy.table1.big.size"].how == {"function": "fake", "model": "b"}


def test_check_computes_the_verdict_and_each_value_once(fake, write):
    results = {result.claim.id: result for result in papers.check(papers.load(write()))}
    assert {name: result.verdict for name, result in results.items()} == {
        "toy.table1.ours.size": "reproduced",
        "toy.table1.ours.iou": "needs-data",
        "toy.table1.big.size": "differs",
        "toy.table1.big.iou": "not-built",
        "toy.table1.theirs.iou": "quoted",
        "toy.text.gain": "reproduced",
    }
    assert all(result.ok for result in results.values())
    assert [name for name, result in results.items() if result.computed] == [
        "toy.table1.ours.size",
        "toy.table1.big.size",
        "toy.text.gain",
    ]
    assert results["toy.table1.big.size"].ours == 12.0
    assert fake == ["a", "b"]
    claim = papers.load(write())["toy.table1.ours.size"]
    papers.check([claim, claim])
    assert fake == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("old", "new", "claim_id", "says"),
    [
        (
            '"9.5M", status = "reproduced"',
            '"9.5M", status = "differs", note = "!"',
            "toy.table1.ours.size",
            "reproduced",
        ),
        ('"9.5M"', '"9.4M"', "toy.table1.ours.size", "differs"),
        ('"9.0M", status = "differs"', '"9.0M", status = "reproduced"', "toy.table1.big.size", "differs"),
        ('"9.0M", status = "differs"', '"9.0M", status = "inconsistent"', "toy.table1.big.size", "differs"),
        ('"about 1"\nvalue = 1', '"about 4"\nvalue = 4', "toy.text.gain", "differs"),
    ],
)
def test_a_status_set_by_hand_that_the_computation_contradicts_is_refused(
    fake, write, capsys, old, new, claim_id, says
):
    path = write((old, new))
    result = verdict(path, claim_id)
    assert (result.verdict, result.ok) == (says, False)
    assert command.main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"{claim_id}: status {result.claim.status}, but the computation says {says}" in out
    assert "1 with a status that does not hold" in out


def test_inconsistent_means_that_the_other_reading_gives_the_printed_number(fake, write):
    other = ('"9.0M", status = "differs"', '"9.5M", instead = { model = "a" }, status = "inconsistent"')
    result = verdict(write(other), "toy.table1.big.size")
    assert (result.verdict, result.ours, result.instead, result.ok) == ("inconsistent", 12.0, 9.52, True)
    wrong = ('"9.0M", status = "differs"', '"9.0M", instead = { model = "a" }, status = "inconsistent"')
    assert verdict(write(wrong), "toy.table1.big.size").verdict == "differs"
    first_holds = (
        '"9.0M", status = "differs"',
        '"12.0M", instead = { model = "a" }, status = "inconsistent"',
    )
    assert verdict(write(first_holds), "toy.table1.big.size").verdict == "reproduced"


def test_a_right_number_under_a_wrong_unit_is_inconsistent(fake, write):
    assert verdict(write(('"9.5M"', '"9.5B"')), "toy.table1.ours.size").verdict == "inconsistent"


def test_a_measured_file_is_read_by_its_key(fake, write, tmp_path):
    path = write(
        ('"9.5M", status', '"9.5M", how = { measured = "gpu.json", key = "nets.a.size" }, status'),
    )
    claim_id, folder = "toy.table1.ours.size", tmp_path / "measured"
    folder.mkdir()
    missing = verdict(path, claim_id, measured=folder)
    assert (missing.verdict, missing.ok) == ("error", False)
    assert "gpu.json is missing" in missing.error
    (folder / "gpu.json").write_text(json.dumps({"nets": {"a": {"size": 9.51}}}))
    result = verdict(path, claim_id, measured=folder)
    assert (result.verdict, result.ours) == ("reproduced", 9.51)
    (folder / "gpu.json").write_text(json.dumps({"nets": {"b": {"size": 9.51}}}))
    assert "looking for 'a'" in verdict(path, claim_id, measured=folder).error


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "9.5", None, True])
def test_a_computation_that_gives_no_number_is_an_error(fake, write, monkeypatch, value):
    monkeypatch.setitem(checks.FUNCTIONS, "fake", lambda model: value)
    result = verdict(write(), "toy.table1.ours.size")
    assert (result.verdict, result.ok) == ("error", False)
    assert "finite number" in result.error


def test_one_failing_computation_hides_no_other(fake, write, monkeypatch, capsys):
    monkeypatch.setitem(checks.FUNCTIONS, "fake", lambda model: {"b": 12.0}[model])
    path = write()
    verdicts = [result.verdict for result in papers.check(papers.load(path))]
    assert verdicts.count("error") == 1
    assert verdicts.count("differs") == 1
    assert command.main(["check", str(path)]) == 1
    assert "toy.table1.ours.size: cannot be computed: KeyError: 'a'" in capsys.readouterr().out


# name: (what is replaced in GOOD, by what, what the error says)
BAD = {
    "not TOML": ("[[text", "[[text!", "not valid TOML"),
    "unknown status": (
        '"70", status = "needs-data"',
        '"70", status = "need-data"',
        r"ours.iou: unknown status 'need-data' \(did you mean needs-data",
    ),
    "unknown kind": (
        'kind = "structure"',
        'kind = "structural"',
        r"ours.size: unknown kind 'structural' \(did you mean structure",
    ),
    "no kind": ('kind = "text"', "", "toy.text.gain: unknown kind None"),
    "duplicate": ("toy.table1.big.iou", "toy.table1.ours.iou", "toy.table1.ours.iou: a second claim"),
    "no tolerance": ("tolerance = 0.05", "", "ours.size: 'tolerance' is missing"),
    "odd tolerance": ("tolerance = 0.05", 'tolerance = "a bit"', "ours.size: tolerance 'a bit' is neither"),
    "no command": (
        'how = { command = "run {model} {flags}" }',
        "",
        "ours.iou: status 'needs-data' promises a command",
    ),
    "function where a command is promised": (
        '"9.5M", status = "reproduced"',
        '"9.5M", status = "needs-gpu"',
        "ours.size: status 'needs-gpu' promises a command",
    ),
    "command where a computation is claimed": (
        '"70", status = "needs-data"',
        '"70", status = "reproduced"',
        "ours.iou: status 'reproduced' needs a computation",
    ),
    "nothing to compute with": (
        'how = { function = "fake" }',
        "",
        "ours.size: status 'reproduced' needs a computation",
    ),
    "a gap in a command": (
        '"60.0", status = "quoted"',
        '"60.0", status = "needs-data"',
        "theirs.iou: the row gives no value for 'model'",
    ),
    "quoted, yet with a way": (
        '"60.0", status',
        '"60.0", how = { function = "fake" }, status',
        "theirs.iou: status 'quoted' has nothing to run",
    ),
    "no reason": (', note = "no layout found"', "", "big.size: status 'differs' needs a 'note'"),
    "nothing missing": (', note = "no data set"', "", "big.iou: status 'not-built' needs a 'note'"),
    "no status": (', status = "quoted"', "", "theirs.iou: 'status' is missing"),
    "no id": ('id = "toy.table1.ours.iou", ', "", "table 1, claim 2: 'id' is missing"),
    "no place": ('where = "Section 1"', "", "toy.text.gain: 'where' is missing"),
    "no number": ('"70"', '"seventy"', "ours.iou: no number to be read from 'seventy'"),
    "a bare number": ('printed = "70"', "printed = 70", "ours.iou: printed = 70 has the wrong type"),
    "a truth value": ("value = 1", "value = true", "toy.text.gain: value = True has the wrong type"),
    "unknown key": ('"70", status', '"70", state', r"ours.iou: unknown key 'state' \(did you mean status"),
    "unknown column key": ('unit = "%"', 'units = "%"', "table 1, column iou: unknown key 'units'"),
    "unknown row key": ('with = { model = "a" }', "args = {}", "table 1, row ours: unknown key 'args'"),
    "no title": ('title = "Two nets"', "", "table 1: 'title' is missing"),
    "no such cell": (
        "toy.table1.ours.iou",
        "toy.table1.ours.miou",
        "toy.table1.ours.miou: not a row and column of table 1",
    ),
    "another table": (
        "toy.table1.ours.iou",
        "toy.table2.ours.iou",
        "toy.table2.ours.iou: not a row and column of table 1",
    ),
    "text under another name": ("toy.text.gain", "toy.gain", "toy.gain: a claim outside the tables"),
    "empty, yet claimed": ('"theirs.size"', '"ours.iou"', "ours.iou: the cell is listed as empty"),
    "no such empty cell": ('"theirs.size"', '"theirs.sizes"', "table 1: empty cell 'theirs.sizes'"),
    "forgotten cell": ('empty = ["theirs.size"]', "", "toy.table1.theirs.size: the cell has no claim"),
    "unknown function": (
        'function = "difference"',
        'function = "differences"',
        r"toy.text.gain: no function 'differences' \(did you mean difference",
    ),
    "unknown argument": (
        '"9.5M", status',
        '"9.5M", how = { digit = 3 }, status',
        "ours.size: fake: got an unexpected keyword argument 'digit'",
    ),
    "missing argument": (
        ', b = "@toy.table1.ours.iou"',
        "",
        "toy.text.gain: difference: missing a required argument: 'b'",
    ),
    "unknown reference": (
        "@toy.table1.ours.iou",
        "@toy.table1.our.iou",
        r"toy.text.gain: b = '@toy.table1.our.iou': no such claim \(did you mean toy.table1.ours.iou",
    ),
    "another reading of a command": (
        '"70", status',
        '"70", instead = { model = "b" }, status',
        "ours.iou: 'instead' changes the arguments of a function",
    ),
    "measured without key": (
        '"9.5M", status',
        '"9.5M", how = { measured = "gpu.json" }, status',
        "ours.size: 'key' is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_claims_file_that_breaks_the_format_is_refused_by_file_and_claim(fake, write, capsys, case):
    old, new, problem = BAD[case]
    path = write((old, new))
    with pytest.raises(papers.LedgerError, match=problem) as caught:
        papers.load(path)
    assert str(caught.value).startswith("toy.toml: ")
    assert command.main(["check", str(path)]) == 2
    assert str(caught.value) in capsys.readouterr().err


def test_unknown_papers_claims_and_files_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"no claims for paper 'lnd'; there are .*ldn"):
        papers.load("lnd")
    with pytest.raises(FileNotFoundError, match=r"no claims file .*mine\.toml"):
        papers.load(tmp_path / "mine.toml")
    assert command.main(["show", "ldn.table4.ldn121-64-4.param"]) == 2
    assert "did you mean ldn.table4.ldn121-64-4.params" in capsys.readouterr().err


def test_check_prints_every_claim_and_writes_json(fake, write, tmp_path, capsys):
    path, out = write(), tmp_path / "deep" / "results.json"
    assert command.main(["check", str(path), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    ledger = papers.load(path)
    for claim in ledger:
        assert sum(line.split()[:1] == [claim.id] for line in printed.splitlines()) == 1
    assert "6 claims, 3 computed here, 0 with a status that does not hold." in printed
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [entry["id"] for entry in written] == [claim.id for claim in ledger]
    assert written[0]["ours"] == 9.52
    assert written[0]["verdict"] == "reproduced"


def test_tally_counts_every_claim_once(fake, write):
    counts = papers.tally(papers.load(write()))
    assert {kind: sum(row.values()) for kind, row in counts.items()} == {
        "structure": 2,
        "accuracy": 3,
        "text": 1,
    }
    assert counts["structure"]["differs"] == 1
    assert list(counts["text"]) == list(papers.STATUSES)


def test_select_filters_by_attributes(fake, write):
    ledger = papers.load(write())
    assert [claim.id for claim in ledger.select(kind="structure", status="differs")] == [
        "toy.table1.big.size"
    ]
    assert len(ledger.select(paper="toy")) == len(ledger) == 6


def test_every_paper_of_the_kit_loads():
    everything = papers.load()
    assert len(everything) == sum(len(papers.load(name)) for name in papers.papers())
    assert {claim.paper for claim in everything} == set(papers.papers())
