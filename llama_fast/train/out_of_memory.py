"""Advice for a run that is out of memory."""

from __future__ import annotations

import re

from llama_fast.models import LlamaConfig
from llama_fast.train.config import TrainConfig

_REQUESTED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))")


def explain(
    error: BaseException, config: TrainConfig, model: LlamaConfig | None, step: int | None
) -> str:
    """One line that says what needed memory, and which settings would reduce it.

    Args:
        error: an error for which :func:`llama_fast._out_of_memory.is_out_of_memory` is true.
        config: the run's configuration.
        model: architecture of the model; None if it is not known yet.
        step: number of steps done; None if the model or its optimizer was being created.
    """
    data, options = config.data, config.optimizer
    tokens, state, advice = "", "", []
    if model is not None:
        weights = model.num_parameters()
        # Weights, gradients and two moments in float32, and the average.
        size = weights * 4 * (4 if options.ema_decay is None else 5) / 1e9
        state = (
            f"{size:.2f} GB for the weights, gradients and moments of {weights / 1e6:.1f} M "
            "parameters"
        )
    if step is None:
        when = "while creating the model and its optimizer"
        advice.append("a smaller model (model.preset, model.overrides)")
    else:
        when = f"in step {step + 1}"
        tokens = (
            f"micro-batches of data.micro_batch_size {data.micro_batch_size} x data.seq_len "
            f"{data.seq_len} = {data.micro_batch_size * data.seq_len:,} tokens in "
            f"{config.precision}"
        )
        advice += _smaller_steps(config)
    if options.ema_decay is not None:
        advice.append("optimizer.ema_decay null")
    advice.append("more devices and parallel.shard, context or tensor")
    requested = _REQUESTED.search(str(error))
    resume = f". The checkpoints in {config.out} are intact: the same command resumes from the last"
    contents = ", and ".join(part for part in (tokens, state) if part)
    return (
        f"out of memory {when}"
        + (f", which requested {requested[1]}" if requested else "")
        + (f": {contents}" if contents else "")
        + f". Use less with: {'; '.join(advice)}"
        + ("" if step is None else resume)
    )


def _smaller_steps(config: TrainConfig) -> list[str]:
    """Settings with which a step needs less memory."""
    data, advice = config.data, []
    if data.micro_batch_size > 1:
        half = data.micro_batch_size // 2
        times = -(-data.micro_batch_size // half) * config.optimizer.gradient_accumulation_steps
        advice.append(
            f"data.micro_batch_size {half} with optimizer.gradient_accumulation_steps {times} "
            "(same batch size)"
        )
    advice.append(f"data.seq_len below {data.seq_len}")
    if config.precision == "float32":
        advice.append("precision bfloat16")
    if config.activation_checkpointing != "full":
        advice.append("activation_checkpointing full")
    return advice
