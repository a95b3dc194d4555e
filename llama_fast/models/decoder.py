"""The interface through which scoring and generation use a model, ours or another."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from llama_fast.models.llama import AttentionStep


class Decoder(Protocol):
    """A model with an external key-value cache; :class:`LLaMA` is one.

    Attributes:
        config: an object with vocab_size, num_layers, num_kv_heads, head_dim and max_seq_len.
        head_weight: (V,E), weight of the output head.
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
        """A number that is equal for sequence lengths with the same rotary factors.

        It is 0 for short sequences, else a length with these factors, to be passed as
        :attr:`AttentionStep.length`.
        """
        ...

    def hidden_states(self, tokens: Tensor, *, step: AttentionStep) -> Tensor:
        """The normalised hidden states (1,N,E) of `tokens` (1,N)."""
        ...
