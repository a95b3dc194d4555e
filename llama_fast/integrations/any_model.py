"""Loads models of any architecture: ours, or transformers' models, which are then patched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama_fast._device import device_of
from llama_fast._dtype import dtype_of
from llama_fast._extras import lacking
from llama_fast._inside import inside
from llama_fast._reading import read_json
from llama_fast.models import LLaMA
from llama_fast.models.decoder import Decoder
from llama_fast.models.loading import as_tokenizer, load_model, locate
from llama_fast.tokenizers import Tokenizer

__all__ = ["check_transformers", "decoder_of", "load_any"]


def load_any(
    source: Any,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Tokenizer]:
    """Load a model in evaluation mode, and its tokenizer.

    Args:
        source: a :class:`LLaMA`, a language model of transformers, or a path or name that
            :func:`llama_fast.models.loading.load_model` accepts. If a folder contains an
            architecture other than Llama, transformers loads the model and it is patched.
        tokenizer: a file or folder, a :class:`Tokenizer`, or a fast tokenizer of transformers.
            None: the tokenizer that comes with the source.
        dtype: "float32", "bfloat16", "float16", or "auto" for the dtype of the checkpoint.
        device: "cpu", "cuda", ...; None: a GPU if there is one. A model passed as `source` is not
            moved.
        trust_remote_code: run Python code from the model's folder or repository (`auto_map`).

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError: the checkpoint is damaged.
        ValueError: the dtype or device is unknown, no tokenizer was found, or the model needs its
            own Python code and `trust_remote_code` is false.
    """
    stored_dtype, target = dtype_of(dtype), device_of(device or "auto")
    if isinstance(source, nn.Module):
        if tokenizer is None:
            raise ValueError("tokenizer: expected one beside a model that is at hand, got None")
        its = as_tokenizer(tokenizer)
        if its is not tokenizer:
            settings = getattr(source, "generation_config", None)
            its.add_end_ids(getattr(settings, "eos_token_id", None))
        return source.eval(), its
    path = locate(source, trust_remote_code=trust_remote_code)
    words = None if tokenizer is None else as_tokenizer(tokenizer)
    model: nn.Module
    if _architecture(path) not in (None, "llama"):
        model, own = _with_transformers(path, stored_dtype, words, trust_remote_code), None
    else:
        model, own = load_model(path, words, stored_dtype)
    words = words or own or as_tokenizer(path)
    return model.to(target), words


def decoder_of(model: nn.Module) -> Decoder:
    """Return a model, ours or one of transformers, as a decoder in evaluation mode.

    Raises:
        TypeError: `model` is neither.
        ValueError: a transformers model has layers other than attention and feed-forward.
    """
    if isinstance(model, LLaMA):
        return model.eval()
    from llama_fast.integrations.transformers.decoder import TransformersDecoder

    return TransformersDecoder(model)


def _architecture(path: Path) -> str | None:
    """The `model_type` in a Hugging Face folder, else None."""
    config = path / "config.json"
    if not config.is_file():
        return None
    try:
        found = read_json(config).get("model_type")
    except ValueError:
        return None  # the loader reports what is wrong
    return None if found is None else str(found)


def _with_transformers(
    path: Path, dtype: torch.dtype | None, words: Tokenizer | None, trust_remote_code: bool
) -> nn.Module:
    check_transformers()
    from transformers import AutoModelForCausalLM

    from llama_fast.integrations import patch
    from llama_fast.models.checkpoints.common import read_json
    from llama_fast.models.checkpoints.huggingface import shards_of

    if words is None:
        as_tokenizer(path)  # fails before a large model is read
    config = read_json(path / "config.json")
    for index in path.glob("*.safetensors.index.json"):
        shards_of(index)  # raises if a name leads out of the folder
    if config.get("transformers_weights") is not None:  # older versions take any path
        inside(path, config["transformers_weights"], path / "config.json")
    needs_code = (
        f"model: {path} brings Python code of its own, which runs only if you trust it and say so "
        "(--trust-remote-code, trust_remote_code=True)"
    )
    # Some of transformers' own configurations took the flag from the file (CVE-2026-5241).
    if not trust_remote_code and _grants_itself_trust(config):
        raise ValueError(needs_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(needs_code) from None
    patch(model)
    return model.eval()


def check_transformers() -> None:
    """Raise ImportError for versions of transformers that may run code from a model's files.

    CVE-2026-4372 is fixed in 5.3, CVE-2026-5241 in 5.5.
    """
    try:
        import transformers
    except ImportError as error:
        what = "models of architectures other than Llama"
        raise ImportError(lacking(what, "transformers", "patch")) from error

    found = transformers.__version__
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < (5, 5):
        raise ImportError(
            f"transformers: expected 5.5 or later, got {found}, which runs code of a model's files"
        )


def _grants_itself_trust(fields: Any) -> bool:
    """Whether a configuration, or a nested one, asks for its own code to be trusted."""
    if isinstance(fields, list):
        return any(map(_grants_itself_trust, fields))
    if not isinstance(fields, dict):
        return False
    return bool(fields.get("trust_remote_code")) or any(map(_grants_itself_trust, fields.values()))
