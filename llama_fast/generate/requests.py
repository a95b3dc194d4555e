"""What is asked of the engine, and what comes back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .sampling import SamplingOptions


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue.

    Attributes:
        tokens: ids of the prompt, at least one; :meth:`Tokenizer.encode` adds no begin token.
        max_new_tokens: the most that are added, at least one.
        stop: generation ends when the new text has one of these strings; the text ends before it.
        stop_ids: generation ends with one of these tokens.
        sampling: how tokens are drawn; greedy by default.
    """

    tokens: Sequence[int]
    max_new_tokens: int
    stop: Sequence[str] = ()
    stop_ids: Collection[int] = ()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


def check_length(name: str, tokens: Sequence[int], context: int) -> None:
    """ValueError, naming the prompt, if its tokens leave no room in the model's context."""
    if context <= len(tokens):
        raise ValueError(
            f"{name}: expected a prompt shorter than the model's context of {context} tokens, "
            f"got {len(tokens)}"
        )


@dataclass(frozen=True)
class GenerationResult:
    """A continuation.

    Attributes:
        text: what it adds to the prompt's text, up to the stop string, without control tokens.
        tokens: all new ids, with those of the stop string or the stop id.
        finish_reason: "stop", or "length" where max_new_tokens or the model's max_seq_len ended it.
    """

    text: str
    tokens: list[int]
    finish_reason: str


@dataclass(frozen=True)
class Piece:
    """What one request got by one step.

    Attributes:
        index: which of the requests.
        text: new text, maybe none: a token can be a part of a character or of a stop string.
        result: with its last piece, else None.
    """

    index: int
    text: str
    result: GenerationResult | None
