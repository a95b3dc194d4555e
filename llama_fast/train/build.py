"""What a run is built of, as its configuration says: the model and its optimizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from llama_fast.models import LLaMA, Llama3RopeScaling, LlamaConfig, load
from llama_fast.train.checkpoints import STATE, Checkpoint, CheckpointError
from llama_fast.train.config import TrainConfig
from llama_fast.train.parallel import kind_of


def new_shape(config: TrainConfig, vocab_size: int | None) -> LlamaConfig | None:
    """The architecture that `model.preset` and `model.overrides` describe.

    Args:
        config: of the run.
        vocab_size: of its data; None takes the preset's.

    Returns:
        None with `model.init_from`: those weights have their own.

    Raises:
        ValueError: overrides that make no valid model, a vocabulary smaller than that of the data,
            or overrides together with `init_from`.
    """
    options = config.model
    if options.init_from is not None:
        if options.overrides:
            raise ValueError("model.overrides: expected none beside model.init_from")
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


def recorded_shape(found: Checkpoint) -> LlamaConfig:
    """The shape of the model in a run's checkpoint.

    Raises:
        CheckpointError: none that can be built, or one of more weights than its files hold: nothing
            is allocated for a number that somebody wrote.
    """
    check_state(found)
    where, fields = found.path / STATE, dict(found.state["model"])
    try:
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = Llama3RopeScaling(**fields["rope_scaling"])
        if fields.get("rope_factors") is not None:
            fields["rope_factors"] = tuple(fields["rope_factors"])
        shape = LlamaConfig(**fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: not a Llama model that can be built: {error}") from None
    held = sum(file.stat().st_size for file in found.path.glob("*.safetensors"))
    if shape.num_parameters() > held:  # each takes a byte at least
        raise CheckpointError(
            f"{where}: expected a model that the {held:,} bytes of tensors beside it can hold, got "
            f"one of {shape.num_parameters():,} weights"
        )
    return shape


def check_state(found: Checkpoint) -> None:
    """CheckpointError unless a checkpoint's state has the parts of a run, each of its type."""
    state: dict[str, Any] = {"loader": {}, "scaler": {}, "ranks": 1, "device": "cpu", **found.state}
    for name, kind in _STATE.items():
        value: Any = state
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(
                f"{found.path / STATE}: expected {kind.__name__} for {name!r}, got {value!r:.80}"
            )


# What stands where in a checkpoint's state.
_STATE: dict[str, type] = {
    "model": dict,
    "config": dict,
    "config.data": dict,
    "config.data.train": str,
    "config.optimizer": dict,
    "loader": dict,
    "scaler": dict,
    "ranks": int,
    "device": str,
}


def make_model(config: TrainConfig, vocab_size: int) -> LLaMA:
    """The model of a new run, its weights drawn or those of `model.init_from`.

    Raises:
        ValueError: as :func:`new_shape`; `init_from` with too few tokens for the data.
    """
    shape = new_shape(config, vocab_size)
    if shape is not None:
        return LLaMA(shape)
    assert config.model.init_from is not None
    model, _ = load(config.model.init_from, dtype=torch.float32)
    _check_vocabulary("model.init_from", model.config, vocab_size)
    return model


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one kernel a step; weight decay on matrices alone."""
    options = config.optimizer
    groups: dict[Any, dict[str, Any]] = {}
    for weight in model.parameters():
        decay = options.weight_decay if weight.dim() >= 2 else 0.0
        # Insertion order is that of the model, the same on every process.
        group = groups.setdefault((decay, kind_of(weight)), {"params": [], "weight_decay": decay})
        group["params"].append(weight)
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        list(groups.values()), lr=options.lr, betas=betas, eps=options.eps, fused=True
    )
