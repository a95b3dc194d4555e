"""This package's own tasks, by name."""

from __future__ import annotations

from lm_eval.api.task import ConfigurableTask

from llama_fast.eval.suite.bold import Bold
from llama_fast.eval.suite.quac import Quac
from llama_fast.eval.suite.squad import SquadV2, SquadV2NoAnswer
from llama_fast.eval.suite.toxigen import ToxigenGeneration

__all__ = ["CLASSES"]

# Each is built by ``class(config)``, where config has the caller's overrides.
CLASSES: dict[str, type[ConfigurableTask]] = {
    "bold": Bold,
    "quac": Quac,
    "squadv2": SquadV2,
    "squadv2_no_answer": SquadV2NoAnswer,
    "toxigen_generation": ToxigenGeneration,
}
