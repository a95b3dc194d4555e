"""Attention over a cache: output, log-sum-exp and what is written, over layouts and lengths.

What a call must not read is NaN here: cache rows that no sequence holds, and pages that no table
names. Page numbers that must not be used point far outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.reference import AttentionDecodeOptions
from tests.ops.criterion import DTYPES, Results, check, served_by, to_dtype

OP = "attention_decode"
NOWHERE = 2**31 - 1


@dataclass(frozen=True)
class Case:
    """One problem and why it is worth testing; `lengths` are those before the call.

    `page` makes a paged cache; of `tensors`, alibi_slopes and sinks by name, the shape is given.
    `scales` multiplies tensors, by name.
    """

    why: str
    lengths: tuple[int, ...] = (13, 5)
    H: int = 4
    K: int = 2
    S: int = 1
    T: int = 40
    D: int = 64
    Dv: int = 0  # 0: D
    page: int = 0
    append: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    heads_inside: bool = False  # q, k, v are views of (B,S,H,D), caches of (B,T,K,D)

    @property
    def id(self) -> str:
        """Name of the test: the reason, up to its colon."""
        return self.why.partition(":")[0].replace(" ", "-").replace(",", "")


def make_tensors(case: Case, seed: int) -> dict[str, torch.Tensor]:
    """The tensor arguments in float64 (int)."""
    g = torch.Generator(torch.get_default_device()).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        if not case.heads_inside or len(shape) != 4:
            return torch.randn(shape, generator=g, dtype=torch.float64)
        A, B, C, D = shape
        return torch.randn((A, C, B, D), generator=g, dtype=torch.float64).transpose(1, 2)

    B, H, K, S, D = len(case.lengths), case.H, case.K, case.S, case.D
    Dv = case.Dv or D
    tensors = {"q": normal(B, H, S, D)}
    if case.append:
        tensors |= {"k": normal(B, K, S, D), "v": normal(B, K, S, Dv)}
    tensors["cache_seqlens"] = torch.tensor(case.lengths, dtype=torch.int32)
    left = window_left(case)
    if not case.page:
        tensors |= {"k_cache": normal(B, K, case.T, D), "v_cache": normal(B, K, case.T, Dv)}
        for b, held in enumerate(case.lengths):
            for name in ("k_cache", "v_cache"):
                tensors[name][b, :, held:] = torch.nan
    else:
        pages = -(-case.T // case.page)
        P = B * pages + 3
        free = torch.randperm(P, generator=g, device=torch.get_default_device()).tolist()
        held_rows = torch.zeros(P, case.page, dtype=torch.bool)
        table = torch.full((B, pages), NOWHERE, dtype=torch.int32)
        for b, held in enumerate(case.lengths):
            total = held + (S if case.append else 0)
            first = max(0, total - S - left) if left >= 0 else 0
            for i in range(first // case.page, -(-total // case.page)):
                table[b, i] = free.pop()
                held_rows[table[b, i], : max(0, held - i * case.page)] = True
        table[::2][table[::2] == NOWHERE] = -1
        tensors |= {"k_cache": normal(P, K, case.page, D), "v_cache": normal(P, K, case.page, Dv)}
        for name in ("k_cache", "v_cache"):
            tensors[name].masked_fill_(~held_rows.view(P, 1, case.page, 1), torch.nan)
        tensors["page_table"] = table
    for name, shape in case.tensors.items():
        value = normal(*({"B": B, "H": H}[letter] for letter in shape))
        tensors[name] = value.sigmoid() if name == "alibi_slopes" else value
    for name, scale in case.scales.items():
        tensors[name] = tensors[name] * scale
    return tensors


def window_left(case: Case) -> int:
    window = case.options.get("window")
    return -1 if window is None else window[0] if isinstance(window, tuple) else window - 1


def runner(case: Case) -> Callable[..., Results]:
    """The `run` of `criterion.check`: the results of a call, and the caches after it."""

    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        arguments = to_dtype(make_tensors(case, seed), inputs_dtype, dtype)
        # torch's own function gives no log-sum-exp.
        with_lse = "out only" not in case.why
        result = function(**arguments, **case.options, return_lse=with_lse)
        results = {"out": result[0], "lse": result[1]} if with_lse else {"out": result}
        return results | {name: arguments[name] for name in ("k_cache", "v_cache")}

    return run


EVERYTHING = {"softcap": 2.0, "scale": 0.2, "window": 11}
EVERY_TENSOR = {"alibi_slopes": "BH", "sinks": "H"}
CASES = [
    Case("one token, out only"),
    Case("in pages, out only", page=4),
    Case("one token: and its log-sum-exp"),
    Case("nothing appended", append=False),
    Case("nothing appended, in pages", append=False, page=8),
    Case("an empty cache and a full one", lengths=(0, 39, 7)),
    Case("an empty cache and a full one, in pages", lengths=(0, 39, 7), page=8),
    Case("nothing to see: zeros", lengths=(0, 3), append=False),
    Case("nothing to see in pages, but sinks", lengths=(0, 3), append=False, page=4,
         tensors={"sinks": "H"}),
    Case("more queries than keys: rows that see nothing", lengths=(2, 0, 5), S=4, append=False),
    Case("two tokens", S=2),
    Case("three tokens in pages of three: they cross a page", S=3, page=3),
    Case("eight tokens: as speculative decoding checks them", S=8, lengths=(20, 0, 32)),
    Case("eight tokens in pages", S=8, lengths=(20, 0, 27), page=16),
    Case("pages of one key", page=1, lengths=(3, 9), T=12),
    Case("pages of five keys: no power of two", page=5, lengths=(14, 33)),
    Case("multi-query: one key head for all", H=6, K=1),
    Case("many heads of a key head, many tokens: more rows than a tile", H=20, K=1, S=2),
    Case("every head its keys", H=3, K=3),
    Case("one head of size 128", H=1, K=1, D=128),
    Case("head size 128 in pages: Llama 3", H=8, K=2, D=128, page=16, lengths=(33, 6)),
    Case("head size 256", D=256),
    Case("head size 80: no power of two", D=80),
    Case("head size 3, value size 5", D=3, Dv=5),
    Case("long: many blocks of keys", lengths=(400, 1100), T=1200),
    Case("long, in pages: many blocks of keys", lengths=(400, 1100), T=1200, page=16, S=2),
    Case("views of (B,S,H,D)", heads_inside=True, S=3),
    Case("views of (B,S,H,D), in pages", heads_inside=True, S=3, page=8),
    Case("softcap, out and lse", options={"softcap": 0.7}),
    Case("window", options={"window": 5}, S=2),
    Case("window in pages: those before it are gone", options={"window": (6, 0)}, S=2, page=4),
    Case("window of one key", options={"window": 1}, append=False),
    Case("window wider than all", options={"window": 1000}, page=8),
    Case("sinks", tensors={"sinks": "H"}),
    Case("slopes of heads", tensors={"alibi_slopes": "H"}, S=2),
    Case("slopes of sequences and heads, in pages", tensors={"alibi_slopes": "BH"}, page=8),
    Case("everything", options=EVERYTHING, tensors=EVERY_TENSOR, S=3),
    Case("everything, in pages", options=EVERYTHING, tensors=EVERY_TENSOR, S=3, page=8),
    Case("scores near 1e4: their exp overflows", options={"scale": 2500.0}),
    Case("negative scale", options={"scale": -0.5}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_grid(case: Case, dtype: torch.dtype, kernel: str) -> None:
    if kernel == "cuda" and (reason := refusal(case, dtype)):
        with pytest.raises(ValueError, match=f"^backend 'cuda' of {OP}: expected .*{reason}"):
            llama_fast.attention_decode(**arguments_of(case, dtype))
        return
    check(OP, llama_fast.attention_decode, runner(case), dtype)


def refusal(case: Case, dtype: torch.dtype) -> str:
    """What the CUDA kernel says that it cannot do, "" where it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"got {dtype}"
    return "" if case.D in (64, 128, 256) and not case.Dv else f"got {case.D}"


def arguments_of(case: Case, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    return {
        name: t.to(dtype) if t.is_floating_point() else t
        for name, t in make_tensors(case, 0).items()
    } | case.options


def test_appending_is_writing_first(kernel: str) -> None:
    """The same bits whether new keys come with the call or lie in the cache before it."""
    case = Case("", S=2, page=8)
    at_once, before = arguments_of(case), arguments_of(case)
    out = llama_fast.attention_decode(**at_once)
    held, table, page = before["cache_seqlens"], before["page_table"], case.page
    for b, start in enumerate(held.tolist()):
        for i in range(case.S):
            place = table[b, (start + i) // page], slice(None), (start + i) % page
            before["k_cache"][place] = before["k"][b, :, i]
            before["v_cache"][place] = before["v"][b, :, i]
    without = {n: t for n, t in before.items() if n not in ("k", "v", "cache_seqlens")}
    again = llama_fast.attention_decode(**without, cache_seqlens=held + case.S)
    torch.testing.assert_close(out, again, rtol=0, atol=0)
    for name in ("k_cache", "v_cache"):
        torch.testing.assert_close(at_once[name], before[name], rtol=0, atol=0, equal_nan=True)


def test_sequences_share_pages(kernel: str) -> None:
    """A prompt that two sequences have in common is stored once."""
    case = Case("", lengths=(16, 16), page=8, T=24)
    arguments = arguments_of(case)
    arguments["page_table"][1, :2] = arguments["page_table"][0, :2]
    out = llama_fast.attention_decode(**arguments)
    expected = served_by("reference", OP)(**arguments)
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(0, 4, 1), (2, 4, 0), (2, 0, 1)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int], kernel: str) -> None:
    B, H, S = shape
    q, k, cache = (
        torch.zeros(*shape, 64, dtype=torch.bfloat16)
        for shape in ((B, H, S), (B, H // 2, S), (B, H // 2, 8))
    )
    held = torch.zeros(B, dtype=torch.int32)
    out, lse = llama_fast.attention_decode(
        q, cache, cache.clone(), k=k, v=k, cache_seqlens=held, return_lse=True
    )
    assert out.shape == q.shape and lse.shape == q.shape[:-1]


def test_runs_give_the_same_bits(kernel: str) -> None:
    case = Case("", lengths=(900, 40), T=1000, S=2)
    first, second = (llama_fast.attention_decode(**arguments_of(case)) for _ in range(2))
    assert torch.equal(first, second)


def operator_arguments(case: Case, dtype: torch.dtype = torch.bfloat16) -> list[Any]:
    a = arguments_of(case, dtype)
    options = AttentionDecodeOptions(
        a.get("k"),
        a.get("v"),
        a["cache_seqlens"],
        a.get("page_table"),
        window_left=window_left(case),
        scale=0.1,
    )
    return [a["q"], a["k_cache"], a["v_cache"], *options]


BAD = {
    "negative length": Case("", lengths=(5, -1, 9)),
    "length beyond the cache": Case("", lengths=(5, 40, 9)),
    "largest length": Case("", lengths=(5, NOWHERE, 9)),
    "smallest length": Case("", lengths=(5, -NOWHERE - 1, 9)),
    "length beyond the pages": Case("", lengths=(5, 40, 9), page=8),
    "page that is not there": Case("", lengths=(5, 12, 9), page=8),
    "negative page": Case("", lengths=(5, 12, 9), page=8),
    "page for the new key": Case("", lengths=(5, 16, 9), page=8),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_places_on_the_device(name: str, kernel: str) -> None:
    """Where the host does not look, nothing outside is touched, and the others come out right."""
    case = BAD[name]
    good = Case("", lengths=(5, 12, 9), page=case.page)
    if "page for" in name:
        good = case
    arguments, expected = operator_arguments(good), operator_arguments(good)
    arguments[5] = torch.tensor(case.lengths, dtype=torch.int32)
    if "page" in name and "pages" not in name:
        arguments[6][1, case.lengths[1] // 8] = -7 if "negative" in name else NOWHERE
    caches = [cache.clone() for cache in arguments[1:3]]
    if kernel in ("cpu", "reference"):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            torch.ops.llama_fast.attention_decode(*arguments)
        return
    out, lse = torch.ops.llama_fast.attention_decode(*arguments)
    right = torch.ops.llama_fast.attention_decode(*expected)
    for ours, theirs in zip((out, lse), right, strict=True):
        assert ours[1].isnan().all()
        torch.testing.assert_close(ours[::2], theirs[::2], rtol=0, atol=0)
    for before, after, written in zip(caches, arguments[1:3], expected[1:3], strict=True):
        same = (after == written) | (after.isnan() & written.isnan())
        same |= (after == before) | (after.isnan() & before.isnan())
        assert same.all()


def test_bad_places_are_errors_on_the_cpu() -> None:
    for name, case in BAD.items():
        if "page" in name and "pages" not in name:
            arguments = arguments_of(case)
            arguments["page_table"][1, case.lengths[1] // 8] = -7 if "negative" in name else NOWHERE
            message = r"page_table: expected pages in \[0, 18\), got (-7|2147483647) at position"
        else:
            arguments = arguments_of(Case("", lengths=(5, 12, 9), page=case.page))
            arguments["cache_seqlens"] = torch.tensor(case.lengths, dtype=torch.int32)
            message = r"cache_seqlens: expected lengths in \[0, 39\], got -?\d+ at position 1"
        with pytest.raises(ValueError, match=f"^{message}"):
            llama_fast.attention_decode(**arguments)


def test_caches_of_views_are_written_in_place(kernel: str) -> None:
    """A layer's slice of one large cache, as KVCache keeps it."""
    whole = torch.zeros(3, 2, 2, 16, 64, dtype=torch.float16)
    q, k = (torch.randn(2, heads, 1, 64).half() for heads in (4, 2))
    held = torch.tensor([3, 7], dtype=torch.int32)
    llama_fast.attention_decode(q, whole[1], whole[2], k=k, v=2 * k, cache_seqlens=held)
    assert torch.equal(whole[1][0, :, 3], k[0, :, 0])
    assert torch.equal(whole[2][1, :, 7], 2 * k[1, :, 0])
    assert whole.count_nonzero() == 2 * k.numel()


def test_caches_out_of_line(kernel: str) -> None:
    """Rows that do not begin at multiples of 16 bytes, or are no rows: not for the CUDA kernel."""
    case = Case("")
    wide = torch.zeros(2, 2, 40, 66, dtype=torch.bfloat16)
    columns = torch.zeros(2, 2, 64, 40, dtype=torch.bfloat16).transpose(2, 3)
    shifted = torch.zeros(2 * 2 * 40 * 64 + 1, dtype=torch.bfloat16)[1:].view(2, 2, 40, 64)
    for v_cache in (wide[..., :64], columns, shifted):
        arguments, plain = arguments_of(case), arguments_of(case)
        arguments["v_cache"] = v_cache.copy_(plain["v_cache"])
        if kernel == "cuda":
            message = "^backend 'cuda' of attention_decode: v_cache: expected contiguous rows"
            with pytest.raises(ValueError, match=message):
                llama_fast.attention_decode(**arguments)
            continue
        out = llama_fast.attention_decode(**arguments)
        expected = llama_fast.attention_decode(**plain)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        torch.testing.assert_close(v_cache, plain["v_cache"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.compile
@pytest.mark.parametrize("page", (0, 8))
def test_compiles(page: int, kernel: str) -> None:
    """One graph for every batch size, which writes into the caches that it is given."""
    torch._dynamo.reset()

    def step(**arguments: Any) -> Any:
        return llama_fast.attention_decode(**arguments, return_lse=True)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ((3, 9), (13, 5, 0)):
        ours, plain = (arguments_of(Case("", lengths=lengths, page=page, S=2)) for _ in range(2))
        for a, b in zip(compiled(**ours), step(**plain), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        for name in ("k_cache", "v_cache"):
            torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.compile
@pytest.mark.parametrize("page", (0, 8))
@pytest.mark.parametrize("append", (False, True))
def test_opcheck(append: bool, page: int) -> None:
    if "cpu" not in llama_fast.backends().available[OP]:
        pytest.skip(llama_fast.backends().missing[OP]["cpu"])
    arguments = operator_arguments(Case("", append=append, page=page), torch.float32)
    for cache in arguments[1:3]:
        cache.nan_to_num_()  # opcheck compares without equal_nan
    torch.library.opcheck(torch.ops.llama_fast.attention_decode.default, arguments)
