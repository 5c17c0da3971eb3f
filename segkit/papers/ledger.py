"""The claims ledger: every number a paper prints, with what we get and whether the two agree.

One TOML file per paper lies beside this module; `segkit.papers.reader` describes its format. `load` reads it,
`check` computes every claim that this machine can compute and derives the verdict. The status written in the
file has to be that verdict: it cannot be set by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from segkit.papers import checks, reader
from segkit.papers.claims import KINDS, STATUSES, Claim, Ledger, Result

FOLDER = Path(__file__).parent
MEASURED = FOLDER.parents[1] / "data" / "measured"


def papers() -> list[str]:
    """The short names of the papers that have a claims file, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(paper: str | Path | None = None) -> Ledger:
    """Read and validate the claims of a paper.

    Args:
        paper: short name (`"ldn"`), the path of a claims file of your own (ending in `.toml`), or None for
            every paper of the kit.

    Returns:
        The claims in the order of their file, with the tables they cover.

    Raises:
        ValueError: an unknown paper; the message lists the known ones.
        FileNotFoundError: a path that does not exist.
        LedgerError: the file breaks the format; the message names the file and the claim.
    """
    if paper is None:
        ledgers = [load(name) for name in papers()]
        return Ledger(
            claims=tuple(claim for ledger in ledgers for claim in ledger.claims),
            tables=tuple(table for ledger in ledgers for table in ledger.tables),
        )
    if str(paper).endswith(".toml"):
        if not Path(paper).is_file():
            raise FileNotFoundError(f"no claims file {paper}")
        return reader.read(Path(paper))
    if paper not in papers():
        raise ValueError(
            f"no claims for paper {str(paper)!r}; there are {', '.join(papers())}, or give a .toml file"
        )
    return reader.read(FOLDER / f"{paper}.toml")


def check(claims: Iterable[Claim], *, measured: str | Path = MEASURED) -> list[Result]:
    """Compute every claim that can be computed here and derive its verdict.

    A number within its tolerance is `reproduced`. One outside it is `inconsistent` where the claim's other
    reading gives the printed number, else `differs`. A number that agrees under a unit that does not is
    `inconsistent` too. Commands are not run: those claims keep their status.

    Args:
        claims: a `Ledger` or any of its claims.
        measured: folder of the measured JSON files; default the checkout's `data/measured`.

    Returns:
        One result per claim, in order; a failed computation is a result with verdict `"error"`.
    """
    values: dict[str, float] = {}  # the same computation is done once per check

    def compute(how: Mapping[str, object]) -> float:
        key = json.dumps(how, sort_keys=True)
        if key not in values:
            values[key] = _evaluate(how, Path(measured))
        return values[key]

    checks.forget()
    return [_judge(claim, compute) for claim in claims]


def tally(claims: Iterable[Claim]) -> dict[str, dict[str, int]]:
    """Count claims by kind and status.

    Returns:
        kind -> status -> count, for the kinds that occur, with every status.
    """
    counts = {kind: dict.fromkeys(STATUSES, 0) for kind in KINDS}
    for claim in claims:
        counts[claim.kind][claim.status] += 1
    return {kind: row for kind, row in counts.items() if any(row.values())}


def _judge(claim: Claim, compute: Callable[[Mapping[str, object]], float]) -> Result:
    if not claim.how or claim.command:
        return Result(claim, None, None, claim.status)
    try:
        ours = compute(claim.how)
        instead = compute(claim.instead) if claim.instead else None
    except Exception as error:  # one broken claim must not hide the verdicts on all others
        return Result(claim, None, None, "error", f"{type(error).__name__}: {error}")
    if _agrees(claim, ours):
        unit_agrees = claim.printed_unit in ("", claim.unit)
        return Result(claim, ours, instead, "reproduced" if unit_agrees else "inconsistent")
    explained = instead is not None and _agrees(claim, instead)
    return Result(claim, ours, instead, "inconsistent" if explained else "differs")


def _agrees(claim: Claim, ours: float) -> bool:
    # The slack lets 66.45 pass against 66.5 ± 0.05, which binary fractions would refuse.
    return abs(ours - claim.value) <= claim.tolerance * (1 + 1e-9) + 1e-12 * abs(claim.value)


def _evaluate(how: Mapping[str, object], measured: Path) -> float:
    if "function" in how:
        arguments = {key: value for key, value in how.items() if key != "function"}
        value = checks.FUNCTIONS[how["function"]](**arguments)
    else:
        path = measured / how["measured"]
        if not path.is_file():
            raise FileNotFoundError(f"measured file {path} is missing")
        value = json.loads(path.read_text(encoding="utf-8"))
        for part in how["key"].split("."):
            if not isinstance(value, dict) or part not in value:
                raise KeyError(f"{path.name} has no {how['key']!r} (looking for {part!r})")
            value = value[part]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)
