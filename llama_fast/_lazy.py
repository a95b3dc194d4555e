"""Package attributes that are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def lazy_attributes(
    package: str, names: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package with lazy attributes.

    An attribute is imported once and is then an ordinary attribute of the package.

    Args:
        package: the package's ``__name__``.
        names: module -> the attributes that it defines.
        submodules: modules of the package that are attributes of it.
    """
    modules = {name: module for module, of_module in names.items() for name in of_module}

    def get_attribute(name: str) -> Any:
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")  # the import sets the attribute
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def list_attributes() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules, *submodules})

    return get_attribute, list_attributes


def is_command() -> bool:
    """Return whether this process is `llama-fast`, or `python -m llama_fast`."""
    arguments = getattr(sys, "argv", [])  # absent if Python is embedded
    if arguments[:1] == ["-m"]:  # python -m, while it looks for the module
        # The interpreter's own arguments end with the name: -m llama_fast, or -mllama_fast.
        return bool(re.fullmatch(r"(-\w*m)?llama_fast", sys.orig_argv[-len(arguments)]))
    return bool(arguments) and Path(arguments[0]).name in ("llama-fast", "llama-fast.exe")
