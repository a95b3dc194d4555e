"""Two runs of SmolLM2-135M-Instruct, as lm-eval's HFLM scored them: float32 and bfloat16.

Real logs of a few real questions of five benchmarks, written by `write_run`. And the results of the
whole suite, with groups, without logs.
"""

from pathlib import Path

HERE = Path(__file__).parent
FLOAT32 = HERE / "smollm2_float32"
BFLOAT16 = HERE / "smollm2_bfloat16"
QUESTIONS = {"arc_easy": 10, "hellaswag": 8, "piqa": 12, "winogrande": 10, "gsm8k": 3}
SUITE = HERE.parents[2] / "benchmarks" / "results" / "smollm2-135m-llama2-suite.json"
