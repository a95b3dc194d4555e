"""Speed of evaluating SmolLM2-135M: lm-evaluation-harness's own engine compared with ours.

    python -m benchmarks.evaluation --data-dir DIR [--dtype bfloat16] [--quick] [--out FOLDER]

(`make bench-eval`.) Both engines have the same weights in the same dtype and alternate on the same
requests in one process, after a warm-up; results are medians of the rounds. The time includes
tokenising, but not loading. The answers are compared: the chosen option of every question, or the
text. In 16 bits rounding decides near-ties, so each side is also compared with float32.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import llama_fast
from benchmarks.report import machine_slug
from llama_fast import info
from llama_fast._format import times
from llama_fast._write import write_whole
from llama_fast.data.fetch import smollm2_path

WARM_UP = 4  # number of requests
PACKAGES = ("torch", "transformers", "lm_eval", "llama_fast")


@dataclass(frozen=True)
class Case:
    """A set of requests.

    Attributes:
        name: name in the table.
        task: task of the suite.
        questions: number of questions, the first ones of the task.
        goal: required speed-up over the harness's engine.
        tokens: largest number of generated tokens; 0 for likelihoods.
        rounds: number of rounds of each side.
    """

    name: str
    task: str
    questions: int
    goal: float
    tokens: int = 0
    rounds: int = 3


CASES = (
    Case("HellaSwag", "hellaswag", 100, 2.5),
    Case("ARC-Easy", "arc_easy", 100, 3.0),
    Case("MMLU 5-shot, one subject", "mmlu_5shot_high_school_biology", 200, 6.0, rounds=1),
    Case("GSM8K 8-shot, 128 tokens", "gsm8k_cot", 16, 4.0, tokens=128, rounds=1),
)


Answers = list[Any]  # for each question, the index of the chosen option, or the text


@dataclass
class Result:
    """The result of a case.

    Attributes:
        case, dtype, questions, goal: name, dtype, number of questions and goal of the case.
        theirs, ours: seconds of each round.
        same: number of questions to which both sides gave the same answer.
        as_float32: numbers of answers, theirs and ours, that agree with the harness's engine in
            float32; None if that was not run.
    """

    case: str
    dtype: str
    questions: int
    goal: float
    theirs: list[float]
    ours: list[float]
    same: int
    as_float32: tuple[int, int] | None

    @property
    def ratio(self) -> float:
        """Their median time divided by ours."""
        return statistics.median(self.theirs) / statistics.median(self.ours)


def requests_of(case: Case, data_dir: Path) -> list[Any]:
    """The harness's requests of a case."""
    from llama_fast.eval.suite import load_tasks

    task = load_tasks([case.task], data_dir=data_dir)["tasks"][case.task]
    task.build_all_requests(limit=case.questions)
    found = [deepcopy(r) for r in task.instances]
    for r in found if case.tokens else ():
        r.arguments = (r.args[0], {**r.args[1], "max_gen_toks": case.tokens})
    return found


def run_case(
    case: Case, theirs: Any, ours: Any, data_dir: Path, dtype: str, truths: dict[str, Answers]
) -> Result:
    """Let both sides answer alternately.

    `truths` maps a case to the answers of the harness's engine in float32, which are added to it.
    """
    requests = requests_of(case, data_dir)
    for lm in (theirs, ours):
        method = lm.generate_until if case.tokens else lm.loglikelihood
        method(deepcopy(requests[:WARM_UP]), disable_tqdm=True)
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    answers: dict[str, list[Any]] = {}
    for number in range(case.rounds):
        sides = [("theirs", theirs), ("ours", ours)]
        for name, lm in sides if number % 2 == 0 else sides[::-1]:
            method = lm.generate_until if case.tokens else lm.loglikelihood
            begin = time.perf_counter()
            answers[name] = method(deepcopy(requests), disable_tqdm=True)
            times[name].append(time.perf_counter() - begin)
    picked = [answers[n] if case.tokens else _best(answers[n], requests) for n in times]
    if dtype == "float32":
        truths[case.name] = picked[0]
    truth = truths.get(case.name)
    as_float32 = None if truth is None else (_same(picked[0], truth), _same(picked[1], truth))
    return Result(case.name, dtype, len(picked[0]), case.goal, times["theirs"], times["ours"],
                  _same(*picked), as_float32)  # fmt: skip


def _same(a: Answers, b: Answers) -> int:
    return sum(x == y for x, y in zip(a, b, strict=True))


def _best(answers: Sequence[tuple[float, bool]], requests: Sequence[Any]) -> Answers:
    options: dict[int, list[float]] = {}
    for (logprob, _), request in zip(answers, requests, strict=True):
        options.setdefault(request.doc_id, []).append(logprob)
    return [max(range(len(v)), key=v.__getitem__) for v in options.values()]


def table(results: Sequence[Result]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| case | dtype | lm-eval HFLM, batch 8 | llama_fast | ratio | target | same answers | "
        "same as HFLM in float32: HFLM, llama_fast |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        both = "–" if r.as_float32 is None else "{}, {}".format(*r.as_float32)
        lines.append(
            f"| {r.case}, {r.questions} questions | {r.dtype} "
            f"| {statistics.median(r.theirs):.1f} s | {statistics.median(r.ours):.1f} s "
            f"| **{times(r.ratio)}** | {r.goal}× "
            f"| {r.same} of {r.questions} | {both} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data-dir", type=Path, required=True, help="mirror of the data sets")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--case", action="append", help="names that contain this")
    parser.add_argument("--quick", action="store_true", help="a fifth of the questions, one round")
    parser.add_argument("--out", type=Path, help="folder for JSON and markdown")
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from lm_eval.models.huggingface import HFLM

    from llama_fast.eval.harness import HarnessModel

    cases = [c for c in CASES if not args.case or any(part in c.name for part in args.case)]
    if args.quick:
        cases = [Case(c.name, c.task, max(4, c.questions // 5), c.goal, c.tokens, 1) for c in cases]
    results = []
    truths: dict[str, Answers] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = llama_fast.models.load(smollm2_path(), dtype=torch.float32)
        llama_fast.models.save(model, Path(folder) / "smollm2", tokenizer)
        del model
        for dtype in args.dtype or ("float32", "bfloat16"):
            path = str(Path(folder) / "smollm2")
            theirs = HFLM(
                pretrained=path, dtype=dtype, batch_size=8, softmax_dtype="float32", device="cpu"
            )
            ours = HarnessModel(path, dtype=dtype, device="cpu")
            for case in cases:
                results.append(run_case(case, theirs, ours, args.data_dir, dtype, truths))
                print(table(results[-1:]).splitlines()[-1], flush=True)
            del theirs, ours
    print("\n" + table(results))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write(args.out / f"eval-{machine_slug('cpu')}.json", results)


def write(path: Path, results: Sequence[Result]) -> None:
    """Write JSON with all times, and a Markdown table beside it."""
    machine = info.collect()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    facts = {"machine": machine, "versions": versions, "results": [asdict(r) for r in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(facts, indent=1) + "\n")
    cpu = machine["cpu"]
    text = [
        "# Speed of evaluation, SmolLM2-135M",
        "",
        f"{cpu['model']}, {cpu['instruction_set']}, {torch.get_num_threads()} threads; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". Both engines run alternately in one process; times are medians. `make bench-eval`",
        "",
        table(results),
        "",
    ]
    write_whole(path.with_suffix(".md"), "\n".join(text))


if __name__ == "__main__":
    main()
