"""`llama-fast train`: a training run, configured by a YAML file and options."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast._extras import require
from llama_fast._terminal import show
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.train.config import TrainConfig
from llama_fast.train.config_file import read_yaml

if TYPE_CHECKING:
    from llama_fast.models import LLaMA
    from llama_fast.train.benchmarks import BenchmarkScorer
    from llama_fast.train.run import TrainingRun

DESCRIPTION = """Train or fine-tune a Llama-style model on token shards written by
`llama-fast tokenize`. To resume a run from its newest checkpoint, give the same command."""
EPILOG = """Every option is also a YAML key: `--optimizer.lr 1e-4` is `lr: 1e-4` under `optimizer:`.
The command line overrides the file. Write None as `null`.
`--dtype` is the same as `--precision`."""

# Options that other commands have under another name -> the field of TrainConfig.
_SYNONYMS = {"dtype": "precision"}

# Metavar of an option by the type of its field.
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "dict": "{A: N}"}


class Train(Command):
    """Trains a model."""

    name = "train"
    help = "train or fine-tune a Llama-style model"
    extra = "train"
    packages = ("rich",)

    def parser(self, prog: str) -> argparse.ArgumentParser:
        """Return jsonargparse's parser; every field of :class:`TrainConfig` is an option."""
        parser: argparse.ArgumentParser = config_parser(prog)
        return parser

    def parse(self, argv: Sequence[str], prog: str) -> argparse.Namespace:
        """Return the configuration that the YAML file and the options describe."""
        return argparse.Namespace(config=read_config(argv, prog))

    def run(self, args: argparse.Namespace) -> int:
        """Train."""
        from llama_fast._device import device_of
        from llama_fast.train.allocator import keep_memory
        from llama_fast.train.parallel import process_group
        from llama_fast.train.run import TrainingRun
        from llama_fast.train.stop_signals import TrainingStopped

        keep_memory()
        with process_group(device_of(args.config.device)):
            run = TrainingRun(args.config, log=show)
            try:
                run.train(benchmark_scorer(run))
            except TrainingStopped as stopped:  # its last line says where the run is
                return ExitCode(128 + stopped.signal)
            run.log(next_commands(args.config))
        return ExitCode.OK


def next_commands(config: TrainConfig) -> str:
    """Return what to do with a complete run, as lines of text."""
    out = shlex.quote(str(config.out))
    commands = {
        f"llama-fast generate {out} 'Once upon a time'": "continues a text",
        f"llama-fast eval {out} --tasks arc_easy": "evaluates it on a benchmark",
        f"llama-fast export {out} --to hf --out {out}/hf": "writes it for transformers",
    }
    width = max(map(len, commands))
    lines = [f"  {command:<{width}}  # {what}" for command, what in commands.items()]
    return "\n".join([f"The model is in {config.out}. With it:", *lines])


def config_parser(prog: str) -> Any:
    """Return the parser of a training configuration: an option for each field."""
    require(prog, "train", "jsonargparse")
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter):
        """Shows a short name of the type before the help text, and the default after it."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{"max_help_position": 32, **options})

        def _get_help_string(self, action: argparse.Action) -> str:
            if action.default in (None, argparse.SUPPRESS):
                return action.help or ""
            is_bool = isinstance(action.default, bool)
            default = str(action.default).lower() if is_bool else "%(default)s"
            return f"{action.help} (default: {default})"

        def _format_action_invocation(self, action: argparse.Action) -> str:
            text: str = super()._format_action_invocation(action)
            for option in action.option_strings:
                text = text.replace(option, option.replace("_", "-"))
            return text

        def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
            name = (self._get_type_str(action) or "str").split(" ")[0].split("[")[0]
            return _METAVARS.get(name, "TEXT")

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [CONFIG.yaml] [--option VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file; the same as CONFIG.yaml"
    )
    parser.add_class_arguments(TrainConfig)
    for action in parser._actions:
        if "--print_config" in action.option_strings:
            action.option_strings = ["--print-config"]  # shown so; both spellings are accepted
            action.metavar, action.help = "", "print all options as YAML and exit"
        elif action.help == "Path to a configuration file.":
            action.help = argparse.SUPPRESS  # one for each section
    return parser


def read_config(argv: Sequence[str], prog: str = "llama-fast train") -> TrainConfig:
    """Return the configuration of the arguments.

    Args:
        argv: options; a first argument that is not an option is the YAML file.
        prog: the text that the user types before them, for the help.

    Raises:
        FileNotFoundError: there is no such YAML file.
        ValueError: the YAML file is not a configuration.
        SystemExit: an option is unknown or has a wrong value.
    """
    require(prog, "train", "jsonargparse", "yaml")
    given = [_with_underscores(argument) for argument in argv]
    if given and not given[0].startswith("-"):
        if not Path(given[0]).is_file():
            raise FileNotFoundError(f"config: no such file: {given[0]}")
        given[:1] = ["--config", given[0]]
    try:
        given = list(_checked(given))
    except ValueError as error:
        typed = {argument.partition("=")[0] for argument in argv}
        text = str(error)
        for other, name in _SYNONYMS.items():  # the option as it was typed
            if f"--{other}" in typed and text.startswith(f"--{name}: "):
                text = f"--{other}{text.removeprefix(f'--{name}')}"
        raise ValueError(text) from None
    parser = config_parser(prog)
    values = parser.instantiate(parser.parse_args(given))
    return TrainConfig(**{name: values[name] for name in TrainConfig.__dataclass_fields__})


def _checked(given: Sequence[str]) -> Iterator[str]:
    """Yield the options that jsonargparse is to read, after a check of their names and values.

    An empty YAML file is left out.
    """
    from llama_fast.train.config_check import SECTIONS, check_values

    rest = iter(given)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("-h", "--help", "--print_config"):
            yield argument
            continue
        if not name.startswith("--"):
            raise ValueError(f"expected options that begin with --, got {argument!r}")
        if not equals:
            found = next(rest, None)
            if found is None or found.startswith("--"):
                raise ValueError(f"{name.replace('_', '-')}: expected a value, got none")
            value = found
        option = name[2:]
        if option == "config" or (option in SECTIONS and Path(value).is_file()):
            if not Path(value).is_file():
                raise FileNotFoundError(f"config: no such file: {value}")
            content = read_yaml(Path(value))
            check_values(f"{value}: ", content if option == "config" else {option: content})
            if not content:
                continue
        else:
            check_values("", {option: _parsed(option, value)}, dashes="--")
        yield from (argument,) if equals else (name, value)


def _parsed(option: str, value: str) -> Any:
    """Return an option's value as YAML reads it; text is not to be parsed."""
    import yaml

    from llama_fast.train.config_check import OPTIONS

    if OPTIONS.get(option) in (str, str | None):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _with_underscores(argument: str) -> str:
    """Return ``--log-every=5`` as ``--log_every=5``, and ``--dtype`` as ``--precision``.

    Other arguments stay as they are.
    """
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    name = name.replace("-", "_")
    return f"--{_SYNONYMS.get(name, name)}{equals}{value}"


def benchmark_scorer(run: TrainingRun) -> BenchmarkScorer | None:
    """Return a function that scores the run's model on its benchmarks, None if it has none.

    Raises:
        FileNotFoundError: a file of `benchmarks` does not exist.
        DataError: a file does not contain questions, two files have the same name, or the shards
            have no tokenizer.
        ValueError: a question is longer than the model's max_seq_len.
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


COMMAND = Train()
