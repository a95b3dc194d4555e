"""`attn_implementation="llama_fast"`: our attention behind transformers' attention interface."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import logging

from llama_fast.integrations import module_state
from llama_fast.integrations.transformers.masks import Mask, mask_function
from llama_fast.ops.attention import attention

NAME = "llama_fast"
_logger = logging.get_logger(__name__)
# Tensors that attention layers pass to every implementation and that ours does not need.
_IGNORED_TENSORS = {
    "position_ids", "cache_position", "position_embeddings", "cu_seq_lens_q", "cu_seq_lens_k",
    "max_length_q", "max_length_k", "seq_idx", "encoder_hidden_states", "inputs_embeds",
    "input_ids", "num_items_in_batch", "attention_mask", "token_type_ids", "labels",
    "shift_labels",
}  # fmt: skip


def register() -> None:
    """Register the implementation with transformers; no model changes by this alone."""
    AttentionInterface.register(NAME, attention_function)
    AttentionMaskInterface.register(NAME, mask_function)


def attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a layer of a transformers model.

    Args:
        module: the layer.
        query: (B,H,S,D).
        key: (B,K,T,D).
        value: (B,K,T,Dv).
        attention_mask: a mask of our mask function; a tensor broadcastable to (B,H,S,T), bool (True
            where a query may see a key) or float (added to the scores); a tensor (B,T), nonzero
            where a key is visible; or None.
        dropout: probability of dropping a weight.
        scaling: multiplies q . k; default 1 / sqrt(D).
        is_causal: whether queries see no later keys; used without a mask only. Default: the
            module's attribute of that name, else True.
        softcap: c > 0 turns each scaled product x into c * tanh(x / c).
        s_aux: (H,) sinks, one more logit per head that carries no value.
        position_bias: broadcastable to (B,H,S,T), added to the scaled products.
        sliding_window: not used, because the mask contains it.
        **options: other arguments of the layers.

    Returns:
        (B,S,H,Dv), and None in place of the weights, which are not computed; with
        `output_attentions` a warning says so.

    Raises:
        TypeError: a mask or bias of integers.
        ValueError: a tensor among `options` that may change the result, or a paged cache.
    """
    _check(module, options)
    for name, t in (("attention_mask", attention_mask), ("position_bias", position_bias)):
        _check_mask(name, t, query, key)
    if not all(map(module_state.is_plain, (query, key, value))):
        return _sdpa(
            module, query, key, value, attention_mask, softcap=softcap, s_aux=s_aux,
            dropout=dropout, scaling=scaling, is_causal=is_causal, position_bias=position_bias,
        )  # fmt: skip
    B, _, S, _ = query.shape
    T = key.shape[2]
    if key.dtype != query.dtype or value.dtype != query.dtype:  # the cache has another dtype
        key, value = key.to(query.dtype), value.to(query.dtype)
    arguments: dict[str, Any] = {"scale": scaling, "softcap": softcap, "dropout_p": dropout}
    if s_aux is not None:
        arguments["sinks"] = s_aux
    bias = position_bias
    if isinstance(attention_mask, Mask):
        mask = attention_mask
        if mask.keys > T:
            raise ValueError(
                f"attention_mask: expected a mask for {T} keys (those of `key`), got one for "
                f"{mask.keys}"
            )
        if mask.cu_seqlens is not None and position_bias is not None:
            attention_mask = mask.dense()  # packed documents take no bias
        else:
            if mask.cu_seqlens is not None:
                return _packed(query, key, value, mask, arguments), None
            key, value = key[:, :, : mask.keys], value[:, :, : mask.keys]
            bias = None if bias is None else bias[..., : mask.keys]
            arguments |= {"causal": mask.causal, "key_padding_mask": mask.padding}
            # window[1] keys ahead of the query are allowed by the window and masked by causal.
            arguments["window"] = mask.window
            attention_mask = None
    elif attention_mask is None:
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        if is_causal and S > 1:
            # Aligned to the first key, as "sdpa" does. Keys beyond S are unused static cache.
            key, value = key[:, :, :S], value[:, :, :S]
            bias = None if bias is None else bias[..., :S]
            arguments["causal"] = True
    if isinstance(attention_mask, torch.Tensor):
        if attention_mask.dim() == 2 and attention_mask.shape == (B, T):
            arguments["key_padding_mask"] = attention_mask == 0
        else:
            bias = _with_bias(attention_mask[..., :T], bias)
    if bias is not None and bias.dtype not in (torch.bool, query.dtype):
        bias = bias.to(query.dtype)
    out = attention(query, key, value, bias=bias, **arguments)
    return out.transpose(1, 2), None


def _check(module: torch.nn.Module, options: dict[str, Any]) -> None:
    """Raise ValueError for an argument whose effect would be lost."""
    for name, value in options.items():
        if name == "cache" and value is not None:
            raise ValueError(
                f"attn_implementation: expected one for a paged cache (continuous batching), got "
                f"'{NAME}', which has none; use 'sdpa'"
            )
        if isinstance(value, torch.Tensor) and name not in _IGNORED_TENSORS:
            raise ValueError(
                f"attn_implementation: expected one that knows the argument {name!r} of "
                f"{type(module).__name__}, got '{NAME}'; leave attention out of the patch"
            )
    if options.get("output_attentions"):
        _logger.warning_once(
            f"attn_implementation '{NAME}' has no attention weights: output_attentions=True gives "
            "none. Load the model with attn_implementation='eager', then llama_fast.patch(model)."
        )


def _check_mask(name: str, mask: Any, query: torch.Tensor, key: torch.Tensor) -> None:
    """Raise TypeError for integer masks, as torch does; they may be meant as flags."""
    if not isinstance(mask, torch.Tensor) or mask.is_floating_point() or mask.dtype == torch.bool:
        return
    if name != "attention_mask" or mask.shape != (query.shape[0], key.shape[2]):
        raise TypeError(
            f"{name}: expected bool (True takes part) or a floating-point dtype (added to the "
            f"scores), got {mask.dtype}"
        )


def _sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    softcap: float | None,
    s_aux: torch.Tensor | None,
    **options: Any,
) -> Any:
    """torch's attention, for DTensors and other tensors that our kernels cannot read."""
    if softcap is not None or s_aux is not None:
        raise ValueError(
            f"attn_implementation: expected one that knows {type(query).__name__} and softcap or "
            f"sinks, got '{NAME}'; leave attention out of the patch"
        )
    if isinstance(attention_mask, Mask):
        attention_mask = attention_mask.dense()
    options = {name: option for name, option in options.items() if option is not None}
    # The only one of torch's CPU implementations that supports DTensors.
    backend = sdpa_kernel(SDPBackend.MATH) if query.device.type == "cpu" else nullcontext()
    with backend:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, arguments: Any
) -> torch.Tensor:
    """Attention inside the documents that are packed into the rows."""
    B, _, S, _ = query.shape
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    out = attention(
        q,
        k,
        v,
        causal=mask.causal,
        window=mask.window,
        cu_seqlens_q=mask.cu_seqlens,
        cu_seqlens_k=mask.cu_seqlens,
        **arguments,
    )
    return out.unflatten(0, (B, S))


def _with_bias(mask: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Mask and bias as one tensor."""
    if bias is None:
        return mask
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return bias + mask
