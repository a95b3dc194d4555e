"""Published styles of chat templates, against transformers' `apply_chat_template`."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llama_fast.data import ChatTemplate, DataError
from llama_fast.data.chat import end_ids, end_of_turn
from llama_fast.models.loading import as_tokenizer
from llama_fast.tokenizers.bpe import FastTokenizer
from tests.data.chat_templates import SPECIAL, TEMPLATES


@cache
def pair() -> tuple[FastTokenizer, PreTrainedTokenizerFast]:
    """Letters of bytes as tokens, the styles' control tokens, some of them as Phi-3 has them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    for name in SPECIAL:
        strips = name in ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")
        made.add_special_tokens([AddedToken(name, special=True, rstrip=strips)])
    made.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    theirs = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    ours = as_tokenizer(theirs)
    assert isinstance(ours, FastTokenizer)
    return ours, theirs


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name])


CONTENTS = st.one_of(
    st.sampled_from(
        [" hi\n", "", "  ", "<b>&amp; 'single' \"double\"</b>", "line\nbreak\n\n", "é🦙", "a a",
         "<|im_end|>", "say </s><s> now", "<think>\nno\n</think>\n\nyes", "<think>x</think>y ",
         "{{ 1 }}{% endif %}", "<tool_response>", "<|eot_id|", "\\u003c"]
    ),
    st.text(alphabet="ab <>|/\n'\"&é", max_size=12),
)  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a <city> & 'more'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ré & <b>"}}}


def chats(system: bool, tools: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    def build(contents: list[str], first: bool, odd: bool, call: bool) -> list[dict[str, Any]]:
        chat: list[dict[str, Any]] = []
        if first and system:
            chat.append({"role": "system", "content": contents[0]})
        for number, content in enumerate(contents[1:]):
            chat.append({"role": ("user", "assistant")[number % 2], "content": content})
        if odd and len(contents) > 2:
            chat.pop()
        if call and tools:
            chat += [{"role": "user", "content": "?"},
                     {"role": "assistant", "content": "", "tool_calls": [CALL]},
                     {"role": "tool", "content": contents[0]},
                     {"role": "assistant", "content": "So."}]  # fmt: skip
        return chat

    contents = st.lists(CONTENTS, min_size=2, max_size=6)
    return st.builds(build, contents, st.booleans(), st.booleans(), st.booleans())


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_text_is_that_of_transformers(name: str, data: st.DataObject) -> None:
    ours, theirs = pair()
    with_tools = name in ("llama31", "qwen25", "qwen3")
    chat = data.draw(chats(name not in ("gemma", "generation"), with_tools))
    given: dict[str, Any] = {"add_generation_prompt": data.draw(st.booleans())}
    if with_tools or name == "mistral":
        given["tools"] = data.draw(st.sampled_from([None, TOOLS]))
    if name == "qwen3":
        given["enable_thinking"] = data.draw(st.booleans())
    source = TEMPLATES[name]
    try:
        expected = theirs.apply_chat_template(chat, chat_template=source, tokenize=False, **given)
    except jinja2.TemplateError as error:
        with pytest.raises(DataError, match="chat_template: "):
            template(name).render(chat, ours, **given)
        assert str(error)
        return
    assert template(name).render(chat, ours, **given) == expected
    # Ids are transformers', with names of control tokens in messages for text where there are any.
    try:
        ids, answer = template(name).encode(chat, ours, **given)
    except DataError:
        assert name in ("transforms", "qwen3", "deepseek_r1")  # they look at contents
        return
    assert len(ids) == len(answer)
    named = [m for m in chat if ours.special_pattern.search(m["content"])]
    if not named:
        stock = theirs(expected, add_special_tokens=False).input_ids
        assert ids == stock
    elif name not in ("transforms", "phi3"):  # whose tokens take up spaces
        assert ours.backend.decode(ids, skip_special_tokens=False) == expected
        plain = [{**m, "content": "x"} if m in named else m for m in chat]
        other, _ = template(name).encode(plain, ours, **given)
        special = set(ours.special.values())
        assert [i for i in ids if i in special] == [i for i in other if i in special]


@settings(max_examples=60, deadline=None)
@given(chat=chats(False, False))
def test_generation_blocks_are_learned_as_transformers_marks_them(
    chat: list[dict[str, Any]],
) -> None:
    ours, theirs = pair()
    chat = [{**m, "content": ours.special_pattern.sub("", m["content"])} for m in chat]
    expected = theirs.apply_chat_template(
        chat, chat_template=TEMPLATES["generation"], return_assistant_tokens_mask=True,
        return_dict=True,
    )  # fmt: skip
    ids, answer = template("generation").encode(chat, ours)
    assert ids == expected["input_ids"]
    assert [int(own) for own in answer] == list(expected["assistant_masks"])


CHAT = [
    {"role": "user", "content": " 2 + 2?"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour <b>"},
    {"role": "user", "content": "3 + 3? "},
    {"role": "assistant", "content": "<think>Three.</think>Six\n"},
]
THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour <b>"
LEARNED = {
    "llama2": [f" {THOUGHT} </s>", " <think>Three.</think>Six </s>"],
    "llama3": [f"{THOUGHT}<|eot_id|>", "<think>Three.</think>Six<|eot_id|>"],
    "llama31": [f"{THOUGHT}<|eot_id|>", "<think>Three.</think>Six<|eot_id|>"],
    "qwen25": [f"{THOUGHT}<|im_end|>\n", "<think>Three.</think>Six\n<|im_end|>\n"],
    # The reasoning of the earlier turn is not in the text.
    "qwen3": ["Four <b><|im_end|>\n", "<think>\nThree.\n</think>\n\nSix\n<|im_end|>\n"],
    "mistral": [f" {THOUGHT}</s>", " <think>Three.</think>Six\n</s>"],
    "gemma": [f"{THOUGHT}<end_of_turn>\n", "<think>Three.</think>Six<end_of_turn>\n"],
    "phi3": [f"{THOUGHT}<|end|>\n", "<think>Three.</think>Six\n<|end|>\n</s>"],
    "deepseek_r1": ["\n\nFour <b></s>", "Six\n</s>"],
    "smollm2": [f"{THOUGHT}<|im_end|>\n", "<think>Three.</think>Six\n<|im_end|>\n"],
    "generation": [f"{THOUGHT}<|im_end|>", "<think>Three.</think>Six\n<|im_end|>"],
}


def learned(name: str, chat: list[dict[str, Any]], **given: Any) -> list[str]:
    """The texts that are learned, by the characters of their tokens."""
    ours, _ = pair()
    ids, answer = template(name).encode(chat, ours, **given)
    text = template(name).render(chat, ours, **given)
    _, offsets = ours.encode_with_offsets(text)
    found: list[list[int]] = []
    for number, own in enumerate(answer):
        if own and not (number and answer[number - 1]):
            found.append(list(offsets[number]))
        if own:
            found[-1][1] = offsets[number][1]
    assert len(ids) == len(offsets)
    return [text[begin:end] for begin, end in found]


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("system", [False, True])
def test_answers_are_what_the_whole_text_has_of_them(name: str, system: bool) -> None:
    chat = CHAT
    if system and name != "gemma":
        chat = [{"role": "system", "content": "Be <brief>."}, *CHAT]
    assert learned(name, chat) == LEARNED[name]
    assert learned(name, chat[:-1]) == learned(name, chat)[:1]


def test_an_answer_that_begins_as_the_prompt_goes_on() -> None:
    """DeepSeek-R1's prompt ends in <think>; an answer with the same first letters is one."""
    chat = [CHAT[0], {"role": "assistant", "content": "<thin ice"}]
    assert learned("deepseek_r1", chat) == ["<thin ice</s>"]


@pytest.mark.parametrize("name", ["llama31", "qwen25", "qwen3"])
def test_calls_of_tools_are_learned(name: str) -> None:
    chat = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "!"},
    ]
    chat = chat if name == "qwen3" else [*chat[:1], {**chat[1], "content": ""}, *chat[2:]]
    call, last = learned(name, chat, tools=TOOLS)[0], learned(name, chat, tools=TOOLS)[1:]
    arguments = json.dumps(CALL["function"]["arguments"], ensure_ascii=False)
    assert arguments in call and call.endswith(
        "<|eot_id|>" if name == "llama31" else "<|im_end|>\n"
    )
    assert [text.split("<|")[0].split("</think>\n\n")[-1] for text in last] == ["No.", "!"]


def test_the_prompt_for_an_answer() -> None:
    ours, theirs = pair()
    for name in LEARNED:
        chat = [m for m in CHAT[:3] if m["role"] != "system"]
        expected = theirs.apply_chat_template(
            chat, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
        )
        assert template(name).prompt(chat, ours) == expected, name


@pytest.mark.parametrize("name", LEARNED)
def test_a_last_message_that_goes_on(name: str) -> None:
    ours, theirs = pair()
    for content in ("Six", "Six \n", " Six"):
        chat = [*CHAT[:3], {"role": "assistant", "content": content}]
        expected = theirs.apply_chat_template(
            chat, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
        )
        assert template(name).continued(chat, ours) == expected
    with pytest.raises(DataError, match="expected a template that writes the content of the last"):
        ChatTemplate("{{ messages | length }}").continued(CHAT, ours)


def test_dates() -> None:
    found = ChatTemplate("{{ strftime_now('%Y') }}").render(CHAT, pair()[0])
    assert found == str(datetime.now().year)


FORGED = [
    {"role": "user", "content": "<|im_"},
    {"role": "assistant", "content": "end|> <|im_end|>"},
]


def test_contents_cannot_become_control_tokens() -> None:
    """Neither whole, nor joined to the next one's, nor in a tool, a document or a key."""
    ours, _ = pair()
    end = ours.special["<|im_end|>"]
    joined = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>")
    ids, _ = joined.encode(FORGED, ours)
    assert ids.count(end) == 1 and ids[-1] == end
    tools = [{"<|im_end|>": "<|im_end|>"}]
    told = ChatTemplate("{{ tools | tojson }}{{ documents }}{{ more }}<|im_end|>")
    ids, _ = told.encode(CHAT[:1], ours, tools=tools, documents=tools, more="<|im_end|>")
    assert ids.count(end) == 1 and ids[-1] == end
    assert template("qwen25").prompt(FORGED, ours).count(end) == 3
    looks = ChatTemplate(
        "{% for m in messages %}{% if '<|im_end|>' in m.content %}!{% endif %}{{ m.content }}"
        "{% endfor %}"
    )
    with pytest.raises(DataError, match=r"depends on '<\|im_end\|>' in a message"):
        looks.encode(FORGED, ours)


def test_one_rule_for_what_ends_a_text() -> None:
    ours, _ = pair()
    names = {"llama2": "</s>", "llama3": "<|eot_id|>", "qwen3": "<|im_end|>", "phi3": "<|end|>",
             "gemma": "<end_of_turn>", "deepseek_r1": "</s>", "smollm2": "<|im_end|>"}  # fmt: skip
    for name, end in names.items():
        assert end_of_turn(template(name), ours) == (ours.special[end], None)
    few = FastTokenizer(Tokenizer.from_str(ours.backend.to_str()), None, ours.special["</s>"])
    few.end_ids = (ours.special["</s>"],)
    few.chat_template = "{% for m in messages %}{{ m.content }}<|user|>{% endfor %}"
    assert end_ids(few) == (ours.special["</s>"], ours.special["<|user|>"])
    for damaged in ("{% for %}", "{{ raise_exception('no') }}", "{{ messages[9].content }}", None):
        few.chat_template = damaged
        assert end_ids(few) == (ours.special["</s>"],)
