"""SentencePiece tokenizers, from SentencePiece's own file, a GGUF file or a llama2.c file.

The last two contain only the vocabulary (pieces, scores, types). A SentencePiece model is built
from it in memory, so that the SentencePiece package encodes texts in all three cases.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_fast._extras import lacking

from .base import Span, Tokenizer, TokenizerError, in_characters

try:
    from sentencepiece import SentencePieceProcessor
except ImportError as error:
    raise TokenizerError(
        lacking("SentencePiece tokenizers", "sentencepiece", "checkpoints")
    ) from error

# Types of pieces; SentencePiece and GGUF use the same numbers.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


class SentencePieceTokenizer(Tokenizer):
    """BPE over Unicode characters, with bytes for characters that the vocabulary lacks.

    A text after a control token gets a leading space, as a whole text does: Meta's code and
    llama.cpp encode the texts between control tokens separately.
    """

    add_bos = True

    def __init__(self, processor: SentencePieceProcessor, bos_id: int, eos_id: int) -> None:
        size = processor.vocab_size()
        control = {processor.id_to_piece(i): i for i in range(size) if processor.is_control(i)}
        super().__init__(size, bos_id, eos_id, control)
        self.processor = processor

    def _encode(self, text: str, continues: bool) -> list[int]:
        return (self._continuing if continues else self.processor).encode(text)

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        # Protocol buffer SentencePieceText: pieces are field 2, with id, begin and end (in bytes).
        # Parsed here because the name of SentencePiece's class for it depends on the version.
        message = self.processor.encode(text, out_type="serialized_proto")
        pieces = [dict(_fields(content)) for field, content in _fields(message) if field == 2]
        spans = [(piece.get(4, 0), piece.get(5, 0)) for piece in pieces]
        return [piece.get(2, 0) for piece in pieces], in_characters(text, spans)

    @cached_property
    def _continuing(self) -> SentencePieceProcessor:
        """A processor that adds no space before the text. The last value of a field is valid."""
        model = self.processor.serialized_model_proto() + _field(3, _number(3, 0))
        return _processor(model, "the tokenizer")

    def _decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)


def from_model(path: Path) -> SentencePieceTokenizer:
    """Return the tokenizer of Llama 2's ``tokenizer.model``."""
    processor = _processor(path.read_bytes(), str(path))
    return SentencePieceTokenizer(processor, processor.bos_id(), processor.eos_id())


def from_gguf_spm(metadata: dict[str, Any]) -> SentencePieceTokenizer:
    """Return the tokenizer of a GGUF file with ``tokenizer.ggml.model`` "llama"."""
    try:
        pieces = zip(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            strict=True,
        )
    except KeyError as error:
        raise TokenizerError(f"metadata {error} is missing") from None
    model = serialise(pieces, metadata.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer = SentencePieceTokenizer(
        _processor(model, "the GGUF file's tokenizer"),
        metadata.get("tokenizer.ggml.bos_token_id", 1),
        metadata.get("tokenizer.ggml.eos_token_id", 2),
    )
    tokenizer.add_bos = metadata.get("tokenizer.ggml.add_bos_token", True)
    return tokenizer


def from_llama2c_bin(path: Path) -> SentencePieceTokenizer:
    """Return the tokenizer of llama2.c's ``tok*.bin``.

    Format: maximum length of a piece; then score, length and bytes of each piece.
    """
    data, position = path.read_bytes(), 4
    pieces: list[tuple[str, float, int]] = []
    try:
        while position < len(data):
            score, length = struct.unpack_from("<fi", data, position)
            position += 8
            piece = data[position : position + length].decode("utf-8")
            if length < 0 or position + length > len(data):
                raise ValueError("the last piece ends outside the file")
            position += length
            # export.py of llama2.c replaces SentencePiece's "▁" by a space, and pads <s> and </s>.
            number = len(pieces)
            piece_type = UNKNOWN if number == 0 else CONTROL if number < 3 else NORMAL
            if 3 <= number < 259:
                piece_type = BYTE
            text = piece.strip() if piece_type == CONTROL else piece.replace(" ", "▁")
            pieces.append((text, score, piece_type))
    except (struct.error, ValueError) as error:
        raise TokenizerError(f"{path}: truncated or damaged: {error}") from None
    return SentencePieceTokenizer(_processor(serialise(pieces), str(path)), bos_id=1, eos_id=2)


def serialise(pieces: Iterable[tuple[str, float, int]], space_prefix: bool = True) -> bytes:
    """Return a SentencePiece model of BPE pieces (text, score, type) as a protocol buffer.

    Field numbers: ``sentencepiece_model.proto`` of github.com/google/sentencepiece.
    """
    model = []
    for text, score, piece_type in pieces:
        encoded = text.encode("utf-8")
        piece = _field(1, encoded) + b"\x15" + struct.pack("<f", score) + _number(3, piece_type)
        model.append(_field(1, piece))
    trainer = _number(3, 2) + _number(35, 1)  # model_type = BPE, byte_fallback
    normalizer = _field(1, b"identity")  # name; then add_dummy_prefix, remove_extra_whitespaces
    normalizer += _number(3, space_prefix) + _number(4, 0) + _number(5, 1)  # escape_whitespaces
    return b"".join([*model, _field(2, trainer), _field(3, normalizer)])


def parse(model: bytes) -> list[tuple[str, float, int]]:
    """Return the pieces (text, score, type) of a SentencePiece model; see :func:`serialise`."""
    pieces = []
    for field, content in _fields(model):
        if field == 1:
            piece = dict(_fields(content))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            pieces.append((piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
    return pieces


def is_plain_bpe(model: bytes) -> bool:
    """Whether a SentencePiece model is BPE with byte fallback and without normalisation.

    Field numbers as for :func:`serialise`.
    """
    parts = {field: content for field, content in _fields(model) if field in (2, 3)}
    trainer, normalizer = dict(_fields(parts.get(2, b""))), dict(_fields(parts.get(3, b"")))
    changes = normalizer.get(2, b"") or normalizer.get(4, 1)  # a table; extra spaces removed
    return trainer.get(3, 1) == 2 and bool(trainer.get(35, 0)) and not changes


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the content of each field of a protocol buffer."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, varint()
            continue
        length = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        yield key >> 3, message[position : position + length]
        position += length


def _processor(model: bytes, source: str) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(f"{source}: not a SentencePiece model: {error}") from None


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
