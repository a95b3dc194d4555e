"""Generation for a batch of prompts of equal length: (B,S) in, (B,S + n) out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from llama_fast.models import KVCache, LLaMA

from .sampling import SamplingOptions, next_tokens


def generate(model: LLaMA, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """Continue each row of ``tokens``; :class:`Engine` serves prompts of different lengths.

    Args:
        model: the model; call ``model.eval()`` first, as dropout is active in training mode.
        tokens: (B,S) ids of prompts of the same length S >= 1.
        max_new_tokens: largest number of tokens to add.
        **options: the keyword arguments of :func:`stream`.

    Returns:
        (B, S + n) int64, prompts included; n is max_new_tokens, or less if all rows stop earlier.

    Raises:
        ValueError: the prompts are empty, a number is outside its range, or S + max_new_tokens
            exceeds the model's max_seq_len.

    Example:
        >>> model, tokenizer = llama_fast.models.load("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> prompt = torch.tensor([tokenizer.encode("The capital of France is")])
        >>> tokenizer.decode(generate(model, prompt, 2)[0].tolist())
        'The capital of France is Paris.'
    """
    new = [step.unsqueeze(1) for step in stream(model, tokens, max_new_tokens, **options)]
    return torch.cat([tokens.long(), *new], dim=1)


def stream(
    model: LLaMA,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    **sampling: Any,
) -> Iterator[Tensor]:
    """Yield the new tokens of :func:`generate`, a (B,) int64 tensor per step.

    Args:
        model, tokens, max_new_tokens: as for :func:`generate`.
        stop_ids: a row ends with the first of these ids, and is padded with it while other rows
            continue.
        generator: generator of the random numbers; None: a new one with the given `seed`.
        **sampling: fields of :class:`SamplingOptions`, such as ``temperature=0.8``.
    """
    B, S = tokens.shape
    if S == 0:
        raise ValueError(f"tokens: expected at least one token a row, got shape {(B, S)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: expected a number >= 0, got {max_new_tokens}")
    options = SamplingOptions(**sampling)
    if S + max_new_tokens > model.config.max_seq_len:
        raise ValueError(
            f"max_new_tokens: expected at most {model.config.max_seq_len - S} after a prompt of "
            f"{S} (max_seq_len = {model.config.max_seq_len}), got {max_new_tokens}"
        )
    weight = model.head_weight
    if generator is None and options.seed is not None:
        generator = torch.Generator(weight.device).manual_seed(options.seed)
    cache = KVCache(model.config, B, S + max_new_tokens, weight.dtype, weight.device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=tokens.device)
    stopped = torch.zeros(B, dtype=torch.bool, device=tokens.device)
    seen = tokens.long()
    last, unseen = seen[:, -1], tokens
    for _ in range(max_new_tokens):
        with torch.no_grad():
            hidden = model.hidden_states(unseen, cache=cache)[:, -1]  # (B,E)
            logits = torch.nn.functional.linear(hidden, weight)  # (B,V)
            last = torch.where(stopped, last, next_tokens(logits, options, seen, generator))
        stopped = stopped | torch.isin(last, stops)
        yield last
        if stopped.all():
            return
        unseen = last.unsqueeze(1)
        if options.repetition_penalty != 1:
            seen = torch.cat([seen, unseen], dim=1)
