"""The suite's tasks, built once from the mirror of real data, with the network out of reach.

And the sandbox for programs, with layers left out.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_fast.eval.suite import LoadedTasks, load_tasks
from llama_fast.eval.suite.sandbox import Limits, Outcome, SandboxError, _run, measures
from tests import paths
from tests.eval.suite.attempts import LAYERS, QUICK

pytest.importorskip("lm_eval")


@pytest.fixture(scope="session")
def mirror() -> Path:
    return paths.mirror()


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Every attempt to resolve a name or to connect fails the test that makes it."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"the network was asked for: {args}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture
def no_network() -> Iterator[None]:
    with without_network():
        yield


@pytest.fixture(scope="session")
def suite_tasks(mirror: Path) -> LoadedTasks:
    with without_network():
        return load_tasks(["llama2-paper"], data_dir=mirror, allow_code=True)


@pytest.fixture(scope="session")
def programs_can_run() -> None:
    """Skips the test where no program can be run safely."""
    try:
        measures()
    except SandboxError as error:
        pytest.skip(f"needs a system that confines programs: {error}")


@pytest.fixture(params=LAYERS, ids=lambda layers: f"without {layers[0]}" if layers else "all")
def attempt(programs_can_run: None, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Runs a program with some of the layers, each choice of them a test."""

    def go(program: str, limits: Limits = QUICK, tests: str = "") -> Outcome:
        try:
            return _run(program, limits, request.param, tests)[0]
        except SandboxError as error:
            pytest.skip(f"needs a system that confines programs, better: {error}")

    yield go
