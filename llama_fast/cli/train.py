"""`llama-fast train`: a run as its configuration says, from YAML and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELP = "train or fine-tune a Llama-style model"


def parser() -> Any:
    """The command's parser: every field of :class:`TrainConfig` is an option."""
    try:
        from jsonargparse import ArgumentParser, set_parsing_settings
    except ImportError:
        raise ImportError("training needs the train extra: pip install llama_fast[train]") from None
    from llama_fast.train.config import TrainConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    found = ArgumentParser(
        prog="llama-fast train",
        description="Train or fine-tune a Llama-style model on token shards. A run that was "
        "stopped, however that happened, goes on where its newest checkpoint is.",
    )
    found.add_argument("--config", action="config", help="YAML file with these options")
    found.add_class_arguments(TrainConfig)
    return found


def main(argv: Sequence[str]) -> int:
    """Train; a first argument that is no option is the YAML file."""
    given = list(argv)
    if given and not given[0].startswith("-"):
        if not Path(given[0]).is_file():
            raise FileNotFoundError(f"config: no such file: {given[0]}")
        given[:1] = ["--config", given[0]]
    options = parser()
    read = options.parse_args(given)
    del read["config"]
    values = options.instantiate(read)

    from llama_fast.train.config import TrainConfig
    from llama_fast.train.run import Run

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{name: values[name] for name in names})
    Run(config, log=lambda line: print(line, flush=True)).train()
    return 0
