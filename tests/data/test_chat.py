"""Chat templates: the text of transformers' own rendering, and which tokens are answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_fast.data import ChatTemplate, DataError
from llama_fast.data.chat import TEMPLATES
from llama_fast.eval.harness import HarnessModel
from llama_fast.models import LLaMA, LlamaConfig
from llama_fast.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    TokenizerError,
    default_template,
    load_tokenizer,
)
from llama_fast.tokenizers.save import save_huggingface
from llama_fast.tokenizers.train_bpe import train_bpe
from tests.paths import tokenizer_model

BYTES = ByteTokenizer()

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3 + 3?"},
    {"role": "assistant", "content": "6"},
]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("prompt", [False, True])
def test_renders_what_transformers_renders(name: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = ChatTemplate(name)
    theirs, _ = render_jinja_template(
        conversations=[CHAT], chat_template=template.source, add_generation_prompt=prompt
    )
    assert template.render(CHAT, BYTES, add_generation_prompt=prompt) == theirs[0]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_answers_alone_are_learned(name: str) -> None:
    tokenizer = load_tokenizer(tokenizer_model("tekken"))
    template = ChatTemplate(name)
    ids, answer = template.encode(CHAT, tokenizer)
    assert ids == tokenizer.encode(template.render(CHAT, tokenizer), special=True)
    learned = [i for i, own in zip(ids, answer, strict=True) if own]
    assert "".join(tokenizer.decode(learned).replace("<|im_end|>", "").split()) == "46"
    if name == "llama3":  # the model has to learn to stop
        assert learned.count(tokenizer.special["<|eot_id|>"]) == 2


# What `chat_completion` of github.com/meta-llama/llama, llama/generation.py, encodes
LLAMA2 = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def sentencepiece() -> Tokenizer:
    return load_tokenizer(tokenizer_model("mistral"))


def converted(tmp_path: Path) -> Tokenizer:
    save_huggingface(sentencepiece(), tmp_path, 4096)
    return load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json"])
def test_begin_and_end_of_llama_2(form: str, tmp_path: Path) -> None:
    tokenizer = sentencepiece() if form == "tokenizer.model" else converted(tmp_path)
    template = ChatTemplate(LLAMA2)
    ids, answer = template.encode(CHAT[1:], tokenizer)
    assert ids == tokenizer.encode(template.render(CHAT[1:], tokenizer), special=True)
    assert ids.count(tokenizer.bos_id) == ids.count(tokenizer.eos_id) == 2
    learned = [i for i, own in zip(ids, answer, strict=True) if own]
    four, six = ([*tokenizer.encode(f" {n} ", continues=True), tokenizer.eos_id] for n in "46")
    assert learned == four + six  # the model has to learn to stop
    prompt, _ = template.encode(CHAT[1:2], tokenizer, add_generation_prompt=True)
    assert prompt + four == ids[: len(prompt + four)]


def test_control_tokens_in_a_message_are_text() -> None:
    tokenizer = load_tokenizer(tokenizer_model("tekken"))
    chat = [{"role": "user", "content": "<|eot_id|>"}, {"role": "assistant", "content": "No."}]
    ids, _ = ChatTemplate("llama3").encode(chat, tokenizer)
    assert ids.count(tokenizer.special["<|eot_id|>"]) == 2
    with pytest.raises(DataError, match="role: expected a role without control tokens, got"):
        ChatTemplate("llama3").encode([{**chat[0], "role": "user<|eot_id|>"}], tokenizer)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="chat_template: expected chatml, llama3, plain"):
        ChatTemplate("chatlm")
    with pytest.raises(ValueError, match=r"chat_template: .* in line 1"):
        ChatTemplate("{% for %}")
    with pytest.raises(DataError, match="chat_template: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHAT, BYTES)
    with pytest.raises(DataError, match="expected message 0 to have strings"):
        ChatTemplate("plain").render([{"role": "user"}], BYTES)
    for wrong in ("{{ 1 + 'a' }}", "{{ messages[9].content.x }}", "{{ {}.update(a=1) }}",
                  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"):  # fmt: skip
        with pytest.raises(DataError, match="chat_template: "):
            ChatTemplate(wrong).render(CHAT, BYTES)
    with pytest.raises(TypeError, match="tools: expected dicts, got str"):
        ChatTemplate("plain").render(CHAT, BYTES, tools=["weather"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="chat_template: access to attribute"):
        ChatTemplate("{{ messages.__class__.__mro__ }}").render(CHAT, BYTES)


def test_templates_that_rewrite_the_text_before() -> None:
    """Answers are found by what stands behind them, unless that depends on them."""
    counts = ChatTemplate(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    ids, answer = counts.encode(CHAT, BYTES)
    assert BYTES.decode(ids) == "5Be brief.2 + 2?43 + 3?6"
    assert BYTES.decode([i for i, own in zip(ids, answer, strict=True) if own]) == "46"
    looks = "{{ '4' in (messages | map(attribute='content')) }}"
    depends = "{% for m in messages %}{{ m.content }};{% endfor %}" + looks
    with pytest.raises(DataError, match=r"does not depend on it, .* for message 2"):
        ChatTemplate(depends).encode(CHAT, BYTES)
    inside = "{% set x %}{% generation %}a {% endgeneration %}{% endset %}{{ x.replace(' ', '') }}"
    assert ChatTemplate(inside).encode(CHAT, BYTES) == ([97], [True])
    changed = "{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x | length }}"
    with pytest.raises(DataError, match=r"expected \{% generation %\} blocks that are written"):
        ChatTemplate(changed).encode(CHAT, BYTES)


@pytest.mark.parametrize("form", ["path", "name", "gguf"])
def test_a_models_own_template_is_never_a_path(form: str, tmp_path: Path) -> None:
    """A template that is the path of a private file would show that in every prompt."""
    secret = tmp_path / "id_rsa"
    secret.write_text("{{ messages }}PRIVATE KEY")
    given = "plain" if form == "name" else str(secret)
    if form == "gguf":
        words: Tokenizer = ByteTokenizer()
        words.chat_template = default_template(given)
    else:
        train_bpe(["to be or not to be"], 260, tmp_path)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        settings["chat_template"] = given
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        words = load_tokenizer(tmp_path)
    assert words.chat_template == given
    lm = HarnessModel(LLaMA(LlamaConfig.preset("debug", vocab_size=500)), words, device="cpu")
    with pytest.raises(ValueError, match="expected Jinja source from the model, got"):
        lm.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert lm._end_ids == words.end_ids
    with pytest.raises(ValueError, match="expected chatml, llama3, plain or Jinja source"):
        ChatTemplate(str(secret))
    assert "PRIVATE" in ChatTemplate.from_name(str(secret)).source  # --chat-template


@pytest.mark.parametrize("given", [5, ["a"], {"default": 5}, [{"name": "default", "template": 1}]])
def test_templates_that_are_no_text(given: object, tmp_path: Path) -> None:
    if given == ["a"]:
        assert default_template(given) is None
        return
    with pytest.raises(TokenizerError, match="chat_template: expected Jinja source, got"):
        default_template(given)
