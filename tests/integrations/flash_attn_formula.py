"""flash-attn's functions as its documentation states them: one sequence at a time, every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

exactly = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=g, dtype=torch.float64)


def offsets(lengths: tuple[int, ...]) -> torch.Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (S,H,D), k (T,K,D), v (T,K,Dv), alibi_slopes (H,) -> out (S,H,Dv), softmax_lse (H,S)."""
    S, H, D = q.shape
    T, K = k.shape[:2]
    outs, lses = [], []
    for h in range(H):
        keys, values = k[:, h // (H // K)], v[:, h // (H // K)]
        score = q[:, h] @ keys.T * (D**-0.5 if softmax_scale is None else softmax_scale)
        if softcap > 0:
            score = torch.tanh(score / softcap) * softcap
        i, j = torch.arange(S).unsqueeze(1), torch.arange(T).unsqueeze(0)
        if alibi_slopes is not None:
            score = score - alibi_slopes[h].to(score.dtype) * (i + T - S - j).abs()
        left, right = window_size
        hidden = torch.zeros(S, T, dtype=torch.bool)
        if causal:
            hidden |= j > i + T - S
        if left >= 0:
            hidden |= j < i + T - S - left
        if right >= 0:
            hidden |= j > i + T - S + right
        nothing = hidden.all(1)
        weight = score.masked_fill(hidden, -torch.inf).masked_fill(nothing[:, None], 0.0)
        lses.append(weight.logsumexp(1).masked_fill(nothing, -torch.inf))
        outs.append(weight.softmax(1).masked_fill(nothing[:, None], 0.0) @ values)
    return torch.stack(outs, 1), torch.stack(lses)


def turn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position: list[int], interleaved: bool
) -> torch.Tensor:
    """x (S,heads,D), cos and sin (R,r/2): row s turned by the angles of position[s]."""
    half = cos.shape[1]
    turned = x.clone()
    for s, place in enumerate(position):
        for d in range(half):
            a, b = (2 * d, 2 * d + 1) if interleaved else (d, d + half)
            turned[s, :, a] = x[s, :, a] * cos[place, d] - x[s, :, b] * sin[place, d]
            turned[s, :, b] = x[s, :, b] * cos[place, d] + x[s, :, a] * sin[place, d]
    return turned


@dataclass
class Sequence:
    """Where a sequence's keys are: `rows` of the cache flattened to (rows,K,D), and how many."""

    rows: list[int]
    held: int
    leftpad: int = 0


def with_cache(
    q: torch.Tensor,
    k_rows: torch.Tensor,
    v_rows: torch.Tensor,
    sequences: list[Sequence],
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    rotary_interleaved: bool = True,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: torch.Tensor | None = None,
    **options: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Changes the rows of the cache; out (B,S,H,Dv), softmax_lse (B,H,S)."""
    results = []
    for b, sequence in enumerate(sequences):
        queries, end = q[b], sequence.held
        if k is not None and v is not None:
            keys = k[b]
            N, S = keys.shape[0], queries.shape[0]
            if rotary_cos is not None and rotary_sin is not None:
                one = not causal and window_size == (-1, -1)
                at_queries = [end if one else end + i for i in range(S)]
                at_keys = [end + i for i in range(N)]
                keys = turn(keys, rotary_cos, rotary_sin, at_keys, rotary_interleaved)
                queries = turn(queries, rotary_cos, rotary_sin, at_queries, rotary_interleaved)
            for i in range(N):
                k_rows[sequence.rows[end + i]] = keys[i]
                v_rows[sequence.rows[end + i]] = v[b, i]
            end += N
        seen = sequence.rows[sequence.leftpad : end]
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[b]
        results.append(
            attend(
                queries, k_rows[seen], v_rows[seen], causal=causal, window_size=window_size,
                alibi_slopes=slopes, **options,
            )
        )  # fmt: skip
    outs, lses = zip(*results, strict=True)
    return torch.stack(outs), torch.stack(lses)
