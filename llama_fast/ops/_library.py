"""The `llama_fast` operator namespace: every schema, and the compiled library behind it.

The schemas stand here, in Python, rather than in the C++ source: the CPU kernels (C++),
the CUDA kernels and the Triton kernels all implement the same operators, and Triton must
work where nothing was compiled. The compiled library registers kernels and no schema.

Environment:
    LLAMA_FAST_LIBRARY  path of another compiled library (a sanitizer build, for example)
    LLAMA_FAST_ISA      instruction set to use: portable, avx2, avx512, avx512_bf16,
                        amx_bf16
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

_ATTENTION_OPTIONS = (
    "Tensor? bias, Tensor? key_padding_mask, Tensor? alibi_slopes, Tensor? sinks, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? dropout_seed, bool causal, "
    "SymInt window_left, SymInt window_right, float scale, float softcap, float dropout_p"
)
_CROSS_ENTROPY_OPTIONS = (
    "Tensor target, Tensor? weight, int ignore_index, int reduction, float label_smoothing, "
    "float softcap, float z_loss"
)
_LINEAR_CROSS_ENTROPY = (
    "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, "
    "Tensor? grad_loss, int ignore_index, int reduction, float label_smoothing, float softcap, "
    "float z_loss, bool stats, int grad_mask, Tensor? grad_lse=None"
)

# A graph that torch.compile cached or torch.export saved calls an operator as it was: an argument
# that is added later stands last and has a default.
#
# One line per operator. What each returns is described where it is called (ops/<op>.py).
SCHEMAS = (
    "isa() -> str",
    "empty_cache() -> int",
    f"attention(Tensor q, Tensor k, Tensor v, {_ATTENTION_OPTIONS}) "
    "-> (Tensor out, Tensor lse, Tensor lse_low)",
    "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
    f"Tensor out, Tensor lse, Tensor lse_low, {_ATTENTION_OPTIONS}, int grad_mask) "
    "-> (Tensor q, Tensor k, Tensor v, Tensor bias, Tensor alibi_slopes, Tensor sinks)",
    # Writes k and v into the caches, behind the cache_seqlens keys that they hold.
    "attention_decode(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? k, Tensor? v, "
    "Tensor cache_seqlens, Tensor? page_table, Tensor? alibi_slopes, Tensor? sinks, "
    "SymInt window_left, float scale, float softcap) -> (Tensor out, Tensor lse)",
    f"cross_entropy(Tensor input, {_CROSS_ENTROPY_OPTIONS}, bool stats) "
    "-> (Tensor loss, Tensor lse, Tensor z_loss, Tensor argmax)",
    f"cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor lse, {_CROSS_ENTROPY_OPTIONS}, "
    "Tensor? grad_lse=None) -> Tensor",
    # Overwrites `input` with the gradient of the loss (for an upstream gradient of one).
    f"cross_entropy_inplace(Tensor(a!) input, {_CROSS_ENTROPY_OPTIONS}, bool stats) "
    "-> (Tensor loss, Tensor lse, Tensor z_loss, Tensor argmax)",
    # x = input + residual, empty without one; rstd = 1 / sqrt(mean(x^2) + eps).
    "rms_norm(Tensor input, Tensor weight, Tensor? residual, float eps, float offset) "
    "-> (Tensor y, Tensor x, Tensor rstd)",
    # Bits of grad_mask: dx, dweight; what is not wanted comes back empty.
    "rms_norm_backward(Tensor grad_y, Tensor? grad_x, Tensor x, Tensor weight, Tensor rstd, "
    "float eps, float offset, int grad_mask) -> (Tensor dx, Tensor dweight)",
    # The other direction (inverse) is the backward.
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved, bool inverse) "
    "-> (Tensor q, Tensor k)",
    # For a few rows, without gradients; torch's own serves all else.
    "linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor",
    # With how many rows of the dtype of `like` it is faster than torch's.
    "linear_rows(Tensor like) -> int",
    # Every block of a Llama model for one new token of each of B sequences, (B,E) to (B,E); nine
    # weights a block, then that of the last norm. Writes into the caches (L,slots,K,D).
    "decode_layers(Tensor x, Tensor[] weights, Tensor cos, Tensor sin, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor cache_seqlens, Tensor page_table, int page, float eps) -> Tensor",
    "swiglu(Tensor gate, Tensor up) -> Tensor",
    # Bits of grad_mask: gate, up.
    "swiglu_backward(Tensor grad_out, Tensor gate, Tensor up, int grad_mask) "
    "-> (Tensor gate, Tensor up)",
    # With grad_lse the gradients are those of (grad_lse * lse).sum(), not of the loss.
    f"linear_cross_entropy({_LINEAR_CROSS_ENTROPY})"
    " -> (Tensor loss, Tensor lse, Tensor z_loss, Tensor argmax, Tensor input, "
    "Tensor linear_weight, Tensor linear_bias)",
)

library = torch.library.Library("llama_fast", "DEF")
for _schema in SCHEMAS:
    library.define(_schema)

# The operators that the compiled library implements on the CPU.
_COMPILED_CPU_OPS = frozenset(
    {
        "attention",
        "attention_decode",
        "cross_entropy",
        "linear",
        "linear_cross_entropy",
        "rms_norm",
        "rope",
        "swiglu",
    }
)


def _library_path() -> Path:
    override = os.environ.get("LLAMA_FAST_LIBRARY")
    return Path(override) if override else Path(__file__).parent.parent / "libllama_fast.so"


def _load() -> str | None:
    """Load the compiled library; returns why it is missing, or None when it is there."""
    path = _library_path()
    if not path.exists():
        return f"the compiled library is not there ({path}); reinstall with a C++ compiler"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    return None


missing_reason = _load()
if missing_reason is not None:
    warnings.warn(
        f"llama_fast: {missing_reason}. The slow reference backend serves instead.",
        RuntimeWarning,
        stacklevel=2,
    )


def has_cpu_kernel(op: str) -> bool:
    """Whether the compiled library is loaded and holds a CPU kernel for `op`."""
    return missing_reason is None and op in _COMPILED_CPU_OPS


def isa_or_none() -> str:
    """As :func:`isa`, and "none" where LLAMA_FAST_ISA names none."""
    return _ISA


def isa() -> str:
    """The instruction set that the CPU kernels use, or "none" without the compiled library."""
    return torch.ops.llama_fast.isa() if missing_reason is None else "none"


try:
    _ISA = isa()  # once: torch.compile cannot trace the question
except RuntimeError:  # LLAMA_FAST_ISA names none; the first call of a kernel says so
    _ISA = "none"
