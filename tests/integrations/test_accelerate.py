"""accelerate(): torch's functions on our kernels within a block, torch's everywhere else."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cross_entropy as by_name
from torch.profiler import profile

import llama_fast


def ours(run):
    """The kernels of ours that a call runs."""
    with profile() as seen:
        run()
    keys = (event.key for event in seen.key_averages())
    return {key.split("::")[1] for key in keys if key.startswith("llama_fast::")}


def everything():
    x = torch.randn(2, 3, 5, 8)
    F.scaled_dot_product_attention(x, x, x, is_causal=True)
    by_name(torch.randn(5, 7), torch.randint(7, (5,)))
    F.rms_norm(x, (8,), torch.ones(8), 1e-6)


ALL = {"attention", "cross_entropy", "rms_norm"}


def test_only_within_the_block():
    assert ours(everything) == set()
    with llama_fast.accelerate():
        assert ours(everything) == ALL
        with llama_fast.accelerate(attention=False):
            assert ours(everything) == ALL
    assert ours(everything) == set()
    with pytest.raises(ZeroDivisionError), llama_fast.accelerate():
        raise ZeroDivisionError
    assert ours(everything) == set()


@pytest.mark.parametrize(
    ("option", "kernel"),
    [("attention", "attention"), ("loss", "cross_entropy"), ("rms_norm", "rms_norm")],
)
def test_parts(option, kernel):
    with llama_fast.accelerate(**{option: False}):
        assert ours(everything) == ALL - {kernel}
    with pytest.raises(TypeError, match=f"{option}: expected a bool, got 1"):
        llama_fast.accelerate(**{option: 1})


def test_other_threads_go_on_as_before():
    found = []
    with llama_fast.accelerate():
        thread = threading.Thread(target=lambda: found.append(ours(everything)))
        thread.start()
        thread.join()
    assert found == [set()]


class Nano(nn.Module):
    """In the manner of nanoGPT: LayerNorm, causal attention, F.cross_entropy of all logits."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(40, 32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.head = nn.Linear(32, 40, bias=False)

    def forward(self, tokens, targets):
        x = self.table(tokens)
        B, S, E = x.shape
        q, k, v = (t.view(B, S, 4, 8).transpose(1, 2) for t in self.qkv(self.norm(x)).split(E, 2))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=True)
        logits = self.head(x + self.out(y.transpose(1, 2).reshape(B, S, E)))
        return F.cross_entropy(logits.view(-1, 40), targets.view(-1), ignore_index=-1)


class Lit(Nano):
    """In the manner of litgpt: RMSNorm, a mask, grouped keys."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.RMSNorm(32, eps=1e-5), nn.Linear(32, 32 + 2 * 16)

    def forward(self, tokens, targets):
        x = self.table(tokens)
        B, S, E = x.shape
        q, k, v = self.qkv(self.norm(x)).split((E, 16, 16), 2)
        q, k, v = (t.view(B, S, -1, 8).transpose(1, 2) for t in (q, k, v))
        mask = torch.ones(S, S, dtype=torch.bool).tril()[None, None]
        y = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
        logits = self.head(x + self.out(y.transpose(1, 2).reshape(B, S, E)))
        return F.cross_entropy(logits.reshape(-1, 40), targets.reshape(-1))


class Vision(Nano):
    """In the manner of timm: attention to all, one class, smoothed labels."""

    def forward(self, tokens, targets):
        x = self.table(tokens)
        B, S, E = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, S, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), dropout_p=0.0)
        x = x + self.out(y.transpose(1, 2).reshape(B, S, E))
        return F.cross_entropy(self.head(x.mean(1)), targets[:, 0], label_smoothing=0.1)


@pytest.mark.parametrize("kind", [Nano, Lit, Vision])
def test_models_that_call_them(kind):
    torch.manual_seed(0)
    model = kind()
    tokens = torch.randint(40, (2, 2, 12))

    def run(block, dtype):
        model.to(dtype)
        model.zero_grad()
        if block:
            with llama_fast.accelerate():
                loss = model(*tokens)
            loss.backward()  # outside
        else:
            loss = model(*tokens)
            loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    with llama_fast.accelerate():
        assert {"attention", "cross_entropy"} <= ours(lambda: model(*tokens))
    stock, got = run(False, torch.float32), run(True, torch.float32)
    right = run(False, torch.float64)

    def error(found):
        off = [(a - b).norm() / b.norm() for a, b in zip(found, right, strict=True)]
        return torch.stack(off).square().mean().sqrt()

    assert error(got) <= error(stock) + torch.finfo(torch.float32).eps / 2


def test_what_ours_do_not_take_is_torchs():
    q = torch.nested.nested_tensor([torch.randn(2, 3, 8), torch.randn(2, 5, 8)])
    x, w = torch.randn(4, 6), torch.randn(4, 6, 3)
    cases = [
        lambda: F.scaled_dot_product_attention(q, q, q).to_padded_tensor(0.0),
        lambda: F.rms_norm(x, (6,)),
        lambda: F.rms_norm(w, (6, 3), torch.ones(6, 3), 1e-5),
        lambda: F.cross_entropy(x, torch.zeros(4, dtype=torch.long), size_average=False),
        lambda: F.cross_entropy(x, x.softmax(-1)),
        lambda: F.cross_entropy(x.bfloat16(), torch.zeros(4, dtype=torch.long)),
        lambda: torch.func.vmap(lambda r: F.rms_norm(r, (6,), torch.ones(6), 1e-5))(x),
    ]
    for case in cases:
        want = case()
        with llama_fast.accelerate():
            got = case()
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.cross_entropy(torch.randn(4, 6), torch.tensor([0, 1, 2, 6])),
        lambda: F.cross_entropy(torch.randn(4, 6), torch.zeros(3, dtype=torch.long)),
        lambda: F.scaled_dot_product_attention(*(torch.ones(2, 3, 4, d) for d in (8, 9, 8))),
        lambda: F.rms_norm(torch.randn(4, 6), (5,), torch.ones(5)),
    ],
    ids=["class", "targets", "head size", "shape"],
)
def test_errors_are_torchs(call):
    with pytest.raises(Exception) as theirs:
        call()
    with pytest.raises(type(theirs.value)) as got, llama_fast.accelerate():
        call()
    assert str(got.value) == str(theirs.value)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda x: F.rms_norm(x, (8,), torch.ones(8), -1e-3), "eps: expected a number >= 0"),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, scale=float("inf")),
            "scale: expected a finite number",
        ),
    ],
)
def test_what_only_ours_refuse_is_torchs_with_a_warning(call, refusal):
    x = torch.randn(2, 3, 5, 8)
    with llama_fast.accelerate(), pytest.warns(RuntimeWarning, match=refusal):
        result = call(x)
    torch.testing.assert_close(result, call(x), rtol=0, atol=0, equal_nan=True)


def test_compile():
    q = torch.randn(2, 3, 5, 8)

    def within(q):
        with llama_fast.accelerate():
            return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    want = within(q)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(within, fullgraph=True, backend="aot_eager")(q), want)
    around = torch.compile(
        lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),
        fullgraph=True,
        backend="aot_eager",
    )
    with llama_fast.accelerate():
        torch.testing.assert_close(around(q), want)
