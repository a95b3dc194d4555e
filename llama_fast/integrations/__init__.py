"""The kernels in models and code that people already have."""

from llama_fast.integrations._when_imported import when_imported
from llama_fast.integrations.hub_kernels import (
    kernel_mapping,
    register_kernels,
    unregister_kernels,
)
from llama_fast.integrations.patch import patch, unpatch
from llama_fast.integrations.report import Entry, Report

__all__ = [
    "Entry",
    "Report",
    "kernel_mapping",
    "patch",
    "register_kernels",
    "unpatch",
    "unregister_kernels",
]


def _register() -> None:
    import llama_fast.integrations.transformers  # noqa: F401  registers itself


# attn_implementation="llama_fast" works after `import llama_fast`, in whichever order the two are
# imported, although `import llama_fast` does not import transformers.
when_imported("transformers.modeling_utils", _register)
