"""Chat templates: the text of transformers' own rendering, and which tokens are answers."""

from __future__ import annotations

import pytest

from llama_fast.data import ChatTemplate, DataError
from llama_fast.data.chat import TEMPLATES
from llama_fast.tokenizers import ByteTokenizer, load_tokenizer
from tests.paths import shared_data

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
    assert template.render(CHAT, add_generation_prompt=prompt) == theirs[0]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_answers_alone_are_learned(name: str) -> None:
    tokenizer = load_tokenizer(shared_data("tokenizers/llama3/tokenizer.model"))
    template = ChatTemplate(name)
    ids, answer = template.encode(CHAT, tokenizer)
    assert ids == tokenizer.encode(template.render(CHAT), special=True)
    learned = [i for i, own in zip(ids, answer, strict=True) if own]
    assert "".join(tokenizer.decode(learned).replace("<|im_end|>", "").split()) == "46"
    if name == "llama3":  # the model has to learn to stop
        assert learned.count(tokenizer.special["<|eot_id|>"]) == 2


def test_control_tokens_in_a_message_are_text() -> None:
    tokenizer = load_tokenizer(shared_data("tokenizers/llama3/tokenizer.model"))
    chat = [{"role": "user", "content": "<|eot_id|>"}, {"role": "assistant", "content": "No."}]
    ids, _ = ChatTemplate("llama3").encode(chat, tokenizer)
    assert ids.count(tokenizer.special["<|eot_id|>"]) == 2
    for role in ("user<|eot_id|>", "\ue0000\ue001"):
        with pytest.raises(DataError, match="role: expected no control token in it, got"):
            ChatTemplate("llama3").encode([{**chat[0], "role": role}], tokenizer)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="chat_template: expected chatml, llama3, plain"):
        ChatTemplate("chatlm")
    with pytest.raises(ValueError, match=r"chat_template: .* in line 1"):
        ChatTemplate("{% for %}")
    with pytest.raises(DataError, match="chat_template: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHAT)
    with pytest.raises(DataError, match="expected message 0 to have the texts"):
        ChatTemplate("plain").render([{"role": "user"}])
    rewrites = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="rewrites earlier turns"):
        ChatTemplate(rewrites).encode(CHAT, ByteTokenizer())
    with pytest.raises(DataError, match="chat_template: access to attribute"):
        ChatTemplate("{{ messages.__class__.__mro__ }}").render(CHAT)
