"""Requests to the generation engine, and its results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .sampling import SamplingOptions


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue.

    Attributes:
        tokens: ids of the prompt, at least one. :meth:`Tokenizer.encode` adds no begin token.
        max_new_tokens: largest number of tokens to add, at least 1.
        stop: generation ends when the new text contains one of these strings, which is cut off.
        stop_ids: generation ends when one of these tokens is generated.
        sampling: how tokens are drawn; greedy by default.
    """

    tokens: Sequence[int]
    max_new_tokens: int
    stop: Sequence[str] = ()
    stop_ids: Collection[int] = ()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


def check_length(name: str, tokens: Sequence[int], context: int) -> None:
    """Raise ValueError, which names the prompt, if its tokens fill the model's context."""
    if context <= len(tokens):
        raise ValueError(
            f"{name}: expected a prompt shorter than the model's context of {context} tokens, "
            f"got {len(tokens)}"
        )


@dataclass(frozen=True)
class GenerationResult:
    """The continuation of a prompt.

    Attributes:
        text: new text up to the stop string, without control tokens.
        tokens: all new ids, including those of the stop string or the stop id.
        finish_reason: "stop", or "length" if max_new_tokens or the model's max_seq_len was reached.
        joules: energy of its passes through the model, of which sequences in the same pass have
            equal shares; None if the engine has no meter.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    joules: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Piece:
    """The text that one step adds to one request.

    Attributes:
        index: the index of the request.
        text: new text; empty while a character is incomplete or a stop string may have begun.
        result: the result of the request in its last piece, else None.
    """

    index: int
    text: str
    result: GenerationResult | None
