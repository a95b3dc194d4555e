"""Without a GPU the Triton kernels are tested in Triton's interpreter, on the CPU."""

import os

import torch

# Read when the package and the kernels are imported, so it is set before any test is collected.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
