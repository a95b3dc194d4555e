"""The forms of rows that data sets have, each with the document that it becomes."""

from __future__ import annotations

from typing import Any

import pytest

from llama_fast.data.rows import DataError, PromptCompletion, document_of

QUESTION = {"role": "user", "content": "How far is the moon?"}
ANSWER = {"role": "assistant", "content": "384,400 km."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN = {"from": "human", "value": "How far is the moon?"}
GPT = {"from": "gpt", "value": "384,400 km."}


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ({"text": "a", "messages": [QUESTION]}, "a"),
        ({"text": [QUESTION, ANSWER]}, [QUESTION, ANSWER]),
        ({"id": 3, "messages": [QUESTION, ANSWER]}, [QUESTION, ANSWER]),
        ({"id": "x", "conversations": [HUMAN, GPT]}, [QUESTION, ANSWER]),
        ({"conversation": [QUESTION, GPT], "system": "Be brief."}, [SYSTEM, QUESTION, ANSWER]),
        ({"conversations": [HUMAN, GPT], "system": None}, [QUESTION, ANSWER]),
        (
            {"conversations": [{"from": "System", "value": "Be brief."}, HUMAN, GPT]},
            [SYSTEM, QUESTION, ANSWER],
        ),
        (
            {"conversations": [{"from": "observation", "value": "{}"}]},
            [{"role": "tool", "content": "{}"}],
        ),
        ({"prompt": "One, two,", "completion": " three"}, PromptCompletion("One, two,", " three")),
        (
            {"prompt": [QUESTION], "completion": [ANSWER]},
            PromptCompletion([QUESTION], [ANSWER]),
        ),
        ({"messages": [QUESTION], "prompt": "a", "completion": "b"}, [QUESTION]),
        (
            {"instruction": "How far is the moon?", "input": "", "output": "384,400 km."},
            [QUESTION, ANSWER],
        ),
        (
            {"instruction": "Sum.", "input": "1 and 2", "output": "3", "system": "Be brief."},
            [
                SYSTEM,
                {"role": "user", "content": "Sum.\n\n1 and 2"},
                {"role": "assistant", "content": "3"},
            ],
        ),
        (
            {
                "instruction": "And the sun?",
                "output": "8 minutes.",
                "history": [["How far is the moon?", "384,400 km."]],
            },
            [
                QUESTION,
                ANSWER,
                {"role": "user", "content": "And the sun?"},
                {"role": "assistant", "content": "8 minutes."},
            ],
        ),
        (
            {"instruction": "Sum.", "context": "1 and 2", "response": "3", "category": "closed_qa"},
            [{"role": "user", "content": "Sum.\n\n1 and 2"}, {"role": "assistant", "content": "3"}],
        ),
    ],
)
def test_forms(row: dict[str, Any], document: Any) -> None:
    found = document_of(row, "text", "here")
    assert found == document and type(found) is type(document)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "expected a field 'text', or messages, conversations, .* got none"),
        ({"prompt": "a", "chosen": "b"}, "got prompt, chosen"),
        ({"text": 3}, "expected a string or a list of messages in 'text', got a number"),
        ({"messages": "Hi"}, "expected a list of messages in 'messages', got a string"),
        ({"conversations": None}, "expected a list of messages in 'conversations', got null"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "message 0 to be from human, .*"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "message 1 to have a string 'value', got No"),
        ({"conversations": [["a"]]}, "message 0 to have strings 'role' and 'content'"),
        ({"conversations": [HUMAN], "system": 3}, "expected a string in 'system', got a number"),
        (
            {"prompt": "a", "completion": [ANSWER]},
            "in both .*, got a string and a list",
        ),
        ({"prompt": "a", "completion": ""}, "expected a text or messages in 'completion'"),
        ({"prompt": None, "completion": "b"}, "in 'prompt', got null"),
        ({"instruction": " ", "output": "b"}, "expected a text in 'instruction'"),
        ({"instruction": ["a"], "output": "b"}, "expected a string in 'instruction', got a list"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "pairs of strings in 'history'"),
    ],
)
def test_refusals(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        document_of(row, "text", "here")
