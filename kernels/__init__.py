"""Triton kernels, one file an op (installed as `llama_fast.kernels`).

Each file holds the kernels of the op it is named after, the functions that launch them (with the
arguments and results of the operators in `llama_fast/ops/backends/table.py`), and `examples()`,
calls that together reach every configuration the launchers can choose. Importing this package alone
neither needs nor loads Triton.
"""
