"""Fixtures of the op tests: every test runs on every backend of its op that is here."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

import llama_fast

# Every case in Triton's interpreter too: `make test-all`.
ALL_CASES = os.environ.get("LLAMA_FAST_ALL_CASES", "0") != "0"
EMULATED = os.environ.get("LLAMA_FAST_EMULATE_CUDA", "0") != "0"
# Where each backend runs. A new backend joins every test of this folder by standing here.
# "torch" is the yardstick of the tests, not their subject.
DEVICES = {
    "cpu": "cpu",
    "chunked": "cpu",
    "reference": "cpu",
    "triton": "cuda" if torch.cuda.is_available() else "cpu",  # there in Triton's interpreter
    "cuda": "cuda" if torch.cuda.is_available() and not EMULATED else "cpu",
}
# Here a GPU is played by the CPU.
SLOW = {name for name in ("triton", "cuda") if DEVICES[name] == "cpu"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend` takes every backend that serves the module's `OP`; `kernel` leaves out the
    reference, where there is another: against itself it proves nothing. A test marked
    `not_for` is about something that the named backends do not promise."""
    exempt = {n for mark in metafunc.definition.iter_markers("not_for") for n in mark.args}
    for fixture in ("backend", "kernel"):
        if fixture in metafunc.fixturenames:
            here = llama_fast.backends().available[metafunc.module.OP]
            names = [name for name in DEVICES if name in here and name not in exempt]
            if fixture == "kernel" and len(names) > 1 and "reference" in names:
                names.remove("reference")
            large = metafunc.definition.get_closest_marker("large") is not None
            if large:
                names = [name for name in names if name not in SLOW]
            marked = [
                pytest.param(name, marks=pytest.mark.gpu) if DEVICES[name] != "cpu" else name
                for name in names
            ]
            metafunc.parametrize(fixture, marked, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The CUDA kernels leave float64 to others. Triton's interpreter is slow: of cases that take
    the same way there, one is run."""
    left_out = {
        item
        for item in items
        if hasattr(item, "callspec") and (_refused(item.callspec) or _same_way(item))
    }
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _refused(call: Any) -> bool:
    """Whether a case is in float64, and on the backend "cuda"."""
    parameters = call.params
    if "cuda" not in (parameters.get("kernel"), parameters.get("backend")):
        return False
    return parameters.get("dtype") == torch.float64 or "float64" in parameters.get("dtypes", "")


def _same_way(item: Any) -> bool:
    """Whether the interpreter does nothing here that it does not do for another case."""
    parameters = item.callspec.params
    if ALL_CASES or "triton" not in SLOW & {parameters.get("kernel"), parameters.get("backend")}:
        return False
    test = f"{item.module.__name__.rpartition('.')[2]}.{item.originalname}"
    case, dtype = parameters.get("case"), parameters.get("dtype")
    # Where a mask hides is decided by positions: a case is in float32 or in bfloat16.
    if test in _MASKS and dtype in _HALVES and case.scores <= MANY_SCORES:
        return bool(dtype != _HALVES[zlib.crc32(case.id.encode()) % 2])
    # All strides are passed alike: each layout of one tensor, each tensor in several layouts.
    if test == "test_attention_inputs.test_strides":
        layout = list(item.module.LAYOUTS.values()).index(parameters["layout"])
        return layout % 4 != ("q", "k", "v", "grad").index(parameters["which"])
    if any(words in getattr(case, "why", "") for words in _BLOCKS):
        return True
    # The tiles of float32 are small: many of them, as bfloat16 needs such sizes for, come sooner.
    if dtype == torch.float32 and getattr(case, "scores", 0) > MANY_SCORES:
        return True
    # float16 is bfloat16 with another conversion, and a sum is a mean without its division; the
    # kernels in float64 are what gradcheck runs in test_autograd.py.
    return dtype in (torch.float16, torch.float64) or (
        parameters.get("reduction") == "sum" and "case" in parameters
    )


MANY_SCORES = 50_000
_MASKS = ("test_attention_masks.test_masks", "test_attention_masks.test_biases")
_HALVES = (torch.float32, torch.bfloat16)
# Cases about how C++ kernels cut the work up: here they are but hundreds of programs more.
_BLOCKS = ("many more rows than threads", "before many positions", "several blocks of rows")


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


class OnDevice(TorchFunctionMode):
    """New tensors are made on a device; random ones on the CPU first, for the same numbers."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.default = DeviceContext(self.device)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (kwargs or {}).get("generator") is not None:
            return function(*args, **kwargs).to(self.device)
        return self.default.__torch_function__(function, types, args, kwargs)


@contextmanager
def in_force(op: str, backend: str) -> Iterator[None]:
    device = DEVICES[backend]
    # The default device costs time at every call of a torch function: set it only for a GPU.
    place = nullcontext() if device == "cpu" else OnDevice(device)
    with llama_fast.use_backend(**{op: backend}), place:
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
