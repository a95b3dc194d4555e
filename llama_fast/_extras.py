"""The errors about packages that are not installed: what needs which, and the extra that has it."""

from __future__ import annotations

import importlib.util

__all__ = ["lacking", "require"]


def lacking(what: str, package: str, extra: str) -> str:
    """The message that something needs a package which an extra of llama_fast installs.

    Args:
        what: what needs the package, in the plural, such as "GGUF files".
        package: the package's name.
        extra: name of the extra, such as "checkpoints".
    """
    return f"{what} need the {package} package: pip install 'llama_fast[{extra}]'"


def require(what: str, extra: str, *modules: str) -> None:
    """Check that modules of other packages can be imported, without importing them.

    Args:
        what: what needs them, in the singular, such as "llama-fast bench".
        extra: the extra that installs them.
        modules: their names.

    Raises:
        ImportError: one is not there.
    """
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(
            f"{what} needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not "
            f"installed: pip install 'llama_fast[{extra}]'"
        )
