"""Every architecture of the zoo, patched, against itself unpatched and against float64."""

import copy
import inspect
import re
import warnings

import pytest
import torch

import llama_fast
from tests.integrations import parity, zoo
from tests.paths import REPOSITORY

# What is replaced, of what was looked at.
PARTS = {
    "llama": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "mistral": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "ministral": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "ministral3": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "mixtral": "attention 2/2, rms_norm 5/5, rope 2/2, loss 1/1",
    "qwen2": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "qwen2_moe": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "qwen3": "attention 2/2, rms_norm 9/9, rope 2/2, mlp 2/2, loss 1/1",
    "qwen3_moe": "attention 2/2, rms_norm 9/9, rope 2/2, loss 1/1",
    "gemma": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 0/2, loss 1/1",
    "gemma2": "attention 2/2, rms_norm 9/9, rope 2/2, mlp 0/2, loss 1/1",
    "gemma3_text": "attention 2/2, rms_norm 13/13, rope 2/2, mlp 0/2, loss 1/1",
    "phi": "attention 2/2, rope 2/2, loss 1/1",
    "phi3": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "olmo": "attention 2/2, rope 2/2, mlp 2/2, loss 1/1",
    "olmo2": "attention 2/2, rms_norm 9/9, rope 2/2, mlp 2/2, loss 1/1",
    "olmo3": "attention 2/2, rms_norm 9/9, rope 2/2, mlp 2/2, loss 1/1",
    "granite": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "cohere": "attention 2/2, rms_norm 0/3, rope 2/2, mlp 2/2, loss 1/1",
    "cohere2": "attention 2/2, rms_norm 0/3, rope 2/2, mlp 2/2, loss 1/1",
    "stablelm": "attention 2/2, rope 2/2, mlp 2/2, loss 1/1",
    "starcoder2": "attention 2/2, rope 2/2, loss 1/1",
    "smollm3": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "glm4": "attention 2/2, rms_norm 9/9, rope 2/2, mlp 2/2, loss 1/1",
    "nemotron": "attention 2/2, rope 2/2, loss 1/1",
    "exaone4": "attention 2/2, rms_norm 9/9, rope 2/2, mlp 2/2, loss 1/1",
    "helium": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "ernie4_5": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "seed_oss": "attention 2/2, rms_norm 5/5, rope 2/2, mlp 2/2, loss 1/1",
    "arcee": "attention 2/2, rms_norm 5/5, rope 2/2, loss 1/1",
    "apertus": "attention 2/2, rms_norm 9/9, rope 2/2, loss 1/1",
    "gpt2": "attention 2/2, loss 1/1",
    "gpt_neo": "attention 0/2, loss 1/1",
    "gpt_neox": "attention 2/2, rope 2/2, loss 1/1",
    "gptj": "attention 2/2, rope 0/2, loss 1/1",
    "gpt_bigcode": "attention 2/2, loss 1/1",
    "opt": "attention 2/2, loss 1/1",
    "falcon": "attention 0/2, rope 2/2, loss 1/1",
    "bloom": "attention 0/2, loss 1/1",
    "mpt": "attention 0/2, loss 1/1",
    "gpt_oss": "attention 2/2, rms_norm 5/5, rope 2/2, loss 1/1",
    "deepseek_v3": "attention 2/2, rms_norm 9/9, rope 2/2, mlp 2/2, loss 1/1",
    "llama4_text": "attention 2/2, rms_norm 5/5, rope 0/2, mlp 2/2, loss 1/1",
    "bert": "attention 2/2, loss 1/1",
    "roberta": "attention 2/2, loss 1/1",
    "distilbert": "attention 2/2, loss 1/1",
    "electra": "attention 2/2, loss 1/1",
    "modernbert": "attention 2/2, rope 2/2, mlp 0/2, loss 1/1",
    "t5": "attention 6/6, rms_norm 12/12, loss 1/1",
    "bart": "attention 6/6, loss 1/1",
    "vit": "attention 2/2, loss 0/1",
    "dinov2": "attention 2/2, loss 0/1",
    "whisper": "attention 6/6, loss 1/1",
}
# In transformers 5.5, and gptj up to 5.23, these compute attention themselves.
IN_OLDER_TRANSFORMERS = {
    "gptj": "attention 0/2, rope 0/2, loss 1/1",
    "nemotron": "attention 0/2, rope 2/2, loss 1/1",
    "modernbert": "attention 0/2, rope 2/2, mlp 0/2, loss 1/1",
    "t5": "attention 0/6, rms_norm 12/12, loss 1/1",
}
COMPILED = ["llama", "gemma2", "cohere2", "gpt_neox", "deepseek_v3", "bert", "t5"]


def of_kind(*kinds):
    return [name for name, a in zoo.ZOO.items() if a.kind in kinds]


def build(name, **options):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return zoo.build(name, **options)
    except zoo.Unknown as unknown:
        pytest.skip(f"needs a newer transformers: {unknown}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_no_further_from_float64_than_stock(name, dtype):
    build(name)  # skips what this transformers does not know
    try:
        assert not parity.further_than_stock(name, dtype)
    except parity.NoTruth as reason:
        pytest.skip(f"needs a newer transformers: {reason}")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_report(name):
    model = build(name)
    report = llama_fast.patch(model)
    found = {}
    for entry in report.entries:
        assert entry.replaced or entry.reason
        found.setdefault(entry.part, []).append(entry.replaced)
    linear = found.pop("linear", [])
    assert all(linear)
    order = ["attention", "rms_norm", "rope", "mlp", "loss"]
    said = ", ".join(f"{p} {sum(found[p])}/{len(found[p])}" for p in order if p in found)
    assert said in (PARTS[name], IN_OLDER_TRANSFORMERS.get(name))


def attributes(model):
    return [sorted(vars(module)) for module in model.modules()]


@pytest.fixture
def one_thread():
    """What torch scatters by several threads, experts for one, has other bits each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", zoo.ZOO)
@pytest.mark.usefixtures("one_thread")
def test_unpatched_it_is_as_before(name):
    model = build(name)
    inputs = zoo.batches(name, model)["plain"]
    before, names = parity.results(model, inputs), attributes(model)
    implementation = model.config._attn_implementation
    with llama_fast.patch(model):
        parity.results(model, inputs)
    after = parity.results(model, inputs)
    assert attributes(model) == names
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_forward_takes_what_it_took(name):
    """generate() and Trainer hand to a model only what the signature of its forward names."""
    model = build(name)
    before = [list(inspect.signature(m.forward).parameters) for m in model.modules()]
    with llama_fast.patch(model):
        patched = [list(inspect.signature(m.forward).parameters) for m in model.modules()]
    assert patched == before


@pytest.mark.parametrize("name", zoo.ZOO)
def test_gradient_checkpointing(name):
    model = build(name)
    if not model.supports_gradient_checkpointing:
        pytest.skip("needs a newer transformers, with gradient checkpointing for it")
    inputs = zoo.batches(name, model)["plain"]
    llama_fast.patch(model)
    plain = parity.results(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    again = parity.results(model, inputs)
    assert plain.keys() == again.keys()
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, msg=lambda m, key=key: f"{key}: {m}")


def generated(model, inputs, **options):
    return model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=16,
        max_new_tokens=16,
        pad_token_id=0,
        **options,
    )


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", of_kind("causal", "seq2seq", "speech"))
def test_generates_the_same_tokens(name, cache):
    model = build(name).eval()
    batches = zoo.batches(name, model)
    inputs = dict(batches.get("left-padded", batches["plain"]))
    inputs.pop("labels")
    options = {"disable_compile": True}
    if cache == "static":
        options["cache_implementation"] = "static"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            want = generated(model, inputs, **options)
        except Exception as error:  # whatever a model says to a cache that it does not know
            assert cache == "static"
            pytest.skip(f"needs a newer transformers, with a static cache: {error}")
        with llama_fast.patch(model):
            got = generated(model, inputs, **options)
    assert torch.equal(got, want)


@pytest.mark.compile
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name):
    model = build(name)
    inputs = zoo.batches(name, model)["plain"]

    def compiled():
        torch.compiler.reset()
        other = copy.copy(model)
        other.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
        return parity.results(other, inputs)

    llama_fast.patch(model)
    want = parity.results(model, inputs)
    try:
        got = compiled()
    except Exception:
        llama_fast.unpatch(model)
        try:
            compiled()
        except Exception as error:
            pytest.skip(f"needs a newer transformers, which compiles: {type(error).__name__}")
        raise
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, msg=lambda m, key=key: f"{key}: {m}")


def test_the_page_lists_every_architecture():
    """docs/model-support.md is made by `make model-support`."""
    page = (REPOSITORY / "docs" / "model-support.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(zoo.ZOO)
