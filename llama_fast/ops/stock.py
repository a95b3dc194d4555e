"""Backend "torch": the ops by PyTorch's own functions, the baseline of tests and benchmarks.

Each is written as a PyTorch user would, in the dtype of the input. If torch's function lacks an
option, setting it raises a ValueError that names the option.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_fast.reference import AttentionDecodeOptions, AttentionOptions, CrossEntropyOptions
from llama_fast.reference.attention import NEG_INF
from llama_fast.reference.attention_decode import for_each_sequence
from llama_fast.reference.cross_entropy import NONE, REDUCTIONS


def _refuse(op: str, function: str, options: dict[str, object]) -> None:
    """Raise ValueError for the first option that is set although torch's `function` lacks it."""
    for name, value in options.items():
        if value is not None and value is not False and value != 0.0:
            raise ValueError(
                f"{name}: expected it unset for the backend 'torch' of {op} "
                f"({function} has no such option), got {value!r}"
            )


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    options: AttentionOptions,
    *,
    return_lse: bool = False,
) -> torch.Tensor:
    """Attention by `F.scaled_dot_product_attention`, which is called once per packed sequence.

    Masks, windows and ALiBi become its `attn_mask`.

    Raises:
        ValueError: softcap, sinks or return_lse is set, which torch's function lacks.
    """
    _refuse_attention(options.softcap, options.sinks, return_lse)
    if options.cu_seqlens_q is None or options.cu_seqlens_k is None:
        return _sdpa(q, k, v, options)
    q_ends, k_ends = options.cu_seqlens_q.tolist(), options.cu_seqlens_k.tolist()
    out = []
    for b in range(len(q_ends) - 1):
        rows, columns = slice(q_ends[b], q_ends[b + 1]), slice(k_ends[b], k_ends[b + 1])
        slopes = options.alibi_slopes
        if slopes is not None:
            slopes = slopes.expand(len(q_ends) - 1, -1)[b : b + 1]
        own = options._replace(alibi_slopes=slopes, cu_seqlens_q=None, cu_seqlens_k=None)
        own_q, own_k, own_v = (
            x.transpose(0, 1).unsqueeze(0) for x in (q[rows], k[columns], v[columns])
        )
        out.append(_sdpa(own_q, own_k, own_v, own).squeeze(0).transpose(0, 1))
    return torch.cat(out) if out else q.new_empty(*q.shape[:2], v.shape[-1])


def _refuse_attention(softcap: float, sinks: torch.Tensor | None, return_lse: bool) -> None:
    options: dict[str, object] = {
        "softcap": softcap,
        "sinks": None if sinks is None else "a tensor",
        "return_lse": return_lse,
    }
    _refuse("attention", "scaled_dot_product_attention", options)


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """One call of torch's function on (B,H,S,D), with every option folded into its mask."""
    (B, H, S), T = q.shape[:3], k.shape[2]
    bias, padding, slopes = options.bias, options.key_padding_mask, options.alibi_slopes
    left, right = options.window
    # torch's own causal mask is aligned top-left.
    needs_window = left >= 0 or (right >= 0 and not (options.causal and S == T))
    mask = None
    if needs_window or not all(t is None for t in (bias, padding, slopes)):
        row = torch.arange(S, device=q.device).unsqueeze(1) + (T - S)
        distance = row - torch.arange(T, device=q.device)
        mask = torch.ones(S, T, dtype=torch.bool, device=q.device)
        if left >= 0:
            mask = mask & (distance <= left)
        if right >= 0:
            mask = mask & (distance >= -right)
        if padding is not None:
            mask = mask & ~padding.view(B, 1, 1, T)
        added = None
        if bias is not None and bias.dtype == torch.bool:
            mask = mask & bias
        elif bias is not None:
            added = bias.to(q.dtype)
        if slopes is not None:
            alibi = -slopes.to(q.dtype).reshape(-1, H, 1, 1) * distance.abs()
            added = alibi if added is None else added + alibi
        if added is not None:
            mask = added.masked_fill(~mask, NEG_INF)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=options.dropout_p,
        is_causal=mask is None and options.causal,
        scale=options.scale,
        enable_gqa=k.shape[1] != H,
    )


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    options: AttentionDecodeOptions,
    *,
    return_lse: bool = False,
) -> torch.Tensor:
    """Attention of each sequence to its cached keys, one call of `attention` per sequence.

    Raises:
        ValueError: softcap, sinks or return_lse is set, which torch's function lacks.
    """
    _refuse_attention(options.softcap, options.sinks, return_lse)
    results = for_each_sequence(attention, q, k_cache, v_cache, options)
    return torch.cat(results) if results else q.new_empty(0, *q.shape[1:3], v_cache.shape[-1])


def cross_entropy(
    input: Tensor, target: Tensor, options: CrossEntropyOptions, *, return_stats: bool = False
) -> Tensor:
    """The loss by `F.cross_entropy`, in float32 or float64 like that of the other backends.

    Raises:
        ValueError: softcap, z_loss or return_stats is set, which torch's function lacks.
    """
    weight, ignore_index, reduction, label_smoothing, softcap, z_loss = options
    _refuse(
        "cross_entropy",
        "cross_entropy",
        {"softcap": softcap, "z_loss": z_loss, "return_stats": return_stats},
    )
    if weight is not None:
        weight = weight.to(input.dtype)
    loss = F.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=REDUCTIONS[reduction],
        label_smoothing=label_smoothing,
    )
    return loss if loss.dtype == torch.float64 else loss.float()


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None,
    options: CrossEntropyOptions, *,
    process_group: torch.distributed.ProcessGroup | None = None, return_stats: bool = False,
) -> Tensor:  # fmt: skip
    """The loss by `F.linear` and `F.cross_entropy`: all logits in memory, in the input's dtype.

    Raises:
        ValueError: softcap, z_loss, return_stats or process_group is set, which they lack.
    """
    group = None if process_group is None else "a process group"
    _refuse("linear_cross_entropy", "cross_entropy", {"process_group": group})
    tokens = target.numel()
    logits = F.linear(input.reshape(tokens, input.shape[-1]), linear_weight, linear_bias)
    loss = cross_entropy(logits, target.flatten(), options, return_stats=return_stats)
    return loss.view(target.shape) if options.reduction == NONE else loss


def rms_norm(
    input: Tensor, weight: Tensor, residual: Tensor | None, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """(y, x) by `F.rms_norm`, after an addition if there is a residual."""
    x = input if residual is None else input + residual
    scale = weight + offset if offset else weight
    y = F.rms_norm(x, (x.shape[-1],), scale, eps).to(input.dtype)
    return y, x


def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """x * cos + rotate_half(x) * sin, as Hugging Face models write it."""
    if cos.dim() == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        cos, sin = (x.repeat_interleave(2, dim=-1).to(q.dtype) for x in (cos, sin))
    else:
        cos, sin = (torch.cat([x, x], dim=-1).to(q.dtype) for x in (cos, sin))
    turned = [x * cos + _quarter_turn(x, interleaved) * sin for x in (q, k)]
    return turned[0], turned[1]


def _quarter_turn(x: Tensor, interleaved: bool) -> Tensor:
    """Replace every pair (a, b) of the last dimension by (-b, a)."""
    if interleaved:
        return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`F.silu` of the gate, times up."""
    return F.silu(gate) * up
