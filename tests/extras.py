"""The packages without which a module of tests is skipped, and what skips it.

Only torch, numpy, pytest and hypothesis are needed to collect all tests: so `pytest -m gpu` runs
what it can on a machine with a GPU and nothing else. Where every extra is installed, as in `make
test`, no module is skipped for lack of one.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

# The modules that the extras bring, as they are imported.
_NAMES = """PIL accelerate datasets evaluate gguf huggingface_hub jinja2 jsonargparse lightning
lm_eval matplotlib peft pyarrow pynvml rich rouge_score sacrebleu safetensors scipy sentencepiece
tensorboard tiktoken tokenizers transformers triton trl vaderSentiment yaml"""
EXTRAS = frozenset(_NAMES.split())

# Modules of tests that were skipped, and for lack of what: others may import from them.
_skipped: dict[str, str] = {}


class Module(pytest.Module):
    """A module of tests that is skipped, not an error, where an extra's package is missing."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except Exception as error:
            missing = missing_extra(error)
            if missing is None:
                raise
            name = self.path.relative_to(self.config.rootpath).with_suffix("")
            _skipped[".".join(name.parts)] = missing
        pytest.skip(f"{missing} is not installed", allow_module_level=True)


def missing_extra(error: BaseException | None) -> str | None:
    """The package of an extra for lack of which an import failed, found in the chain of causes."""
    while error is not None:
        if isinstance(error, ImportError) and error.name in _skipped:
            return _skipped[error.name]
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            return package if package in EXTRAS else None
        error = error.__cause__ or error.__context__
    return None
