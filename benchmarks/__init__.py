"""The benchmark suite behind `llama-fast bench` (installed as `llama_fast.benchmarks`).

cases.py lists what is measured and why, and baselines.py the implementations to compare with.
limits.py measures the limits of the machine; measure.py, memory.py and training.py measure the
cases; suite.py runs everything. `bench_<op>.py` are the same cases for pytest-benchmark.
"""
