"""Finds subpackages whose sources are outside the package folder: `kernels/`, `benchmarks/`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def find_beside(name: str) -> None:
    """Make ``llama_fast.<name>`` importable in a checkout that is not installed.

    In an installed package the folder is an ordinary subpackage, and this does nothing.
    """
    package = f"llama_fast.{name}"
    folder = _ROOT / name
    if package in sys.modules or not (_ROOT / "build_native.py").exists():
        return
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is not None and spec.loader is not None:
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
