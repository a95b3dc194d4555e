"""Numbers from 1e-6 to 1e4 with every pair of options, for every op: drawn by hypothesis.

LLAMA_FAST_EXAMPLES=2000 draws so many examples of each op, others at every run (a night's work).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import llama_fast
from llama_fast.ops.linear import linear
from tests.ops import attention_cases, cross_entropy_cases, linear_cross_entropy_cases
from tests.ops import test_attention_decode as decode_cases
from tests.ops.criterion import DTYPES, Results, Run, check, gradients

EXAMPLES = int(os.environ.get("LLAMA_FAST_EXAMPLES", "0"))
# Rounding errors of a few numbers are a game of chance, and shrinking looks for the unluckiest.
PROFILE = settings(
    max_examples=EXAMPLES or 60, derandomize=not EXAMPLES, phases=(Phase.explicit, Phase.generate)
)

dtypes = st.sampled_from(DTYPES)
sizes = st.integers(8, 40)
# So many that a sum differs with its order: rounding errors that cancel exactly are no yardstick.
heads = st.integers(16, 70)


def powers(low: int = -6, high: int = 4) -> st.SearchStrategy[float]:
    """A power of ten."""
    return st.integers(low, high).map(lambda e: 10.0**e)


def factors(draw: st.DrawFn, largest: float = 1e4) -> tuple[float, float]:
    """Two magnitudes whose product is at most `largest`: beyond it one rounding of a product
    decides which class or key wins, and no implementation is nearer to the truth than another."""
    first = draw(powers())
    return first, min(draw(powers()), largest / first)


def softcaps(size: float) -> st.SearchStrategy[float]:
    """For numbers of this size. Far smaller ones make derivatives too small for float32's tanh."""
    return st.sampled_from((1.0, 10.0, 1000.0)).map(lambda factor: factor * size)


def maybe(draw: st.DrawFn, options: dict[str, Any], **strategies: st.SearchStrategy[Any]) -> None:
    """Some of the options."""
    for name, strategy in strategies.items():
        if draw(st.booleans()):
            options[name] = draw(strategy)


def normal_runner(
    shapes: dict[str, tuple[int, ...]],
    scales: dict[str, float],
    options: dict[str, Any],
    names: tuple[str, ...],
    leaves: tuple[str, ...],
) -> Run:
    """The `run` of `criterion.check` for an op of normally distributed tensors."""

    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        g = torch.Generator().manual_seed(seed)
        tensors = {
            name: (torch.randn(shape, generator=g, dtype=torch.float64) * scales.get(name, 1.0))
            .to(inputs_dtype).to(dtype).requires_grad_(name in leaves)
            for name, shape in shapes.items()
        }  # fmt: skip
        result = function(**tensors, **options)
        outputs = result if isinstance(result, tuple) else (result,)
        results = dict(zip(names, (out.detach() for out in outputs), strict=True))
        if not leaves:
            return results
        differentiable = {name: tensors[name] for name in leaves}
        return results | gradients(outputs, differentiable, inputs_dtype, seed)

    return run


@st.composite
def attention(draw: st.DrawFn) -> attention_cases.Case:
    K = draw(st.integers(1, 2))
    H = K * draw(st.integers(1, 4))
    q, k = factors(draw)
    scales = {"q": q, "k": k, "v": draw(powers())}
    options: dict[str, Any] = {"causal": draw(st.booleans())}
    maybe(draw, options, window=st.integers(2, 30), softcap=softcaps(q * k))
    tensors: dict[str, str] = {}
    lengths: tuple[tuple[int, int], ...] = ()
    if draw(st.booleans()):
        lengths = tuple(draw(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=3)))
    else:
        maybe(
            draw,
            tensors,
            bias=st.sampled_from(("HST", "B1ST", "bool:HST", "1ST")),
            key_padding_mask=st.just("bool:BT"),
        )
        if "bias" in tensors and "bool" not in tensors["bias"]:
            scales["bias"] = draw(powers())
    maybe(draw, tensors, alibi_slopes=st.just("H"), sinks=st.just("H"))
    if "sinks" in tensors:
        scales["sinks"] = draw(powers())
    if "alibi_slopes" in tensors:
        scales["alibi_slopes"] = draw(powers(-6, 2))
    return attention_cases.Case(
        "drawn", B=draw(st.integers(1, 2)), H=H, K=K, S=draw(sizes), T=draw(sizes),
        D=draw(heads), Dv=draw(heads), options=options,
        tensors=tensors, grad_lse=draw(st.booleans()), lengths=lengths, scales=scales,
    )  # fmt: skip


@PROFILE
@given(case=attention(), dtype=dtypes)
def test_attention(case: attention_cases.Case, dtype: torch.dtype) -> None:
    check("attention", llama_fast.attention, attention_cases.runner(case), dtype, extreme=True)


@st.composite
def sdpa(draw: st.DrawFn) -> attention_cases.Case:
    K, S = draw(st.integers(1, 2)), draw(sizes)
    q, k = factors(draw)
    scales = {"q": q, "k": k, "v": draw(powers())}
    mask = draw(st.sampled_from(("none", "causal", "HST", "bool:1ST")))
    tensors = {"bias": mask} if mask.endswith("ST") else {}
    if mask == "HST":
        scales["bias"] = draw(powers())
    return attention_cases.Case(
        "drawn", H=K * draw(st.integers(1, 3)), K=K, S=S, T=S if mask == "causal" else draw(sizes),
        D=draw(heads), Dv=draw(heads), tensors=tensors, scales=scales,
        options={"causal": mask == "causal"},
    )  # fmt: skip


@PROFILE
@given(case=sdpa(), dtype=dtypes)
def test_scaled_dot_product_attention(case: attention_cases.Case, dtype: torch.dtype) -> None:
    """By the names of `attention`, whose yardsticks are torch's own function and its algorithm."""

    def function(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        causal: bool,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return llama_fast.scaled_dot_product_attention(
            q, k, v, bias, is_causal=causal, enable_gqa=True
        )

    check("attention", function, attention_cases.runner(case), dtype, extreme=True)


@st.composite
def attention_decode(draw: st.DrawFn) -> decode_cases.Case:
    lengths = tuple(draw(st.lists(st.integers(8, 30), min_size=1, max_size=3)))
    K = draw(st.integers(1, 2))
    q, k = factors(draw)
    v = draw(powers())
    scales = {"q": q, "k_cache": k, "v_cache": v}
    append = draw(st.booleans())
    if append:
        scales |= {"k": k, "v": v}
    options: dict[str, Any] = {}
    maybe(draw, options, window=st.integers(1, 30), softcap=softcaps(q * k))
    tensors: dict[str, str] = {}
    maybe(draw, tensors, alibi_slopes=st.just("H"), sinks=st.just("H"))
    if "sinks" in tensors:
        scales["sinks"] = draw(powers())
    return decode_cases.Case(
        "drawn", lengths=lengths, H=K * draw(st.integers(1, 6)), K=K, S=draw(st.integers(1, 8)),
        D=draw(st.integers(4, 70)), Dv=draw(st.integers(4, 70)), options=options, scales=scales,
        page=draw(st.sampled_from((0, 4))), append=append, tensors=tensors,
    )  # fmt: skip


@PROFILE
@given(case=attention_decode(), dtype=dtypes)
def test_attention_decode(case: decode_cases.Case, dtype: torch.dtype) -> None:
    run = decode_cases.runner(case)
    check("attention_decode", llama_fast.attention_decode, run, dtype, extreme=True)


def loss_options(draw: st.DrawFn, size: float) -> dict[str, Any]:
    """`size` is that of the logits."""
    options: dict[str, Any] = {"reduction": draw(st.sampled_from(("none", "mean", "sum")))}
    smoothing = st.sampled_from((1e-6, 1e-2, 0.1, 0.5, 1.0))
    maybe(draw, options, label_smoothing=smoothing, softcap=softcaps(size), z_loss=powers(-6, 0))
    return options


@st.composite
def cross_entropy(draw: st.DrawFn) -> cross_entropy_cases.Case:
    shape = (draw(st.integers(8, 20)), draw(st.integers(8, 1100)))
    targets = draw(st.sampled_from(("indices", "some ignored", "probabilities")))
    if targets != "probabilities":  # torch's log_softmax is less exact over an inner dimension
        shape += tuple(draw(st.lists(st.integers(1, 3), max_size=1)))
    spread = draw(powers())
    options, grad_lse = loss_options(draw, spread), draw(st.booleans())
    if grad_lse or draw(st.booleans()):
        options["return_stats"] = True
    return cross_entropy_cases.Case(
        "drawn", shape=shape, class_weights=draw(st.booleans()), options=options,
        targets=targets, spread=spread, grad_lse=grad_lse,
    )  # fmt: skip


@PROFILE
@given(case=cross_entropy(), dtype=dtypes, inplace=st.booleans())
def test_cross_entropy(case: cross_entropy_cases.Case, dtype: torch.dtype, inplace: bool) -> None:
    def function(input: torch.Tensor, *args: Any, **options: Any) -> Any:
        options["inplace"] = inplace and not case.grad_lse
        return llama_fast.cross_entropy(input * 1, *args, **options)

    check("cross_entropy", function, cross_entropy_cases.runner(case), dtype, extreme=True)


@st.composite
def linear_cross_entropy(draw: st.DrawFn) -> linear_cross_entropy_cases.Case:
    x, w = factors(draw)
    E, bias = draw(st.integers(8, 40)), draw(st.sampled_from((0.0, 1e-6, 1e-3, 1.0, 100.0)))
    options, grad_lse = loss_options(draw, x * w * E**0.5 + bias), draw(st.booleans())
    if grad_lse or draw(st.booleans()):
        options["return_stats"] = True
    return linear_cross_entropy_cases.Case(
        "drawn", tokens=(draw(st.integers(8, 30)),), E=E,
        V=draw(st.integers(8, 1100)), ignored=draw(st.booleans()), bias=bias > 0,
        class_weights=draw(st.booleans()), options=options, grad_lse=grad_lse, scale=x,
        weight_scale=w, bias_scale=bias,
    )  # fmt: skip


@PROFILE
@given(case=linear_cross_entropy(), dtype=dtypes, backend=st.sampled_from(("auto", "chunked")))
def test_linear_cross_entropy(
    case: linear_cross_entropy_cases.Case, dtype: torch.dtype, backend: str
) -> None:
    run = linear_cross_entropy_cases.runner(case)
    with llama_fast.use_backend(linear_cross_entropy=backend):
        check("linear_cross_entropy", llama_fast.linear_cross_entropy, run, dtype, extreme=True)


@PROFILE
@given(data=st.data(), dtype=dtypes)
def test_rms_norm(data: st.DataObject, dtype: torch.dtype) -> None:
    draw = data.draw
    shape = (draw(st.integers(4, 12)), draw(st.integers(8, 600)))
    shapes = {"input": shape, "weight": shape[-1:]}
    names: tuple[str, ...] = ("y",)
    if draw(st.booleans()):
        shapes["residual"], names = shape, ("y", "x")
    scales = {name: draw(powers()) for name in shapes}
    options = {"eps": draw(powers(-12, -2)), "offset": draw(st.sampled_from((0.0, 1.0)))}
    run = normal_runner(shapes, scales, options, names, tuple(shapes))
    check("rms_norm", llama_fast.rms_norm, run, dtype, extreme=True)


@PROFILE
@given(data=st.data(), dtype=dtypes)
def test_rope(data: st.DataObject, dtype: torch.dtype) -> None:
    draw = data.draw
    B, H, K, S, pairs = (draw(st.integers(1, n)) for n in (2, 3, 3, 20, 40))
    table = (B,) * draw(st.booleans()) + (S, pairs)
    shapes = {"q": (B, H, S, 2 * pairs), "k": (B, K, S, 2 * pairs), "cos": table, "sin": table}
    scales = {name: draw(powers()) for name in shapes}
    options = {"interleaved": draw(st.booleans())}
    leaves = tuple(shapes) if draw(st.booleans()) else ("q", "k")
    run = normal_runner(shapes, scales, options, ("out q", "out k"), leaves)
    check("rope", llama_fast.rope, run, dtype, extreme=True)


@PROFILE
@given(data=st.data(), dtype=dtypes)
def test_swiglu(data: st.DataObject, dtype: torch.dtype) -> None:
    shape = (data.draw(st.integers(4, 12)), data.draw(st.integers(8, 300)))
    scales = {name: data.draw(powers()) for name in ("gate", "up")}
    run = normal_runner(dict.fromkeys(scales, shape), scales, {}, ("out",), tuple(scales))
    check("swiglu", llama_fast.swiglu, run, dtype, extreme=True)


@PROFILE
@given(data=st.data(), dtype=st.sampled_from(DTYPES[1:]))
def test_linear(data: st.DataObject, dtype: torch.dtype) -> None:
    """float64, and what needs a gradient, is torch's own."""
    draw = data.draw
    E, O = draw(st.integers(8, 300)), draw(st.integers(8, 60))
    shapes = {"input": (draw(st.integers(1, 12)), E), "weight": (O, E)}
    if draw(st.booleans()):
        shapes["bias"] = (O,)
    scales = {name: draw(powers()) for name in shapes}
    run = normal_runner(shapes, scales, {}, ("out",), ())
    check("attention", linear, run, dtype, F.linear, extreme=True)
