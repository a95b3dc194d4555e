"""Every architecture of the zoo through transformers' own entry, against float64 and stock."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from tests.integrations import parity, zoo
from tests.integrations.hub_kernels.kernelized import kernelized, replaced, with_attention

# Norms, norms with 1 + weight, gated MLPs, and whether the rotary embedding is ours. The rotary
# embedding is one function for all layers. What is not here has none of these marks.
SLOTS = {
    "llama": (5, 0, 2, True),
    "mistral": (5, 0, 2, True),
    "ministral": (5, 0, 2, True),
    "ministral3": (5, 0, 2, True),
    "mixtral": (5, 0, 0, True),
    "qwen2": (5, 0, 2, True),
    "qwen2_moe": (5, 0, 2, True),
    "qwen3": (9, 0, 2, True),
    "qwen3_moe": (9, 0, 0, True),
    "gemma": (0, 5, 2, True),
    "gemma2": (0, 9, 2, True),
    "gemma3_text": (0, 13, 2, True),
    "phi": (0, 0, 0, True),
    "phi3": (5, 0, 0, False),
    "olmo": (0, 0, 2, True),
    "olmo2": (9, 0, 2, True),
    "olmo3": (9, 0, 2, True),
    "granite": (5, 0, 2, True),
    "cohere": (0, 0, 2, False),
    "cohere2": (0, 0, 2, False),
    "stablelm": (0, 0, 2, False),
    "starcoder2": (0, 0, 0, True),
    "smollm3": (5, 0, 2, True),
    "glm4": (9, 0, 0, False),
    "exaone4": (9, 0, 2, False),
    "helium": (0, 0, 2, False),
    "ernie4_5": (5, 0, 2, False),
    "seed_oss": (5, 0, 0, False),
    "arcee": (5, 0, 0, True),
    "apertus": (9, 0, 0, True),
    "gpt_oss": (5, 0, 0, True),
    "deepseek_v3": (9, 0, 2, False),
    "modernbert": (0, 0, 0, True),
}
COMPILED = ["llama", "gemma2", "cohere2", "olmo3"]


# In evaluation transformers asks the Hub for a kernel of its experts.
TRAINED_ONLY = {"gpt_oss"}
GENERATING = [n for n in SLOTS if zoo.ZOO[n].kind == "causal" and n not in TRAINED_ONLY]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    ("training", "name"),
    [(True, name) for name in zoo.ZOO]
    + [(False, name) for name in zoo.ZOO if name not in TRAINED_ONLY],
)
def test_what_is_replaced(name, training):
    model = zoo.build(name).train(training)
    names = [sorted(vars(m)) for m in model.modules()]
    with kernelized(model):
        found = replaced(model)
    assert found.pop("FixedCrossEntropy") == 1
    norms, centered, mlps, rotary = SLOTS.get(name, (0, 0, 0, False))
    wanted = {"RMSNorm": norms, "RMSNormZeroCentered": centered, "GatedMLP": mlps}
    wanted["RotaryPosEmb"] = int(rotary)
    assert found == {layer: count for layer, count in wanted.items() if count}
    assert not replaced(model)
    model._use_kernels = False  # transformers' own note, which it has no way to take back
    after = [sorted({*vars(m)} - {"_use_kernels"}) for m in model.modules()]
    left = [m for m in model.modules() if "forward" in vars(m)]
    assert all(m.forward.__func__ is type(m).forward for m in left)  # transformers' fallbacks
    assert [set(a) - {"forward"} for a in after] == [set(b) - {"_use_kernels"} for b in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SLOTS)
def test_no_further_from_float64_than_stock(name, dtype):
    try:
        assert not parity.further_than_stock(name, dtype, with_attention)
    except parity.NoTruth as reason:
        pytest.skip(f"needs a newer transformers: {reason}")


@pytest.mark.parametrize("name", GENERATING)
def test_generates_the_same_tokens(name):
    model = zoo.build(name).eval()
    inputs = dict(zoo.batches(name, model)["left-padded"])
    del inputs["labels"]
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    want = model.generate(**inputs, **options)
    with with_attention(model):
        assert torch.equal(model.generate(**inputs, **options), want)


@pytest.mark.compile
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name):
    model = zoo.build(name)
    inputs = zoo.batches(name, model)["plain"]
    with with_attention(model):
        want = parity.results(model, inputs)
        torch.compiler.reset()
        other = copy.copy(model)
        other.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
        got = parity.results(other, inputs)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, msg=lambda m, key=key: f"{key}: {m}")
