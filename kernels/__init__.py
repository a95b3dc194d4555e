"""Triton kernels, one file an op (installed as `llama_fast.kernels`).

Each file holds the kernel family of the op it is named after and the functions that launch it.
Only `llama_fast.ops` imports them, and only when a GPU is there: importing this package alone
neither needs Triton nor loads it.
"""
