"""What a person gets to see of an evaluation.

- `results`: the files, as lm-evaluation-harness writes them.
- `table`: progress while it runs; `final_table`: the tables at its end.
- `groups`: scores of groups of tasks.
- `html`: one page to look at a run, or at two; `page/` is what the browser gets.
- `compare`: is one run better than another on the same questions?
"""

from .results import Run, read_run, write_run

__all__ = ["Run", "read_run", "write_run"]
