"""What to do when a run does not fit."""

from __future__ import annotations

import re

import torch

from llama_fast.models import LlamaConfig
from llama_fast.train.config import TrainConfig

# What PyTorch and C++ say in a plain RuntimeError when the CPU's memory is used up.
_SIGNS = re.compile(r"can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory")
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory was used up, on a GPU or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_SIGNS.search(str(error)))


def explain(error: BaseException, config: TrainConfig, model: LlamaConfig, step: int) -> str:
    """One line: what a run tried to hold, and which of its settings would make that less.

    Args:
        error: that :func:`is_out_of_memory`.
        config: of the run.
        model: its model.
        step: steps done.
    """
    data, options = config.data, config.optimizer
    weights = model.num_parameters()
    # Weights, gradients and two moments in float32, and the average.
    held = weights * 4 * (4 if options.ema is None else 5) / 1e9
    asked = _ASKED.search(str(error))
    advice = []
    if data.rows > 1:
        half = data.rows // 2
        times = -(-data.rows // half) * options.accumulate
        advice.append(f"data.rows {half} with optimizer.accumulate {times} (as many rows a step)")
    advice.append(f"data.seq_len below {data.seq_len}")
    if config.precision == "float32":
        advice.append("precision bfloat16")
    if config.activation_checkpointing != "full":
        advice.append("activation_checkpointing full")
    if options.ema is not None:
        advice.append("optimizer.ema null")
    advice.append("more devices and parallel.shard, context or tensor")
    return (
        f"out of memory in step {step + 1}"
        + (f", which asked for {asked[1]} more" if asked else "")
        + f": micro-batches of data.rows {data.rows} x data.seq_len {data.seq_len} = "
        f"{data.rows * data.seq_len:,} tokens in {config.precision}, and {held:.2f} GB for the "
        f"weights, gradients and moments of {weights / 1e6:.1f} M parameters. Would help: "
        f"{'; '.join(advice)}. The checkpoints in {config.out} are whole: the same command goes "
        "on from the newest"
    )
