"""llama_fast.nn and patched modules of torch: torch's numbers, by our kernels.

The criterion is that of the operators: against torch's module in float64, the root-mean-square
error of outputs and gradients is no larger than torch's own in the same dtype plus one rounding
step, over some draws.
"""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.profiler import profile

import llama_fast

E, H, S = 64, 4, 24
CAUSAL = torch.full((S, S), float("-inf")).triu(1)
PADDED = torch.arange(S).expand(3, S) >= torch.tensor([[S], [17], [9]])


def ours_served(run):
    with profile() as seen:
        run()
    return any("llama_fast::" in event.key for event in seen.key_averages())


def kept(out):
    """Without the padding: what torch gives there depends on the way it goes."""
    return out[~PADDED] if out.shape[:2] == PADDED.shape else out


ENCODER = {"src_key_padding_mask": PADDED}
CASES = {
    "encoder": ("TransformerEncoderLayer", {}, {}),
    "encoder-padded": ("TransformerEncoderLayer", {}, ENCODER),
    "encoder-causal": ("TransformerEncoderLayer", {"norm_first": True}, {"src_mask": CAUSAL}),
    "encoder-both": (
        "TransformerEncoderLayer",
        {"activation": "gelu", "bias": False},
        {"src_mask": CAUSAL.isinf(), "src_key_padding_mask": PADDED, "is_causal": True},
    ),
    "decoder": (
        "TransformerDecoderLayer",
        {},
        {"tgt_mask": CAUSAL, "tgt_is_causal": True},
    ),
    "decoder-padded": (
        "TransformerDecoderLayer",
        {"norm_first": True},
        {"tgt_mask": CAUSAL.isinf(), "memory_key_padding_mask": PADDED},
    ),
}


def arguments(kind, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def random():
        return torch.randn(3, S, E, generator=generator).to(dtype).requires_grad_()

    return [random() for _ in range(2 if "Decoder" in kind else 1)]


def run(module, inputs, options):
    out = kept(module(*inputs, **options))
    (out * torch.linspace(-1, 1, E, dtype=out.dtype)).sum().backward()
    wanted = [*inputs, *module.parameters()]
    found = [out.detach(), *(t.grad for t in wanted)]
    for t in wanted:
        t.grad = None
    return found


def root_mean_square(x):
    return x.double().square().mean().sqrt().item()


@pytest.mark.parametrize("way", ["class", "patch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_layers(name, dtype, way):
    kind, made, options = CASES[name]
    made = {"dropout": 0.0, "batch_first": True, **made}
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(E, H, 96, **made).to(dtype)
    if way == "class":
        ours = getattr(llama_fast.nn, kind)(E, H, 96, **made).to(dtype)
        ours.load_state_dict(theirs.state_dict())
    else:
        ours = copy.deepcopy(theirs)
        assert "" in llama_fast.patch(ours).replaced("torch")
    wide = copy.deepcopy(theirs).double()
    options64 = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    options = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in options.items()
    }
    sums = {}
    for seed in range(6):
        inputs = arguments(kind, dtype, seed)
        right = run(wide, [t.detach().double().requires_grad_() for t in inputs], options64)
        stock, got = run(theirs, inputs, options), run(ours, inputs, options)
        for i, want in enumerate(right):
            common = root_mean_square(want) + 1e-30
            pair = sums.setdefault(i, [0.0, 0.0])
            for side, value in enumerate((stock[i], got[i])):
                pair[side] += (root_mean_square(value.double() - want) / common) ** 2 / 6
    errors = [tuple(map(math.sqrt, pair)) for pair in sums.values()]
    overall = [math.sqrt(sum(pair[i] for pair in sums.values()) / len(sums)) for i in (0, 1)]
    rounding = torch.finfo(dtype).eps / 2
    assert overall[1] <= overall[0] + rounding
    for stock_error, error in errors:
        assert error <= 2 * max(stock_error, overall[0])
    assert ours_served(lambda: ours(*arguments(kind, dtype, 0), **options))
    assert not ours_served(lambda: theirs(*arguments(kind, dtype, 0), **options))


@pytest.mark.parametrize("train", [True, False])
def test_encoder_of_torch(train):
    """nn.TransformerEncoder has a way of its own around layers that it knows, in eval mode."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 96, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).train(train)
    x = torch.randn(3, S, E)
    with torch.set_grad_enabled(train):
        want = model(x, src_key_padding_mask=PADDED)
        with llama_fast.patch(model):
            got = model(x, src_key_padding_mask=PADDED)
            assert ours_served(lambda: model(x, src_key_padding_mask=PADDED))
    torch.testing.assert_close(kept(got), kept(want))


def test_our_layers_in_torchs_encoder():
    torch.manual_seed(0)
    layer = llama_fast.nn.TransformerEncoderLayer(E, H, 96, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, S, E)
    want = model(x, src_key_padding_mask=PADDED)
    with torch.no_grad():
        torch.testing.assert_close(kept(model(x, src_key_padding_mask=PADDED)), kept(want))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "made",
    [{}, {"kdim": 40, "vdim": 48}, {"add_bias_kv": True, "add_zero_attn": True}],
    ids=["self", "other widths", "more keys"],
)
def test_multihead_attention(made, need_weights):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, batch_first=True, **made)
    ours = llama_fast.nn.MultiheadAttention(E, H, batch_first=True, **made)
    assert isinstance(ours, nn.MultiheadAttention)
    ours.load_state_dict(theirs.state_dict())
    q = torch.randn(3, 7, E)
    k, v = torch.randn(3, S, made.get("kdim", E)), torch.randn(3, S, made.get("vdim", E))
    options = {"key_padding_mask": PADDED, "need_weights": need_weights}
    want, got = theirs(q, k, v, **options), ours(q, k, v, **options)
    torch.testing.assert_close(got, want)
    assert ours_served(lambda: ours(q, k, v, **options)) is not need_weights
    if need_weights:
        assert torch.equal(got[1], want[1])


def test_dropout_is_reproducible_and_unbiased():
    torch.manual_seed(0)
    layer = llama_fast.nn.MultiheadAttention(E, H, dropout=0.3, batch_first=True)
    x = torch.randn(1, S, E)

    def draw(seed):
        torch.manual_seed(seed)
        return layer(x, x, x, need_weights=False)[0].detach()

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    draws = torch.stack([draw(seed) for seed in range(400)])
    want = layer.eval()(x, x, x, need_weights=False)[0].detach()
    z = (draws.mean(0) - want) / (draws.std(0) / math.sqrt(len(draws)))
    assert z.square().mean().sqrt() < 1.3  # 1 for an unbiased estimate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_losses_and_norm(dtype):
    torch.manual_seed(0)
    logits, target = torch.randn(8, 50).to(dtype), torch.randint(50, (8,))
    options = {"label_smoothing": 0.1, "ignore_index": 3}
    want = nn.CrossEntropyLoss(**options)(logits, target)
    got = llama_fast.nn.CrossEntropyLoss(**options)(logits, target)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want)
    old = llama_fast.nn.CrossEntropyLoss(size_average=False)(logits, target)
    torch.testing.assert_close(old, nn.CrossEntropyLoss(reduction="sum")(logits, target))

    norm = llama_fast.nn.RMSNorm((4, 50), 1e-5).to(dtype)
    x = torch.randn(2, 4, 50).to(dtype)
    theirs = nn.RMSNorm((4, 50), 1e-5).to(dtype)
    torch.testing.assert_close(norm(x), theirs(x))
    assert norm.state_dict().keys() == theirs.state_dict().keys()
    assert ours_served(lambda: norm(x))


def test_linear_cross_entropy_loss():
    torch.manual_seed(0)
    loss = llama_fast.nn.LinearCrossEntropyLoss(16, 50, bias=True, label_smoothing=0.1)
    assert list(loss.state_dict()) == ["linear.weight", "linear.bias"]
    x, target = torch.randn(8, 16), torch.randint(50, (8,))
    want = nn.functional.cross_entropy(loss.linear(x), target, label_smoothing=0.1)
    torch.testing.assert_close(loss(x, target), want)
    assert ours_served(lambda: loss(x, target))


def test_patch_copies_and_pickles():
    model = nn.Transformer(E, H, 1, 1, 96, 0.0, batch_first=True).eval()
    before = [sorted(vars(m)) for m in model.modules()]
    x = torch.randn(2, 5, E)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = model(x, x)
        llama_fast.patch(model)
        for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert ours_served(lambda same=same: same(x, x))
            torch.testing.assert_close(same(x, x), want)
    llama_fast.unpatch(model)
    assert [sorted(vars(m)) for m in model.modules()] == before


def test_subclasses_are_left():
    class Mine(nn.MultiheadAttention):
        pass

    entry = llama_fast.patch(Mine(E, H)).entries[0]
    assert not entry.replaced
    assert "subclass" in entry.reason


@pytest.mark.compile
def test_compile():
    torch.manual_seed(0)
    layer = llama_fast.nn.TransformerEncoderLayer(E, H, 96, 0.0, batch_first=True)
    x = torch.randn(3, S, E)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_bad_input_has_torchs_error():
    layer = llama_fast.nn.MultiheadAttention(E, H)
    with pytest.raises(AssertionError, match="embedding dim"):
        layer(torch.randn(3, S, E + 1), torch.randn(3, S, E + 1), torch.randn(3, S, E + 1))


SCRIPTED = {
    "MultiheadAttention": ((E, H), 3),
    "TransformerEncoderLayer": ((E, H, 48, 0.0), 1),
    "TransformerDecoderLayer": ((E, H, 48, 0.0), 2),
    "RMSNorm": ((E,), 1),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", SCRIPTED)
def test_torchscript(name):
    options, count = SCRIPTED[name]
    ours = getattr(llama_fast.nn, name)(*options)
    inputs = [torch.randn(S, 3, E) for _ in range(count)]
    want = ours(*inputs)
    scripted = torch.jit.script(ours)
    assert type(ours) is getattr(llama_fast.nn, name)
    torch.testing.assert_close(scripted(*inputs), want)
    assert scripted.state_dict().keys() == ours.state_dict().keys()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(scripted(*inputs), ours(*inputs))  # the same parameters


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_of_a_loss_and_of_a_subclass():
    logits, target = torch.randn(5, 7), torch.arange(5)
    loss = llama_fast.nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(torch.jit.script(loss)(logits, target), loss(logits, target))

    class Twice(llama_fast.nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    x = torch.randn(3, E)
    assert torch.equal(torch.jit.script(Twice(E))(x), 2 * x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_a_patched_model_in_torchscript(grad):
    model = nn.Sequential(
        nn.Linear(E, E), nn.RMSNorm(E, eps=1e-6), nn.TransformerEncoderLayer(E, H, 48, 0.0)
    ).eval()
    stock = copy.deepcopy(model)
    llama_fast.patch(model)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, torch.randn(S, 3, E))
        assert "llama_fast::rms_norm" in str(traced.inlined_graph)
        x = torch.randn(S, 3, E, requires_grad=grad)
        torch.testing.assert_close(traced(x), stock(x))
        if grad:
            (ours,) = torch.autograd.grad(traced(x).square().sum(), x)
            (theirs,) = torch.autograd.grad(stock(x).square().sum(), x)
            torch.testing.assert_close(ours, theirs)
        more = torch.randn(S + 7, 2, E)  # other rows than traced
        torch.testing.assert_close(nn.Sequential(*model[:2])(more), nn.Sequential(*stock[:2])(more))
        torch.testing.assert_close(torch.jit.trace(model[:2], x)(more), stock[:2](more))
    with pytest.raises(AttributeError, match=r"jit\.script cannot compile a patched model"):
        torch.jit.script(model)
    llama_fast.unpatch(model)
    torch.testing.assert_close(torch.jit.script(model)(x), stock(x))
