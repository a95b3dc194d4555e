"""Outputs of norms and gated products are made again for the backward pass, not kept."""

import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef

import llama_fast
from llama_fast.integrations import recompute, untracked_writes
from llama_fast.integrations.forward import Forward


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.AutoModelForCausalLM.from_config(config).train()


TOKENS = torch.arange(32).view(2, 16)


def gradients(model):
    model.zero_grad()
    model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_gradients_are_the_same_to_the_last_bit(model):
    llama_fast.patch(model, linear=False)
    kept = gradients(model)
    llama_fast.patch(model)
    assert same(gradients(model), kept)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_activation_checkpointing(model, reentrant):
    llama_fast.patch(model)
    want = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert same(gradients(model), want)


def storage_of(tensor):
    return StorageWeakRef(tensor.untyped_storage())


def test_nothing_but_what_they_are_made_from_is_kept(model, monkeypatch):
    # Not by hooks of modules: with these nothing is made again.
    outputs = []
    attach_recipe = recompute.attach_recipe

    def watched(module, made, *how, **where):
        outputs.append(storage_of(made))  # a function that names it would count as one that writes
        return attach_recipe(module, made, *how, **where)

    monkeypatch.setattr(recompute, "attach_recipe", watched)

    def kept(linear, hook=False):
        llama_fast.patch(model, linear=linear)
        outputs.clear()
        handle = model.lm_head.register_forward_hook(lambda *_: None) if hook else None
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        alive = sum(not output.expired() for output in outputs)
        if handle is not None:
            handle.remove()
        del loss
        assert len(outputs) == 7  # the last is the head's
        return alive

    assert kept(linear=True) == 1
    assert kept(linear=False) == 7
    assert kept(linear=True, hook=True) == 7
    assert kept(linear=True) == 1


def test_the_graph_can_be_used_again(model):
    llama_fast.patch(model)
    loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
    parameters = list(model.parameters())
    want = torch.autograd.grad(loss, parameters, retain_graph=True)
    # One that only some of the linear maps are part of
    some = [model.model.layers[0].self_attn.k_proj.weight, model.model.embed_tokens.weight]
    torch.autograd.grad(loss, some, retain_graph=True)
    assert same(torch.autograd.grad(loss, parameters), want)


def recipe_and_map():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    w = torch.randn(3, 8, dtype=torch.float64, generator=generator, requires_grad=True)

    module = torch.nn.Identity()
    untracked_writes.register_model(module)

    def cube(t):
        return t**3

    def run(x, w):
        middle = x * 1.0
        y = recompute.attach_recipe(module, cube(middle), cube, middle, within=True)
        with recompute.saving_recipe_of(y):
            out = torch.nn.functional.linear(y, w)
        return out, middle

    return run, x, w


def test_derivatives_of_any_order():
    run, x, w = recipe_and_map()
    torch.autograd.gradcheck(lambda *a: run(*a)[0], (x, w))
    torch.autograd.gradgradcheck(lambda *a: run(*a)[0], (x, w))


def test_a_changed_input_is_an_error():
    run, x, w = recipe_and_map()
    out, middle = run(x, w)
    with torch.no_grad():
        middle.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# What is written to a tensor between the module that makes it and the linear map that reads it


MASK = torch.arange(5 * 8).view(5, 8) % 3 == 0


def done(edit, h):
    """What a hook gives that changes its tensor in place."""
    edit(h)


def within(context, edit):
    def edited(h):
        with context():
            edit(h)

    return edited


EDITS = {
    "mul_": within(torch.no_grad, lambda h: h.mul_(3)),
    "with a gradient": lambda h: h.mul_(3),
    "a mask": lambda h: h.__setitem__(MASK, 0.0),
    "added": lambda h: h.__iadd__(torch.arange(8.0, dtype=h.dtype)),
    "a view": lambda h: h.view(-1)[3:9].zero_(),
    "detached": lambda h: h.detach().clamp_(-0.1, 0.1),
    "in inference mode": within(torch.inference_mode, lambda h: h.mul_(3)),
    "data": lambda h: h.data.mul_(3),
    "a row of data": lambda h: h.data[2].zero_(),
    "NumPy": lambda h: h.detach().numpy().__setitem__(1, 2.0),
    "data of a view": lambda h: h.view(-1).data[7:].zero_(),
}


class Written(torch.nn.Module):
    """Writes past the version in its forward."""

    def forward(self, h):
        h.data[..., 1:3] *= 2
        return h


class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.down = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


def norm_and(*between):
    return torch.nn.Sequential(
        torch.nn.RMSNorm(8, eps=1e-6), *between, torch.nn.Linear(8, 4)
    ).double()


def compared(make, run=lambda m, x: m(x)):
    """Gradients of ours and of stock."""
    found = []
    for patched in (True, False):
        torch.manual_seed(0)
        m = make()
        if patched:
            report = llama_fast.patch(m)
            assert {"rms_norm", "linear"} & {entry.part for entry in report.entries}
        x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(1)
        run(m, x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in m.parameters())])
    return found


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("place", ["hook", "pre-hook", "global hook", "between the calls"])
def test_what_a_linear_map_reads_is_what_counts(edit, place):
    def hooked():
        m = norm_and(torch.nn.Identity())
        if place == "hook":
            m[0].register_forward_hook(lambda _, args, out: done(edit, out))
        if place == "pre-hook":
            m[2].register_forward_pre_hook(lambda _, args: done(edit, args[0]))
        return m

    def run(m, x):
        if place == "between the calls":
            h = m[0](x)
            edit(h)
            return m[2](h)
        if place == "global hook":
            handle = torch.nn.modules.module.register_module_forward_hook(
                lambda module, args, out: done(edit, out) if module is m[1] else None
            )
            try:
                return m(x)
            finally:
                handle.remove()
        return m(x)

    torch.testing.assert_close(*compared(hooked, run))


@pytest.mark.parametrize(
    "make",
    [
        lambda: norm_and(Written()),
        lambda: norm_and(torch.nn.Dropout(0.5, inplace=True)),
        lambda: norm_and(torch.nn.ReLU(inplace=True)),
    ],
    ids=["data", "dropout", "relu"],
)
def test_modules_that_write_to_what_they_are_given(make):
    torch.testing.assert_close(*compared(make))


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_hook_before_the_last_map_of_a_gated_product(edit):
    def make():
        m = Gated().double()
        m.down.register_forward_pre_hook(lambda _, args: done(edit, args[0]))
        return m

    torch.testing.assert_close(*compared(make))


def test_a_method_that_the_forward_calls_may_write():
    class Model(torch.nn.Sequential):
        def forward(self, x):
            return self[1](self.normed(x))

        def normed(self, x):
            h = self[0](x)
            h.data[:2] = 0.5
            return h

    torch.testing.assert_close(*compared(lambda: Model(*norm_and())))


def test_what_is_written_after_the_linear_map_is_not_what_it_read():
    class Model(torch.nn.Sequential):
        def forward(self, x):
            h = self[0](x)
            out = self[1](h)
            if isinstance(self[0].forward, Forward):  # stock says that it cannot go on
                h.detach().mul_(3)
            return out

    torch.testing.assert_close(*compared(lambda: Model(*norm_and())))


@pytest.mark.parametrize("patched", [False, True], ids=["stock", "ours"])
def test_a_step_before_the_backward_pass_is_an_error(patched):
    m = norm_and()
    if patched:
        llama_fast.patch(m)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    loss = m(x).sum()
    m[0].weight.grad = torch.ones(8, dtype=torch.float64)
    torch.optim.SGD([m[0].weight], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
