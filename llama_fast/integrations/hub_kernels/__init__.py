"""Our kernels for the Hub's `kernels` package, which transformers asks for `use_kernels=True`.

`kernel` is a kernel repository in the form that this package loads; it offers `layers` and our
attention. `registration` registers it, `slots` marks layers of transformers that no
kernel could replace otherwise, and `repository` writes a repository that can be uploaded.
"""

from llama_fast.integrations.hub_kernels.registration import (
    ATTENTION,
    kernel_mapping,
    register_kernels,
    unregister_kernels,
)

__all__ = ["ATTENTION", "kernel_mapping", "register_kernels", "unregister_kernels"]
