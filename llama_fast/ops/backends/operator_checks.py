"""Checks that keep a direct call of a Triton operator from accessing memory outside its tensors.

The compiled kernels have their own checks (csrc/glue). The public functions check their arguments
before they call an operator, with more helpful messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from llama_fast.reference import AttentionOptions
from llama_fast.reference.cross_entropy import NONE, CrossEntropyOptions, class_dim, token_shape

Optional: TypeAlias = torch.Tensor | None


def _expect(operator: str, name: str, ok: bool) -> None:
    if not ok:
        raise RuntimeError(f"llama_fast::{operator}: {name} does not fit")


def _together(operator: str, like: torch.Tensor, args: tuple[Any, ...]) -> None:
    """Check that all of `args` are on the device of `like`."""
    for t in args:
        if isinstance(t, torch.Tensor) and t.device != like.device:
            raise RuntimeError(
                f"llama_fast::{operator}: expected tensors on {like.device}, got one on {t.device}"
            )


def _is(t: Optional, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> bool:
    """Whether `t` is None or has this shape and dtype."""
    return t is None or (t.shape == shape and (dtype is None or t.dtype == dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attention_backward(grad_out: torch.Tensor, grad_lse: Optional, *args: Any) -> None:
    name = "attention_backward"
    q, k, v, out, lse, lse_low, *options, mask = args
    bias, padding, slopes, sinks, cu_q, cu_k, *_ = AttentionOptions(*options)
    packed = cu_q is not None
    _together(name, q, (grad_out, grad_lse, k, v, out, lse, lse_low, bias, padding, slopes, sinks))
    _together(name, q, (cu_q, cu_k))
    _expect(name, "q", q.dim() == k.dim() == v.dim() == (3 if packed else 4))
    *rows, D = q.shape
    H, K, batch = q.shape[1], k.shape[1], q.shape[0]
    _expect(name, "k or v", k.shape[-1] == D and k.shape[:-1] == v.shape[:-1])
    _expect(name, "k", k.dtype == v.dtype == q.dtype and (H % K == 0 if K else H == 0))
    for what, t in (("grad_out", grad_out), ("out", out)):
        _expect(name, what, _is(t, (*rows, v.shape[-1]), q.dtype))
    for what, optional in (("lse", lse), ("lse_low", lse_low), ("grad_lse", grad_lse)):
        _expect(name, what, _is(optional, tuple(rows), _wide(q.dtype)))
    if cu_q is not None:
        _expect(name, "cu_seqlens_k", cu_k is not None and cu_k.shape == cu_q.shape)
        _expect(name, "cu_seqlens_q", cu_q.dim() == 1 and cu_q.numel() > 0)
        _expect(name, "bias or key_padding_mask", bias is None and padding is None)
        batch = cu_q.numel() - 1
    else:
        _expect(name, "k", k.shape[0] == batch and cu_k is None)
    if bias is not None:
        full = (*q.shape[:3], k.shape[2])
        fits = bias.dim() == 4 and all(b in (1, n) for b, n in zip(bias.shape, full, strict=True))
        _expect(name, "bias", fits)
    _expect(name, "key_padding_mask", _is(padding, (batch, k.shape[-2]), torch.bool))
    _expect(name, "alibi_slopes", _is(slopes, (1, H)) or _is(slopes, (batch, H)))
    _expect(name, "sinks", _is(sinks, (H,)))
    floating = bias is not None and bias.is_floating_point()
    for bit, there in ((8, floating), (16, slopes is not None), (32, sinks is not None)):
        _expect(name, "grad_mask", there or not mask & bit)


def _class_targets(name: str, input: torch.Tensor, target: torch.Tensor, weight: Optional) -> int:
    """Check the targets and class weights; returns the number of tokens."""
    _together(name, input, (target, weight))
    _expect(name, "input", input.dim() > 0)
    tokens = token_shape(input)
    by_index = target.dtype == torch.int64
    _expect(name, "target", by_index or target.is_floating_point())
    _expect(name, "target", target.shape == (tokens if by_index else input.shape))
    _expect(name, "weight", _is(weight, (input.shape[class_dim(input)],)))
    return tokens.numel()


def _gradient_of_lse(name: str, input: torch.Tensor, tokens: int, arguments: Sequence[Any]) -> None:
    """Check the last argument, grad_lse, which torch omits if it is None."""
    grad_lse = arguments[-1] if arguments else None
    if isinstance(grad_lse, torch.Tensor):
        _together(name, input, (grad_lse,))
        _expect(name, "grad_lse", grad_lse.numel() == tokens)


def _cross_entropy(
    input: torch.Tensor, target: torch.Tensor, weight: Optional, *others: Any
) -> None:
    _class_targets("cross_entropy", input, target, weight)


def _cross_entropy_backward(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    lse: torch.Tensor,
    target: torch.Tensor,
    *arguments: Any,
) -> None:
    name = "cross_entropy_backward"
    options, others = CrossEntropyOptions.split(arguments)
    tokens = _class_targets(name, input, target, options.weight)
    _together(name, input, (grad_loss, lse))
    _expect(name, "lse", lse.dtype == torch.float64 and lse.numel() == tokens)
    _expect(name, "grad_loss", grad_loss.numel() == (tokens if options.reduction == NONE else 1))
    _gradient_of_lse(name, input, tokens, others)


def _linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: Optional,
    grad_loss: Optional,
    *arguments: Any,
) -> None:
    name = "linear_cross_entropy"
    options, others = CrossEntropyOptions.split(arguments)
    _together(name, input, (linear_weight, target, linear_bias, options.weight, grad_loss))
    _expect(name, "input", input.dim() == 2)
    _expect(name, "linear_weight", _is(linear_weight, (linear_weight.shape[0], input.shape[1])))
    classes, tokens = (linear_weight.shape[0],), tuple(input.shape[:1])
    _expect(name, "target", _is(target, tokens, torch.int64))
    _expect(name, "linear_bias", _is(linear_bias, classes))
    _expect(name, "weight", _is(options.weight, classes))
    _expect(name, "grad_loss", _is(grad_loss, tokens if options.reduction == NONE else ()))
    _gradient_of_lse(name, input, input.shape[0], others)


def _rms_norm_backward(
    grad_y: torch.Tensor,
    grad_x: Optional,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *options: Any,
) -> None:
    name = "rms_norm_backward"
    _together(name, x, (grad_y, grad_x, weight, rstd))
    _expect(name, "weight", x.dim() > 0 and _is(weight, (x.shape[-1],)))
    _expect(name, "grad_y", _is(grad_y, tuple(x.shape)))
    _expect(name, "grad_x", _is(grad_x, tuple(x.shape)))
    _expect(name, "rstd", _is(rstd, tuple(x.shape[:-1]), _wide(x.dtype)))


def _rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *options: Any
) -> None:
    name = "rope"
    _together(name, q, (k, cos, sin))
    _expect(name, "q", q.dim() == k.dim() == 4 and q.dtype == k.dtype)
    B, _, S, D = q.shape
    _expect(name, "k", _is(k, (B, k.shape[1], S, D)))
    for what, table in (("cos", cos), ("sin", sin)):
        ok = _is(table, (S, D // 2)) or _is(table, (B, S, D // 2))
        _expect(name, what, ok and D % 2 == 0)


def _swiglu_backward(
    grad_out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, grad_mask: int
) -> None:
    name = "swiglu_backward"
    _together(name, gate, (grad_out, up))
    for what, t in (("grad_out", grad_out), ("up", up)):
        _expect(name, what, _is(t, tuple(gate.shape), gate.dtype))


# Checks by operator: of every backward, and of forwards that read by index or act as a backward.
CHECKS: dict[str, Callable[..., None]] = {
    "attention_backward": _attention_backward,
    "cross_entropy": _cross_entropy,
    "cross_entropy_inplace": _cross_entropy,
    "cross_entropy_backward": _cross_entropy_backward,
    "linear_cross_entropy": _linear_cross_entropy,
    "rms_norm_backward": _rms_norm_backward,
    "rope": _rope,
    "swiglu_backward": _swiglu_backward,
}
