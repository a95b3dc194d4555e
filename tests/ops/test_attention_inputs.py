"""Attention: strides, empty tensors, infinities and NaN, mixed dtypes, autocast."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import llama_fast

OP = "attention"

# Ways to hold the numbers of a tensor (2,4,9,16) other than contiguously.
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a (B,S,H,D) view": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "a (B,D,H,S) view: the head size is not innermost": lambda t: t.mT.contiguous().mT,
    "a slice of a fused projection": lambda t: torch.cat([t, t + 1, t + 2], dim=-1)[..., :16],
    "every second row": lambda t: t.repeat_interleave(2, dim=2)[:, :, ::2],
    "every second number": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "a storage offset that aligns with nothing": lambda t: torch.cat([torch.zeros(3), t.flatten()])[
        3:
    ].view(t.shape),
    "heads expanded": lambda t: t[:, :1].expand(t.shape),
    "rows expanded": lambda t: t[:, :, :1].expand(t.shape),
    "one number expanded": lambda t: t[:1, :1, :1, :1].expand(t.shape),
}


@pytest.mark.parametrize("which", ("q", "k", "v", "grad"))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides(layout: Callable[[torch.Tensor], torch.Tensor], which: str, backend: str) -> None:
    """The result depends on the numbers, not on how they lie in memory: bit for bit."""
    named = {name: torch.randn(2, 4, 9, 16) for name in ("q", "k", "v", "grad")}
    named[which] = layout(named[which])
    results = []
    for tensors in (
        named,
        {name: t.clone(memory_format=torch.contiguous_format) for name, t in named.items()},
    ):
        q, k, v = (tensors[name].detach().requires_grad_() for name in ("q", "k", "v"))
        out, lse = llama_fast.attention(q, k, v, causal=True, return_lse=True)
        results.append([out, lse, *torch.autograd.grad(out, (q, k, v), tensors["grad"])])
    for strided, contiguous in zip(*results, strict=True):
        # Matrix products of the reference run on other kernels for other strides.
        equal = torch.testing.assert_close if backend == "reference" else assert_equal
        equal(strided, contiguous)


def assert_equal(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ("bias", "key_padding_mask", "alibi_slopes", "sinks"))
def test_strides_of_masks(name: str, backend: str) -> None:
    q, k, v = (torch.randn(2, 4, 9, 16) for _ in range(3))
    wide = {
        "bias": torch.randn(9, 2, 4, 18)[..., ::2].permute(1, 2, 0, 3),
        "key_padding_mask": (torch.rand(9, 4) > 0.7)[:, ::2].T,
        "alibi_slopes": torch.rand(4, 6)[:, ::3].T,
        "sinks": torch.randn(8)[::2],
    }[name]
    strided = llama_fast.attention(q, k, v, **{name: wide})
    assert torch.equal(strided, llama_fast.attention(q, k, v, **{name: wide.contiguous()}))


@pytest.mark.parametrize(
    ("B", "H", "S", "T", "D", "Dv"),
    [
        (0, 2, 5, 5, 8, 8),
        (2, 0, 5, 5, 8, 8),
        (2, 2, 0, 5, 8, 8),
        (2, 2, 5, 0, 8, 8),
        (2, 2, 0, 0, 8, 8),
        (2, 2, 5, 5, 8, 0),
        (2, 2, 5, 5, 0, 8),
    ],
    ids=["batch", "heads", "queries", "keys", "queries and keys", "values", "head size"],
)
def test_empty(B: int, H: int, S: int, T: int, D: int, Dv: int, backend: str) -> None:
    """A dimension of size zero: the shape is right, and nothing seen means zero."""
    q = torch.randn(B, H, S, D, requires_grad=True)
    k = torch.randn(B, H, T, D, requires_grad=True)
    v = torch.randn(B, H, T, Dv, requires_grad=True)
    out, lse = llama_fast.attention(q, k, v, return_lse=True, causal=True)
    assert out.shape == (B, H, S, Dv) and lse.shape == (B, H, S)
    if T == 0:
        assert (out == 0).all() and (lse == -torch.inf).all()
    for tensor, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert grad.shape == tensor.shape and not grad.isnan().any()


def test_empty_packed(backend: str) -> None:
    q, k, v = (torch.randn(0, 2, 8, requires_grad=True) for _ in range(3))
    for cu in (torch.zeros(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)):
        out, lse = llama_fast.attention(q, k, v, cu_seqlens_q=cu, return_lse=True)
        assert out.shape == (0, 2, 8) and lse.shape == (0, 2)
        assert torch.autograd.grad(out.sum(), q)[0].shape == q.shape


@pytest.mark.parametrize("value", (torch.inf, -torch.inf, torch.nan), ids=str)
@pytest.mark.parametrize("which", ("q", "k", "v"))
def test_special_values_travel_as_in_torch(which: str, value: float, backend: str) -> None:
    """An inf or NaN reaches the same outputs and gradients as in torch's attention.

    Its unfused one: the fused CPU kernel of torch 2.13 turns a NaN in a query into zeros.
    """
    tensors = {name: torch.randn(1, 1, 6, 8) for name in ("q", "k", "v")}
    tensors[which][0, 0, 2, 3] = value
    results = []
    for function in (llama_fast.attention, F.scaled_dot_product_attention):
        q, k, v = (t.clone().requires_grad_() for t in tensors.values())
        with sdpa_kernel(SDPBackend.MATH):
            out = function(q, k, v)
        results.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    for name, ours, torchs in zip(("out", "dq", "dk", "dv"), *results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def test_values_no_query_sees_do_not_matter(backend: str) -> None:
    """Padding may hold anything finite."""
    q, k, v = (torch.randn(1, 2, 8, 16) for _ in range(3))
    padding = torch.zeros(1, 8, dtype=torch.bool)
    padding[:, 5:] = True
    clean = llama_fast.attention(q, k, v, key_padding_mask=padding)
    k[:, :, 5:], v[:, :, 5:] = 1e30, -1e30
    assert torch.equal(llama_fast.attention(q, k, v, key_padding_mask=padding), clean)


def test_offsets_past_two_to_the_31(backend: str) -> None:
    """Keys more than 2^31 elements apart: 32-bit offsets would wrap. Untouched memory is free."""
    q, near = torch.randn(1, 1, 4, 16).bfloat16(), torch.randn(1, 1, 3, 16).bfloat16()
    memory = torch.empty(2**31 + 16, dtype=torch.bfloat16)
    k = memory.as_strided(near.shape, (1, 1, 2**30, 1)).copy_(near)
    torch.testing.assert_close(llama_fast.attention(q, k, k), llama_fast.attention(q, near, near))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64), ids=str)
def test_float_options_of_any_dtype(dtype: torch.dtype, backend: str) -> None:
    """Bias, slopes and sinks may stay float32 beside 16-bit heads; gradients keep their dtypes."""
    q, k, v = (torch.randn(1, 2, 6, 8, dtype=dtype) for _ in range(3))
    bias = torch.randn(6, 6, requires_grad=True)
    slopes, sinks = (torch.rand(2, requires_grad=True) for _ in range(2))
    options = {"bias": bias, "alibi_slopes": slopes, "sinks": sinks}
    out = llama_fast.attention(q, k, v, **options)
    assert out.dtype == dtype
    for grad in torch.autograd.grad(out.float().sum(), tuple(options.values())):
        assert grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(dtype: torch.dtype, backend: str) -> None:
    """Under autocast float32 heads run in the lower precision, as torch's attention does."""
    q, k, v = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", dtype=dtype):
        out = llama_fast.attention(q, k, v)
        assert out.dtype == F.scaled_dot_product_attention(q, k, v).dtype == dtype
        mixed = llama_fast.attention(q.to(dtype), k, v.to(dtype))
    assert torch.equal(out, llama_fast.attention(q.to(dtype), k.to(dtype), v.to(dtype)))
    assert torch.equal(out, mixed)
    assert torch.autograd.grad(out.float().sum(), q)[0].dtype == torch.float32
