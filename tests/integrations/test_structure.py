"""What is recognised, in training too, and what a module that was changed afterwards does."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llama_fast

E, INNER = 16, 24
X = torch.randn(2, 9, E, generator=torch.Generator().manual_seed(1))


class Mlp(nn.Module):
    """A gated MLP, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(E, INNER, bias=False)
        self.up_proj = nn.Linear(E, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, E, bias=False)
        self.act_fn: Any = nn.SiLU()

    def product(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.product(x))
        return out


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(E))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class DropoutBetween(Mlp):
    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.dropout(self.product(x)))
        return out


class DropoutAfter(DropoutBetween):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dropout(self.down_proj(self.product(x)))
        return out


class DropoutTwice(DropoutBetween):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dropout(self.down_proj(self.dropout(self.product(x))))
        return out


class RareDropout(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(F.dropout(self.product(x), 1e-4, self.training))
        return out


class Jitter(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * (1 + 0.01 * torch.randn_like(x)) if self.training else x)


class StochasticDepth(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and random.random() < 1e-3:
            return torch.zeros_like(x)
        return super().forward(x)


class StoppedGradient(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.act_fn(self.gate_proj(x)).detach()
        out: torch.Tensor = self.down_proj(gate * self.up_proj(x))
        return out


class FrozenByCode(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.product(x), self.down_proj.weight.detach())


class NoisyNorm(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + 1e-3 * torch.randn_like(y) if self.training else y


class NormOfAConstantSize(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale.detach() * self.weight


def trained(module: nn.Module, x: torch.Tensor = X) -> list[torch.Tensor]:
    """Output and all gradients."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    random.seed(0)
    out = module(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in module.parameters())]  # type: ignore[list-item]


def as_stock(stock: nn.Module, patched: nn.Module) -> None:
    for want, got in zip(trained(stock), trained(patched), strict=True):
        torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(patched).eval()(X), copy.deepcopy(stock).eval()(X))


def both(module: nn.Module) -> tuple[nn.Module, nn.Module, llama_fast.Report]:
    patched = copy.deepcopy(module)
    return module, patched, llama_fast.patch(patched, linear=False)


def ours_serves(module: nn.Module) -> bool:
    with torch.profiler.profile() as seen:
        trained(module)
    return any(
        name in event.key for event in seen.key_averages() for name in ("swiglu", "rms_norm")
    )


@pytest.mark.parametrize("kind", [RareDropout, Jitter, StochasticDepth, StoppedGradient,
                                  FrozenByCode, NoisyNorm, NormOfAConstantSize])  # fmt: skip
def test_what_only_training_shows(kind: type[nn.Module]) -> None:
    stock, patched, report = both(kind())
    (entry,) = report.entries
    assert not entry.replaced and entry.reason.startswith("in training")
    if kind is FrozenByCode:
        assert stock.down_proj.weight.grad is None  # type: ignore[union-attr]
        return
    as_stock(stock, patched)


@pytest.mark.parametrize("kind", [DropoutBetween, DropoutAfter, DropoutTwice])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_stays(kind: type[DropoutBetween], p: float) -> None:
    stock, patched, report = both(kind(p))
    assert report.replaced("mlp") and ours_serves(patched)
    as_stock(stock, patched)
    for module in (stock, patched):
        module.dropout.p = 0.5  # type: ignore[union-attr,assignment]
    as_stock(stock, patched)


def test_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(3)
    random.seed(3)
    module = DropoutBetween()
    before = torch.get_rng_state(), random.getstate()
    llama_fast.patch(module)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def hook_activation(module: Any, register: str) -> None:
    def steer(part: Any, *values: Any) -> Any:
        if register == "register_forward_hook":
            return values[1] * 2
        return tuple(v * 2 for v in values[0])

    getattr(module.act_fn, register)(steer)


class Twice(nn.Module):
    """An adapter in front of a linear map."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora = nn.Linear(base.in_features, base.out_features, bias=False)
        nn.init.constant_(self.lora.weight, 0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora(x)  # type: ignore[no-any-return]


def adapt(module: Any) -> None:
    module.gate_proj, module.down_proj = Twice(module.gate_proj), Twice(module.down_proj)


class Named(nn.Module):
    """An activation with a setting."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(F, self.kind)(x)  # type: ignore[no-any-return]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another activation": lambda m: setattr(m, "act_fn", nn.GELU()),
    "a function as activation": lambda m: (m._modules.pop("act_fn"), vars(m).update(act_fn=F.relu)),
    "a forward of its own": lambda m: setattr(m.act_fn, "forward", torch.tanh),
    "an inner activation": lambda m: setattr(m, "act_fn", nn.Sequential(nn.SiLU(), nn.Tanh())),
    "forward hook": functools.partial(hook_activation, register="register_forward_hook"),
    "pre-hook": functools.partial(hook_activation, register="register_forward_pre_hook"),
    "backward hook": lambda m: m.act_fn.register_full_backward_hook(
        lambda part, into, out: (into[0] * 2,)
    ),
    "backward pre-hook": lambda m: m.act_fn.register_full_backward_pre_hook(
        lambda part, out: (out[0] * 2,)
    ),
    "hook on a part that ours calls": lambda m: m.gate_proj.register_forward_hook(
        lambda part, args, out: out * 2
    ),
    "adapters": adapt,
    "a parametrisation": lambda m: nn.utils.parametrizations.weight_norm(m.up_proj),
    "another class": lambda m: setattr(m, "__class__", Jitter),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_after_the_patch(change: str) -> None:
    stock, patched, _ = both(Mlp())
    assert ours_serves(patched)
    for module in (stock, patched):
        CHANGES[change](module)
    as_stock(stock, patched)


def test_a_setting_of_an_activation_changed_after_the_patch() -> None:
    module = Mlp()
    module.act_fn = Named("silu")
    stock, patched, report = both(module)
    assert report.replaced("mlp")
    as_stock(stock, patched)
    for one in (stock, patched):
        one.act_fn.kind = "gelu"  # type: ignore[union-attr,assignment]
    as_stock(stock, patched)


class FromConfig(Mlp):
    """Dropout by numbers kept elsewhere, not yet switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0
        self.config = type("Config", (), {"rate_after": 0.0})()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.dropout(self.product(x), self.rate, self.training)
        out: torch.Tensor = self.down_proj(inner)
        return F.dropout(out, self.config.rate_after, self.training)


@pytest.mark.parametrize("where", ["rate", "rate_after"])
def test_dropout_switched_on_after_the_patch(where: str) -> None:
    stock = FromConfig()
    patched: Any = FromConfig()
    patched.load_state_dict(stock.state_dict())
    assert llama_fast.patch(patched, linear=False).replaced("mlp") and ours_serves(patched)
    for module in (stock, patched):
        setattr(module if where == "rate" else module.config, where, 0.4)
    as_stock(stock, patched)


@pytest.mark.compile
def test_compiled() -> None:
    stock, patched, _ = both(DropoutBetween())
    torch.compiler.reset()
    compiled = torch.compile(patched, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    got = compiled(X)
    torch.manual_seed(0)
    torch.testing.assert_close(got, stock(X))
    for module in (stock, patched):
        module.act_fn = nn.GELU()
        module.eval()
    torch.testing.assert_close(compiled(X), stock(X))


def test_hooks_on_all_modules_see_the_activation() -> None:
    _, patched, _ = both(Mlp())
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    try:
        patched(X)
    finally:
        hook.remove()
    assert seen == ["Linear", "SiLU", "Linear", "Linear", "Mlp"]
    assert ours_serves(patched)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_watched_too(copied: Callable[[nn.Module], nn.Module]) -> None:
    stock, patched, _ = both(Mlp())
    stock, patched = copied(stock), copied(patched)
    assert ours_serves(patched)
    for module in (stock, patched):
        module.act_fn = nn.GELU()
    as_stock(stock, patched)


def test_keywords() -> None:
    stock, patched, _ = both(nn.Sequential(Norm(), Mlp()))
    for a, b in zip(stock, patched, strict=True):
        torch.testing.assert_close(b(x=X), a(x=X))


def test_t5_with_a_gated_activation() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.T5Config(
        vocab_size=64, d_model=E, d_kv=8, d_ff=INNER, num_layers=2, num_heads=2,
        feed_forward_proj="gated-silu", dropout_rate=0.25, tie_word_embeddings=False,
        decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    stock = transformers.T5ForConditionalGeneration(config).train()
    ids = torch.randint(1, 64, (2, 7))
    patched = copy.deepcopy(stock)
    # The other parts of the model would draw other numbers.
    report = llama_fast.patch(patched, attention=False)
    assert len(report.replaced("mlp")) == 4
    results = []
    for model in (stock, patched):
        torch.manual_seed(0)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_t5_with_some_weights_kept_in_float32(dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.T5Config(
        vocab_size=64, d_model=E, d_kv=8, d_ff=INNER, num_layers=2, num_heads=2,
        feed_forward_proj="gated-silu", dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    stock = transformers.T5ForConditionalGeneration(config).to(dtype).eval()
    for name, parameter in stock.named_parameters():
        if ".wo." in name:
            parameter.data = parameter.data.float()
    ids = torch.randint(1, 64, (2, 7))
    want = stock(input_ids=ids, labels=ids)
    with llama_fast.patch(stock) as report:
        assert report.replaced("mlp")
        got = stock(input_ids=ids, labels=ids)
    truth = copy.deepcopy(stock).double()(input_ids=ids, labels=ids)
    for name in ("loss", "logits"):
        ours, theirs = ((x[name].double() - truth[name]).norm() for x in (got, want))
        assert ours <= 1.5 * theirs + torch.finfo(dtype).eps * truth[name].norm(), name
