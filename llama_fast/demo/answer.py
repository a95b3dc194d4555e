"""Lets the model speak, and holds its logits against float64."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import llama_fast
from llama_fast.generate import generate
from llama_fast.models import LLaMA, load
from llama_fast.tokenizers import Tokenizer

__all__ = ["EXPECTED", "PROMPT", "Answer", "Logits", "ask", "compare_logits", "load_both"]

PROMPT = "The capital of France is"
EXPECTED = " Paris."


@dataclass(frozen=True)
class Answer:
    """A greedy continuation: the prompt, what the model said, how many tokens a second."""

    prompt: str
    text: str
    tokens_per_second: float


@dataclass(frozen=True)
class Logits:
    """Root-mean-square deviations from the float64 logits of one text.

    Not the largest deviations: those are at the first token, whose logits are huge, and where
    attention has a single key and nothing to round.

    Attributes:
        tokens: length of the text.
        size: root-mean-square of the float64 logits.
        ours, reference: deviation of our kernels and of the reference backend.
        agreement: share of positions where our most likely token is that of float64.
        ok: our deviation is at most twice the reference's. Both are float32 sums in another order,
            so neither is exact; the constant is flash-attention's.
    """

    tokens: int
    size: float
    ours: float
    reference: float
    agreement: float
    ok: bool


def load_both(path: Path, dtype: torch.dtype) -> tuple[LLaMA, Tokenizer]:
    """The model of a checkpoint, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the checkpoint has no tokenizer.
    """
    model, tokenizer = load(path, dtype=dtype)
    if tokenizer is None:
        raise ValueError(f"path: expected a checkpoint with a tokenizer, got {path}")
    return model, tokenizer


def ask(
    model: LLaMA, tokenizer: Tokenizer, prompt: str = PROMPT, max_new_tokens: int = 16
) -> Answer:
    """Continues ``prompt`` with the likeliest tokens, up to the end of the line or the limit."""
    ids = tokenizer.encode(prompt)
    stops = {*tokenizer.encode("\n"), *tokenizer.encode("\n\n"), *tokenizer.end_ids}
    started = time.perf_counter()
    out = generate(model, torch.tensor([ids]), max_new_tokens, temperature=0.0, stop_ids=stops)
    new = out[0].tolist()[len(ids) :]
    seconds = time.perf_counter() - started
    said = tokenizer.decode([token for token in new if token not in stops])
    return Answer(prompt, said, len(new) / seconds)


@torch.inference_mode()
def compare_logits(model: LLaMA, tokens: list[int]) -> Logits:
    """Logits of ``tokens`` on our kernels and on the reference, both against float64."""
    batch = torch.tensor([tokens])
    ours = model(batch).double()
    with llama_fast.use_backend("reference"):
        reference = model(batch).double()
        truth = copy.deepcopy(model).double()(batch)
    size, ours_off, reference_off = (
        x.square().mean().sqrt().item() for x in (truth, ours - truth, reference - truth)
    )
    agreement = (ours.argmax(-1) == truth.argmax(-1)).double().mean().item()
    ok = ours_off <= 2 * reference_off  # False for NaN
    return Logits(len(tokens), size, ours_off, reference_off, agreement, ok)
