"""Generation for a batch of prompts of equal length: (B,S) in, (B,S + n) out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llama_fast.models import LLaMA
from llama_fast.ops.linear import linear

from .fast_decode import FastDecode
from .paged_cache import DecodeStep, PackedStep, PagedCache, SequenceSlots
from .sampling import SamplingOptions, next_tokens

_PAGE_SIZE = 16
_MAX_NEW_TOKENS = 256  # as on the command line


def generate(
    model: LLaMA,
    tokens: Tensor | Sequence[int],
    max_new_tokens: int | None = None,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue each row of ``tokens``; :class:`Engine` serves prompts of different lengths.

    Args:
        model: the model; call ``model.eval()`` first, as dropout is active in training mode.
        tokens: ids of prompts of the same length S >= 1: (B,S), or (S,) or a list for one prompt.
        max_new_tokens: largest number of tokens to add; None: 256, or as many as the model's
            max_seq_len leaves room for.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see :class:`SamplingOptions`;
            by default the most likely token is taken.
        stop_ids: a row ends with the first of these ids, and is padded with it while other rows
            continue.
        generator: generator of the random numbers; None: a new one with the given `seed`.

    Returns:
        (B, S + n) int64, prompts included, (S + n,) for one prompt without a batch dimension; n is
        max_new_tokens, or less if all rows stop earlier.

    Raises:
        ValueError: the prompts are empty, a number is outside its range, or S + max_new_tokens
            exceeds the model's max_seq_len.

    Example:
        >>> model, tokenizer = llama_fast.models.load("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> prompt = tokenizer.encode("The capital of France is")
        >>> tokenizer.decode(llama_fast.generate(model, prompt, 2).tolist())
        'The capital of France is Paris.'
    """
    prompts = _rows(tokens, model)
    new = stream(
        model,
        prompts,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop_ids=stop_ids,
        generator=generator,
    )
    whole = torch.cat([prompts, *(step.unsqueeze(1) for step in new)], dim=1)
    return whole if isinstance(tokens, Tensor) and tokens.dim() == 2 else whole[0]


def stream(
    model: LLaMA,
    tokens: Tensor | Sequence[int],
    max_new_tokens: int | None = None,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the new tokens of :func:`generate`, a (B,) int64 tensor per step.

    The arguments are those of :func:`generate`.
    """
    seen = _rows(tokens, model)
    B, S = seen.shape
    if S == 0:
        raise ValueError(f"tokens: expected at least one token a row, got shape {(B, S)}")
    if max_new_tokens is None:
        max_new_tokens = max(0, min(_MAX_NEW_TOKENS, model.config.max_seq_len - S))
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: expected a number >= 0, got {max_new_tokens}")
    options = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    if S + max_new_tokens > model.config.max_seq_len:
        raise ValueError(
            f"max_new_tokens: expected at most {model.config.max_seq_len - S} after a prompt of "
            f"{S} (max_seq_len = {model.config.max_seq_len}), got {max_new_tokens}"
        )
    weight = model.head_weight
    if generator is None and options.seed is not None:
        generator = torch.Generator(weight.device).manual_seed(options.seed)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=seen.device)
    stopped = torch.zeros(B, dtype=torch.bool, device=seen.device)
    batch = _Batch(model, seen, max_new_tokens)
    chosen, text = seen[:, -1], seen
    for number in range(max_new_tokens):
        with torch.no_grad():
            hidden = batch.decode(chosen) if number else batch.prefill()
            drawn = next_tokens(linear(hidden, weight), options, text, generator)
            chosen = torch.where(stopped, chosen, drawn)
        stopped = stopped | torch.isin(chosen, stops)
        yield chosen
        if stopped.all():
            return
        if options.repetition_penalty != 1:
            text = torch.cat([text, chosen.unsqueeze(1)], dim=1)


def _rows(tokens: Tensor | Sequence[int], model: LLaMA) -> Tensor:
    """Prompts as (B,S) int64 on the model's device."""
    ids = torch.as_tensor(tokens, device=model.head_weight.device)
    if ids.dim() not in (1, 2) or ids.is_floating_point():
        raise ValueError(
            f"tokens: expected ids of shape (B,S) or (S,), got {ids.dtype} of {tuple(ids.shape)}"
        )
    return torch.atleast_2d(ids).long()


class _Batch:
    """Sequences of equal length in a paged cache, on which the engine's passes work.

    Args:
        model, tokens: the model and (B,S) prompts.
        more: number of tokens to make room for.
    """

    def __init__(self, model: LLaMA, tokens: Tensor, more: int) -> None:
        self._model, self._tokens, config, weight = model, tokens, model.config, model.head_weight
        B, self._length = tokens.shape
        pages = -(-(self._length + more) // _PAGE_SIZE)
        self._cache = PagedCache(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            B * pages,
            page_size=_PAGE_SIZE,
            dtype=weight.dtype,
            device=weight.device,
        )
        self._pages = [self._cache.allocate(pages) for _ in range(B)]
        is_fast = not model.training and FastDecode.serves(model, _PAGE_SIZE)
        self._fast = FastDecode(model) if is_fast else None

    def prefill(self) -> Tensor:
        """Compute the prompts; return the hidden state (B,E) of the last token of each."""
        S, none = self._length, np.empty(0, dtype=np.int64)
        rows = [SequenceSlots(none, self._cache.slots(pages, 0, S)) for pages in self._pages]
        step = PackedStep(self._cache, rows)
        hidden = self._model.hidden_states(self._tokens.reshape(1, -1), step=step)
        return hidden[0].view(len(rows), S, -1)[:, -1]

    def decode(self, tokens: Tensor) -> Tensor:
        """Compute one more token (B,) of each sequence; return its hidden state (B,E)."""
        step = DecodeStep(self._cache, [self._length] * len(self._pages), self._pages)
        self._length += 1
        if self._fast is not None:
            return self._fast(tokens.unsqueeze(0), step)[0]
        return self._model.hidden_states(tokens.unsqueeze(0), step=step)[0]
