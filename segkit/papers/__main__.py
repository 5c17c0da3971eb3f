"""`python -m segkit.papers check [PAPER] [--json FILE]` and `python -m segkit.papers show CLAIM`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from segkit.papers import ledger
from segkit.papers.claims import STATUSES, Result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m segkit.papers", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="recompute the claims and compare each status with the result")
    check.add_argument(
        "paper", nargs="?", help="short name such as ldn, or a claims file (default: all papers)"
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    show = commands.add_parser("show", help="print one claim with everything that is known about it")
    show.add_argument("claim", help="a claim's id, such as ldn.table4.ldn121-64-4.params")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1 when a status is not what the computation says."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "show":
            print(_opened(ledger.check([ledger.load()[options.claim]])[0]))
            return 0
        claims = ledger.load(options.paper)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    results = ledger.check(claims)
    print(report(results))
    if options.json:
        text = json.dumps([result.as_dict() for result in results], indent=1, ensure_ascii=False)
        try:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            print(f"cannot write {options.json}: {error}", file=sys.stderr)
            return 2
    return 0 if all(result.ok for result in results) else 1


def report(results: Sequence[Result]) -> str:
    """The table of all claims, the tally, and the claims whose status is not what the computation says."""
    rows = [("claim", "printed", "ours", "status", "verdict")]
    for result in results:
        claim = result.claim
        verdict = (
            "not run here" if not result.computed else result.verdict if result.ok else f"{result.verdict} !"
        )
        rows.append((claim.id, claim.printed, _ours(result), claim.status, verdict))
    parts = [_aligned(rows, right=(1, 2))]

    counts = ledger.tally(result.claim for result in results)
    used = [status for status in STATUSES if any(row[status] for row in counts.values())]
    rows = [("kind", *used, "sum")]
    for kind, row in counts.items():
        rows.append((kind, *(str(row[status]) for status in used), str(sum(row.values()))))
    sums = [sum(row[status] for row in counts.values()) for status in used]
    rows.append(("sum", *map(str, sums), str(sum(sums))))
    parts.append(_aligned(rows, right=range(1, len(used) + 2)))

    computed = sum(result.computed for result in results)
    wrong = [result for result in results if not result.ok]
    parts.append(
        f"{len(results)} claims, {computed} computed here, {len(wrong)} with a status that does not hold."
    )
    if wrong:
        parts.append("\n".join(_contradiction(result) for result in wrong))
    return "\n\n".join(parts)


def _contradiction(result: Result) -> str:
    claim = result.claim
    if result.verdict == "error":
        return f"{claim.id}: cannot be computed: {result.error}"
    gap = f"printed {claim.printed}, ours {_ours(result)}, tolerance {claim.tolerance:g} {claim.unit}"
    return f"{claim.id}: status {claim.status}, but the computation says {result.verdict} ({gap})"


def _opened(result: Result) -> str:
    """One claim, a line per fact."""
    claim = result.claim
    tolerance = "" if claim.tolerance is None else f"±{claim.tolerance:.4g} {claim.unit}"
    facts = {
        "claim": claim.id,
        "where": claim.where,
        "printed": claim.printed,
        "compared": f"{claim.value:.12g} {claim.unit}".rstrip(),
        "kind": claim.kind,
        "how": _call(claim.how),
        "command": claim.command,
        "instead": _call(claim.instead),
        "tolerance": tolerance,
        "ours": _ours(result) if result.computed else "",
        "status": claim.status,
        "verdict": result.verdict if result.computed else "not run here",
        "error": result.error,
        "note": claim.note,
    }
    return "\n".join(f"{key:<10} {value}".rstrip() for key, value in facts.items() if value)


def _call(how: Mapping[str, object]) -> str:
    """`function(argument=value)` or `measured file: key`."""
    if "measured" in how:
        return f"{how['measured']}: {how['key']}"
    arguments = ", ".join(f"{key}={value!r}" for key, value in how.items() if key != "function")
    return f"{how['function']}({arguments})" if "function" in how else ""


def _ours(result: Result) -> str:
    """Ours with two digits more than printed; under both readings where there are two."""
    written = re.search(r"\d\.(\d+)", result.claim.printed)
    decimals = 2 + len(written[1] if written else f"{result.claim.value:.12g}".partition(".")[2])
    values = [value for value in (result.ours, result.instead) if value is not None]
    return " | ".join(f"{value:.{decimals}f}" for value in values) or "-"


def _aligned(rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
