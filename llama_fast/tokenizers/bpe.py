"""Byte-level BPE with the ``tokenizers`` package: ``tokenizer.json``, or the one in a GGUF file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from llama_fast._extras import lacking
from llama_fast._limits import limit, raise_it
from llama_fast._reading import is_panic, no_panics, read_at_most, read_json

from ._json_check import check_json
from .base import (
    LLAMA3_SPLIT,
    MAX_VOCAB_SIZE,
    PRIVATE_USE,
    Span,
    Tokenizer,
    TokenizerError,
    unused_characters,
)

try:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
except ImportError as error:
    raise TokenizerError(lacking("such tokenizers", "tokenizers", "checkpoints")) from error

CONTROL, USER_DEFINED = 3, 4  # token types in GGUF


class FastTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` package.

    Args:
        backend: a tokenizer that only this object uses and changes. Its truncation, padding and
            dropout, which would change the ids of a text, are switched off.
        bos_id, eos_id: see :class:`Tokenizer`.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, bos_id: int | None, eos_id: int | None
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None) is not None:
            backend.model.dropout = None
        backend.encode_special_tokens = True  # names of control tokens are ordinary text
        added = backend.get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        size = max(backend.get_vocab().values(), default=-1) + 1  # some ids may have no token
        if size > MAX_VOCAB_SIZE:
            raise TokenizerError(
                f"tokenizer: expected ids below {MAX_VOCAB_SIZE:,}, got {size - 1:,}"
            )
        super().__init__(size, bos_id, eos_id, special)
        self.backend = backend
        self._head = leading_ids(backend)
        self.add_bos = bos_id is not None and self._head == [bos_id]
        first = _encoded(backend, "a").tokens[:1]
        self._adds_space = bool(first) and first[0][0] in "▁Ġ"  # before a text, as in Llama 2's

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """See :class:`Tokenizer`; may be other ids that the file's post-processor adds."""
        if self._head and self._head != [self.bos_id]:
            return tuple(self._head)
        return super().begin_ids

    def __getstate__(self) -> dict[str, Any]:
        cached = ("_with_special", "_renamings")  # recomputed when they are needed
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.backend.encode_special_tokens = True  # a copy of the backend loses it

    def _encode(self, text: str, continues: bool) -> list[int]:
        return self._encode_by(self.backend, text, continues)

    def _encode_special(self, text: str, continues: bool) -> list[int]:
        # As a whole, because the backend decides about spaces and words next to a control token.
        return self._encode_by(self._with_special, text, continues)

    def _encode_by(self, backend: tokenizers.Tokenizer, text: str, continues: bool) -> list[int]:
        ids: list[int] = _encoded(backend, text).ids
        if continues and self._adds_space:
            # After a line break, which merges with nothing, no space is added.
            line_break = _encoded(backend, "\n").ids
            with_break = _encoded(backend, "\n" + text).ids
            if with_break[: len(line_break)] == line_break:
                return with_break[len(line_break) :]
        return ids

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = _encoded(self.backend, text)
        return encoding.ids, encoding.offsets

    def encode_with_offsets(
        self, text: str, *, literal: Sequence[Span] = ()
    ) -> tuple[list[int], list[Span]]:
        """See :class:`Tokenizer`. The text is encoded as a whole, as transformers does."""
        if not any(self.special_pattern.search(text, *span) for span in literal):
            encoding = _encoded(self._with_special, text)
            return encoding.ids, encoding.offsets
        # Control tokens get other names, because their own are ordinary text in the literal spans.
        # These begin with a character that the text does not contain.
        mark = unused_characters(text, 1, PRIVATE_USE)
        backend, ids_of = self._renamed(mark)
        starts = [begin for begin, _ in self._special_spans(text, literal)]
        cuts = [0, *starts, len(text)]
        encoding = _encoded(backend, mark.join(text[begin:end] for begin, end in pairwise(cuts)))
        marks = [start + number for number, start in enumerate(starts)]
        return (
            [ids_of.get(i, i) for i in encoding.ids],
            [(a - bisect_left(marks, a), b - bisect_left(marks, b)) for a, b in encoding.offsets],
        )

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        """A backend that turns names of control tokens in a text into these tokens."""
        backend = self._copy()
        backend.encode_special_tokens = False
        return backend

    def _renamed(self, mark: str) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """Return a backend that calls control tokens mark + name, and their ids by its ids."""
        if mark not in self._renamings:
            backend = self._copy()
            backend.encode_special_tokens = True
            ids_of: dict[int, int] = {}
            for i, token in self.backend.get_added_tokens_decoder().items():
                if token.special:
                    fields = {**_flags(token), "special": False}
                    name = mark + token.content
                    backend.add_tokens([tokenizers.AddedToken(name, **fields)])
                    ids_of[backend.token_to_id(name)] = i  # type: ignore[index]
            self._renamings[mark] = backend, ids_of
        return self._renamings[mark]

    @cached_property
    def _renamings(self) -> dict[str, tuple[tokenizers.Tokenizer, dict[int, int]]]:
        return {}

    def _copy(self) -> tokenizers.Tokenizer:
        """Return another backend that gives the same ids; shares the vocabulary if possible."""
        added = self.backend.get_added_tokens_decoder()
        backend = tokenizers.Tokenizer(self.backend.model)
        backend.normalizer = self.backend.normalizer
        backend.pre_tokenizer = self.backend.pre_tokenizer
        backend.post_processor = self.backend.post_processor
        for _, token in sorted(added.items()):
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if repr(sorted(backend.get_added_tokens_decoder().items())) != repr(sorted(added.items())):
            backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        return backend

    def _decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=True)

    def _name(self, token: int | None) -> str:
        return "" if token is None else self.backend.id_to_token(token) or ""


def _encoded(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool = False) -> Any:
    """Encode a text with a backend; raise TokenizerError if it fails (an unknown character)."""
    try:
        return backend.encode(text, add_special_tokens=add_special_tokens)
    except BaseException as error:  # a panic is not an Exception
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise TokenizerError(f"tokenizer: cannot encode {text!r:.80}: {error}") from None


def leading_ids(backend: tokenizers.Tokenizer) -> list[int]:
    """Return the ids of the control tokens that a backend's post-processor puts before a text."""
    ids = _encoded(backend, "a").ids
    whole: list[int] = _encoded(backend, "a", add_special_tokens=True).ids
    starts = range(len(whole) - len(ids) + 1)
    return next((whole[:i] for i in starts if whole[i : i + len(ids)] == ids), [])


def _flags(token: tokenizers.AddedToken) -> dict[str, bool]:
    names = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return {name: getattr(token, name) for name in names}


def from_json(path: Path) -> FastTokenizer:
    """Return the tokenizer of a ``tokenizer.json``; ``tokenizer_config.json`` names BOS and EOS.

    As in transformers, the file's post-processor decides whether a text begins with `bos_id`, and
    ``tokenizer_config.json`` can declare more control tokens.
    """
    backend = _backend_of(path)
    ids: dict[str, int | None] = {"bos_token": None, "eos_token": None}
    settings = path.parent / "tokenizer_config.json"
    if settings.is_file():
        fields = read_json(settings, error=TokenizerError)
        try:
            with no_panics(f"{settings}: added_tokens_decoder", TokenizerError):
                _add_tokens(backend, fields)
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise TokenizerError(f"{settings}: added_tokens_decoder: {error!r:.200}") from None
        for key in ids:
            name = _token_name(fields.get(key))
            if not isinstance(name, str | None):
                raise TokenizerError(f"{settings}: {key}: expected a string, got {name!r:.80}")
            ids[key] = backend.token_to_id(name) if name else None
    return FastTokenizer(backend, ids["bos_token"], ids["eos_token"])


def _backend_of(path: Path) -> tokenizers.Tokenizer:
    with path.open("rb") as file:
        content = read_at_most(file, limit("json"))
    if len(content) > limit("json"):
        raise TokenizerError(
            f"{path}: expected at most {limit('json'):,} bytes, got more; {raise_it('json')}"
        )
    check_json(path, content)
    try:
        with no_panics(str(path), TokenizerError):
            return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the package raises no narrower class
        raise TokenizerError(f"{path}: not a tokenizer.json: {error}") from None


def _token_name(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _add_tokens(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """Add the control tokens that ``tokenizer_config.json`` declares, or declares differently."""
    known = set(map(repr, backend.get_added_tokens_decoder().values()))
    listed = settings.get("added_tokens_decoder") or {}
    for _, fields in sorted(listed.items(), key=lambda item: int(item[0])):
        flags = {name: bool(value) for name, value in fields.items() if name != "content"}
        token = tokenizers.AddedToken(fields["content"], **flags)
        if repr(token) not in known and backend.token_to_id(token.content) is not None:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    names = {token.content for token in backend.get_added_tokens_decoder().values()}
    for key, value in settings.items():
        name = _token_name(value) if key.endswith("_token") else None
        if isinstance(name, str) and name not in names and backend.token_to_id(name) is not None:
            token = tokenizers.AddedToken(name, special=True, normalized=False)
            backend.add_special_tokens([token])


def from_gguf_bpe(metadata: dict[str, Any]) -> FastTokenizer:
    """Return the tokenizer of a GGUF file with ``tokenizer.ggml.model`` "gpt2"."""
    try:
        tokens = metadata["tokenizer.ggml.tokens"]
        types = metadata["tokenizer.ggml.token_type"]
        # An empty list is not written to the file: then the tokens are bytes.
        merges = [tuple(m.split(" ")) for m in metadata.get("tokenizer.ggml.merges", [])]
    except KeyError as error:
        raise TokenizerError(f"metadata {error} is missing") from None
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"tokenizer.ggml.pre: expected one of {', '.join(PRE_TOKENIZERS)}, got {pre!r}"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # In Llama 3, a word that is a token is not split and merged again.
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in LLAMA3)
    )
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]
    backend.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type == CONTROL:
            backend.add_special_tokens([tokenizers.AddedToken(token, special=True)])
        elif token_type == USER_DEFINED:
            backend.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    tokenizer = FastTokenizer(
        backend,
        metadata.get("tokenizer.ggml.bos_token_id"),
        metadata.get("tokenizer.ggml.eos_token_id"),
    )
    tokenizer.add_bos = metadata.get("tokenizer.ggml.add_bos_token", pre in LLAMA3)
    return tokenizer


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokenizer that splits words by a regular expression, for byte-level BPE."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# GGUF's name for a way to split a text into words -> the pre-tokenizer.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
SMOLLM = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
PRE_TOKENIZERS = {
    "gpt-2": GPT2,
    "smollm": SMOLLM,
    **dict.fromkeys(LLAMA3, split_by(LLAMA3_SPLIT)),
}
