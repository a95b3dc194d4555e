from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

import llama_fast
from llama_fast.cli.chat import Chat
from llama_fast.cli.generate import _new_request
from llama_fast.cli.options import add_sampling
from llama_fast.data.chat import TEMPLATES
from llama_fast.eval.harness import HarnessModel
from llama_fast.integrations.any_model import load_any
from llama_fast.models import LLaMA, LlamaConfig, save
from llama_fast.models.loading import as_tokenizer
from llama_fast.tokenizers import ByteTokenizer, TokenizerError, from_gguf, load_tokenizer
from llama_fast.tokenizers.save import gguf_fields
from tests.paths import data_file, gguf_tiny, smollm2, tokenizer_model


def test_what_is_read() -> None:
    stories = data_file("checkpoints/stories260k")
    for path, kind in (
        (smollm2(), "smollm2"),
        (stories / "stories260K.bin", "llama2.c"),
        (gguf_tiny(), "GGUF"),
    ):
        model, words = load_any(str(path), device="cpu")
        assert isinstance(model, LLaMA) and not model.training, kind
        assert words.decode(words.encode("a b")).strip() == "a b"


def test_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, laid out as the hub's client does it; the network stays out of it."""
    folder, revision = tmp_path / "models--somebody--tiny", "0" * 40
    model = LLaMA(replace(LlamaConfig.preset("debug"), vocab_size=257))
    save(model, folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found, _ = load_any("somebody/tiny", "byte", device="cpu")
    assert isinstance(found, LLaMA) and torch.equal(found.head_weight, model.head_weight)


def test_another_architecture_is_loaded_by_transformers_and_patched(tmp_path: Path) -> None:
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    stock = transformers.Qwen2ForCausalLM(config).eval()
    stock.save_pretrained(tmp_path / "qwen")
    lm = HarnessModel(str(tmp_path / "qwen"), tokenizer="byte", device="cpu")
    assert type(lm.model).__name__ == "TransformersDecoder"
    found = lm.loglikelihood([Instance("loglikelihood", {}, ("ab", "cd"), 0, ("t", 0, 1))])
    words = ByteTokenizer()
    ids = torch.tensor([words.encode("abcd")])
    with torch.no_grad():
        logprobs = stock(ids).logits.double().log_softmax(-1)[0]
    assert found[0][0] == pytest.approx((logprobs[1, ids[0, 2]] + logprobs[2, ids[0, 3]]).item())
    text = lm.generate_until(
        [Instance("generate_until", {}, ("ab", {"max_gen_toks": 6}), 0, ("t", 0, 1))]
    )
    with torch.no_grad():
        tokens = stock.generate(torch.tensor([words.encode("ab")]), max_new_tokens=6,
                                do_sample=False, pad_token_id=0)  # fmt: skip
    # The head has more rows than there are tokens: those stand for no text.
    assert text == [words.decode([t for t in tokens[0, 2:].tolist() if t < words.vocab_size])]


def test_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _, own = llama_fast.models.load(smollm2())
    save(LLaMA(LlamaConfig.preset("debug")), tmp_path / "m", own)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    words = as_tokenizer(theirs)
    assert (words.bos_id, words.eos_id, words.add_bos) == (own.bos_id, own.eos_id, False)
    text = "Hi <|im_start|> 12 é"
    theirs([text, text], truncation=True, max_length=2)  # a state that stays in its backend
    config = replace(LlamaConfig.preset("debug"), vocab_size=own.vocab_size)
    lm = HarnessModel(LLaMA(config), theirs)
    assert lm.tok_encode(text) == theirs(text).input_ids
    assert words.encode(text, special=True) == theirs(text).input_ids
    assert words.encode(text) == own.encode(text) != words.encode(text, special=True)


def test_a_text_ends_with_any_of_the_models_end_tokens(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    _, words = llama_fast.models.load(smollm2())
    model = LLaMA(replace(LlamaConfig.preset("debug"), vocab_size=words.vocab_size)).eval()
    prompt = words.encode("Once upon a time")
    with torch.no_grad():
        ids = llama_fast.generate(model, torch.tensor([prompt]), 8, temperature=0.0)
    new = ids[0, len(prompt) :].tolist()
    last = next(i for i in range(1, 8) if new[i] not in new[:i])
    words.add_end_ids([new[last]])
    save(model, tmp_path / "m", words)

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    stopped = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    assert stopped[0].tolist() == prompt + new[: last + 1]
    request = Instance("generate_until", {}, ("Once upon a time", {"max_gen_toks": 8}), 0)
    sources = (str(tmp_path / "m"), None), (theirs, AutoTokenizer.from_pretrained(tmp_path / "m"))
    for source, tokenizer in sources:
        lm = HarnessModel(source, tokenizer, device="cpu")
        assert lm.generate_until([request]) == [words.decode(new[:last])], source

    for text, message in (("[2]", "expected a JSON object, got list"),
                          ('{"eos_token_id": "x"}', "eos_token_id: expected an id"),
                          ('{"eos_token_id": 1.5}', "eos_token_id: expected an id")):  # fmt: skip
        (tmp_path / "m" / "generation_config.json").write_text(text)
        with pytest.raises(TokenizerError, match=f"generation_config.json: {message}"):
            as_tokenizer(tmp_path / "m")


@pytest.mark.parametrize("form", ["meta", "gguf", "template"])
def test_a_turn_ends_alike_for_all_commands(form: str, tmp_path: Path) -> None:
    """No file says that <|eot_id|> ends a text: its name does, or the chat template."""
    words = load_tokenizer(tokenizer_model("tekken"))
    eot, text_end = words.special["<|eot_id|>"], words.eos_id
    if form == "template":
        words.end_ids, words.chat_template = (text_end,), TEMPLATES["llama3"]
    elif form == "gguf":
        fields = gguf_fields(words, words.vocab_size)
        words = from_gguf({k: v for k, v in fields.items() if "eot_token_id" not in k})
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig(words.vocab_size, 8, 2, 1, ffn_dim=8, tie_embeddings=False)).eval()
    prompt = torch.tensor([words.prepend_bos(words.encode("Hi"))])
    with torch.no_grad():
        first = llama_fast.generate(model, prompt, 1, temperature=0.0)[0, -1].item()
        model.head_weight[[first, eot]] = model.head_weight[[eot, first]].clone()
    lm = HarnessModel(model, words, device="cpu")
    request = Instance("generate_until", {}, ("Hi", {"max_gen_toks": 4, "until": []}), 0)
    assert lm.generate_until([request]) == [""]
    given = argparse.ArgumentParser()
    add_sampling(given, max_new_tokens=4)
    args = given.parse_args([])
    args.system, args.special, args.chat, args.chat_template = None, False, False, "llama3"
    chat = Chat(model, words, args)
    asked = _new_request(args, words)(0, "Hi")
    ends = {text_end, eot, *words.end_ids}
    scored = lm._generation(request, 0)[1]
    assert {*chat._format.stop_ids} == {*asked.stop_ids} == {*scored.stop_ids} == ends
    (result,) = llama_fast.generation.Engine(model, words).generate([asked])
    assert result.finish_reason == "stop" and len(result.tokens) <= 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("no/such/file",), FileNotFoundError, "model: no such file or folder: no/such/file"),
        (("nobody/no-such-model",), FileNotFoundError, "the hub does not give it"),
        ((torch.nn.Linear(2, 2),), ValueError, "tokenizer: expected one beside a model"),
        ((LLaMA(LlamaConfig.preset("debug")), 7), ValueError, "fast tokenizer of transformers"),
        ((LLaMA(LlamaConfig.preset("debug")), "byte", "int4"), ValueError, "dtype: expected one"),
    ],
)
def test_bad_sources(
    arguments: tuple[Any, ...], error: type[Exception], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message):
        load_any(*arguments)


def test_no_tokenizer_in_the_folder(tmp_path: Path) -> None:
    save(LLaMA(LlamaConfig.preset("debug")), tmp_path / "m")
    with pytest.raises((ValueError, TokenizerError), match="tokenizer: expected one"):
        load_any(tmp_path / "m", device="cpu")
