"""`llama-fast eval choose`: which benchmarks to run, what they cost, and what they can tell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import (
    add_device,
    add_dtype,
    add_json,
    add_tokenizer,
    add_trust_remote_code,
    print_json,
    tables,
)

if TYPE_CHECKING:
    from llama_fast.eval.choose.cost import Rates

FEW = 6  # benchmarks of the table of the few that predict all


class Choose(Command):
    """Helps to choose benchmarks."""

    name = "choose"
    help = "which benchmarks to run: what each measures, costs and can tell"
    extra = "eval"
    packages = ("lm_eval", "rich", "transformers")
    description = (
        "Print what each benchmark of the Llama 2 paper's suite measures, what a run can tell, "
        "which few predict the mean of all, and the benchmarks for a purpose."
    )
    epilog = """
examples:
  llama-fast eval choose
  llama-fast eval choose SmolLM2-135M --difference 2 --html choose.html
  llama-fast eval SmolLM2-135M --purpose training --minutes 10
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "model",
            metavar="MODEL",
            nargs="?",
            help="a model, whose speed is measured in a few seconds, or the folder of an "
            "evaluation, whose scores and times are used (default: neither)",
        )
        parser.add_argument(
            "--difference",
            type=float,
            default=2.0,
            metavar="D",
            help="difference in percent points for which the questions needed are shown "
            "(default: %(default)s)",
        )
        parser.add_argument(
            "--contamination",
            type=Path,
            metavar="FILE",
            help="contamination.json of `llama-fast data check`, whose findings are shown",
        )
        parser.add_argument(
            "--html", type=Path, metavar="FILE", help="also write the choice as an HTML page"
        )
        add_tokenizer(parser)
        add_dtype(parser, "auto", default="auto")
        add_device(parser)
        add_trust_remote_code(parser)
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print the tables, and write the page if one is asked for."""
        from llama_fast._screen import Screen
        from llama_fast.eval.choose.cards import cards
        from llama_fast.eval.choose.contamination import dirty_shares
        from llama_fast.eval.choose.page import write_choice
        from llama_fast.eval.choose.table import (
            card_table,
            few_table,
            power_table,
            purpose_table,
        )

        if not 0 < args.difference <= 100:
            raise ValueError(f"--difference: expected one in (0, 100], got {args.difference:g}")
        dirty = {} if args.contamination is None else dirty_shares(args.contamination)
        with tables(args):
            screen = Screen()
            with screen.console.status("Measuring"):
                scores, seconds = _known(args)
            chosen = list(cards().values())
            screen.console.print(card_table(chosen, scores))
            screen.console.print(power_table(chosen, scores, seconds, args.difference))
            for line in _contamination_lines(dirty):
                screen.sentence(line)
            screen.console.print(few_table(FEW))
            screen.console.print(purpose_table())
            if args.html is not None:
                write_choice(args.html, chosen, scores, seconds, args.difference, dirty)
                screen.console.print(f"page: {args.html}", markup=False, soft_wrap=True)
        if args.json:
            print_json(_as_json(scores, seconds, args.difference, dirty))
        return ExitCode.OK


def _contamination_lines(dirty: dict[str, float]) -> list[str]:
    shown = [f"{name} {100 * share:.1f} %" for name, share in dirty.items()]
    return [f"dirty questions in the training data: {', '.join(shown)}"] if shown else []


def _known(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Benchmark -> score in percent, and seconds a question, as far as they are known."""
    from llama_fast.eval.choose.cost import costs, seconds_of
    from llama_fast.eval.choose.run import PRESET, samples_of, seconds_in
    from llama_fast.eval.suite import suite

    if args.model is None:
        return {}, {}
    if (Path(args.model) / "results.json").is_file():
        from llama_fast.eval.report import read_run

        run = read_run(args.model)
        parts = [part for part in suite(PRESET).parts if part.name in costs()]
        scores = {sample.name: 100 * sample.mean() for sample in samples_of(run, parts)}
        times = {part.name: seconds_in(run, part) for part in parts}
        return scores, {name: value for name, value in times.items() if value is not None}
    rates = _rates(args)
    return {}, {name: seconds_of(name, rates) for name in costs()}


def _rates(args: argparse.Namespace) -> Rates:
    from llama_fast.eval.choose.cost import measure_rates
    from llama_fast.eval.harness import HarnessModel
    from llama_fast.models.loading import locate

    path = locate(args.model, trust_remote_code=args.trust_remote_code)
    lm = HarnessModel(
        str(path),
        tokenizer=args.tokenizer,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
    )
    return measure_rates(lm)


def _as_json(
    scores: dict[str, float],
    seconds: dict[str, float],
    difference: float,
    dirty: dict[str, float],
) -> dict[str, Any]:
    from dataclasses import asdict

    from llama_fast.eval.choose.cards import cards, paper_scores
    from llama_fast.eval.choose.cost import costs
    from llama_fast.eval.choose.power import questions_needed, smallest_difference
    from llama_fast.eval.choose.purposes import PURPOSES
    from llama_fast.eval.choose.redundancy import choose_few, held_out_errors, rank_correlations

    rows = []
    for name, card in cards().items():
        expected = scores.get(name, card.best) / 100
        needed, each = questions_needed(difference / 100, expected), seconds.get(name)
        rows.append(
            {
                **card.to_dict(),
                "score": scores.get(name),
                "headroom": card.headroom(scores.get(name)),
                "tokens_per_question": costs()[name].tokens,
                "seconds_per_question": each,
                "dirty": dirty.get(name),
                "smallest_difference": 100 * smallest_difference(card.questions, expected),
                "questions_for_difference": needed,
                "minutes_for_difference": None if each is None else needed * each / 60,
            }
        )
    return {
        "difference": difference,
        "benchmarks": rows,
        "rank_correlations": {
            "benchmarks": list(paper_scores().benchmarks),
            "matrix": rank_correlations().tolist(),
        },
        "few": [asdict(step) for step in choose_few(FEW)],
        "held_out_errors": held_out_errors(FEW),
        "purposes": [asdict(purpose) for purpose in PURPOSES.values()],
    }


COMMAND = Choose()
