"""Reads a claims file into a `Ledger` and refuses whatever breaks the format.

The format, by example::

    paper = "ldn"
    title = "Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images"

    [tables.4]
    title = "Validation of design options"
    labels = ["Backbone"]                 # columns of names or ticks, which hold no number
    empty = ["linknet.test"]              # cells (row.column) that the paper leaves blank or fills with n/a
    columns.flop = { label = "FLOP 1MPx", unit = "G", kind = "structure", how = { function = "flop" } }
    rows.ldn121-64-4 = { label = "LDN121 64→4", with = { model = "ldn121-64-4", paper_count = true } }
    claims = [
        { id = "ldn.table4.ldn121-64-4.flop", printed = "66.5G", tolerance = 0.1, status = "reproduced" },
    ]

    [text]                                # numbers in running text: the same, with `where` and `unit`
    claims = []

A cell takes unit, kind, tolerance, note and `how` from its column, and further arguments of `how` from its
row's `with`. What its own line says wins; a `how` of its own that names another way stands alone. A tolerance
is a number in the claim's unit or a percentage of the printed number, "0.15 %". `how` is one of

* `{ function = NAME, ... }`: a function of `checks.FUNCTIONS` and its arguments; an argument "@ID" stands for
  the value that the paper prints in the claim ID,
* `{ measured = FILE, key = "a.b" }`: a number in a committed JSON file of `data/measured/`,
* `{ command = "..." }`: what to run where the data or the GPU is.

Command and key are filled from the row's `with`, as in "--model {model} {flags}". `instead` is the reading
under which an inconsistent number does come out: changed arguments of `how`, or another function with all of
its own.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from segkit.papers import checks
from segkit.papers.claims import (
    COMMANDED,
    COMPUTED,
    EXPLAINED,
    KINDS,
    STATUSES,
    UNCHECKED,
    Claim,
    Ledger,
    LedgerError,
    Table,
    near,
)

_NUMBER = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z%]*)†?")
_WAYS = ("function", "measured", "command")

# The known keys of each part and what they hold.
_FILE = {"paper": str, "title": str, "tables": dict, "text": dict}
_TABLE = {"title": str, "labels": list, "empty": list, "columns": dict, "rows": dict, "claims": list}
_COLUMN = {"label": str, "unit": str, "kind": str, "tolerance": (float, int, str), "how": dict, "note": str}
_ROW = {"label": str, "with": dict}
_CLAIM = {
    **dict.fromkeys(("id", "where", "printed", "unit", "kind", "status", "note"), str),
    **{"value": (float, int), "tolerance": (float, int, str), "how": dict, "instead": dict},
}


def read(path: Path) -> Ledger:
    """Read one claims file.

    Raises:
        LedgerError: the file breaks the format; the message names the file and the claim.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path.name}: not valid TOML: {error}") from error
    return _Reader(path.name, content).read()


class _Reader:
    """Goes through the parsed TOML of one file."""

    def __init__(self, file: str, content: dict) -> None:
        self.file = file
        self.content = content
        self.values: dict[str, float] = {}  # printed values by claim id, for "@ID" arguments

    def fail(self, place: str, problem: str) -> LedgerError:
        return LedgerError(f"{self.file}: {place}: {problem}")

    def read(self) -> Ledger:
        content = self.content
        self.keys("the file", content, _FILE, required=("paper", "title"))
        self.paper = content["paper"]
        tables, drafts = [], []
        for number, entry in content.get("tables", {}).items():
            table = self.table(number, entry)
            tables.append(table)
            drafts += [self.cell(table, entry, line) for line in self.lines(f"table {number}", entry)]
        text = content.get("text", {})
        self.keys("text", text, {"claims": list})
        drafts += [self.text(line) for line in self.lines("text", text)]
        for draft in drafts:
            if draft["id"] in self.values:
                raise self.fail(draft["id"], "a second claim with this id")
            self.values[draft["id"]] = draft["value"]
        for table in tables:
            for cell in table.cells:
                if table.claim_id(*cell) not in self.values:
                    raise self.fail(table.claim_id(*cell), "the cell has no claim and is not listed as empty")
        return Ledger(tuple(self.claim(draft) for draft in drafts), tuple(tables))

    def keys(self, place: str, entry: object, known: Mapping, *, required: Iterable[str] = ()) -> None:
        """Refuses unknown keys, values of the wrong type and missing keys."""
        if not isinstance(entry, dict):
            raise self.fail(place, f"expected keys and values, got {entry!r}")
        for key, value in entry.items():
            if key not in known:
                raise self.fail(place, f"unknown key {key!r}{near(key, known)}")
            if not isinstance(value, known[key]) or isinstance(value, bool):
                raise self.fail(place, f"{key} = {value!r} has the wrong type")
        for key in required:
            if key not in entry:
                raise self.fail(place, f"{key!r} is missing")

    def lines(self, place: str, entry: dict) -> list[dict]:
        lines = entry.get("claims", [])
        for position, line in enumerate(lines, start=1):
            name = line.get("id") if isinstance(line, dict) else None
            self.keys(
                name or f"{place}, claim {position}", line, _CLAIM, required=("id", "printed", "status")
            )
        return lines

    def table(self, number: str, entry: dict) -> Table:
        place = f"table {number}"
        self.keys(place, entry, _TABLE, required=("title", "columns", "rows"))
        for key, column in entry["columns"].items():
            self.keys(f"{place}, column {key}", column, _COLUMN, required=("label",))
        for key, row in entry["rows"].items():
            self.keys(f"{place}, row {key}", row, _ROW, required=("label",))
        empty = [tuple(str(cell).rpartition(".")[::2]) for cell in entry.get("empty", [])]
        for row, column in empty:
            if row not in entry["rows"] or column not in entry["columns"]:
                raise self.fail(place, f"empty cell '{row}.{column}' is not a row.column of this table")
        return Table(
            paper=self.paper,
            number=number,
            title=entry["title"],
            rows={key: row["label"] for key, row in entry["rows"].items()},
            columns={key: column["label"] for key, column in entry["columns"].items()},
            labels=tuple(entry.get("labels", ())),
            empty=frozenset(empty),
        )

    def cell(self, table: Table, entry: dict, line: dict) -> dict:
        """A table's claim, completed by its column and row."""
        row, _, column = line["id"].removeprefix(f"{table.paper}.table{table.number}.").rpartition(".")
        if line["id"] != table.claim_id(row, column) or row not in table.rows or column not in table.columns:
            raise self.fail(line["id"], f"not a row and column of table {table.number}")
        if (row, column) in table.empty:
            raise self.fail(line["id"], f"the cell is listed as empty in table {table.number}")
        defaults = {key: value for key, value in entry["columns"][column].items() if key != "label"}
        where = f"Table {table.number}, {table.rows[row]}, {table.columns[column]}"
        draft = {"where": where, **defaults, **line, "table": table.number, "row": row, "column": column}
        own = line.get("how", {})
        if line["status"] in UNCHECKED:
            draft["how"] = own
        else:
            arguments = entry["rows"][row].get("with", {})
            draft["how"] = self.merge(line["id"], defaults.get("how", {}), arguments, own)
        return self.number(draft)

    def text(self, line: dict) -> dict:
        """A claim from running text."""
        if not line["id"].startswith(f"{self.paper}.text."):
            raise self.fail(line["id"], f"a claim outside the tables is named {self.paper}.text.NAME")
        if "where" not in line:
            raise self.fail(line["id"], "'where' is missing")
        return self.number({"how": {}, **line})

    def merge(self, place: str, column: dict, row: dict, own: dict) -> dict:
        """The cell's `how`: a way of its own, or else the column's with the row's and its own arguments."""
        how = own if _ways(own) else {**column, **own}
        if "function" in how:
            arguments = {} if _ways(own) else {key: value for key, value in row.items() if key != "flags"}
            return {**arguments, **how}
        try:  # a command, or a measured file and its key
            filled = {key: str(value).format(**{"flags": "", **row}) for key, value in how.items()}
        except (KeyError, IndexError, ValueError) as error:
            raise self.fail(place, f"the row gives no value for {error} in {how!r}") from error
        return {key: " ".join(value.split()) for key, value in filled.items()}

    def number(self, draft: dict) -> dict:
        """Adds the printed number, its unit and the tolerance in that unit."""
        match = _NUMBER.fullmatch(draft["printed"])
        draft["printed_unit"] = ""
        if "value" not in draft:
            if match is None:
                raise self.fail(draft["id"], f"no number to be read from {draft['printed']!r}; add 'value'")
            draft["value"], draft["printed_unit"] = float(match[1]), match[2]
        draft.setdefault("unit", draft["printed_unit"])
        tolerance = draft.setdefault("tolerance", None)
        if isinstance(tolerance, str):
            share = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", tolerance)
            if share is None:
                raise self.fail(draft["id"], f"tolerance {tolerance!r} is neither a number nor a percentage")
            draft["tolerance"] = abs(draft["value"]) * float(share[1]) / 100
        return draft

    def claim(self, draft: dict) -> Claim:
        """The finished claim, once all printed values are known."""
        place, status, how, instead = draft["id"], draft["status"], draft["how"], draft.get("instead", {})
        for name, value, known in (("status", status, STATUSES), ("kind", draft.get("kind"), KINDS)):
            if value not in known:
                choice = ", ".join(known)
                raise self.fail(place, f"unknown {name} {value!r}{near(value, known)}; one of {choice}")
        if status in UNCHECKED and how:
            raise self.fail(place, f"status {status!r} has nothing to run, but 'how' is given")
        if status in COMMANDED and _ways(how) != ["command"]:
            raise self.fail(place, f'status {status!r} promises a command: how = {{ command = "..." }}')
        if status in COMPUTED and _ways(how) not in (["function"], ["measured"]):
            raise self.fail(place, f"status {status!r} needs a computation: how = {{ function = ... }}")
        if status not in UNCHECKED and draft["tolerance"] is None:
            raise self.fail(place, "'tolerance' is missing")
        if status in EXPLAINED and not draft.get("note"):
            raise self.fail(place, f"status {status!r} needs a 'note' that says why")
        if instead and "function" not in how:
            raise self.fail(place, "'instead' changes the arguments of a function, but 'how' names none")
        if instead:
            instead = self.resolve(place, instead if "function" in instead else {**how, **instead})
        if status in UNCHECKED:
            draft["tolerance"] = None
        return Claim(**{**draft, "paper": self.paper, "how": self.resolve(place, how), "instead": instead})

    def resolve(self, place: str, how: dict) -> dict:
        """Replaces "@ID" by that claim's printed value and makes sure that the call can be made."""
        if "measured" in how:
            self.keys(place, how, {"measured": str, "key": str}, required=("key",))
        if "function" not in how:
            return how
        name = how["function"]
        if name not in checks.FUNCTIONS:
            raise self.fail(place, f"no function {name!r}{near(name, checks.FUNCTIONS)} in checks.FUNCTIONS")
        resolved = dict(how)
        for key, value in how.items():
            if isinstance(value, str) and value.startswith("@"):
                if value[1:] not in self.values:
                    raise self.fail(place, f"{key} = {value!r}: no such claim{near(value[1:], self.values)}")
                resolved[key] = self.values[value[1:]]
        try:
            arguments = {key: value for key, value in resolved.items() if key != "function"}
            inspect.signature(checks.FUNCTIONS[name]).bind(**arguments)
        except TypeError as error:
            raise self.fail(place, f"{name}: {error}") from error
        return resolved


def _ways(how: Mapping[str, object]) -> list[str]:
    return [way for way in _WAYS if way in how]
