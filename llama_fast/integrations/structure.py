"""Modules recognised by what they compute, not by what they are called.

A module that looks like an RMSNorm or a gated MLP is copied in float64, given random weights and
random input, and compared with our formula; only if the numbers agree is it replaced. Functions
that turn queries and keys by their position are found in the code of attention layers and compared
in the same way.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llama_fast import reference
from llama_fast.integrations import recompute
from llama_fast.ops.linear import linear
from llama_fast.ops.rms_norm import rms_norm
from llama_fast.ops.swiglu import swiglu

Replacement = Callable[..., Any] | str | None
# What a module computes in float32 on the way is this far from float64 at most.
AGREEMENT = 1e-5
_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_epsilon")


def norm_replacement(module: nn.Module) -> Replacement:
    """Our forward for an RMSNorm; a reason where `module` is a norm of another kind; or None."""
    eps_name = next((name for name in _EPS_NAMES if hasattr(module, name)), None)
    parameters = dict(module.named_parameters())
    if eps_name is None or list(module.children()) or set(parameters) - {"weight"}:
        return None
    weight = parameters.get("weight")
    if weight is None or weight.dim() != 1 or not weight.is_floating_point():
        return None
    if not isinstance(getattr(module, eps_name), float) or len(_required(module)) != 1:
        return None
    if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return None
    x = _random(5, 3, len(weight)) + 0.5  # a mean other than 0 tells a LayerNorm
    try:
        probe = _in_float64(module)
        got = probe(x)
    except Exception as error:  # whatever a module says to input that it does not know
        return f"its forward failed on random input: {type(error).__name__}: {error}"
    eps = getattr(module, eps_name)
    for offset in (0.0, 1.0):
        want = reference.rms_norm(x, probe.weight.detach(), eps, offset=offset)
        if _agree(got, want):
            return functools.partial(norm_forward, eps_name=eps_name, offset=offset)
    return "its output is not RMSNorm's"


def norm_forward(
    module: nn.Module, input: torch.Tensor, *, eps_name: str, offset: float
) -> torch.Tensor:
    """RMSNorm over the last dimension by our kernel."""
    weight = module.weight
    if weight.dtype != input.dtype:  # the module knows what comes of two dtypes
        return type(module).forward(module, input)
    make = functools.partial(rms_norm, eps=getattr(module, eps_name), offset=offset)
    return recompute.mark(module, make(input, weight), make, input, weight)


def linear_replacement(module: nn.Module) -> Replacement:
    """Our forward for torch's Linear; None for everything else, subclasses too."""
    return linear_forward if type(module) is nn.Linear else None


def linear_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """The linear map; by our kernel in decoding; keeps no input that is quickly made again."""
    # In training, reentrant checkpointing computes a layer without gradients and again with them:
    # both times to the same bits.
    product = F.linear if module.training else linear
    with recompute.instead_of(input):
        return product(input, module.weight, module.bias)


def mlp_replacement(module: nn.Module) -> Replacement:
    """Our forward for a gated MLP with SiLU; a reason for another activation; or None."""
    linears = {n: m for n, m in module.named_children() if _is_linear(m)}
    others = [m for n, m in module.named_children() if n not in linears]
    if len(linears) not in (2, 3) or any(list(m.parameters()) for m in others):
        return None
    if len(_required(module)) != 1 or list(module.parameters(recurse=False)):
        return None
    outward = [(m.out_features, m.in_features) for m in linears.values()]
    names = _gate_up_down(dict(zip(linears, outward, strict=True)))
    if not names:
        return None
    width = linears[names[0][0]].in_features
    x = _random(7, width)
    try:
        probe = _in_float64(module)
        got = probe(x)
    except Exception as error:  # whatever a module says to input that it does not know
        return f"its forward failed on random input: {type(error).__name__}: {error}"
    if not isinstance(got, torch.Tensor):
        return None
    for gate, up, down in names:
        forward = functools.partial(mlp_forward, gate=gate, up=up, down=down)
        with torch.no_grad():
            want = _mlp(probe, x, gate, up, down, reference.swiglu)
        if _agree(got, want):
            return forward
    return "its activation is not SiLU, or it does more than a gated MLP"


def mlp_forward(
    module: nn.Module, input: torch.Tensor, *, gate: str, up: str, down: str
) -> torch.Tensor:
    """down(silu(gate(x)) * up(x)), the product by our kernel."""
    return _mlp(module, input, gate, up, down, swiglu)


def _mlp(
    module: nn.Module, input: torch.Tensor, gate: str, up: str, down: str, product: Any
) -> torch.Tensor:
    if gate == up or gate.startswith("-"):  # both in one matrix; "-": the gate is the second half
        halves = getattr(module, up)(input).chunk(2, dim=-1)
        a, b = halves if gate == up else reversed(halves)
    else:
        a, b = getattr(module, gate)(input), getattr(module, up)(input)
    out: torch.Tensor = getattr(module, down)(
        recompute.mark(module, product(a, b), product, a, b, within=True)
    )
    return out


def _gate_up_down(shapes: dict[str, tuple[int, int]]) -> list[tuple[str, str, str]]:
    """The roles that linear maps of such (out, in) can have."""
    found = []
    for down, (width, inner) in shapes.items():
        rest = [name for name in shapes if name != down]
        if len(rest) == 2 and all(shapes[name] == (inner, width) for name in rest):
            found += [(rest[0], rest[1], down), (rest[1], rest[0], down)]
        if len(rest) == 1 and shapes[rest[0]] == (2 * inner, width):
            found += [(rest[0], rest[0], down), (f"-{rest[0]}", rest[0], down)]
    return found


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _required(module: nn.Module) -> list[str]:
    """Arguments of a module's forward that have no default."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _in_float64(module: nn.Module) -> Any:
    """A copy in float64 on the CPU, with random weights, without hooks and in eval mode."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():  # the copy gets its own, whatever these hold or where
        like = torch.empty(parameter.shape, dtype=torch.float64)
        memo[id(parameter)] = nn.Parameter(like, requires_grad=False)
    probe = copy.deepcopy(module, memo)
    for part in probe.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        part.__dict__.pop("forward", None)
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        parameter.data.normal_(generator=generator).mul_(0.3).add_(0.7 * (parameter.dim() == 1))
    return probe.double().cpu().eval().requires_grad_(False)


def _random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def _agree(got: Any, want: torch.Tensor) -> bool:
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return False
    return bool((got.double() - want).abs().max() <= AGREEMENT * want.abs().max())


def called_functions(module: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Global functions that a module's forward may call, by name."""
    forward = inspect.unwrap(type(module).forward)
    for name in getattr(getattr(forward, "__code__", None), "co_names", ()):
        value = forward.__globals__.get(name)
        if callable(value) and not isinstance(value, type):
            yield name, value
