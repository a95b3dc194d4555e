"""The table of ops: their operators, their backends, and the dtypes that their kernels take.

Every list of ops, operators or backends is derived from this table: the operator library, the
backends "triton" and "cuda", `use_backend` and its report, benchmarks and tests.

The schemas are declared in Python, not in C++, because the CPU kernels (C++), the CUDA kernels and
the Triton kernels implement the same operators, and Triton must work without a compiled library.
The compiled library only registers kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
UP_TO_FLOAT32 = FLOATS[1:]
HALF = (torch.bfloat16, torch.float16)

BACKENDS = {
    "auto": "the fastest one that is there",
    "cpu": "compiled C++",
    "triton": "Triton on a GPU, or in Triton's interpreter with TRITON_INTERPRET=1",
    "cuda": "compiled CUDA C++",
    "chunked": "linear_cross_entropy in chunks of rows, over the other ops",
    "torch": "PyTorch's own functions, for comparison",
    "reference": "the mathematics in plain PyTorch",
}
# These backends are Python code that serves every op, dtype and device.
UNIVERSAL = ("auto", "torch", "reference")


class Op(NamedTuple):
    """The operators and kernels of an op.

    Attributes:
        schemas: the schemas of its operators. A backend with kernels for the op implements all.
        kernels: backend -> the dtypes that its kernels take. A backend that is neither in this
            dictionary nor in `UNIVERSAL` does not serve the op.
    """

    schemas: tuple[str, ...]
    kernels: dict[str, tuple[torch.dtype, ...]]

    @property
    def operators(self) -> tuple[str, ...]:
        """The names of its operators."""
        return tuple(map(operator_name, self.schemas))


def operator_name(schema: str) -> str:
    """The name of the operator that a schema declares."""
    return schema.partition("(")[0]


_ATTENTION_OPTIONS = (
    "Tensor? bias, Tensor? key_padding_mask, Tensor? alibi_slopes, Tensor? sinks, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? dropout_seed, bool causal, "
    "SymInt window_left, SymInt window_right, float scale, float softcap, float dropout_p"
)
# The fields of CrossEntropyOptions in llama_fast/reference/cross_entropy.py.
_CROSS_ENTROPY_OPTIONS = (
    "Tensor? weight, int ignore_index, int reduction, float label_smoothing, float softcap, "
    "float z_loss"
)
_LINEAR_CROSS_ENTROPY = (
    "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? grad_loss, "
    f"{_CROSS_ENTROPY_OPTIONS}, bool stats, int grad_mask, Tensor? grad_lse=None"
)
_LINEAR_CROSS_ENTROPY_RESULTS = (
    "(Tensor loss, Tensor lse, Tensor z_loss, Tensor argmax, Tensor input, Tensor linear_weight, "
    "Tensor linear_bias)"
)

# Graphs that torch.compile cached or torch.export saved call an operator with its old arguments, so
# a new argument is added at the end and has a default. The results of an operator are described
# where it is called (ops/<op>.py).
TABLE = {
    "attention": Op(
        (
            f"attention(Tensor q, Tensor k, Tensor v, {_ATTENTION_OPTIONS}) "
            "-> (Tensor out, Tensor lse, Tensor lse_low)",
            "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
            f"Tensor out, Tensor lse, Tensor lse_low, {_ATTENTION_OPTIONS}, int grad_mask) "
            "-> (Tensor q, Tensor k, Tensor v, Tensor bias, Tensor alibi_slopes, Tensor sinks)",
        ),
        {"cpu": FLOATS, "triton": FLOATS},
    ),
    "attention_decode": Op(
        (
            # Writes k and v into the caches, after the first cache_seqlens keys.
            "attention_decode(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? k, "
            "Tensor? v, Tensor cache_seqlens, Tensor? page_table, Tensor? alibi_slopes, "
            "Tensor? sinks, SymInt window_left, float scale, float softcap) "
            "-> (Tensor out, Tensor lse)",
        ),
        {"cpu": FLOATS, "triton": FLOATS, "cuda": HALF},
    ),
    "cross_entropy": Op(
        (
            f"cross_entropy(Tensor input, Tensor target, {_CROSS_ENTROPY_OPTIONS}, bool stats) "
            "-> (Tensor loss, Tensor lse, Tensor z_loss, Tensor argmax)",
            "cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor lse, Tensor target, "
            f"{_CROSS_ENTROPY_OPTIONS}, Tensor? grad_lse=None) -> Tensor",
            # Overwrites `input` with the gradient of the loss (for an upstream gradient of one).
            f"cross_entropy_inplace(Tensor(a!) input, Tensor target, {_CROSS_ENTROPY_OPTIONS}, "
            "bool stats) -> (Tensor loss, Tensor lse, Tensor z_loss, Tensor argmax)",
        ),
        {"cpu": FLOATS, "triton": FLOATS, "cuda": UP_TO_FLOAT32},
    ),
    "linear_cross_entropy": Op(
        (
            # With grad_lse the gradients are those of (grad_lse * lse).sum(), not of the loss.
            # Bits of grad_mask: input, linear_weight, linear_bias.
            f"linear_cross_entropy({_LINEAR_CROSS_ENTROPY}) -> {_LINEAR_CROSS_ENTROPY_RESULTS}",
        ),
        {"cpu": FLOATS, "triton": FLOATS, "chunked": FLOATS},
    ),
    "rms_norm": Op(
        (
            # x = input + residual, empty if there is no residual; rstd = 1 / sqrt(mean(x^2) + eps).
            "rms_norm(Tensor input, Tensor weight, Tensor? residual, float eps, float offset) "
            "-> (Tensor y, Tensor x, Tensor rstd)",
            # Bits of grad_mask: dx, dweight. A gradient that is not wanted is an empty tensor.
            "rms_norm_backward(Tensor grad_y, Tensor? grad_x, Tensor x, Tensor weight, "
            "Tensor rstd, float eps, float offset, int grad_mask) "
            "-> (Tensor dx, Tensor dweight)",
        ),
        {"cpu": FLOATS, "triton": FLOATS, "cuda": UP_TO_FLOAT32},
    ),
    "rope": Op(
        (
            # The backward pass is the rotation with inverse=True.
            "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved, bool inverse) "
            "-> (Tensor q, Tensor k)",
        ),
        {"cpu": FLOATS, "triton": FLOATS, "cuda": UP_TO_FLOAT32},
    ),
    "swiglu": Op(
        (
            "swiglu(Tensor gate, Tensor up) -> Tensor",
            # Bits of grad_mask: gate, up.
            "swiglu_backward(Tensor grad_out, Tensor gate, Tensor up, int grad_mask) "
            "-> (Tensor gate, Tensor up)",
        ),
        {"cpu": FLOATS, "triton": FLOATS},
    ),
}
OPS = tuple(TABLE)

# Operators that belong to no op of the table. Each has a single implementation.
OTHER_SCHEMAS = (
    "isa() -> str",
    "empty_cache() -> int",
    # Facts about the library and the processor, as JSON.
    "build_info() -> str",
    "cpu_features() -> str",
    "constants() -> str",
    # data/bin_packing.py
    "pack_sequences(Tensor lengths, int capacity) -> (Tensor bin_of, int n_bins)",
    "cu_seqlens(Tensor lengths) -> Tensor",
    # For a few rows, without gradients; torch's own function serves all other calls.
    "linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor",
    # The largest number of rows, in the dtype of `like`, for which it is faster than torch's.
    "linear_rows(Tensor like) -> int",
    # All blocks of a Llama model for one new token of each of B sequences, (B,E) to (B,E).
    # `weights` holds nine per block, then that of the last norm. Writes into the caches
    # (L,slots,K,D).
    "decode_layers(Tensor x, Tensor[] weights, Tensor cos, Tensor sin, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor cache_seqlens, Tensor page_table, int page, float eps) -> Tensor",
    # The backend "chunked", in Python; it also supports process groups.
    f"linear_cross_entropy_chunked({_LINEAR_CROSS_ENTROPY}, str group_name='') "
    f"-> {_LINEAR_CROSS_ENTROPY_RESULTS}",
)


def serves(backend: str, op: str) -> bool:
    """Whether `backend` has an implementation of `op`, on this machine or any other."""
    return backend in UNIVERSAL or backend in TABLE[op].kernels


def ops_of(backend: str) -> tuple[str, ...]:
    """The ops that `backend` has an implementation of, on this machine or any other."""
    return tuple(op for op in OPS if serves(backend, op))
