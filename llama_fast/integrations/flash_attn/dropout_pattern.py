"""flash-attn's S_dmask: the attention probabilities, negative where dropout removed them."""

from __future__ import annotations

from typing import Any

import torch

from llama_fast.ops.attention import attention


class DropoutPattern:
    """Recomputes the attention weights and the dropout of a call; create it just before that call.

    With an identity matrix as values, an attention call returns its weights. With the same state of
    the random generators, its dropout is the same.
    """

    def __init__(self, device: torch.device, dropout_p: float) -> None:
        self.dropout_p = dropout_p
        if dropout_p == 0:
            return
        self.devices = [device] if device.type == "cuda" else []
        self.state = torch.get_rng_state()
        self.device_states = [torch.cuda.get_rng_state(d) for d in self.devices]

    def dense(self, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        """S_dmask (B,H,S,T) for q (B,H,S,D) and k (B,K,T,D); empty without dropout."""
        if self.dropout_p == 0:
            return q.new_empty(0)
        B, K, T = k.shape[:3]
        values = torch.eye(T, dtype=q.dtype, device=q.device).expand(B, K, T, T)
        return self._signed(q, k, values, options)

    def varlen(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        max_lengths: tuple[int, int],
        options: dict[str, Any],
    ) -> torch.Tensor:
        """S_dmask (B,H,S,T) for packed q (N,H,D) and k (M,K,D); zero past a sequence's end.

        `max_lengths` is (S, T).
        """
        if self.dropout_p == 0:
            return q.new_empty(0)
        cu_q, cu_k = options["cu_seqlens_q"], options["cu_seqlens_k"]
        _, column = _positions(cu_k, k.shape[0])
        values = torch.zeros(k.shape[0], max_lengths[1], dtype=q.dtype, device=q.device)
        values.scatter_(1, column.unsqueeze(1), 1)
        values = values.unsqueeze(1).expand(-1, k.shape[1], -1)
        signed = self._signed(q, k, values, options)
        result = q.new_zeros(cu_q.numel() - 1, q.shape[1], *max_lengths)
        sequence, row = _positions(cu_q, q.shape[0])
        result[sequence, :, row] = signed
        return result

    @torch.no_grad()
    def _signed(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        values: torch.Tensor,
        options: dict[str, Any],
    ) -> torch.Tensor:
        probabilities = attention(q, k, values, **options)
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.state)
            for device, state in zip(self.devices, self.device_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            kept = attention(q, k, values, dropout_p=self.dropout_p, **options) != 0
        return torch.where(kept, probabilities, -probabilities)


def _positions(offsets: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For every row of packed sequences, its sequence and its position in that sequence."""
    row = torch.arange(rows, device=offsets.device)
    offsets = offsets.long()
    sequence = torch.searchsorted(offsets[1:], row, right=True)
    return sequence, row - offsets[sequence]
