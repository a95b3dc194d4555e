"""Two runs of SmolLM2-135M-Instruct, as lm-eval's HFLM scored them: float32 and bfloat16.

Real logs of a few real questions of five benchmarks, written by `write_run`. And the results of the
whole suite, with groups, without logs.
"""

import json
from pathlib import Path

from llama_fast.eval.report import Run, read_run

HERE = Path(__file__).parent
FLOAT32 = HERE / "smollm2_float32"
BFLOAT16 = HERE / "smollm2_bfloat16"
QUESTIONS = {"arc_easy": 10, "hellaswag": 8, "piqa": 12, "winogrande": 10, "gsm8k": 3}
SUITE = HERE.parents[2] / "benchmarks" / "results" / "smollm2-135m-llama2-suite.json"


def suite_with_zeros(folder: Path) -> Run:
    """The run of the whole suite with every answer of MATH wrong, whatever the model knew."""
    results = json.loads(SUITE.read_text())
    for rows in (results["results"], results["groups"]):
        for task, row in rows.items():
            if task.startswith("minerva_math"):
                row |= {"exact_match,none": 0.0, "exact_match_stderr,none": 0.0}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return read_run(folder)
