"""`llama-fast eval MODEL`: a model on benchmarks, beside the Llama 2 paper's table."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

EPILOG = """
also: llama-fast eval compare RUN_A RUN_B    differences of two runs, with intervals
      llama-fast eval canary MODEL ...       what a model remembers of planted secrets

examples:
  llama-fast eval SmolLM2-135M --suite llama2 --out runs/smollm2
  llama-fast eval model.gguf --tasks hellaswag,arc_easy --limit 200 --data-dir mirror
"""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model is evaluated."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="Hugging Face folder or hub name, GGUF, Meta, llama2.c, or a training run's folder",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json, tokenizer.model, tok*.bin, .gguf, a folder with one, or byte "
        "(default: the model's own)",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of an evaluation."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Ask a model the questions of benchmarks and print its scores."
    parser.epilog = EPILOG
    add_model_arguments(parser)
    what = parser.add_argument_group("what is asked")
    what.add_argument(
        "--suite",
        metavar="NAME",
        help="llama2 or llama2-paper: as in the Llama 2 paper; lm-eval: the harness's defaults",
    )
    what.add_argument(
        "--tasks",
        metavar="A,B",
        help="tasks, groups and tags of lm-evaluation-harness, or scenario_translation, "
        "scenario_qa, scenario_summarization, scenario_semantic_parsing",
    )
    what.add_argument(
        "--limit",
        metavar="N",
        help="first N questions of each task; or 100,hellaswag=2000,mmlu_*=4,piqa=all",
    )
    what.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question")
    what.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="mirror of the data sets (default: the hub)"
    )
    what.add_argument(
        "--allow-code",
        action="store_true",
        help="run the programs that the model writes (HumanEval, MBPP) in a sandbox",
    )
    what.add_argument(
        "--toxigen-classifier", metavar="MODEL", help="hub name or folder of a RoBERTa classifier"
    )
    what.add_argument(
        "--chat", action="store_true", help="put questions through the model's chat template"
    )
    what.add_argument("--system", metavar="TEXT", help="instruction in front of each prompt")
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights (default: as stored)",
    )
    how.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if any)")
    how.add_argument(
        "--budget", type=int, default=2048, metavar="N", help="tokens of a forward pass (2048)"
    )
    how.add_argument(
        "--batch", type=int, default=32, metavar="N", help="texts generated at once (32)"
    )
    how.add_argument("--max-length", type=int, metavar="N", help="most tokens of a request")
    how.add_argument("--seed", type=int, default=0, help="where a task samples")
    how.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for results.json, samples and report.html (default: runs/eval-MODEL)",
    )
    how.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python that the model's folder or repository brings, with all your rights",
    )
    how.add_argument(
        "--no-cache",
        action="store_true",
        help="ask everything anew (default: DIR/requests.sqlite answers what was asked before)",
    )


def evaluate_model(args: argparse.Namespace) -> int:
    """Run the evaluation; 1 if a task failed."""
    _quiet_libraries()
    try:
        from llama_fast.eval.harness import HarnessModel
        from llama_fast.eval.run import Limits, by_text, evaluate_tasks, load, quiet_bars
    except ImportError as error:
        raise ImportError(
            f"evaluation needs the eval extra: pip install llama_fast[eval] ({error})"
        ) from None
    from llama_fast._screen import Screen
    from llama_fast.eval.report import read_run
    from llama_fast.eval.report.final_table import suite_table, task_table
    from llama_fast.eval.report.html import write_page
    from llama_fast.eval.report.suites import metric_keys
    from llama_fast.eval.suite import suite, summarise
    from llama_fast.models.loading import locate

    names = [name.strip() for name in (args.tasks or "").split(",") if name.strip()]
    preset = None if args.suite is None else suite(args.suite).name
    if preset is None and not names:
        raise ValueError("suite: expected --suite NAME or --tasks A,B, got neither")
    if args.batch < 1:
        raise ValueError(f"batch: expected at least 1, got {args.batch}")
    limits = Limits.parse(args.limit)
    out = args.out or Path("runs") / f"eval-{Path(args.model).name}"
    screen = Screen()
    path = locate(args.model, trust_remote_code=args.trust_remote_code)
    with screen.console.status("Loading tasks"), quiet_bars():
        loaded = load(
            [*([preset] if preset else []), *names],
            args.data_dir,
            allow_code=args.allow_code,
            num_fewshot=args.num_fewshot,
            toxigen_classifier=args.toxigen_classifier,
        )
    limits.check(list(loaded["tasks"]))
    with screen.console.status("Loading the model"):
        lm = HarnessModel(
            str(path),
            tokenizer=args.tokenizer,
            dtype=args.dtype,
            device=args.device,
            batch_size=args.batch,
            budget=args.budget,
            max_length=args.max_length,
            cache=None if args.no_cache else out / "requests.sqlite",
            seed=args.seed,
            trust_remote_code=args.trust_remote_code,
        )
    keys = {} if preset is None else metric_keys(preset)
    outcome = evaluate_tasks(
        lm,
        loaded,
        out,
        limits=limits,
        metadata=_facts(args, preset, lm),
        chat=args.chat,
        system=args.system,
        keys=keys,
    )
    if outcome.results:
        parts = () if preset is None else suite(preset).parts
        screen.console.print(task_table(outcome.results, keys, parts))
        if preset is not None:
            screen.console.print(suite_table(summarise(outcome.results, preset)))
        page = write_page(out / "report.html", read_run(out))
        screen.console.print(f"results: {out}   report: {page}", markup=False, soft_wrap=True)
    if lm.truncated:
        screen.console.print(
            f"cut to the model's {lm.max_length:,} tokens: {lm.truncated:,} requests"
        )
    for note in outcome.notes:
        screen.console.print(f"note: {note}", markup=False, soft_wrap=True)
    for line in by_text(outcome.not_scored):
        screen.console.print(f"not scored: {line}", markup=False, soft_wrap=True)
    return 1 if outcome.failed or not outcome.results else 0


def _facts(args: argparse.Namespace, preset: str | None, lm: Any) -> dict[str, Any]:
    import torch

    from llama_fast._version import __version__
    from llama_fast.info import cpu_model

    device = lm.model.head_weight.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {
        "model": Path(args.model).name,
        "model_sha256": lm.model_hash,
        "model_source": args.model,
        "dtype": str(lm.model.head_weight.dtype).removeprefix("torch."),
        "command": shlex.join(["llama-fast", *sys.argv[1:]]),
        "machine": f"{name}, {torch.get_num_threads()} threads",
        "preset": preset,
        "chat_template": lm.words.chat_template if args.chat else None,
        "system_instruction": args.system,
        "fewshot_as_multiturn": args.chat,
        "versions": {
            "llama_fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _quiet_libraries() -> None:
    """The table is what a person looks at: no warnings of libraries on top of it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", module=r"(datasets|lm_eval|transformers)")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
