"""What scoring and generating need of a model, whoever wrote it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from llama_fast.models.llama import AttentionStep


class Decoder(Protocol):
    """A model whose keys and values are kept elsewhere; :class:`LLaMA` is one.

    Attributes:
        config: with vocab_size, num_layers, num_kv_heads, head_dim and max_seq_len.
        head_weight: (V,E).
    """

    @property
    def config(self) -> Any:
        """See above."""
        ...

    @property
    def head_weight(self) -> Tensor:
        """See above."""
        ...

    def rope_group(self, length: int) -> int:
        """The same number for two lengths of a sequence that have the same rotary factors.

        0 for the short ones. Else it is a length of these factors, and a step of a sequence in that
        group is told so.
        """
        ...

    def hidden_states(self, tokens: Tensor, *, step: AttentionStep) -> Tensor:
        """What the head reads (1,N,E) after each of `tokens` (1,N)."""
        ...
