"""Triton kernels, one file an op (installed as `llama_fast.kernels`).

Each file holds the kernel family of the op it is named after, the functions that launch it (they
take the arguments and return the results of the operators in `llama_fast/ops/backends/table.py`),
and `examples()`, calls that between them reach every configuration the launchers can choose.
Importing this package alone neither needs Triton nor loads it.
"""
