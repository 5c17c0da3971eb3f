"""`python -m segkit.bench NAME [options]` runs one benchmark; without a name it lists them."""

import difflib
import importlib
import pkgutil
import sys

import segkit.bench


def names() -> list[str]:
    """The benchmarks there are: the modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(segkit.bench.__path__) if not m.name.startswith("_"))


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m segkit.bench NAME [options]\n\nbenchmarks:")
        for name in names():
            summary = (importlib.import_module(f"segkit.bench.{name}").__doc__ or "").strip().splitlines()
            print(f"  {name:<16} {summary[0] if summary else ''}")
        return 0
    if argv[0] not in names():
        near = difflib.get_close_matches(argv[0], names()) or names()
        print(f"unknown benchmark {argv[0]!r}; there is {', '.join(near)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"segkit.bench.{argv[0]}").main(argv[1:]) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
