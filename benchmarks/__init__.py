"""Benchmarks: `bench_<op>.py` for pytest-benchmark, `compare.py` for ratios to rivals."""
