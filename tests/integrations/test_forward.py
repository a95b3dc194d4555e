"""Forwards of other libraries on an instance, before ours or after, taken away in any order."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.integrations.forward import Forward

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

IDS = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(1))


def make() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def autocast(model: Any) -> None:
    """What accelerate does to a model for mixed precision."""
    model._original_forward = model.forward
    forward = getattr(model.forward, "__func__", None)
    cast = torch.autocast("cpu", torch.bfloat16)
    if forward is None:
        model.forward = cast(model.forward)
    else:
        model.forward = types.MethodType(cast(forward), model)


def unwrap(model: Any) -> None:
    """What accelerate does to give the model back."""
    forward = model.forward
    original = model.__dict__.pop("_original_forward")
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
        if forward == original:
            break
    model.forward = types.MethodType(forward, model)


def logits(model: Any) -> Any:
    return model(input_ids=IDS, labels=IDS).logits


def is_lazy(model: Any) -> bool:
    return not isinstance(logits(model), torch.Tensor)


def traces(model: torch.nn.Module) -> list[str]:
    return [
        name
        for module in model.modules()
        for name, value in vars(module).items()
        if "llama_fast" in name or isinstance(value, Forward)
    ]


@pytest.mark.parametrize("first", ["patch", "autocast"])
@pytest.mark.parametrize("last", ["unpatch", "unwrap", "both", "neither"])
def test_mixed_precision_in_any_order(first: str, last: str) -> None:
    model = make()
    stock = copy.deepcopy(model)
    in_float32 = logits(stock)
    autocast(stock)
    in_bfloat16 = logits(stock)
    assert in_bfloat16.dtype == torch.bfloat16
    for act in (llama_fast.patch, autocast) if first == "patch" else (autocast, llama_fast.patch):
        act(model)
    model = copy.deepcopy(model)
    assert list(inspect.signature(model.forward).parameters)[:2] == ["input_ids", "attention_mask"]
    assert is_lazy(model) and logits(model).dtype == torch.bfloat16
    ours, theirs = ((x + 0).float() - in_float32 for x in (logits(model), in_bfloat16))
    rounding = torch.finfo(torch.bfloat16).eps * in_float32.norm()
    assert ours.norm() <= theirs.norm() + rounding
    if last in ("unwrap", "both"):
        unwrap(model)
        torch.testing.assert_close(logits(model) + 0, in_float32)
    if last in ("unpatch", "both"):
        llama_fast.unpatch(model)
        assert traces(model) == [] and not is_lazy(model)
        assert torch.equal(logits(model), in_bfloat16 if last == "unpatch" else in_float32)
        llama_fast.patch(model)
        assert is_lazy(model)


def test_a_wrapper_that_copies_our_attributes_is_not_ours() -> None:
    model = make()
    want = logits(model)
    norm = model.model.norm
    calls = []

    def hooked(module: Any, *args: Any) -> Any:
        calls.append(module)
        return module._old_forward(*args)

    llama_fast.patch(model)
    norm._old_forward = norm.forward
    norm.forward = functools.update_wrapper(functools.partial(hooked, norm), norm.forward)
    llama_fast.unpatch(model)
    assert traces(model) == []
    assert torch.equal(logits(model), want) and calls == [norm]


def test_an_adapter_put_on_the_head_later_takes_part() -> None:
    class Adapted(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.more = torch.nn.Linear(base.in_features, base.out_features, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.more(x)

    model = make()
    stock = copy.deepcopy(model)
    llama_fast.patch(model)
    for m in (model, stock):
        torch.manual_seed(1)
        m.lm_head = Adapted(m.lm_head)
    losses = [m(input_ids=IDS, labels=IDS).loss for m in (stock, model)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(model.lm_head.more.weight.grad, stock.lm_head.more.weight.grad)


def test_the_forward_of_the_class_on_the_instance_is_none_of_another_library() -> None:
    model = make()
    want = len(llama_fast.patch(model).replaced())
    llama_fast.unpatch(model)
    for module in model.modules():
        module.forward = types.MethodType(type(module).forward, module)
    assert len(llama_fast.patch(model).replaced()) == want
    norm = model.model.norm
    llama_fast.unpatch(model)
    norm.forward = types.MethodType(lambda self, x: x, norm)
    assert "model.norm" not in llama_fast.patch(model).replaced("rms_norm")


def test_a_rotation_made_a_module_by_the_kernels_package_is_replaced(monkeypatch: Any) -> None:
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.apply_rotary_pos_emb

    class Rotation(torch.nn.Module):
        def forward(self, q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
            return plain(q, k, cos, sin, unsqueeze_dim)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", Rotation())
    model = make().eval()
    want = logits(model)
    assert len(llama_fast.patch(model).replaced("rope")) == 2
    torch.testing.assert_close(logits(model), want, rtol=1e-4, atol=1e-5)
