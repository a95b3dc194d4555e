"""The Llama model in one file.

    tokens (B,S) -> embedding (B,S,E) -> N blocks (B,S,E) -> RMSNorm -> head -> logits (B,S,V)
    block:   x = x + attention(rms_norm(x));   x = x + feed_forward(rms_norm(x))

Touvron et al. 2023, "Llama 2" (arXiv:2307.09288); Llama 3: arXiv:2407.21783. Letters: B batch,
S new tokens, T tokens seen so far (S without a cache), E width, H query heads, K key-value heads,
D head size, V vocabulary. The kernels are in ``llama_fast.ops``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_fast.ops import (
    Ring,
    attention,
    linear_cross_entropy,
    ring_attention,
    rms_norm,
    rope,
    swiglu,
)

from ._checks import check_inputs, check_packed
from .config import LlamaConfig
from .kv_cache import KVCache


def rope_frequencies(config: LlamaConfig, device: torch.device | None = None) -> Tensor:
    """RoPE's angular frequency of each pair of a head's elements: (D/2,), float64, in rad/token.

    theta^(-2d/D) for pair d (Su et al. 2021, arXiv:2104.09864), with the scaling of ``config``.
    """
    D = config.head_dim
    exponents = torch.arange(0, D, 2, dtype=torch.float64, device=device) / D
    frequencies = config.rope_theta**-exponents
    if config.rope_factors is not None:
        factors = torch.tensor(config.rope_factors, dtype=torch.float64, device=device)
        frequencies = frequencies / factors
    if (scaling := config.rope_scaling) is not None:
        # A pair with many turns within the original context keeps its frequency (keep = 1); the
        # frequency of one with few turns is divided by the factor (keep = 0).
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (keep + (1 - keep) / scaling.factor)
    return frequencies


class AttentionStep(Protocol):
    """New tokens of sequences with cached keys and values; see ``llama_fast.generation``.

    Attributes:
        positions: (S,) int64, position of each new token in its sequence.
        length: final length of the sequences, for models whose rotary factors depend on it (those
            of :class:`LLaMA` do not); 0 for short sequences.
    """

    positions: Tensor
    length: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Attention (1,H,S,D) of q (1,H,S,D) over cached keys and values and new k, v (1,K,S,D).

        `options` are scale, softcap, window and sinks, as in ``llama_fast.attention``.
        """
        ...


class Context(NamedTuple):
    """The inputs that every block takes besides x."""

    cos: Tensor  # (S, D/2)
    sin: Tensor  # (S, D/2)
    bias: Tensor | None  # (S,T): bool, True = visible, or float, added to the scores
    key_padding_mask: Tensor | None  # (B,T) bool, True = padding
    cache: KVCache | None
    cu_seqlens: Tensor | None  # (sequences + 1,): where each sequence of a packed row begins
    ring: Ring | None = None  # distributes the packed row over ranks
    step: AttentionStep | None = None  # computes attention in place of all of the above


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return rms_norm(x, self.weight, self.eps)

    def add_and_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual) in one pass over memory."""
        return rms_norm(x, self.weight, self.eps, residual=residual)


class Attention(nn.Module):
    """Causal self-attention with RoPE; each group of H/K query heads shares a key-value head."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        E, H, K, D = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.layer, self.head_dim, self.p_dropout = layer, D, config.p_dropout
        self.q_proj = nn.Linear(E, H * D, bias=False)
        self.k_proj = nn.Linear(E, K * D, bias=False)
        self.v_proj = nn.Linear(E, K * D, bias=False)
        self.o_proj = nn.Linear(H * D, E, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B,S,E) -> (B,S,E)."""
        # (B,S,H*D) -> (B,H,S,D), a view: the ops take any strides
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rope(q, k, context.cos, context.sin)
        if context.step is not None:
            return self.o_proj(context.step.attend(self.layer, q, k, v).transpose(1, 2).flatten(-2))
        if context.cache is not None:
            k, v = context.cache.append(self.layer, k, v)  # (B,K,T,D)
        dropout_p = self.p_dropout if self.training else 0.0
        if context.cu_seqlens is not None:
            q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))  # (N,H,D)
            if context.ring is not None:
                out = ring_attention(q, k, v, context.ring)
            else:
                offsets = context.cu_seqlens
                out = attention(q, k, v, causal=True, cu_seqlens_q=offsets, dropout_p=dropout_p)
            return self.o_proj(out.flatten(-2).unsqueeze(0))
        out = attention(  # (B,H,S,D)
            q,
            k,
            v,
            causal=True,
            bias=context.bias,
            key_padding_mask=context.key_padding_mask,
            dropout_p=dropout_p,
        )
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        E, hidden = config.embed_dim, config.ffn_dim
        self.gate_proj = nn.Linear(E, hidden, bias=False)
        self.up_proj = nn.Linear(E, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, E, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,S,E) -> (B,S,E)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normalised x and adds its output to x."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.embed_dim, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.embed_dim, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.p_dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B,S,E) -> (B,S,E)."""
        update = self.dropout(self.attention(self.attention_norm(x), context))
        # Under autocast `update` and `normed` have 16 bits; x keeps the dtype of the embedding.
        normed, x = self.feed_forward_norm.add_and_norm(update, residual=x)
        return x + self.dropout(self.feed_forward(normed))


class LLaMA(nn.Module):
    """A Llama language model: logits of the next token at every position.

    Takes a :class:`LlamaConfig`, or its fields one by one:
    ``LLaMA(vocab_size, embed_dim, num_heads, num_layers, p_dropout, ...)``.

    Attention is softmax(Q K^T / sqrt(D) + mask) V, causal and with rotary positions. The loss is
    softmax cross-entropy between the logits and the next token, averaged over the targets that are
    not -100.

    Attributes:
        quantization: the type of the weights in the file from which they were loaded, such as
            "Q4_1"; None if they were not quantized.

    Example:
        >>> model = LLaMA(LlamaConfig.preset("debug"))
        >>> model = LLaMA(vocab_size=256, embed_dim=64, num_heads=4, num_layers=2, p_dropout=0.1)
        >>> logits = model(torch.zeros(1, 8, dtype=torch.int64))  # (1, 8, 256)
    """

    quantization: str | None = None

    def __init__(self, *args: LlamaConfig | int | float, **options: object) -> None:
        super().__init__()
        if args and isinstance(args[0], LlamaConfig):
            if len(args) > 1 or options:
                raise TypeError("LLaMA: expected a LlamaConfig alone, got more arguments beside it")
            config = args[0]
        else:
            config = LlamaConfig(*args, **options)  # type: ignore[arg-type]
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.embed_dim, config.rms_norm_eps)
        self.head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        )
        # If set, called as run_block(block, x, context) for each block, by activation
        # checkpointing.
        self.run_block: Callable[[Block, Tensor, Context], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from a normal distribution of std 0.02; set those of norms to 1.

        The two projections that write into the residual stream get 0.02 / sqrt(2 N), so that its
        variance does not grow with the number of layers N (GPT-2's rule).
        """
        residual_std = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, weight in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(weight)
            else:
                writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=residual_std if writes_residual else 0.02)

    def rope_group(self, length: int) -> int:
        """Return 0: the rotary factors do not depend on the length."""
        return 0

    @property
    def head_weight(self) -> Tensor:
        """Weight (V,E) of the output head; with tied embeddings, that of the embedding."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Tensor,
        *,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        cache: KVCache | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Logits (B,S,V) of the token that follows each of ``tokens`` (B,S).

        The arguments are those of :meth:`hidden_states`.
        """
        hidden = self.hidden_states(
            tokens,
            src_mask=src_mask,
            src_key_padding_mask=src_key_padding_mask,
            cache=cache,
            cu_seqlens=cu_seqlens,
        )
        return F.linear(hidden, self.head_weight)

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        cache: KVCache | None = None,
        cu_seqlens: Tensor | None = None,
        ring: Ring | None = None,
        step: AttentionStep | None = None,
    ) -> Tensor:
        """The normalised hidden states (B,S,E) that the head reads.

        Attention is causal. The masks hide further keys, in the convention of
        ``torch.nn.Transformer``.

        Args:
            tokens: (B,S) int64 or int32 ids.
            src_mask: (S,T) bool, True = hidden, or float, added to the attention scores.
            src_key_padding_mask: (B,T) bool, True = padding, hidden from every query.
            cache: keys and values of earlier tokens (T = cache.length + S). Those of `tokens` are
                appended in place. Requires ``torch.no_grad()``.
            cu_seqlens: (sequences + 1,) int32 or int64, from 0 to S: offsets of the packed
                sequences in `tokens` (1,S), which do not attend to each other. Cannot be combined
                with masks or a cache.
            ring: context parallelism over the ranks of a ring made from `cu_seqlens`. `tokens` are
                the same on every rank; the result (1,n,E) is that of the n tokens
                `ring.positions`. Requires a model without dropout.
            step: a step of the generation engine, whose new tokens are `tokens` (1,S). Cannot be
                combined with the arguments above. Requires ``torch.no_grad()``.

        Raises:
            TypeError: an argument has the wrong dtype.
            ValueError: a shape is wrong, there are more than max_seq_len or cache.max_len tokens,
                or arguments are combined that exclude each other.
            IndexError: a token id is outside [0, V) (checked on the CPU only).
        """
        start = 0 if cache is None else cache.length
        if cu_seqlens is not None:
            if not (src_mask is src_key_padding_mask is cache is None):
                raise ValueError("cu_seqlens: expected no mask and no cache beside it")
            check_packed(self.config, tokens, cu_seqlens)
        packed = cu_seqlens is not None or step is not None
        check_inputs(self.config, tokens, src_mask, src_key_padding_mask, cache, packed)
        # Angles of late positions need float64; cos and sin are then rounded to the ops' dtype.
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        if ring is not None:
            if cu_seqlens is None or self.config.p_dropout > 0:
                raise ValueError("ring: expected cu_seqlens beside it, and a model without dropout")
            positions, tokens = ring.positions, tokens[:, ring.positions]
        if step is not None:
            positions = step.positions
        x = self.embedding(tokens)
        if cu_seqlens is not None:
            owner = torch.searchsorted(cu_seqlens, positions.to(cu_seqlens.dtype), right=True) - 1
            positions = positions - cu_seqlens[owner]
        angles = positions.unsqueeze(1) * rope_frequencies(self.config, x.device)  # (S, D/2)
        table_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        bias = src_mask
        if src_mask is not None and src_mask.dtype == torch.bool:
            bias = ~src_mask
        context = Context(
            cos=angles.cos().to(table_dtype),
            sin=angles.sin().to(table_dtype),
            bias=bias,
            key_padding_mask=src_key_padding_mask,
            cache=cache,
            cu_seqlens=cu_seqlens,
            ring=ring,
            step=step,
        )
        for block in self.layers:
            x = block(x, context) if self.run_block is None else self.run_block(block, x, context)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(x)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        ring: Ring | None = None,
        **options: Any,
    ) -> Any:
        """Softmax cross-entropy of ``targets`` (B,S) given ``tokens`` (B,S), by default the mean.

        ``targets[b, s]`` is the token that follows ``tokens[b, s]``; targets of -100 are left out.
        With ``shift=True`` pass the tokens themselves as targets. ``options`` are the keyword
        arguments of ``llama_fast.linear_cross_entropy``, which never stores the (B,S,V) logits.
        ``cu_seqlens`` and ``ring`` are those of :meth:`hidden_states`; with a ring the loss is that
        of this rank's tokens. If the rows of the head are sharded over a tensor-parallel group, the
        softmax is computed across its ranks.
        """
        hidden = self.hidden_states(tokens, cu_seqlens=cu_seqlens, ring=ring)
        if ring is not None:
            targets = targets[:, ring.positions]
        weight = self.head_weight
        if (mesh := getattr(weight, "device_mesh", None)) is not None:  # a DTensor
            options["process_group"], weight = mesh.get_group(), weight.to_local()
        return linear_cross_entropy(hidden, weight, targets, **options)
