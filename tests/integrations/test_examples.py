"""The examples train the same model with the kernels and without.

In float32 both differ by rounding alone. A loss near 6 is a sum of some hundred numbers on its way,
each rounded to 6e-8: 1e-5 of it is what some steps of AdamW may make of that. In mixed precision
products are rounded to 4e-3.
"""

import importlib
import os
import sys

import pytest
import torch
from torch.profiler import profile

import llama_fast
from llama_fast.integrations.forward import Forward
from tests.paths import REPOSITORY

STEPS = 4
EXAMPLES = {
    "hf_trainer": "accelerate",
    "trl_sft": "trl",
    "lightning_module": "lightning",
    "accelerate_loop": "accelerate",
    "peft_lora": "peft",
}


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """The examples' folder can be imported from; nothing is looked up in the network."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    monkeypatch.setattr(sys, "argv", ["example"])
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "ACCELERATE_USE_CPU"):
        monkeypatch.setitem(os.environ, name, "1")


def run(name, *arguments):
    """(losses, model, which kernels of ours ran) of an example."""
    pytest.importorskip(EXAMPLES[name], reason=f"{EXAMPLES[name]} is not installed")
    example = importlib.import_module(name)
    if "accelerate" in sys.modules:  # its state lives as long as the process
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    with profile() as seen:
        losses, model = example.main(["--steps", str(STEPS), *arguments])
    kernels = {
        e.key.split("::")[1] for e in seen.key_averages() if e.key.startswith("llama_fast::")
    }
    return losses, model, kernels


@pytest.mark.parametrize("name", EXAMPLES)
def test_trains_as_stock_does(name):
    want, stock, none = run(name, "--stock")
    got, patched, ours = run(name)
    assert not none
    kernels = {"attention", "linear_cross_entropy", "rms_norm", "rope", "swiglu"}
    if name == "trl_sft":  # TRL multiplies by the head's weight itself, and has metrics of it
        kernels.remove("linear_cross_entropy")
    assert kernels <= ours
    assert len(got) == STEPS
    assert got[-1] < got[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    assert list(patched.state_dict()) == list(stock.state_dict())
    for module in patched.modules():
        assert not isinstance(vars(module).get("forward"), Forward)
    for key, value in stock.state_dict().items():
        off = (patched.state_dict()[key] - value).norm() / value.norm()
        assert off < 1e-4, key


@pytest.mark.parametrize("name", ["hf_trainer", "accelerate_loop", "lightning_module"])
def test_mixed_precision(name):
    want, _, _ = run(name, "--stock", "--bf16")
    got, patched, ours = run(name, "--bf16")
    assert {"attention", "linear_cross_entropy"} <= ours
    torch.testing.assert_close(got, want, rtol=4e-3, atol=0)
    assert all(p.dtype == torch.float32 for p in patched.parameters())


def test_a_head_with_an_adapter_is_left():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    tiny = importlib.import_module("tiny")
    model, tokenizer = tiny.model_and_tokenizer()
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "lm_head"]))
    batch = {key: value[None] for key, value in tiny.rows(tokenizer)[0].items()}
    want = model.train()(**batch).loss
    report = llama_fast.patch(model)
    (entry,) = (e for e in report.entries if e.part == "loss")
    assert not entry.replaced
    assert "adapters" in entry.reason
    torch.testing.assert_close(model(**batch).loss, want)


def test_an_exception_in_training_can_be_cleaned_up():
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    import transformers

    tiny = importlib.import_module("tiny")
    model, tokenizer = tiny.model_and_tokenizer()
    before = [sorted(vars(m)) for m in model.modules()]

    class Fails(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise ZeroDivisionError

    callback = llama_fast.PatchCallback(mlp=False)
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(max_steps=2, report_to=[], save_strategy="no"),
        train_dataset=tiny.rows(tokenizer),
        callbacks=[callback, Fails()],
    )
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert callback.report.replaced("attention")
    assert not callback.report.replaced("mlp")
    llama_fast.unpatch(model)
    after = [sorted(set(vars(m)) - {"_is_hf_initialized"}) for m in model.modules()]
    for old, new in zip(before, after, strict=True):
        assert "forward" not in set(new) - set(old)


def test_a_wrong_option_is_told_of_at_once():
    with pytest.raises(TypeError, match="mlp: expected a bool, got 'no'"):
        llama_fast.PatchCallback(mlp="no")
    with pytest.raises(TypeError, match="norms"):
        llama_fast.PatchCallback(norms=True)
