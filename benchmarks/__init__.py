"""The benchmark suite behind `llama-fast bench` (installed as `llama_fast.benchmarks`).

cases.py says what is measured and why, baselines.py what it is measured beside, limits.py what the
machine can do, measure.py, memory.py and training.py how; suite.py runs it all. `bench_<op>.py` are
the same cases for pytest-benchmark.
"""
