"""Attention: windows, biases, padding, ALiBi, sinks, packed sequences, rows that see nothing."""

from itertools import product

import pytest
import torch

import llama_fast
from tests.ops.attention_cases import Case, runner
from tests.ops.criterion import DTYPES, check, served_by

OP = "attention"
CAUSAL = {"causal": True}

WINDOWS = [
    Case("window of 1 causal: only the query's own key", options={"window": 1, **CAUSAL}),
    Case("window of 5 causal: Mistral's form", S=40, T=40, options={"window": 5, **CAUSAL}),
    Case("window of 5, both sides", S=40, T=40, options={"window": 5}),
    Case("window pair, left only", S=40, T=40, options={"window": (7, 0)}),
    Case("window pair, right only", S=40, T=40, options={"window": (0, 7)}),
    Case("window pair, left unlimited", S=40, T=40, options={"window": (-1, 3)}),
    Case("window pair, right unlimited", S=40, T=40, options={"window": (3, -1)}),
    Case("window pair unlimited: no window", options={"window": (-1, -1)}),
    Case("window that would look ahead, but causal", options={"window": (4, 9), **CAUSAL}),
    Case("window wider than the keys", options={"window": 1000, **CAUSAL}),
    Case("window with more keys than queries", S=10, T=90, options={"window": 20, **CAUSAL}),
    Case("window with more queries than keys: rows that see nothing", S=60, T=20,
         options={"window": (2, 2)}, grad_lse=True),
    Case("window over many tiles: whole tiles are skipped", B=1, S=200, T=200,
         options={"window": 10, **CAUSAL}),
]  # fmt: skip

BIASES = [
    *(
        Case(f"float bias of shape {''.join(letters)}", H=4, K=2, S=5, T=19,
             tensors={"bias": "".join(letters)},
             # One number for all keys changes nothing: its gradient is zero, of which no error
             # is relative to anything. It has a test of its own.
             frozen=("bias",) if letters[-1] == "1" else ())
        for letters in product("B1", "H1", "S1", "T1")
    ),
    *(
        Case(f"bool bias of shape {letters}", S=5, T=19, tensors={"bias": f"bool:{letters}"})
        for letters in ("BHST", "11ST", "B11T", "1HS1", "BH1T", "1111")
    ),
    Case("float bias without leading dimensions, ST", S=5, T=19, tensors={"bias": "ST"}),
    Case("float bias of one dimension, T", S=5, T=19, tensors={"bias": "T"}),
    Case("float bias of no dimension: shifts every score alike", tensors={"bias": ""},
         frozen=("bias",)),
    Case("float bias of three dimensions, HST", S=5, T=19, tensors={"bias": "HST"}),
    Case("bool bias of two dimensions, ST", S=5, T=19, tensors={"bias": "bool:ST"}),
    Case("float bias over many tiles", B=1, S=140, T=150, tensors={"bias": "1HST"}),
    Case("float bias summed over batch and queries", B=3, S=70, T=80, tensors={"bias": "1H1T"}),
    Case("float bias under a causal mask", S=30, T=40, options=CAUSAL, tensors={"bias": "BHST"}),
    Case("rows of the lowest finite bias: all keys weigh the same", S=20, T=30,
         tensors={"bias": "lowest:B1ST"}, grad_lse=True),
    Case("few queries with rows of the lowest finite bias, several chunks of keys", S=3, T=700,
         tensors={"bias": "lowest:B1ST"}, grad_lse=True),
    Case("rows of the lowest finite bias with a causal mask", S=40, T=40, options=CAUSAL,
         tensors={"bias": "lowest:B1ST"}),
    Case("float bias after the softcap", options={"softcap": 1.0}, tensors={"bias": "BHST"}),
]  # fmt: skip

OTHERS = [
    Case("ALiBi, one slope per head", H=4, S=20, T=30, tensors={"alibi_slopes": "H"}),
    Case("ALiBi, slopes per batch entry", H=4, tensors={"alibi_slopes": "BH"}),
    Case("ALiBi, causal, grouped, many tiles", B=1, H=4, S=100, T=140, options=CAUSAL,
         tensors={"alibi_slopes": "H"}),
    Case("sinks: one more logit per head", H=4, tensors={"sinks": "H"}, grad_lse=True),
    Case("sinks under a causal window: gpt-oss", H=4, S=50, T=50, tensors={"sinks": "H"},
         options={"window": 8, **CAUSAL}, grad_lse=True),
    Case("sinks where rows see nothing: lse is the sink", S=9, T=4, options=CAUSAL,
         tensors={"sinks": "H"}, grad_lse=True),
    Case("key padding", B=3, S=9, T=40, tensors={"key_padding_mask": "bool:BT"}),
    Case("key padding under a causal mask", B=3, S=40, T=40, options=CAUSAL,
         tensors={"key_padding_mask": "bool:BT"}, grad_lse=True),
    Case("key padding at both ends: whole tiles of padding", B=4, S=20, T=600,
         tensors={"key_padding_mask": "ends:BT"}, grad_lse=True),
    Case("key padding at both ends of many tiles, causal", B=4, H=1, K=1, S=300, T=300,
         options=CAUSAL, tensors={"key_padding_mask": "ends:BT"}, grad_lse=True),
    Case("everything at once", H=4, K=2, S=30, T=45, Dv=9, grad_lse=True,
         options={"window": (20, 3), "softcap": 3.0, "scale": 0.2},
         tensors={"bias": "1HST", "alibi_slopes": "BH", "sinks": "H",
                  "key_padding_mask": "bool:BT"}),
]  # fmt: skip

# With at most 8 queries a key head, keys and values are read in place, in chunks of 512.
FEW_QUERIES = [
    Case("one query, several chunks of keys", H=6, K=2, S=1, T=1300, D=64, options=CAUSAL),
    Case("few queries, causal, grouped, odd sizes", H=4, K=2, S=3, T=700, D=40, Dv=72,
         options=CAUSAL, grad_lse=True),
    Case("few queries, window: the first chunks are skipped", H=4, K=2, S=2, T=1200,
         options={"window": 100, **CAUSAL}, grad_lse=True),
    Case("few queries, padding at both ends: chunks without a key", B=4, H=3, K=1, S=2, T=1100,
         tensors={"key_padding_mask": "ends:BT"}, grad_lse=True),
    Case("few queries, everything at once", H=4, K=2, S=4, T=520, Dv=9, grad_lse=True,
         options={"window": (400, 3), "softcap": 3.0, "scale": 0.2},
         tensors={"bias": "1HST", "alibi_slopes": "BH", "sinks": "H",
                  "key_padding_mask": "bool:BT"}),
    Case("few queries, packed: caches of unequal lengths", H=4, K=2, options=CAUSAL, grad_lse=True,
         lengths=((1, 700), (3, 40), (0, 9), (2, 0), (1, 1))),
    Case("nine queries: the first that are packed", H=1, K=1, S=9, T=600, options=CAUSAL),
]  # fmt: skip

PACKED = [
    Case("packed: three sequences, causal", lengths=((5, 5), (17, 17), (2, 2)), options=CAUSAL),
    Case("packed: one sequence", lengths=((9, 9),)),
    Case("packed: queries and keys of unequal lengths", lengths=((1, 30), (4, 9), (7, 7)),
         options=CAUSAL, grad_lse=True),
    Case("packed: empty sequences first, between and last",
         lengths=((0, 0), (6, 6), (0, 0), (0, 0), (3, 3), (0, 0)), options=CAUSAL),
    Case("packed: queries without keys, keys without queries",
         lengths=((4, 0), (0, 5), (3, 3)), grad_lse=True),
    Case("packed: grouped heads, window, ALiBi, sinks, softcap", H=4, K=2, grad_lse=True,
         lengths=((40, 40), (3, 3), (70, 70)), tensors={"alibi_slopes": "H", "sinks": "H"},
         options={"window": 16, "softcap": 4.0, **CAUSAL}),
    Case("packed: ALiBi slopes per sequence", lengths=((5, 8), (9, 9)),
         tensors={"alibi_slopes": "BH"}),
    Case("packed: many short sequences", lengths=tuple((n % 5, n % 5) for n in range(40))),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", WINDOWS + OTHERS + FEW_QUERIES + PACKED, ids=lambda c: c.id)
def test_masks(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.attention, runner(case), dtype)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", BIASES, ids=lambda c: c.id)
def test_biases(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.attention, runner(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((2, 4, 5, 1), (2, 4, 1, 1), (5, 1), ()), ids=str)
def test_bias_that_shifts_all_scores_alike_has_no_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    """Each gradient is a sum of terms that cancel. What may remain is a rounding step of each term
    and the error of adding up n numbers, n eps times their size (Higham, section 4.2)."""
    q, k, v = (torch.randn(2, 4, n, 16, dtype=dtype) for n in (5, 19, 19))
    bias = torch.randn(shape, dtype=dtype, requires_grad=True)
    upstream = torch.randn_like(q)
    out = llama_fast.attention(q, k, v, bias=bias)
    (grad,) = torch.autograd.grad(out, bias, upstream)
    assert grad.dtype == dtype
    terms = bias.detach().double().expand(2, 4, 5, 19).clone().requires_grad_()
    truth = served_by("reference", OP)(q.double(), k.double(), v.double(), bias=terms)
    (term_grads,) = torch.autograd.grad(truth, terms, upstream.double())
    size = term_grads.abs().sum_to_size(shape)
    n = term_grads.numel() / grad.numel()
    adding = n * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert (grad.double().abs() <= (torch.finfo(dtype).eps + adding) * size).all()


def test_rows_that_see_nothing_are_zero(backend: str) -> None:
    """However a row comes to see nothing: out is 0, lse -inf, every gradient 0 and no NaN."""
    q, k, v = (torch.randn(2, 2, 6, 8, requires_grad=True) for _ in range(3))
    nothing = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    minus_infinity = torch.full((6, 6), -torch.inf)
    all_padding = torch.ones(2, 6, dtype=torch.bool)
    for options in (
        {"bias": nothing},
        {"bias": minus_infinity.requires_grad_()},
        {"key_padding_mask": all_padding},
    ):
        out, lse = llama_fast.attention(q, k, v, return_lse=True, **options)
        assert (out == 0).all() and (lse == -torch.inf).all(), options
        grads = torch.autograd.grad(out.sum() + lse.exp().sum(), (q, k, v))
        assert all((g == 0).all() for g in grads), options


def test_one_blind_row_leaves_the_others_alone(backend: str) -> None:
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    bias = torch.ones(4, 4, dtype=torch.bool)
    bias[2] = False
    out, lse = llama_fast.attention(q, k, v, bias=bias, return_lse=True)
    free, free_lse = llama_fast.attention(q, k, v, return_lse=True)
    rows = [0, 1, 3]
    assert torch.equal(out[:, :, rows], free[:, :, rows])
    assert torch.equal(lse[:, :, rows], free_lse[:, :, rows])
    assert (out[:, :, 2] == 0).all() and (lse[:, :, 2] == -torch.inf).all()


def test_float_bias_of_minus_infinity_masks_like_false(backend: str) -> None:
    q, k, v = (torch.randn(2, 2, 9, 8, requires_grad=True) for _ in range(3))
    visible = torch.rand(2, 1, 9, 9) > 0.4
    as_float = torch.zeros(2, 1, 9, 9).masked_fill(~visible, -torch.inf)
    a = llama_fast.attention(q, k, v, bias=visible)
    b = llama_fast.attention(q, k, v, bias=as_float)
    torch.testing.assert_close(a, b)
    for x, y in zip(
        torch.autograd.grad(a.sum(), (q, k, v)),
        torch.autograd.grad(b.sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_packed_equals_one_by_one(backend: str) -> None:
    """Each packed sequence comes out as it does alone."""
    lengths_q, lengths_k = (5, 0, 33, 2), (5, 3, 40, 1)
    q = torch.randn(sum(lengths_q), 4, 16)
    k, v = (torch.randn(sum(lengths_k), 2, 16) for _ in range(2))
    cu_q, cu_k = (torch.tensor([0, *n]).cumsum(0) for n in (lengths_q, lengths_k))
    packed, packed_lse = llama_fast.attention(
        q, k, v, causal=True, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_lse=True
    )
    for i in range(len(lengths_q)):
        rows, columns = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        one = [x.transpose(0, 1).unsqueeze(0) for x in (q[rows], k[columns], v[columns])]
        out, lse = llama_fast.attention(*one, causal=True, return_lse=True)
        torch.testing.assert_close(packed[rows].transpose(0, 1).unsqueeze(0), out)
        torch.testing.assert_close(packed_lse[rows].T.unsqueeze(0), lse)


@pytest.mark.parametrize("index_dtype", (torch.int32, torch.int64), ids=str)
def test_packed_offsets_of_the_keys_default_to_those_of_the_queries(
    index_dtype: torch.dtype, backend: str
) -> None:
    q, k, v = (torch.randn(11, 2, 8) for _ in range(3))
    cu = torch.tensor([0, 4, 11], dtype=index_dtype)
    implied = llama_fast.attention(q, k, v, cu_seqlens_q=cu)
    given = llama_fast.attention(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu)
    assert torch.equal(implied, given)


def test_decoding_with_a_cache_needs_no_mask(backend: str) -> None:
    """Bottom-right causal: the last query of a long run is the single query of a decoding step."""
    q, k, v = (torch.randn(1, 2, 30, 16) for _ in range(3))
    whole = llama_fast.attention(q, k, v, causal=True)
    step = llama_fast.attention(q[:, :, -1:], k, v, causal=True)
    chunk = llama_fast.attention(q[:, :, -7:], k, v, causal=True)
    torch.testing.assert_close(step, whole[:, :, -1:])
    torch.testing.assert_close(chunk, whole[:, :, -7:])


@pytest.mark.parametrize("step", [1, 2], ids=["contiguous", "strided"])
@pytest.mark.parametrize("queries", [1, 20], ids=["decoding", "many queries"])
def test_true_is_any_byte_but_zero(backend: str, step: int, queries: int) -> None:
    """As in torch: masks viewed as bool, or read from a file, hold other bytes than one."""
    q, k, v = torch.randn(1, 2, queries, 16), torch.randn(1, 2, 150, 16), torch.randn(1, 2, 150, 16)
    places, bytes_ = [3, 70, 140, 149], [2, 128, 255, 64]  # some of a whole tile, some at the end
    odd = torch.zeros(150, step, dtype=torch.uint8)
    odd[places, 0] = torch.tensor(bytes_, dtype=torch.uint8)
    hidden = odd[:, 0] != 0
    odd = odd.view(torch.bool)[:, 0]

    def results(**mask: torch.Tensor) -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        out, lse = llama_fast.attention(*leaves, return_lse=True, **mask)
        out.square().sum().backward()
        return [out, lse, *(t.grad for t in leaves if t.grad is not None)]

    for a, b in zip(
        results(key_padding_mask=odd[None]), results(key_padding_mask=hidden[None]), strict=True
    ):
        assert torch.equal(a, b)
    for a, b in zip(results(bias=odd), results(bias=hidden), strict=True):
        assert torch.equal(a, b)
