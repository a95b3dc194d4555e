"""transformers' AutoModelForCausalLM that returns patched models."""

from __future__ import annotations

from typing import Any

import transformers

from llama_fast.integrations.patch import patch

_PARTS = ("attention", "loss", "rms_norm", "rope", "mlp", "linear")


class AutoModelForCausalLM:
    """`transformers.AutoModelForCausalLM`, followed by :func:`llama_fast.patch`.

    Takes the arguments of both. Python code of a repository runs only with
    ``trust_remote_code=True``; there is no interactive question.

    Example:
        >>> model = llama_fast.AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> transformers.PreTrainedModel:
        """`transformers.AutoModelForCausalLM.from_pretrained`, patched."""
        return _patched(transformers.AutoModelForCausalLM.from_pretrained, args, kwargs)

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> transformers.PreTrainedModel:
        """`transformers.AutoModelForCausalLM.from_config`, patched."""
        return _patched(transformers.AutoModelForCausalLM.from_config, args, kwargs)


def _patched(make: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parts = {name: kwargs.pop(name) for name in _PARTS if name in kwargs}
    model = make(*args, **{"trust_remote_code": False, **kwargs})
    patch(model, **parts)
    return model
