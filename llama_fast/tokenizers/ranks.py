"""Llama 3's ``tokenizer.model``: lines of "base64-token rank", read with tiktoken.

The file contains the 128,000 ordinary tokens. The 256 control tokens are fixed by the model:
github.com/meta-llama/llama-models, ``models/llama3/tokenizer.py``.
"""

from __future__ import annotations

import base64
import re
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

from llama_fast._extras import lacking
from llama_fast._reading import is_panic, no_panics

from .base import (
    LLAMA3_SPLIT,
    Span,
    Tokenizer,
    TokenizerError,
    in_characters,
)

try:
    import tiktoken
except ImportError as error:
    raise TokenizerError(
        lacking("Llama 3's tokenizer.model files", "tiktoken", "checkpoints")
    ) from error

NUM_SPECIAL = 256
NAMED_SPECIAL = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|finetune_right_pad_id|>": 4,
    "<|step_id|>": 5,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
    "<|python_tag|>": 10,
    "<|image|>": 11,
}


# Longer runs of spaces or of other characters are split, as in Meta's code: tiktoken's pattern
# matching overflows the stack on about 10^5 spaces.
MAX_RUN = 25_000
# Matches only begin at the first character of a run, else matching would take quadratic time.
LONG_RUN = re.compile(rf"(?<!\s)\s{{{MAX_RUN + 1},}}|(?<!\S)\S{{{MAX_RUN + 1},}}")


class RankTokenizer(Tokenizer):
    """Byte-level BPE that merges in the order of the tokens' ranks."""

    add_bos = True

    def __init__(self, ranks: dict[bytes, int]) -> None:
        first = len(ranks)
        offsets = set(NAMED_SPECIAL.values())
        reserved = (offset for offset in range(NUM_SPECIAL) if offset not in offsets)
        special = {name: first + offset for name, offset in NAMED_SPECIAL.items()}
        for number, offset in enumerate(reserved):
            special[f"<|reserved_special_token_{number}|>"] = first + offset
        begin, end = special["<|begin_of_text|>"], special["<|end_of_text|>"]
        super().__init__(first + NUM_SPECIAL, begin, end, special)
        self.encoding = tiktoken.Encoding(
            "llama3", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=special
        )

    def _encode(self, text: str, continues: bool) -> list[int]:
        ids, start = [], 0
        for run in LONG_RUN.finditer(text):
            for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                ids += self._piece(text[start:cut])
                start = cut
        return ids + self._piece(text[start:])

    def _piece(self, text: str) -> list[int]:
        try:
            return self.encoding.encode_ordinary(text)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise TokenizerError(f"tokenizer: cannot encode {text!r:.80}: {error}") from None

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        ids = self._encode(text, False)
        lengths = (self._lengths[i] for i in ids)
        return ids, in_characters(text, list(pairwise(accumulate(lengths, initial=0))))

    @cached_property
    def _lengths(self) -> list[int]:
        """Length in bytes of each ordinary token."""
        ranks = self.encoding._mergeable_ranks
        return [len(token) for token in sorted(ranks, key=ranks.__getitem__)]

    def _decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)


def from_ranks(path: Path) -> RankTokenizer:
    """Return the tokenizer of a rank file."""
    ranks = {}
    try:
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
        raise TokenizerError(f"{path}: line {len(ranks) + 1}: {error}") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{path}: expected ranks 0, 1, 2, ..., got gaps or repeats")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:  # tiktoken would panic on a text that contains it
        raise TokenizerError(f"{path}: expected a rank for each byte, got none for {missing[0]:#x}")
    with no_panics(str(path), TokenizerError):
        return RankTokenizer(ranks)
