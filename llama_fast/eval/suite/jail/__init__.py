"""The processes that run model-written programs with their tests, and model-written SQL.

This package uses the standard library only: it runs under ``python -I -S``, which imports nothing
else.
"""

from __future__ import annotations

import os
import sys

__all__ = ["command"]


def command(module: str) -> list[str]:
    """The command line that runs the ``main`` of a module of this package, in a fresh Python.

    The parent folder is on the import path only while this package is imported.
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); "
        f"from jail.{module} import main; del sys.path[0]; main()"
    )
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", code]
