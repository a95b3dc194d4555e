"""Output of an evaluation: files, terminal tables and an HTML page.

- `results`: the files, in the format of lm-evaluation-harness.
- `table`: progress during a run; `final_table`: the tables at its end.
- `groups`: scores of groups of tasks.
- `html`: a page that shows one run or two; `page/` holds its styles and scripts.
- `compare`: whether one run is better than another on the same questions.
"""

from .results import Run, read_run, write_run

__all__ = ["Run", "read_run", "write_run"]
