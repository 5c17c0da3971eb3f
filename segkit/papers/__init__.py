"""The claims ledger: every number of the papers, what we get for it, and how it was checked."""

from segkit.papers.claims import KINDS, STATUSES, Claim, Ledger, LedgerError, Result, Table
from segkit.papers.ledger import check, load, papers, tally

__all__ = [
    "KINDS",
    "STATUSES",
    "Claim",
    "Ledger",
    "LedgerError",
    "Result",
    "Table",
    "check",
    "load",
    "papers",
    "tally",
]
