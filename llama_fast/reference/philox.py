"""Philox4x32-10, the counter-based random generator behind attention's dropout.

Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Word ``n``
of the stream is a function of (key, counter) alone, so a kernel can compute the bits of any element
in any order, and recompute them in the backward pass instead of storing them.
"""

import torch

MASK32 = 0xFFFFFFFF
MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
KEY_STEP = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
ROUNDS = 10


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a * b for 32-bit unsigned a and b held in int64."""
    # In two halves of b, so that no product exceeds 2**63: torch has no 64-bit unsigned multiply.
    low_half, high_half = a * (b & 0xFFFF), a * (b >> 16)
    high = (high_half + (low_half >> 16)) >> 16
    low = (low_half + ((high_half & 0xFFFF) << 16)) & MASK32
    return high, low


def philox4x32(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four 32-bit random words (in int64 tensors) for each counter; all arguments broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIER[0], c0)
        high1, low1 = _multiply(MULTIPLIER[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEP[0]) & MASK32, (k1 + KEY_STEP[1]) & MASK32
    return c0, c1, c2, c3


def attention_keep_mask(
    seed: torch.Tensor,
    dropout_p: float,
    stream: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
) -> torch.Tensor:
    """A bool mask, True where attention keeps the probability of (stream, query, key).

    ``seed`` is an int64 tensor with one element. ``stream`` (batch index * H + head), ``query``
    and ``key`` (positions i and j) are int64 tensors that broadcast to the mask's shape. The
    counter is (j // 4, i, stream, 0) and its word number j % 4 is used.
    """
    words = philox4x32(
        (key // 4, query, stream, torch.zeros_like(key)),
        (seed & MASK32, (seed >> 32) & MASK32),
    )
    lane = key % 4
    word = torch.where(
        lane < 2,
        torch.where(lane == 0, words[0], words[1]),
        torch.where(lane == 2, words[2], words[3]),
    )
    return word >= int(dropout_p * 2**32)
