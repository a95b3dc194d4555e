"""The benchmark suite of the Llama 2 paper as tasks of lm-evaluation-harness.

    from lm_eval.evaluator import evaluate
    from llama_fast.eval.suite import load_tasks, paper_table, summarise

    tasks = load_tasks(["llama2-paper"], data_dir="mirror", allow_code=True)
    results = evaluate(lm, task_dict=tasks, confirm_run_unsafe_code=True)
    rows = summarise(results, "llama2-paper")

lm-eval is imported when tasks are loaded, not before.
"""

from llama_fast.eval.suite.loading import LoadedTasks, load_tasks
from llama_fast.eval.suite.mirror import MissingDataError
from llama_fast.eval.suite.paper import PaperRow, PaperTable, paper_table
from llama_fast.eval.suite.presets import PRESETS, Column, Part, Suite, suite
from llama_fast.eval.suite.summary import PartScore, Score, summarise

__all__ = [
    "PRESETS",
    "Column",
    "LoadedTasks",
    "MissingDataError",
    "PaperRow",
    "PaperTable",
    "Part",
    "PartScore",
    "Score",
    "Suite",
    "load_tasks",
    "paper_table",
    "suite",
    "summarise",
]
