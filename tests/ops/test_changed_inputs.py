"""What a backward reads again may have changed since the forward: no crash, and no wrong number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import llama_fast
from llama_fast.ops.backends import library
from llama_fast.reference.cross_entropy import NONE, CrossEntropyOptions
from tests.ops.conftest import DEVICES

ops = torch.ops.llama_fast
CPU = pytest.mark.skipif(not library.has_cpu_kernel("attention"), reason="nothing was compiled")
# A class in the memory of another row, one far away, another class, and what was to be ignored.
LATER = [(3, 15), (3, 10**7), (0, -(10**9)), (1, 12), (2, 6), (0, 2), (1, -100)]


# On a GPU the targets are a copy already; and plain PyTorch keeps what PyTorch keeps.
KERNELS = [
    (op, backend)
    for op in ("cross_entropy", "linear_cross_entropy")
    for backend in llama_fast.backends().available[op]
    if backend not in ("torch", "reference") and DEVICES[backend] == "cpu"
]


@pytest.mark.parametrize(("op", "served"), KERNELS)
@pytest.mark.parametrize("later", LATER, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loader_may_reuse_the_memory_of_its_targets(
    op: str, served: str, later: tuple[int, int], reduction: str
) -> None:
    """The gradient is that of the targets of the forward."""
    x = torch.randn(4, 8)
    more = () if op == "cross_entropy" else (torch.randn(7, 8),)
    classes = 8 if op == "cross_entropy" else 7
    options: dict[str, Any] = {"weight": torch.linspace(0.5, 2.0, classes), "z_loss": 0.1}
    gradients = []
    with llama_fast.use_backend(**{op: served}):
        for change in (False, True):
            buffer = np.array([3, 4, -100, 6])
            given = torch.from_numpy(buffer)
            given = (given, *more) if op == "cross_entropy" else (*more, given)
            leaf = x.clone().requires_grad_()
            loss = getattr(llama_fast, op)(leaf, *given, reduction=reduction, **options)
            if change:
                buffer[later[0]] = later[1]
            loss.sum().backward()
            assert leaf.grad is not None
            gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@CPU
@pytest.mark.parametrize("later", [(3, 15), (3, 10**7), (0, -(10**9))], ids=str)
def test_targets_are_checked_in_every_pass(later: tuple[int, int]) -> None:
    """Where a graph was compiled the backward is given the memory itself."""
    x, y = torch.randn(4, 7), torch.tensor([3, 4, 5, 6])
    options = CrossEntropyOptions()
    _, lse, _, _ = ops.cross_entropy(x, y, *options, False)
    y[later[0]] = later[1]
    message = rf"^target: expected class indices in \[0, 7\) .* got {later[1]} at"
    with pytest.raises(IndexError, match=message):
        ops.cross_entropy_backward(torch.ones(()), x, lse, y, *options)
    with pytest.raises(IndexError, match=message):
        ops.cross_entropy_inplace(x, y, *options, False)
    w = torch.randn(7, 7)
    options = CrossEntropyOptions(reduction=NONE)
    with pytest.raises(IndexError, match=message):
        ops.linear_cross_entropy(x, w, y, None, torch.ones(4), *options, False, 7)


def test_offsets_and_masks_may_be_reused() -> None:
    q, k, v = (torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for later in ([0, 2, 6], [0, 100, 6], [0, -5, 6]):
        gradients = []
        for change in (False, True):
            offsets = np.array([0, 4, 6])
            leaves = [t.clone().requires_grad_() for t in (q, k, v)]
            out = llama_fast.attention(*leaves, cu_seqlens_q=torch.from_numpy(offsets))
            if change:
                offsets[:] = later
            out.square().sum().backward()
            gradients.append(torch.stack([t.grad for t in leaves if t.grad is not None]))
        assert torch.equal(*gradients)

    gradients = []
    for change in (False, True):
        padding = np.array([[False, False, True]])
        leaves = [t.clone().view(1, 2, 3, 16).requires_grad_() for t in (q, k, v)]
        out = llama_fast.attention(*leaves, key_padding_mask=torch.from_numpy(padding))
        if change:
            padding[:] = [[True, False, False]]
        out.square().sum().backward()
        gradients.append(torch.stack([t.grad for t in leaves if t.grad is not None]))
    assert torch.equal(*gradients)


# --- the operators themselves ------------------------------------------------------------------


def _attention() -> dict[str, Any]:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 3)
    rest = {"bias": None, "padding": None, "slopes": None, "sinks": None, "cu_q": None}
    rest |= {"cu_k": None, "seed": None, "causal": False, "left": -1, "right": -1, "scale": 1.0}
    rest |= {"softcap": 0.0, "dropout_p": 0.0}
    out, lse, low = ops.attention(q, k, v, *rest.values())
    first = {"grad_out": torch.randn_like(out), "grad_lse": None, "q": q, "k": k, "v": v}
    return first | {"out": out, "lse": lse, "lse_low": low} | rest | {"mask": 7}


def _cross_entropy() -> dict[str, Any]:
    x, y = torch.randn(4, 7), torch.tensor([3, 4, 5, 6])
    rest = {"target": y, "weight": None, "ignore_index": -100, "reduction": 0, "smoothing": 0.0}
    rest |= {"softcap": 0.0, "z_loss": 0.0}
    loss, lse, _, _ = ops.cross_entropy(x, *rest.values(), False)
    return {"grad_loss": torch.ones_like(loss), "input": x, "lse": lse} | rest | {"grad_lse": None}


def _rms_norm() -> dict[str, Any]:
    x, w = torch.randn(4, 8), torch.randn(8)
    _, _, rstd = ops.rms_norm(x, w, None, 1e-6, 0.0)
    first = {"grad_y": torch.randn(4, 8), "grad_x": None, "x": x, "weight": w, "rstd": rstd}
    return first | {"eps": 1e-6, "offset": 0.0, "mask": 3}


def _swiglu() -> dict[str, Any]:
    return {name: torch.randn(4, 8) for name in ("grad_out", "gate", "up")} | {"mask": 3}


GOOD = {
    "attention_backward": _attention,
    "cross_entropy_backward": _cross_entropy,
    "rms_norm_backward": _rms_norm,
    "swiglu_backward": _swiglu,
}
X = torch.randn
BAD: list[tuple[str, dict[str, Any]]] = [
    ("attention_backward", {"grad_out": X(2, 4, 4, 3)}),
    ("attention_backward", {"grad_out": X(2, 4, 5, 3).double()}),
    ("attention_backward", {"grad_out": X(1)}),
    ("attention_backward", {"out": X(2, 4, 5, 2)}),
    ("attention_backward", {"lse": X(2, 4, 4)}),
    ("attention_backward", {"lse": X(2, 4, 5).half()}),
    ("attention_backward", {"lse_low": X(1)}),
    ("attention_backward", {"grad_lse": X(2, 5)}),
    ("attention_backward", {"grad_lse": X(2, 4, 5).double()}),
    ("attention_backward", {"q": X(2, 4, 6, 8)}),
    ("attention_backward", {"k": X(2, 2, 5, 8)}),
    ("attention_backward", {"v": X(2, 2, 6, 4)}),
    ("attention_backward", {"mask": 8}),
    ("attention_backward", {"mask": 16}),
    ("attention_backward", {"mask": 32}),
    ("attention_backward", {"mask": 8, "bias": torch.ones(1, 1, 5, 6).bool()}),
    ("attention_backward", {"bias": X(1, 1, 5, 5)}),
    ("attention_backward", {"padding": torch.ones(2, 5).bool()}),
    ("attention_backward", {"padding": torch.ones(2, 6)}),
    ("attention_backward", {"slopes": X(1, 3)}),
    ("attention_backward", {"sinks": X(3)}),
    ("attention_backward", {"cu_q": torch.tensor([0, 5])}),
    ("cross_entropy_backward", {"grad_loss": X(3)}),
    ("cross_entropy_backward", {"grad_loss": X(5)}),
    ("cross_entropy_backward", {"lse": X(3).double()}),
    ("cross_entropy_backward", {"lse": X(4)}),
    ("cross_entropy_backward", {"target": torch.tensor([1, 2, 3])}),
    ("cross_entropy_backward", {"target": torch.tensor([1, 2, 3, 4]).int()}),
    ("cross_entropy_backward", {"target": X(4, 6)}),
    ("cross_entropy_backward", {"weight": X(6)}),
    ("cross_entropy_backward", {"input": X(5, 7)}),
    ("cross_entropy_backward", {"grad_lse": X(3)}),
    ("rms_norm_backward", {"grad_y": X(3, 8)}),
    ("rms_norm_backward", {"grad_x": X(4, 7)}),
    ("rms_norm_backward", {"weight": X(7)}),
    ("rms_norm_backward", {"rstd": X(3)}),
    ("rms_norm_backward", {"rstd": X(4).double()}),
    ("swiglu_backward", {"grad_out": X(3, 8)}),
    ("swiglu_backward", {"up": X(4, 7)}),
    ("swiglu_backward", {"up": X(4, 8).half()}),
]


def _served(operator: str) -> list[str]:
    """The backends that serve an operator on the CPU here."""
    here = llama_fast.backends().available[operator.removesuffix("_backward")]
    return [b for b in ("cpu", "triton", "cuda") if b in here and DEVICES[b] == "cpu"]


@pytest.mark.parametrize(
    ("served", "operator", "bad"),
    [(served, operator, bad) for operator, bad in BAD for served in _served(operator)],
    ids=lambda p: "-".join(p) if isinstance(p, dict) else p,
)
def test_a_direct_call_of_a_backward_stays_inside_its_tensors(
    served: str, operator: str, bad: dict[str, Any]
) -> None:
    op = operator.removesuffix("_backward")
    call = getattr(ops, operator)
    with llama_fast.use_backend(**{op: served}):
        arguments = GOOD[operator]()
        call(*arguments.values())
        assert bad.keys() <= arguments.keys()
        with pytest.raises(RuntimeError, match=r"llama_fast::|expected float64"):
            call(*(arguments | bad).values())
