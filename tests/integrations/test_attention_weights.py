"""Attention weights of patched models, and masks made by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import llama_fast
from tests.integrations import zoo

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import masking_utils  # noqa: E402

from llama_fast.integrations.transformers import masks  # noqa: E402

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))


def make(implementation: str = "eager", **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None, pad_token_id=0,
        **{"intermediate_size": 48, **options},
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=implementation
    )
    return model.eval()


def weights(out: Any) -> dict[str, list[torch.Tensor]]:
    """All attention weights in an output, those of generation too."""

    def flat(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        return [t for part in value or () for t in flat(part)]

    return {key: flat(value) for key, value in out.items() if "attentions" in key}


def the_same(got: Any, want: Any) -> None:
    ours, theirs = weights(got), weights(want)
    assert ours.keys() == theirs.keys() and any(theirs.values())
    for key, found in theirs.items():
        assert len(ours[key]) == len(found), key
        for a, b in zip(ours[key], found, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert", "t5", "bart", "gpt_oss"])
@pytest.mark.parametrize("training", [False, True])
def test_as_stock_gives_them(name: str, training: bool) -> None:
    model = zoo.build(name).train(training)
    model.set_attn_implementation("eager")
    inputs = zoo.batches(name, model)["plain"]
    want = model(**inputs, output_attentions=True)
    with llama_fast.patch(model) as report:
        got = model(**inputs, output_attentions=True)
        # T5 computes attention itself in transformers 5.5, as IN_OLDER_TRANSFORMERS has it.
        if report.replaced("attention") or name != "t5":
            assert model.config._attn_implementation == "llama_fast"
        assert not any(weights(model(**inputs)).values())
    the_same(got, want)
    torch.testing.assert_close(got.loss, want.loss)


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_in_generation(name: str) -> None:
    model = make() if name == "llama" else zoo.build(name).eval()
    model.set_attn_implementation("eager")
    helper = make(intermediate_size=40)
    options: dict[str, Any] = {
        "max_new_tokens": 5, "do_sample": False, "output_attentions": True,
        "return_dict_in_generate": True,
    }  # fmt: skip
    padded = torch.ones_like(IDS)
    padded[0, :3] = 0
    for more in (
        {},
        {"attention_mask": padded},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "attention_mask": padded},
        {"assistant_model": helper},
    ):
        if "assistant_model" in more and name != "llama":
            continue
        ids = IDS[:1] if "assistant_model" in more else IDS
        want = model.generate(ids, **options, **more)
        with llama_fast.patch(model):
            got = model.generate(ids, **options, **more)
        assert torch.equal(got.sequences, want.sequences)
        the_same(got, want)


def test_by_position_and_of_a_part() -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)
    ).eval()
    model.set_attn_implementation("eager")
    want = model.transformer(IDS, output_attentions=True)
    with llama_fast.patch(model):
        the_same(model.transformer(IDS, output_attentions=True), want)
    torch.manual_seed(0)

    class Positional(transformers.LlamaForCausalLM):
        def forward(self, ids: Any, output_attentions: bool = False) -> Any:
            return super().forward(ids, output_attentions=output_attentions)

    model = Positional(make().config).eval()
    model.set_attn_implementation("eager")
    want = model(IDS, True)
    with llama_fast.patch(model):
        the_same(model(IDS, True), want)


def test_with_activation_checkpointing_they_are_refused() -> None:
    model = make().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    llama_fast.patch(model)
    with pytest.raises(ValueError, match=r"output_attentions: expected False .* checkpointing"):
        model(IDS, output_attentions=True)
    llama_fast.patch(model, attention=False)
    assert any(weights(model(IDS, output_attentions=True)).values())
    llama_fast.patch(model)
    with torch.no_grad():
        assert any(weights(model(IDS, output_attentions=True)).values())


def test_a_configuration_that_asks_for_them_leaves_attention_as_it_is() -> None:
    model = make()
    model.config.output_attentions = True
    want = model(IDS)
    report = llama_fast.patch(model)
    (reason,) = {e.reason for e in report.entries if e.part == "attention"}
    assert "output_attentions" in reason and report.replaced("rms_norm")
    the_same(model(IDS), want)


def test_the_name_alone_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_fast.integrations.transformers import attention

    said: list[str] = []
    monkeypatch.setattr(attention._logger, "warning_once", said.append)
    out = make("llama_fast")(IDS, output_attentions=True)
    assert not any(weights(out).values())
    assert said and "output_attentions" in said[0] and "eager" in said[0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_masks_of_integers(dtype: torch.dtype) -> None:
    stock = make("sdpa")
    ours = copy.deepcopy(stock)
    llama_fast.patch(ours)
    seen = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    torch.testing.assert_close(ours(IDS, seen).logits, stock(IDS, seen).logits)
    with pytest.raises(RuntimeError, match="attn_mask dtype"):
        stock(IDS, seen.to(dtype))
    with pytest.raises(TypeError, match=f"attention_mask: expected bool.*got {dtype}"):
        ours(IDS, seen.to(dtype))

    q = torch.randn(2, 4, 9, 8)
    with pytest.raises(TypeError, match=r"bias: expected .*, got "):
        llama_fast.attention(q, q, q, bias=seen.to(dtype))
    with pytest.raises(TypeError, match=r"attn_mask: expected .*, got "):
        llama_fast.scaled_dot_product_attention(q, q, q, attn_mask=seen.to(dtype))
    with (
        llama_fast.accelerate(),
        pytest.raises(RuntimeError, match="attn_mask dtype"),
    ):
        torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=seen.to(dtype))


def test_a_bias_of_integers_in_t5() -> None:
    from llama_fast.integrations.transformers.attention import attention_function

    q = torch.randn(2, 4, 9, 8)
    with pytest.raises(TypeError, match="position_bias: expected bool"):
        attention_function(
            torch.nn.Module(), q, q, q, None, position_bias=torch.ones(1, 4, 9, 9, dtype=torch.long)
        )


def test_a_mask_is_that_of_its_time() -> None:
    """Whoever looks at it later gets the padding of when it was made, as stock's tensor has it."""
    padding = torch.tensor([[False, True, True, True], [True, True, True, True]])
    made = masks.mask_function(2, 4, 4, attention_mask=padding)
    assert isinstance(made, masks.Mask)
    expected = masking_utils.sdpa_mask(2, 4, 4, attention_mask=padding.clone())
    padding.fill_(False)
    assert torch.equal(made.dense(), expected)
