"""Create the model and the optimizer of a run from its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from llama_fast.models import LLaMA, LlamaConfig
from llama_fast.models.loading import read_model
from llama_fast.train.config import TrainConfig
from llama_fast.train.parallel import placement_of


def new_shape(config: TrainConfig, vocab_size: int | None) -> LlamaConfig | None:
    """The architecture that `model.preset` and `model.overrides` describe.

    Args:
        config: the run's configuration.
        vocab_size: vocabulary size of its data; None uses that of the preset.

    Returns:
        The architecture, or None with `model.init_from`, whose checkpoint determines it.

    Raises:
        ValueError: the overrides make no valid model, the vocabulary is smaller than that of the
            data, or there are both overrides and `init_from`.
    """
    options = config.model
    if options.init_from is not None:
        if options.overrides:
            raise ValueError("model.overrides: expected none with model.init_from")
        return None
    shape = LlamaConfig.preset(options.preset)
    tokens = {} if vocab_size is None else {"vocab_size": vocab_size}
    overrides: dict[str, Any] = {**tokens, **options.overrides}
    overrides.setdefault("max_seq_len", max(shape.max_seq_len, config.data.seq_len))
    fields = {field.name for field in dataclasses.fields(LlamaConfig)}
    if unknown := sorted(set(overrides) - fields):
        raise ValueError(
            f"model.overrides: expected fields of LlamaConfig, got {', '.join(unknown)}"
        )
    shape = dataclasses.replace(shape, **overrides)
    _check_vocabulary("model.overrides", shape, vocab_size)
    return shape


def _check_vocabulary(name: str, shape: LlamaConfig, vocab_size: int | None) -> None:
    if vocab_size is not None and shape.vocab_size < vocab_size:
        raise ValueError(
            f"{name}: expected a vocabulary of at least the data's {vocab_size} tokens, got "
            f"{shape.vocab_size}"
        )


def make_model(config: TrainConfig, vocab_size: int) -> LLaMA:
    """Create the model of a new run, with random weights or those of `model.init_from`.

    Raises:
        ValueError: see :func:`new_shape`; or the vocabulary of `init_from` is smaller than that of
            the data.
    """
    shape = new_shape(config, vocab_size)
    if shape is not None:
        return LLaMA(shape)
    assert config.model.init_from is not None
    model, _ = read_model(config.model.init_from, torch.float32, with_tokenizer=False)
    _check_vocabulary("model.init_from", model.config, vocab_size)
    return model


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Create a fused AdamW; only matrices have weight decay."""
    options = config.optimizer
    groups: dict[Any, dict[str, Any]] = {}
    for weight in model.parameters():
        decay = options.weight_decay if weight.dim() >= 2 else 0.0
        # Groups are in the order of the model's weights, which is the same on every process.
        group = groups.setdefault(
            (decay, placement_of(weight)), {"params": [], "weight_decay": decay}
        )
        group["params"].append(weight)
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        list(groups.values()), lr=options.lr, betas=betas, eps=options.eps, fused=True
    )
