"""Recognises modules by what they compute, not by their names.

A module that may be an RMSNorm or a gated MLP is copied in float64 and run with random weights on
random input. It is replaced only if the result agrees with our formula. Functions that apply rotary
embedding are found in the code of attention layers and compared in the same way.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llama_fast import reference
from llama_fast._torch_internals import BatchNormModule
from llama_fast.integrations import module_state, recompute
from llama_fast.integrations.probe import Probe, normal
from llama_fast.ops.linear import linear
from llama_fast.ops.rms_norm import rms_norm
from llama_fast.ops.swiglu import swiglu

Replacement = Callable[..., Any] | str | None
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Call = Callable[[nn.Module, torch.Tensor], torch.Tensor]
_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_epsilon")
_DIFFERS_IN_TRAINING = "in training it differs: dropout, noise or other gradients"


def cached_by_structure(
    find: Callable[[nn.Module], Replacement],
) -> Callable[[nn.Module], Replacement]:
    """`find` with a cache for modules of equal structure, such as the layers of a model."""
    known: dict[Hashable, Replacement] = {}

    def cached(module: nn.Module) -> Replacement:
        small = len(list(itertools.islice(module.modules(), 17))) < 17  # not a whole model
        key = module_state.structure_key(module) if small else None
        if key is None:
            return find(module)
        if key not in known:
            known[key] = find(module)
        return known[key]

    return cached


def norm_replacement(module: nn.Module) -> Replacement:
    """Our forward for an RMSNorm; a reason for another norm; None for all other modules."""
    eps_name = next((name for name in _EPS_NAMES if hasattr(module, name)), None)
    parameters = dict(module.named_parameters())
    if eps_name is None or list(module.children()) or set(parameters) - {"weight"}:
        return None
    weight = parameters.get("weight")
    if weight is None or weight.dim() != 1 or not weight.is_floating_point():
        return None
    if not isinstance(getattr(module, eps_name), float) or len(_required(module)) != 1:
        return None
    if isinstance(module, (nn.LayerNorm, BatchNormModule, nn.GroupNorm)):
        return None
    eps = getattr(module, eps_name)
    x = normal(5, 3, len(weight)) + 0.5  # a LayerNorm would subtract the mean
    try:
        probe = Probe(module, x)
    except Exception as error:  # whatever the module raises for this input
        return f"its forward failed on random input: {type(error).__name__}: {error}"
    for offset in (0.0, 1.0):

        def formula(norm: Any, x: torch.Tensor, offset: float = offset) -> torch.Tensor:
            return reference.rms_norm(x, norm.weight, None, eps, offset)[0]

        if probe.agrees(formula, training=False):
            if not probe.agrees(formula, training=True):
                return _DIFFERS_IN_TRAINING
            ours = functools.partial(norm_forward, eps_name=eps_name, offset=offset)
            state = module_state.state_of(module, without=(eps_name,))
            return functools.partial(_forward_if_unchanged, _ours=ours, _state=state)
    return "its output is not RMSNorm's"


def norm_forward(
    module: nn.Module, input: torch.Tensor, *, eps_name: str, offset: float
) -> torch.Tensor:
    """RMSNorm over the last dimension by our kernel."""
    weight = module.weight
    if weight.dtype != input.dtype or not module_state.is_plain(weight):
        result: torch.Tensor = type(module).forward(module, input)  # it handles such weights
        return result
    make = functools.partial(rms_norm, eps=getattr(module, eps_name), offset=offset)
    return recompute.attach_recipe(module, make(input, weight), make, input, weight)


def linear_replacement(module: nn.Module) -> Replacement:
    """Our forward for torch's Linear; None for all other modules and for subclasses."""
    if type(module) is not nn.Linear:
        return None
    state = module_state.state_of(module)
    return functools.partial(_forward_if_unchanged, _ours=linear_forward, _state=state)


def linear_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """The linear map; our kernel serves decoding, and cheap inputs are recomputed, not saved."""
    # Reentrant checkpointing computes a layer without and again with gradients: in training one
    # kernel serves both, so that the bits are equal.
    product = F.linear if module.training else linear
    with recompute.saving_recipe_of(input):
        return product(input, module.weight, module.bias)


def mlp_replacement(module: nn.Module) -> Replacement:
    """Our forward for a gated MLP with SiLU; a reason for another one; None for all others."""
    linears = {n: m for n, m in module.named_children() if _is_linear(m)}
    others = {n: m for n, m in module.named_children() if n not in linears}
    if len(linears) not in (2, 3) or any(list(m.parameters()) for m in others.values()):
        return None
    if len(_required(module)) != 1 or list(module.parameters(recurse=False)):
        return None
    outward = [(m.out_features, m.in_features) for m in linears.values()]
    names = _gate_up_down(dict(zip(linears, outward, strict=True)))
    if not names:
        return None
    x = normal(7, linears[names[0][0]].in_features)
    try:
        probe = Probe(module, x, excluded=tuple(linears))
    except Exception as error:  # whatever the module raises for this input
        return f"its forward failed on random input: {type(error).__name__}: {error}"
    if not probe.gives_a_tensor:
        return None
    drops = [None, *(name for name, m in others.items() if type(m) is nn.Dropout)]
    found = False
    for gate, up, down in names:
        roles: dict[str, Any] = {"gate": gate, "up": up, "down": down}
        if not probe.agrees(functools.partial(gated_mlp, product=reference.swiglu, **roles), False):
            continue
        found = True
        for between, after in itertools.product(drops, drops):
            formula = functools.partial(gated_mlp, between=between, after=after, **roles)
            if probe.agrees(functools.partial(formula, product=reference.swiglu), True):
                called = (*linears, between or "", after or "")
                return functools.partial(
                    _forward_if_unchanged,
                    _ours=functools.partial(mlp_forward, between=between, after=after, **roles),
                    _state=module_state.state_of(module, without=called),
                )
    return (
        _DIFFERS_IN_TRAINING
        if found
        else "its activation is not SiLU, or it does more than a gated MLP"
    )


def mlp_forward(
    module: nn.Module,
    input: torch.Tensor,
    *,
    gate: str,
    up: str,
    down: str,
    between: str | None = None,
    after: str | None = None,
    product: Product | None = None,
    call: Call | None = None,
) -> torch.Tensor:
    """down(silu(gate(x)) * up(x)) with the module's dropouts.

    Args:
        module: the MLP.
        input: (..., E).
        gate: name of its layer whose output is activated; see :func:`gated_mlp`.
        up: name of the other layer.
        down: name of the last layer.
        between: name of the dropout before `down`.
        after: name of the dropout after `down`.
        product: the activated gate times the other output; None for SwiGLU by our kernel.
        call: runs a part of the module; None to call it.
    """
    dtype = _weight_dtype(module, up)
    if dtype != _weight_dtype(module, down) or (
        gate in module._modules and dtype != _weight_dtype(module, gate)
    ):
        result: torch.Tensor = type(module).forward(module, input)  # it casts between the dtypes
        return result
    if product is None:
        product = functools.partial(_swiglu, module)
    return gated_mlp(
        module, input, gate, up, down, between=between, after=after, product=product, call=call
    )


def _weight_dtype(module: nn.Module, name: str) -> torch.dtype | None:
    part = module._modules[name]
    weight = part._parameters.get("weight") if part is not None else None
    if weight is None:  # adapters expose the weight of the layer that they wrap
        weight = getattr(part, "weight", None)
    return getattr(weight, "dtype", None)


def _swiglu(module: nn.Module, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, by our kernel if it can read both tensors."""
    if gate.dtype != up.dtype or not (module_state.is_plain(gate) and module_state.is_plain(up)):
        return F.silu(gate) * up
    return recompute.attach_recipe(module, swiglu(gate, up), swiglu, gate, up, within=True)


def gated_mlp(
    module: nn.Module,
    input: torch.Tensor,
    gate: str,
    up: str,
    down: str,
    *,
    product: Product,
    between: str | None = None,
    after: str | None = None,
    call: Call | None = None,
) -> torch.Tensor:
    """A gated MLP; `between` and `after` name its dropouts before and after `down`, or are None."""
    call = call or _called
    if gate == up or gate.startswith("-"):  # both in one matrix; "-": the gate is the second half
        halves = call(getattr(module, up), input).chunk(2, dim=-1)
        a, b = halves if gate == up else reversed(halves)
    else:
        a, b = call(getattr(module, gate), input), call(getattr(module, up), input)
    inner = product(a, b)
    if between is not None:
        inner = getattr(module, between)(inner)
    out: torch.Tensor = call(getattr(module, down), inner)
    return out if after is None else getattr(module, after)(out)


def _called(part: Any, input: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = part(input)
    return output


def _forward_if_unchanged(
    module: nn.Module, *args: Any, _ours: Any, _state: module_state.ModuleState, **kwargs: Any
) -> Any:
    """Our forward for one plain tensor; the module's own otherwise, or if the module changed."""
    if (
        len(args) == 1
        and not kwargs
        and module_state.is_plain(args[0])
        and _state.matches(module)
        and not (_state.parts and module_state.all_modules_hooked())
    ):
        return _ours(module, args[0])
    return type(module).forward(module, *args, **kwargs)


def _gate_up_down(shapes: dict[str, tuple[int, int]]) -> list[tuple[str, str, str]]:
    """(gate, up, down) assignments that are possible for linear maps of these (out, in) shapes."""
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


def called_functions(module: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Global functions that a module's forward may call, by name."""
    forward = inspect.unwrap(type(module).forward)
    for name in getattr(getattr(forward, "__code__", None), "co_names", ()):
        value = forward.__globals__.get(name)
        if callable(value) and not isinstance(value, type):
            yield name, value
