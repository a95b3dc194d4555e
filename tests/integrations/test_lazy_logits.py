"""Lazy logits against the tensor that they stand for: the same models without patch."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import llama_fast
from tests.ranks import FORKED, on_ranks

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(1))
COMMON = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"query_pre_attn_scalar": 16},  # a softcap of the logits, tied
    "granite": {"logits_scaling": 2.0},
    "phi": {},  # a bias at the head
    "gemma": {},  # tied with the embeddings
}


def make(kind: str = "llama", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **COMMON, **KINDS.get(kind, {}))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.to(dtype).train()


def pair(kind: str = "llama", dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """A stock model and a patched one."""
    stock = make(kind, dtype)
    ours = copy.deepcopy(stock)
    report = llama_fast.patch(ours)
    assert report.replaced("loss")
    return stock, ours


def run(model: Any, **more: Any) -> Any:
    return model(input_ids=IDS, labels=IDS, use_cache=False, **more)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(got: Any, want: Any) -> None:
    # Stock's logits of a float64 model go through float32 on the way to its loss.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


# Values of the forward pass


def sgd(model: Any) -> None:
    torch.optim.SGD(model.parameters(), lr=0.5).step()


def third_party(model: Any) -> None:
    """An optimizer that the version counter does not see, as those with kernels of their own."""

    class Optimizer(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                p.data -= 0.5 * p.grad

    Optimizer(model.parameters(), {}).step()


@pytest.mark.parametrize("step", [sgd, third_party])
@pytest.mark.parametrize("kind", KINDS)
def test_after_an_optimizer_has_stepped(kind: str, step: Callable[[Any], None]) -> None:
    stock, ours = pair(kind)
    want = run(stock).logits.detach().clone()
    out = run(ours)
    out.loss.backward()
    before = ours.get_output_embeddings().weight.detach().clone()
    step(ours)
    assert not torch.equal(ours.get_output_embeddings().weight, before)
    same(out.logits.detach(), want)
    same(torch.softmax(out.logits, -1), torch.softmax(want, -1))


def test_of_two_forward_passes_before_a_step() -> None:
    stock, ours = pair()
    other = IDS.flip(1)
    want = [stock(input_ids=ids).logits for ids in (IDS, other)]
    outs = [ours(input_ids=ids, labels=ids) for ids in (IDS, other)]
    (outs[0].loss + outs[1].loss).backward()
    sgd(ours)
    for out, logits in zip(outs, want, strict=True):
        same(out.logits + 0, logits)


def by_hand(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight -= 0.01


def past_the_version(model: Any) -> None:
    model.lm_head.weight.data -= 0.01


def another_step(model: Any) -> None:
    run(model).loss.backward()
    sgd(model)
    run(model)


def loaded(model: Any) -> None:
    state = model.state_dict()
    model.load_state_dict({name: value + 0.01 for name, value in state.items()})


@pytest.mark.parametrize("change", [by_hand, past_the_version, another_step, loaded])
def test_values_that_are_gone_are_an_error(change: Callable[[Any], None]) -> None:
    _, ours = pair()
    out = run(ours)
    out.loss.backward()
    if change is another_step:
        sgd(ours)
    change(ours)
    with pytest.raises(RuntimeError, match=r"Access them before .*patch\(model, loss=False\)"):
        out.logits.sum()
    assert "LazyLogits (2, 11, 97)" in repr(out.logits)  # for debuggers


def test_hidden_states_that_were_changed_are_an_error() -> None:
    _, ours = pair()
    out = run(ours, output_hidden_states=True)
    with torch.no_grad():
        out.hidden_states[-1].mul_(2)
    with pytest.raises(RuntimeError, match="the hidden states were changed in place"):
        out.logits.sum()


def test_nothing_is_copied_where_nobody_can_look(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_fast.integrations import head_product

    kept = []
    copy_weight = head_product.HeadProduct.copy_weight

    def counted(self: Any, copies: dict[int, torch.Tensor], step: bool) -> None:
        copy_weight(self, copies, step)
        kept.append(len(copies))

    monkeypatch.setattr(head_product.HeadProduct, "copy_weight", counted)
    _, ours = pair()
    loss = run(ours).loss
    loss.backward()
    sgd(ours)
    assert kept == [] or max(kept) == 0
    out = run(ours)
    out.loss.backward()
    sgd(ours)
    assert kept[-1] == 1
    ours.zero_grad()
    ours.lm_head.weight.requires_grad_(False)
    out = run(ours)
    out.loss.backward()
    sgd(ours)
    assert kept[-1] == 0 and torch.isfinite(out.logits.detach()).all()


class Sizes(TorchDispatchMode):
    """The shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (t for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        self.seen |= {tuple(t.shape) for t in tensors if not t.is_meta}
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_makes_no_logits(kind: str) -> None:
    for model in pair(kind, torch.float32):
        optimizer = torch.optim.AdamW(model.parameters())
        with Sizes() as sizes:
            for _ in range(2):
                out = run(model)  # held until the next one is there
                out.loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        large = {shape for shape in sizes.seen if shape[-1:] == (97,) and shape[:-1] != (32,)}
        made = {shape for shape in large if len(shape) > 1}
        is_stock = type(out.logits) is torch.Tensor
        assert ((2, 11, 97) in made) if is_stock else not made, made
    out.logits.sum()
    assert "tensor" in repr(out.logits)


# As a tensor


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "div_": lambda x: x.div_(2),
    "mul_ by a tensor": lambda x: x.mul_(torch.linspace(0.5, 2, 97, dtype=x.dtype)),
    "masked_fill_": lambda x: x.masked_fill_(torch.arange(97) % 5 == 0, -3.0),
    "clamp_": lambda x: x.clamp_(-0.05, 0.05),
    "item": lambda x: x.__setitem__((slice(None), slice(None), [4, 7]), -2.0),
    "item of a mask": lambda x: x.__setitem__(torch.zeros_like(x, dtype=torch.bool), 1.0),
    "+=": lambda x: x.__iadd__(1.5),
    "/=": lambda x: x.__itruediv__(3.0),
    "torch.relu_": lambda x: torch.relu_(x),
    "F.relu": lambda x: F.relu(x, inplace=True),
    "a view": lambda x: x.view(-1, 97)[3:5].zero_(),
    "a slice": lambda x: x[:, 2:4].fill_(0.25),
    "out=": lambda x: torch.mul(x.detach(), 2, out=x.detach()),
    "data": lambda x: x.data.mul_(2),
    "swapped data": lambda x: setattr(x, "data", x.data * 2),
}


@pytest.mark.parametrize("edit", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_in_place_after_the_loss(kind: str, edit: Callable[[Any], Any]) -> None:
    stock, ours = pair(kind, torch.float32)
    result = []
    for model in (stock, ours):
        out = run(model)
        edit(out.logits)
        aux = out.logits.float().square().mean()
        (out.loss + aux).backward()
        result.append((out.logits.detach(), out.loss, aux, gradients(model)))
    same(result[1], result[0])


class Edits(torch.nn.Module):
    """A model whose forward changes its logits before the loss."""

    @staticmethod
    def of(model: Any, edit: Callable[[Any], Any]) -> Any:
        kind = type(model)

        def forward(self: Any, input_ids: Any, labels: Any = None, **kwargs: Any) -> Any:
            hidden = self.model(input_ids, use_cache=False).last_hidden_state
            logits = self.lm_head(hidden)
            shift = logits[:, :-1]  # shares memory with what is changed
            edit(logits)
            return F.cross_entropy(shift.reshape(-1, 97), labels[:, 1:].reshape(-1)), logits

        model.__class__ = type("Edited", (kind,), {"forward": forward})
        return model


@pytest.mark.parametrize("edit", IN_PLACE.values(), ids=IN_PLACE)
def test_in_place_before_the_loss(edit: Callable[[Any], Any]) -> None:
    stock = Edits.of(make(), edit)
    ours = copy.deepcopy(stock)
    llama_fast.patch(ours)
    result = []
    for model in (stock, ours):
        loss, logits = model(input_ids=IDS, labels=IDS)
        loss.backward()
        result.append((loss, logits + 0, gradients(model)))
    same(result[1], result[0])


def test_what_was_made_of_them_before_they_were_changed_stays() -> None:
    _, ours = pair()
    logits = run(ours).logits
    halved, shape, first = logits / 2, logits.view(-1, 97), logits[:, :1]
    want = F.linear(logits.product.hidden, ours.lm_head.weight)
    logits.zero_()
    same(halved + 0, want / 2)
    assert not (shape + 0).any() and not (first + 0).any()
    assert logits.mul_(1).data_ptr() == logits.data_ptr() == shape.data_ptr()


def test_chameleon() -> None:
    torch.manual_seed(0)
    names = {"<image>": 90, **{f"IMGIMG{c}Z": 80 + i for i, c in enumerate("ABCD")}}
    config = transformers.ChameleonConfig(
        **{k: v for k, v in COMMON.items() if k != "head_dim"},
        vocabulary_map=names,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                   "embed_dim": 8, "num_embeddings": 8, "latent_channels": 8, "resolution": 16},
    )  # fmt: skip
    stock = transformers.ChameleonForConditionalGeneration(config).train()
    ours = copy.deepcopy(stock)
    assert llama_fast.patch(ours).replaced("loss")
    ids = IDS.clamp(max=79)
    result = []
    for model in (stock, ours):
        out = model(input_ids=ids, labels=ids, use_cache=False)
        out.loss.backward()
        result.append((out.loss, out.logits + 0, gradients(model)))
    assert (result[0][1] == torch.finfo(torch.float32).min).any()
    same(result[1], result[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["retain_grad", "register_hook", "twice"])
def test_their_gradient(kind: str, how: str) -> None:
    stock, ours = pair(kind)
    result = []
    for model in (stock, ours):
        out = run(model)
        seen: list[torch.Tensor] = []
        if how != "register_hook":
            out.logits.retain_grad()
        else:
            out.logits.register_hook(lambda g: seen.append(g))  # noqa: B023
        loss = out.loss * 3
        loss.backward(retain_graph=how == "twice")
        if how == "twice":
            loss.backward()
        result.append((seen[0] if seen else out.logits.grad, gradients(model)))
    assert result[0][0] is not None and result[0][0].abs().max() > 1e-4
    same(result[1], result[0])


def test_their_gradient_in_mixed_precision() -> None:
    stock, ours = pair(dtype=torch.float32)
    result = []
    for model in (stock, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(model)
        out.logits.retain_grad()
        out.loss.backward()
        result.append((out.logits.grad, gradients(model)))
    torch.testing.assert_close(result[1], result[0], rtol=2e-2, atol=2e-3)


def test_a_hook_that_changes_their_gradient() -> None:
    stock, ours = pair()
    for model in (stock, ours):
        out = run(model)
        out.logits.register_hook(lambda g: g.clamp(min=-0.01))
        loss = out.loss
        del out
        loss.backward()
    same(gradients(ours), gradients(stock))
    stock.zero_grad()
    run(stock).loss.backward()
    with pytest.raises(AssertionError):  # it mattered
        same(gradients(ours), gradients(stock))


@pytest.mark.parametrize("where", ["head", "everywhere"])
@pytest.mark.parametrize("kind", ["forward", "full_backward", "full_backward_pre"])
def test_hooks_on_the_head(kind: str, where: str) -> None:
    """Hooks are told of tensors; those of gradients would never be told of anything else."""

    def hook(module: Any, given: Any, *more: Any) -> Any:
        if not isinstance(module, torch.nn.Linear) or module.out_features != 97:
            return None
        if kind == "forward":
            return more[0] * 1.5 if isinstance(more[0], torch.Tensor) else None
        return tuple(None if g is None else g * 1.5 for g in given)

    stock, ours = pair()
    for model in (stock, ours):
        if where == "head":
            handle = getattr(model.lm_head, f"register_{kind}_hook")(hook)
        else:
            register = getattr(torch.nn.modules.module, f"register_module_{kind}_hook")
            handle = register(hook)
        try:
            run(model).loss.backward()
        finally:
            handle.remove()
    same(gradients(ours), gradients(stock))
    stock.zero_grad()
    run(stock).loss.backward()
    with pytest.raises(AssertionError):  # it mattered
        same(gradients(ours), gradients(stock))


def test_functions_of_their_parameters() -> None:
    """torch.func hands the model wrappers that have no memory of their own."""
    stock, ours = pair("gemma")
    result = []
    for model in (stock, ours):
        parameters = dict(model.named_parameters())

        def loss(given: Any, model: Any = model) -> torch.Tensor:
            inputs = {"input_ids": IDS, "labels": IDS, "use_cache": False}
            out = torch.func.functional_call(model, given, (), inputs)
            return out.loss + out.logits.logsumexp(-1).pow(2).mean()

        def alone(given: Any, model: Any = model) -> torch.Tensor:
            inputs = {"input_ids": IDS, "labels": IDS, "use_cache": False}
            result: torch.Tensor = torch.func.functional_call(model, given, (), inputs).loss
            return result

        detached = {name: p.detach() for name, p in parameters.items()}
        result.append(
            [torch.func.grad(f)(p) for f in (loss, alone) for p in (parameters, detached)]
        )
    same(result[1], result[0])


def test_what_autograd_cannot_give_is_an_error() -> None:
    _, ours = pair()
    out = run(ours)
    with pytest.raises(RuntimeError, match="got logits that it did not use"):
        torch.autograd.grad(out.loss, out.logits, allow_unused=True)
    out.logits.retain_grad()
    out.logits.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after the loss"):
        out.loss.backward()


def test_frozen_models() -> None:
    for model in pair():
        model.requires_grad_(False)
        out = run(model)
        assert not out.logits.requires_grad and not out.loss.requires_grad
        assert not (out.logits + 0).requires_grad


def test_looking_under_other_modes() -> None:
    stock, ours = pair(dtype=torch.float32)
    want = run(stock).logits
    for mode in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")):
        out = run(ours)
        with mode():
            out.logits.argmax(-1)
        assert out.logits.dtype == torch.float32
        same(out.logits + 0, want)
        (out.loss + out.logits.square().mean()).backward()


def test_copies_and_files() -> None:
    stock, ours = pair()
    want, got = run(stock).logits, run(ours).logits
    with pytest.raises(RuntimeError) as theirs:
        copy.deepcopy(want)
    with pytest.raises(RuntimeError) as error:
        copy.deepcopy(got)
    assert str(error.value) == str(theirs.value)
    got = run(ours).logits
    file = io.BytesIO()
    torch.save(got, file)
    file.seek(0)
    for back in (torch.load(file), pickle.loads(pickle.dumps(run(ours).logits)), copy.copy(got)):
        assert type(back) is torch.Tensor
        same(back, want)
    assert repr(got).startswith("tensor(")


def test_a_method_that_no_tensor_has_does_not_compute_them() -> None:
    _, ours = pair()
    logits = run(ours).logits
    assert not hasattr(logits, "no_such") and logits.numel() == 2 * 11 * 97
    assert logits.tensor is None


@pytest.mark.compile
def test_compiled_models_notice_it_too() -> None:
    stock, ours = pair()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    same(run(compiled).logits + 0, run(stock).logits)
    out = run(compiled)
    out.loss.backward()
    with pytest.raises(RuntimeError, match=r"under torch\.compile"):
        out.logits.retain_grad()
    out = run(compiled)
    sgd(ours)
    with pytest.raises(RuntimeError, match="Access them before"):
        out.logits.sum()


# What trains models


def test_a_trainer_that_logs_accuracy_after_its_step(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed, which Trainer needs")

    class Trainer(transformers.Trainer):  # type: ignore[name-defined, misc]
        last: Any

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            out = model(**inputs)
            self.last = out.logits, inputs["labels"]
            return out.loss

        def log(self, logs: dict[str, float], *args: Any) -> None:
            logits, labels = self.last
            hits = logits[:, :-1].argmax(-1) == labels[:, 1:]
            if "loss" in logs:
                seen.append(
                    [logs["loss"], float(hits.float().mean()), float(logits.detach().sum())]
                )
            super().log(logs, *args)

    logs = []
    data = [{"input_ids": row, "labels": row} for row in IDS.repeat(4, 1)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=0.05,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=True,
    )  # fmt: skip
    for model in pair(dtype=torch.float32):
        seen: list[list[float]] = []
        Trainer(model=model, args=arguments, train_dataset=data).train()
        logs.append(torch.tensor(seen))
    torch.testing.assert_close(logs[1], logs[0], rtol=1e-3, atol=1e-3)
    assert logs[0][-1, 1] > logs[0][0, 1]


def sharded(rank: int, folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    for reshard in (None, True):
        models = pair(dtype=torch.float32)
        optimizers = []
        for model in models:
            for layer in model.model.layers:
                fully_shard(layer.input_layernorm)  # freed when its linear maps go back
                fully_shard(layer)
            fully_shard(model, reshard_after_forward=reshard)
            optimizers.append(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(2):
            result = []
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                out = run(model)
                out.loss.backward()
                looks = rank == 0  # no collective operation may be needed
                before = out.logits[:, 0].detach().clone() if looks and reshard else None
                optimizer.step()
                result.append((out.loss.detach(), before, out.logits.detach() if looks else None))
            for got, want in zip(*reversed(result), strict=True):
                same(got, want) if want is not None else None


def test_fsdp(tmp_path: Path) -> None:
    on_ranks(2, sharded, tmp_path, method=FORKED)
