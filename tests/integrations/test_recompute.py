"""Outputs of norms and gated products are made again for the backward pass, not kept."""

import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef

import llama_fast
from llama_fast.integrations import recompute


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


def test_nothing_but_what_they_are_made_from_is_kept(model):
    def kept(linear):
        llama_fast.patch(model, linear=linear)
        outputs = []
        hooks = [
            m.register_forward_hook(
                lambda _, args, out: outputs.append(StorageWeakRef(out.untyped_storage()))
            )
            for layer in model.model.layers
            for m in (layer.input_layernorm, layer.post_attention_layernorm)
        ] + [
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _, args: outputs.append(StorageWeakRef(args[0].untyped_storage()))
            )
            for layer in model.model.layers
        ]
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
        for hook in hooks:
            hook.remove()
        alive = sum(not output.expired() for output in outputs)
        del loss
        assert len(outputs) == 6
        return alive

    assert kept(linear=True) == 0
    assert kept(linear=False) == 6


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

    def cube(t):
        return t**3

    def run(x, w):
        middle = x * 1.0
        y = recompute.mark(cube(middle), cube, middle)
        with recompute.instead_of(y):
            return torch.nn.functional.linear(y, w), middle

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
