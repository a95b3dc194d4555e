"""Imports the Hub's `kernels` package, whose name is that of a folder of our sources."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any


def hub_package() -> Any:
    """Return the module `kernels` of the Hub's package.

    Raises:
        ImportError: it is not installed, transformers does not accept its version, or another
            folder of that name comes before it on the path.
    """
    import transformers
    from transformers.dependency_versions_table import deps
    from transformers.utils import is_kernels_available

    if not is_kernels_available():
        try:
            found = f"version {metadata.version('kernels')}"
        except metadata.PackageNotFoundError:
            found = "none"
        raise ImportError(
            f"kernels: expected a version that transformers {transformers.__version__} accepts, "
            f"got {found}; pip install '{deps.get('kernels', 'kernels')}'"
        )
    package = importlib.import_module("kernels")
    if not hasattr(package, "register_kernel_mapping"):
        raise ImportError(
            f"kernels: expected the package of the Hugging Face Hub, got {package.__file__}, which "
            "comes before it on sys.path"
        )
    return package
