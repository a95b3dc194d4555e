"""The kernels in transformers' models: the same numbers, and nothing left when taken out."""

from __future__ import annotations

import copy
import functools
import io
import subprocess
import sys
from typing import Any

import pytest
import torch

import llama_fast

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

COMMON = {
    "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Each with what it has that the others lack.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 12},  # every layer in a window
    "gemma2": {"sliding_window": 12, "query_pre_attn_scalar": 16},  # softcaps, RMSNorm of 1 + w
    "gemma3_text": {"sliding_window": 12, "query_pre_attn_scalar": 16},  # norms of q and k
    "cohere": {},  # interleaved positions, scaled logits, LayerNorm
    "glm4": {},  # part of a head turned, gate and up in one matrix
    "phi": {},  # bias at the head
}
IDS = torch.randint(3, 211, (3, 40), generator=torch.Generator().manual_seed(1))
LEFT_AND_RIGHT = torch.ones_like(IDS)
LEFT_AND_RIGHT[0, :7] = 0
LEFT_AND_RIGHT[1, 30:] = 0


def make(kind: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **COMMON, **MODELS[kind])
    for name in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return transformers.AutoModelForCausalLM.from_config(config).train()


def batch(what: str, left: bool = True) -> dict[str, torch.Tensor]:
    labels = IDS.clone()
    labels[:, :5] = -100
    if what == "padded":
        # Rows that see no key are zero here, and a mean of everything in stock eager attention.
        mask = LEFT_AND_RIGHT if left else LEFT_AND_RIGHT.index_fill(0, torch.tensor(0), 1)
        unseen = (mask == 0) | (mask.roll(1, 1) == 0)
        return {"attention_mask": mask, "labels": labels.masked_fill(unseen, -100)}
    if what == "packed":
        positions = torch.cat([torch.arange(25), torch.arange(15)])[None].expand(3, -1)
        return {"position_ids": positions, "labels": labels}
    return {"labels": labels}


def train(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS, use_cache=False, **inputs).loss
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


def error(got: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """Root-mean-square over all numbers, relative."""
    assert got.keys() == truth.keys()
    difference = sum(float((got[n].double() - t).square().sum()) for n, t in truth.items())
    return (difference / sum(float(t.square().sum()) for t in truth.values())) ** 0.5


@pytest.mark.parametrize("what", ["plain", "padded", "packed"])
@pytest.mark.parametrize("kind", MODELS)
def test_no_further_from_float64_than_stock(kind: str, what: str) -> None:
    model = make(kind)
    # Stock eager attention in float64 makes NaN of rows that see no key.
    inputs = batch(what, left=model.config._attn_implementation != "eager")
    truth = train(copy.deepcopy(model).double(), inputs)
    for dtype in (torch.float32, torch.bfloat16):
        stock = copy.deepcopy(model).to(dtype)
        ours = copy.deepcopy(stock)
        report = llama_fast.patch(ours)
        assert report.replaced("attention") and report.replaced("rope") and report.replaced("loss")
        theirs, mine = train(stock, inputs), train(ours, inputs)
        for parts in (("loss",), tuple(truth.keys() - {"loss"})):
            want, got, stocks = ({n: side[n] for n in parts} for side in (truth, mine, theirs))
            # Stock's, and a rounding of each token's loss and of their mean.
            allowed = error(stocks, want) + 2 * torch.finfo(dtype).eps
            assert error(got, want) <= allowed, (dtype, parts)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_the_same_tokens(kind: str, cache: str) -> None:
    model = make(kind).eval()
    mask = torch.ones_like(IDS)
    mask[0, :7] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    options["cache_implementation"] = cache
    want = model.generate(IDS, **options)
    with llama_fast.patch(model):
        assert torch.equal(model.generate(IDS, **options), want)


def test_logits_come_when_asked_for() -> None:
    stock = make("llama")
    ours = copy.deepcopy(stock)
    llama_fast.patch(ours)
    want, got = (m(input_ids=IDS, labels=IDS) for m in (stock, ours))
    assert not isinstance(got.logits, torch.Tensor) and got.logits.shape == want.logits.shape
    torch.testing.assert_close(torch.softmax(got.logits, -1), torch.softmax(want.logits, -1))
    torch.testing.assert_close(got.logits[:, 3].sum(), want.logits[:, 3].sum())
    ours.eval()
    assert isinstance(ours(input_ids=IDS, labels=IDS).logits, torch.Tensor)


def test_num_items_in_batch_and_shift_labels() -> None:
    stock = make("llama")
    ours = copy.deepcopy(stock)
    llama_fast.patch(ours)
    shifted = IDS.roll(-1, 1)
    for more in ({"num_items_in_batch": torch.tensor(57)}, {"shift_labels": shifted}):
        want, got = (m(input_ids=IDS, labels=IDS, **more).loss for m in (stock, ours))
        torch.testing.assert_close(got, want)


def traces(model: torch.nn.Module) -> list[str]:
    return [
        name
        for module in model.modules()
        for name in vars(module)
        if name == "forward" or "llama_fast" in name
    ]


def test_nothing_is_left() -> None:
    model = make("llama")
    other = transformers.LlamaForCausalLM(model.config)
    before = model(IDS).logits
    config, names = model.config.to_dict(), list(model.state_dict())
    llama_fast.patch(model)
    train(model, batch("plain"))
    assert traces(other) == [] and other.config._attn_implementation == "sdpa"
    assert model.config.to_dict() == config and list(model.state_dict()) == names
    llama_fast.patch(model, loss=False)  # anew
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for one in (model, copied, torch.load(file, weights_only=False)):
        assert traces(one)
        torch.testing.assert_close(one(IDS).logits, before)
        llama_fast.unpatch(one)
        assert traces(one) == []
        assert torch.equal(one(IDS).logits, before)


@pytest.mark.compile
def test_compiled_as_one_graph() -> None:
    model = make("llama")
    want = train(model, batch("padded"))
    llama_fast.patch(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    loss = compiled(input_ids=IDS, use_cache=False, **batch("padded")).loss
    loss.backward()
    torch.testing.assert_close(loss, want["loss"])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-4, atol=1e-6)


@pytest.mark.compile
def test_compiled_with_activation_checkpointing() -> None:
    """torch.compile goes on with the model's forward after a break in its graph."""
    model = make("llama")
    want = train(model, batch("padded"))
    llama_fast.patch(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    loss = compiled(input_ids=IDS, use_cache=False, **batch("padded")).loss
    loss.backward()
    torch.testing.assert_close(loss, want["loss"])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-4, atol=1e-6)


def test_an_adapter_on_the_head_is_left_with_a_reason() -> None:
    class Adapted(torch.nn.Linear):
        pass

    model = make("llama")
    model.set_output_embeddings(Adapted(64, 211, bias=False))
    report = llama_fast.patch(model)
    (entry,) = (e for e in report.entries if e.part == "loss")
    assert not entry.replaced and "not torch.nn.Linear" in entry.reason
    assert isinstance(model(input_ids=IDS, labels=IDS).logits, torch.Tensor)


def counted(calls: list[str]) -> Any:
    """A decorator like transformers' own: a closure over what it wraps."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return wrapper

    return decorate


class Opaque:
    """A decorator whose function is out of reach."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self.function, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def with_attention_forward(model: Any, forward: Any) -> None:
    for layer in model.model.layers:
        kind = type(layer.self_attn)
        layer.self_attn.__class__ = type("Attention", (kind,), {"forward": forward})


def test_rope_within_decorators() -> None:
    model = make("llama").eval()
    want = model(IDS).logits
    calls: list[str] = []
    forward = type(model.model.layers[0].self_attn).forward
    with_attention_forward(model, counted(calls)(counted(calls)(forward)))
    report = llama_fast.patch(model)
    assert len(report.replaced("rope")) == 2
    torch.testing.assert_close(model(IDS).logits, want)
    assert calls == ["forward"] * 4  # two decorators, two layers

    with_attention_forward(model, Opaque(forward))
    entry = next(e for e in llama_fast.patch(model).entries if e.part == "rope")
    assert not entry.replaced and "decorator that cannot be rebuilt" in entry.reason
    torch.testing.assert_close(model(IDS).logits, want)


@pytest.mark.parametrize("name", ["apply_rotary_pos_emb", "ALL_ATTENTION_FUNCTIONS"])
def test_a_function_of_the_file_replaced_afterwards(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = make("llama").eval()
    ours = copy.deepcopy(stock)
    llama_fast.patch(ours)
    before = ours(IDS).logits
    file = sys.modules[type(stock).__module__]
    if name == "apply_rotary_pos_emb":
        monkeypatch.setattr(file, name, lambda q, k, cos, sin: (q * cos, k * cos))
    else:

        class Doubled(dict[str, Any]):
            def get_interface(self, *args: Any) -> Any:
                def attention(*values: Any, **options: Any) -> Any:
                    out, weights = interface.get_interface(*args)(*values, **options)
                    return 2 * out, weights

                return attention

        interface = getattr(file, name)
        monkeypatch.setattr(file, name, Doubled())
    torch.testing.assert_close(ours(IDS).logits, stock(IDS).logits)
    monkeypatch.undo()
    assert torch.equal(ours(IDS).logits, before)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        llama_fast.patch("model")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rope: expected a bool, got 1"):
        llama_fast.patch(torch.nn.Linear(2, 2), rope=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["llama_fast, transformers", "transformers, llama_fast"])
def test_the_name_is_known_in_either_order(order: str) -> None:
    first = order.split(", ")[0]
    code = (
        f"import {first}; import sys\n"
        "assert 'llama_fast' not in sys.modules or 'transformers' not in sys.modules\n"
        f"import {order}\n"
        "from transformers import AutoModelForCausalLM as A, LlamaConfig\n"
        "config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,\n"
        "                     num_hidden_layers=1, num_attention_heads=2)\n"
        "model = A.from_config(config, attn_implementation='llama_fast')\n"
        "print(model.config._attn_implementation)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "llama_fast"
