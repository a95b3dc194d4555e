"""flash-attn's functions: signatures, numbers, gradients, layouts; see flash_attn_formula.py."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import llama_fast
from llama_fast.integrations.flash_attn import functions, varlen
from tests.integrations.flash_attn_formula import attend, draw, exactly, offsets
from tests.ops import criterion

DENSE = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
}
NONE = inspect.Parameter.empty
OFFSETS = dict.fromkeys(["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"], NONE)
# Of flash-attn 2.7 and 2.8, in order.
SIGNATURES: dict[str, dict[str, Any]] = {
    "flash_attn_func": {"q": NONE, "k": NONE, "v": NONE, **DENSE},
    "flash_attn_qkvpacked_func": {"qkv": NONE, **DENSE},
    "flash_attn_kvpacked_func": {"q": NONE, "kv": NONE, **DENSE},
    "flash_attn_varlen_func": {
        "q": NONE, "k": NONE, "v": NONE, **OFFSETS, **DENSE, "block_table": None,
    },
    "flash_attn_varlen_qkvpacked_func": {
        "qkv": NONE, "cu_seqlens": NONE, "max_seqlen": NONE, **DENSE,
    },
    "flash_attn_varlen_kvpacked_func": {"q": NONE, "kv": NONE, **OFFSETS, **DENSE},
    "flash_attn_with_kvcache": {
        "q": NONE,
        "k_cache": NONE,
        "v_cache": NONE,
        "k": None,
        "v": None,
        "rotary_cos": None,
        "rotary_sin": None,
        "cache_seqlens": None,
        "cache_batch_idx": None,
        "cache_leftpad": None,
        "block_table": None,
        "softmax_scale": None,
        "causal": False,
        "window_size": (-1, -1),
        "softcap": 0.0,
        "rotary_interleaved": True,
        "alibi_slopes": None,
        "num_splits": 0,
        "return_softmax_lse": False,
    },
}  # fmt: skip

# Causal or not, and the window.
MASKS = [
    (False, (-1, -1)),
    (True, (-1, -1)),
    (False, (2, 0)),
    (False, (-1, 1)),
    (False, (1, 2)),
    (True, (3, -1)),
    (True, (2, 5)),
]
# H, K, scale, softcap, dimensions of the slopes
EXTRAS = [
    (2, 2, None, 0.0, 0),
    (4, 2, 0.3, 0.0, 1),
    (4, 1, None, 1.5, 2),
]


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def slopes_of(dims: int, batch: int, heads: int) -> torch.Tensor | None:
    if dims == 0:
        return None
    return (draw(heads) if dims == 1 else draw(batch, heads)).abs().float()


def slopes_at(slopes: torch.Tensor | None, b: int) -> torch.Tensor | None:
    return slopes if slopes is None or slopes.dim() == 1 else slopes[b]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_flash_attn(name: str) -> None:
    parameters = inspect.signature(getattr(llama_fast, name)).parameters.values()
    assert [(p.name, p.default) for p in parameters] == list(SIGNATURES[name].items())
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert name in llama_fast.__all__


# --- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("heads, kv_heads, scale, softcap, slope_dims", EXTRAS)
@pytest.mark.parametrize("causal, window", MASKS)
@pytest.mark.parametrize("S, T", [(5, 5), (3, 8), (7, 4)])
def test_dense(S, T, causal, window, heads, kv_heads, scale, softcap, slope_dims):
    q, k, v = draw(2, S, heads, 8), draw(2, T, kv_heads, 8), draw(2, T, kv_heads, 6)
    slopes = slopes_of(slope_dims, 2, heads)
    ours, theirs = leaves(q, k, v), leaves(q, k, v)
    out, lse, dmask = llama_fast.flash_attn_func(
        *ours, 0.0, scale, causal, window, softcap, slopes, True, True
    )
    each = [
        attend(*(t[b] for t in theirs), scale, causal, window, softcap, slopes_at(slopes, b))
        for b in range(2)
    ]
    true_out, true_lse = (torch.stack(parts) for parts in zip(*each, strict=True))
    exactly(out, true_out)
    exactly(lse, true_lse)
    assert dmask.shape == (0,)
    grad = draw(*out.shape, seed=1)
    grads = torch.autograd.grad(out, ours, grad)
    for made, true in zip(grads, torch.autograd.grad(true_out, theirs, grad), strict=True):
        exactly(made, true)
    plain = llama_fast.flash_attn_func(
        q, k, v, softmax_scale=scale, causal=causal, window_size=list(window), softcap=softcap,
        alibi_slopes=slopes,
    )  # fmt: skip
    assert torch.equal(plain, out)


# Lengths of queries and keys; none of either, and of both.
LENGTHS = [(3, 5), (0, 4), (6, 2), (2, 0), (0, 0), (1, 7)]
Q_LENGTHS, K_LENGTHS = zip(*LENGTHS, strict=True)


def attend_packed(q, k, v, scale, causal, window, softcap, slopes):
    """attend() of the sequences of LENGTHS, packed: out (N,H,Dv), lse (H,N)."""
    each = [
        attend(*parts, scale, causal, window, softcap, slopes_at(slopes, b))
        for b, parts in enumerate(
            zip(q.split(Q_LENGTHS), k.split(K_LENGTHS), v.split(K_LENGTHS), strict=True)
        )
    ]
    return torch.cat([out for out, _ in each]), torch.cat([lse for _, lse in each], 1)


@pytest.mark.parametrize("heads, kv_heads, scale, softcap, slope_dims", EXTRAS)
@pytest.mark.parametrize("causal, window", MASKS)
@pytest.mark.parametrize("paged", [False, True])
def test_varlen(paged, causal, window, heads, kv_heads, scale, softcap, slope_dims):
    N, M = sum(Q_LENGTHS), sum(K_LENGTHS)
    q, k, v = draw(N, heads, 8), draw(M, kv_heads, 8), draw(M, kv_heads, 6)
    slopes = slopes_of(slope_dims, len(LENGTHS), heads)
    cu_q, cu_k = offsets(Q_LENGTHS), offsets(K_LENGTHS)
    ours, theirs = leaves(q, k, v), leaves(q, k, v)
    keys, values, table = *ours[1:], None
    if paged:
        keys, values, table = to_pages(keys, values)
    out, lse, dmask = llama_fast.flash_attn_varlen_func(
        ours[0], keys, values, cu_q, cu_k, 6, 7, 0.0, scale, causal, window, softcap, slopes,
        False, True, table,
    )  # fmt: skip
    true_out, true_lse = attend_packed(*theirs, scale, causal, window, softcap, slopes)
    exactly(out, true_out)
    exactly(lse, true_lse)
    assert dmask.shape == (0,)
    grad = draw(*out.shape, seed=1)
    grads = torch.autograd.grad(out, ours, grad)
    for made, true in zip(grads, torch.autograd.grad(true_out, theirs, grad), strict=True):
        exactly(made, true)


def to_pages(k: torch.Tensor, v: torch.Tensor, page: int = 3):
    """The keys and values of K_LENGTHS in pages in a shuffled order, and the table of them."""
    pages = [-(-n // page) for n in K_LENGTHS]
    order = torch.randperm(sum(pages) + 2, generator=torch.Generator().manual_seed(0)).tolist()
    table = torch.full((len(pages), max(pages)), -7)  # what is never looked at
    k_pages, v_pages = ([t.new_full((page, *t.shape[1:]), torch.nan)] * len(order) for t in (k, v))
    for b, (keys, values) in enumerate(zip(k.split(K_LENGTHS), v.split(K_LENGTHS), strict=True)):
        for i in range(pages[b]):
            table[b, i] = place = order.pop()
            for held, to in ((keys, k_pages), (values, v_pages)):
                rows = held[i * page : (i + 1) * page]
                to[place] = F.pad(rows, (0, 0, 0, 0, 0, page - rows.shape[0]))
    return torch.stack(k_pages), torch.stack(v_pages), table


@pytest.mark.parametrize(
    "queries, causal, window",
    [(1, False, (-1, -1)), (1, False, (2, 1)), (1, True, (-1, -1)), (2, True, (3, -1))],
)
def test_pages_are_read_in_place_where_they_can(queries, causal, window, monkeypatch):
    seen = []
    decode = varlen.attention_decode
    monkeypatch.setattr(
        varlen, "attention_decode", lambda *a, **o: seen.append(a[1].data_ptr()) or decode(*a, **o)
    )
    B, M = len(LENGTHS), sum(K_LENGTHS)
    q, k, v = draw(B * queries, 4, 8), draw(M, 2, 8), draw(M, 2, 6)
    k_pages, v_pages, table = to_pages(k, v)
    call = partial(
        llama_fast.flash_attn_varlen_func, q, k_pages, v_pages, offsets((queries,) * B),
        offsets(K_LENGTHS), queries, 7, causal=causal, window_size=window,
        alibi_slopes=draw(B, 4).abs(), block_table=table,
    )  # fmt: skip
    out, lse, _ = call(return_attn_probs=True)
    assert seen == [k_pages.data_ptr()]
    each = [
        attend(*parts, None, causal, window, 0.0, draw(B, 4).abs()[b])
        for b, parts in enumerate(
            zip(q.split(queries), k.split(K_LENGTHS), v.split(K_LENGTHS), strict=True)
        )
    ]
    exactly(out, torch.cat([o for o, _ in each]))
    exactly(lse, torch.cat([part for _, part in each], 1))
    assert torch.equal(call(), out)


def test_rows_behind_the_last_sequence_give_zeros():
    q, k = draw(9, 2, 4), draw(8, 2, 4)
    cu = torch.tensor([0, 2, 7], dtype=torch.int32)
    out, lse, _ = llama_fast.flash_attn_varlen_func(
        q, k, k, cu, cu, 5, torch.tensor(5), return_attn_probs=True
    )
    exactly(out[:7], llama_fast.flash_attn_varlen_func(q[:7], k[:7], k[:7], cu, cu, 5, 5))
    assert (out[7:] == 0).all() and (lse[:, 7:] == -torch.inf).all()


def test_packed_functions_are_the_others_on_views():
    options = {"causal": True, "window_size": (3, 0), "softcap": 2.0, "return_attn_probs": True}
    qkv, q, kv = draw(2, 5, 3, 4, 8), draw(2, 5, 4, 8), draw(2, 6, 2, 2, 8)
    cu, cu_k = offsets((3, 0, 2)), offsets((1, 2, 3))
    pairs = [
        (
            llama_fast.flash_attn_qkvpacked_func(qkv, **options),
            llama_fast.flash_attn_func(*qkv.unbind(2), **options),
        ),
        (
            llama_fast.flash_attn_kvpacked_func(q, kv, **options),
            llama_fast.flash_attn_func(q, *kv.unbind(2), **options),
        ),
        (
            llama_fast.flash_attn_varlen_qkvpacked_func(qkv[0], cu, 3, **options),
            llama_fast.flash_attn_varlen_func(*qkv[0].unbind(1), cu, cu, 3, 3, **options),
        ),
        (
            llama_fast.flash_attn_varlen_kvpacked_func(q[0], kv[0], cu, cu_k, 3, 3, **options),
            llama_fast.flash_attn_varlen_func(
                q[0], *kv[0].unbind(1), cu, cu_k, 3, 3, **options
            ),
        ),
    ]  # fmt: skip
    for made, expected in pairs:
        for a, b in zip(made, expected, strict=True):
            assert torch.equal(a, b)
    leaf = leaves(qkv)[0]
    llama_fast.flash_attn_qkvpacked_func(leaf, causal=True).sum().backward()
    parts = leaves(*qkv.unbind(2))
    llama_fast.flash_attn_func(*parts, causal=True).sum().backward()
    assert torch.equal(leaf.grad, torch.stack([p.grad for p in parts], 2))


@pytest.mark.parametrize("dtype", criterion.DTYPES, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_errors_are_no_larger_than_stock(packed: bool, dtype: torch.dtype) -> None:
    cu = offsets((40, 0, 24))
    options = {"causal": True, "window": (30, 0), "softcap": 3.0}

    def shim(q, k, v, *, window, return_lse, cu_seqlens_q=None, **rest):
        if packed:
            more = (cu_seqlens_q, cu_seqlens_q, 40, 40)
            out, lse, _ = llama_fast.flash_attn_varlen_func(
                q, k, v, *more, window_size=window, return_attn_probs=True, **rest
            )
            return out, lse.transpose(0, 1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out, lse, _ = llama_fast.flash_attn_func(
            q, k, v, window_size=window, return_attn_probs=True, **rest
        )
        return out.transpose(1, 2), lse

    def run(function, inputs_dtype, dtype, seed):
        shapes = [(64, 4, 32), (64, 2, 32), (64, 2, 32), (64, 4, 32)]
        tensors = [draw(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
        if not packed:
            tensors = [t.transpose(0, 1).unsqueeze(0) for t in tensors]
        *inputs, grad = (t.to(inputs_dtype).to(dtype) for t in tensors)
        q, k, v = leaves(*inputs)
        offsets_of = {"cu_seqlens_q": cu} if packed else {}
        out, lse = function(q, k, v, return_lse=True, **options, **offsets_of)
        grads = torch.autograd.grad(out, (q, k, v), grad)
        return {"out": out.detach(), "lse": lse.detach(), "dq": grads[0], "dk": grads[1],
                "dv": grads[2]}  # fmt: skip

    criterion.check("attention", shim, run, dtype)


# --- dropout ---------------------------------------------------------------------------------


def test_dropout_pattern_explains_the_result():
    q, k, v = draw(2, 5, 4, 8), draw(2, 7, 2, 8), draw(2, 7, 2, 6)
    torch.manual_seed(3)
    out, _, dmask = llama_fast.flash_attn_func(q, k, v, 0.4, causal=True, return_attn_probs=True)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(llama_fast.flash_attn_func(q, k, v, 0.4, causal=True), out)
    assert torch.equal(torch.rand(1), after)  # as many draws with the pattern as without
    assert dmask.shape == (2, 4, 5, 7)
    exactly(dmask.abs().sum(-1), torch.ones(2, 4, 5, dtype=torch.float64))
    assert 0.2 < (dmask < 0).sum() / (dmask != 0).sum() < 0.6
    kept = dmask.clamp_min(0) / 0.6
    exactly(out, torch.einsum("bhst,bthd->bshd", kept, v.repeat_interleave(2, 2)))


def test_dropout_pattern_of_packed_sequences():
    N, M = sum(Q_LENGTHS), sum(K_LENGTHS)
    q, k, v = draw(N, 4, 8), draw(M, 2, 8), draw(M, 2, 6)
    out, _, dmask = llama_fast.flash_attn_varlen_func(
        q, k, v, offsets(Q_LENGTHS), offsets(K_LENGTHS), 8, 9, 0.4, return_attn_probs=True
    )
    assert dmask.shape == (len(LENGTHS), 4, 8, 9)
    weights = dmask.clamp_min(0) / 0.6
    for b, (rows, values) in enumerate(zip(out.split(Q_LENGTHS), v.split(K_LENGTHS), strict=True)):
        S, T = LENGTHS[b]
        used = weights[b, :, :S, :T]
        exactly(rows, torch.einsum("hst,thd->shd", used, values.repeat_interleave(2, 1)))
        assert (dmask[b, :, S:] == 0).all() and (dmask[b, :, :, T:] == 0).all()


# --- how it runs -----------------------------------------------------------------------------


def test_views_are_read_where_they_lie(monkeypatch):
    seen = []
    attention = functions.attention
    monkeypatch.setattr(
        functions,
        "attention",
        lambda *a, **o: seen.extend((t.data_ptr(), t.stride()) for t in a) or attention(*a, **o),
    )
    qkv = draw(2, 5, 3, 4, 8)
    out = llama_fast.flash_attn_qkvpacked_func(qkv)
    views = [t.transpose(1, 2) for t in qkv.unbind(2)]
    assert seen == [(t.data_ptr(), t.stride()) for t in views]
    assert out.is_contiguous()


@pytest.mark.compile
def test_compile():
    cu, cu_k = offsets(Q_LENGTHS), offsets(K_LENGTHS)

    def both(q, k, v):
        dense = llama_fast.flash_attn_func(q[None], k[None], v[None], causal=True, softcap=2.0)
        packed = llama_fast.flash_attn_varlen_func(q, k, v, cu, cu_k, 6, 7, window_size=(2, 1))
        return dense.sum() + packed.square().sum()

    N, M = sum(Q_LENGTHS), sum(K_LENGTHS)
    inputs = draw(N, 4, 8), draw(M, 2, 8), draw(M, 2, 8)
    ours, theirs = leaves(*inputs), leaves(*inputs)
    torch.compile(both, fullgraph=True, backend="aot_eager")(*ours).backward()
    both(*theirs).backward()
    for a, b in zip(ours, theirs, strict=True):
        exactly(a.grad, b.grad)
