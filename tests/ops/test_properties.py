"""Shapes and options that nobody thought of: drawn by hypothesis, held to the same criterion."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llama_fast
from tests.ops import attention_cases, cross_entropy_cases
from tests.ops.criterion import DTYPES, check

PROFILE = settings(max_examples=50)


@st.composite
def attention_cases_(draw: st.DrawFn) -> attention_cases.Case:
    """Any combination of lengths, heads, masks and biases that the signature allows."""
    K = draw(st.integers(1, 3))
    H = K * draw(st.integers(1, 4))
    length = st.integers(0, 70)
    options: dict[str, Any] = {"causal": draw(st.booleans())}
    side = st.integers(-1, 30)
    window = draw(st.none() | st.integers(1, 30) | st.tuples(side, side))
    if window is not None:
        options["window"] = window
    if draw(st.booleans()):
        options["softcap"] = draw(st.floats(0.5, 30))
    lengths: tuple[tuple[int, int], ...] = ()
    packed = draw(st.booleans())
    tensors = {}
    if packed:
        lengths = tuple(draw(st.lists(st.tuples(length, length), min_size=1, max_size=4)))
    elif draw(st.booleans()):
        letters = "".join(draw(st.sampled_from(pair)) for pair in ("B1", "H1", "S1"))
        # Constant along the keys a bias has no gradient (test_attention_masks.py).
        tensors["bias"] = draw(st.sampled_from(("", "bool:"))) + letters + "T"
    if not packed and draw(st.booleans()):
        tensors["key_padding_mask"] = "bool:BT"
    if draw(st.booleans()):
        tensors["alibi_slopes"] = draw(st.sampled_from(("H", "BH")))
    if draw(st.booleans()):
        tensors["sinks"] = "H"
    return attention_cases.Case(
        "drawn", B=draw(st.integers(1, 3)), H=H, K=K, S=draw(length), T=draw(length),
        D=draw(st.integers(1, 70)), Dv=draw(st.integers(1, 70)), options=options,
        tensors=tensors, grad_lse=draw(st.booleans()), lengths=lengths,
    )  # fmt: skip


@PROFILE
@given(case=attention_cases_(), dtype=st.sampled_from(DTYPES))
def test_attention(case: attention_cases.Case, dtype: torch.dtype) -> None:
    check("attention", llama_fast.attention, attention_cases.runner(case), dtype)


@st.composite
def cross_entropy_cases_(draw: st.DrawFn) -> cross_entropy_cases.Case:
    """Any combination of shape, targets and options."""
    shape = (draw(st.integers(1, 20)), draw(st.integers(1, 200)))
    shape += tuple(draw(st.lists(st.integers(1, 5), max_size=2)))
    options: dict[str, Any] = {"reduction": draw(st.sampled_from(("none", "mean", "sum")))}
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.floats(0, 1))
    if draw(st.booleans()):
        options["softcap"] = draw(st.floats(1, 30))
    if draw(st.booleans()):
        options["z_loss"] = draw(st.floats(1e-4, 0.1))
    return cross_entropy_cases.Case(
        "drawn", shape=shape, class_weights=draw(st.booleans()), options=options,
        targets=draw(st.sampled_from(("indices", "some ignored", "probabilities"))),
    )  # fmt: skip


@PROFILE
@given(case=cross_entropy_cases_(), dtype=st.sampled_from(DTYPES), inplace=st.booleans())
def test_cross_entropy(case: cross_entropy_cases.Case, dtype: torch.dtype, inplace: bool) -> None:
    def function(input: torch.Tensor, *args: Any, **options: Any) -> Any:
        return llama_fast.cross_entropy(input * 1, *args, inplace=inplace, **options)

    check("cross_entropy", function, cross_entropy_cases.runner(case), dtype)
