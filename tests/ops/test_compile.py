"""torch.compile of every op, without graph breaks; torch.library's own checks of the operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo

import llama_fast
from llama_fast.reference import AttentionOptions, CrossEntropyOptions
from tests.ops.calls import CALLS, CLASS_WEIGHT, CU_SEQLENS, TARGET, Call, total

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_fullgraph(call: Call) -> None:
    """Outputs and gradients of the compiled function equal those of the plain one.

    The backend "aot_eager" traces forward and backward as the default one does, and then runs
    the graph as it is: what is tested are the operators' rules, not the code generator.
    """
    compiled = torch.compile(call.function, fullgraph=True, backend="aot_eager")
    leaves, same = call.leaves(), call.leaves()
    outputs, expected = compiled(*leaves), call.function(*same)
    for ours, plain in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, plain)
    ours = torch.autograd.grad(total(outputs), leaves)
    plain = torch.autograd.grad(total(expected), same)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "name", ["attention", "cross_entropy", "linear_cross_entropy", "rms_norm", "rope", "swiglu"]
)
def test_default_code_generator(name: str) -> None:
    """Once for each op through Inductor, as users compile."""
    call = CALLS[name]
    compiled = torch.compile(lambda *x: total(call.function(*x)), fullgraph=True)
    leaves, same = call.leaves(torch.float32), call.leaves(torch.float32)
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    plain = torch.autograd.grad(total(call.function(*same)), same)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return llama_fast.attention(q, k, v, causal=True)


def cross_entropy(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return llama_fast.cross_entropy(x, target, z_loss=0.01)


def linear_cross_entropy(x: torch.Tensor, w: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return llama_fast.linear_cross_entropy(x, w, target)


def attention_inputs(n: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(n, 2, 3 + n, 16, requires_grad=True) for _ in range(3))


def cross_entropy_inputs(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, 4 + n, requires_grad=True), torch.randint(0, 4, (n,))


def linear_inputs(n: int) -> tuple[torch.Tensor, ...]:
    x, w = torch.randn(n, 16, requires_grad=True), torch.randn(4 + n, 16, requires_grad=True)
    return x, w, torch.randint(0, 4, (n,))


def rms_norm(x: torch.Tensor, w: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    y, total = llama_fast.rms_norm(x, w, residual=residual)
    return y * total


def rms_norm_inputs(n: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(s, requires_grad=True) for s in ((3, n, 8 + n), (8 + n,), (3, n, 8 + n))
    )


def rope(q: torch.Tensor, k: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    q, k = (t.transpose(1, 2) for t in (q, k))
    q, k = llama_fast.rope(q, k, table, table)
    return q.sin().sum() + k.cos().sum()


def rope_inputs(n: int) -> tuple[torch.Tensor, ...]:
    q, k = (torch.randn(n, 3 + n, heads, 32, requires_grad=True) for heads in (4, 2))
    return q, k, torch.rand(3 + n, 16)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    return llama_fast.swiglu(*x.chunk(2, dim=-1))


def swiglu_inputs(n: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(n, 10 + 2 * n, requires_grad=True),)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (attention, attention_inputs),
        (cross_entropy, cross_entropy_inputs),
        (linear_cross_entropy, linear_inputs),
        (rms_norm, rms_norm_inputs),
        (rope, rope_inputs),
        (swiglu, swiglu_inputs),
    ],
    ids=["attention", "cross_entropy", "linear_cross_entropy", "rms_norm", "rope", "swiglu"],
)
def test_dynamic_shapes(function: Any, inputs: Any) -> None:
    """One graph serves every batch size, length and number of classes."""
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 7, 12):
        arguments = inputs(n)
        leaves = [t for t in arguments if t.requires_grad]
        with torch._dynamo.config.patch(error_on_recompile=True):
            ours = torch.autograd.grad(compiled(*arguments).sum(), leaves)
        plain = torch.autograd.grad(function(*arguments).sum(), leaves)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_dropout_draws_anew_at_each_call() -> None:
    function = torch.compile(
        lambda q: llama_fast.attention(q, q, q, dropout_p=0.5), fullgraph=True, backend="aot_eager"
    )
    q = torch.randn(1, 1, 16, 8)
    torch.manual_seed(1)
    first, second = function(q), function(q)
    torch.manual_seed(1)
    again = function(q)
    assert not torch.equal(first, second) and torch.equal(first, again)


def test_compiled_target_out_of_range_is_an_error() -> None:
    """Under torch.compile the values are not known beforehand: the operator finds them."""
    functions = (
        lambda x, t: llama_fast.cross_entropy(x, t),
        lambda x, t: llama_fast.linear_cross_entropy(x, x, t),
    )
    for function in functions:
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        with pytest.raises(IndexError, match=r"target: expected class .* got 9 at position \(1,\)"):
            compiled(torch.randn(3, 3), torch.tensor([0, 9, 1]))


# --- torch.library.opcheck: schema, fake tensors, autograd registration, tracing ------------------


def needs_kernel(op: str) -> None:
    if "cpu" not in llama_fast.backends().available[op]:
        pytest.skip(llama_fast.backends().missing[op]["cpu"])


def attention_arguments(packed: bool, everything: bool, grad: bool) -> tuple[Any, ...]:
    shapes = (
        [(5, 4, 8), (5, 2, 8), (5, 2, 3)] if packed else [(2, 4, 5, 8), (2, 2, 6, 8), (2, 2, 6, 3)]
    )
    q, k, v = (torch.randn(s, requires_grad=grad) for s in shapes)
    options = AttentionOptions(causal=True, window_left=4, scale=0.3, softcap=2.0)
    if packed:
        options = options._replace(cu_seqlens_q=CU_SEQLENS, cu_seqlens_k=CU_SEQLENS)
    if everything:
        slopes, sinks = (torch.rand(s, requires_grad=grad) for s in ((1, 4), (4,)))
        options = options._replace(
            alibi_slopes=slopes, sinks=sinks, dropout_seed=torch.tensor([77]), dropout_p=0.2
        )
    if everything and not packed:
        bias = torch.randn(1, 4, 5, 6, requires_grad=grad)
        padding = torch.zeros(2, 6, dtype=torch.bool)
        options = options._replace(bias=bias, key_padding_mask=padding)
    return (q, k, v, *options)


@pytest.mark.parametrize("grad", (False, True), ids=["", "grad"])
@pytest.mark.parametrize("everything", (False, True), ids=["", "everything"])
@pytest.mark.parametrize("packed", (False, True), ids=["", "packed"])
def test_opcheck_attention(packed: bool, everything: bool, grad: bool) -> None:
    needs_kernel("attention")
    operator = torch.ops.llama_fast.attention.default
    torch.library.opcheck(operator, attention_arguments(packed, everything, grad))


@pytest.mark.parametrize("grad", (False, True), ids=["", "grad"])
@pytest.mark.parametrize("reduction", (0, 1, 2), ids=["none", "mean", "sum"])
@pytest.mark.parametrize("probabilities", (False, True), ids=["indices", "probabilities"])
def test_opcheck_cross_entropy(probabilities: bool, reduction: int, grad: bool) -> None:
    needs_kernel("cross_entropy")
    logits = torch.randn(5, 7, requires_grad=grad)
    target = torch.rand(5, 7) if probabilities else TARGET
    weight = CLASS_WEIGHT.float()
    operator = torch.ops.llama_fast.cross_entropy.default
    options = CrossEntropyOptions(weight, -100, reduction, 0.1, 3.0, 0.01)
    torch.library.opcheck(operator, (logits, target, *options, True))


def test_opcheck_cross_entropy_inplace() -> None:
    needs_kernel("cross_entropy")
    operator = torch.ops.llama_fast.cross_entropy_inplace.default
    torch.library.opcheck(operator, (torch.randn(5, 7), TARGET, *CrossEntropyOptions(), True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("chunked", (False, True), ids=["", "chunked"])
@pytest.mark.parametrize("reduction", (0, 1, 2), ids=["none", "mean", "sum"])
def test_opcheck_linear_cross_entropy(reduction: int, chunked: bool, dtype: torch.dtype) -> None:
    if not chunked:
        needs_kernel("linear_cross_entropy")
    x, w, b = torch.randn(5, 8).to(dtype), torch.randn(7, 8).to(dtype), torch.randn(7).to(dtype)
    operator = torch.ops.llama_fast.linear_cross_entropy
    if chunked:
        operator = torch.ops.llama_fast.linear_cross_entropy_chunked
    options = CrossEntropyOptions(CLASS_WEIGHT.float(), -100, reduction, 0.1, 3.0, 0.01)
    for grad_lse in ((), (None,), (torch.randn(5),)):  # an older graph does without
        arguments = (x, w, TARGET, b, None, *options, True, 0b101, *grad_lse)
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("grad", (False, True), ids=["", "grad"])
@pytest.mark.parametrize("residual", (None, torch.float32, torch.bfloat16), ids=str)
def test_opcheck_rms_norm(residual: torch.dtype | None, grad: bool) -> None:
    needs_kernel("rms_norm")
    x = torch.randn(2, 5, 3, 8, requires_grad=grad).bfloat16().transpose(1, 2)
    w = torch.randn(8, requires_grad=grad)
    added = None if residual is None else torch.randn(2, 3, 5, 8, requires_grad=grad).to(residual)
    torch.library.opcheck(torch.ops.llama_fast.rms_norm.default, (x, w, added, 1e-6, 1.0))


@pytest.mark.parametrize("mask", (1, 2, 3))
@pytest.mark.parametrize("with_grad_x", (False, True), ids=["", "grad_x"])
def test_opcheck_rms_norm_backward(with_grad_x: bool, mask: int) -> None:
    needs_kernel("rms_norm")
    grad_y, x, w = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    rstd = torch.ops.llama_fast.rms_norm(x, w, None, 1e-6, 0.0)[2]
    arguments = (grad_y, torch.randn(4, 8) if with_grad_x else None, x, w, rstd, 1e-6, 0.0, mask)
    torch.library.opcheck(torch.ops.llama_fast.rms_norm_backward.default, arguments)


@pytest.mark.parametrize("grad", (False, True), ids=["", "grad"])
@pytest.mark.parametrize("inverse", (False, True), ids=["", "inverse"])
def test_opcheck_rope(inverse: bool, grad: bool) -> None:
    needs_kernel("rope")
    q = torch.randn(2, 5, 4, 8, requires_grad=grad).transpose(1, 2)
    k = torch.randn(2, 2, 5, 8, requires_grad=grad)
    cos, sin = torch.rand(2, 5, 4)
    operator = torch.ops.llama_fast.rope.default
    torch.library.opcheck(operator, (q, k, cos, sin, False, inverse))


@pytest.mark.parametrize("grad", (False, True), ids=["", "grad"])
def test_opcheck_swiglu(grad: bool) -> None:
    needs_kernel("swiglu")
    gate, up = torch.randn(4, 16, requires_grad=grad).chunk(2, dim=-1)
    torch.library.opcheck(torch.ops.llama_fast.swiglu.default, (gate, up))
    operator = torch.ops.llama_fast.swiglu_backward.default
    for mask in (1, 2, 3):
        arguments = (torch.randn(4, 8), gate.detach(), up.detach(), mask)
        torch.library.opcheck(operator, arguments)
