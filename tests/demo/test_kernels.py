import pytest
import torch

import llama_fast
from llama_fast.demo.kernels import CASES, Case, Check, backends_of, check, check_all

CPU = torch.device("cpu")


def test_every_op_has_a_case() -> None:
    assert {case.op for case in CASES} == set(llama_fast.backends().available)


def test_the_reference_is_checked_only_where_it_is_alone() -> None:
    assert "torch" not in backends_of("attention")
    assert "reference" not in backends_of("linear_cross_entropy")


@pytest.mark.slow
def test_every_backend_is_checked_and_passes() -> None:
    seen = []
    checks = check_all(progress=lambda done, total, what: seen.append((done, total)))
    assert [c for c in checks if not c.ok] == []
    assert {(c.op, c.backend) for c in checks} == {
        (case.op, backend) for case in CASES for backend in backends_of(case.op)
    }
    assert {c.dtype for c in checks} == {"float32", "bfloat16"}
    assert seen == [(i, 2 * len(CASES)) for i in range(2 * len(CASES))]


def spoilt(spoil) -> Case:
    """linear_cross_entropy whose backend "chunked" is spoilt in float32; all else stays right."""

    def call(x, c):
        loss = llama_fast.linear_cross_entropy(x["x"], x["w"], c["target"], reduction="none")
        under_test = llama_fast.backends().chosen["linear_cross_entropy"] == "chunked"
        return [spoil(loss) if under_test and loss.dtype == torch.float32 else loss]

    def draw(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(64, 32, generator=generator), "w": torch.randn(99, 32) / 5}

    return Case(
        "linear_cross_entropy", "spoilt", draw, call, lambda g: {"target": torch.arange(64)}
    )


@pytest.mark.parametrize(
    ("spoil", "output", "gradient"),
    [
        (lambda x: x, True, True),
        (lambda x: x + 1e-5 * (torch.arange(64) == 5), False, True),
        (lambda x: x + (x * 1e-5 - (x * 1e-5).detach()), True, False),
        (lambda x: torch.where(x == x.max(), torch.nan, x), False, False),
    ],
    ids=["right", "one output off", "gradient off", "one NaN"],
)
def test_a_wrong_kernel_fails(spoil, output: bool, gradient: bool) -> None:
    (got,) = check(spoilt(spoil), torch.float32, CPU, ["chunked"])
    assert isinstance(got, Check)
    assert got.ok == (output and gradient)
    assert (got.forward < 5e-7, got.backward < 5e-6) == (output, gradient)


def test_same_numbers_every_time() -> None:
    case = CASES[0]
    runs = [check(case, torch.bfloat16, CPU, backends_of(case.op)) for _ in range(2)]
    assert runs[0] == runs[1]
