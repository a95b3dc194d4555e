"""transformers' AutoModelForCausalLM, with the kernels in it."""

from __future__ import annotations

from typing import Any

import transformers

from llama_fast.integrations.patch import patch

_PARTS = ("attention", "loss", "rms_norm", "rope", "mlp", "linear")


class AutoModelForCausalLM:
    """Makes models as `transformers.AutoModelForCausalLM` does and puts the kernels into them.

    The arguments are transformers'; those of :func:`llama_fast.patch` may stand among them. Python
    that a repository brings runs only with ``trust_remote_code=True``: nobody is asked about it.

    Example:
        >>> model = llama_fast.AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> transformers.PreTrainedModel:
        """`transformers.AutoModelForCausalLM.from_pretrained`, patched."""
        return _made(transformers.AutoModelForCausalLM.from_pretrained, args, kwargs)

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> transformers.PreTrainedModel:
        """`transformers.AutoModelForCausalLM.from_config`, patched."""
        return _made(transformers.AutoModelForCausalLM.from_config, args, kwargs)


def _made(make: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parts = {name: kwargs.pop(name) for name in _PARTS if name in kwargs}
    model = make(*args, **{"trust_remote_code": False, **kwargs})
    patch(model, **parts)
    return model
