"""A tokenizer without a vocabulary: the tokens are the UTF-8 bytes of the text."""

from __future__ import annotations

from .base import Span, Tokenizer, in_characters

END = "<|endoftext|>"


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes; 256, ``<|endoftext|>``, begins and ends a text.

    A loss in nats per token divided by ln 2 is in bits per byte.
    """

    def __init__(self) -> None:
        super().__init__(257, 256, 256, {END: 256})

    def _encode(self, text: str, continues: bool) -> list[int]:
        return list(text.encode("utf-8"))

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        ids = self._encode(text, False)
        return ids, in_characters(text, [(i, i + 1) for i in range(len(ids))])

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")
