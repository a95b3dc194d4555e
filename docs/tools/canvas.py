"""A canvas for the documentation's drawings: SVG in colours that follow light and dark."""

from __future__ import annotations

from html import escape

_LIGHT = {
    "ink": "#1f2937", "soft": "#6b7280", "line": "#9ca3af", "box": "#f3f4f6",
    "a": "#0d9488", "b": "#ea580c", "c": "#2563eb", "d": "#7c3aed",
}  # fmt: skip
_DARK = {
    "ink": "#e5e7eb", "soft": "#9ca3af", "line": "#6b7280", "box": "#2b303b",
    "a": "#2dd4bf", "b": "#fb923c", "c": "#60a5fa", "d": "#a78bfa",
}  # fmt: skip


def _colours(of: dict[str, str]) -> str:
    return ".lf-drawing { " + " ".join(f"--{name}: {value};" for name, value in of.items()) + " }"


STYLE = f"""
{_colours(_LIGHT)}
@media (prefers-color-scheme: dark) {{ {_colours(_DARK)} }}
.lf-drawing text {{ font: 13px system-ui, sans-serif; fill: var(--ink); }}
.lf-drawing .soft {{ fill: var(--soft); font-size: 12px; }}
.lf-drawing .bold {{ font-weight: 600; }}
""".strip()


class Drawing:
    """Shapes on a canvas; y grows downwards, units are pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        colour: str = "line",
        *,
        fill: float = 0.0,
        text: str = "",
        dashed: bool = False,
        radius: float = 3,
    ) -> None:
        """A rectangle filled with a share of its colour, lines of text in its middle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" '
            f'fill="var(--{colour})" fill-opacity="{fill:g}" stroke="var(--{colour})"'
            + (' stroke-dasharray="4 3"' if dashed else "")
            + "/>"
        )
        lines = text.split("\n") if text else []
        for n, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + 4.5 + 16 * (n - (len(lines) - 1) / 2), line, "middle")

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> None:
        """A line of text; `kind` is soft or bold."""
        attributes = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{attributes}>{escape(text)}</text>'
        )

    def paragraph(self, x: float, y: float, lines: str, kind: str = "") -> None:
        """Lines of text, one under the other."""
        for n, line in enumerate(lines.strip().splitlines()):
            self.text(x, y + 17 * n, line.strip(), kind=kind)

    def arrow(
        self, x1: float, y1: float, x2: float, y2: float, colour: str = "soft", text: str = ""
    ) -> None:
        """An arrow to (x2, y2), with a line of text above its middle."""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="var(--{colour})" '
            f'stroke-width="1.5" marker-end="url(#tip-{colour})"/>'
        )
        if text:
            self.text((x1 + x2) / 2, (y1 + y2) / 2 - 6, text, "middle", "soft")

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "line") -> None:
        """A straight line."""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="var(--{colour})"/>'
        )

    def svg(self) -> str:
        """The file's content."""
        tips = "".join(
            f'<marker id="tip-{colour}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="var(--{colour})"/>'
            "</marker>"
            for colour in ("soft", "a", "b", "c", "d")
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'class="lf-drawing">\n<style>\n{STYLE}\n</style>\n<defs>{tips}</defs>\n{body}\n</svg>\n'
        )
