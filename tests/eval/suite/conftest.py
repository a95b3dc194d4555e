"""The suite's tasks, built once from the mirror of real data, with the network out of reach."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_fast.eval.suite import LoadedTasks, load_tasks
from tests.paths import shared_data

pytest.importorskip("lm_eval")


@pytest.fixture(scope="session")
def mirror() -> Path:
    return shared_data("hub").parent


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
