"""The amount of memory that the key-value cache may take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def max_pages(config: Any, batch: int, page_size: int, weight: Tensor) -> int:
    """The number of pages for `batch` sequences of max_seq_len tokens, within half the free memory.

    It is always enough for one sequence.

    Args:
        config: the model's configuration.
        batch: number of sequences.
        page_size: tokens per page.
        weight: any weight of the model; gives dtype and device.
    """
    per_sequence = -(-config.max_seq_len // page_size)
    elements = 2 * config.num_layers * page_size * config.num_kv_heads * config.head_dim
    free = free_memory(weight.device)
    room = batch * per_sequence if free is None else free // 2 // (elements * weight.element_size())
    return max(per_sequence, min(batch * per_sequence, room))


def free_memory(device: torch.device) -> int | None:
    """Free bytes on `device`, or None if the system does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
