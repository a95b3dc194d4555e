"""Byte-level BPE with the ``tokenizers`` package: ``tokenizer.json``, or the one in a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .base import LLAMA3_SPLIT, Tokenizer, TokenizerError

try:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
except ImportError as error:
    raise TokenizerError(
        "this tokenizer needs the tokenizers package: pip install tokenizers"
    ) from error

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in GGUF


class FastTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` package."""

    def __init__(
        self, backend: tokenizers.Tokenizer, bos_id: int | None, eos_id: int | None
    ) -> None:
        added = backend.get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        super().__init__(backend.get_vocab_size(), bos_id, eos_id, special)
        backend.encode_special_tokens = True  # names of control tokens in a text are text
        self.backend = backend
        first = backend.encode("a", add_special_tokens=False).tokens[:1]
        self._puts_space = bool(first) and first[0][0] in "▁Ġ"  # before a text, as in Llama 2's

    def _encode(self, text: str, continues: bool) -> list[int]:
        ids = self.backend.encode(text, add_special_tokens=False).ids
        if continues and self._puts_space:
            # Behind a line break, which merges with nothing, there is none.
            line = self.backend.encode("\n", add_special_tokens=False).ids
            behind = self.backend.encode("\n" + text, add_special_tokens=False).ids
            if behind[: len(line)] == line:
                return behind[len(line) :]
        return ids

    def _decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=True)


def from_json(path: Path) -> FastTokenizer:
    """Hugging Face's ``tokenizer.json``; begin and end are named in ``tokenizer_config.json``."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no narrower class
        raise TokenizerError(f"{path}: not a tokenizer.json: {error}") from None
    ids: dict[str, int | None] = {"bos_token": None, "eos_token": None}
    settings = path.parent / "tokenizer_config.json"
    if settings.exists():
        fields = json.loads(settings.read_text(encoding="utf-8"))
        for key in ids:
            token = fields.get(key)
            name = token.get("content") if isinstance(token, dict) else token
            ids[key] = backend.token_to_id(name) if name else None
    tokenizer = FastTokenizer(backend, ids["bos_token"], ids["eos_token"])
    first = backend.encode("", add_special_tokens=True).ids[:1]
    tokenizer.add_bos = tokenizer.bos_id is not None and first == [tokenizer.bos_id]
    return tokenizer


def from_gguf_bpe(metadata: dict[str, Any]) -> FastTokenizer:
    """The tokenizer of a GGUF file with ``tokenizer.ggml.model`` "gpt2"."""
    try:
        tokens = metadata["tokenizer.ggml.tokens"]
        kinds = metadata["tokenizer.ggml.token_type"]
        # A list of none is not written: the tokens are bytes then.
        merges = [tuple(m.split(" ")) for m in metadata.get("tokenizer.ggml.merges", [])]
    except KeyError as error:
        raise TokenizerError(f"metadata {error} is missing") from None
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"tokenizer.ggml.pre: expected one of {', '.join(PRE_TOKENIZERS)}, got {pre!r}"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token as it is, without merging its letters.
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in LLAMA3)
    )
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == CONTROL:
            backend.add_special_tokens([tokenizers.AddedToken(token, special=True)])
        elif kind == USER_DEFINED:
            backend.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    tokenizer = FastTokenizer(
        backend,
        metadata.get("tokenizer.ggml.bos_token_id"),
        metadata.get("tokenizer.ggml.eos_token_id"),
    )
    tokenizer.add_bos = metadata.get("tokenizer.ggml.add_bos_token", pre in LLAMA3)
    return tokenizer


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Words as a regular expression finds them, in the letters of a byte-level BPE."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# How a text is cut into words, by the name that GGUF gives it.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
SMOLLM = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
PRE_TOKENIZERS = {
    "gpt-2": GPT2,
    "smollm": SMOLLM,
    **dict.fromkeys(LLAMA3, split_by(LLAMA3_SPLIT)),
}
