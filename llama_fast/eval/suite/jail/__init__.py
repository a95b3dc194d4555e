"""The processes in which what a model wrote runs: a program with its tests beside it, SQL.

Standard library only: they start under ``python -I -S``, in which nothing else can be imported.
"""

from __future__ import annotations

import os
import sys

__all__ = ["command"]


def command(module: str) -> list[str]:
    """The command line that runs the ``main`` of a module of this package, in a fresh Python.

    Nothing of the folder around this package, which is on the path meanwhile, gets imported.
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); "
        f"from jail.{module} import main; del sys.path[0]; main()"
    )
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", code]
