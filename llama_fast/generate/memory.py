"""How much memory keys and values may take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def most_pages(config: Any, batch: int, page: int, weight: Tensor) -> int:
    """Pages for `batch` full sequences, or what half the free memory holds; at least one sequence.

    Args:
        config: of the model.
        batch: sequences.
        page: tokens of a page.
        weight: a weight of the model, for its dtype and device.
    """
    one = -(-config.max_seq_len // page)
    numbers = 2 * config.num_layers * page * config.num_kv_heads * config.head_dim
    free = free_memory(weight.device)
    room = batch * one if free is None else free // 2 // (numbers * weight.element_size())
    return max(one, min(batch * one, room))


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on `device`, or None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
