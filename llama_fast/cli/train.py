"""`llama-fast train`: a run as its configuration says, from YAML and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast._terminal import show
from llama_fast.train.config import TrainConfig
from llama_fast.train.config_file import check_yaml

if TYPE_CHECKING:
    from llama_fast.models import LLaMA
    from llama_fast.train.benchmarks import BenchmarkScorer
    from llama_fast.train.run import TrainingRun

HELP = "train or fine-tune a Llama-style model"

DESCRIPTION = """Train or fine-tune a Llama-style model on token shards (`llama-fast tokenize`
makes them). A run that was stopped, however that happened, goes on where its newest checkpoint is
when the same command is given again."""
EPILOG = """Every option is also a YAML key: `--optimizer.lr 1e-4` is `lr: 1e-4` under `optimizer:`.
The command line overrides the file. None is written `null`; --log-every is the same as
--log_every."""

# What an option takes, as its help shows it.
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "dict": "{A: N}"}


def parser() -> Any:
    """The command's parser: every field of :class:`TrainConfig` is an option."""
    try:
        from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings
    except ImportError:
        raise ImportError("training needs the train extra: pip install llama_fast[train]") from None

    class Formatter(DefaultHelpFormatter):
        """What the option does and its default; what it takes stands before it already."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{"max_help_position": 32, **options})

        def _get_help_string(self, action: argparse.Action) -> str:
            if action.default in (None, argparse.SUPPRESS):
                return action.help or ""
            is_bool = isinstance(action.default, bool)
            default = str(action.default).lower() if is_bool else "%(default)s"
            return f"{action.help} (default: {default})"

        def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
            kind = (self._get_type_str(action) or "str").split(" ")[0].split("[")[0]
            return _METAVARS.get(kind, "TEXT")

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    found = ArgumentParser(
        prog="llama-fast train",
        usage="%(prog)s [CONFIG.yaml] [--option VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    found.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file; the same as CONFIG.yaml"
    )
    found.add_class_arguments(TrainConfig)
    for action in found._actions:
        if "--print_config" in action.option_strings:
            action.option_strings = ["--print-config"]  # as it is shown: both are understood
            action.metavar, action.help = "", "print all options as YAML and exit"
        elif action.help == "Path to a configuration file.":
            action.help = argparse.SUPPRESS  # of a whole section: it would be four of these
    return found


def read_config(argv: Sequence[str]) -> TrainConfig:
    """What the arguments say; a first one that is no option is the YAML file."""
    given = [_with_underscores(argument) for argument in argv]
    if given and not given[0].startswith("-"):
        if not Path(given[0]).is_file():
            raise FileNotFoundError(f"config: no such file: {given[0]}")
        given[:1] = ["--config", given[0]]
    for flag, value in pairwise([*given, ""]):
        name, equals, attached = flag.partition("=")
        if name == "--config":
            check_yaml(Path(attached if equals else value))
    options = parser()
    values = options.instantiate(options.parse_args(given))
    return TrainConfig(**{name: values[name] for name in TrainConfig.__dataclass_fields__})


def _with_underscores(argument: str) -> str:
    """``--log-every=5`` as ``--log_every=5``; what is no option stays as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def main(argv: Sequence[str]) -> int:
    """Train."""
    config = read_config(argv)
    from llama_fast._device import device_of
    from llama_fast.train.allocator import keep_memory
    from llama_fast.train.parallel import process_group
    from llama_fast.train.run import TrainingRun

    keep_memory()
    with process_group(device_of(config.device)):
        run = TrainingRun(config, log=show)
        run.train(benchmark_scorer(run))
    return 0


def benchmark_scorer(run: TrainingRun) -> BenchmarkScorer | None:
    """Scores a run's model on the questions that its configuration names; None if it names none.

    Raises:
        FileNotFoundError: a file of `benchmarks` is not there.
        DataError: a file that holds something else, or two of the same name; shards without a
            tokenizer.
        ValueError: a question longer than the model takes.
    """
    from llama_fast.data.tokenizer import tokenizer_of
    from llama_fast.train.benchmarks import BenchmarkScore

    config = run.config
    if not config.benchmarks:
        return None
    from llama_fast.eval.multiple_choice import Benchmarks

    benchmarks = Benchmarks(
        config.benchmarks,
        tokenizer_of(run.shards),
        config.num_questions,
        config.seed,
        run.model.config.max_seq_len,
    )

    def scores(model: LLaMA, step: int) -> list[BenchmarkScore]:
        return [
            BenchmarkScore(step, s.task, s.count, s.accuracy, s.stderr, s.raw_accuracy, s.chance)
            for s in benchmarks.score(model)
        ]

    return scores
