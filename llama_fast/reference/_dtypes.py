"""The dtypes in which the ops compute."""

import torch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-sum-exps: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which the reference computes on `tensor`."""
    return wide_dtype(tensor.dtype)
