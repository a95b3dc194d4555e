"""The precision the reference computes in."""

import torch


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 for float64 input, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
