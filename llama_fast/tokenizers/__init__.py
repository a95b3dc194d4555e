"""Tokenizers of Llama models: one small interface for all file formats.

| file                                   | read with      | module              |
|----------------------------------------|----------------|---------------------|
| Hugging Face ``tokenizer.json``        | tokenizers     | `bpe.py`            |
| in a GGUF file, byte-level BPE         | tokenizers     | `bpe.py`            |
| in a GGUF file, SentencePiece          | sentencepiece  | `spm.py`            |
| Llama 2's ``tokenizer.model``          | sentencepiece  | `spm.py`            |
| Llama 3's ``tokenizer.model``          | tiktoken       | `ranks.py`          |
| llama2.c's ``tok512.bin``              | sentencepiece  | `spm.py`            |
| none: the bytes of the text            |                | `byte.py`           |

`train_bpe.py` trains a new byte-level BPE on a corpus; `save.py` writes any of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llama_fast._extras import lacking
from llama_fast._inside import inside
from llama_fast._reading import no_panics, read_json

from .base import MAX_VOCAB_SIZE, Tokenizer, TokenizerError
from .byte import ByteTokenizer

__all__ = [
    "SETTINGS_FILES",
    "ByteTokenizer",
    "Tokenizer",
    "TokenizerError",
    "from_gguf",
    "from_llama2c",
    "load_tokenizer",
    "tokenizer_file",
]

# Files in the tokenizer's folder that describe its use.
SETTINGS_FILES = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")

# Each module imports the package that reads its format, so modules are imported on use.


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer in a file or folder.

    A GGUF file contains all settings. For other formats, the chat template is read from
    ``chat_template.jinja`` or ``tokenizer_config.json`` beside the file, and the ids other than
    `eos_id` that end a text from ``generation_config.json``.

    Args:
        path: ``tokenizer.json``, ``tokenizer.model`` (Llama 2 or 3), llama2.c's ``tok*.bin``, a
            ``.gguf``, a folder with one of these except ``.gguf``, or ``byte``, which is
            :class:`ByteTokenizer`.

    Raises:
        FileNotFoundError: there is no such file.
        TokenizerError: the format is unknown, the file is damaged, or the package that reads it is
            not installed.
    """
    if os.fspath(path) == "byte":
        return ByteTokenizer()
    path = tokenizer_file(path)
    tokenizer = _load(path)
    if path.suffix != ".gguf":  # which contains all settings
        _read_settings(tokenizer, path.parent, has_post_processor=path.suffix == ".json")
    return tokenizer


def tokenizer_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that :func:`load_tokenizer` reads: `path` itself, or a file in that folder.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        names = [*(path / name for name in ("tokenizer.json", "tokenizer.model")),
                 *sorted(path.glob("tok*.bin"))]  # fmt: skip
        path = next((name for name in names if name.is_file()), path / "tokenizer.json")
    if not path.is_file():
        raise FileNotFoundError(f"path: no such file: {path}")
    return path


def _load(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        from .bpe import from_json

        return from_json(path)
    if path.suffix == ".bin":
        return from_llama2c(path)
    if path.suffix == ".gguf":
        return from_gguf(_gguf_metadata(path))
    if path.suffix != ".model":
        raise TokenizerError(f"{path}: expected a .json, .model, .bin or .gguf file")
    with path.open("rb") as file:
        start = file.read(1)
    if start == b"\n":  # field 1 of SentencePiece's protocol buffer; Llama 3's is base64 text
        from .spm import from_model

        return from_model(path)
    from .ranks import from_ranks

    return from_ranks(path)


def _gguf_metadata(path: Path) -> dict[str, Any]:
    try:
        from llama_fast._gguf import Reader
    except ImportError as error:
        raise TokenizerError(lacking("GGUF files", "gguf", "checkpoints")) from error
    try:
        return Reader(path).metadata
    except ValueError as error:
        raise TokenizerError(str(error)) from None


def _read_settings(tokenizer: Tokenizer, folder: Path, *, has_post_processor: bool) -> None:
    """Apply the settings in Hugging Face's files in the tokenizer's folder."""
    fields = _json(folder / "tokenizer_config.json")
    # Links are not followed: one to a private file would put its content into the prompts.
    template = inside(folder, "chat_template.jinja", folder, TokenizerError)
    # With a tokenizer.json, transformers ignores the flag and follows the post-processor.
    if isinstance(fields.get("add_bos_token"), bool) and not has_post_processor:
        tokenizer.add_bos = fields["add_bos_token"] and tokenizer.bos_id is not None
    try:
        chat_template = default_template(fields.get("chat_template"))
    except TokenizerError as error:
        raise TokenizerError(f"{folder / 'tokenizer_config.json'}: {error}") from None
    if template.is_file():
        chat_template = _text(template)
    tokenizer.chat_template = chat_template
    generation = folder / "generation_config.json"
    ends = _json(generation).get("eos_token_id")
    try:
        tokenizer.add_end_ids(ends)
        if not all(0 <= i < MAX_VOCAB_SIZE for i in tokenizer.end_ids):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise TokenizerError(
            f"{generation}: eos_token_id: expected an id, a list of ids or null, got {ends!r}"
        ) from None


def default_template(given: Any) -> str | None:
    """Return the chat template named "default" of several, or the only one; None if there is none.

    Args:
        given: Jinja source, a dict of sources by name, or a list of dicts with "name" and
            "template", as in ``tokenizer_config.json`` and in transformers.

    Raises:
        TokenizerError: the template is not a string.
    """
    if isinstance(given, list):
        named = [each for each in given if isinstance(each, dict)]
        given = {str(each.get("name")): each.get("template") for each in named}
    template = given.get("default") if isinstance(given, dict) else given
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"chat_template: expected Jinja source, got {template!r:.80}")
    return template


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def _json(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON file; an empty dictionary if there is no such file."""
    if not path.is_file():
        return {}
    fields: dict[str, Any] = read_json(path, error=TokenizerError)
    return fields


def from_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of a GGUF file's metadata (its keys ``tokenizer.ggml.*``).

    Raises:
        TokenizerError: the file has no tokenizer, or one of an unsupported type.
    """
    _check_types(metadata)
    model = metadata.get("tokenizer.ggml.model")
    tokenizer: Tokenizer
    try:
        with no_panics("tokenizer.ggml", TokenizerError):
            if model == "gpt2":
                from .bpe import from_gguf_bpe

                tokenizer = from_gguf_bpe(metadata)
            elif model == "llama":
                from .spm import from_gguf_spm

                tokenizer = from_gguf_spm(metadata)
            else:
                raise TokenizerError(
                    f"tokenizer.ggml.model: expected 'gpt2' or 'llama', got {model!r:.80}"
                )
    except (TokenizerError, ImportError):
        raise
    except Exception as error:  # the packages that read it raise no narrower class
        raise TokenizerError(f"tokenizer.ggml: damaged: {error}") from error
    tokenizer.chat_template = default_template(metadata.get("tokenizer.chat_template"))
    tokenizer.add_end_ids(metadata.get("tokenizer.ggml.eot_token_id"))
    return tokenizer


def _is_list_of(value: Any, types: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, types) for each in value)


def _check_types(metadata: dict[str, Any]) -> None:
    """Raise TokenizerError if a value does not have the type that GGUF gives to its key."""
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.ggml.")
        if key == "tokenizer.chat_template" or name in ("model", "pre"):
            expected, ok = "a string", isinstance(value, str)
        elif not key.startswith("tokenizer.ggml."):
            continue
        elif name in ("tokens", "merges"):
            expected, ok = "strings", _is_list_of(value, str)
        elif name in ("scores", "token_type"):
            expected = "numbers"
            ok = _is_list_of(value, (int, float)) or (
                hasattr(value, "dtype") and value.dtype.kind in "iuf"
            )
        elif name in ("bos_token_id", "eos_token_id", "eot_token_id"):
            expected, ok = "an id", isinstance(value, int) and 0 <= value < MAX_VOCAB_SIZE
        elif name in ("add_bos_token", "add_space_prefix"):
            expected, ok = "a bool", isinstance(value, bool)
        else:
            continue
        if not ok:
            raise TokenizerError(f"{key}: expected {expected}, got {value!r:.80}")


def from_llama2c(path: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer of llama2.c's ``tok*.bin``; errors as for :func:`load_tokenizer`."""
    from .spm import from_llama2c_bin

    return from_llama2c_bin(Path(path))
