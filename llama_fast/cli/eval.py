"""`llama-fast eval MODEL`: scores of a model on benchmarks; compare and canary are subcommands."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llama_fast._format import counted
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import (
    add_device,
    add_dtype,
    add_json,
    add_model,
    add_out,
    add_seed,
    add_tokenizer,
    add_trust_remote_code,
    print_json,
    tables,
)

if TYPE_CHECKING:
    from llama_fast._screen import Screen
    from llama_fast.eval.choose.purposes import Purpose
    from llama_fast.eval.harness import HarnessModel
    from llama_fast.eval.report.scores import Score
    from llama_fast.eval.run import Outcome


class Eval(Command):
    """Evaluates a model."""

    name = "eval"
    help = "evaluate a model on benchmarks, compare two runs, measure memorisation"
    extra = "eval"
    packages = ("datasets", "evaluate", "lm_eval", "rich", "transformers")
    description = "Evaluate a model on benchmarks and print its scores."
    epilog = """
examples:
  llama-fast eval SmolLM2-135M --suite llama2 --out runs/smollm2
  llama-fast eval model.gguf --tasks hellaswag,arc_easy --limit 200 \\
      --data-dir mirror
"""
    subcommands: ClassVar[Mapping[str, str]] = {
        "choose": "llama_fast.cli.eval_choose",
        "compare": "llama_fast.cli.eval_compare",
        "canary": "llama_fast.cli.eval_canary",
    }

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        add_model(parser)
        add_tokenizer(parser)
        _add_tasks(parser.add_argument_group("tasks"))
        _add_execution(parser.add_argument_group("execution"))

    def run(self, args: argparse.Namespace) -> int:
        """Run the evaluation; NEGATIVE if a task failed."""
        _quiet_libraries()
        from llama_fast._device import device_of
        from llama_fast._screen import Screen
        from llama_fast.eval.harness import HarnessModel
        from llama_fast.eval.limits import Limits
        from llama_fast.eval.report.suites import metric_keys
        from llama_fast.eval.run import evaluate_tasks, load, quiet_bars
        from llama_fast.eval.suite import suite
        from llama_fast.models.loading import locate

        names = [name.strip() for name in (args.tasks or "").split(",") if name.strip()]
        preset = None if args.suite is None else suite(args.suite).name
        purpose = _purpose(args)
        if purpose is not None:
            from llama_fast.eval.choose.run import PRESET, parts_of

            preset, names = PRESET, [part.load for part in parts_of(purpose)]
        elif preset is None and not names:
            raise ValueError("--suite: expected --suite NAME or --tasks A,B, got neither")
        if args.batch < 1:
            raise ValueError(f"--batch: expected at least 1, got {args.batch}")
        if args.limit is not None and args.first is not None:
            raise ValueError("--first: expected --limit or --first, got both")
        limits = Limits.parse(
            args.limit or args.first, is_first=args.first is not None, seed=args.seed
        )
        out = args.out or Path("runs") / f"eval-{Path(args.model).name}"
        with tables(args):
            screen = Screen()
            device_of(args.device or "auto")  # before anything is read
            path = locate(args.model, trust_remote_code=args.trust_remote_code)
            with screen.console.status("Loading tasks"), quiet_bars():
                loaded = load(
                    [*([preset] if preset and purpose is None else []), *names],
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
            if purpose is not None:
                from llama_fast.eval.choose.cost import measure_rates
                from llama_fast.eval.choose.run import limits_for

                with screen.console.status("Measuring the model's speed"):
                    rates = measure_rates(lm)
                minutes = purpose.minutes if args.minutes is None else args.minutes
                limits = limits_for(purpose, minutes, rates, loaded["tasks"], args.seed)
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
            _show(screen, outcome, lm, preset, keys, out)
            found = None if purpose is None else _estimate(screen, out, purpose)
        if args.json:
            print_json(_scores(outcome, keys) | ({} if found is None else {"estimate": found}))
        failed = outcome.failed or not outcome.results
        return ExitCode.NEGATIVE if failed else ExitCode.OK


def _purpose(args: argparse.Namespace) -> Purpose | None:
    """Return the purpose that the user named, after a check that the other options allow it."""
    from llama_fast.eval.choose.purposes import purpose

    if args.purpose is None:
        if args.minutes is not None:
            raise ValueError("--minutes: expected --purpose beside it, got none")
        return None
    for option in ("suite", "tasks", "limit", "first", "num_fewshot"):
        if (value := getattr(args, option)) is not None:
            name = option.replace("_", "-")
            raise ValueError(f"--{name}: expected none beside --purpose, got {value}")
    if args.minutes is not None and not args.minutes > 0:
        raise ValueError(f"--minutes: expected a positive number, got {args.minutes:g}")
    chosen = purpose(args.purpose)
    if chosen.needs_code and not args.allow_code:
        raise ValueError(
            f"--allow-code: expected with --purpose {chosen.name}, which runs programs that the "
            "model writes, got none"
        )
    return chosen


def _estimate(screen: Screen, out: Path, purpose: Purpose) -> dict[str, float] | None:
    """Print the estimate of the purpose's benchmarks on all their questions, and return it."""
    from llama_fast.eval.choose.cards import cards
    from llama_fast.eval.choose.run import estimate_run
    from llama_fast.eval.choose.table import estimate_table
    from llama_fast.eval.report import read_run

    found = estimate_run(read_run(out), purpose)
    if found is None:
        return None
    screen.console.print(estimate_table(found, cards()))
    return {"value": found.value, "low": found.low, "high": found.high}


def _show(
    screen: Screen,
    outcome: Outcome,
    lm: HarnessModel,
    preset: str | None,
    keys: Mapping[str, str],
    out: Path,
) -> None:
    """Print the tables, write the page, and print what else the reader should know."""
    from llama_fast.eval.report import read_run
    from llama_fast.eval.report.final_table import suite_table, task_table
    from llama_fast.eval.report.html import write_page
    from llama_fast.eval.run import by_text
    from llama_fast.eval.suite import suite, summarise

    if outcome.results:
        parts = () if preset is None else suite(preset).parts
        screen.console.print(task_table(outcome.results, keys, parts))
        if preset is not None:
            screen.console.print(suite_table(summarise(outcome.results, preset)))
        page = write_page(out / "report.html", read_run(out))
        screen.console.print(f"results: {out}   report: {page}", markup=False, soft_wrap=True)
    if lm.truncated:
        screen.console.print(
            f"cut to the model's {counted(lm.max_length, 'token')}: "
            f"{counted(lm.truncated, 'request')}"
        )
    if outcome.energy is not None:
        screen.sentence(f"energy: {outcome.energy}")
    for note in outcome.notes:
        screen.sentence(f"note: {note}")
    for line in by_text(outcome.not_scored):
        screen.sentence(f"not scored: {line}")


def _scores(outcome: Outcome, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the score of each task and group: value, standard error, metric, questions, energy."""
    from llama_fast.eval.report.scores import scores_of

    results, energy = outcome.results, outcome.energy
    asked = results.get("n-samples", {})
    return {
        task: {
            "value": score.value,
            "stderr": score.stderr,
            "interval": score.interval,
            "clusters": score.clusters,
            "metric": score.key,
            "percent": score.percent,
            "questions": asked.get(task, {}).get("effective"),
            **_levels(task, score),
            **({} if energy is None else energy.rates(task)),
        }
        for task, score in scores_of(results, keys).items()
    }


def _levels(task: str, score: Score) -> dict[str, float]:
    """Return the score of guessing and the headroom of a task, if they are known."""
    from llama_fast.eval.report.levels import levels_of_task

    levels = levels_of_task(task) if score.percent else None
    if levels is None:
        return {}
    return {"chance": levels.chance, "headroom": levels.headroom(score.value)}


def _add_tasks(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--suite",
        metavar="NAME",
        help="llama2 or llama2-paper: as in the Llama 2 paper; lm-eval: the harness's defaults",
    )
    add(
        "--purpose",
        metavar="NAME",
        help="the benchmarks for a purpose (training, base, chat, code, safety, quick, afternoon), "
        "as many questions as fit into --minutes; see `llama-fast eval choose`",
    )
    add(
        "--minutes",
        type=float,
        metavar="M",
        help="time of --purpose (default: the purpose's own)",
    )
    add(
        "--tasks",
        metavar="A,B",
        help="tasks, groups and tags of lm-evaluation-harness, or scenario_translation, "
        "scenario_qa, scenario_summarization, scenario_semantic_parsing",
    )
    add(
        "--limit",
        metavar="N",
        help="N questions of each task, drawn with --seed over sources, subjects and levels; "
        "or 100,hellaswag=2000,mmlu_*=4,piqa=all",
    )
    add("--first", metavar="N", help="the first N questions of each task instead; as --limit")
    add("--num-fewshot", type=int, metavar="N", help="examples before each question")
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="local mirror of the data sets (default: the hub)",
    )
    add(
        "--allow-code",
        action="store_true",
        help="run the programs that the model writes (HumanEval, MBPP) in a sandbox",
    )
    add(
        "--toxigen-classifier",
        metavar="MODEL",
        help="hub name or folder of a RoBERTa classifier, for toxigen_generation",
    )
    add("--chat", action="store_true", help="apply the model's chat template to each prompt")
    add("--system", metavar="TEXT", help="instruction before each prompt")


def _add_execution(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_dtype(group, "auto", default="auto")
    add_device(group)
    add(
        "--budget",
        type=int,
        default=2048,
        metavar="N",
        help="tokens of one forward pass (default: %(default)s)",
    )
    add(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="texts generated in parallel (default: %(default)s)",
    )
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="maximum number of tokens of a request (default: the model's context)",
    )
    add_seed(group, "the draw of questions, and of tasks that sample")
    add_out(group, "folder for results.json, samples and report.html (default: runs/eval-MODEL)")
    add_trust_remote_code(group)
    add_json(group)
    add(
        "--no-cache",
        action="store_true",
        help="send every request to the model (default: answers in DIR/requests.sqlite are reused)",
    )


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
        "machine": f"{name}, {counted(torch.get_num_threads(), 'thread')}",
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
    """Keep warnings and logs of libraries from being printed between the results."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", module=r"(datasets|lm_eval|transformers)")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


COMMAND = Eval()
