"""What to do when a run does not fit."""

from __future__ import annotations

import re

from llama_fast.models import LlamaConfig
from llama_fast.train.config import TrainConfig

_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))")


def explain(
    error: BaseException, config: TrainConfig, model: LlamaConfig | None, step: int | None
) -> str:
    """One line: what a run tried to hold, and which of its settings would make that less.

    Args:
        error: that :func:`llama_fast._out_of_memory.is_out_of_memory` knows.
        config: of the run.
        model: its model; None: not known yet.
        step: steps done; None: the run was still being made ready.
    """
    data, options = config.data, config.optimizer
    tokens, held, advice = "", "", []
    if model is not None:
        weights = model.num_parameters()
        # Weights, gradients and two moments in float32, and the average.
        size = weights * 4 * (4 if options.ema_decay is None else 5) / 1e9
        held = (
            f"{size:.2f} GB for the weights, gradients and moments of {weights / 1e6:.1f} M "
            "parameters"
        )
    if step is None:
        when = "in the making of the model and its optimizer"
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
    asked = _ASKED.search(str(error))
    whole = f". The checkpoints in {config.out} are whole: the same command goes on from the newest"
    what = ", and ".join(part for part in (tokens, held) if part)
    return (
        f"out of memory {when}"
        + (f", which asked for {asked[1]} more" if asked else "")
        + (f": {what}" if what else "")
        + f". Would help: {'; '.join(advice)}"
        + ("" if step is None else whole)
    )


def _smaller_steps(config: TrainConfig) -> list[str]:
    """Settings with which a step takes less."""
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
