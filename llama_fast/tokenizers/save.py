"""Writes tokenizers: Hugging Face files, ``tokenizer.model``, metadata of a GGUF file.

| tokenizer                     | Hugging Face       | Meta                        | GGUF    |
|-------------------------------|--------------------|-----------------------------|---------|
| of a ``tokenizer.json``       | ``tokenizer.json`` | not possible                | "gpt2"  |
| SentencePiece                 | both files         | ``tokenizer.model``         | "llama" |
| Llama 3's ranks               | ``tokenizer.json`` | ``tokenizer.model``         | "gpt2"  |
| bytes                         | ``tokenizer.json`` | not possible                | "gpt2"  |
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .base import LLAMA3_SPLIT, MAX_TOKEN_LENGTH, Tokenizer, TokenizerError
from .byte import ByteTokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types in GGUF


def save_huggingface(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write the files that transformers' ``AutoTokenizer`` and :func:`load_tokenizer` read.

    Args:
        tokenizer: any tokenizer of this package.
        folder: an existing folder.
        max_length: maximum number of tokens of the model.

    Raises:
        TokenizerError: the tokenizer is a SentencePiece model of another type than Llama's, or a
            required package is not installed.
    """
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token or None,
        "eos_token": tokenizer.eos_token or None,
        "add_bos_token": tokenizer.add_bos,
        "chat_template": tokenizer.chat_template,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    from .bpe import leading_ids

    made = as_backend(tokenizer)
    backend = json.loads(made.to_str())
    if leading_ids(made) != list(tokenizer.begin_ids):  # transformers follows the post-processor
        backend["post_processor"] = (
            _begin_with(settings["bos_token"], tokenizer.bos_id) if tokenizer.add_bos else None
        )
    text = json.dumps(backend, ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    if _is_sentencepiece(tokenizer):  # for programs that use SentencePiece itself
        (folder / "tokenizer.model").write_bytes(model_file(tokenizer) or b"")
    text = json.dumps({k: v for k, v in settings.items() if v is not None}, indent=1)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def model_file(tokenizer: Tokenizer) -> bytes | None:
    """Return the content of Meta's ``tokenizer.model``; None if the tokenizer has no such form."""
    if _is_ranks(tokenizer):
        ranks = tokenizer.encoding._mergeable_ranks  # type: ignore[attr-defined]
        in_order = sorted(ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in in_order)
    if not _is_sentencepiece(tokenizer):
        return None
    model: bytes = tokenizer.processor.serialized_model_proto()  # type: ignore[attr-defined]
    return model


def gguf_fields(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the metadata ``tokenizer.*`` of a GGUF file.

    Args:
        tokenizer: any tokenizer of this package.
        vocab_size: V of the model; tokens that the tokenizer does not have are marked as unused.

    Raises:
        TokenizerError: GGUF has no name for the way the tokenizer splits texts into words.
    """
    fields = (_spm_fields if _is_sentencepiece(tokenizer) else _bpe_fields)(tokenizer)
    missing = vocab_size - len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] += [f"[PAD{vocab_size - i}]" for i in range(missing, 0, -1)]
    fields["tokenizer.ggml.token_type"] += [UNUSED] * missing
    if "tokenizer.ggml.scores" in fields:
        fields["tokenizer.ggml.scores"] += [-1000.0] * missing
    fields["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    fields["tokenizer.ggml.eos_token_id"] = tokenizer.eos_id
    if len(tokenizer.end_ids) > 1:  # GGUF stores one more
        fields["tokenizer.ggml.eot_token_id"] = tokenizer.end_ids[1]
    fields["tokenizer.ggml.add_bos_token"] = tokenizer.add_bos
    fields["tokenizer.chat_template"] = tokenizer.chat_template
    return {key: value for key, value in fields.items() if value is not None}


def as_backend(tokenizer: Tokenizer) -> Any:
    """Return a tokenizer of the ``tokenizers`` package that gives the same ids.

    Raises:
        TokenizerError: the tokenizer is a SentencePiece model of another type than Llama's, or the
            package is not installed.
    """
    from .bpe import FastTokenizer, decoders, models, pre_tokenizers, split_by, tokenizers

    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.backend
    letters = _byte_letters()
    if _is_sentencepiece(tokenizer):
        backend = _spm_backend(tokenizer)
    elif _is_ranks(tokenizer):
        ranks = tokenizer.encoding._mergeable_ranks  # type: ignore[attr-defined]
        written = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
        merges = _merges(written, sorted(written, key=written.__getitem__))
        model = models.BPE(vocab=written, merges=merges, ignore_merges=True)
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = split_by(LLAMA3_SPLIT)
        backend.decoder = decoders.ByteLevel()
    else:
        assert isinstance(tokenizer, ByteTokenizer)
        vocabulary = {letter: byte for byte, letter in enumerate(letters)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
    names = sorted(tokenizer.special, key=tokenizer.special.__getitem__)
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in names])
    return backend


def _spm_backend(tokenizer: Tokenizer) -> Any:
    from .bpe import decoders, models, tokenizers
    from .spm import is_plain_bpe, parse

    content = model_file(tokenizer) or b""
    if not is_plain_bpe(content):
        raise TokenizerError(
            "tokenizer: expected a SentencePiece BPE model without normalisation, as Llama's, for "
            "tokenizer.json; got a unigram model or one with normalisation"
        )
    pieces = parse(content)
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    mergeable = (NORMAL, USER_DEFINED)
    scores = {text: score for text, score, piece_type in pieces if piece_type in mergeable}
    # Equal scores keep the order of their ids: Python's sort is stable.
    merges = _merges(scores, sorted(scores, key=lambda text: -scores[text]))
    unknown = pieces[tokenizer.processor.unk_id()][0]  # type: ignore[attr-defined]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    spaces: list[Any] = [tokenizers.normalizers.Replace(" ", "▁")]
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if _has_space_prefix(tokenizer):
        spaces.insert(0, tokenizers.normalizers.Prepend("▁"))
        parts.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = tokenizers.normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(parts)
    return backend


def _merges(known: Collection[str], in_order: list[str]) -> list[tuple[str, str]]:
    """Return all merges of two tokens into a token, in the order of the results."""
    if max(map(len, in_order), default=0) > MAX_TOKEN_LENGTH:
        raise TokenizerError(f"tokenizer: expected tokens of at most {MAX_TOKEN_LENGTH} characters")
    return [
        (token[:i], token[i:])
        for token in in_order
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known
    ]


def _is_sentencepiece(tokenizer: Tokenizer) -> bool:
    return hasattr(tokenizer, "processor")


def _has_space_prefix(tokenizer: Tokenizer) -> bool:
    first: str = tokenizer.processor.encode_as_pieces("a")[0]  # type: ignore[attr-defined]
    return first.startswith("▁")


def _is_ranks(tokenizer: Tokenizer) -> bool:
    return hasattr(tokenizer, "encoding")


def _byte_letters() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


def _begin_with(name: str, token: int | None) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    texts = [{"Sequence": {"id": which, "type_id": i}} for i, which in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [begin, texts[0]],
        "pair": [begin, texts[0], {"SpecialToken": {"id": name, "type_id": 1}}, texts[1]],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


def _spm_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    from .spm import parse

    texts, scores, types = map(list, zip(*parse(model_file(tokenizer) or b""), strict=True))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": tokenizer.processor.unk_id(),  # type: ignore[attr-defined]
        "tokenizer.ggml.add_space_prefix": _has_space_prefix(tokenizer),
    }


def _bpe_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    from .bpe import LLAMA3

    backend = as_backend(tokenizer)
    content = json.loads(backend.to_str())
    if content["model"]["type"] != "BPE" or content["model"].get("byte_fallback"):
        raise TokenizerError(
            "tokenizer: expected byte-level BPE for a GGUF file, got another type of "
            "tokenizer.json; if there is a tokenizer.model beside it, use that"
        )
    # Without merges, the way a text is split has no effect.
    pre = "gpt-2" if not content["model"]["merges"] else _pre_name(content["pre_tokenizer"])
    if content["normalizer"] is not None:
        raise TokenizerError(
            "tokenizer: expected one without a normalizer, because GGUF cannot store it; got "
            f"{content['normalizer']['type']}"
        )
    if content["model"].get("ignore_merges", False) != (pre in LLAMA3):
        _check_tokens_stay_whole(backend, pre)
    vocabulary = backend.get_vocab()
    tokens = [f"[PAD{i}]" for i in range(max(vocabulary.values()) + 1)]
    types = [UNUSED] * len(tokens)
    for token, i in vocabulary.items():
        tokens[i], types[i] = token, NORMAL
    for i, added in backend.get_added_tokens_decoder().items():
        types[i] = CONTROL if added.special else USER_DEFINED
    merges = content["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges] or None,
    }


def _pre_name(pre_tokenizer: Any) -> str:
    """Return GGUF's name for the way a text is split into words."""
    from .bpe import PRE_TOKENIZERS, models, tokenizers

    wanted, known = _comparable(pre_tokenizer), tokenizers.Tokenizer(models.BPE())
    for name, candidate in PRE_TOKENIZERS.items():
        known.pre_tokenizer = candidate
        if _comparable(json.loads(known.to_str())["pre_tokenizer"]) == wanted:
            # Llama 3's has several names; llama.cpp writes this one.
            return "llama-bpe" if name == "llama3" else name
    raise TokenizerError(
        f"tokenizer: expected a pre-tokenizer that GGUF has a name for, one of "
        f"{', '.join(PRE_TOKENIZERS)}; got {wanted}"
    )


def _check_tokens_stay_whole(backend: Any, pre: str) -> None:
    """Raise TokenizerError unless the merges produce every token.

    For a word that is a token, some readers of GGUF apply the merges and others take the token.
    Both give the same ids only if the merges produce that token.
    """
    added = backend.get_added_tokens_decoder()
    ignored = backend.model.ignore_merges
    backend.model.ignore_merges = False
    try:
        for token, i in backend.get_vocab().items():
            if i not in added and [part.id for part in backend.model.tokenize(token)] != [i]:
                raise TokenizerError(
                    f"tokenizer: expected merges that lead to every token, as GGUF's {pre!r} "
                    f"needs; they do not lead to {token!r}"
                )
    finally:
        backend.model.ignore_merges = ignored


def _comparable(pre_tokenizer: Any) -> Any:
    """Return a pre-tokenizer's description without what has no effect on the ids."""
    if isinstance(pre_tokenizer, dict):
        kept = {k: _comparable(v) for k, v in pre_tokenizer.items() if k != "trim_offsets"}
        if kept.get("type") == "Sequence" and len(kept["pretokenizers"]) == 1:
            return kept["pretokenizers"][0]
        return kept
    return (
        [_comparable(v) for v in pre_tokenizer]
        if isinstance(pre_tokenizer, list)
        else pre_tokenizer
    )
