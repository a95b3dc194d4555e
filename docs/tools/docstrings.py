"""Docstrings as mkdocstrings wants them: `Example:` is a section, Sphinx's roles are code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that has been read."""
        if obj.docstring is not None:
            text = re.sub(
                r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )
            text = re.sub(r":(?:func|class|meth|mod):(`[^`]+`)", r"\1", text)
            obj.docstring.value = _JOINED.sub(_apart, text)


# `a, b: text` among the arguments, with the lines that continue it.
_JOINED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)$", re.MULTILINE)


def _apart(match: re.Match[str]) -> str:
    """An entry for each of the arguments that share one."""
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
