"""Triton kernels, one file per op (installed as `llama_fast.kernels`).

The file of an op has its kernels, the functions that launch them (with the arguments and results of
the operators in `llama_fast/ops/backends/table.py`), and `examples()`, calls that together use
every configuration that the launchers can choose. Importing this package alone neither needs nor
loads Triton.
"""
