"""The report of a patch: which modules were replaced, and why others were not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from torch import nn


@dataclass(frozen=True)
class Entry:
    """The result of :func:`llama_fast.patch` for one module.

    Attributes:
        name: the module's name in the model, "" for the model itself.
        module: the name of its class.
        part: "attention", "loss", "rms_norm", "rope", "mlp", "linear" or "torch".
        replaced: whether the module now runs our kernel.
        reason: why it does not; "" if it does.
    """

    name: str
    module: str
    part: str
    replaced: bool
    reason: str = ""


@dataclass
class Report:
    """The result of :func:`llama_fast.patch`; a context manager that undoes the patch at its end.

    Attributes:
        model: the patched model.
        undo: called with the model at the end of a ``with`` block.
        entries: one for each module that was replaced or could not be.
    """

    model: nn.Module
    undo: Callable[[nn.Module], None] = field(repr=False)
    entries: list[Entry] = field(default_factory=list)

    def replaced(self, part: str | None = None) -> list[str]:
        """Names of the modules that run our kernels, for one part or for all."""
        return [e.name for e in self.entries if e.replaced and part in (None, e.part)]

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo(self.model)

    def __str__(self) -> str:
        """Format the report as a table in which equal layers share a row."""
        counts = Counter(
            (
                e.part,
                re.sub(r"(?<=\.)\d+(?=\.|$)", "*", e.name) or "(the model)",
                e.module,
                "replaced" if e.replaced else f"left: {e.reason}",
            )
            for e in self.entries
        )
        if not counts:
            return "llama_fast: no module of this model was recognised"
        widths = [max(len(row[i]) for row in counts) for i in range(3)]
        lines = []
        for (*cells, outcome), count in counts.items():
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            lines.append("  ".join([*padded, f"{count:>4} ×  {outcome}"]))
        return "\n".join(lines)
