"""The table of the ops says what there is: operators, kernels, references, public functions."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import llama_fast
from llama_fast import reference
from llama_fast._torch_internals import has_kernel
from llama_fast.ops import stock
from llama_fast.ops.backends import cuda, library, operator_checks, triton
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.table import BACKENDS, FLOATS, OPS, OTHER_SCHEMAS, TABLE, UNIVERSAL
from llama_fast.ops.backends.table import operator_name as name_of
from tests.ops.conftest import DEVICES

ROOT = Path(__file__).resolve().parents[3]
# Their kernels read nothing by an index that a tensor holds, and compute the shapes of the others
# from those of their first: any call is harmless.
UNCHECKED = {"attention", "attention_decode", "rms_norm", "swiglu"}


def test_every_op_has_the_rooms_it_should() -> None:
    types = {name for name in reference.__all__ if isinstance(getattr(reference, name), type)}
    assert set(reference.__all__) - types == set(OPS)
    for op in OPS:
        for room in (llama_fast, reference, stock):
            assert callable(getattr(room, op)), (room, op)


@pytest.mark.parametrize("op", OPS)
def test_operators_have_their_schemas(op: str) -> None:
    for schema, name in zip(TABLE[op].schemas, TABLE[op].operators, strict=True):
        registered = getattr(torch.ops.llama_fast, name).default._schema
        assert str(registered) == f"llama_fast::{schema}"


@pytest.mark.skipif(library.missing_reason is not None, reason="nothing was compiled")
def test_the_compiled_library_implements_what_the_table_says() -> None:
    said = {name for op in OPS if "cpu" in TABLE[op].kernels for name in TABLE[op].operators}
    alone = {name_of(schema) for schema in OTHER_SCHEMAS}
    source = (ROOT / "csrc" / "ops.cpp").read_text()
    assert set(re.findall(r'm\.impl\("(\w+)"', source)) == said | alone - {
        "linear_cross_entropy_chunked"
    }
    assert all(has_kernel(f"llama_fast::{name}", "CPU") for name in said)


def test_the_cuda_sources_implement_what_the_table_says() -> None:
    said = {name for op in OPS if "cuda" in TABLE[op].kernels for name in TABLE[op].operators}
    source = (ROOT / "csrc" / "cuda" / "glue" / "ops.cpp").read_text()
    assert set(re.findall(r'm\.impl\("(\w+)"', source)) == said
    assert set(cuda.KERNELS) in ({*said}, set())


@pytest.mark.skipif(not triton.IS_READY, reason="Triton is not here")
def test_triton_launchers_are_there() -> None:
    for op in OPS:
        if "triton" in TABLE[op].kernels:
            module = importlib.import_module(f"llama_fast.kernels.{op}")
            assert all(callable(getattr(module, name)) for name in TABLE[op].operators)


def test_operators_of_triton_check_their_tensors() -> None:
    said = {name for op in OPS if "triton" in TABLE[op].kernels for name in TABLE[op].operators}
    assert set(operator_checks.CHECKS) | UNCHECKED == said


def test_backends_of_the_table_are_backends() -> None:
    for op in OPS:
        assert set(TABLE[op].kernels) <= set(BACKENDS) - set(UNIVERSAL)


def test_the_tests_know_every_backend() -> None:
    assert set(DEVICES) == set(BACKENDS) - {"auto", "torch"}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_backend_takes_the_dtypes_of_the_table(op: str, dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 1, 8, dtype=dtype)
    for backend in llama_fast.backends().available[op]:
        with llama_fast.use_backend(**{op: backend}):
            if dtype in TABLE[op].kernels.get(backend, FLOATS):
                assert choose(op, x) == backend
            else:
                with pytest.raises(ValueError, match=f"^backend '{backend}' of {op}: .*, got"):
                    choose(op, x)
