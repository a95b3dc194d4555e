"""Runs a model of transformers, patched or not, in the scorer and the generation engine.

Its attention layers get their implementation from transformers' attention interface. During a step
that is one that reads and writes the pages of the step; after the call it is the one from before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from llama_fast.integrations.transformers.rotary_length import RotaryLength
from llama_fast.models.llama import AttentionStep

NAME = "llama_fast_step"


class TransformersDecoder:
    """See :class:`llama_fast.models.decoder.Decoder`.

    Args:
        model: a causal language model whose layers have no state but keys and values.

    Raises:
        TypeError: `model` is not a model of transformers.
        ValueError: layers that are not attention or do not use transformers' attention interface,
            or logits that are not the product with the head.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"model: expected a LLaMA or a model of transformers, got {type(model).__name__}"
            )
        self.model = model.eval()
        self._base = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        c = model.config.get_text_config(decoder=True)
        head = model.get_output_embeddings()
        kinds = set(getattr(c, "layer_types", None) or ())
        plain = ("full_attention", "sliding_attention")
        for problem, found in (
            ("attention through transformers' interface",
             not model._can_set_attn_implementation() and "attention of its own"),
            ("layers of attention alone", ", ".join(sorted(kinds.difference(plain)))),
            ("logits that are a product with the head",
             getattr(head, "bias", None) is not None and "a bias"),
            ("logits that are a product with the head",
             getattr(c, "final_logit_softcapping", None) is not None and "final_logit_softcapping"),
            ("logits that are a product with the head",
             getattr(c, "logit_scale", None) is not None and "logit_scale"),
            ("logits that are a product with the head",
             getattr(c, "logits_scaling", 1) != 1 and "logits_scaling"),
            ("a decoder alone", model.config.is_encoder_decoder and "an encoder and a decoder"),
        ):  # fmt: skip
            if found:
                raise ValueError(f"model: expected {problem}, got {found} ({type(model).__name__})")
        self._rotary = RotaryLength(model)
        self.head_weight: Tensor = head.weight.detach()
        heads = c.num_attention_heads
        self.config = SimpleNamespace(
            vocab_size=self.head_weight.shape[0],
            num_layers=c.num_hidden_layers,
            num_kv_heads=getattr(c, "num_key_value_heads", None) or heads,
            head_dim=getattr(c, "head_dim", None) or c.hidden_size // heads,
            max_seq_len=c.max_position_embeddings,
        )

    def rope_group(self, length: int) -> int:
        """See :class:`llama_fast.models.decoder.Decoder`."""
        return self._rotary.group(length)

    def hidden_states(self, tokens: Tensor, *, step: AttentionStep) -> Tensor:
        """The head's input (1,N,E) after each of `tokens` (1,N)."""
        with self._attending(step), self._rotary.fixed(step.length):
            found = self._base(
                input_ids=tokens,
                position_ids=step.positions.unsqueeze(0),
                use_cache=False,
                return_dict=True,
                llama_fast_step=step,
            )
        hidden: Tensor = found.last_hidden_state
        return hidden

    @contextlib.contextmanager
    def _attending(self, step: AttentionStep) -> Iterator[None]:
        """Select `attention_function` in all layers inside the block."""
        configs = {
            id(config): config
            for module in self.model.modules()
            if (config := getattr(module, "config", None)) is not None
            and hasattr(config, "_attn_implementation_internal")
        }
        before = {key: config._attn_implementation_internal for key, config in configs.items()}
        try:
            for config in configs.values():
                config._attn_implementation_internal = NAME
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation_internal = before[key]


def attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    llama_fast_step: AttentionStep | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of a layer over the cache of a step: (1,H,N,D), (1,K,N,D) to (1,N,H,D)."""
    if llama_fast_step is None:
        raise ValueError(
            f"model: expected {type(module).__name__} to pass unknown arguments to its attention "
            "function, it did not"
        )
    arguments = {"scale": scaling, "softcap": softcap, "sinks": s_aux}
    if sliding_window is not None:
        arguments["window"] = sliding_window
    layer: int = module.layer_idx
    out = llama_fast_step.attend(
        layer, query, key, value, **{k: v for k, v in arguments.items() if v is not None}
    )
    return out.transpose(1, 2), None


def _no_mask(*args: Any, **options: Any) -> None:
    """No mask: the step determines which keys each query sees."""


AttentionInterface.register(NAME, attention_function)
AttentionMaskInterface.register(NAME, _no_mask)
