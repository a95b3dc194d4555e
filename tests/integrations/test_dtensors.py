"""Patched modules that are handed DTensors, as sequence and tensor parallelism do."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import llama_fast

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mesh() -> Iterator[torch.distributed.DeviceMesh]:
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    destroy_process_group()


class Block(nn.Module):
    """A norm and a gated MLP, named as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16, eps=1e-6)
        self.mlp = Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(x))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


def whole(t: torch.Tensor) -> torch.Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def same_as_stock(stock: nn.Module, patched: nn.Module, x: torch.Tensor) -> None:
    outs = [module(x) for module in (stock, patched)]
    for out in outs:
        whole(out).square().sum().backward()
    torch.testing.assert_close(whole(outs[1]), whole(outs[0]))
    for a, b in zip(stock.parameters(), patched.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(whole(b.grad), whole(a.grad))


@pytest.mark.parametrize("patched_first", [True, False])
def test_sequence_parallel(mesh: torch.distributed.DeviceMesh, patched_first: bool) -> None:
    plan = {
        "norm": SequenceParallel(),
        "mlp.gate": ColwiseParallel(input_layouts=Shard(1)),
        "mlp.up": ColwiseParallel(input_layouts=Shard(1)),
        "mlp.down": RowwiseParallel(),
    }
    torch.manual_seed(0)
    stock = Block()
    patched = copy.deepcopy(stock)
    if patched_first:
        llama_fast.patch(patched)
    for module in (stock, patched):
        parallelize_module(module, mesh, plan)
    if not patched_first:
        llama_fast.patch(patched)
    same_as_stock(stock, patched, X)


def test_everything_distributed(mesh: torch.distributed.DeviceMesh) -> None:
    torch.manual_seed(0)
    stock = Block()
    patched = copy.deepcopy(stock)
    report = llama_fast.patch(patched)
    assert report.replaced("rms_norm") and report.replaced("mlp") and report.replaced("linear")
    for module in (stock, patched):
        distribute_module(module, mesh)
        module.eval()
    for placement in (Replicate(), Shard(0)):
        x = distribute_tensor(X, mesh, [placement])
        same_as_stock(stock, patched, x)
        with torch.no_grad():
            torch.testing.assert_close(whole(patched(x[:, :1])), whole(stock(x[:, :1])))


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer])
def test_torchs_layers(mesh: torch.distributed.DeviceMesh, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    stock = kind(16, 2)
    patched = copy.deepcopy(stock)
    llama_fast.patch(patched)
    for module in (stock, patched):
        distribute_module(module.eval(), mesh)
    x = distribute_tensor(X, mesh, [Replicate()])
    with torch.no_grad():
        if kind is nn.MultiheadAttention:
            want = stock(x, x, x, need_weights=False)[0]
            got = patched(x, x, x, need_weights=False)[0]
        else:
            want, got = stock(x), patched(x)
    torch.testing.assert_close(whole(got), whole(want))


def test_a_model_of_transformers(mesh: torch.distributed.DeviceMesh) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    stock = transformers.AutoModel.from_config(config, attn_implementation="eager")
    patched = copy.deepcopy(stock)
    llama_fast.patch(patched)
    x = torch.randn(2, 6, 32)
    outs = []
    for model in (stock, patched):
        distribute_module(model, mesh)
        inputs = distribute_tensor(x, mesh, [Replicate()])
        with implicit_replication():  # the tables of angles are plain tensors
            outs.append(model(inputs_embeds=inputs, use_cache=False).last_hidden_state)
    torch.testing.assert_close(whole(outs[1]), whole(outs[0]))
