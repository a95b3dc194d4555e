"""A step of all layers in one operator is the model's own step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llama_fast import use_backend
from llama_fast.generation.fast_decode import FastDecode
from llama_fast.generation.paged_cache import DecodeStep, PagedCache
from llama_fast.models import LLaMA, LlamaConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (0, 15, 16, 40, 700, 1, 31, 33, 5, 90)  # beginning, inside and at the end of pages

there = pytest.mark.skipif(
    not FastDecode.serves(LLaMA(LlamaConfig.preset("debug")), 16),
    reason="the compiled library is not there",
)


def model_of(dtype: torch.dtype, **changes: object) -> LLaMA:
    torch.manual_seed(0)
    fields = {"num_kv_heads": 2, "max_seq_len": 1024, "ffn_dim": 168} | changes
    model = LLaMA(LlamaConfig(97, 72, 6, 3, **fields)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() > 1 else torch.rand_like(weight) + 0.5)
    return model.to(dtype)


def case(model: LLaMA, batch: int, page: int = 16) -> tuple[Tensor, DecodeStep]:
    """New tokens, and sequences with random keys and values in pages out of order."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    lengths = [LENGTHS[b % len(LENGTHS)] for b in range(batch)]
    cache = PagedCache(
        config.num_layers, config.num_kv_heads, config.head_dim, 50 * batch, page_size=page,
        dtype=model.head_weight.dtype,
    )  # fmt: skip
    for t in (cache.k, cache.v):
        t.copy_(torch.randn(t.shape, generator=generator))
    order = torch.randperm(50 * batch, generator=generator).tolist()
    pages = [[order.pop() for _ in range(n // page + 1)] for n in lengths]
    tokens = torch.arange(batch)[None] * 13 % 97
    return tokens, DecodeStep(cache, lengths, pages)


def error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


@there
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 10, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_further_from_float64_than_the_model(dtype: torch.dtype, batch: int) -> None:
    model = model_of(dtype)
    tokens, step = case(model, batch)
    wide_tokens, wide = case(model.double(), batch)
    for name in ("k", "v"):
        getattr(wide.cache, name).copy_(getattr(step.cache, name))
    with torch.no_grad(), use_backend("reference"):
        truth = model.hidden_states(wide_tokens, step=wide)
    model = model_of(dtype)
    _, modular = case(model, batch)
    with torch.no_grad():
        theirs = model.hidden_states(tokens, step=modular)
        ours = FastDecode(model)(tokens, step)
    assert ours.shape == theirs.shape and ours.dtype == dtype
    assert error(ours, truth) <= 1.2 * error(theirs, truth) + torch.finfo(dtype).eps
    _, fresh = case(model, batch)
    for name in ("k", "v"):  # each stored its own, and changed nothing else
        stored, expected, true, before = (
            getattr(s.cache, name) for s in (step, modular, wide, fresh)
        )
        assert error(stored, true) <= 1.2 * error(expected, true) + torch.finfo(dtype).eps
        assert (stored != before).any(-1).any(-1).sum() == batch * model.config.num_layers


@there
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_gets_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    fast = FastDecode(model)
    tokens, step = case(model, 8)
    together = fast(tokens, step)
    lengths = step.positions.tolist()
    for b in range(8):
        _, fresh = case(model, 8)
        pages = [fresh.table[b].tolist()[: lengths[b] // 16 + 1]]
        alone = fast(tokens[:, b : b + 1], DecodeStep(fresh.cache, [lengths[b]], pages))
        assert torch.equal(alone[0, 0], together[0, b])


@there
def test_same_bits_for_any_number_of_threads() -> None:
    model, before, found = model_of(torch.bfloat16), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(FastDecode(model)(*case(model, 6)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@there
def test_larger_pages() -> None:
    model, found = model_of(torch.float32), []
    numbers = torch.randn(2, 3, 96, 2, 12, generator=torch.Generator().manual_seed(2))
    for page, pages in ((16, [0, 1, 2]), (48, [0])):  # the same slots
        cache = PagedCache(3, 2, 12, 96 // page, page_size=page)
        cache.k.copy_(numbers[0])
        cache.v.copy_(numbers[1])
        found.append(FastDecode(model)(torch.tensor([[5]]), DecodeStep(cache, [40], [pages])))
    assert torch.equal(*found)


@there
def test_what_it_serves() -> None:
    def serves(page: int = 16, dtype: torch.dtype = torch.float32, **changes: object) -> bool:
        return FastDecode.serves(model_of(dtype, **changes), page)

    assert serves()
    assert not serves(page=8)
    assert not serves(dtype=torch.float64)
    assert not FastDecode.serves(torch.nn.Linear(2, 2), 16)
    with use_backend("reference"):
        assert not serves()
    mixed = model_of(torch.float32)
    mixed.norm.to(torch.bfloat16)
    assert not FastDecode.serves(mixed, 16)


@there
def test_errors() -> None:
    model = model_of(torch.float32)
    tokens, step = case(model, 2)
    fast = FastDecode(model)
    step.cached[1] = 16
    with pytest.raises(ValueError, match=r"cache_seqlens: expected lengths in \[0, 16\), got 16"):
        fast(tokens, step)
    step.cached[1], step.table[1, 0] = 15, 100
    with pytest.raises(ValueError, match=r"page_table: expected pages in \[0, 100\), got 100"):
        fast(tokens, step)
    fast._weights.pop()
    with pytest.raises(RuntimeError, match="the number of weights does not fit"):
        fast(tokens, step)
    fast = FastDecode(model)
    fast._weights[3] = fast._weights[3][:, :-1]
    with pytest.raises(RuntimeError, match="a weight does not fit"):
        fast(tokens, step)


@there
def test_opcheck() -> None:
    model = model_of(torch.float32)
    _, step = case(model, 2)
    x, tables = torch.randn(2, 72), torch.randn(2, 2, 6)
    weights = FastDecode(model)._weights
    arguments = (x, weights, *tables, step.cache.k, step.cache.v, step.cached, step.table, 16, 1e-5)
    torch.library.opcheck(torch.ops.llama_fast.decode_layers.default, arguments)
