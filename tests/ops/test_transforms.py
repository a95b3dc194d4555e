"""Every op under every transform of torch.func, and under forward-mode derivatives.

The result is that of plain PyTorch: the same transform of the reference, in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import llama_fast
from tests.ops.calls import CALLS, Call, total
from tests.ops.conftest import in_force

Function = Callable[..., Any]


def _tangents(x: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(7)
    return tuple(torch.randn(t.shape, dtype=t.dtype, generator=g) for t in x)


def _rows(x: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.stack((t, t * 0.5)) for t in x)


def _dual(f: Function, x: Any, reverse: bool = False) -> Any:
    with forward_ad.dual_level():
        leaves = [t.clone().requires_grad_(reverse) for t in x]
        duals = [forward_ad.make_dual(t, d) for t, d in zip(leaves, _tangents(x), strict=True)]
        out = torch.autograd.grad(f(*duals), duals) if reverse else (f(*duals),)
        return [(forward_ad.unpack_dual(o).primal, forward_ad.unpack_dual(o).tangent) for o in out]


def _jvp(f: Function, x: Any, tangents: Any) -> Any:
    return jvp(f, x, tangents)[1]


def _vmap_of_jvp(f: Function, x: Any, tangents: Any) -> Any:
    return vmap(lambda *y: jvp(f, y, tangents))(*_rows(x))


def _vjp(f: Function, x: Any) -> Any:
    out, pull = vjp(f, *x)
    return out, pull(torch.ones_like(out))


def _linearize(f: Function, x: Any) -> Any:
    out, push = linearize(f, *x)
    return out, push(*_tangents(x))


def _batched_grads(f: Function, x: Any) -> Any:
    leaves = [t.clone().requires_grad_() for t in x]
    upstream = torch.tensor([1.0, 0.5], dtype=torch.float64)
    return torch.autograd.grad(f(*leaves), leaves, upstream, is_grads_batched=True)


def _compiled(function: Function) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, backend="eager", fullgraph=True)()


# Of a scalar function of the tensors x.
TRANSFORMS: dict[str, Callable[[Function, Any], Any]] = {
    "jvp": lambda f, x: jvp(f, x, _tangents(x)),
    "dual": _dual,
    "dual of grad": lambda f, x: _dual(f, x, reverse=True),
    "jacfwd": lambda f, x: jacfwd(f, tuple(range(len(x))))(*x),
    "jacrev": lambda f, x: jacrev(f, tuple(range(len(x))))(*x),
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(f))(*x),
    "jvp of jvp": lambda f, x: _jvp(lambda *y: _jvp(f, y, x), x, _tangents(x)),
    "hessian": lambda f, x: hessian(f)(*x),
    "jvp of grad": lambda f, x: jvp(grad(f), x, _tangents(x)),
    "grad of grad": lambda f, x: grad(lambda *y: grad(f)(*y).square().sum())(*x),
    "vjp": _vjp,
    "linearize": _linearize,
    "vmap": lambda f, x: vmap(f)(*_rows(x)),
    "vmap of one": lambda f, x: vmap(f, (0, *(None,) * (len(x) - 1)))(_rows(x)[0], *x[1:]),
    "vmap of jvp": lambda f, x: _vmap_of_jvp(f, x, _tangents(x)),
    "jvp of vmap": lambda f, x: jvp(vmap(f), _rows(x), _rows(_tangents(x))),
    "functionalize": lambda f, x: functionalize(f)(*x),
    "grads in batches": _batched_grads,
    "compiled jvp": lambda f, x: _compiled(functools.partial(jvp, f, x, _tangents(x))),
    "compiled grad": lambda f, x: _compiled(lambda: grad(f)(*x)),
}


@pytest.fixture(params=[n for n in CALLS if n != "cross_entropy in place"])
def call(request: pytest.FixtureRequest) -> Iterator[Call]:
    yield CALLS[request.param]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        pytest.param(call, name, id=f"{called}-{name}")
        for called, call in CALLS.items()
        for name in TRANSFORMS
        if called != "cross_entropy in place"
        # Offsets of packed sequences are data, which functionalize hides.
        and not (name == "functionalize" and "packed" in str(call.function))
    ],
)
def test_as_of_the_reference(call: Call, name: str) -> None:
    leaves = tuple(leaf.detach() for leaf in call.leaves())

    def function(*x: torch.Tensor) -> torch.Tensor:
        return total(call.function(*x))

    result = TRANSFORMS[name](function, leaves)
    with in_force(call.op, "reference"):
        expected = TRANSFORMS[name](function, leaves)
    ours, reference = (
        torch.utils._pytree.tree_leaves(result),
        torch.utils._pytree.tree_leaves(expected),
    )
    assert len(ours) == len(reference) > 0
    for a, b in zip(ours, reference, strict=True):
        assert isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)  # no tangent got lost
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_tangents_against_differences(call: Call) -> None:
    """Forward-mode derivatives of the ops, held against numerical ones."""
    assert torch.autograd.gradcheck(
        call.function, call.leaves(), check_forward_ad=True, fast_mode=True
    )


def test_scaled_dot_product_attention_as_torchs() -> None:
    g = torch.Generator().manual_seed(1)
    x = tuple(torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64) for _ in range(3))
    results = []
    for sdpa in (
        llama_fast.scaled_dot_product_attention,
        torch.nn.functional.scaled_dot_product_attention,
    ):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            f = lambda *y, sdpa=sdpa: sdpa(*y, is_causal=True).square().sum()  # noqa: E731
            results.append((*jvp(f, x, _tangents(x)), *hessian(f)(*x).flatten(0, 3)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)


def test_decoding_says_what_it_does_not_know() -> None:
    """A tangent or a batch that is lost in silence would be the worst."""
    cache = torch.zeros(1, 2, 8, 4, dtype=torch.float64)
    q = torch.ones(1, 2, 1, 4, dtype=torch.float64)
    held = torch.tensor([3], dtype=torch.int32)

    def decode(q: torch.Tensor) -> torch.Tensor:
        return llama_fast.attention_decode(q, cache, cache.clone(), cache_seqlens=held)

    attempts: list[Callable[[], Any]] = [
        lambda: jvp(decode, (q,), (q,)),
        lambda: _dual(decode, (q,)),
        lambda: vmap(decode)(torch.stack((q, q))),
        lambda: functionalize(decode)(q),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="q: expected a tensor outside of forward-mode"):
            attempt()
    with pytest.raises(ValueError, match="q: expected a tensor without gradient"):
        grad(lambda q: decode(q).sum())(q)
    with forward_ad.dual_level():  # of something else
        assert torch.equal(decode(q), decode(q))


def test_a_process_group_under_forward_mode() -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x, w = torch.randn(3, 4), torch.randn(5, 4)

        def loss(x: torch.Tensor) -> Any:
            return llama_fast.linear_cross_entropy(
                x, w, torch.tensor([0, 1, 4]), process_group=dist.group.WORLD
            )

        with pytest.raises(ValueError, match="process_group: expected None under forward-mode"):
            jvp(loss, (x,), (x,))
        torch.testing.assert_close(
            grad(loss)(x),
            grad(lambda x: torch.nn.functional.cross_entropy(x @ w.T, torch.tensor([0, 1, 4])))(x),
        )
    finally:
        dist.destroy_process_group()
