"""PatchCallback under the options of Trainer and of TRL: as stock, and nothing left afterwards."""

from __future__ import annotations

import importlib
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.integrations import lazy_logits
from llama_fast.integrations.forward import Forward
from tests.paths import REPOSITORY

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed, which Trainer needs")

from llama_fast.integrations.transformers import attention  # noqa: E402

STEPS = 3


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The examples' folder can be imported from; nothing is written or looked up elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The keyword arguments with which what `patch` puts into models called our kernels."""
    seen: dict[str, list[Any]] = {"attention": [], "linear_cross_entropy": []}

    def watched(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[name].append(kwargs)
            return op(*args, **kwargs)

        return call

    for name, place in zip(seen, (attention, lazy_logits), strict=True):
        monkeypatch.setattr(place, name, watched(name, getattr(place, name)))
    return seen


def trainer(callbacks: list[Any], **more: Any) -> Any:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # else the last run's precision stays
    tiny = importlib.import_module("tiny")
    model, tokenizer = tiny.model_and_tokenizer()
    data = tiny.rows(tokenizer)
    arguments = transformers.TrainingArguments(
        output_dir="out", max_steps=STEPS, per_device_train_batch_size=4, learning_rate=1e-3,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, **more,
    )  # fmt: skip

    def accuracy(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        return {"accuracy": float((logits[:, :-1].argmax(-1) == labels[:, 1:]).mean())}

    return transformers.Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data[:8],
        compute_metrics=accuracy, callbacks=callbacks,
    )  # fmt: skip


def assert_untouched(model: torch.nn.Module, calls: dict[str, list[Any]]) -> None:
    """No kernel of ours serves in the model, and none would ever."""
    for module in model.modules():
        for name, value in vars(module).items():
            value = value.__func__ if isinstance(value, types.MethodType) else value
            assert "llama_fast" not in name and not isinstance(value, Forward), (module, name)
    assert model.config._attn_implementation != "llama_fast"
    before = {name: len(made) for name, made in calls.items()}
    ids = torch.arange(6)[None]
    assert isinstance(model.train()(input_ids=ids, labels=ids).logits, torch.Tensor)
    assert {name: len(made) for name, made in calls.items()} == before


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"eval_strategy": "steps", "eval_steps": 1}, id="evaluates"),
        pytest.param({"gradient_checkpointing": True}, id="checkpoints"),
        pytest.param({"label_smoothing_factor": 0.1}, id="smooths"),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulates"),
        pytest.param(
            {"torch_compile": True, "torch_compile_backend": "aot_eager"},
            id="compiles",
            marks=[pytest.mark.compile, pytest.mark.slow],
        ),
    ],
)
def test_options_of_trainer(more: dict[str, Any], calls: dict[str, list[Any]]) -> None:
    logs = []
    for callbacks in [], [llama_fast.PatchCallback()]:
        torch.compiler.reset()
        one = trainer(callbacks, **more)
        one.train()
        keys = ("loss", "grad_norm", "eval_loss", "eval_accuracy")
        logs.append([e[k] for e in one.state.log_history for k in keys if k in e])
        if not callbacks:
            assert not any(calls.values())
    # A smoothed loss is made from the logits, by Trainer.
    lazy = "label_smoothing_factor" not in more
    assert calls["attention"] and bool(calls["linear_cross_entropy"]) is lazy
    torch.testing.assert_close(*(torch.tensor(log) for log in logs))  # float32's tolerances
    assert_untouched(one.model, calls)


def test_what_is_saved_is_stock() -> None:
    from safetensors import safe_open

    found = []
    for callbacks in [], [llama_fast.PatchCallback()]:
        one = trainer(callbacks)
        one.args.save_strategy, one.args.save_steps = "steps", 2
        one.train()
        one.save_model()
        for folder in ("out/checkpoint-2", "out"):  # the former while the kernels serve
            with safe_open(f"{folder}/model.safetensors", "pt") as file:
                keys = list(file.keys())
            found.append((keys, json.loads(Path(folder, "config.json").read_text())))
            assert transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert found[:2] == found[2:]


@pytest.mark.parametrize("before", [False, True], ids=["callback", "patched before"])
def test_a_second_run_in_mixed_precision(before: bool, calls: dict[str, list[Any]]) -> None:
    kernels = llama_fast.PatchCallback(rms_norm=False)
    one = trainer([] if before else [kernels], bf16=True)
    for _ in range(2):  # in the second Accelerate's wrapper is there before us
        calls["linear_cross_entropy"].clear()
        if before:
            with llama_fast.patch(one.model):
                one.train()
        else:
            one.train()
            assert kernels.report.replaced("loss") and not kernels.report.replaced("rms_norm")
        assert len(calls["linear_cross_entropy"]) == STEPS
        assert_untouched(one.model, calls)


@pytest.mark.parametrize("block", [False, True])
def test_an_interrupt(block: bool, calls: dict[str, list[Any]]) -> None:
    class Fails(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    one = trainer([Fails()] if block else [Fails(), llama_fast.PatchCallback()])
    if block:
        with pytest.raises(KeyboardInterrupt), llama_fast.patch(one.model):
            one.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            one.train()
        assert one.model.config._attn_implementation == "llama_fast"  # nobody told the callback
        llama_fast.unpatch(one.model)
    assert len(calls["linear_cross_entropy"]) == 2
    assert_untouched(one.model, calls)


def test_several_gpus_in_a_process() -> None:
    message = "expected one GPU a process, got 2; start with torchrun"
    with pytest.raises(ValueError, match=message):
        llama_fast.PatchCallback().on_train_begin(types.SimpleNamespace(n_gpu=2), None, None)


# TRL


def sft(callbacks: list[Any], **more: Any) -> Any:
    """An SFTTrainer that learns the ends of sentences."""
    from accelerate.state import AcceleratorState

    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny = importlib.import_module("tiny")
    model, tokenizer = tiny.model_and_tokenizer()
    words = tiny.TEXT.split()
    pieces = [words[i : i + 6] for i in range(len(words) - 6)]
    pairs = [{"prompt": " ".join(p[:2]), "completion": " " + " ".join(p[2:])} for p in pieces]
    arguments = trl.SFTConfig(
        output_dir="out", max_steps=STEPS, per_device_train_batch_size=4, learning_rate=1e-3,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, **more,
    )  # fmt: skip
    return trl.SFTTrainer(
        model=model, processing_class=tokenizer, args=arguments, callbacks=callbacks,
        train_dataset=datasets.Dataset.from_list(pairs),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["packed", "padding-free", "padded"])
def test_metrics_of_sft(layout: str, calls: dict[str, list[Any]]) -> None:
    more = {"packing": layout == "packed", "padding_free": layout == "padding-free"}
    length = None if more["padding_free"] else 64
    logs = []
    for callbacks in [], [llama_fast.PatchCallback()]:
        one = sft(callbacks, bf16=False, max_length=length, **more)
        one.train()
        keys = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
        logs.append([[entry[key] for key in keys] for entry in one.state.log_history[:STEPS]])
        if not callbacks:
            assert not any(calls.values())
    torch.testing.assert_close(*(torch.tensor(log) for log in logs))  # float32's tolerances
    assert_untouched(one.model, calls)
    documents = [
        len(made["cu_seqlens_q"]) - 1 for made in calls["attention"] if "cu_seqlens_q" in made
    ]
    if layout == "padded":
        assert calls["attention"] and not documents
    else:  # never as one long text
        assert len(documents) == len(calls["attention"]) and min(documents) >= 4
