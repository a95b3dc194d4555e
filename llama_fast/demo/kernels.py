"""Checks every kernel against float64, beside stock PyTorch in the same precision.

The truth is the reference in float64 on the kernel's input (already rounded to its precision). A
kernel passes if, for each output and each gradient,

- its root-mean-square error is at most PyTorch's plus one rounding step of the tensor's precision
  (the criterion of cut-cross-entropy, Wijmans et al. 2024), and
- its largest error is at most twice PyTorch's plus one rounding step (that of flash-attention, Dao
  2023): the largest of 100,000 roundings varies twofold between draws even for one function, so a
  stricter bound on a single draw would fail at random.

PyTorch's error is the larger of those of torch's own function and of the formula in torch's
elementary operations. The op tests (``tests/ops``) are stricter, on many more inputs.

Shapes are those of SmolLM2-135M.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import llama_fast

__all__ = ["CASES", "Case", "Check", "backends_of", "check", "check_all"]

Tensors = dict[str, torch.Tensor]
Draw = Callable[[torch.Generator], torch.Tensor]

# Heads, key-value heads, head size, width and vocabulary of SmolLM2-135M.
H, K, D, E, F, V = 9, 3, 64, 576, 1536, 49152


@dataclass(frozen=True)
class Case:
    """A way to call an op.

    Attributes:
        op: name of the op.
        what: short description of the options.
        draw: creates the tensors that get a gradient, in float32.
        call: runs ``llama_fast.<op>`` on these tensors in the precision under test, and on the
            constants; returns the outputs to compare.
        constants: creates the tensors that get no gradient; they keep their own precision, but are
            float64 for the truth.
        differentiable: whether the op has gradients.
    """

    op: str
    what: str
    draw: Callable[[torch.Generator], Tensors]
    call: Callable[[Tensors, Tensors], Sequence[torch.Tensor]]
    constants: Callable[[torch.Generator], Tensors] = lambda generator: {}
    differentiable: bool = True


@dataclass(frozen=True)
class Check:
    """The errors of one backend on one case in one precision.

    ``forward`` and ``backward`` are its largest errors over outputs and gradients, relative to the
    largest number of the tensor; ``torch_forward`` and ``torch_backward`` those of torch's own
    function, None where there are no gradients; ``ok`` tells whether the check passed.
    """

    op: str
    what: str
    backend: str
    dtype: str
    forward: float
    backward: float | None
    torch_forward: float
    torch_backward: float | None
    ok: bool


def _normal(*shape: int, scale: float = 1.0) -> Draw:
    return lambda generator: torch.randn(*shape, generator=generator) * scale


def _draw(**tensors: Draw) -> Callable[[torch.Generator], Tensors]:
    return lambda generator: {name: make(generator) for name, make in tensors.items()}


def _targets(count: int) -> Draw:
    def make(generator: torch.Generator) -> torch.Tensor:
        target = torch.randint(V, (count,), generator=generator)
        target[:: count // 8] = -100  # some ignored, as padding is
        return target

    return make


def _angles(table: Callable[[torch.Tensor], torch.Tensor], length: int) -> Draw:
    frequency = 1e4 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return lambda generator: table(angle).float()


def _qkv(batch: int, queries: int, keys: int) -> Callable[[torch.Generator], Tensors]:
    return _draw(
        q=_normal(batch, H, queries, D), k=_normal(batch, K, keys, D), v=_normal(batch, K, keys, D)
    )


def _padding(lengths: tuple[int, ...], width: int) -> Draw:
    ends = torch.tensor(lengths)[:, None]
    return lambda generator: torch.arange(width) >= ends


CASES = (
    Case(
        "attention",
        "causal, 9 heads share 3",
        _qkv(1, 192, 192),
        lambda x, c: [llama_fast.attention(x["q"], x["k"], x["v"], causal=True)],
    ),
    Case(
        "attention",
        "window, ALiBi, padding, more keys",
        _qkv(2, 65, 130),
        lambda x, c: [llama_fast.attention(x["q"], x["k"], x["v"], causal=True, window=48, **c)],
        _draw(
            alibi_slopes=lambda generator: 2.0 ** -torch.arange(1.0, H + 1),
            key_padding_mask=_padding((130, 101), 130),
        ),
    ),
    Case(
        "attention_decode",
        "two lengths, one token more",
        _draw(
            q=_normal(2, H, 1, D),
            k=_normal(2, K, 1, D),
            v=_normal(2, K, 1, D),
            k_cache=_normal(2, K, 320, D),
            v_cache=_normal(2, K, 320, D),
        ),
        lambda x, c: [llama_fast.attention_decode(**x, **c)],
        lambda generator: {"cache_seqlens": torch.tensor([257, 40], dtype=torch.int32)},
        differentiable=False,
    ),
    Case(
        "cross_entropy",
        "mean",
        _draw(input=_normal(128, V, scale=3.0)),
        lambda x, c: [llama_fast.cross_entropy(x["input"], c["target"])],
        _draw(target=_targets(128)),
    ),
    Case(
        "cross_entropy",
        "class weights, smoothing, sum",
        _draw(input=_normal(64, V, scale=3.0)),
        lambda x, c: [
            llama_fast.cross_entropy(
                x["input"], c["target"], c["weight"], reduction="sum", label_smoothing=0.1
            )
        ],
        _draw(target=_targets(64), weight=lambda generator: torch.rand(V, generator=generator)),
    ),
    Case(
        "linear_cross_entropy",
        "mean",
        _draw(input=_normal(96, E), linear_weight=_normal(V, E, scale=E**-0.5)),
        lambda x, c: [llama_fast.linear_cross_entropy(x["input"], x["linear_weight"], c["target"])],
        _draw(target=_targets(96)),
    ),
    Case(
        "rms_norm",
        "plain",
        _draw(input=_normal(256, E), weight=_normal(E)),
        lambda x, c: [llama_fast.rms_norm(x["input"], x["weight"], 1e-5)],
    ),
    Case(
        "rms_norm",
        "with residual",
        _draw(input=_normal(256, E), weight=_normal(E), residual=_normal(256, E)),
        lambda x, c: llama_fast.rms_norm(x["input"], x["weight"], 1e-5, residual=x["residual"]),
    ),
    Case(
        "rope",
        "queries and keys",
        _draw(q=_normal(2, H, 128, D), k=_normal(2, K, 128, D)),
        lambda x, c: llama_fast.rope(x["q"], x["k"], c["cos"], c["sin"]),
        _draw(cos=_angles(torch.cos, 128), sin=_angles(torch.sin, 128)),
    ),
    Case(
        "swiglu",
        "plain",
        _draw(gate=_normal(256, F, scale=2.0), up=_normal(256, F)),
        lambda x, c: [llama_fast.swiglu(x["gate"], x["up"])],
    ),
)


def _run(case: Case, backend: str, leaves: Tensors, constants: Tensors) -> list[torch.Tensor]:
    """Outputs, then gradients, of one backend; the loss is a fixed projection of the outputs."""
    leaves = {n: t.detach().requires_grad_(case.differentiable) for n, t in leaves.items()}
    with llama_fast.use_backend(**{case.op: backend}):
        outputs = list(case.call(leaves, constants))
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros((), dtype=torch.float64, device=outputs[0].device)
        for output in outputs:
            # Rounded to bfloat16 first, so that the projection is the same in every precision.
            direction = (
                torch.ones(())
                if output.dim() == 0
                else torch.randn(output.shape, generator=generator)
            )
            direction = direction.bfloat16().to(output.device)
            total = total + (output.double() * direction.double()).sum()
        gradients = torch.autograd.grad(total, list(leaves.values())) if total.requires_grad else ()
    return [tensor.detach() for tensor in (*outputs, *gradients)]


def _errors(got: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error, relative to those of the truth itself."""
    if not got.isfinite().all():  # the truth is finite in all cases
        return math.inf, math.inf
    difference = got.double() - truth
    largest = difference.abs().max() / truth.abs().max()
    return largest.item(), (difference.norm() / truth.norm()).item()


def check(
    case: Case, dtype: torch.dtype, device: torch.device, backends: Sequence[str]
) -> list[Check]:
    """Run one case in one precision on each of ``backends`` and compare it with float64."""
    generator = torch.Generator().manual_seed(0)
    leaves = {n: t.to(device, dtype) for n, t in case.draw(generator).items()}
    constants = {n: t.to(device) for n, t in case.constants(generator).items()}
    wide = {n: t.double() if t.is_floating_point() else t for n, t in constants.items()}
    truth = _run(case, "reference", {n: t.double() for n, t in leaves.items()}, wide)
    outputs = len(truth) - len(leaves) * case.differentiable

    def errors(backend: str) -> list[tuple[float, float]]:
        results = _run(case, backend, leaves, constants)
        return [_errors(got, want) for got, want in zip(results, truth, strict=True)]

    def largest(pairs: list[tuple[float, float]]) -> tuple[float, float | None]:
        values = [pair[0] for pair in pairs]
        return max(values[:outputs]), max(values[outputs:]) if values[outputs:] else None

    steps = [torch.finfo(t.dtype).eps for t in _run(case, "reference", leaves, constants)]
    stock, formula = errors("torch"), errors("reference")
    checks = []
    for backend in backends:
        ours = errors(backend)
        ok = all(
            mine[0] <= 2 * max(theirs[0], plain[0]) + step
            and mine[1] <= max(theirs[1], plain[1]) + step
            for mine, theirs, plain, step in zip(ours, stock, formula, steps, strict=True)
        )
        name = str(dtype).removeprefix("torch.")
        checks.append(Check(case.op, case.what, backend, name, *largest(ours), *largest(stock), ok))
    return checks


def backends_of(op: str) -> list[str]:
    """The backends to check: all available ones; the reference only if there is no other.

    "torch" is the baseline, and the reference cannot fail against itself.
    """
    names = [name for name in llama_fast.backends().available[op] if name != "torch"]
    return [name for name in names if name != "reference"] or names


def check_all(
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[Check]:
    """Check every case in every precision on every backend of its op (:func:`backends_of`).

    "triton" and "cuda" run on the GPU, the others on the CPU.

    Args:
        dtypes: precisions to check.
        progress: called as ``progress(runs done, number of runs, current run)`` before each run.
    """
    runs = [(case, dtype) for case in CASES for dtype in dtypes]
    checks = []
    for done, (case, dtype) in enumerate(runs):
        progress(done, len(runs), f"{case.op}: {case.what}")
        names = backends_of(case.op)
        on_gpu = [name for name in names if name in ("triton", "cuda")]
        on_cpu = [name for name in names if name not in on_gpu]
        checks += check(case, dtype, torch.device("cpu"), on_cpu)
        if on_gpu:
            checks += check(case, dtype, torch.device("cuda"), on_gpu)
    return checks
