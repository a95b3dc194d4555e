"""The benchmark suite: what it counts, who takes part, and the files that it reads back."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import pytest
import torch

from llama_fast.cli.bench import suite

cases_ = suite("cases")
measure = suite("measure")
baselines_ = suite("baselines")
inputs_ = suite("inputs")
report = suite("report")
results_ = suite("results")

ATTENTION = cases_.cases("cpu", ["attention"], quick=True)
DECODE = cases_.cases("cpu", ["attention_decode"], quick=True)
QUICK = {case.name: case for case in cases_.cases("cpu", quick=True)}


def pairs_by_counting(case) -> int:  # type: ignore[no-untyped-def]
    """Query-key pairs that the mask of the baseline lets through."""
    from_torch = suite("baselines_attention")
    tensors = inputs_.make_inputs(case)
    mask = from_torch.mask_of(case, tensors)
    B, S, T = (case.sizes[n] for n in "BST")
    if mask is None:
        return B * S * T if S == 1 else B * int(torch.ones(S, T).tril().sum())
    if mask.is_floating_point():  # a bias (H,S,T)
        return B * int(mask[0].isfinite().sum())
    return int(mask.expand(B, 1, S, T).sum())


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_work_of_attention_counts_the_pairs_that_are_not_masked(case) -> None:  # type: ignore[no-untyped-def]
    kind, work = case.work()
    if kind == "read":
        assert work == sum(
            x.numel() * x.element_size()
            for name, x in inputs_.make_inputs(case).sets[0].items()
            if name != "q"
        )
        return
    per_pair = 4 * case.sizes["H"] * case.sizes["D"] * (3.5 if case.backward else 1)
    # By the convention half a diagonal is left out, a pair for every two rows.
    rows = case.sizes["B"] * case.sizes["S"]
    assert 0 <= pairs_by_counting(case) - work / per_pair <= rows / 2 + 1e-6


@pytest.mark.parametrize("case", DECODE, ids=lambda case: case.name)
def test_work_of_decoding_is_reading_the_cache(case) -> None:  # type: ignore[no-untyped-def]
    tensors = inputs_.make_inputs(case).sets[0]
    cache = sum(tensors[n].numel() * tensors[n].element_size() for n in ("k_cache", "v_cache"))
    assert case.work() == ("read", cache)


# A step of training begins with weights drawn at random.
@pytest.mark.parametrize("name", [n for n, case in QUICK.items() if case.op != "llama_training"])
def test_every_implementation_computes_what_we_compute(name: str) -> None:
    case = QUICK[name]
    present, _ = baselines_.choose([], "cpu")
    eager = [implementation for implementation in present if not implementation.compiled]
    sides = measure.measure(case, eager, 1, "cpu")
    assert sides[0].implementation == "llama_fast" and len(sides) > 1
    for side in sides:
        if side.reason is None:
            limit = 1e-4 if case.dtype == "float32" else report.DISAGREE
            assert side.difference < limit, side
        else:
            assert "nested" in side.reason or "F.linear_cross_entropy" in side.implementation, side


def test_the_band_of_the_hand_written_window_fits_any_length() -> None:
    case = next(c for c in ATTENTION if "window" in c.options)
    odd = cases_.replace(case, sizes=case.sizes | {"S": 61, "T": 61})  # no multiple of 16
    present, _ = baselines_.choose(["torch", "torch-by-hand"], "cpu")
    sides = measure.measure(odd, present, 1, "cpu")
    assert len(sides) == 3
    assert all(side.difference < report.DISAGREE for side in sides)


def test_a_wrong_baseline_is_reported() -> None:
    case = next(c for c in QUICK.values() if c.op == "swiglu")
    wrong = baselines_.Implementation(
        "wrong", "", {"swiglu": lambda case, inputs: lambda gate, up: gate * up}
    )
    broken = baselines_.Implementation("broken", "", {"swiglu": lambda case, inputs: 1 / 0})
    ours = baselines_.choose(["llama_fast"], "cpu")[0]
    sides = measure.measure(case, [*ours, wrong, broken], 2, "cpu")
    found = results_.Results(
        {"rounds": 2}, {}, {}, {"gone": "not here"}, {}, [results_.Result(case, sides)]
    )
    text = "\n".join(report.notes(found))
    assert "wrong differs from llama_fast" in text
    assert "broken not measured" in text and "ZeroDivisionError" in text
    assert "gone is missing: not here" in text
    assert not sides[2].samples_ms and len(sides[1].samples_ms) == 2


def test_a_baseline_that_is_slow_by_far_gets_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in QUICK.values() if c.op == "swiglu" and c.dtype == "float32")

    def slow(case, inputs):  # type: ignore[no-untyped-def]
        def run(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            time.sleep(0.03)
            return torch.nn.functional.silu(gate) * up

        return run

    monkeypatch.setattr(measure, "SLOW", 0.02)
    three, _ = baselines_.choose(["torch", "llama_fast"], "cpu")
    sides = measure.measure(
        case, [*three, baselines_.Implementation("slow", "", {"swiglu": slow})], 5, "cpu"
    )
    assert [len(side.samples_ms) for side in sides] == [5, 5, measure.FEW]
    found = results_.Results({"rounds": 5}, {}, {}, {}, {}, [results_.Result(case, sides)])
    assert any("slow has 3 rounds" in line for line in report.notes(found))


def test_overwritten_logits_are_put_back() -> None:
    case = next(c for c in QUICK.values() if c.options.get("inplace"))
    tensors = inputs_.make_inputs(case)
    before = tensors.sets[0]["logits"].detach().clone()
    step = measure.TimedStep(case, baselines_.choose(["llama_fast"], "cpu")[0][0], tensors)
    step()
    assert not torch.equal(tensors.sets[0]["logits"], before)
    step.restore()
    assert torch.equal(tensors.sets[0]["logits"], before)
    assert not step.repeatable


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux: /proc")
def test_memory_of_a_known_step() -> None:
    memory = suite("memory")
    assert memory.unavailable() is None
    by_name = baselines_.all_implementations()
    worker = memory.Worker(torch.get_num_threads(), [by_name["torch"]])
    try:
        case = next(c for c in cases_.cases("cpu", ["swiglu"]) if c.dtype == "float32")
        one = case.sizes["N"] * case.sizes["F"] * 4
        taken, why_not = worker.extra_bytes(case, by_name["torch"])
        assert why_not is None
        # silu(gate), its product, and in the backward at least two gradients.
        assert 3 * one < taken < 7 * one
        taken, why_not = worker.extra_bytes(case, by_name["torch-nested"])  # has no such op
        assert taken is None and "Unsupported" in why_not
    finally:
        worker.close()


def test_an_ended_process_says_why() -> None:
    child = suite("child").Child("memory", {"no": "threads"})
    with pytest.raises(RuntimeError, match="KeyError: 'threads'"):
        child.ask({})
    child.close()


def test_results_survive_json(tmp_path: Path) -> None:
    case = next(iter(QUICK.values()))
    side = results_.Side("llama_fast", [3.0, 1.0, 2.0], difference=0.0)
    other = results_.Side("torch", [4.0, 5.0, 6.0], extra_bytes=7)
    found = results_.Results(
        {"rounds": 3}, {}, {"gemm float32": 1e9}, {}, {}, [results_.Result(case, [side, other])]
    )
    found.write(tmp_path / "a.json")
    again = results_.read(tmp_path / "a.json")
    assert again == found
    result = again.results[0]
    assert result.ours.median_ms == 2.0 and result.ratio(result.baselines[0]) == 2.5
    assert result.ours.quartiles() == (1.5, 2.5)
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ValueError, match=r"b\.json"):
        results_.read(tmp_path / "b.json")


def test_choose_names_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"--baselines.*torch-by-hand.*got 'torhc'"):
        baselines_.choose(["torhc"], "cpu")
    with pytest.raises(ValueError, match=r"--op.*rms_norm.*got 'rmsnorm'"):
        cases_.cases("cpu", ["rmsnorm"])
    with pytest.raises(ValueError, match=r"--case.*'no such'"):
        cases_.cases("cpu", words="no such")
    present, missing = baselines_.choose(["flash-attn", "torch"], "cpu")
    assert [implementation.name for implementation in present] == ["llama_fast", "torch"]
    assert missing == {"flash-attn": "runs on cuda only"}


def test_every_case_has_a_name_of_its_own_and_a_reason() -> None:
    for device in ("cpu", "cuda"):
        every = cases_.cases(device)
        assert len({case.name for case in every}) == len(every)
        assert all(case.reason and case.work()[1] > 0 for case in every)
        assert {case.op for case in every} == set(cases_.OPS)


def test_percent_needs_a_limit() -> None:
    case = next(c for c in QUICK.values() if c.op == "cross_entropy")
    assert cases_.percent(case, 1.0, {}) is None
    _, work = case.work()
    assert math.isclose(cases_.percent(case, 2.0, {"copy": work}), 50.0)
