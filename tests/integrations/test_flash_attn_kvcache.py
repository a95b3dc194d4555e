"""flash_attn_with_kvcache against its documentation; see flash_attn_formula.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.integrations.flash_attn import kvcache
from tests.integrations.flash_attn_formula import Sequence, draw, exactly, with_cache

B, H, K, D, DV, L = 3, 4, 2, 8, 6, 12
HELD = [5, 0, 7]
ROWS = [4, 0, 2]  # of a cache with more rows than sequences
PAD = [2, 0, 7]
PAGE = 4
TABLE = [[6, 2, 9], [0, 3, 8], [7, 1, 5]]
MASKS = [
    (False, (-1, -1)),
    (True, (-1, -1)),
    (False, (3, 1)),
    (False, (-1, 1)),
    (True, (2, -1)),
]
# (queries, new keys), 0 for none
COUNTS = [(1, 0), (1, 1), (3, 0), (3, 3), (3, 1), (2, 4)]


class Place:
    """A cache, where the sequences are in it, and the arguments that say so."""

    def __init__(self, kind: str) -> None:
        shape = (10, PAGE) if kind.startswith("paged") else (5, L)
        self.k, self.v = draw(*shape, K, D), draw(*shape, K, DV)
        rows = [list(range(b * L, (b + 1) * L)) for b in range(B)]
        pads = [0] * B
        self.arguments: dict[str, Any] = {}
        if kind.startswith("paged"):
            rows = [[page * PAGE + i for page in pages for i in range(PAGE)] for pages in TABLE]
            self.arguments["block_table"] = torch.tensor(TABLE, dtype=torch.int32)
        if kind.startswith("indexed"):
            rows = [list(range(b * L, (b + 1) * L)) for b in ROWS]
            self.arguments["cache_batch_idx"] = torch.tensor(ROWS, dtype=torch.int32)
        if kind.endswith("padded"):
            pads = PAD
            self.arguments["cache_leftpad"] = torch.tensor(PAD, dtype=torch.int32)
        self.sequences = [Sequence(*each) for each in zip(rows, HELD, pads, strict=True)]


def compare(place: Place, S: int, N: int, seed: int = 0, **options: Any) -> None:
    """Result, lse and the cache afterwards."""
    q = draw(B, S, H, D, seed=seed)
    if N:
        options |= {"k": draw(B, N, K, D, seed=seed + 1), "v": draw(B, N, K, DV, seed=seed + 1)}
    k_cache, v_cache = place.k.clone(), place.v.clone()
    true_out, true_lse = with_cache(
        q, k_cache.flatten(0, 1), v_cache.flatten(0, 1), place.sequences, **options
    )
    more = place.arguments | {"cache_seqlens": torch.tensor(HELD, dtype=torch.int32)} | options
    before = place.k.clone(), place.v.clone()
    out, lse = llama_fast.flash_attn_with_kvcache(
        q, place.k, place.v, return_softmax_lse=True, **more
    )
    exactly(out, true_out)
    exactly(lse, true_lse)
    exactly(place.k, k_cache)
    exactly(place.v, v_cache)
    place.k.copy_(before[0])
    place.v.copy_(before[1])
    assert torch.equal(llama_fast.flash_attn_with_kvcache(q, place.k, place.v, **more), out)


@pytest.mark.parametrize("kind", ["plain", "indexed", "paged", "padded", "indexed padded"])
@pytest.mark.parametrize("S, N", COUNTS)
@pytest.mark.parametrize("causal, window", MASKS)
def test_kvcache(causal, window, S, N, kind):
    place = Place(kind)
    for slopes in (None, draw(H).abs().float(), draw(B, H).abs().float()):
        compare(place, S, N, causal=causal, window_size=window, alibi_slopes=slopes)
    compare(place, S, N, causal=causal, window_size=window, softcap=1.5, softmax_scale=0.7)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rotary_dim", [D, D // 2])
@pytest.mark.parametrize("kind", ["plain", "paged", "indexed padded"])
@pytest.mark.parametrize("S, N", [(1, 1), (3, 3), (3, 2), (2, 4)])
def test_rotary(S, N, kind, rotary_dim, interleaved):
    angles = torch.outer(torch.arange(L + 1.0), 0.4 ** torch.arange(rotary_dim // 2)).double()
    for causal, window in ((False, (-1, -1)), (True, (-1, -1)), (False, (3, 1))):
        compare(
            Place(kind), S, N, causal=causal, window_size=window, rotary_cos=angles.cos(),
            rotary_sin=angles.sin(), rotary_interleaved=interleaved,
        )  # fmt: skip


def test_lengths_as_an_int_and_left_out():
    q, k_cache, v_cache = draw(B, 2, H, D), draw(B, L, K, D), draw(B, L, K, DV)
    call = partial(llama_fast.flash_attn_with_kvcache, q, k_cache, v_cache, causal=True)
    for seqlens, used in ((7, 7), (torch.tensor([7] * B), 7), (None, L), (0, 0)):
        expected = llama_fast.flash_attn_func(q, k_cache[:, :used], v_cache[:, :used], causal=True)
        exactly(call(cache_seqlens=seqlens), expected)


def test_the_caller_is_left_without_a_gradient_and_with_its_lengths():
    place = Place("plain")
    held = torch.tensor(HELD, dtype=torch.int32)
    q, k, v = (draw(B, 2, n, d).requires_grad_() for n, d in ((H, D), (K, D), (K, DV)))
    out = llama_fast.flash_attn_with_kvcache(q, place.k, place.v, k, v, cache_seqlens=held)
    assert not out.requires_grad and not place.k.requires_grad
    assert held.tolist() == HELD


@pytest.mark.parametrize("kind", ["plain", "indexed", "paged", "padded"])
@pytest.mark.parametrize("causal", [True, False])
def test_caches_are_read_where_they_lie(kind, causal, monkeypatch):
    seen = []
    for name in ("attention", "attention_decode"):
        call = getattr(kvcache, name)
        monkeypatch.setattr(
            kvcache, name, lambda *a, call=call, **o: seen.append(a[1].data_ptr()) or call(*a, **o)
        )
    place = Place(kind)
    llama_fast.flash_attn_with_kvcache(
        draw(B, 3, H, D), place.k, place.v, causal=causal, cache_seqlens=torch.tensor(HELD),
        **place.arguments,
    )  # fmt: skip
    assert seen == [place.k.data_ptr()]


@pytest.mark.parametrize("S, heads", [(0, H), (2, 0)])
@pytest.mark.parametrize("window", [(-1, -1), (2, 1)])
def test_no_queries_and_no_heads(S, heads, window):
    q, cache = draw(B, S, heads, D), draw(B, L, K if heads else 0, D)
    out, lse = llama_fast.flash_attn_with_kvcache(
        q, cache, cache, cache_seqlens=3, window_size=window, return_softmax_lse=True
    )
    assert out.shape == q.shape and lse.shape == (B, heads, S)


def test_autocast_serves_the_dtype_of_the_cache():
    place = Place("plain")
    q, k, v = draw(B, 2, H, D), draw(B, 1, K, D), draw(B, 1, K, DV)
    call = partial(llama_fast.flash_attn_with_kvcache, cache_seqlens=torch.tensor(HELD))
    caches = [place.k.bfloat16(), place.v.bfloat16()]
    expected = call(q.bfloat16(), *(c.clone() for c in caches), k.bfloat16(), v.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(q.float(), *caches, k.float(), v.float()), expected)


@pytest.mark.compile
@pytest.mark.parametrize("kind", ["plain", "paged", "padded"])
def test_compile(kind):
    angles = torch.outer(torch.arange(L + 0.0), 0.4 ** torch.arange(D // 2)).double()

    def step(q, k_cache, v_cache, k, v, held, arguments):
        return llama_fast.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, angles.cos(), angles.sin(), cache_seqlens=held, causal=True,
            **arguments,
        )  # fmt: skip

    ours, theirs = Place(kind), Place(kind)
    q, k, v = draw(B, 2, H, D), draw(B, 2, K, D), draw(B, 2, K, DV)
    held = torch.tensor(HELD, dtype=torch.int32)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    exactly(
        compiled(q, ours.k, ours.v, k, v, held, ours.arguments),
        step(q, theirs.k, theirs.v, k, v, held, theirs.arguments),
    )
    exactly(ours.k, theirs.k)
    exactly(ours.v, theirs.v)


TABLES = {"rotary_cos": draw(L, 2), "rotary_sin": draw(L, 2)}


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"q": draw(B, H, D)}, ValueError, r"q: expected shape \(B,S,H,D\)"),
        ({"k_cache": draw(B, L, K)}, ValueError, r"k_cache: expected shape \(B,L,K,D\)"),
        ({"k_cache": draw(2, L, K, D), "v_cache": draw(2, L, K, D)}, ValueError,
         "k_cache: expected at least the batch size of q, 3"),
        ({"k_cache": draw(B, L, K, D).float()}, TypeError, "k_cache: expected the dtype of q"),
        ({"v_cache": draw(B, 2, K, D)}, ValueError, "v_cache: expected the shape of k_cache"),
        ({"v": None}, ValueError, "v: expected a tensor beside k"),
        ({"k": None}, ValueError, "k: expected a tensor beside v"),
        ({"k": draw(B, K, D)}, ValueError, r"k: expected shape \(B,N,K,D\)"),
        ({"k": draw(B, 2, H, D)}, ValueError, r"k: expected shape \(B,N,K,D\)"),
        ({"v": draw(B, 1, K, D)}, ValueError, r"v: expected shape \(B,N,K,Dv\)"),
        ({"cache_seqlens": None}, ValueError, "cache_seqlens: expected lengths beside k"),
        ({"cache_seqlens": 1.5}, TypeError, "cache_seqlens: expected an int or a tensor"),
        ({"cache_seqlens": torch.ones(B)}, TypeError, "cache_seqlens: expected int32 or int64"),
        ({"cache_seqlens": torch.tensor([1])}, ValueError, r"cache_seqlens: expected shape \(B,\)"),
        ({"cache_seqlens": torch.tensor([1, 11, 2])}, ValueError,
         r"cache_seqlens: expected lengths in \[0, 10\] beside 2 new keys, got 11 at position 1"),
        ({"cache_seqlens": -1}, ValueError, "cache_seqlens: expected lengths in"),
        ({"cache_batch_idx": torch.tensor([0, 3, 1])}, ValueError,
         r"cache_batch_idx: expected rows in \[0, 3\), got 3 at position 1"),
        ({"cache_batch_idx": torch.tensor([0, 1, 2]), "block_table": torch.tensor([[0, 1]] * B)},
         ValueError, "cache_batch_idx: expected None with a block_table"),
        ({"cache_leftpad": torch.tensor([0, 0, 6])}, ValueError,
         r"cache_leftpad: expected numbers in \[0, 5\] \(cache_seqlens\), got 6 at position 2"),
        ({"block_table": torch.tensor([[0], [1], [9]])}, ValueError,
         r"block_table: expected pages in \[0, 3\), got 9 at position \(2, 0\)"),
        ({"block_table": torch.tensor([0])}, ValueError, r"block_table: expected shape \(B,pages"),
        ({"rotary_cos": draw(L, 2)}, ValueError, "rotary_sin: expected a tensor beside rotary_cos"),
        ({**TABLES, "rotary_sin": draw(L, 3)}, ValueError, "rotary_sin: expected the shape of rot"),
        ({**TABLES, "k": None, "v": None}, ValueError, "rotary_cos: expected None without new"),
        ({"rotary_cos": draw(L, 5), "rotary_sin": draw(L, 5)}, ValueError,
         "rotary_cos: expected at most half the head size, 4"),
        ({"rotary_cos": draw(9, 2), "rotary_sin": draw(9, 2)}, ValueError,
         "rotary_cos: expected at least as many rows as the cache has, 12, got 9"),
        ({"alibi_slopes": draw(3)}, ValueError, r"alibi_slopes: expected shape \(H,\)"),
        ({"window_size": None}, TypeError, "window_size: expected a pair of ints"),
        ({"softcap": torch.nan}, ValueError, "softcap: expected a finite number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("causal", [True, False])
def test_errors_name_the_argument(causal, changes, error, message):
    arguments = {
        "q": draw(B, 2, H, D), "k_cache": draw(B, L, K, D), "v_cache": draw(B, L, K, D),
        "k": draw(B, 2, K, D), "v": draw(B, 2, K, D), "cache_seqlens": 5, "causal": causal,
    }  # fmt: skip
    before = arguments["k_cache"].clone()
    with pytest.raises(error, match=message):
        llama_fast.flash_attn_with_kvcache(**(arguments | changes))
    assert torch.equal(arguments["k_cache"], before)  # not half a step
