"""LaTeX in Markdown as MathML, which browsers draw without a script: $x$, and ```math blocks."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor


class _Inline(InlineProcessor):
    def handleMatch(self, m: Any, data: str) -> tuple[Any, int, int]:
        element = ElementTree.Element("span", {"class": "math"})
        element.text = self.md.htmlStash.store(convert(m[1]))
        return element, m.start(0), m.end(0)


class MathExtension(Extension):
    """$x$ within a line. Dollars of prices and shells are not followed and preceded by it."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register behind code spans (190), whose dollars are their own."""
        md.inlinePatterns.register(
            _Inline(r"(?<![\\\w$])\$([^\s$](?:[^$\n]*[^\s$])?)\$(?![\w$])", md), "math", 185
        )


def block(source: str, *_: Any, **__: Any) -> str:
    """A ```math block; a line `\\` ends a row of its own formula."""
    rows = "".join(
        f'<div class="math-row">{convert(row, display="block")}</div>'
        for row in source.strip().split("\n\n")
    )
    return f'<div class="math">{rows}</div>'
