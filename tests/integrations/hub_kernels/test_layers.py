"""The layers alone, as `kernels` sets them: against the functions that they replace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.loss import loss_utils
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.llama import modeling_llama

import kernels
from llama_fast.integrations import forward, register_kernels, unregister_kernels
from tests.integrations import zoo

V = 37


@pytest.fixture(autouse=True)
def registered() -> Any:
    register_kernels()
    yield
    unregister_kernels()


def on_kernels(function: Any, name: str) -> Any:
    """A function of transformers under a mark, on our kernel."""
    marked = kernels.use_kernel_forward_from_hub(name)(function)
    holder = torch.nn.Module()
    holder._kernel_funcs = {name: marked}  # type: ignore[assignment]
    kernels.kernelize(holder, mode=kernels.Mode.TRAINING, device="cpu")
    assert forward.is_kernel(marked)
    return marked


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)])
@pytest.mark.parametrize("shifted", [False, True])
def test_loss(items: Any, shifted: bool) -> None:
    ours = on_kernels(ForCausalLMLoss, "ForCausalLMLoss")
    logits = torch.randn(2, 6, V, requires_grad=True)
    labels = torch.randint(V, (2, 6))
    labels[0, 2] = -100
    more = {"num_items_in_batch": items, "shift_labels": labels if shifted else None}
    arguments = (logits, None if shifted else labels, V)
    got, want = ours(*arguments, **more), ForCausalLMLoss(*arguments, **more)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, logits), gradients(want, logits))


def loss_end(
    source: Any,
    target: Any,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> Any:
    marked = loss_utils.fixed_cross_entropy
    return type(marked).forward(marked, source, target, num_items_in_batch, ignore_index, **kwargs)


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)])
def test_the_end_of_a_loss(items: Any) -> None:
    ours = on_kernels(loss_end, "LlamaFastFixedCrossEntropy")
    logits, targets = torch.randn(6, V, requires_grad=True), torch.randint(V, (6,))
    targets[1] = -100
    got, want = ours(logits, targets, items), loss_end(logits, targets, items)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, logits), gradients(want, logits))


def test_loss_with_options_of_another_is_theirs() -> None:
    def weighted(
        logits: Any, labels: Any, vocab_size: int, num_items_in_batch: Any = None,
        ignore_index: int = -100, shift_labels: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        return sorted(kwargs)

    ours = on_kernels(weighted, "ForCausalLMLoss")
    logits, labels = torch.randn(1, 3, V), torch.zeros(1, 3, dtype=torch.long)
    assert ours(logits, labels, V, label_smoothing=0.1) == ["label_smoothing"]
    assert isinstance(ours(logits, labels, V, position_ids=labels), torch.Tensor)


def test_an_mlp_with_other_parts_is_theirs() -> None:
    class Packed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj, self.down_proj = torch.nn.Linear(4, 12), torch.nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = self.gate_up_proj(x).chunk(2, -1)
            return self.down_proj(torch.nn.functional.silu(gate) * up)

    marked = kernels.use_kernel_forward_from_hub("SwiGLUMLP")(Packed)()
    kernels.kernelize(marked, mode=kernels.Mode.TRAINING, device="cpu")
    assert forward.is_kernel(marked)
    x = torch.randn(2, 4)
    assert torch.equal(marked(x), Packed.forward(marked, x))


def test_loss_without_labels_fails_as_transformers_does() -> None:
    with pytest.raises(TypeError):
        on_kernels(ForCausalLMLoss, "ForCausalLMLoss")(torch.randn(1, 3, V), None, V)


def rotation_inputs(width: int = 8) -> tuple[torch.Tensor, ...]:
    q = torch.randn(2, 4, 5, 8, requires_grad=True)
    k = torch.randn(2, 2, 5, 8, requires_grad=True)
    angles = torch.randn(1, 5, width // 2)
    angles = torch.cat((angles, angles), -1)
    return q, k, angles.cos(), angles.sin()


def plain_rotation() -> Any:
    function = type(modeling_llama.apply_rotary_pos_emb)
    return lambda *args, **kw: function.forward(modeling_llama.apply_rotary_pos_emb, *args, **kw)


def rotation(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> Any:
    return plain_rotation()(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)


def test_rotation() -> None:
    ours = on_kernels(rotation, "rotary_pos_emb")
    q, k, cos, sin = rotation_inputs()
    for again in range(2):  # the second time the tables are known
        got, want = ours(q, k, cos, sin), rotation(q, k, cos, sin)
        torch.testing.assert_close(got, want, msg=f"call {again}")
        loss = (got[0] * want[0].detach()).sum() + (got[1] * want[1].detach()).sum()
        theirs = (want[0] * want[0].detach()).sum() + (want[1] * want[1].detach()).sum()
        torch.testing.assert_close(gradients(loss, q, k), gradients(theirs, q, k))


def test_rotation_by_other_tables_is_theirs() -> None:
    ours = on_kernels(rotation, "rotary_pos_emb")
    q, k, cos, sin = rotation_inputs()
    ours(q, k, cos, sin)
    cos[..., :4] += 1  # in place: the tables are looked at again
    assert torch.equal(ours(q, k, cos, sin)[0], rotation(q, k, cos, sin)[0])
    q, k, cos, sin = rotation_inputs()
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    torch.testing.assert_close(
        ours(q, k, cos, sin, unsqueeze_dim=2), rotation(q, k, cos, sin, unsqueeze_dim=2)
    )


def test_rotation_in_inference_mode_and_under_vmap() -> None:
    ours = on_kernels(rotation, "rotary_pos_emb")
    with torch.inference_mode():
        inputs = tuple(t.detach() + 0 for t in rotation_inputs())
        torch.testing.assert_close(ours(*inputs), rotation(*inputs))
    q, k, cos, sin = (t.detach() for t in rotation_inputs())
    many = torch.stack((q, 2 * q))
    got = torch.func.vmap(lambda each: ours(each, k, cos, sin)[0])(many)
    torch.testing.assert_close(got[1], rotation(2 * q, k, cos, sin)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_norm_and_mlp_take_every_dtype(dtype: torch.dtype) -> None:
    model = zoo.build("llama", dtype)
    stock = zoo.build("llama", dtype)
    model.set_use_kernels(True)
    x = torch.randn(2, 3, 64).to(dtype)
    bound = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {}
    if dtype == torch.float64:  # transformers computes a norm in float32
        bound = {"rtol": 1.3e-6, "atol": 1e-5}
    for name in ("norm", "layers.0.mlp"):
        ours, theirs = model.model.get_submodule(name), stock.model.get_submodule(name)
        assert forward.is_kernel(ours)
        torch.testing.assert_close(ours(x), theirs(x), **bound)
        assert ours(x[:0]).shape == x[:0].shape
    unregister_kernels(model)


def test_a_norm_of_another_dtype_is_theirs() -> None:
    model = zoo.build("llama")
    model.set_use_kernels(True)
    norm = model.model.norm.double()
    x = torch.randn(2, 64)
    assert torch.equal(norm(x), type(norm).forward(norm, x))
    unregister_kernels(model)
