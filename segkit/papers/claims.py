"""What a claim, a table and a ledger are; `segkit.papers.reader` makes them from a claims file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

KINDS = ("structure", "memory", "speed", "accuracy", "schedule", "text")
COMPUTED = ("reproduced", "differs", "inconsistent")  # statuses that only a computation can give
COMMANDED = ("needs-gpu", "needs-data")  # statuses that promise a command
UNCHECKED = ("not-built", "quoted")  # statuses with nothing to run
STATUSES = COMPUTED + COMMANDED + UNCHECKED
EXPLAINED = ("differs", "inconsistent", "not-built")  # statuses that owe the reader a reason


class LedgerError(ValueError):
    """A claims file says something that cannot be: the message names the file and the claim."""


@dataclass(frozen=True)
class Table:
    """A table of a paper, as the list of cells that hold a number.

    Attributes:
        paper: short name of the paper, `"ldn"`.
        number: the table's number as printed, `"4"`.
        title: what the table shows.
        rows: row key to the row's printed name.
        columns: column key to the column's printed name; only columns of numbers.
        labels: the printed names of the columns that hold names or ticks.
        empty: (row, column) pairs that the paper leaves without a number.
    """

    paper: str
    number: str
    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    empty: frozenset[tuple[str, str]]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """The (row, column) pairs that hold a number, in reading order."""
        pairs = [(row, column) for row in self.rows for column in self.columns]
        return [pair for pair in pairs if pair not in self.empty]

    def claim_id(self, row: str, column: str) -> str:
        """The id of the claim for a cell."""
        return f"{self.paper}.table{self.number}.{row}.{column}"


@dataclass(frozen=True)
class Claim:
    """One printed number and how we check it.

    Attributes:
        id: `"ldn.table4.ldn121-64-4.params"`, or `"ldn.text.NAME"` for a number in running text.
        paper: short name of the paper.
        where: the place in the paper, for people.
        printed: the number as it is printed.
        value: the printed number.
        unit: the unit that `value` is compared in.
        printed_unit: the unit as it is printed beside the number, empty where it stands elsewhere.
        kind: one of `KINDS`.
        status: one of `STATUSES`.
        tolerance: largest accepted |ours - value|, in `unit`; None only where nothing is compared.
        how: the computation, measured file or command, as in the claims file, complete.
        instead: `how` under the reading that does give the printed number; empty without one.
        note: the reason for the status.
        table: the table's number, None for text.
        row: the row's key, None for text.
        column: the column's key, None for text.
    """

    id: str
    paper: str
    where: str
    printed: str
    value: float
    unit: str
    printed_unit: str
    kind: str
    status: str
    tolerance: float | None
    how: Mapping[str, object] = field(default_factory=dict)
    instead: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    table: str | None = None
    row: str | None = None
    column: str | None = None

    @property
    def command(self) -> str:
        """The command that gets the number, or empty."""
        return str(self.how.get("command", ""))


@dataclass(frozen=True)
class Ledger:
    """The claims of one or more papers: a collection of `Claim` with the tables they cover."""

    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]

    def __iter__(self) -> Iterator[Claim]:
        return iter(self.claims)

    def __len__(self) -> int:
        return len(self.claims)

    def __getitem__(self, claim_id: str) -> Claim:
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise KeyError(f"no claim {claim_id!r}{near(claim_id, [claim.id for claim in self.claims])}")

    def select(self, **wanted: str) -> list[Claim]:
        """The claims whose attributes equal the given ones: `select(kind="structure", status="differs")`."""
        return [claim for claim in self if all(getattr(claim, key) == value for key, value in wanted.items())]


@dataclass(frozen=True)
class Result:
    """What became of one claim in a check.

    Attributes:
        claim: the claim.
        ours: what we get, in the claim's unit; None where this machine computes nothing.
        instead: what the claim's other reading gives; None without one.
        verdict: the status that the computation gives, `"error"` where it failed; where nothing is computed
            here, the claim's own status.
        error: why the computation failed.
    """

    claim: Claim
    ours: float | None
    instead: float | None
    verdict: str
    error: str = ""

    @property
    def computed(self) -> bool:
        """Whether this machine computed (or tried to compute) the number."""
        return bool(self.claim.how) and not self.claim.command

    @property
    def ok(self) -> bool:
        """Whether the claim's status is what the computation says."""
        return self.verdict == self.claim.status

    def as_dict(self) -> dict[str, object]:
        """Plain values for a JSON file."""
        claim = self.claim
        return {
            "id": claim.id,
            "where": claim.where,
            "kind": claim.kind,
            "printed": claim.printed,
            "value": claim.value,
            "unit": claim.unit,
            "tolerance": claim.tolerance,
            "how": dict(claim.how),
            "ours": self.ours,
            "instead": self.instead,
            "status": claim.status,
            "verdict": self.verdict,
            "computed": self.computed,
            "ok": self.ok,
            "note": claim.note,
            "error": self.error,
        }


def near(word: object, known: Iterable[str]) -> str:
    """` (did you mean ...?)` for a word that is close to known ones, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
