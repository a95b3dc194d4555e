"""What a person gets to see of an evaluation: files, tables, a page, a comparison of two runs."""

from .results import Run, read_run, write_run

__all__ = ["Run", "read_run", "write_run"]
