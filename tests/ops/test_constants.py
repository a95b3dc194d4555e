"""Numbers and texts that C++ and Python both hold are the same on both sides."""

from __future__ import annotations

import json
import re

import pytest
import torch

from llama_fast._out_of_memory import is_out_of_memory
from llama_fast.generation import fast_decode
from llama_fast.ops import _output_cache
from llama_fast.ops.backends import library
from llama_fast.reference import philox
from llama_fast.reference.cross_entropy import REDUCTIONS
from llama_fast.train import plan_memory

if library.missing_reason is not None:
    pytest.skip("nothing was compiled", allow_module_level=True)
CONSTANTS = json.loads(torch.ops.llama_fast.constants())
MIB = 1 << 20


def group(name: str) -> dict[str, int]:
    """The constants of one group, in the order of their values."""
    found = {
        k.removeprefix(f"{name}."): v for k, v in CONSTANTS.items() if k.startswith(f"{name}.")
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def test_reductions() -> None:
    assert list(group("reduction").values()) == list(range(len(REDUCTIONS)))
    assert tuple(group("reduction")) == REDUCTIONS


def test_largest_log_sum_exp_that_a_gradient_relies_on() -> None:
    pytest.importorskip("triton")
    from llama_fast.kernels._cross_entropy_gradient import TOO_LARGE

    assert CONSTANTS["cross_entropy.max_exact_lse"] == TOO_LARGE.value


def test_dtypes() -> None:
    """In the order that tests/cuda hands to the C++ functions."""
    assert list(group("dtype").items()) == [
        (name, i) for i, name in enumerate(("float64", "float32", "bfloat16", "float16"))
    ]


@pytest.mark.parametrize(
    "operator",
    ["attention_backward", "linear_cross_entropy", "rms_norm_backward", "swiglu_backward"],
)
def test_bits_of_grad_mask_are_the_gradients_in_the_order_of_the_schema(operator: str) -> None:
    bits = group(operator)
    results = [r.name for r in getattr(torch.ops.llama_fast, operator).default._schema.returns]
    assert list(bits) == results[-len(bits) :]
    assert list(bits.values()) == [1 << i for i in range(len(bits))]


def test_what_decode_layers_serves() -> None:
    assert CONSTANTS["attention.few_rows"] == fast_decode._MAX_HEADS
    assert CONSTANTS["attention.page_unit"] == fast_decode._PAGE_UNIT


def test_philox() -> None:
    assert group("philox") == {
        "rounds": philox.ROUNDS,
        **{f"multiplier.{i}": n for i, n in enumerate(philox.MULTIPLIER)},
        **{f"key_step.{i}": n for i, n in enumerate(philox.KEY_STEP)},
    }


def test_documented_sizes_of_the_output_cache() -> None:
    default = CONSTANTS["output_cache.default_bytes"] // MIB
    smallest = CONSTANTS["output_cache.min_bytes"] // MIB
    text = f"{_output_cache.__doc__} {_output_cache.empty_cache.__doc__}"
    assert re.findall(r"default (\d+)", text) == [str(default)] * 2
    assert re.findall(r"(\d+) MiB and more", text) == [str(smallest)]


def test_working_memory_of_linear_cross_entropy_that_plans_count_with() -> None:
    assert list(group("linear_cross_entropy_budget").values()) == [
        plan_memory.CPU_MIN_LOGITS,
        plan_memory.CPU_MAX_LOGITS,
    ]


def test_lack_of_memory_is_recognised() -> None:
    begins = json.loads(torch.ops.llama_fast.build_info())["not_enough_memory"]
    assert is_out_of_memory(RuntimeError(f"llama_fast: {begins}: tried"))
