"""Side-by-side benchmarks, one a file: `python -m segkit.bench NAME`. Results are JSON."""
