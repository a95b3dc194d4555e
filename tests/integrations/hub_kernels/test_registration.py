"""Registration with `kernels`, transformers' own entry, and the way back."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
from transformers.loss import loss_utils
from transformers.models.llama import modeling_llama

import kernels
import llama_fast
from llama_fast.integrations import (
    forward,
    kernel_mapping,
    register_kernels,
    unregister_kernels,
)
from llama_fast.integrations.hub_kernels import ATTENTION
from llama_fast.integrations.hub_kernels.repository import BACKENDS, write_repository
from tests.integrations import parity, zoo
from tests.integrations.hub_kernels.kernelized import kernelized, replaced

LLAMA = {"RMSNorm": 5, "GatedMLP": 2, "RotaryPosEmb": 1, "FixedCrossEntropy": 1}


@pytest.fixture
def model() -> Any:
    return zoo.build("llama")


@pytest.fixture
def registered() -> Any:
    register_kernels()
    yield
    unregister_kernels()


def test_from_pretrained(model: Any, tmp_path: Path, registered: None) -> None:
    model.save_pretrained(tmp_path)
    inputs = zoo.batches("llama", model)["left-padded"]
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    want = parity.results(stock, inputs)
    ours = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, use_kernels=True, attn_implementation=ATTENTION
    )
    assert replaced(ours) == LLAMA
    assert ours.config._attn_implementation == ATTENTION
    got = parity.results(ours, inputs)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5)
    assert replaced(ours.train()) == replaced(ours.eval()) == LLAMA
    unregister_kernels(ours)


def test_without_registration_nothing_is_replaced(model: Any) -> None:
    model.set_use_kernels(True)
    assert replaced(model) == {}


def test_a_mapping_in_a_block(model: Any) -> None:
    with kernels.use_kernel_mapping(kernel_mapping()):
        model.set_use_kernels(True)
    assert replaced(model) == {"RMSNorm": 5, "RotaryPosEmb": 1}  # what transformers marks itself
    model.set_use_kernels(True)
    assert replaced(model) == {}


def test_a_model_in_a_mode(model: Any, registered: None) -> None:
    mode = kernels.Mode
    for chosen in (mode.INFERENCE, mode.TRAINING):
        for compiled in (chosen, chosen | mode.TORCH_COMPILE):
            model.set_use_kernels(True, mode=compiled)
            assert replaced(model) == LLAMA
    unregister_kernels(model)


def test_registering_twice_is_once(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("LOCAL_KERNELS", "someone/else=/tmp/else")
    loss = loss_utils.fixed_cross_entropy
    register_kernels()
    register_kernels()
    model.set_use_kernels(True)
    assert replaced(model) == LLAMA
    assert os.environ["LOCAL_KERNELS"].count(ATTENTION) == 1
    unregister_kernels(model)
    assert os.environ["LOCAL_KERNELS"] == "someone/else=/tmp/else"
    assert replaced(model) == {}
    assert loss_utils.fixed_cross_entropy is loss
    assert not hasattr(transformers.PreTrainedModel, "_kernel_funcs")
    assert not hasattr(modeling_llama.LlamaMLP, "kernel_layer_name")
    model.set_use_kernels(True)
    assert replaced(model) == {}
    unregister_kernels(model)  # a second time does nothing


def test_the_trainer_still_recognises_the_loss(model: Any, registered: None) -> None:
    """It counts targets by whether the loss is `ForCausalLMLoss`, which shifts them."""
    model.set_use_kernels(True)
    assert model.loss_function is loss_utils.ForCausalLMLoss
    unregister_kernels(model)


def test_unregister_names_its_argument() -> None:
    with pytest.raises(TypeError, match=r"^models: expected torch.nn.Modules, got str$"):
        unregister_kernels("model")  # type: ignore[arg-type]


def test_models_that_are_imported_later_are_marked(registered: None) -> None:
    name = "transformers.models.vaultgemma.modeling_vaultgemma"
    assert name not in sys.modules
    module = importlib.import_module(name)
    assert module.VaultGemmaMLP.kernel_layer_name == "LlamaFastGatedMLP"
    assert module.VaultGemmaRMSNorm.kernel_layer_name == "LlamaFastRMSNormZeroCentered"
    unregister_kernels()
    assert not hasattr(module.VaultGemmaMLP, "kernel_layer_name")


def test_patch_goes_over_kernels_and_back(model: Any) -> None:
    want = sorted(llama_fast.patch(model).replaced())
    llama_fast.unpatch(model)
    inputs = zoo.batches("llama", model)["plain"]
    with kernelized(model):
        results = parity.results(model, inputs)
        with llama_fast.patch(model) as report:
            assert sorted(report.replaced()) == want
            got = parity.results(model, inputs)
        assert replaced(model) == LLAMA
    for key, value in results.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing(model: Any) -> None:
    inputs = zoo.batches("llama", model)["plain"]
    with kernelized(model, attention=True):
        plain = parity.results(model, inputs)
        for reentrant in (False, True):
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            again = parity.results(model, inputs)
            for key, value in plain.items():
                torch.testing.assert_close(again[key], value)


def test_a_module_that_changes_later(model: Any) -> None:
    x = torch.randn(2, 3, 64)
    with kernelized(model.eval()):
        mlp = model.model.layers[0].mlp
        mlp.act_fn = torch.nn.ReLU()
        seen: list[int] = []
        mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
        got = mlp(x)
        assert seen == [1]
        torch.testing.assert_close(got, type(mlp).forward(mlp, x))


def test_an_exported_repository(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "layers"
    write_repository(folder, "someone/layers")
    assert [str(b).lower() for b in Build.open(folder).general.backends] == list(BACKENDS)
    for backend in BACKENDS:
        variant = folder / "build" / f"torch-{backend}"
        metadata = Metadata.read_from_file(variant / "metadata.json")
        assert metadata.name.python_name == "llama_fast_layers"
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
    layer = kernels.LocalLayerRepository(folder, layer_name="RMSNorm")
    both = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    with kernels.use_kernel_mapping({"RMSNorm": {"cpu": {both: layer}}}, inherit_mapping=False):
        kernels.kernelize(model, mode=both, device="cpu")
    assert replaced(model) == {"RMSNorm": 5}
    unregister_kernels(model)


def test_the_names_of_transformers_are_ours_too(registered: None) -> None:
    """transformers has names for these layers, but no class with them yet."""
    plain = modeling_llama.LlamaMLP
    config = {"hidden_size": 8, "intermediate_size": 12, "mlp_bias": False, "hidden_act": "silu"}
    for name in ("SwiGLUMLP", "GeGLUMLP"):
        marked = type("Marked", (plain,), {})
        kernels.replace_kernel_forward_from_hub(marked, name)
        mlp = marked(SimpleNamespace(**config))
        kernels.kernelize(mlp, mode=kernels.Mode.TRAINING, device="cpu")
        assert forward.is_kernel(mlp)
        x = torch.randn(3, 8)
        torch.testing.assert_close(mlp(x), plain.forward(mlp, x))
    function = kernels.use_kernel_forward_from_hub("ForCausalLMLoss")(loss_utils.ForCausalLMLoss)
    holder = torch.nn.Linear(2, 2)
    holder._kernel_funcs = {"loss": function}  # type: ignore[assignment]
    kernels.kernelize(holder, mode=kernels.Mode.TRAINING, device="cpu")
    assert forward.is_kernel(function)
