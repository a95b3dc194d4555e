"""FLOPs of a training step, and peak FLOP/s of devices.

Model FLOPs utilisation (MFU) is the fraction of the peak rate that is spent on the operations that
a step requires (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

import re
import time
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama_fast.models import LlamaConfig

# Dense rates from NVIDIA's data sheets in FLOP/s: 16 bit, TF32, float32. The first entry whose
# words are all in the name of the GPU applies.
_SHEETS: dict[tuple[str, ...], tuple[float, float, float]] = {
    ("A100",): (312e12, 156e12, 19.5e12),
    ("H100", "PCIe"): (756e12, 378e12, 51e12),
    ("H100", "NVL"): (835e12, 417e12, 60e12),
    ("H200", "NVL"): (835e12, 417e12, 60e12),
    ("H100",): (989e12, 494e12, 67e12),
    ("H200",): (989e12, 494e12, 67e12),
    ("GH200",): (989e12, 494e12, 67e12),
    ("B200",): (2250e12, 1125e12, 75e12),
    ("L4",): (121e12, 60e12, 30.3e12),
    ("L40S",): (362e12, 183e12, 91.6e12),
}


class PeakFlops(NamedTuple):
    """Peak rate of a device.

    Attributes:
        flops: floating-point operations per second; a multiplication and an addition are two.
        source: description of where the number comes from.
    """

    flops: float
    source: str

    def __str__(self) -> str:
        """Text for a log line."""
        scale, unit = (1e12, "TFLOP/s") if self.flops >= 1e12 else (1e9, "GFLOP/s")
        return f"{self.flops / scale:,.0f} {unit} ({self.source})"


def attention_pairs(cu_seqlens: Tensor) -> int:
    """Number of query-key pairs in causal attention: s (s + 1) / 2 for a segment of s tokens.

    Args:
        cu_seqlens: (segments + 1,) int32, offsets of the packed segments.
    """
    lengths = np.diff(cu_seqlens.cpu().numpy().astype(np.int64))
    return int((lengths * (lengths + 1)).sum()) // 2


def training_flops(config: LlamaConfig, tokens: int, targets: int, pairs: int) -> int:
    """FLOPs of the matrix products in a forward and a backward pass.

    Each weight takes 2 FLOPs per token in the forward and 4 in the backward pass. That is 6 N per
    token for the N weights of the layers, and 6 V E for the head per token with a target. Attention
    takes 4 H D
    per pair and layer in the forward pass (scores and weighted sum of values) and twice that in the
    backward pass. PaLM's formula, 6 N + 12 L H D S per token, is the same with pairs = tokens x S,
    which includes the pairs that the causal mask excludes. Recomputation of activations is not
    counted.

    Args:
        config: configuration of the model.
        tokens: number of tokens.
        targets: number of tokens with a loss.
        pairs: number of query-key pairs, from :func:`attention_pairs`.
    """
    c = config
    projections = 2 * c.embed_dim * c.head_dim * (c.num_heads + c.num_kv_heads)
    layer = projections + 3 * c.embed_dim * c.ffn_dim
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * pairs
    return 6 * (c.num_layers * layer * tokens + c.vocab_size * c.embed_dim * targets) + attention


def data_sheet(name: str, precision: str, *, tf32: bool = False) -> PeakFlops | None:
    """Peak rate from the data sheet of a GPU; None for an unknown GPU.

    Args:
        name: name of the GPU as the driver reports it, such as "NVIDIA H100 80GB HBM3".
        precision: "float32", "bfloat16" or "float16".
        tf32: whether float32 matrix products use TF32.
    """
    for words, (half, rounded, full) in _SHEETS.items():
        if set(words) <= set(re.split(r"[ -]", name)):
            if precision != "float32":
                return PeakFlops(half, f"data sheet of {name}, 16 bit")
            if tf32:
                return PeakFlops(rounded, f"data sheet of {name}, TF32")
            return PeakFlops(full, f"data sheet of {name}, float32")
    return None


@cache
def peak_flops(device: torch.device, precision: str) -> PeakFlops:
    """Peak rate of a device: from NVIDIA's data sheet, otherwise measured.

    Args:
        device: a device of type "cuda" or "cpu".
        precision: "float32", "bfloat16" or "float16".
    """
    if device.type == "cuda":
        exact = torch.get_float32_matmul_precision() == "highest"
        sheet = data_sheet(torch.cuda.get_device_name(device), precision, tf32=not exact)
        if sheet is not None:
            return sheet
    return PeakFlops(measured_flops(device, precision), f"torch.mm measured here, {precision}")


def measured_flops(device: torch.device, precision: str, seconds: float = 0.15) -> float:
    """FLOP/s of the fastest of the matrix products that are run for `seconds`.

    torch's random state is not used, so a run is not affected.
    """
    rows, size = (8192, 8192) if device.type == "cuda" else (512, 1024)
    a = torch.ones(rows, size, dtype=getattr(torch, precision), device=device)
    b = torch.ones(size, size, dtype=getattr(torch, precision), device=device)
    out = torch.mm(a, b)  # warm-up
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        _wait(device)
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * rows * size * size / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
