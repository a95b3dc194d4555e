"""The same bits at every run and with any number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch

import llama_fast

Tensors = tuple[torch.Tensor, ...]


def with_gradients(function: Callable[..., Tensors], *leaves: torch.Tensor) -> Tensors:
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    outputs = function(*leaves)
    upstream = [torch.linspace(-1, 1, o.numel()).view(o.shape).to(o.dtype) for o in outputs]
    return (*outputs, *torch.autograd.grad(outputs, leaves, upstream))


def attention(**options: object) -> Tensors:
    """Several heads, and several tiles of rows and columns: work for every thread."""
    q, k, v = torch.randn(2, 6, 150, 32), torch.randn(2, 2, 200, 32), torch.randn(2, 2, 200, 16)
    return with_gradients(
        lambda *x: llama_fast.attention(*x[:3], return_lse=True, causal=True, **options), q, k, v
    )


def attention_with_bias() -> Tensors:
    """Gradients of a broadcast bias, of slopes and of sinks: sums over what threads share out."""
    q, k, v = torch.randn(3, 4, 90, 16), torch.randn(3, 4, 90, 16), torch.randn(3, 4, 90, 16)
    bias, slopes, sinks = torch.randn(1, 1, 90, 90), torch.rand(4), torch.randn(4)
    return with_gradients(
        lambda q, k, v, bias, slopes, sinks: (
            llama_fast.attention(q, k, v, bias=bias, alibi_slopes=slopes, sinks=sinks),
        ),
        q, k, v, bias, slopes, sinks,
    )  # fmt: skip


def packed_attention() -> Tensors:
    lengths = torch.tensor([0, 5, 0, 120, 33, 1, 200])
    n = int(lengths.sum())
    q, k, v = torch.randn(n, 4, 16), torch.randn(n, 2, 16), torch.randn(n, 2, 16)
    cu = lengths.cumsum(0)
    return with_gradients(
        lambda *x: (llama_fast.attention(*x, cu_seqlens_q=cu, causal=True),), q, k, v
    )


def one_head() -> Tensors:
    """Decoding: one head and one query for many threads to share."""
    q, k, v = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 3000, 64), torch.randn(1, 1, 3000, 64)
    return with_gradients(lambda *x: (llama_fast.attention(*x),), q, k, v)


def cross_entropy(shape: tuple[int, ...], **options: object) -> Tensors:
    target = torch.randint(0, shape[1], shape[:1] + shape[2:])
    target.view(-1)[1::5] = -100
    return with_gradients(
        lambda x: (llama_fast.cross_entropy(x * 1, target, **options),), 3 * torch.randn(shape)
    )


def rms_norm(*shape: int) -> Tensors:
    """Gradients of the weight: sums over the rows that threads share out."""
    x, weight, residual = torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape)
    return with_gradients(
        lambda x, w, r: llama_fast.rms_norm(x, w, residual=r), x, weight, residual
    )


def rope(**options: bool) -> Tensors:
    table = torch.rand(300, 16)
    return with_gradients(
        lambda q, k: llama_fast.rope(q, k, table, table, **options),
        torch.randn(2, 6, 300, 32), torch.randn(2, 2, 300, 32),
    )  # fmt: skip


def swiglu() -> Tensors:
    gate, up = torch.randn(2, 333, 555)
    return with_gradients(lambda *x: (llama_fast.swiglu(*x),), gate, up)


def linear_cross_entropy(
    N: int, E: int, V: int, dtype: torch.dtype = torch.float32, **options: object
) -> Tensors:
    target = torch.randint(0, V, (N,))
    target[1::5] = -100
    x, w, b = torch.randn(N, E).to(dtype), torch.randn(V, E).to(dtype), torch.randn(V).to(dtype)
    return with_gradients(
        lambda x, w, b: (
            llama_fast.linear_cross_entropy(x, w, target, linear_bias=b, **options),
        ),
        x, w, b,
    )  # fmt: skip


WORK: dict[str, Callable[[], Tensors]] = {
    "attention": attention,
    "attention with a window": lambda: attention(window=40),
    "attention with dropout": lambda: attention(dropout_p=0.3),
    "attention with a bias": attention_with_bias,
    "packed attention": packed_attention,
    "one head": one_head,
    "cross_entropy of many rows": lambda: cross_entropy((999, 70), z_loss=0.1),
    "cross_entropy of long rows": lambda: cross_entropy((5, 50001), label_smoothing=0.1),
    "cross_entropy of one row": lambda: cross_entropy((1, 128256)),
    "cross_entropy in place": lambda: cross_entropy((300, 1000), inplace=True),
    "linear_cross_entropy": lambda: linear_cross_entropy(333, 70, 1999, label_smoothing=0.1),
    "linear_cross_entropy in chunks": lambda: linear_cross_entropy(900, 20, 30000),
    "linear_cross_entropy that recomputes": lambda: linear_cross_entropy(
        900, 30, 30000, torch.bfloat16
    ),
    "linear_cross_entropy of each token": lambda: linear_cross_entropy(
        150, 70, 999, torch.float16, reduction="none"
    ),
    "cross_entropy with trailing dimensions": lambda: cross_entropy((4, 50, 300)),
    "rms_norm": lambda: rms_norm(3001, 70),
    "rms_norm of short rows": lambda: rms_norm(100000, 8),
    "rms_norm of long rows": lambda: rms_norm(3, 70001),
    "rope": rope,
    "interleaved rope": lambda: rope(interleaved=True),
    "swiglu": swiglu,
}


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_any_number_of_threads(work: Callable[[], Tensors]) -> None:
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        results.append(work())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
