"""Cases of the attention tests, and their input tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.ops.criterion import Results, gradients, to_dtype


@dataclass(frozen=True)
class Case:
    """One attention problem and why it is worth testing.

    `tensors` has the shapes of optional tensor arguments by name, in letters of (B,H,S,T) or 1. A
    prefix sets the values: ``bool:`` random booleans, ``ends:`` booleans that are True at both ends
    of a row, ``lowest:`` lowest finite numbers in half of the places and all of every second row.
    `grad_lse`: lse gets a gradient too. `lengths`: (queries, keys) of packed sequences, in place of
    B, S and T. `frozen`: tensors that need no gradient. `scales`: factors of tensors, by name.
    """

    why: str
    B: int = 2
    H: int = 2
    K: int = 2
    S: int = 17
    T: int = 17
    D: int = 16
    Dv: int = 0  # 0: D
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    grad_lse: bool = False
    lengths: tuple[tuple[int, int], ...] = ()
    frozen: tuple[str, ...] = ()
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the test: the reason, up to its colon."""
        return self.why.partition(":")[0].replace(" ", "-").replace(",", "")

    @property
    def scores(self) -> int:
        """Numbers of scores; few queries are computed as if they were 16."""
        lengths = self.lengths or ((self.S, self.T),) * self.B
        return self.H * sum(max(queries, 16) * keys for queries, keys in lengths)


def make_tensors(case: Case, seed: int) -> dict[str, torch.Tensor]:
    """The tensor arguments in float64 (bool, int)."""
    g = torch.Generator(torch.get_default_device()).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    B, H, K, S, T, D = case.B, case.H, case.K, case.S, case.T, case.D
    Dv = case.Dv or D
    if case.lengths:
        lengths = torch.tensor([(0, 0), *case.lengths], dtype=torch.int32)
        cu_q, cu_k = lengths.cumsum(0, dtype=torch.int32).unbind(1)
        N, M = int(cu_q[-1]), int(cu_k[-1])
        tensors = {"q": normal(N, H, D), "k": normal(M, K, D), "v": normal(M, K, Dv)}
        tensors["cu_seqlens_q"] = cu_q.contiguous()
        tensors["cu_seqlens_k"] = cu_k.contiguous()
        B = len(case.lengths)
    else:
        tensors = {"q": normal(B, H, S, D), "k": normal(B, K, T, D), "v": normal(B, K, T, Dv)}
    sizes = {"B": B, "H": H, "S": S, "T": T, "1": 1}
    for name, description in case.tensors.items():
        pattern, _, letters = description.rpartition(":")
        value = normal(*(sizes[letter] for letter in letters))
        if name == "alibi_slopes":
            value = value.sigmoid()
        if pattern == "ends":  # True in a first and a last stretch that differ from row to row
            position = torch.arange(value.shape[-1]) / value.shape[-1]
            row = torch.arange(value.shape[0]).unsqueeze(1)
            tensors[name] = (position < 0.15 * row) | (position >= 1 - 0.25 * row)
        elif pattern == "lowest":
            whole_row = torch.arange(value.shape[-2]).unsqueeze(1) % 2 == 0
            lowest = torch.finfo(torch.bfloat16).min  # that of float32 would round to -inf
            tensors[name] = value.masked_fill((value < 0) | whole_row, lowest)
        else:
            tensors[name] = value > -0.5 if pattern == "bool" else value
    for name, scale in case.scales.items():
        tensors[name] = tensors[name] * scale
    return tensors


def runner(case: Case) -> Callable[..., Results]:
    """The `run` of `criterion.check`: outputs and every gradient of one attention call."""

    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        arguments = to_dtype(make_tensors(case, seed), inputs_dtype, dtype)
        leaves = {
            name: t.requires_grad_()
            for name, t in arguments.items()
            if t.is_floating_point() and name not in case.frozen
        }
        options = dict(case.options)
        if case.grad_lse:
            options["return_lse"] = True
        result = function(**arguments, **options)
        results = {"out": result}
        if case.grad_lse:
            results = {"out": result[0], "lse": result[1]}
        grads = gradients(results.values(), leaves, inputs_dtype, seed)
        return {name: t.detach() for name, t in results.items()} | grads

    return run
