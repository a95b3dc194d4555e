"""The results of the Llama 2 paper as data (arXiv 2307.09288, Tables 3 and 11)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PaperRow", "PaperTable", "paper_table"]


@dataclass(frozen=True)
class PaperRow:
    """One model of the paper's table.

    Attributes:
        family, size: as the paper prints them, such as "Llama 2" and "7B".
        scores: column name -> percent, for the eight benchmark groups.
        safety: "TruthfulQA" and "ToxiGen" -> percent; lower is better for ToxiGen.
    """

    family: str
    size: str
    scores: dict[str, float]
    safety: dict[str, float]

    @property
    def name(self) -> str:
        """Family and size, such as "Llama 2 7B"."""
        return f"{self.family} {self.size}"


@dataclass(frozen=True)
class PaperTable:
    """The table.

    Attributes:
        source: the source of the numbers.
        columns: names of the eight benchmark groups, in the paper's order.
        footnotes: column name -> caveat on comparisons with it.
        rows: the twelve models, in the paper's order.
    """

    source: str
    columns: tuple[str, ...]
    footnotes: dict[str, str]
    rows: tuple[PaperRow, ...]


def paper_table() -> PaperTable:
    """The paper's Table 3 (all models and sizes), with Table 11's safety figures beside it."""
    data = json.loads(Path(__file__).with_name("paper_table.json").read_text(encoding="utf-8"))
    columns = tuple(data["columns"])
    rows = tuple(
        PaperRow(
            model["family"],
            model["size"],
            dict(zip(columns, model["scores"], strict=True)),
            dict(zip(data["safety_columns"], model["safety"], strict=True)),
        )
        for model in data["models"]
    )
    return PaperTable(data["source"], columns, data["footnotes"], rows)
