"""Fixtures of the op tests: every test runs on every backend of its op that is here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

import llama_fast

# Where each backend runs. A new backend joins every test of this folder by standing here.
# "torch" is the yardstick of the tests, not their subject.
DEVICES = {"cpu": "cpu", "chunked": "cpu", "reference": "cpu"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend` takes every backend that serves the module's `OP`; `kernel` leaves out the
    reference, where there is another: against itself it proves nothing."""
    for fixture in ("backend", "kernel"):
        if fixture in metafunc.fixturenames:
            here = llama_fast.backends().available[metafunc.module.OP]
            names = [name for name in DEVICES if name in here]
            if fixture == "kernel" and len(names) > 1:
                names.remove("reference")
            metafunc.parametrize(fixture, names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend under test, in force for the module's `OP`; tensors are made on its device."""
    with in_force(request.module.OP, request.param):
        yield request.param


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `backend`."""
    with in_force(request.module.OP, request.param):
        yield request.param


@contextmanager
def in_force(op: str, backend: str) -> Iterator[None]:
    device = DEVICES[backend]
    # The default device costs time at every call of a torch function: set it only for a GPU.
    place = nullcontext() if device == "cpu" else torch.device(device)
    with llama_fast.use_backend(**{op: backend}), place:
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
