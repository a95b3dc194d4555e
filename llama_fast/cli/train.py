"""`llama-fast train`: a run as its configuration says, from YAML and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_fast.train.config import TrainConfig

HELP = "train or fine-tune a Llama-style model"


def parser() -> Any:
    """The command's parser: every field of :class:`TrainConfig` is an option."""
    try:
        from jsonargparse import ArgumentParser, set_parsing_settings
    except ImportError:
        raise ImportError("training needs the train extra: pip install llama_fast[train]") from None
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    found = ArgumentParser(
        prog="llama-fast train",
        description="Train or fine-tune a Llama-style model on token shards. A run that was "
        "stopped, however that happened, goes on where its newest checkpoint is.",
    )
    found.add_argument("--config", action="config", help="YAML file with these options")
    found.add_class_arguments(TrainConfig)
    return found


def read_config(argv: Sequence[str]) -> TrainConfig:
    """What the arguments say; a first one that is no option is the YAML file."""
    given = list(argv)
    if given and not given[0].startswith("-"):
        if not Path(given[0]).is_file():
            raise FileNotFoundError(f"config: no such file: {given[0]}")
        given[:1] = ["--config", given[0]]
    options = parser()
    values = options.instantiate(options.parse_args(given))
    return TrainConfig(**{name: values[name] for name in TrainConfig.__dataclass_fields__})


def main(argv: Sequence[str]) -> int:
    """Train."""
    config = read_config(argv)
    from llama_fast.train.run import Run

    Run(config, log=lambda line: print(line, flush=True)).train()
    return 0
