"""Greedy decoding and sampling."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from llama_fast.models import KVCache, LLaMA


def generate(
    model: LLaMA,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue each row of ``tokens``.

    Args:
        model: in training mode, its dropout is active here too: call ``model.eval()`` before.
        tokens: (B,S) prompts of one length, S >= 1.
        max_new_tokens: the most that are added.
        temperature: 0 takes the likeliest token; else tokens are drawn from
            softmax(logits / temperature).
        stop_ids: a row ends with the first of these, which it keeps, and is filled up with it while
            other rows go on.
        generator: random numbers for sampling; torch's default one if None.

    Returns:
        (B, S + n) int64, prompts included; n <= max_new_tokens, less if all rows stop before.

    Raises:
        ValueError: an empty prompt, a negative number, or S + max_new_tokens beyond the model's
            max_seq_len.

    Example:
        >>> model, tokenizer = llama_fast.models.load("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> prompt = torch.tensor([tokenizer.encode("The capital of France is")])
        >>> tokenizer.decode(generate(model, prompt, 2)[0].tolist())
        'The capital of France is Paris.'
    """
    steps = stream(
        model,
        tokens,
        max_new_tokens,
        temperature=temperature,
        stop_ids=stop_ids,
        generator=generator,
    )
    new = [step.unsqueeze(1) for step in steps]  # n times (B,1)
    return torch.cat([tokens.long(), *new], dim=1)


def stream(
    model: LLaMA,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """The new tokens of :func:`generate` as they come: a (B,) int64 tensor each step."""
    B, S = tokens.shape
    if S == 0:
        raise ValueError(f"tokens: expected at least one token a row, got shape {(B, S)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: expected a number >= 0, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature: expected a number >= 0, got {temperature}")
    if S + max_new_tokens > model.config.max_seq_len:
        raise ValueError(
            f"max_new_tokens: expected at most {model.config.max_seq_len - S} after a prompt of "
            f"{S} (max_seq_len = {model.config.max_seq_len}), got {max_new_tokens}"
        )
    weight = model.head_weight
    cache = KVCache(model.config, B, S + max_new_tokens, weight.dtype, weight.device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=tokens.device)
    stopped = torch.zeros(B, dtype=torch.bool, device=tokens.device)
    last = tokens[:, -1].long()
    unseen = tokens
    for _ in range(max_new_tokens):
        with torch.no_grad():
            hidden = model.hidden_states(unseen, cache=cache)[:, -1]  # (B,E)
            logits = torch.nn.functional.linear(hidden, weight)  # (B,V)
        if temperature == 0:
            drawn = logits.argmax(dim=-1)
        else:
            probabilities = torch.softmax(logits.float() / temperature, dim=-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        last = torch.where(stopped, last, drawn)
        stopped = stopped | torch.isin(last, stops)
        yield last
        if stopped.all():
            return
        unseen = last.unsqueeze(1)
