"""`llama-fast data`: checks of training data, and canaries in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from llama_fast.cli.command import Command


class Data(Command):
    """Commands about training data."""

    name = "data"
    help = "check training data for benchmark questions, secrets and e-mails; plant canaries"
    subcommands: ClassVar[Mapping[str, str]] = {
        "check": "llama_fast.cli.data_check",
        "plant": "llama_fast.cli.data_plant",
    }


COMMAND = Data()
