"""Layers whose `forward` the `kernels` package gives to modules of other classes.

A layer has no state of its own: `self` is the replaced module. The package accepts no other members
than `forward`, `has_backward` and `can_torch_compile`, and a `forward` with as many arguments of
the same kinds as the one that it replaces. A call that our kernels cannot take runs the forward of
the module's class.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llama_fast._torch_internals import in_transform
from llama_fast.integrations import module_state, rotary, structure
from llama_fast.ops.cross_entropy import cross_entropy

__all__ = [
    "FixedCrossEntropy",
    "ForCausalLMLoss",
    "GatedMLP",
    "GeGLUMLP",
    "RMSNorm",
    "RMSNormZeroCentered",
    "RotaryPosEmb",
    "SwiGLUMLP",
]

_HALVES = rotary.RotaryStyle(interleaved=False, tables="halves", partial=False)
_ONCE = rotary.RotaryStyle(interleaved=False, tables="once", partial=False)
GATED_PARTS: dict[str, Any] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_OTHER_LOSS = {"label_smoothing", "reduction", "weight"}  # arguments that would change the result
_CHECKED = "_llama_fast_halves"  # attribute of a table: (version, whether its halves are equal)


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension: ``weight * x / sqrt(mean(x^2) + eps)``.

    The module has `weight` (E,) and `variance_epsilon` or `eps`.
    """

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise (..., E)."""
        return _normalised(self, hidden_states, offset=0.0)


class RMSNormZeroCentered(nn.Module):
    """RMSNorm with the factor ``1 + weight``, as in Gemma and Qwen3.5."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (..., E)."""
        return _normalised(self, x, offset=1.0)


class RotaryPosEmb(nn.Module):
    """Rotary position embedding of queries and keys, the function `apply_rotary_pos_emb`.

    Columns i and i + D/2 of a head are one pair. A compiler gets the original function, which it
    fuses, because the values of the tables are not known there.
    """

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        unsqueeze_dim: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate q (B,H,S,D) and k (B,K,S,D) by cos and sin (B or 1, S, D or D/2)."""
        theirs = functools.partial(type(self).forward, self)
        style = None if torch.compiler.is_compiling() else _style_of(q, cos, sin)
        ours = theirs if style is None else rotary.with_kernel(theirs, style)
        rotated: tuple[torch.Tensor, torch.Tensor] = ours(
            q, k, cos, sin, unsqueeze_dim=unsqueeze_dim
        )
        return rotated


class GatedMLP(nn.Module):
    """A gated MLP: ``down_proj(act_fn(gate_proj(x)) * up_proj(x))``.

    With SiLU one kernel computes activation and product; another activation is the module's own. In
    decoding, another kernel computes the linear maps.
    """

    has_backward: bool = True
    can_torch_compile: bool = True
    act_fn: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., E) to (..., E)."""
        has_parts = all(name in self._modules for name in (*GATED_PARTS.values(), "act_fn"))
        if not has_parts or not module_state.is_plain(x):
            theirs: torch.Tensor = type(self).forward(self, x)
            return theirs
        return structure.mlp_forward(
            self,
            x,
            **GATED_PARTS,
            product=None if _is_silu(self.act_fn) else functools.partial(_activated, self.act_fn),
            call=_project,
        )


class SwiGLUMLP(GatedMLP):
    """:class:`GatedMLP` under transformers' name for SiLU."""


class GeGLUMLP(GatedMLP):
    """:class:`GatedMLP` under transformers' name for GELU."""


class ForCausalLMLoss(nn.Module):
    """Cross-entropy between logits and the next tokens, transformers' function of that name."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: torch.Tensor | None = None,
        ignore_index: int = -100,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The mean over the targets, or the sum over `num_items_in_batch`; float32.

        Args:
            logits: (B,S,V).
            labels: (B,S) tokens; each place predicts the next.
            vocab_size: V.
            num_items_in_batch: number of targets of all micro-batches of an optimizer step.
            ignore_index: targets of this value are left out.
            shift_labels: (B,S) targets, used in place of `labels`.
            **kwargs: not used; with options of another loss, transformers' function runs.
        """
        targets = shift_labels
        if targets is None and labels is not None:
            targets = F.pad(labels, (0, 1), value=ignore_index)[..., 1:].contiguous()
        if not _can_compute(logits, targets, kwargs):
            theirs: torch.Tensor = type(self).forward(
                self, logits, labels, vocab_size, num_items_in_batch, ignore_index,
                shift_labels, **kwargs,
            )  # fmt: skip
            return theirs
        assert targets is not None
        targets = targets.reshape(-1).to(logits.device)
        return _loss(logits.reshape(-1, vocab_size), targets, num_items_in_batch, ignore_index)


class FixedCrossEntropy(nn.Module):
    """Cross-entropy that ends transformers' loss functions, `fixed_cross_entropy`."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        num_items_in_batch: torch.Tensor | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The mean over the targets, or the sum over `num_items_in_batch`; float32.

        Args:
            source: logits (N,V).
            target: (N,) classes.
            num_items_in_batch: number of targets of all micro-batches of an optimizer step.
            ignore_index: targets of this value are left out.
            **kwargs: not used; with options of another loss, transformers' function runs.
        """
        if source.dim() != 2 or not _can_compute(source, target, kwargs):
            theirs: torch.Tensor = type(self).forward(
                self, source, target, num_items_in_batch, ignore_index, **kwargs
            )
            return theirs
        return _loss(source, target, num_items_in_batch, ignore_index)


def _can_compute(logits: Any, targets: Any, options: dict[str, Any]) -> bool:
    plain = module_state.is_plain(logits) and module_state.is_plain(targets)
    classes = plain and not targets.is_floating_point() and logits.is_floating_point()
    return classes and _OTHER_LOSS.isdisjoint(options)


def _loss(
    logits: torch.Tensor, targets: torch.Tensor, num_items: Any, ignore_index: int
) -> torch.Tensor:
    if num_items is None:
        return cross_entropy(logits, targets, ignore_index=ignore_index)
    if isinstance(num_items, torch.Tensor):
        num_items = num_items.to(logits.device)
    return cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum") / num_items


def _normalised(module: nn.Module, x: torch.Tensor, offset: float) -> torch.Tensor:
    eps_name = "variance_epsilon" if hasattr(module, "variance_epsilon") else "eps"
    weight = getattr(module, "weight", None)
    if weight is None or not hasattr(module, eps_name) or not module_state.is_plain(x):
        theirs: torch.Tensor = type(module).forward(module, x)
        return theirs
    return structure.norm_forward(module, x, eps_name=eps_name, offset=offset)


def _style_of(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> rotary.RotaryStyle | None:
    """How the tables are laid out; None for a layout that the kernel does not know."""
    plain = all(type(t) is torch.Tensor and t.device.type == "cpu" for t in (q, cos, sin))
    if not plain or cos.shape != sin.shape or in_transform():
        return None
    if cos.shape[-1] * 2 == q.shape[-1]:
        return _ONCE
    if cos.shape[-1] == q.shape[-1] and _has_equal_halves(cos) and _has_equal_halves(sin):
        return _HALVES
    return None


def _has_equal_halves(table: torch.Tensor) -> bool:
    """Whether each frequency is there twice; asked once for a table that all layers share."""
    if table.shape[-1] % 2:
        return False
    version = None if table.is_inference() else table._version
    known = getattr(table, _CHECKED, None)
    if known is None or known[0] != version:
        known = version, bool(torch.equal(*table.chunk(2, dim=-1)))
        if version is not None:  # the values of inference tensors may change without a trace
            setattr(table, _CHECKED, known)
    equal: bool = known[1]
    return equal


def _is_silu(module: Any) -> bool:
    """Whether a module is torch's or transformers' SiLU, without hooks."""
    known = type(module).__module__.split(".")[0] in ("torch", "transformers")
    silu = type(module).__name__ in ("SiLU", "SiLUActivation")
    return known and silu and not module_state.is_hooked(module)


def _project(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of a linear layer; our kernel serves decoding."""
    plain = type(part) is nn.Linear and not module_state.is_hooked(part)
    if plain and module_state.is_plain(x) and not module_state.all_modules_hooked():
        return structure.linear_forward(part, x)
    out: torch.Tensor = part(x)
    return out


def _activated(act_fn: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = act_fn(gate) * up
    return product
